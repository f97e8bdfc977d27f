#include "launch.h"
#include "token_map.h"

namespace fastvid {
namespace {

// Compiled as all kernels are, to be asked for what.
__global__ void probe_kernel() {}

}  // namespace

cudaError_t device_limits(DeviceLimits& limits) {
  static std::atomic<uint64_t> cache[kMaxDevices];  // 0: not asked yet
  int device;
  FASTVID_RETURN_IF_FAILED(cudaGetDevice(&device));
  std::atomic<uint64_t>& cached = cache[device % kMaxDevices];
  uint64_t packed = cached.load(std::memory_order_relaxed);
  if (packed == 0) {
    int multiprocessors, shared_bytes;
    cudaFuncAttributes probe;
    FASTVID_RETURN_IF_FAILED(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    FASTVID_RETURN_IF_FAILED(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
    FASTVID_RETURN_IF_FAILED(cudaFuncGetAttributes(&probe, probe_kernel));
    // A newer device may run PTX of an older architecture, which has no clusters whatever the device has.
    packed = static_cast<uint64_t>(shared_bytes) << 32 | static_cast<uint64_t>(multiprocessors) << 8 |
             (probe.binaryVersion == 90) << 1 | (probe.ptxVersion >= 90);
    cached.store(packed, std::memory_order_relaxed);
  }
  limits = {static_cast<int>(packed >> 8 & 0xffffff), static_cast<int>(packed >> 32), (packed & 1) != 0,
            (packed & 2) != 0};
  return cudaSuccess;
}

namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// cuTensorMapEncodeTiled, by way of the runtime: the library does not link to the driver.
cudaError_t find_encoder(EncodeTiled& encode) {
  static std::atomic<void*> found{nullptr};
  void* function = found.load(std::memory_order_relaxed);
  if (function == nullptr) {
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    FASTVID_RETURN_IF_FAILED(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
#else
    FASTVID_RETURN_IF_FAILED(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result));
#endif
    if (result != cudaDriverEntryPointSuccess) return cudaErrorCallRequiresNewerDriver;
    found.store(function, std::memory_order_relaxed);
  }
  encode = reinterpret_cast<EncodeTiled>(function);
  return cudaSuccess;
}

}  // namespace

cudaError_t make_token_map(const void* data, CUtensorMapDataType type, int element_bytes, int channels, int per_frame,
                           int frames, int64_t row_stride, int rows, CUtensorMap& map) {
  EncodeTiled encode;
  FASTVID_RETURN_IF_FAILED(find_encoder(encode));
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(per_frame),
                               static_cast<cuuint64_t>(frames)};
  // A stride over a single token says nothing, and may be 0.
  const cuuint64_t stride = std::max<int64_t>(row_stride, channels) * element_bytes;
  const cuuint64_t strides[2] = {stride, stride * per_frame};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(kTileRowBytes / element_bytes), static_cast<cuuint32_t>(rows), 1};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult result =
      encode(&map, type, 3, const_cast<void*>(data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace fastvid
