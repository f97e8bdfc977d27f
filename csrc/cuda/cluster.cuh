// Thread-block clusters where the device has them (sm_90 on), and clusters of one block elsewhere.
#pragma once

#include <cuda_runtime.h>

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTVID_CLUSTERS 1
#include <cooperative_groups.h>
#endif

namespace fastvid {

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

}  // namespace fastvid
