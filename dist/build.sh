#!/usr/bin/env bash
# dist/build.sh BIN: compiles the programs of a release into the directory BIN: linked statically, stripped, and the same bytes in
# whatever folder and for whatever user they are compiled, with the same compilers. `make dist` packs them.
#   ARCH=arm64: for another architecture than this machine's. DIST_PROFILE=dev: compiles quickly, to try it.
#   STATIC: flags of rustc for each program.
set -euo pipefail
bin=$(realpath -m "$1"); cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${STATIC:=-C target-feature=+crt-static}"
# shellcheck source=architecture.sh
. dist/architecture.sh
profile=${DIST_PROFILE:-}
# Released programs take random numbers from the operating system: see the Makefile.
[ -n "$profile" ] || export AWS_LC_SYS_NO_JITTER_ENTROPY=1
upper=${triple^^}; upper=${upper//-/_}
[ -z "$gnu" ] || export "CARGO_TARGET_${upper}_LINKER=${gnu}gcc" "CC_${triple//-/_}=${gnu}gcc" "AR_${triple//-/_}=${gnu}ar"

# Crates are on this machine before the folders are listed that they are in.
"$CARGO" fetch --locked --target "$triple"
metadata=$("$CARGO" metadata --locked --no-deps --format-version 1)
target=$(jq -r .target_directory <<<"$metadata") home=${CARGO_HOME:-$HOME/.cargo} sysroot=$("${RUSTC:-rustc}" --print sysroot)
rust=() c=()
# remap FROM TO: programs hold TO instead of the folder FROM, in messages of panics, in lines for debuggers, and so in the id of the
# build. Of several that fit, compilers take the last.
remap() {
  local from
  for from in "$1" "$(realpath -m "$1")"; do
    rust+=("--remap-path-prefix=$from=$2"); c+=("-ffile-prefix-map=$from=$2")
  done
}
remap "$PWD" /etcd-tls
remap "$home" /cargo
for from in "$home"/registry/src/*/; do [ ! -d "$from" ] || remap "${from%/}" /cargo/registry; done
remap "$sysroot/lib/rustlib/src/rust" /rust
remap "$target" /target
# In place of RUSTFLAGS and CFLAGS of the environment, which would change the programs. Arguments are split at this character.
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f'; echo "${rust[*]}")
declare -x CARGO_ENCODED_RUSTFLAGS CARGO_INCREMENTAL=0 "CFLAGS_${triple//-/_}=${c[*]}"

mkdir -p "$bin"
static() { # PROFILE PACKAGE PROGRAM
  # shellcheck disable=SC2086
  "$CARGO" rustc --locked --target "$triple" --profile "$1" -p "$2" --bin "$3" -- $STATIC
  install -s --strip-program="${gnu}strip" -t "$bin" "$target/$triple/${1/#dev/debug}/$3"
}
static "${profile:-release}" etcd-tls-webhook etcd-tls-webhook
static "${profile:-sidecar}" etcd-tls-sidecar etcd-tls-sidecar
static "${profile:-sidecar}" etcd-tls-sidecar etcd-tls-probe
