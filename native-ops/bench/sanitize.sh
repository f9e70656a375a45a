#!/usr/bin/env bash
# A representative part of the tests under each tool of compute-sanitizer, the tools side by side.
#   native-ops/bench/sanitize.sh [DIRECTORY_OF_TESTS]
tests=${1:-$(dirname "$0")/../build/cuda}
check() {  # tool, what is run
  options=()
  [ "$1" = racecheck ] && options=(--num-cuda-barriers 256)  # those of a block
  result=$(timeout 120 compute-sanitizer --tool "$1" "${options[@]}" --report-api-errors no "${@:2}" 2>&1 |
    grep -E "ERROR SUMMARY|RACECHECK SUMMARY|passed,|Error:|at .*cu:" | sed 's/=* //' | sort | uniq -c | sort -rn | head -4 | tr '\n' ';')
  echo "$1: ${*:2}: ${result:-no result}"
}
checkAll() {
  for only in "BFLOAT16 B1 N300 M300" "BFLOAT16 B1 N333 M333 H2/1 D128/128" "BFLOAT16 B1 N333 M333 H2/1 D256/256" \
    "FLOAT B1 N333 M333 H2/1 D64/64" "HALF B2 N130" "BFLOAT16 B2 N2 M1000" "DOUBLE B1 N150 M150 H2/2 D20"; do
    check "$1" "$tests/test_kernels" --quick --raw-workspace --only "$only"
  done
  for only in "BFLOAT16 B1 N129" "BFLOAT16 B1 N700 M700 H32/2" "BFLOAT16/sm_80 B2 N220" "BFLOAT16/sm_80 B1 N239" \
    "HALF B2 N180" "BFLOAT16 B2 N150 M300" "FLOAT B2 N220 M220" "FLOAT B1 N239" "DOUBLE B1 N130 M130 H8/2"; do
    check "$1" "$tests/test_nsa" --reruns 1 --multiprocessors 3 --only "$only"
  done
}
for tool in memcheck racecheck initcheck synccheck; do checkAll "$tool" & done
wait
