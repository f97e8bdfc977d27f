#include "segment.cuh"

#include "block.cuh"
#include "launch.h"

namespace fastvid {
namespace {

constexpr int kMeanWarps = 8;
constexpr int kSimilarityThreads = 256;
constexpr int kSegmentThreads = 1024;

// features[f] = mean of the tokens of frame f.
// Grid: (channels / one vector a lane, frames); a block's warps share the tokens. Reads the tokens once, from device
// memory: that is its limit.
template <typename T>
__global__ __launch_bounds__(kMeanWarps* kWarp) void mean_features_kernel(Tokens<T> tokens, float* features,
                                                                          int features_stride) {
  constexpr int kSize = Vector<T>::kSize;
  constexpr int kUnroll = 8;
  __shared__ float partial[kMeanWarps][kWarp * kSize];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int channel = (blockIdx.x * kWarp + lane) * kSize;
  float sum[kSize] = {};
  if (channel < tokens.channels) {
    const T* source = tokens.data + blockIdx.y * tokens.frame_stride + channel;
    for (int first = warp; first < tokens.per_frame; first += kMeanWarps * kUnroll) {
      Vector<T> loaded[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int token = first + u * kMeanWarps;
        loaded[u] = token < tokens.per_frame
                        ? *reinterpret_cast<const Vector<T>*>(source + token * tokens.token_stride)
                        : Vector<T>{};
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int i = 0; i < kSize; ++i) sum[i] += to_float(loaded[u].at[i]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) partial[warp][lane * kSize + i] = sum[i];
  __syncthreads();
  for (int i = threadIdx.x; i < kWarp * kSize; i += blockDim.x) {
    const int out = blockIdx.x * kWarp * kSize + i;
    if (out >= features_stride) continue;
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kMeanWarps; ++w) total += partial[w][i];
    features[static_cast<int64_t>(blockIdx.y) * features_stride + out] = total / tokens.per_frame;
  }
}

// similarity[f] = cosine of the features of frame f and the next, -1 at a video's last frame.
// Grid: a block a frame. Reads two feature vectors, out of L2 after the kernel above: launch latency is its limit.
__global__ __launch_bounds__(kSimilarityThreads) void similarity_kernel(AnyFloats features, int frames, Videos videos,
                                                                        float* similarity) {
  __shared__ float scratch[kSimilarityThreads / kWarp];
  const int f = blockIdx.x;
  if (f + 1 == video_of(videos, f, frames).end) {
    if (threadIdx.x == 0) similarity[f] = -1.0f;
    return;
  }
  float dot = 0.0f, squared = 0.0f, squared_next = 0.0f;
  for (int c = threadIdx.x; c < features.columns; c += kSimilarityThreads) {
    const float x = static_cast<float>(features.at(f, c)), y = static_cast<float>(features.at(f + 1, c));
    dot += x * y;
    squared += x * x;
    squared_next += y * y;
  }
  dot = block_sum(dot, scratch);
  squared = block_sum(squared, scratch);
  squared_next = block_sum(squared_next, scratch);
  if (threadIdx.x == 0) similarity[f] = cosine(dot, squared, squared_next);
}

// segment_ids of all frames, counted over the batch. Grid: one block; a few bytes a frame.
__global__ __launch_bounds__(kSegmentThreads) void segment_kernel(const float* similarity, int frames, Videos videos,
                                                                  float threshold, int min_segments, uint8_t* cuts,
                                                                  int* segment_ids) {
  __shared__ Counts scratch[kSegmentThreads / kWarp];
  find_cuts(similarity, frames, videos, threshold, min_segments, cuts);
  int before = 0;
  for (int base = 0; base < frames; base += kSegmentThreads) {
    const int f = base + threadIdx.x;
    Counts total;
    const Counts place = block_scan({f < frames && cuts[f], 0, 0}, total, scratch);
    if (f < frames) segment_ids[f] = before + place.a;
    before += total.a;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_mean_features(const Tokens<T>& tokens, float* features, int features_stride, cudaStream_t stream) {
  const int blocks = ceil_div(tokens.channels, kWarp * Vector<T>::kSize);
  // Frames lie along y, of which a grid has 65535.
  for (int first = 0; first < tokens.frames; first += 65535) {
    Tokens<T> part = tokens;
    part.data += first * tokens.frame_stride;
    part.frames = tokens.frames - first < 65535 ? tokens.frames - first : 65535;
    FASTVID_RETURN_IF_FAILED(launch(mean_features_kernel<T>, dim3(blocks, part.frames), kMeanWarps * kWarp, 0, 1,
                                    stream, part, features + static_cast<int64_t>(first) * features_stride,
                                    features_stride));
  }
  return cudaSuccess;
}
template cudaError_t launch_mean_features(const Tokens<float>&, float*, int, cudaStream_t);
template cudaError_t launch_mean_features(const Tokens<__half>&, float*, int, cudaStream_t);
template cudaError_t launch_mean_features(const Tokens<__nv_bfloat16>&, float*, int, cudaStream_t);

cudaError_t launch_similarity(const AnyFloats& features, int frames, const Videos& videos, float* similarity,
                              cudaStream_t stream) {
  return launch(similarity_kernel, dim3(frames), kSimilarityThreads, 0, 1, stream, features, frames, videos,
                similarity);
}

cudaError_t launch_segment(const float* similarity, int frames, const Videos& videos, float threshold,
                           int min_segments, uint8_t* cuts, int* segment_ids, cudaStream_t stream) {
  return launch(segment_kernel, dim3(1), kSegmentThreads, 0, 1, stream, similarity, frames, videos, threshold,
                min_segments, cuts, segment_ids);
}

}  // namespace fastvid
