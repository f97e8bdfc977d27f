// Cuts of a batch of videos, by one block.
#pragma once

#include "core/segment.h"
#include "videos.cuh"

namespace fastvid {

// Writes cuts[f] = whether a segment ends with frame f. Every frame counts the frames of its video that are less
// similar to their successors: F^2 comparisons a video, 0.3 us for 128 frames.
__device__ __forceinline__ void find_cuts(const float* similarity, int frames, const Videos& videos, float threshold,
                                          int min_segments, uint8_t* cuts) {
  for (int f = threadIdx.x; f < frames; f += blockDim.x) {
    const FrameRange video = video_of(videos, f, frames);
    bool cut = f + 1 == video.end;
    if (!cut) {
      const float mine = similarity[f];
      int rank = 0;
      if (!(mine < threshold) && min_segments > 1) {
        for (int j = video.begin; j + 1 < video.end; ++j) rank += less_similar(similarity[j], j, mine, f);
      }
      cut = is_cut(mine, threshold, rank, min_segments);
    }
    cuts[f] = cut;
  }
  __syncthreads();
}

}  // namespace fastvid
