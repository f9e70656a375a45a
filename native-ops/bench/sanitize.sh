#!/usr/bin/env bash
# A representative part of the tests under each tool of compute-sanitizer, the tools side by side.
#   native-ops/bench/sanitize.sh [TEST_BINARY]
test=${1:-$(dirname "$0")/../build/cuda/test_kernels}
check() {
  for only in "BFLOAT16 B1 N300 M300" "BFLOAT16 B1 N333 M333 H2/1 D128/128" "BFLOAT16 B1 N333 M333 H2/1 D256/256" \
    "FLOAT B1 N333 M333 H2/1 D64/64" "HALF B2 N130" "BFLOAT16 B2 N2 M1000" "DOUBLE B1 N150 M150 H2/2 D20"; do
    result=$(timeout 120 compute-sanitizer --tool "$1" --report-api-errors no "$test" --quick --raw-workspace --only "$only" 2>&1 |
      grep -E "ERROR SUMMARY|RACECHECK SUMMARY|passed,|Error:|at .*cu:" | sed 's/=* //' | sort | uniq -c | sort -rn | head -4 | tr '\n' ';')
    echo "$1: $only: ${result:-no result}"
  done
}
for tool in memcheck racecheck initcheck synccheck; do check "$tool" & done
wait
