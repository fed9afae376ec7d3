#!/usr/bin/env bash
# dist/dist.sh OUT: packs a release from the static programs in the directory BIN. `make dist` builds them first.
#   ARCH=arm64: they are of another architecture than this machine.
#   REGISTRY=example.com/etcd-tls: where install.yaml and the chart look for the images; empty: their plain names, as loaded.
set -euo pipefail
out=$(realpath -m "$1"); here=$(realpath "$(dirname "$0")"); cd "$here/.."
: "${BIN:?the directory of the programs}" "${REGISTRY:=}"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}; export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022
for tool in jq gzip sha256sum "${CARGO:=cargo}"; do command -v "$tool" >/dev/null || { echo "dist: no $tool in PATH" >&2; exit 1; }; done
tar --version | grep -q GNU || { echo "dist: tar is not GNU tar" >&2; exit 1; }
if command -v kustomize >/dev/null; then kustomize=(kustomize build)
elif [ -x "${KUBEBUILDER_ASSETS:-}/kubectl" ]; then kustomize=("$KUBEBUILDER_ASSETS/kubectl" kustomize)
elif command -v kubectl >/dev/null; then kustomize=(kubectl kustomize)
else echo "dist: no kubectl and no kustomize in PATH" >&2; exit 1; fi

version=$(sed -n 's/^version: //p' manifests/chart/Chart.yaml)
# shellcheck source=architecture.sh
. dist/architecture.sh
platform=linux-$architecture
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
# Only what an earlier run made is taken away.
[ ! -e "$out" ] || [ -f "$out/SHA256SUMS" ] || [ -z "$(ls -A "$out")" ] || { echo "dist: $out holds something else" >&2; exit 1; }
rm -rf "$out"; mkdir -p "$out"
archive() { tar --format=ustar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner "$@"; }

# The command line: under its own name, and under the one that makes it `kubectl etcd-tls`.
install -m 755 "$BIN/etcd-tls-webhook" "$work/etcd-tls-webhook"
ln -s etcd-tls-webhook "$work/kubectl-etcd_tls"
ln -s etcd-tls-webhook "$work/kubectl_complete-etcd_tls"
install -m 755 "$BIN/etcd-tls-sidecar" "$work/etcd-tls-sidecar"
install -m 644 LICENSE "$work/LICENSE"
mkdir -p "$work/completions" "$work/man/man1"
for shell in bash fish zsh; do "${runner[@]}" "$BIN/etcd-tls-webhook" completion "$shell" >"$work/completions/etcd-tls-webhook.$shell"; done
"${runner[@]}" "$BIN/etcd-tls-webhook" man "$work/man/man1"
archive -C "$work" -c LICENSE completions man etcd-tls-sidecar etcd-tls-webhook kubectl-etcd_tls kubectl_complete-etcd_tls | gzip -n >"$out/etcd-tls-$version-$platform.tar.gz"

# A name without a registry means this one, for kubelet, too.
repository=${REGISTRY:-docker.io/library}
"$here/image.sh" "$repository/etcd-tls-webhook" "$version" "$architecture" "$out/etcd-tls-webhook-$version-$platform.oci.tar" "$BIN/etcd-tls-webhook"
"$here/image.sh" "$repository/etcd-tls-sidecar" "$version" "$architecture" "$out/etcd-tls-sidecar-$version-$platform.oci.tar" \
  "$BIN/etcd-tls-sidecar" "$BIN/etcd-tls-probe"

# kustomize takes no absolute path.
mkdir "$work/overlay"
{
  # As in manifests/kustomization.yaml: policies before rights.
  printf 'sortOptions: {order: fifo}\nresources: ["%s"]\n' "$(realpath --relative-to="$work/overlay" manifests)"
  [ -z "$REGISTRY" ] || printf 'images:\n- {name: etcd-tls-webhook, newName: "%s/etcd-tls-webhook"}\n- {name: etcd-tls-sidecar, newName: "%s/etcd-tls-sidecar"}\n' \
    "$REGISTRY" "$REGISTRY"
} >"$work/overlay/kustomization.yaml"
"${kustomize[@]}" "$work/overlay" >"$out/install.yaml"

mkdir "$work/chart"; cp -r manifests/chart "$work/chart/etcd-tls"
[ -z "$REGISTRY" ] || sed -i "s|^\( *repository: \)\(etcd-tls-[a-z]*\)$|\1$REGISTRY/\2|" "$work/chart/etcd-tls/values.yaml"
chmod -R u=rwX,go=rX "$work/chart"
archive -C "$work/chart" --exclude='*/.helmignore' -c etcd-tls | gzip -n >"$out/etcd-tls-$version.tgz"

"$CARGO" metadata --locked --format-version 1 --filter-platform "$triple" >"$work/metadata.json"
for package in etcd-tls-webhook etcd-tls-sidecar; do
  jq --arg package "$package" -f "$here/sbom.jq" "$work/metadata.json" >"$out/$package-$version-$platform.cdx.json"
done
# etcd-tls-probe is a program of the same package.
(cd "$out" && sha256sum -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
chmod 644 "$out"/*
