// Tensor-core products of tiles in shared memory: 128-byte rows, 16-byte chunks swizzled against bank conflicts.
#pragma once

#include "block.cuh"
#include "core/plan.h"

namespace fastvid {

constexpr int kStepBytes = 32;  // depth of one mma in bytes of either operand: 16 channels, 8 of float32

// Byte offset of a 16-byte chunk (0 to 7) of a tile row.
__device__ __forceinline__ uint32_t tile_offset(int row, int chunk) {
  return row * kTileRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Starts a copy of 16 bytes to shared memory; fills with zeros instead where `present` is false. Rows are read piece by
// piece: fetching 256 bytes at a time into L2 keeps device memory from being read in scraps.
__device__ __forceinline__ void copy_async(uint32_t shared, const void* global, bool present) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(present ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most so many of the committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

template <typename T>
constexpr int kSliceChannels = kTileRowBytes / sizeof(T);

// The slices of kTileRowBytes of a row that a block of a cluster takes.
struct Slices {
  int first, count;

  __device__ __forceinline__ Slices(int row_bytes, int rank, int ranks) {
    const int depth = ceil_div(row_bytes, kTileRowBytes);
    first = depth * rank / ranks;
    count = depth * (rank + 1) / ranks - first;
  }
};

// How many of a thread's rows, the first being copy_row and kStep apart, lie within the first `rows` of a tile.
template <int kStep>
__device__ __forceinline__ int copies_of(int copy_row, int rows) {
  return max(0, ceil_div(rows - copy_row, kStep));
}

// A thread's share of copying rows of tokens into tiles, kTileRowBytes of every row a slice: the same chunk of up to
// kRows rows that lie kStep apart in the tile. Where fewer are copied, no use is made of the other sources.
template <typename T, int kRows, int kStep>
struct SliceCopy {
  static_assert(kStep % 8 == 0, "rows of one thread must be swizzled alike");
  const T* source[kRows];  // of the next slice
  int rows = kRows;        // that are copied

  // tile: address of the thread's chunk in its first row; within: whether the slice still lies within the channels, or
  // zeros are wanted.
  __device__ __forceinline__ void start(uint32_t tile, bool within) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i < rows) {
        copy_async(tile + i * kStep * kTileRowBytes, source[i], within);
        source[i] += kSliceChannels<T>;
      }
    }
  }
};

__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Operands at depth `step` (of kStepBytes) of a tile. `rows` is the address of their first row, a multiple of eight.
// The left one: sixteen rows.
__device__ __forceinline__ void load_rows(uint32_t (&a)[4], uint32_t rows, int step) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(a, rows + tile_offset(lane % 16, step * 2 + lane / 16));
}
// The right one: sixteen rows that become columns, {b[0], b[1]} the first eight, {b[2], b[3]} the others.
__device__ __forceinline__ void load_columns(uint32_t (&b)[4], uint32_t rows, int step) {
  const int lane = threadIdx.x % kWarp;
  load_matrices(b, rows + tile_offset(lane % 8 + lane / 16 * 8, step * 2 + lane / 8 % 2));
}

__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                         __nv_bfloat16) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ uint32_t round_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ void multiply_tf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// float32 as a sum of two tf32 values: three products keep 22 bits of each operand.
__device__ __forceinline__ void split_tf32(uint32_t bits, uint32_t& high, uint32_t& low) {
  const float x = __uint_as_float(bits);
  high = round_tf32(x);
  low = round_tf32(x - __uint_as_float(high));
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  uint32_t a_high[4], a_low[4], b0_high, b0_low, b1_high, b1_low;
#pragma unroll
  for (int i = 0; i < 4; ++i) split_tf32(a[i], a_high[i], a_low[i]);
  split_tf32(b0, b0_high, b0_low);
  split_tf32(b1, b1_high, b1_low);
  multiply_tf32(c, a_low, b0_high, b1_high);
  multiply_tf32(c, a_high, b0_low, b1_low);
  multiply_tf32(c, a_high, b0_high, b1_high);
}

}  // namespace fastvid
