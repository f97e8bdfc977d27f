// What warps and blocks do together. Reductions are always in the same order, so that results repeat bit for bit.
#pragma once

#include "tokens.cuh"

namespace fastvid {

constexpr unsigned kFullWarp = 0xffffffffu;

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A number that is the same all over a warp, in a form that tells the compiler so: tensor cores are not kept busy from
// within a branch that might divide a warp.
__device__ __forceinline__ int uniform(int value) { return __shfl_sync(kFullWarp, value, 0); }

// Barrier `id` of a block, for as many of its threads: to wait there, all in one place of the code or in several, or
// only to be counted.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_sync_anywhere(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Over the warp, or each kLanes of it.
template <int kLanes = kWarp, typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) value += __shfl_xor_sync(kFullWarp, value, lane);
  return value;
}
template <int kLanes = kWarp>
__device__ __forceinline__ float warp_min(float value) {
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) value = fminf(value, __shfl_xor_sync(kFullWarp, value, lane));
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

// What the threads of warps before this one hold together; total gets the sum over the block. scratch holds a Counts a
// warp.
__device__ __forceinline__ Counts before_warp(const Counts& of_warp, Counts& total, Counts* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
  __syncthreads();
  if (lane == 0) scratch[warp] = of_warp;
  __syncthreads();
  const Counts all = lane < warps ? scratch[lane] : Counts{};
  const Counts before = lane < warp ? all : Counts{};
  const auto sum = [](const Counts& x) {
    return Counts{static_cast<int>(__reduce_add_sync(kFullWarp, x.a)),
                  static_cast<int>(__reduce_add_sync(kFullWarp, x.b)),
                  static_cast<int>(__reduce_add_sync(kFullWarp, x.c))};
  };
  total = sum(all);
  return sum(before);
}

// Exclusive prefix sums over the block in thread order.
__device__ __forceinline__ Counts block_scan(Counts value, Counts& total, Counts* scratch) {
  const int lane = threadIdx.x % kWarp;
  Counts sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Counts below{__shfl_up_sync(kFullWarp, sum.a, step), __shfl_up_sync(kFullWarp, sum.b, step),
                       __shfl_up_sync(kFullWarp, sum.c, step)};
    if (lane >= step) sum = sum + below;
  }
  const auto last = [](int x) { return __shfl_sync(kFullWarp, x, kWarp - 1); };
  return before_warp({last(sum.a), last(sum.b), last(sum.c)}, total, scratch) + sum - value;
}

// The same for two flags.
__device__ __forceinline__ Counts block_scan(bool a, bool b, Counts& total, Counts* scratch) {
  const unsigned with_a = __ballot_sync(kFullWarp, a), with_b = __ballot_sync(kFullWarp, b);
  const unsigned below = (1u << threadIdx.x % kWarp) - 1;
  return before_warp({__popc(with_a), __popc(with_b), 0}, total, scratch) +
         Counts{__popc(with_a & below), __popc(with_b & below), 0};
}

}  // namespace fastvid
