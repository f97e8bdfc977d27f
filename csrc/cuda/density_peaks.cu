#include "density_peaks.cuh"

#include <algorithm>

#include "gram.cuh"
#include "launch.h"
#include "mma.cuh"

namespace fastvid {
namespace {

constexpr int kPeaksThreads = 512;
constexpr int kPeaksWarps = kPeaksThreads / kWarp;
constexpr int kPeaksBlocksPerMultiprocessor = 2;
constexpr int kPeaksCluster = 4;  // blocks a frame, where there are clusters

// How a frame of n tokens is laid out over a cluster.
struct Layout {
  int cluster;        // blocks a frame
  int rows_per_rank;  // distances from this many tokens stand with each block,
  bool rows_shared;   // in shared rather than in device memory
  int pitch;          // floats a row; odd, so that columns lie in different banks
  int shared_bytes;
};

struct Work {
  DensityPeaks peaks;
  const float* gram;
  Layout layout;
  float* rows;  // distances, (clusters, N, pitch), unless they are shared
};

// Starts to copy a number; to shared memory without waiting for it.
template <bool kShared>
__device__ __forceinline__ void copy_number(float* target, const float* source) {
  if constexpr (kShared) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(target)), "l"(source) : "memory");
  } else {
    *target = *source;
  }
}

// This block's rows of the frame's products, out of tiles that hold each pair once.
template <bool kShared>
__device__ __forceinline__ void load_products(const float* tiles, const GramTiles& shape, int n, const OwnRows& rows,
                                              float* norms) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int j = threadIdx.x; j < n; j += kPeaksThreads) norms[j] = gram_at(tiles, shape, j, j);
  // Tile by tile, lanes along its rows: as it stands for pairs (i, j) with j in the same tile or after, transposed for
  // those with j before.
  const int first_tile = rows.first / shape.size, end_tile = (rows.end - 1) / shape.size + 1;
  for (int mine = first_tile; mine < end_tile; ++mine) {
    const int begin = max(rows.first, mine * shape.size), end = min(rows.end, (mine + 1) * shape.size);
    for (int other = 0; other < shape.across; ++other) {
      const int other_begin = other * shape.size, other_size = min(shape.size, n - other_begin);
      const float* const tile = tiles + shape.at(min(mine, other), max(mine, other)) * shape.size * shape.size;
      if (other >= mine) {
        for (int i = begin + warp; i < end; i += kPeaksWarps) {
          const float* const source = tile + (i - mine * shape.size) * shape.size;
          for (int j = lane; j < other_size; j += kWarp) copy_number<kShared>(rows.at(i) + other_begin + j, source + j);
        }
      } else {
        for (int j = warp; j < other_size; j += kPeaksWarps) {
          const float* const source = tile + j * shape.size - mine * shape.size;
          for (int i = begin + lane; i < end; i += kWarp)
            copy_number<kShared>(rows.at(i) + other_begin + j, source + i);
        }
      }
    }
  }
}

// rho, gamma and the centres of every anchor frame (or of every frame, for the ops knn_density and select_peaks), from
// the products of its tokens that gram has left in device memory.
// Grid: clusters of layout.cluster blocks, a frame at a time. Memory: reads the N^2 / 2 products of each frame out of
// L2. Limit: latency; the phases follow one another, with a barrier of the cluster between them.
__global__ __launch_bounds__(kPeaksThreads, kPeaksBlocksPerMultiprocessor) void density_peaks_kernel(
    const __grid_constant__ Work work) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Counts scratch[kPeaksThreads / kWarp];
  const DensityPeaks& peaks = work.peaks;
  const Layout& layout = work.layout;
  const int n = peaks.per_frame;
  const GramTiles shape(n);
  const int ranks = cluster_size(), rank = cluster_rank(), cluster = blockIdx.x / ranks;
  const FrameState state(shared, n);
  OwnRows rows;
  rows.first = min(rank * layout.rows_per_rank, n);
  rows.end = min(rows.first + layout.rows_per_rank, n);
  rows.pitch = layout.pitch;
  rows.products = layout.rows_shared ? reinterpret_cast<float*>(shared + FrameState::bytes(n))
                                     : work.rows + (static_cast<int64_t>(cluster) * n + rows.first) * layout.pitch;

  cluster_sync();  // all blocks have started, so that others may write to them
  wait_for_predecessor();
  const int frames = peaks.planned ? peaks.plan.totals->anchors : peaks.frames;
  for (int item = cluster; item < frames; item += gridDim.x / ranks) {
    const int frame = peaks.planned ? peaks.plan.anchors[item] : item;
    if (rows.first < rows.end) {
      const float* const tiles = work.gram + static_cast<int64_t>(item) * shape.floats();
      if (layout.rows_shared) {
        load_products<true>(tiles, shape, n, rows, state.norms);
        commit_copies();
      } else {
        load_products<false>(tiles, shape, n, rows, state.norms);
      }
    }
    wait_copies<0>();
    const int num_candidates = mark_candidates(n, state, [&](int t) { return peaks.candidates(frame, t); });
    find_peaks(peaks, item, frame, num_candidates, rows, state, scratch);
  }
  cluster_sync();  // no block leaves while another may still write to it
}

cudaError_t choose_layout(int frames, int n, Layout& layout, int& clusters) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int available = limits.shared_bytes - 1024;  // the kernel's static arrays
  const int state_bytes = FrameState::bytes(n);
  if (state_bytes > available) return cudaErrorInvalidConfiguration;
  layout.cluster = limits.clusters ? kPeaksCluster : 1;
  layout.rows_per_rank = ceil_div(n, layout.cluster);
  layout.pitch = n | 1;
  const int64_t rows_bytes = static_cast<int64_t>(layout.rows_per_rank) * layout.pitch * sizeof(float);
  layout.rows_shared = state_bytes + rows_bytes <= available;
  layout.shared_bytes = state_bytes + (layout.rows_shared ? static_cast<int>(rows_bytes) : 0);
  clusters = std::max(1, std::min(frames, limits.multiprocessors * kPeaksBlocksPerMultiprocessor / layout.cluster));
  return cudaSuccess;
}

size_t gram_bytes(int frames, int n) {
  return (GramTiles(n).floats() * sizeof(float) * frames + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
}

}  // namespace

cudaError_t density_peaks_workspace(int frames, int per_frame, size_t& bytes) {
  Layout layout;
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(frames, per_frame, layout, clusters));
  bytes = gram_bytes(frames, per_frame);
  if (!layout.rows_shared) bytes += sizeof(float) * clusters * per_frame * layout.pitch;
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_density_peaks(const Tokens<T>& tokens, const DensityPeaks& peaks, void* workspace,
                                 cudaStream_t stream) {
  float* const gram = static_cast<float*>(workspace);
  FASTVID_RETURN_IF_FAILED(launch_gram(tokens, peaks.planned ? &peaks.plan : nullptr, gram, stream));
  float* const rows = gram + gram_bytes(peaks.frames, peaks.per_frame) / sizeof(float);
  Work work{peaks, gram, {}, rows};
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(peaks.frames, peaks.per_frame, work.layout, clusters));
  return launch<density_peaks_kernel>({dim3(clusters * work.layout.cluster), kPeaksThreads,
                                       static_cast<size_t>(work.layout.shared_bytes), work.layout.cluster, stream},
                                      work);
}
template cudaError_t launch_density_peaks(const Tokens<float>&, const DensityPeaks&, void*, cudaStream_t);
template cudaError_t launch_density_peaks(const Tokens<__half>&, const DensityPeaks&, void*, cudaStream_t);
template cudaError_t launch_density_peaks(const Tokens<__nv_bfloat16>&, const DensityPeaks&, void*, cudaStream_t);

}  // namespace fastvid
