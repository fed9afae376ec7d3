#!/usr/bin/env bash
# summary.sh LOG: what `cargo test` printed, in one line: passed, failed, skipped. A test that said SKIPPED ran as far as
# that and counts as skipped, not as passed. A test that failed beside others and passed alone counts as unsteady. Exits 1
# where a test failed or a target did not compile or did not end.
set -euo pipefail
grep -ahoE 'SKIPPED (tier [0-9]|special): .*' "$1" | sort -u || true
grep -a '^UNSTEADY: ' "$1" || true
skipped=$({ grep -ahoE 'SKIPPED (tier [0-9]|special): [^ ]+:' "$1" || true; } | sed -E 's/^SKIPPED (tier [0-9]|special): //' | sort -u | wc -l)
awk -v skipped="$skipped" '
  /^test result:/ { passed += $4; failed += $6; results++ }
  /^ *(Running|Doc-tests) / { started++ }
  /^error: could not compile/ { failed++ }
  /^UNSTEADY: / { failed--; unsteady++ }
  END {
    if (started > results) failed += started - results
    printf "%d passed, %d failed, %d skipped%s\n", passed - skipped, failed, skipped, unsteady ? ", " unsteady " unsteady" : ""
    exit failed > 0
  }' "$1"
