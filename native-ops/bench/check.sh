#!/usr/bin/env bash
# All checks of the CUDA kernels on a GPU host, none of which needs Java: against float64 and the golden cases, operands
# on the host, the plug-in for nd4j-cuda over a stand-in, reruns bit for bit, compute-sanitizer. About ten minutes.
#   native-ops/bench/check.sh OUT_DIR [DIRECTORY_OF_PROGRAMS]
# Needs nvcc, CMake and a C++17 compiler, or the programs built elsewhere. Each check has a log in OUT_DIR and a limit of
# its own; the table is OUT_DIR/check.txt.
set -uo pipefail
out=$(realpath -m "${1:?OUT_DIR}") programs=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
mkdir -p "$out"
golden=$(realpath ../samediff-ops/src/test/resources/golden)
if [[ -z $programs ]]; then
  programs=build/cuda
  bench/build.sh "$out/build.log" all || exit 1
fi
export LD_LIBRARY_PATH=$programs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
: > "$out/check.txt"
check() {  # name, seconds, command
  local start=$SECONDS code=0
  timeout "$2" "${@:3}" > "$out/$1.log" 2>&1 || code=$?
  printf '%-14s %-10s %4d s  %s\n' "$1" "$( ((code)) && echo "FAILED $code" || echo passed)" $((SECONDS - start)) \
    "$(tail -1 "$out/$1.log")" | tee -a "$out/check.txt"
}

# The oracle runs on the CPU: these leave most of the GPU idle.
check test_kernels 400 "$programs/test_kernels" --golden "$golden" &
check test_nsa 400 "$programs/test_nsa" &
check nd4jcuda_test 400 "$programs/nd4jcuda_test" --golden "$golden" &
wait
check offload_test 200 "$programs/offload_test"
check reruns 300 "$programs/bench_kernels" reruns
check reruns_nsa 300 "$programs/bench_nsa" reruns
check sanitize 1800 bench/sanitize.sh "$programs"
! grep -q FAILED "$out/check.txt"
