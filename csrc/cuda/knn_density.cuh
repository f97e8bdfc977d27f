// Local densities of a frame's tokens from its Gram matrix, a warp a token.
#pragma once

#include "block.cuh"
#include "core/knn_density.h"

namespace fastvid {

// Per-token values of one frame, the same in every block of the cluster.
struct FrameState {
  float* norms;     // (N,) squared norms
  float* density;   // (N,) rho, NaN for a token that takes no part
  float* farthest;  // (N,) squared distance of the token that takes part and lies farthest
  int* keys;        // (N,) order keys of the scores, INT32_MIN for a token that takes no part

  __device__ __forceinline__ bool takes_part(int token) const { return density[token] == density[token]; }
};

// A few smallest (distance, index) of one lane, ascending.
struct Nearest {
  static constexpr int kSize = 4;
  float distance[kSize];
  int index[kSize];

  __device__ __forceinline__ Nearest() {
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      distance[k] = INFINITY;
      index[k] = INT32_MAX;
    }
  }
  __device__ __forceinline__ void add(float candidate, int at) {
    if (!(candidate < distance[kSize - 1])) return;
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (candidate < distance[k]) {
        const float larger = distance[k];
        const int larger_at = index[k];
        distance[k] = candidate;
        index[k] = at;
        candidate = larger;
        at = larger_at;
      }
    }
  }
  __device__ __forceinline__ void drop_first() {
#pragma unroll
    for (int k = 0; k + 1 < kSize; ++k) {
      distance[k] = distance[k + 1];
      index[k] = index[k + 1];
    }
    distance[kSize - 1] = INFINITY;
    index[kSize - 1] = INT32_MAX;
  }
};

// Turns row i of products into squared distances over D, infinite to the tokens that take no part, by a warp. Collects
// the nearest ones of the lane, and gives the largest finite one to every lane.
__device__ __forceinline__ float distances_of(int i, float* row, int n, const FrameState& state, float inverse_channels,
                                              Nearest& nearest) {
  const float norm = state.norms[i];
  float largest = 0.0f;
#pragma unroll 2
  for (int j = threadIdx.x % kWarp; j < n; j += kWarp) {
    const bool candidate = state.takes_part(j);
    const float squared = i == j ? 0.0f : squared_distance(norm, state.norms[j], row[j]) * inverse_channels;
    const float distance = candidate ? squared : INFINITY;
    row[j] = distance;
    if (candidate) largest = fmaxf(largest, squared);
    nearest.add(distance, j);
  }
  return warp_max(largest);
}

// rho of one token: sums its `neighbors` smallest distances in ascending order, by a warp. `nearest` holds each lane's
// first ones; where more are wanted, further passes over the row find the next.
__device__ __forceinline__ float density_of(const float* row, int n, int neighbors, Nearest nearest) {
  double sum = 0.0;  // of as many terms as the caller likes
  float last = 0.0f;
  int last_index = -1;
  for (int taken = 0; taken < neighbors; ++taken) {
    if (taken > 0 && taken % Nearest::kSize == 0) {
      nearest = Nearest();
#pragma unroll 1
      for (int j = threadIdx.x % kWarp; j < n; j += kWarp) {
        if (row[j] > last || (row[j] == last && j > last_index)) nearest.add(row[j], j);
      }
    }
    // Bits of floats that are not negative are ordered as the floats.
    const uint32_t first = __float_as_uint(nearest.distance[0]);
    const uint32_t smallest = __reduce_min_sync(kFullWarp, first);
    last_index = __reduce_min_sync(kFullWarp, first == smallest ? nearest.index[0] : INT32_MAX);
    last = __uint_as_float(smallest);
    sum += last;
    if (nearest.index[0] == last_index) nearest.drop_first();
  }
  return density(static_cast<float>(sum), neighbors);
}

}  // namespace fastvid
