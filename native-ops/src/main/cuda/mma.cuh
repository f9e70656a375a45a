// Tensor-core and shared-memory primitives (PTX ISA, sm_80), behind one interface for 2- and 4-byte elements.
//
// A tile in shared memory is rows of `rowBytes` (a multiple of 128) whose 16-byte chunks are XOR-swizzled by the row
// number, so that ldmatrix and 16-byte stores are free of bank conflicts.
// Fragments follow the PTX layouts of mma.m16n8k16 and mma.m16n8k8: with lane = 4*g + t, an accumulator block holds
// rows g and g+8, columns 2t and 2t+1.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace gatedfwa::cuda {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define GATEDFWA_TENSOR_CORES 1
#else
#define GATEDFWA_TENSOR_CORES 0  // sm_75: the plain kernels only; these bodies compile to nothing
#endif

__device__ __forceinline__ uint32_t sharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

/// 16 bytes from global to shared memory; zeros if not `valid` (the address is then not read).
__device__ __forceinline__ void copyAsync16(uint32_t shared, const void* global, bool valid) {
#if GATEDFWA_TENSOR_CORES
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void copyAsync4(uint32_t shared, const void* global) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(shared), "l"(global) : "memory");
#endif
}
__device__ __forceinline__ void copyCommit() {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
/// Waits for all committed groups of copies but the last.
__device__ __forceinline__ void copyWaitAllButOne() {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.wait_group 1;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void copyWaitAll() {
#if GATEDFWA_TENSOR_CORES
  asm volatile("cp.async.wait_all;\n" ::: "memory");
#endif
}

__device__ __forceinline__ void loadMatrix(uint32_t (&r)[4], uint32_t address) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}
__device__ __forceinline__ void loadMatrixTransposed(uint32_t (&r)[4], uint32_t address) {
#if GATEDFWA_TENSOR_CORES
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
#endif
}

__device__ __forceinline__ float exp2Approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A lane's part of an operand's address: row offset and swizzle term (the fragment's row and 16-byte chunk).
struct LaneOffset {
  uint32_t row, swizzle;
};
template <int rowBytes>
__device__ __forceinline__ LaneOffset laneOffset(int row, int chunk) {
  return {static_cast<uint32_t>(row * rowBytes), static_cast<uint32_t>((chunk ^ (row & 7)) << 4)};
}
/// `row0` a multiple of 8, `byte0` a multiple of 32.
template <int rowBytes>
__device__ __forceinline__ uint32_t fragmentAddress(uint32_t tile, LaneOffset lane, int row0, int byte0) {
  return tile + lane.row + row0 * rowBytes + (lane.swizzle ^ (byte0 & 0x7f)) + (byte0 & ~0x7f);
}
template <int rowBytes>
__device__ __forceinline__ uint32_t chunkAddress(uint32_t tile, int row, int chunk) {
  return tile + row * rowBytes + ((chunk ^ (row & 7)) << 4);
}

/// A operand, 16 rows x kStep columns: rows 0-15, then the second chunk.
template <int rowBytes>
__device__ __forceinline__ LaneOffset laneOfA(int lane) {
  return laneOffset<rowBytes>(lane & 15, lane >> 4);
}
/// B operand as stored rows n, columns k (K in Q K^T): 16 rows x kStep columns, two n8 blocks.
template <int rowBytes>
__device__ __forceinline__ LaneOffset laneOfB(int lane) {
  return laneOffset<rowBytes>((lane & 7) | ((lane >> 4) << 3), (lane >> 3) & 1);
}

__device__ __forceinline__ uint32_t packPair(__half, float low, float high) {
  const __half2 v = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}
__device__ __forceinline__ uint32_t packPair(__nv_bfloat16, float low, float high) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&v);
}

/// HALF and BFLOAT16: mma.m16n8k16, float32 accumulation.
template <typename T>
struct Mma16 {
  using Element = T;
  static constexpr int kStep = 16;                   ///< depth of one product
  static constexpr bool kTermsInAccumulator = true;  ///< additive score terms may start the accumulator
  struct A {
    uint32_t r[4];
  };
  struct B {
    uint32_t r[4];  ///< two n8 blocks: {b0, b1, b0', b1'}
  };
  __device__ __forceinline__ static A loadA(uint32_t address) {
    A a;
    loadMatrix(a.r, address);
    return a;
  }
  __device__ __forceinline__ static B loadB(uint32_t address) {
    B b;
    loadMatrix(b.r, address);
    return b;
  }
  /// B operand as stored rows k, columns n (V in P V): kStep rows from row0, 16 columns from column0.
  template <int rowBytes>
  __device__ __forceinline__ static B loadTransposed(uint32_t tile, int lane, int row0, int column0) {
    B b;
    loadMatrixTransposed(b.r, fragmentAddress<rowBytes>(tile, laneOfA<rowBytes>(lane), row0, column0 * 2));
    return b;
  }
  /// Accumulator blocks as the A operand of k-step `step`.
  template <int blocks>
  __device__ __forceinline__ static A fromAccumulators(const float (&c)[blocks][4], int step) {
    A a;
    a.r[0] = packPair(T(), c[2 * step][0], c[2 * step][1]);
    a.r[1] = packPair(T(), c[2 * step][2], c[2 * step][3]);
    a.r[2] = packPair(T(), c[2 * step + 1][0], c[2 * step + 1][1]);
    a.r[3] = packPair(T(), c[2 * step + 1][2], c[2 * step + 1][3]);
    return a;
  }
  __device__ __forceinline__ static void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if GATEDFWA_TENSOR_CORES
    if constexpr (sizeof(T) == 2 && std::is_same<T, __half>::value) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#endif
  }
  __device__ __forceinline__ static void multiply(float (&c0)[4], float (&c1)[4], const A& a, const B& b) {
    product(c0, a.r, b.r[0], b.r[1]);
    product(c1, a.r, b.r[2], b.r[3]);
  }
  __device__ __forceinline__ static void multiplySwapped(float (&c0)[4], float (&c1)[4], const A& a, const B& b) {
    multiply(c0, c1, a, b);
  }
};

/// FLOAT: mma.m16n8k8 on TF32. `strict` splits both operands in two (hi + lo, 22 bits), multiplies hi*hi + hi*lo +
/// lo*hi and adds each product to the sum with an ordinary, correctly rounded float32 addition: the tensor core's own
/// accumulation truncates, which would show over a long window (cf. Ootomo and Yokota, IJHPCA 2022).
template <bool strict>
struct MmaTf32 {
  using Element = float;
  static constexpr int kStep = 8;
  static constexpr bool kTermsInAccumulator = !strict;
  struct A {
    uint32_t r[4];
    uint32_t lo[strict ? 4 : 1];
  };
  struct B {
    uint32_t r[4];
    uint32_t lo[strict ? 4 : 1];
  };
  __device__ __forceinline__ static uint32_t toTf32(float x) {
    uint32_t y = 0;
#if GATEDFWA_TENSOR_CORES
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
#endif
    return y;
  }
  template <typename Fragment>
  __device__ __forceinline__ static void split(Fragment& f) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float x = __uint_as_float(f.r[i]);
      f.r[i] = toTf32(x);
      if constexpr (strict) f.lo[i] = toTf32(x - __uint_as_float(f.r[i]));
    }
  }
  __device__ __forceinline__ static A loadA(uint32_t address) {
    A a;
    loadMatrix(a.r, address);
    split(a);
    return a;
  }
  __device__ __forceinline__ static B loadB(uint32_t address) {
    B b;
    loadMatrix(b.r, address);
    split(b);
    return b;
  }
  /// The k index runs 0,2,4,6,1,3,5,7 over the rows, as fromAccumulators lays out the other operand.
  template <int rowBytes>
  __device__ __forceinline__ static B loadTransposed(uint32_t tile, int lane, int row0, int column0) {
    B b;
    const int g = lane >> 2, row = row0 + 2 * (lane & 3);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = row + (i & 1), column = column0 + 8 * (i >> 1) + g;
      const uint32_t address = chunkAddress<rowBytes>(tile, r, column >> 2) + ((column & 3) << 2);
      asm volatile("ld.shared.b32 %0, [%1];\n" : "=r"(b.r[i]) : "r"(address) : "memory");
    }
    split(b);
    return b;
  }
  template <int blocks>
  __device__ __forceinline__ static A fromAccumulators(const float (&c)[blocks][4], int step) {
    A a;
    a.r[0] = __float_as_uint(c[step][0]);
    a.r[1] = __float_as_uint(c[step][2]);
    a.r[2] = __float_as_uint(c[step][1]);
    a.r[3] = __float_as_uint(c[step][3]);
    split(a);
    return a;
  }
  __device__ __forceinline__ static void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#if GATEDFWA_TENSOR_CORES
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
  __device__ __forceinline__ static void multiply(float (&c0)[4], float (&c1)[4], const A& a, const B& b) {
    accumulate<false>(c0, c1, a, b);
  }
  /// The bits that multiply gives with the operands' roles exchanged.
  __device__ __forceinline__ static void multiplySwapped(float (&c0)[4], float (&c1)[4], const A& a, const B& b) {
    accumulate<true>(c0, c1, a, b);
  }

 private:
  template <bool swapped>
  __device__ __forceinline__ static void accumulate(float (&c0)[4], float (&c1)[4], const A& a, const B& b) {
    if constexpr (strict) {
      float s0[4] = {0, 0, 0, 0}, s1[4] = {0, 0, 0, 0};
      const auto left = [&] {
        product(s0, a.lo, b.r[0], b.r[1]);
        product(s1, a.lo, b.r[2], b.r[3]);
      };
      const auto right = [&] {
        product(s0, a.r, b.lo[0], b.lo[1]);
        product(s1, a.r, b.lo[2], b.lo[3]);
      };
      if constexpr (swapped) {
        right();
        left();
      } else {
        left();
        right();
      }
      product(s0, a.r, b.r[0], b.r[1]);
      product(s1, a.r, b.r[2], b.r[3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        c0[i] += s0[i];
        c1[i] += s1[i];
      }
    } else {
      product(c0, a.r, b.r[0], b.r[1]);
      product(c1, a.r, b.r[2], b.r[3]);
    }
  }
};

}  // namespace gatedfwa::cuda
