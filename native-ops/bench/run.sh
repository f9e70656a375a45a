#!/usr/bin/env bash
# Builds the CUDA kernels for this machine's GPU, checks them against float64, times them beside PyTorch's attention.
#   native-ops/bench/run.sh [OUT_DIR [DIRECTORY_OF_PROGRAMS]]
# Needs nvcc, CMake, a C++17 compiler and a python3 with PyTorch and matplotlib. With test_kernels and bench_kernels built
# elsewhere, in DIRECTORY_OF_PROGRAMS, no compiler is needed. Writes results.csv and results.png.
set -euo pipefail
out=${1:+$(realpath -m "$1")} programs=${2:+$(realpath "$2")}
cd "$(dirname "$0")/.."
out=${out:-build/bench}
mkdir -p "$out"
if [[ -z $programs ]]; then
  programs=build/cuda
  bench/build.sh "$out/build.log" test_kernels bench_kernels
fi
"$programs/test_kernels" --quick | tee "$out/check.log" | tail -1
"$programs/bench_kernels" rows lengths gate decode > "$out/ours.csv"
python3 bench/bench_peers.py "$out/ours.csv" "$out" --lengths
