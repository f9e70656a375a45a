#pragma once
#include <cuda_runtime.h>
struct LabArgs {
  const void *q, *k, *v, *dO; void *o, *dq; float* lse; const float *rowLse, *rowDelta; const int* indices; int N, slots, multiprocessors; bool dqPass;
};
