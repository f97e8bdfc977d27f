// Which video a frame belongs to.
#pragma once

#include "pipeline.h"

namespace fastvid {

struct FrameRange {
  int begin, end;
};

__device__ __forceinline__ int64_t boundary(const Videos& videos, int i) {
  return videos.wide ? static_cast<const int64_t*>(videos.cu_frames)[i]
                     : static_cast<const int32_t*>(videos.cu_frames)[i];
}

// Frames of the video that holds `frame`. Boundaries that stand on the device are not to be trusted: whatever they
// are, the range holds the frame and lies within [0, frames).
__device__ __forceinline__ FrameRange video_of(const Videos& videos, int frame, int frames) {
  if (videos.cu_frames == nullptr) return {0, frames};
  int low = 0, high = videos.count;  // the last boundary that is <= frame lies in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (boundary(videos, middle) <= frame) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = boundary(videos, low), end = boundary(videos, low + 1);
  return {static_cast<int>(begin < 0       ? 0
                           : begin > frame ? frame
                                           : begin),
          static_cast<int>(end > frames   ? frames
                           : end <= frame ? frame + 1
                                          : end)};
}

}  // namespace fastvid
