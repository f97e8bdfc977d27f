// Cuts of a batch of videos, by one block.
#pragma once

#include "core/segment.h"
#include "videos.cuh"

namespace fastvid {

// Calls visit(f, cut) by one thread a frame, whether a segment ends with frame f. Every frame counts the frames of its
// video that are less similar to their successors: F^2 comparisons a video. `keys` is room for `frames` numbers near
// the block.
template <typename Visit>
__device__ __forceinline__ void for_each_cut(const float* similarity, int frames, const Videos& videos, float threshold,
                                             int min_segments, int* keys, Visit&& visit) {
  for (int f = threadIdx.x; f < frames; f += blockDim.x) keys[f] = similarity_key(similarity[f]);
  __syncthreads();
  for (int f = threadIdx.x; f < frames; f += blockDim.x) {
    const FrameRange video = video_of(videos, f, frames);
    bool cut = f + 1 == video.end;
    if (!cut) {
      const float mine = similarity[f];
      int rank = 0;
      if (!(mine < threshold) && min_segments > 1) {
        const int key = keys[f];
        // Most frames soon have seen enough that are less similar.
        for (int j = video.begin; j < video.end - 1 && rank < min_segments - 1;) {
          const int end = min(j + 16, video.end - 1);
#pragma unroll 4
          for (; j < end; ++j) rank += ranks_before(keys[j], j, key, f);
        }
      }
      cut = is_cut(mine, threshold, rank, min_segments);
    }
    visit(f, cut);
  }
  __syncthreads();
}

}  // namespace fastvid
