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
constexpr int kMaxClusterSize = 8;

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

// Lets a kernel have as much dynamic shared memory as the device offers.
template <auto kKernel>
cudaError_t raise_shared_bytes(const DeviceLimits& limits) {
  static std::atomic<uint64_t> raised{0};  // a bit a device
  int device;
  FASTVID_RETURN_IF_FAILED(cudaGetDevice(&device));
  const uint64_t bit = uint64_t{1} << device % kMaxDevices;
  if (raised.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const void* const function = reinterpret_cast<const void*>(kKernel);
  cudaFuncAttributes attributes;
  FASTVID_RETURN_IF_FAILED(cudaFuncGetAttributes(&attributes, function));
  FASTVID_RETURN_IF_FAILED(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                limits.shared_bytes - static_cast<int>(attributes.sharedSizeBytes)));
  raised.fetch_or(bit, std::memory_order_relaxed);
  return cudaSuccess;
}

// Launches a kernel of this library. It must call wait_for_predecessor() before it touches what another one wrote or
// may still read.
template <auto kKernel, typename... Args>
cudaError_t launch(const Launch& launch, Args... args) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  if (launch.shared_bytes > 48 * 1024) FASTVID_RETURN_IF_FAILED(raise_shared_bytes<kKernel>(limits));
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

// How many blocks share a unit of work whose slices can be split, so that the whole takes the shortest: waves of
// clusters, each as long as a block's share of the slices and what comes before and after, `fixed` slices. How many
// clusters run at once is asked of the device: they are not spread over its groups of multiprocessors, and one cluster
// too many doubles the time.
template <auto kKernel>
cudaError_t choose_cluster(int64_t units, int threads, size_t shared_bytes, int slices, double fixed, int& cluster) {
  static std::atomic<uint64_t> cache[kMaxClusterSize + 1];  // of the last device and shared_bytes asked for
  cluster = 1;
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  if (!limits.clusters) return cudaSuccess;
  FASTVID_RETURN_IF_FAILED(raise_shared_bytes<kKernel>(limits));
  int device;
  FASTVID_RETURN_IF_FAILED(cudaGetDevice(&device));
  const uint64_t key = static_cast<uint64_t>(device + 1) << 32 | shared_bytes;
  double least = 0.0;
  for (int c = 1; c <= kMaxClusterSize && c <= slices; ++c) {
    uint64_t packed = cache[c].load(std::memory_order_relaxed);
    if (packed >> 16 != key) {
      cudaLaunchAttribute attribute{};
      attribute.id = cudaLaunchAttributeClusterDimension;
      attribute.val.clusterDim.x = c;
      attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
      cudaLaunchConfig_t config{};
      config.gridDim = dim3(c);
      config.blockDim = dim3(threads);
      config.dynamicSmemBytes = shared_bytes;
      config.attrs = &attribute;
      config.numAttrs = 1;
      int resident;
      FASTVID_RETURN_IF_FAILED(cudaOccupancyMaxActiveClusters(&resident, kKernel, &config));
      packed = key << 16 | static_cast<uint64_t>(resident);
      cache[c].store(packed, std::memory_order_relaxed);
    }
    const int64_t resident = packed & 0xffff;
    if (resident == 0) continue;
    const double time = static_cast<double>((units + resident - 1) / resident) * (fixed + 1.0 * slices / c);
    if (least == 0.0 || time < least) {
      cluster = c;
      least = time;
    }
  }
  return cudaSuccess;
}

}  // namespace fastvid
