#!/usr/bin/env bash
# dist/image.sh REPOSITORY VERSION ARCHITECTURE OUT.tar PROGRAM...: an image of static programs as an OCI layout in a tar, made
# without a daemon and without a registry. The first program is the entry point. SOURCE_DATE_EPOCH: the time of everything in it.
set -euo pipefail
repository=$1 version=$2 architecture=$3 out=$4; shift 4
: "${SOURCE_DATE_EPOCH:?the time of everything in the image}"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

# The same files give the same bytes on every machine.
pack() { tar --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -C "$1" -cf "$2" "${@:3}"; }

root=$work/root
install -d -m 755 "$root" "$root/usr" "$root/usr/bin" "$root/etc"
install -d -m 1777 "$root/tmp"
install -m 755 "$@" "$root/usr/bin/"
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"; chmod 644 "$root/etc/nsswitch.conf"

layout=$work/layout blobs=$work/layout/blobs/sha256
install -d -m 755 "$layout" "$layout/blobs" "$blobs"

# blob FILE TYPE: moves the file to where its digest says, and prints its descriptor.
blob() {
  local digest size; digest=$(sha256sum "$1" | cut -d ' ' -f 1); size=$(stat -c %s "$1")
  mv "$1" "$blobs/$digest"; chmod 644 "$blobs/$digest"
  jq -cn --arg type "$2" --arg digest "sha256:$digest" --argjson size "$size" '{mediaType: $type, digest: $digest, size: $size}'
}

pack "$root" "$work/layer.tar" .
diff=sha256:$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
gzip -n -6 "$work/layer.tar"
layer=$(blob "$work/layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)

jq -cn --arg architecture "$architecture" --arg created "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" --arg diff "$diff" \
  --arg entry "/usr/bin/$(basename "$1")" --arg name "${repository##*/}" --arg version "$version" '{
    created: $created, architecture: $architecture, os: "linux",
    config: {User: "65532:65532", Entrypoint: [$entry], WorkingDir: "/", Labels: {
      "org.opencontainers.image.title": $name, "org.opencontainers.image.version": $version, "org.opencontainers.image.licenses": "Apache-2.0"}},
    rootfs: {type: "layers", diff_ids: [$diff]},
    history: [{created: $created, created_by: "make dist"}]}' >"$work/config"
config=$(blob "$work/config" application/vnd.oci.image.config.v1+json)

jq -cn --argjson config "$config" --argjson layer "$layer" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", config: $config, layers: [$layer]}' >"$work/manifest"
manifest=$(blob "$work/manifest" application/vnd.oci.image.manifest.v1+json)

# The name is for containerd, which wants it whole; the tag for everybody else.
jq -cn --argjson manifest "$manifest" --arg architecture "$architecture" --arg name "$repository:$version" --arg tag "$version" '{
    schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json",
    manifests: [$manifest + {platform: {architecture: $architecture, os: "linux"},
      annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": $tag}}]}' >"$layout/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
chmod 644 "$layout/index.json" "$layout/oci-layout"
pack "$layout" "$out" blobs index.json oci-layout
