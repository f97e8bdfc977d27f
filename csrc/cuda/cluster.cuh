// What sm_90 added, with what stands in for it on older devices: thread-block clusters (of one block), and the start of
// a kernel before its predecessor has ended (never).
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "block.cuh"
#include "launch.h"
#include "token_map.h"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define FASTVID_CLUSTERS 1
#endif

namespace fastvid {

// Waits until all that earlier kernels of the stream wrote is visible, and lets the next one start to wait in turn.
// Every kernel calls it, also one that reads nothing: it may write what an earlier one still reads. What the kernel
// before the last one wrote may be read without: this one starts only when the last one has waited for that.
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

// Barrier over the cluster in two parts, for what one block only reads of another: says that it has, and waits until
// all have.
__device__ __forceinline__ void cluster_arrive() {
#ifdef FASTVID_CLUSTERS
  if (cluster_size() > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#ifdef FASTVID_CLUSTERS
  if (cluster_size() > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// The whole barrier, which also makes earlier writes visible to the cluster: all of them, or only those to the block's
// own shared memory, where others need not be waited for to reach L2, which takes a thousand cycles. One thread's
// fence, behind a barrier of the block, speaks for all.
enum class Writes { kAll, kOwnShared };
template <Writes kWrites = Writes::kAll>
__device__ __forceinline__ void cluster_sync() {
  __syncthreads();
#ifdef FASTVID_CLUSTERS
  if (cluster_size() == 1) return;
  if (threadIdx.x == 0) {
#if CUDART_VERSION >= 12070  // older toolkits do not know this fence, and wait for all writes
    if constexpr (kWrites == Writes::kOwnShared) {
      asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
    } else
#endif
    {
      asm volatile("fence.acq_rel.cluster;" ::: "memory");
    }
  }
  __syncwarp();
  cluster_arrive();
  cluster_wait();
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

__device__ __forceinline__ float4 operator+(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Sum of the same shared variable over the cluster, in the order of the ranks. All loads are under way before the first
// is used: one from another block takes as long as one from L2. Zeros stand for ranks that there are none of, since
// conditions that are to last until the sum would run out, and loads wait for them.
template <int kRanks, typename T>
__device__ __forceinline__ T sum_of_ranks(const T* shared, int ranks) {
  T part[kRanks];
#pragma unroll
  for (int r = 0; r < kRanks; ++r) {
    part[r] = T{};
    if (r < ranks) part[r] = *at_rank(shared, r);
  }
  T total = part[0];
#pragma unroll
  for (int r = 1; r < kRanks; ++r) total = total + part[r];
  return total;
}
template <typename T>
__device__ __forceinline__ T cluster_total(const T* shared, int ranks) {
#ifdef FASTVID_CLUSTERS
  constexpr int kFew = kMaxClusterSize / 2;
  return ranks <= kFew ? sum_of_ranks<kFew>(shared, ranks) : sum_of_ranks<kMaxClusterSize>(shared, ranks);
#else
  return *shared;
#endif
}

// Has the device read a map before a copy waits for it.
__device__ __forceinline__ void prefetch_token_map(const CUtensorMap& map) {
#ifdef FASTVID_CLUSTERS
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// Counts the words that the blocks of a cluster send into this block's shared memory, so that whoever waits for them
// needs no barrier of the cluster. A phase lasts until all bytes that one thread expected have come.
class Inbox {
 public:
  // By one thread, which has to publish it.
  __device__ __forceinline__ void init() {
#ifdef FASTVID_CLUSTERS
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(address()) : "memory");
#endif
  }
  // Makes all that the thread has made known, to others behind a barrier of the cluster.
  static __device__ __forceinline__ void publish() {
#ifdef FASTVID_CLUSTERS
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  // By one thread, once a phase.
  __device__ __forceinline__ void expect(int bytes) {
#ifdef FASTVID_CLUSTERS
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(address()), "r"(bytes) : "memory");
#endif
  }
  // Writes to *target in the block of the given rank and counts it in the same inbox there.
  template <typename Word>
  __device__ __forceinline__ void send(Word* target, Word word, int rank) {
    static_assert(sizeof(Word) == 4);
#ifdef FASTVID_CLUSTERS
    uint32_t bits;
    memcpy(&bits, &word, sizeof bits);
    asm volatile(
        "{.reg .b32 word, inbox;\nmapa.shared::cluster.u32 word, %0, %3;\nmapa.shared::cluster.u32 inbox, %1, %3;\n"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [word], %2, [inbox];}" ::"r"(shared_address(target)),
        "r"(address()), "r"(bits), "r"(rank)
        : "memory");
#else
    *target = word;
#endif
  }
  // Has the copy engine bring a tile of `map` from these channels and tokens of a frame on, whose bytes count here.
  __device__ __forceinline__ void copy_tile(const CUtensorMap& map, uint32_t tile, int channel, int token, int frame) {
#ifdef FASTVID_CLUSTERS
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(tile),
        "l"(&map), "r"(channel), "r"(token), "r"(frame), "r"(address())
        : "memory");
#endif
  }
  // By all threads of the block; phases count from 0.
  __device__ __forceinline__ void wait(int phase) {
#ifdef FASTVID_CLUSTERS
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{.reg .pred done;\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, "
          "1, 0, done;}"
          : "=r"(done)
          : "r"(address()), "r"(phase % 2)
          : "memory");
    }
#else
    __syncthreads();
#endif
  }

 private:
  __device__ __forceinline__ uint32_t address() const { return shared_address(&barrier_); }
  uint64_t barrier_;
};

}  // namespace fastvid
