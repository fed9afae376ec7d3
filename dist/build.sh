#!/usr/bin/env bash
# dist/build.sh BIN: compiles the programs of a release into the directory BIN: linked statically, stripped, and the same bytes in
# whatever folder and for whatever user they are compiled, with the same compilers and C library. `make dist` packs them.
#   ARCH=arm64: for another architecture than this machine's. DIST_PROFILE=dev: compiles quickly, to try it.
#   STATIC: flags of rustc for each program.
set -euo pipefail
# Without the environment's flags of C compilers and its changes of Cargo's profiles and of aws-lc: crates add up those of CFLAGS,
# HOST_CFLAGS, TARGET_CFLAGS and CFLAGS_<target>. Bash itself cannot unset a name with a hyphen.
changing='((HOST|TARGET)_)?(C|CXX|CPP|AS|AR|RANLIB|LD)FLAGS([_-][^=]*)?|CC_SHELL_ESCAPED_FLAGS|(CARGO_PROFILE|AWS_LC_SYS)_[^=]*'
mapfile -t changing < <(env -0 | sed -znE "s/^($changing)=.*/\1/p" | tr '\0' '\n')
[ "${#changing[@]}" = 0 ] || exec env "${changing[@]/#/--unset=}" "$BASH" "$0" "$@"
bin=$(realpath -m "$1"); cd "$(dirname "$0")/.."
: "${CARGO:=cargo}" "${STATIC:=-C target-feature=+crt-static}"
# shellcheck source=architecture.sh
. dist/architecture.sh
profile=${DIST_PROFILE:-}
# Released programs take random numbers from the operating system: see the Makefile.
[ -n "$profile" ] || export AWS_LC_SYS_NO_JITTER_ENTROPY=1
upper=${triple^^}; upper=${upper//-/_}
[ -z "$gnu" ] || export "CARGO_TARGET_${upper}_LINKER=${gnu}gcc" "CC_${triple//-/_}=${gnu}gcc" "AR_${triple//-/_}=${gnu}ar"
refuse() { echo "dist: $1" >&2; exit 1; }
linker=CARGO_TARGET_${upper}_LINKER; linker=${!linker:-cc}
made=$("$linker" -dumpmachine) || refuse "no linker $linker"
[[ $made != *musl* ]] || refuse "$linker makes programs for $made, and a release is linked with glibc: compile it on a distribution with glibc"
[[ $STATIC != *+crt-static* ]] || [[ $("$linker" -print-file-name=libc.a) == /* ]] ||
  refuse "$linker finds no libc.a to link programs statically: apt-get install libc6-dev${gnu:+-$architecture-cross}, or dnf install glibc-static"
library=$("${RUSTC:-rustc}" --print target-libdir --target "$triple")
[ -d "$library" ] || refuse "Rust has no standard library for $triple: rustup target add $triple"

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
    [[ $from != *[[:space:]]* ]] || refuse "the folder $from has a space in its name, where flags of C compilers are split: use another"
    rust+=("--remap-path-prefix=$from=$2"); c+=("-ffile-prefix-map=$from=$2")
  done
}
remap "$PWD" /etcd-tls
remap "$home" /cargo
for from in "$home"/registry/src/*/; do [ ! -d "$from" ] || remap "${from%/}" /cargo/registry; done
remap "$sysroot/lib/rustlib/src/rust" /rust
remap "$target" /target
# In place of all forms of RUSTFLAGS, in the environment and in Cargo's configuration. Arguments are split at this character.
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
