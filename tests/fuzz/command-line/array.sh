args=(--name a)
args+=(--cert-file=/x)
exec etcd "${args[@]}" "$@"
