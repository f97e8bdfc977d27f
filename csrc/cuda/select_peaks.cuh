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

// Calls visit(token, chosen) by one thread a token, whether it is among the `count` best of those that take part.
// Every thread of the block takes part in the calls, with token >= n past the last one.
template <typename Visit>
__device__ __forceinline__ void for_each_choice(int n, int count, const FrameState& state, Visit&& visit) {
  for (int base = 0; base < n; base += blockDim.x) {
    const int token = base + threadIdx.x;
    bool chosen = token < n && state.marks[token] && count > 0;
    if (chosen) {
      const int key = state.keys[token];
      int better = 0;
      const auto count_better = [&](int other, int j) { better += other > key - (j < token); };  // key > INT32_MIN
#pragma unroll 4
      for (int j = 0; j < n; j += 4) {
        const int4 others = *reinterpret_cast<const int4*>(state.keys + j);
        count_better(others.x, j);
        count_better(others.y, j + 1);
        count_better(others.z, j + 2);
        count_better(others.w, j + 3);
      }
      chosen = better < count;
    }
    visit(token, chosen);
  }
}

}  // namespace fastvid
