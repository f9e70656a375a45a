#!/bin/bash
# build.sh NAME SRC FLAGS...
n=$1; s=$2; shift 2
nice -n 5 nvcc -O3 -DNDEBUG -std=c++17 --generate-code=arch=compute_90,code=[sm_90] -Xptxas -v -Dcuda=$n "$@" -I $s -I /work/wt/nsa/native-ops/src/main/cpp -I /tmp/lab -c /tmp/lab/variant.cu -o /tmp/lab/$n.o 2> /tmp/lab/$n.log; grep -E "error|spill|registers" /tmp/lab/$n.log
