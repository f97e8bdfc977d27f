// Reductions over a warp or a block, always in the same order, so that results repeat bit for bit.
#pragma once

#include "tokens.cuh"

namespace fastvid {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(kFullWarp, value, lane);
  return value;
}
__device__ __forceinline__ float warp_min(float value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value = fminf(value, __shfl_xor_sync(kFullWarp, value, lane));
  return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int lane = kWarp / 2; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, lane));
  return value;
}

// A few counters that are scanned together.
struct Counts {
  int a, b, c;
  __device__ __forceinline__ Counts operator+(const Counts& other) const {
    return {a + other.a, b + other.b, c + other.c};
  }
  __device__ __forceinline__ Counts operator-(const Counts& other) const {
    return {a - other.a, b - other.b, c - other.c};
  }
};

// Exclusive prefix sums over the block in thread order; total gets the sum over the block. scratch holds a Counts a
// warp.
__device__ __forceinline__ Counts block_scan(Counts value, Counts& total, Counts* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  Counts sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Counts below{__shfl_up_sync(kFullWarp, sum.a, step), __shfl_up_sync(kFullWarp, sum.b, step),
                       __shfl_up_sync(kFullWarp, sum.c, step)};
    if (lane >= step) sum = sum + below;
  }
  __syncthreads();
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  Counts before{};
  total = Counts{};
  for (int w = 0; w < warps; ++w) {
    if (w == warp) before = total;
    total = total + scratch[w];
  }
  return before + sum - value;
}

}  // namespace fastvid
