// The rows that prune keeps as they are, and what it says about all kept rows.
#pragma once

#include "block.cuh"
#include "merge.cuh"
#include "pipeline.h"

namespace fastvid {

// Writes one tile of channels of a row of the result, from `source` or zeros, by the 16 threads of a group.
template <typename T>
__device__ __forceinline__ void write_row(const Output<T>& output, int64_t row, const T* source, int channel_tile) {
  constexpr int kSize = Vector<T>::kSize;
  const int channel = channel_tile * (kMergeRowBytes / static_cast<int>(sizeof(T))) + threadIdx.x % 16 * kSize;
  T* const target = output.rows + row * output.channels;
  if (output.channels % kSize == 0) {
    if (channel >= output.channels) return;
    *reinterpret_cast<Vector<T>*>(target + channel) =
        source != nullptr ? *reinterpret_cast<const Vector<T>*>(source + channel) : Vector<T>{};
  } else {
    for (int e = channel; e < min(channel + kSize, output.channels); ++e) {
      target[e] = source != nullptr ? source[e] : from_float<T>(0.0f);
    }
  }
}

// One tile of channels of the salient rows of a frame; with the first tile also the indices of all its kept rows.
// Then a share of the rows past the last kept one.
template <typename T>
__device__ __forceinline__ void emit_frame(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                           const Candidates& candidates, const Output<T>& output, int frame,
                                           int channel_tile, unsigned char* shared) {
  int* const kept_tokens = reinterpret_cast<int*>(shared);  // of each salient token of the part, and where it goes
  int* const kept_rows = kept_tokens + kMergeThreads;
  Counts* const scratch = reinterpret_cast<Counts*>(kept_rows + kMergeThreads);
  const int n = tokens.per_frame, first_token = frame * n, first_row = plan.row_offset[frame];
  const int group = threadIdx.x / 16, groups = kMergeThreads / 16;

  Counts before{};
  __syncthreads();  // the last item may still read what is written here
  for (int base = 0; base < n; base += kMergeThreads) {
    const int token = base + threadIdx.x;
    const bool salient = token < n && !candidates(frame, token);
    const bool kept = salient || (token < n && centers.flags[static_cast<int64_t>(first_token) + token]);
    Counts total;
    const Counts place = block_scan({kept, salient, 0}, total, scratch);
    const int row = first_row + before.a + place.a;
    if (salient) {
      kept_tokens[place.b] = first_token + token;
      kept_rows[place.b] = row;
    }
    if (kept && channel_tile == 0) output.indices[row] = static_cast<int64_t>(first_token) + token;
    before = before + total;
    __syncthreads();
    for (int i = group; i < total.b; i += groups) {
      write_row(output, kept_rows[i], tokens.row(kept_tokens[i]), channel_tile);
    }
  }
  if (channel_tile == 0 && threadIdx.x == 0) output.frame_counts[frame] = before.a;

  for (int row = plan.row_offset[tokens.frames] + frame + group * tokens.frames; row < output.capacity;
       row += groups * tokens.frames) {
    write_row<T>(output, row, nullptr, channel_tile);
    if (channel_tile == 0 && threadIdx.x % 16 == 0) output.indices[row] = -1;
  }
}

}  // namespace fastvid
