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

// Lanes that work on a token together: a row of 196 distances takes them seven steps, and what a token costs besides is
// shared by the four tokens of a warp.
constexpr int kTokenLanes = 8, kWarpTokens = kWarp / kTokenLanes;

__device__ __forceinline__ void sort_pair(float& smaller, float& larger) {
  const float first = smaller;
  smaller = fminf(first, larger);
  larger = fmaxf(first, larger);
}

// A few smallest distances, ascending: of one lane, and then of a token.
struct Nearest {
  static constexpr int kSize = 4;
  float distance[kSize];

  __device__ __forceinline__ Nearest() {
#pragma unroll
    for (int k = 0; k < kSize; ++k) distance[k] = INFINITY;
  }
  __device__ __forceinline__ void add(float a, float b, float c, float d) {
    sort_pair(a, b);
    sort_pair(c, d);
    sort_pair(a, c);
    sort_pair(b, d);
    sort_pair(b, c);
    add_sorted(a, b, c, d);
  }
  // Those of all lanes of the token, whole warps at a time.
  __device__ __forceinline__ void add_lanes() {
#pragma unroll
    for (int lane = 1; lane < kTokenLanes; lane *= 2) {
      const auto other = [&](int k) { return __shfl_xor_sync(kFullWarp, distance[k], lane); };
      add_sorted(other(0), other(1), other(2), other(3));
    }
  }

 private:
  // The smaller half of two sorted rows of four is the smaller of each and its opposite; it falls and rises once.
  __device__ __forceinline__ void add_sorted(float a, float b, float c, float d) {
    distance[0] = fminf(distance[0], d);
    distance[1] = fminf(distance[1], c);
    distance[2] = fminf(distance[2], b);
    distance[3] = fminf(distance[3], a);
    sort_pair(distance[0], distance[2]);
    sort_pair(distance[1], distance[3]);
    sort_pair(distance[0], distance[1]);
    sort_pair(distance[2], distance[3]);
  }
};

// Turns row i of products into squared distances over D, infinite to the tokens that take no part (whose norms are), by
// the lanes of the token. Collects the nearest ones of the lane, and raises `farthest` to the largest finite one of the
// lane's. That of the token itself is 0, as its product is its squared norm. n = 0: there is no such token.
__device__ __forceinline__ void distances_of(int i, float* row, int n, const FrameState& state, float inverse_channels,
                                             Nearest& nearest, float& farthest) {
  const float norm = n > 0 ? state.norms[i] : 0.0f;
  const auto distance = [&](float product, float norm_j) {
    const float squared = squared_distance(norm, norm_j, product) * inverse_channels;
    if (squared < INFINITY) farthest = fmaxf(farthest, squared);
    return squared;
  };
  const auto comparable = [](float squared) { return fminf(squared, INFINITY); };  // NaN is no neighbour
#pragma unroll 2
  for (int j = threadIdx.x % kTokenLanes * 4; j < n; j += kTokenLanes * 4) {
    const float4 products = *reinterpret_cast<const float4*>(row + j);
    const float4 norms = *reinterpret_cast<const float4*>(state.norms + j);
    float4 distances;
    distances.x = distance(products.x, norms.x);
    distances.y = distance(products.y, norms.y);
    distances.z = distance(products.z, norms.z);
    distances.w = distance(products.w, norms.w);
    *reinterpret_cast<float4*>(row + j) = distances;
    nearest.add(comparable(distances.x), comparable(distances.y), comparable(distances.z), comparable(distances.w));
  }
}

// rho of one token: sums its `neighbors` smallest distances in ascending order, by the lanes of the token; a warp does
// so for its tokens at once, with n = 0 for one that is none. `nearest` holds each lane's first ones; where more are
// wanted, further passes over the row find the next.
__device__ __forceinline__ float density_of(const float* row, int n, int neighbors, Nearest nearest) {
  double sum = 0.0;  // of as many terms as the caller likes
  float last = 0.0f;
  int taken = n > 0 ? 0 : neighbors, taken_as_last = 0;  // how many of those equal the last one
  while (true) {
    nearest.add_lanes();
#pragma unroll
    for (int k = 0; k < Nearest::kSize; ++k) {
      if (taken == neighbors) break;
      const float distance = nearest.distance[k];
      taken_as_last = distance == last ? taken_as_last + 1 : 1;
      last = distance;
      sum += distance;
      ++taken;
    }
    if (!__any_sync(kFullWarp, taken < neighbors)) break;
    // Those left that equal the last one, and then the next larger ones.
    int equal = 0;
    nearest = Nearest();
#pragma unroll 1
    for (int j = threadIdx.x % kTokenLanes; j < n; j += kTokenLanes) {
      equal += row[j] == last;
      nearest.add(row[j] > last ? row[j] : INFINITY, INFINITY, INFINITY, INFINITY);
    }
    equal = min(warp_sum<kTokenLanes>(equal) - taken_as_last, neighbors - taken);
    if (equal > 0) {  // not to multiply infinity with 0
      sum += static_cast<double>(equal) * last;
      taken += equal;
      taken_as_last += equal;
    }
  }
  return density(static_cast<float>(sum), neighbors);
}

}  // namespace fastvid
