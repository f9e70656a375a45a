#!/usr/bin/env bash
# Builds targets of the CUDA project for this machine's GPU, in native-ops/build/cuda; a failure shows the log's end.
#   native-ops/bench/build.sh LOG TARGET...
set -euo pipefail
log=$(realpath -m "$1")
cd "$(dirname "$0")/.."
{ cmake -S src/main/cuda -B build/cuda -DCMAKE_CUDA_ARCHITECTURES=native &&
  cmake --build build/cuda -j "$(nproc)" --target "${@:2}"; } > "$log" 2>&1 || { tail -20 "$log"; exit 1; }
