#include <algorithm>

#include "cluster.cuh"
#include "launch.h"
#include "pipeline.h"

namespace fastvid {
namespace {

constexpr int kPackThreads = 256;
constexpr int kStoredBoundaries = 512;

// Grid: over the tokens; one read and one write of them, with whatever strides.
template <typename T>
__global__ __launch_bounds__(kPackThreads) void pack_kernel(const T* source, int64_t frame_stride, int64_t token_stride,
                                                            int64_t channel_stride, int channels,
                                                            const Tokens<T> packed) {
  wait_for_predecessor();
  T* const target = const_cast<T*>(packed.data);
  const int rows = packed.frames * packed.per_frame;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* from = source + row / packed.per_frame * frame_stride + row % packed.per_frame * token_stride;
    for (int c = threadIdx.x; c < packed.channels; c += kPackThreads) {
      target[static_cast<int64_t>(row) * packed.channels + c] =
          c < channels ? from[c * channel_stride] : from_float<T>(0.0f);
    }
  }
}

struct Boundaries {
  int32_t at[kStoredBoundaries];
};

__global__ void store_cu_frames_kernel(const __grid_constant__ Boundaries boundaries, int count, int32_t* device) {
  wait_for_predecessor();
  for (int i = threadIdx.x; i < count; i += blockDim.x) device[i] = boundaries.at[i];
}

}  // namespace

template <typename T>
cudaError_t launch_pack(const T* source, int64_t frame_stride, int64_t token_stride, int64_t channel_stride,
                        int channels, const Tokens<T>& packed, cudaStream_t stream) {
  const int blocks = std::min(packed.frames * packed.per_frame, 65536);
  return launch<pack_kernel<T>>({dim3(blocks), kPackThreads, 0, 1, stream}, source, frame_stride, token_stride,
                                channel_stride, channels, packed);
}
template cudaError_t launch_pack(const float*, int64_t, int64_t, int64_t, int, const Tokens<float>&, cudaStream_t);
template cudaError_t launch_pack(const __half*, int64_t, int64_t, int64_t, int, const Tokens<__half>&, cudaStream_t);
template cudaError_t launch_pack(const __nv_bfloat16*, int64_t, int64_t, int64_t, int, const Tokens<__nv_bfloat16>&,
                                 cudaStream_t);

cudaError_t launch_store_cu_frames(const int32_t* host, int count, int32_t* device, cudaStream_t stream) {
  for (int first = 0; first < count; first += kStoredBoundaries) {
    const int part = std::min(kStoredBoundaries, count - first);
    Boundaries boundaries{};
    std::copy_n(host + first, part, boundaries.at);
    FASTVID_RETURN_IF_FAILED(
        launch<store_cu_frames_kernel>({dim3(1), 128, 0, 1, stream}, boundaries, part, device + first));
  }
  return cudaSuccess;
}

}  // namespace fastvid
