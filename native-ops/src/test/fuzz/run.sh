#!/usr/bin/env bash
# Fuzzes the argument checks under AddressSanitizer and UndefinedBehaviorSanitizer: fuzz/run.sh [seconds]. Needs clang
# (Debian: clang libclang-rt-14-dev). New inputs go to native-ops/build/fuzz/corpus, merged into arguments-corpus at
# the end; a crash leaves its input as native-ops/build/fuzz/crash-*.
set -euo pipefail
cd "$(dirname "$0")/../../.."
CC=clang CXX=clang++ cmake -S . -B build/fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo -DGATEDFWA_FUZZ=ON -DGATEDFWA_SANITIZE=ON
cmake --build build/fuzz --target arguments_fuzz --parallel 2
kept=$PWD/src/test/fuzz/arguments-corpus
mkdir -p build/fuzz/corpus
cd build/fuzz
./arguments_fuzz -max_total_time="${1:-600}" -max_len=256 -print_final_stats=1 corpus "$kept"
rm -rf merged
mkdir merged
./arguments_fuzz -merge=1 -max_len=256 merged corpus "$kept"
rm -rf "$kept"
mv merged "$kept"
