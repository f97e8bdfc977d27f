// Places of a frame's tokens by saliency (ATS): those ranked below a frame's num_salient are kept as they are.
#pragma once

#include <limits>
#include <type_traits>

#include "block.cuh"
#include "core/order.h"
#include "pipeline.h"

namespace fastvid {

// Bytes of shared memory that ranking so many tokens needs.
inline size_t rank_bytes(int tokens) { return ceil_div(tokens, 4) * 4 * sizeof(int64_t); }

// What Ranking says of a frame's tokens, by one block, by order keys of type Key. Limit: N^2 comparisons.
template <typename Key>
__device__ __forceinline__ void rank_by(const Ranking& ranking, int frame, void* memory) {
  using Float = std::conditional_t<sizeof(Key) == 4, float, double>;
  struct alignas(16) Four {
    Key at[4];
  };
  Key* const keys = static_cast<Key*>(memory);
  const int n = ranking.saliency.columns;
  for (int t = threadIdx.x; t < ceil_div(n, 4) * 4; t += blockDim.x) {
    keys[t] =
        t < n ? candidate_key(static_cast<Float>(ranking.saliency.at(frame, t))) : std::numeric_limits<Key>::min();
  }
  __syncthreads();
  for (int token = threadIdx.x; token < n; token += blockDim.x) {
    const Key key = keys[token];
    int place = 0;
#pragma unroll 4
    for (int j = 0; j < n; j += 4) {
      const Four others = *reinterpret_cast<const Four*>(keys + j);
#pragma unroll
      for (int e = 0; e < 4; ++e) place += ranks_before(others.at[e], j + e, key, token);
    }
    const int64_t at = static_cast<int64_t>(frame) * n + token;
    ranking.rank[at] = static_cast<uint16_t>(place);
    ranking.center_flags[at] = 0;
  }
}

// The same by the keys that the saliency's dtype asks for; `memory` is shared, rank_bytes.
__device__ __forceinline__ void rank_tokens(const Ranking& ranking, int frame, void* memory) {
  if (ranking.saliency.kind == FloatKind::kFloat64) {
    rank_by<int64_t>(ranking, frame, memory);
  } else {
    rank_by<int32_t>(ranking, frame, memory);
  }
}

}  // namespace fastvid
