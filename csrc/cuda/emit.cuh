// The rows that prune keeps as they are, and what it says about all kept rows.
#pragma once

#include "block.cuh"
#include "merge.cuh"
#include "pipeline.h"

namespace fastvid {

constexpr int kEmitTokens = 256;  // of a frame that are listed at a time, one a thread

// Share `rank` of `ranks` of the channels of the salient rows of a frame; the first share also writes the indices of
// all its kept rows. Then a share of the rows past the last kept one.
template <typename T>
__device__ __forceinline__ void emit_frame(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                           const Candidates& candidates, const Output<T>& output, int frame, int rank,
                                           int ranks, unsigned char* shared) {
  int* const kept_tokens = reinterpret_cast<int*>(shared);  // each salient token, and where it goes
  int* const kept_rows = kept_tokens + kEmitTokens;
  Counts* const scratch = reinterpret_cast<Counts*>(kept_rows + kEmitTokens);
  constexpr int kSize = Vector<T>::kSize;
  const int n = tokens.per_frame, first_token = frame * n, first_row = plan.records[frame].row_offset;
  const int vectors = tokens.channels / kSize, first_vector = vectors * rank / ranks;
  const int my_vectors = vectors * (rank + 1) / ranks - first_vector;

  Counts before{};
  for (int base = 0; base < n; base += kEmitTokens) {
    const int token = base + threadIdx.x;
    const bool salient = token < n && !candidates(frame, token);
    const bool kept = salient || (token < n && centers.flags[first_token + token]);
    Counts total;
    const Counts place = block_scan({kept, salient, 0}, total, scratch);
    const int row = first_row + before.a + place.a;
    if (salient) {
      kept_tokens[place.b] = first_token + token;
      kept_rows[place.b] = row;
    }
    if (kept && rank == 0) output.indices[row] = static_cast<int64_t>(first_token) + token;
    before = before + total;
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < total.b * my_vectors; i += kEmitTokens) {
      const int k = i / my_vectors, channel = (first_vector + i - k * my_vectors) * kSize;
      write_vector(output, kept_rows[k], channel,
                   *reinterpret_cast<const Vector<T>*>(tokens.row(kept_tokens[k]) + channel));
    }
    __syncthreads();
  }
  if (rank == 0 && threadIdx.x == 0) output.frame_counts[frame] = before.a;

  for (int row = plan.totals->rows + frame; row < output.capacity; row += tokens.frames) {
    for (int v = threadIdx.x; v < my_vectors; v += kEmitTokens) {
      write_vector(output, row, (first_vector + v) * kSize, Vector<T>{});
    }
    if (rank == 0 && threadIdx.x == 0) output.indices[row] = -1;
  }
}

}  // namespace fastvid
