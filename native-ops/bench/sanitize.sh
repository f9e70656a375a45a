#!/usr/bin/env bash
# A representative part of the tests under each tool of compute-sanitizer, as many side by side as there are cores. Exits
# with 1 if a tool reports an error, a test fails, or one runs longer than five minutes.
#   native-ops/bench/sanitize.sh [DIRECTORY_OF_TESTS [TOOL...]]
tests=${1:-$(dirname "$0")/../build/cuda}
tools=("${@:2}")
((${#tools[@]})) || tools=(racecheck memcheck initcheck synccheck)
successes=$(mktemp)  # a line each: a check that was killed has none
trap 'rm -f "$successes"' EXIT
check() {  # tool, what is run
  local options=(--error-exitcode 3) lines verdict=
  [ "$1" = racecheck ] && options+=(--num-cuda-barriers 512)  # those of a block
  lines=$(timeout 300 compute-sanitizer --tool "$1" "${options[@]}" --report-api-errors no "${@:2}" 2>&1) ||
    verdict="FAILED $?, "
  echo "$1: ${*:2}: $verdict$(grep -E "ERROR SUMMARY|RACECHECK SUMMARY|passed,|[Ee]rror:|error detected|at .*cu:" \
    <<< "$lines" | sed 's/=* //' | sort | uniq -c | sort -rn | head -4 | tr '\n' ';')"
  [ -n "$verdict" ] || echo "$1" >> "$successes"
}
start() {
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
  check "$@" &
}
kernels=("BFLOAT16 B1 N300 M300" "BFLOAT16 B1 N333 M333 H2/1 D128/128" "BFLOAT16 B1 N333 M333 H2/1 D256/256"
  "BFLOAT16 B2 N333 M450 H4/2 D128/128" "FLOAT B1 N333 M333 H2/1 D64/64" "HALF B2 N130" "BFLOAT16 B2 N2 M1000"
  "DOUBLE B1 N150 M150 H2/2 D20")
nsa=("BFLOAT16 B1 N129" "BFLOAT16 B1 N700 M700 H32/2" "BFLOAT16/sm_80 B2 N220" "BFLOAT16/sm_80 B1 N239" "HALF B2 N180"
  "BFLOAT16 B2 N150 M300" "FLOAT B2 N220 M220" "FLOAT B1 N239" "DOUBLE B1 N130 M130 H8/2")
for tool in "${tools[@]}"; do
  for only in "${kernels[@]}"; do start "$tool" "$tests/test_kernels" --quick --raw-workspace --only "$only"; done
  for only in "${nsa[@]}"; do start "$tool" "$tests/test_nsa" --reruns 1 --multiprocessors 3 --only "$only"; done
done
wait
failed=$((${#tools[@]} * (${#kernels[@]} + ${#nsa[@]}) - $(wc -l < "$successes")))
echo "${#tools[@]} tools, ${#kernels[@]} + ${#nsa[@]} groups each: $failed failed"
((!failed))
