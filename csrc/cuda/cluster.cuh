// What sm_90 added, with what stands in for it on older devices: thread-block clusters (of one block), and the start of
// a kernel before its predecessor has ended (never).
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "launch.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTVID_CLUSTERS 1
#endif

namespace fastvid {

// Waits until all that earlier kernels of the stream wrote is visible, and lets the next one start to wait in turn.
// Every kernel calls it, also one that reads nothing: it may write what an earlier one still reads.
__device__ __forceinline__ void wait_for_predecessor() {
#ifdef FASTVID_CLUSTERS
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ int cluster_size() {
#ifdef FASTVID_CLUSTERS
  return cooperative_groups::this_cluster().num_blocks();
#else
  return 1;
#endif
}

__device__ __forceinline__ int cluster_rank() {
#ifdef FASTVID_CLUSTERS
  return cooperative_groups::this_cluster().block_rank();
#else
  return 0;
#endif
}

// Barrier over the cluster that also makes every earlier write visible to it.
__device__ __forceinline__ void cluster_sync() {
#ifdef FASTVID_CLUSTERS
  cooperative_groups::this_cluster().sync();
#else
  __syncthreads();
#endif
}

// The same shared variable in the block of the given rank.
template <typename T>
__device__ __forceinline__ T* at_rank(T* shared, int rank) {
#ifdef FASTVID_CLUSTERS
  return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
#else
  return shared;
#endif
}

// Sum of the same shared variable over the cluster, in the order of the ranks. All loads are under way before the first
// is used: one from another block takes as long as one from L2.
template <int kMostRanks = kMaxClusterSize, typename T>
__device__ __forceinline__ T cluster_total(const T* shared, int ranks) {
#ifdef FASTVID_CLUSTERS
  T part[kMostRanks];
#pragma unroll
  for (int r = 0; r < kMostRanks; ++r) {
    if (r < ranks) part[r] = *at_rank(shared, r);
  }
  T total = part[0];
#pragma unroll
  for (int r = 1; r < kMostRanks; ++r) {
    if (r < ranks) total = total + part[r];
  }
  return total;
#else
  return *shared;
#endif
}

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

}  // namespace fastvid
