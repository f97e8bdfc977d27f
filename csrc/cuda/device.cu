#include "launch.h"

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
             (probe.ptxVersion >= 90);
    cached.store(packed, std::memory_order_relaxed);
  }
  limits = {static_cast<int>(packed >> 8 & 0xffffff), static_cast<int>(packed >> 32), (packed & 0xff) != 0};
  return cudaSuccess;
}

}  // namespace fastvid
