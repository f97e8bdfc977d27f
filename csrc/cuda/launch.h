// What launchers share: device limits, cluster launches, the two ways by which a call can fail.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace fastvid {

#define FASTVID_RETURN_IF_FAILED(call)                \
  do {                                                \
    const cudaError_t status_ = (call);               \
    if (status_ != cudaSuccess) return status_;       \
  } while (0)

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;   // dynamic shared memory that a block may ask for
  bool clusters;      // thread-block clusters with distributed shared memory
};

inline cudaError_t device_limits(DeviceLimits& limits) {
  int device, major;
  FASTVID_RETURN_IF_FAILED(cudaGetDevice(&device));
  FASTVID_RETURN_IF_FAILED(
      cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device));
  FASTVID_RETURN_IF_FAILED(
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  FASTVID_RETURN_IF_FAILED(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  limits.clusters = major >= 9;
  return cudaSuccess;
}

// Launches blocks of `threads` in clusters of `cluster` blocks along x.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes, int cluster,
                   cudaStream_t stream, Args... args) {
  if (shared_bytes > 48 * 1024) {
    FASTVID_RETURN_IF_FAILED(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                  static_cast<int>(shared_bytes)));
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

}  // namespace fastvid
