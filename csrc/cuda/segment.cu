#include "segment.cuh"

#include "block.cuh"
#include "cluster.cuh"
#include "core/order.h"
#include "launch.h"

namespace fastvid {
namespace {

constexpr int kFeatureWarps = 16;
constexpr int kFeatureThreads = kFeatureWarps * kWarp;
constexpr int kSimilarityThreads = 256;
constexpr int kSegmentThreads = 1024;

// features[f] = mean of the tokens of frame f, over one vector a lane; the warps share the tokens.
template <typename T>
__device__ __forceinline__ void mean_of_frame(const Tokens<T>& tokens, int frame, int tile,
                                              const FrameFeatures& features, float* partial) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kUnroll = 6;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int channel = (tile * kWarp + lane) * kSize;
  float sum[kSize] = {};
  if (channel < tokens.channels) {
    const T* source = tokens.row(frame * tokens.per_frame + warp) + channel;
    const int64_t step = kFeatureWarps * tokens.row_stride;
    const auto add = [&](const uint4& raw) {
      const Vector<T> vector = *reinterpret_cast<const Vector<T>*>(&raw);
#pragma unroll
      for (int i = 0; i < kSize; ++i) sum[i] += to_float(vector.at[i]);
    };
    int left = ceil_div(tokens.per_frame - warp, kFeatureWarps);  // tokens of this warp
    for (; left >= kUnroll; left -= kUnroll, source += kUnroll * step) {
      uint4 loaded[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) loaded[u] = *reinterpret_cast<const uint4*>(source + u * step);
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) add(loaded[u]);
    }
    for (; left > 0; --left, source += step) add(*reinterpret_cast<const uint4*>(source));
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) partial[(warp * kWarp + lane) * kSize + i] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < kWarp * kSize; i += kFeatureThreads) {
    const int out = tile * kWarp * kSize + i;
    if (out >= features.stride) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kFeatureWarps; ++w) total += partial[w * kWarp * kSize + i];
    features.data[static_cast<int64_t>(frame) * features.stride + out] = total / tokens.per_frame;
  }
}

// Frame features.
// Grid: frames x tiles of one vector a lane. Memory: reads the tokens once, from device memory, which is the limit.
template <typename T>
__global__ __launch_bounds__(kFeatureThreads) void frame_features_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FrameFeatures features) {
  __shared__ float partial[kFeatureWarps * kWarp * Vector<T>::kSize];
  wait_for_predecessor();
  const int tiles = ceil_div(tokens.channels, kWarp * Vector<T>::kSize), frame = blockIdx.x / tiles;
  mean_of_frame(tokens, frame, blockIdx.x - frame * tiles, features, partial);
}

// similarity[f] = cosine of the features of frame f and the next, -1 at a video's last frame.
// Grid: a block a frame. Reads two feature vectors, out of L2 after the kernel above: launch latency is its limit.
__global__ __launch_bounds__(kSimilarityThreads) void similarity_kernel(const AnyFloats features, int frames,
                                                                        const Videos videos, float* similarity) {
  __shared__ float scratch[3][kSimilarityThreads / kWarp];
  wait_for_predecessor();
  const int f = blockIdx.x;
  if (f + 1 == video_of(videos, f, frames).end) {
    if (threadIdx.x == 0) similarity[f] = -1.0f;
    return;
  }
  float dot = 0.0f, squared = 0.0f, squared_next = 0.0f;
#pragma unroll 4
  for (int c = threadIdx.x; c < features.columns; c += kSimilarityThreads) {
    const float x = static_cast<float>(features.at(f, c)), y = static_cast<float>(features.at(f + 1, c));
    dot += x * y;
    squared += x * x;
    squared_next += y * y;
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  dot = warp_sum(dot);
  squared = warp_sum(squared);
  squared_next = warp_sum(squared_next);
  if (lane == 0) {
    scratch[0][warp] = dot;
    scratch[1][warp] = squared;
    scratch[2][warp] = squared_next;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  float totals[3] = {};
  for (int w = 0; w < kSimilarityThreads / kWarp; ++w) {
    for (int i = 0; i < 3; ++i) totals[i] += scratch[i][w];
  }
  similarity[f] = cosine(totals[0], totals[1], totals[2]);
}

// segment_ids of all frames, counted over the batch. Grid: one block; a few bytes a frame.
__global__ __launch_bounds__(kSegmentThreads) void segment_kernel(const float* similarity, int frames,
                                                                  const Videos videos, float threshold,
                                                                  int min_segments, int* scratch, int* segment_ids) {
  __shared__ Counts of_warps[kSegmentThreads / kWarp];
  wait_for_predecessor();
  int* const cuts = scratch + frames;
  for_each_cut(similarity, frames, videos, threshold, min_segments, scratch, [&](int f, bool cut) { cuts[f] = cut; });
  int before = 0;
  for (int base = 0; base < frames; base += kSegmentThreads) {
    const int f = base + threadIdx.x;
    Counts total;
    const Counts place = block_scan({f < frames ? cuts[f] : 0, 0, 0}, total, of_warps);
    if (f < frames) segment_ids[f] = before + place.a;
    before += total.a;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_frame_features(const Tokens<T>& tokens, const FrameFeatures& features, cudaStream_t stream) {
  const int channels_a_block = kWarp * Vector<T>::kSize;
  const int blocks = tokens.frames * ceil_div(tokens.channels, channels_a_block);
  return launch<frame_features_kernel<T>>({dim3(blocks), kFeatureThreads, 0, 1, stream}, tokens, features);
}
template cudaError_t launch_frame_features(const Tokens<float>&, const FrameFeatures&, cudaStream_t);
template cudaError_t launch_frame_features(const Tokens<__half>&, const FrameFeatures&, cudaStream_t);
template cudaError_t launch_frame_features(const Tokens<__nv_bfloat16>&, const FrameFeatures&, cudaStream_t);

cudaError_t launch_similarity(const AnyFloats& features, int frames, const Videos& videos, float* similarity,
                              cudaStream_t stream) {
  return launch<similarity_kernel>({dim3(frames), kSimilarityThreads, 0, 1, stream}, features, frames, videos,
                                   similarity);
}

cudaError_t launch_segment(const float* similarity, int frames, const Videos& videos, float threshold, int min_segments,
                           int* scratch, int* segment_ids, cudaStream_t stream) {
  return launch<segment_kernel>({dim3(1), kSegmentThreads, 0, 1, stream}, similarity, frames, videos, threshold,
                                min_segments, scratch, segment_ids);
}

}  // namespace fastvid
