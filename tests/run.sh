#!/usr/bin/env bash
# run.sh LOG: builds the tests of the workspace and runs their programs, some at once: most of them wait for time to pass or for
# other processes. What a program prints stays together, as `cargo test` prints it, here and in LOG. JOBS sets how many run at
# once (default: one more than there are processors), beside those that mostly wait. At most three tests that fail run once more, alone.
# One that passes then is UNSTEADY: summary.sh counts it apart, never as passed. Exits 1 where one fails, 130 or 143 when a signal ends it
# and all that it has started.
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
long=" rights issuers revocation trust plain_text sidecars rotation cleanup lock sign approve monitoring "

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

outputs=$(mktemp -d)
trap 'rm -rf "$outputs"' EXIT
run() {
  local folder=$1 program=$2 title=$3 out status=0
  out=$(mktemp -p "$outputs")
  {
    printf '     Running %s (%s)\n' "$title" "$program"
    (cd "$folder" && CARGO_MANIFEST_DIR=$folder exec "$program" 2>&1) || status=$?
    [ "$status" = 0 ] || printf 'error: %s ended with %s\n' "$title" "$status"
  } > "$out" 2>&1
  # One at a time.
  { flock 9; tee -a "$log" < "$out"; } 9< "$log"
  [ "$status" = 0 ] || failed "$out" "$@" >> "$outputs/failed"
  rm -f "$out"
  [ "$status" = 0 ]
}
# The tests that an output names as failed, a line each: the program's folder, the program and the test. A program that did not come to its
# end names none: its line has no test.
failed() { # OUTPUT FOLDER PROGRAM TITLE
  awk -v folder="$2" -v program="$3" '
    /^failures:$/ { n = 0; listed = 1; next }
    listed && /^    [^ ]+$/ { names[++n] = $1 }
    /^test result: FAILED/ { failed = $6 }
    END {
      if (!failed || n != failed) { n = 1; names[1] = "" }
      for (i = 1; i <= n; i++) printf "%s\t%s\t%s\n", folder, program, names[i]
    }' "$1"
}
# Runs the failed tests once more, each alone, and fails where one fails again. What they print is indented in the log: it is no result
# of its own.
again() {
  local folder program name status=0 tests
  mapfile -t tests < "$outputs/failed"
  [ ${#tests[@]} -le 3 ] || return 1
  for name in "${tests[@]}"; do [ "${name##*$'\t'}" ] || return 1; done
  while IFS=$'\t' read -r folder program name; do
    echo "once more, alone: $name" | tee -a "$log"
    if (cd "$folder" && CARGO_MANIFEST_DIR=$folder exec "$program" --exact "$name" 2>&1) | sed 's/^/  /' | tee -a "$log"; then
      echo "UNSTEADY: $name failed beside others and passed alone" | tee -a "$log"
    else
      status=1
    fi
  done < <(printf '%s\n' "${tests[@]}")
  return "$status"
}
export -f run failed
export log outputs

status=0
lanes=()
# Each lane is a process group of its own, with all that its tests start. A terminal's Ctrl-C and a signal to this process both end here,
# at once, since this process only waits; and so does every lane.
set -m
pool() { # CLASSES JOBS
  { grep "^[$1]" <<< "$programs" || true; } | cut -f2- | tr '\t' '\n' | xargs -r -d '\n' -n 3 -P "$2" bash -c 'run "$@"' run
}
doc() { "$cargo" test --locked --workspace --doc 2>&1 | tee -a "$log"; }
begin() { # COMMAND...: its lane's number is in $lane
  "$@" & lane=$!
  lanes+=("$lane")
}
signal() { # SIGNAL: to every lane; fails where none is left
  local lane any=1
  for lane in "${lanes[@]}"; do kill -s "$1" -- "-$lane" 2> /dev/null && any=0; done
  return "$any"
}
stop() { # STATUS
  trap '' INT TERM
  # One that a test has stopped takes SIGTERM only when it goes on.
  { signal TERM && signal CONT; } || exit "$1"
  for _ in {1..50}; do signal 0 || exit "$1"; sleep 0.2; done
  signal KILL || true
  exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM

begin pool 0 1; beside=$lane
begin pool 12 "$jobs"; wait "$lane" || status=1
wait "$beside" || status=1
begin pool 3 1; wait "$lane" || status=1
# Nothing else failed if every program has printed what it did.
if [ -s "$outputs/failed" ]; then
  begin again
  wait "$lane" && [ "$(grep -ac '^     Running ' "$log")" = "$(wc -l <<< "$programs")" ] && status=0
fi
begin doc; wait "$lane" || status=1
exit $status
