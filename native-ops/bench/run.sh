#!/usr/bin/env bash
# Builds the CUDA kernels for this machine's GPU, checks them against float64, times them beside PyTorch's attention.
#   native-ops/bench/run.sh [OUT_DIR]
# Needs nvcc, CMake, a C++17 compiler and a python3 with PyTorch and matplotlib. Writes results.csv and results.png.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/bench}
mkdir -p "$out"
cmake -S src/main/cuda -B build/cuda -DCMAKE_CUDA_ARCHITECTURES=native > "$out/build.log"
cmake --build build/cuda -j "$(nproc)" >> "$out/build.log" 2>&1 || { tail -20 "$out/build.log"; exit 1; }
build/cuda/test_kernels --quick | tee "$out/check.log" | tail -1
build/cuda/bench_kernels rows lengths gate decode > "$out/ours.csv"
python3 bench/bench_peers.py "$out/ours.csv" "$out" --lengths
