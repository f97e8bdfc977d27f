// How kernels are launched: device limits, clusters, and the overlap of a kernel's start with its predecessor's end.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace fastvid {

#define FASTVID_RETURN_IF_FAILED(...)           \
  do {                                          \
    const cudaError_t status_ = (__VA_ARGS__);  \
    if (status_ != cudaSuccess) return status_; \
  } while (0)

constexpr int kMaxDevices = 64;  // whose limits are remembered

struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // dynamic shared memory that a block may ask for
  bool clusters;     // whether the code that runs there was compiled for sm_90 or later (cluster.cuh)
};

// Limits of the current device, asked for once.
cudaError_t device_limits(DeviceLimits& limits);

// FASTVID_OVERLAP=0 starts every kernel only when the one before it has ended, to tell a race from a wrong result.
inline bool overlap_enabled() {
  static const bool enabled = [] {
    const char* value = std::getenv("FASTVID_OVERLAP");
    return value == nullptr || value[0] != '0';
  }();
  return enabled;
}

struct Launch {
  dim3 grid;
  int threads;
  size_t shared_bytes;
  int cluster;  // blocks along x that share their memory
  cudaStream_t stream;
};

// Launches a kernel of this library. It must call wait_for_predecessor() before it touches what another one wrote or
// may still read.
template <auto kKernel, typename... Args>
cudaError_t launch(const Launch& launch, Args... args) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  if (launch.shared_bytes > 48 * 1024) {
    static std::atomic<uint64_t> raised{0};  // a bit a device
    int device;
    FASTVID_RETURN_IF_FAILED(cudaGetDevice(&device));
    const uint64_t bit = uint64_t{1} << device % kMaxDevices;
    if (!(raised.load(std::memory_order_relaxed) & bit)) {
      const void* const function = reinterpret_cast<const void*>(kKernel);
      cudaFuncAttributes attributes;
      FASTVID_RETURN_IF_FAILED(cudaFuncGetAttributes(&attributes, function));
      FASTVID_RETURN_IF_FAILED(
          cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               limits.shared_bytes - static_cast<int>(attributes.sharedSizeBytes)));
      raised.fetch_or(bit, std::memory_order_relaxed);
    }
  }
  cudaLaunchAttribute attributes[2]{};
  int count = 0;
  if (limits.clusters && overlap_enabled()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  if (launch.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = launch.cluster;
    attributes[count].val.clusterDim.y = attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = launch.grid;
  config.blockDim = dim3(launch.threads);
  config.dynamicSmemBytes = launch.shared_bytes;
  config.stream = launch.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kKernel, args...);
}

}  // namespace fastvid
