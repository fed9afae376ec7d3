#!/usr/bin/env bash
# run.sh SECONDS [target...]: runs the targets (tests/src/fuzz.rs) under libFuzzer, SECONDS each, all by default; as many at once as
# there are processors (FUZZ_JOBS).
#
# Only the workspace's own crates are built for coverage; the dependencies are those of `make test`, so a stable toolchain does.
# FUZZ_PROFILE=release takes longer to build and runs more often. New inputs go to $FUZZ_WORK, not to the corpora here.
# FUZZ_SEED repeats a run: the same inputs in the same order. Without it each run has others.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:?usage: run.sh SECONDS [target...]}; shift
here=tests/fuzz
target=${CARGO_TARGET_DIR:-target}
profile=${FUZZ_PROFILE:-dev}
work=${FUZZ_WORK:-$target/fuzz}
if ! command -v c++ >/dev/null; then
  echo "SKIPPED special: fuzz: no C++ compiler for libFuzzer; enable with: apt-get install g++" >&2
  exit 0
fi
mkdir -p "$work"
wrapper=$work/rustc.sh
cat > "$wrapper" <<'W'
#!/bin/sh
exec "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
W
chmod +x "$wrapper"
RUSTC_WORKSPACE_WRAPPER=$(realpath "$wrapper") cargo build --locked -q --profile "$profile" -p tests --features fuzz --bin fuzz
folder=$profile; [ "$profile" != dev ] || folder=debug
if [ $# = 0 ]; then
  mapfile -t names < <(cd "$here" && printf '%s\n' */ | tr -d /)
  set -- "${names[@]}"
fi
fuzz() {
  local name=$1 status=0
  mkdir -p "$work/$name"
  # A run of 10 s is a hang; 512 MiB are the bound on memory.
  if ! ETCD_TLS_FUZZ_TARGET=$name "$target/$folder/fuzz" -max_total_time="$seconds" -seed="${FUZZ_SEED:-0}" -timeout=10 -rss_limit_mb=512 \
    -max_len=65536 -print_final_stats=1 -verbosity=0 -artifact_prefix="$work/$name-" "$work/$name" "$here/$name" \
    > "$work/$name.log" 2>&1; then
    status=1
  fi
  # In one write: others may end at the same time.
  echo "== fuzz $name, $seconds s
$([ "$status" = 0 ] || tail -30 "$work/$name.log")
$(grep -h "stat::number_of_executed_units\|stat::peak_rss_mb" "$work/$name.log")" | grep -v '^$'
  return "$status"
}
export -f fuzz
export seconds target folder work here
printf '%s\n' "$@" | xargs -P "${FUZZ_JOBS:-$(nproc)}" -I NAME bash -c 'fuzz NAME'
