// Density peaks of a frame: score of a token, and the choice of the best.
#pragma once

#include "block.cuh"
#include "core/order.h"
#include "core/select_peaks.h"
#include "knn_density.cuh"

namespace fastvid {

// gamma of token i from its row of squared distances, by a warp; farthest is the largest of the frame.
__device__ __forceinline__ float score_of(int i, const float* row, int n, const FrameState& state, float farthest) {
  const float mine = state.density[i];
  float nearest = farthest;
#pragma unroll 2
  for (int j = threadIdx.x % kWarp; j < n; j += kWarp) {
    const bool is_denser = static_cast<int>(state.marks[j]) & static_cast<int>(denser(state.density[j], j, mine, i));
    nearest = fminf(nearest, is_denser ? row[j] : INFINITY);
  }
  return peak_score(mine, warp_min(nearest));
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
    const auto count_better = [&](int other, int j) { better += other > key || (other == key && j < token); };
#pragma unroll 1
    for (int j = sub * 4; j < n; j += kShare * 4) {
      const int4 others = *reinterpret_cast<const int4*>(state.keys + j);
      count_better(others.x, j);
      count_better(others.y, j + 1);
      count_better(others.z, j + 2);
      count_better(others.w, j + 3);
    }
    better += __shfl_xor_sync(kFullWarp, better, 1);
    visit(sub == 0 ? token : n, sub == 0 && key > INT32_MIN && better < count);
  }
}

}  // namespace fastvid
