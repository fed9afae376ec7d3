#!/usr/bin/env bash
# run.sh LOG: builds the tests of the workspace and runs their programs, some at once: most of them wait for time to pass or for
# other processes. What a program prints stays together, as `cargo test` prints it, here and in LOG. JOBS sets how many run at
# once (default: one more than there are processors), beside those that mostly wait. Exits 1 where one fails.
set -euo pipefail
cd "$(dirname "$0")/.."
log=$1
cargo=${CARGO:-cargo}
jobs=${JOBS:-$(($(nproc) + 1))}

# These measure: they run one after the other, with nothing beside them.
alone=" budgets demo faults flood scale "
# These mostly wait, for kubelet and for proofs of policies: they run beside the others, one after the other, since some share the one
# cluster.
waiting=" cluster guards node_reboot static_pod "
# These take longest of the rest: they begin first.
long=" rights issuers revocation trust plain_text sidecars rotation cleanup lock sign approve "

: > "$log"
# Each line: the program's class, its package's folder, the program, and its title.
programs=$(
  "$cargo" test --locked --workspace --no-run --message-format=json-render-diagnostics | {
    grep '"reason":"compiler-artifact"' || true
  } | sed -nE 's|.*"manifest_path":"([^"]*)/Cargo.toml".*"kind":\["([a-z-]+)".*"name":"([^"]*)","src_path":"([^"]*)".*"profile":\{[^}]*"test":true\}.*"executable":"([^"]*)".*|\1 \5 \2 \3 \4|p' |
    while read -r folder program kind name source; do
      class=2
      [[ $long != *" $name "* ]] || class=1
      [[ $alone != *" $name "* ]] || class=3
      [[ $waiting != *" $name "* ]] || class=0
      [ "$kind" = test ] && title=${source#"$folder"/} || title="unittests ${source#"$folder"/}"
      printf '%s\t%s\t%s\t%s\n' "$class" "$folder" "$program" "$title"
    done | sort -s -k1,1
)
[ "$programs" ] || { echo "error: could not compile the tests" | tee -a "$log"; exit 1; }

run() {
  local folder=$1 program=$2 title=$3 out status=0
  out=$(mktemp)
  {
    printf '     Running %s (%s)\n' "$title" "$program"
    (cd "$folder" && CARGO_MANIFEST_DIR=$folder exec "$program" 2>&1) || status=$?
    [ "$status" = 0 ] || printf 'error: %s ended with %s\n' "$title" "$status"
  } > "$out" 2>&1
  # One at a time.
  { flock 9; tee -a "$log" < "$out"; } 9< "$log"
  rm -f "$out"
  [ "$status" = 0 ]
}
export -f run
export log

status=0
pool() { # CLASSES JOBS
  { grep "^[$1]" <<< "$programs" || true; } | cut -f2- | tr '\t' '\n' | xargs -r -d '\n' -n 3 -P "$2" bash -c 'run "$@"' run
}
pool 0 1 & beside=$!
pool 12 "$jobs" || status=1
wait "$beside" || status=1
pool 3 1 || status=1
"$cargo" test --locked --workspace --doc 2>&1 | tee -a "$log" || status=1
exit $status
