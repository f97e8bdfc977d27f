// Local densities of a frame's tokens from its Gram matrix, a warp a token.
#pragma once

#include "block.cuh"
#include "core/knn_density.h"
#include "gram.cuh"

namespace fastvid {

// Per-token values of one frame, the same in every block of the cluster.
struct FrameState {
  float* norms;     // (N,) squared norms
  float* density;   // (N,) rho, NaN for a token that takes no part
  float* farthest;  // (N,) squared distance of the token that takes part and lies farthest
  int* keys;        // (N,) order keys of the scores, INT32_MIN for a token that takes no part

  __device__ __forceinline__ bool takes_part(int token) const { return density[token] == density[token]; }
};

// Turns row i of products into squared distances over D, infinite to the tokens that take no part. Returns the largest
// finite one to every lane.
__device__ __forceinline__ float distances_of(int i, float* row, int n, const FrameState& state, float inverse_channels) {
  const int lane = threadIdx.x % kWarp;
  const float norm = state.norms[i];
  float largest = 0.0f;
  for (int j = lane; j < n; j += kWarp) {
    const bool candidate = state.takes_part(j);
    const float squared = i == j ? 0.0f : squared_distance(norm, state.norms[j], row[j]) * inverse_channels;
    row[j] = candidate ? squared : INFINITY;
    if (candidate) largest = fmaxf(largest, squared);
  }
  return warp_max(largest);
}

// rho of one token: sums its `neighbors` smallest distances in ascending order.
__device__ __forceinline__ float density_of(const float* row, int n, int neighbors) {
  const int lane = threadIdx.x % kWarp;
  float sum = 0.0f, last = -1.0f;
  int last_index = -1;
  for (int k = 0; k < neighbors; ++k) {
    // The smallest (distance, index) after the last one taken.
    float nearest = INFINITY;
    int index = INT32_MAX;
    for (int j = lane; j < n; j += kWarp) {
      const float distance = row[j];
      const bool after = distance > last || (distance == last && j > last_index);
      if (after && distance < nearest) {
        nearest = distance;
        index = j;
      }
    }
    const float smallest = warp_min(nearest);
    last_index = __reduce_min_sync(kFullWarp, nearest == smallest ? index : INT32_MAX);
    last = smallest;
    sum += smallest;
  }
  return density(sum, neighbors);
}

}  // namespace fastvid
