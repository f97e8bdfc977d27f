// How kernels are launched: device limits, clusters, and the overlap of a kernel's start with its predecessor's end.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "core/plan.h"

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
  bool warpgroups;   // whether it is that for sm_90, whose tensor cores take operands from shared memory (wgmma.cuh)
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

// Launches a kernel of this library. It must call wait_for_predecessor() before it touches what the one before it wrote
// or may still read.
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

// How many clusters of c blocks run at once, at least, where `blocks` fit on a multiprocessor. A cluster lies within a
// group of multiprocessors, of which up to 18 make one, in pairs; which are missing differs from chip to chip. The
// device could be asked, but then results would depend on the chip, as sums do on the size of a cluster.
inline int64_t resident_clusters(const DeviceLimits& limits, int blocks, int c) {
  constexpr int kGroup = 18;
  const int groups = ceil_div(limits.multiprocessors, kGroup), left_over = (c - 1) / 2 * 2;
  return std::max(1, (limits.multiprocessors * blocks - groups * left_over) / c);
}

// What a unit of work costs that the blocks of a cluster share, as measured on an H200 (bench/PROFILE.md).
struct UnitCost {
  int slices;      // that can be shared
  double fixed;    // what comes before and after them, in slices
  double sharing;  // how much longer blocks take that share a multiprocessor with another
};

// How many blocks share a unit, and what all units take then, in slices.
struct Sharing {
  int cluster;
  double time;
};

// That of `least` blocks or more which takes the shortest. The last wave of clusters may find a multiprocessor for each
// of its blocks.
inline Sharing best_sharing(const DeviceLimits& limits, int64_t units, int blocks, const UnitCost& cost,
                            int least = 1) {
  Sharing best{least, 0.0};
  for (int c = least; c <= std::min(kMaxClusterSize, cost.slices); ++c) {
    const int64_t resident = resident_clusters(limits, blocks, c), rest = units % resident;
    const double sharing = blocks > 1 ? cost.sharing : 1.0;
    const double last = rest == 0 ? 0.0 : rest <= resident_clusters(limits, 1, c) ? 1.0 : sharing;
    const double time = (units / resident * sharing + last) * (cost.fixed + 1.0 * cost.slices / c);
    if (best.time == 0.0 || time < best.time) best = {c, time};
  }
  return best;
}

}  // namespace fastvid
