// Density peaks of a frame: score of a token, and the choice of the best.
#pragma once

#include "block.cuh"
#include "core/order.h"
#include "core/select_peaks.h"
#include "knn_density.cuh"

namespace fastvid {

// gamma of token i from its row of squared distances, by the lanes of the token, whole warps at a time; farthest is the
// largest of the frame. Tokens that take no part are infinitely far, so that it does not matter how dense they seem.
__device__ __forceinline__ float score_of(int i, const float* row, int n, const float* density, float farthest) {
  const float mine = n > 0 ? density[i] : 0.0f;
  float nearest = farthest;
#pragma unroll 2
  for (int j = threadIdx.x % kTokenLanes * 4; j < n; j += kTokenLanes * 4) {
    const float4 distances = *reinterpret_cast<const float4*>(row + j);
    const float4 others = *reinterpret_cast<const float4*>(density + j);
    const auto take = [&](int e, float distance, float other) {
      nearest = fminf(nearest, denser(other, j + e, mine, i) ? distance : INFINITY);
    };
    take(0, distances.x, others.x);
    take(1, distances.y, others.y);
    take(2, distances.z, others.z);
    take(3, distances.w, others.w);
  }
  return peak_score(mine, warp_min<kTokenLanes>(nearest));
}

// Calls visit(token, chosen) by one thread a token, in their order, whether it is among the `count` best of those that
// take part. Every thread of the block takes part in the calls, others than those with token >= n and chosen false.
template <typename Visit>
__device__ __forceinline__ void for_each_choice(int n, int count, const FrameState& state, Visit&& visit) {
  constexpr int kShare = 2;  // threads that compare a token with all others
  const int sub = threadIdx.x % kShare;
  for (int base = 0; base < n; base += blockDim.x / kShare) {
    const int token = base + threadIdx.x / kShare;
    const int key = token < n ? state.keys[token] : INT32_MIN;
    int better = 0;
    if (key > INT32_MIN) {
#pragma unroll 4
      for (int j = sub * 4; j < n; j += kShare * 4) {
        const int4 others = *reinterpret_cast<const int4*>(state.keys + j);
        better += ranks_before(others.x, j, key, token);
        better += ranks_before(others.y, j + 1, key, token);
        better += ranks_before(others.z, j + 2, key, token);
        better += ranks_before(others.w, j + 3, key, token);
      }
    }
#pragma unroll
    for (int lane = 1; lane < kShare; lane *= 2) better += __shfl_xor_sync(kFullWarp, better, lane);
    visit(sub == 0 ? token : n, sub == 0 && key > INT32_MIN && better < count);
  }
}

}  // namespace fastvid
