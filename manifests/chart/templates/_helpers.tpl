{{- define "etcd-tls.labels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: etcd-tls
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "etcd-tls.monitoring.labels" -}}
{{- include "etcd-tls.labels" . }}
{{- with .Values.monitoring.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* The reference of an image, of a list: the root and the image's values. */}}
{{- define "etcd-tls.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}{{ with $image.tag }}:{{ . }}{{ end }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- /* More arguments of a process, of a list: the root and the process's values. */}}
{{- define "etcd-tls.arguments" -}}
{{- $root := index . 0 }}{{ $process := index . 1 }}
{{- with $root.Values.log.level }}
- {{ printf "--log-level=%s" . | quote }}
{{- end }}
{{- with $root.Values.log.format }}
- {{ printf "--log-format=%s" . | quote }}
{{- end }}
{{- range $name, $value := $process.flags }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- {{ printf "--%s" $name | quote }}
{{- end }}
{{- else if kindIs "slice" $value }}
- {{ printf "--%s=%s" $name (join "," $value) | quote }}
{{- else if kindIs "float64" $value }}
- {{ printf "--%s=%d" $name (int64 $value) | quote }}
{{- else }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What all pods have. */}}
{{- define "etcd-tls.pod" -}}
nodeSelector: {{- toYaml .Values.nodeSelector | nindent 2 }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- if .Values.priority.enabled }}
priorityClassName: system-cluster-critical
{{- end }}
{{- end }}

{{- /* A duration such as 1h30m, in seconds. */}}
{{- define "etcd-tls.seconds" -}}
{{- $seconds := 0 }}
{{- range $unit, $of := dict "h" 3600 "m" 60 "s" 1 }}
{{- $seconds = add $seconds (mul $of (regexFind (printf "[0-9]+%s" $unit) $ | trimSuffix $unit | default "0" | atoi)) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{- /* A quantity such as 128Mi or 20m, in thousandths. */}}
{{- define "etcd-tls.thousandths" -}}
{{- $units := dict "m" 1.0 "" 1e3 "k" 1e6 "Ki" 1024e3 "M" 1e9 "Mi" 1048576e3 "G" 1e12 "Gi" 1073741824e3 }}
{{- /* A number of a values file comes as a float. */}}
{{- $text := kindIs "string" . | ternary (toString .) (printf "%.0f" (float64 .)) }}
{{- mulf (regexFind "^[0-9.]+" $text | float64) (get $units (regexFind "[A-Za-z]*$" $text)) | int64 }}
{{- end }}
