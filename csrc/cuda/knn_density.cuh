// Local densities of a frame's tokens from its Gram matrix, a warp a token.
#pragma once

#include "block.cuh"
#include "core/knn_density.h"

namespace fastvid {

// Per-token values of one frame, in shared memory: the same in every block of the cluster, but for the keys, which only
// the first one has. All are padded to whole vectors of four.
struct FrameState {
  float* norms;    // (N,) squared norms, infinite for a token that takes no part
  float* density;  // (2, N) rho, of the frame at hand and, while others are not yet done with it, of the next one
  int* keys;       // (N,) order keys of the scores, INT32_MIN for a token that takes no part
  bool* marks;     // (N,) whether a token takes part

  static __host__ __device__ int padded(int n) { return (n + 3) / 4 * 4; }
  static __host__ __device__ int bytes(int n) { return (padded(n) * 17 + 15) / 16 * 16; }
  __device__ __forceinline__ FrameState(void* memory, int n)
      : norms(static_cast<float*>(memory)),
        density(norms + padded(n)),
        keys(reinterpret_cast<int*>(density + 2 * padded(n))),
        marks(reinterpret_cast<bool*>(keys + padded(n))) {}
};

// A few smallest distances of one lane, ascending.
struct Nearest {
  static constexpr int kSize = 4;
  float distance[kSize];

  __device__ __forceinline__ Nearest() {
#pragma unroll
    for (int k = 0; k < kSize; ++k) distance[k] = INFINITY;
  }
  __device__ __forceinline__ void add(float candidate) {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      const float smaller = fminf(distance[k], candidate);
      candidate = fmaxf(distance[k], candidate);
      distance[k] = smaller;
    }
  }
  __device__ __forceinline__ void drop_first() {
#pragma unroll
    for (int k = 0; k + 1 < kSize; ++k) distance[k] = distance[k + 1];
    distance[kSize - 1] = INFINITY;
  }
};

// Turns row i of products into squared distances over D, infinite to the tokens that take no part (whose norms are), by
// a warp. Collects the nearest ones of the lane, and raises `farthest` to the largest finite one of the lane's. That of
// the token itself is 0, as its product is its squared norm.
__device__ __forceinline__ void distances_of(int i, float* row, int n, const FrameState& state, float inverse_channels,
                                             Nearest& nearest, float& farthest) {
  const float norm = state.norms[i];
  const auto distance = [&](float product, float norm_j) {
    const float squared = squared_distance(norm, norm_j, product) * inverse_channels;
    farthest = fmaxf(farthest, squared < INFINITY ? squared : 0.0f);
    nearest.add(fminf(squared, INFINITY));  // NaN is no neighbour
    return squared;
  };
#pragma unroll 2
  for (int j = threadIdx.x % kWarp * 4; j < n; j += kWarp * 4) {
    const float4 products = *reinterpret_cast<const float4*>(row + j);
    const float4 norms = *reinterpret_cast<const float4*>(state.norms + j);
    float4 distances;
    distances.x = distance(products.x, norms.x);
    distances.y = distance(products.y, norms.y);
    distances.z = distance(products.z, norms.z);
    distances.w = distance(products.w, norms.w);
    *reinterpret_cast<float4*>(row + j) = distances;
  }
}

// rho of one token: sums its `neighbors` smallest distances in ascending order, by a warp. `nearest` holds each lane's
// first ones; where more are wanted, further passes over the row find the next.
__device__ __forceinline__ float density_of(const float* row, int n, int neighbors, Nearest nearest) {
  const int lane = threadIdx.x % kWarp;
  double sum = 0.0;  // of as many terms as the caller likes
  float last = 0.0f;
  int taken = 0, taken_as_last = 0;  // how many of those equal the last one
  while (true) {
#pragma unroll 1
    for (int round = 0; round < Nearest::kSize && taken < neighbors; ++round, ++taken) {
      // Bits of floats that are not negative are ordered as the floats.
      const uint32_t mine = __float_as_uint(nearest.distance[0]);
      const uint32_t smallest = __reduce_min_sync(kFullWarp, mine);
      const float distance = __uint_as_float(smallest);
      taken_as_last = distance == last ? taken_as_last + 1 : 1;
      last = distance;
      sum += distance;
      if (lane == __ffs(__ballot_sync(kFullWarp, mine == smallest)) - 1) nearest.drop_first();
    }
    if (taken == neighbors) return density(static_cast<float>(sum), neighbors);
    // Those left that equal the last one, and then the next larger ones.
    int equal = 0;
    nearest = Nearest();
#pragma unroll 1
    for (int j = lane; j < n; j += kWarp) {
      equal += row[j] == last;
      if (row[j] > last) nearest.add(row[j]);
    }
    equal = min(static_cast<int>(__reduce_add_sync(kFullWarp, equal)) - taken_as_last, neighbors - taken);
    if (equal > 0) {
      sum += static_cast<double>(equal) * last;
      taken += equal;
      taken_as_last += equal;
    }
    if (taken == neighbors) return density(static_cast<float>(sum), neighbors);
  }
}

}  // namespace fastvid
