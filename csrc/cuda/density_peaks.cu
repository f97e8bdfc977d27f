#include <algorithm>

#include "cluster.cuh"
#include "core/segment.h"
#include "gram.cuh"
#include "launch.h"
#include "mma.cuh"
#include "pipeline.h"
#include "select_peaks.cuh"

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
__device__ __forceinline__ void load_products(const float* tiles, const GramTiles& shape, int n, int first_row,
                                              int end_row, float* rows, int pitch, float* norms) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int j = threadIdx.x; j < n; j += kPeaksThreads) norms[j] = gram_at(tiles, shape, j, j);
  // Tile by tile, lanes along its rows: as it stands for pairs (i, j) with j in the same tile or after, transposed for
  // those with j before.
  const int first_tile = first_row / shape.size, end_tile = (end_row - 1) / shape.size + 1;
  for (int mine = first_tile; mine < end_tile; ++mine) {
    const int begin = max(first_row, mine * shape.size), end = min(end_row, (mine + 1) * shape.size);
    for (int other = 0; other < shape.across; ++other) {
      const int other_begin = other * shape.size, other_size = min(shape.size, n - other_begin);
      const float* const tile = tiles + shape.at(min(mine, other), max(mine, other)) * shape.size * shape.size;
      float* const target = rows + other_begin;
      if (other >= mine) {
        for (int i = begin + warp; i < end; i += kPeaksWarps) {
          const float* const source = tile + (i - mine * shape.size) * shape.size;
          for (int j = lane; j < other_size; j += kWarp)
            copy_number<kShared>(target + (i - first_row) * pitch + j, source + j);
        }
      } else {
        for (int j = warp; j < other_size; j += kPeaksWarps) {
          const float* const source = tile + j * shape.size - mine * shape.size;
          for (int i = begin + lane; i < end; i += kWarp)
            copy_number<kShared>(target + (i - first_row) * pitch + j, source + i);
        }
      }
    }
  }
}

// rho, gamma and the centres of every anchor frame (or of every frame, for the ops knn_density and select_peaks), from
// the products of its tokens.
// Grid: clusters of layout.cluster blocks, a frame at a time. Memory: reads the N^2 / 2 products of each frame out of
// L2. Limit: latency; the phases follow one another, with a barrier of the cluster between them.
__global__ __launch_bounds__(kPeaksThreads, kPeaksBlocksPerMultiprocessor) void density_peaks_kernel(
    const __grid_constant__ Work work) {
  extern __shared__ float shared[];
  __shared__ Counts scratch[kPeaksWarps];
  __shared__ float farthest_of_warp[kPeaksWarps];
  const DensityPeaks& peaks = work.peaks;
  const FramePlan& plan = peaks.plan;
  const Layout& layout = work.layout;
  const int n = peaks.per_frame;
  const GramTiles shape(n);
  const int ranks = cluster_size(), rank = cluster_rank(), cluster = blockIdx.x / ranks;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int first_row = min(rank * layout.rows_per_rank, n), end_row = min(first_row + layout.rows_per_rank, n);

  const FrameState state{shared, shared + n, shared + 2 * n, reinterpret_cast<int*>(shared + 3 * n)};
  float* const rows =
      layout.rows_shared ? shared + 4 * n : work.rows + (static_cast<int64_t>(cluster) * n + first_row) * layout.pitch;

  wait_for_predecessor();
  const int frames = peaks.planned ? plan.totals->anchors : peaks.frames;
  for (int item = cluster; item < frames; item += gridDim.x / ranks) {
    const int frame = peaks.planned ? plan.anchors[item] : item;
    const int64_t first_token = static_cast<int64_t>(frame) * n;

    // A NaN density marks the tokens that take no part: it is denser than none.
    int my_candidates = 0;
    for (int t = threadIdx.x; t < n; t += kPeaksThreads) {
      const bool candidate = peaks.candidates(frame, t);
      state.density[t] = candidate ? 0.0f : NAN;
      my_candidates += candidate;
    }
    if (first_row < end_row) {
      const float* const tiles = peaks.gram + static_cast<int64_t>(item) * shape.floats();
      if (layout.rows_shared) {
        load_products<true>(tiles, shape, n, first_row, end_row, rows, layout.pitch, state.norms);
        commit_copies();
      } else {
        load_products<false>(tiles, shape, n, first_row, end_row, rows, layout.pitch, state.norms);
      }
    }
    Counts candidates;
    block_scan({my_candidates, 0, 0}, candidates, scratch);
    const int neighbors = min(peaks.num_neighbors, candidates.a);
    wait_copies(0);
    cluster_sync();  // every block is done with the keys of the last frame

    // Densities of this block's tokens, collected in the place of the keys until every block has read the marks.
    for (int i = first_row + warp; i < end_row; i += kPeaksWarps) {
      const bool candidate = state.takes_part(i);
      float rho = 0.0f, farthest = 0.0f;
      if (candidate) {
        float* const row = rows + (i - first_row) * layout.pitch;
        Nearest nearest;
        farthest = distances_of(i, row, n, state, peaks.inverse_channels, nearest);
        rho = peaks.given_density != nullptr ? peaks.given_density[first_token + i]
                                             : density_of(row, n, neighbors, nearest);
        if (rho != rho) rho = -INFINITY;
      }
      if (lane < ranks) {
        at_rank(state.keys, lane)[i] = __float_as_int(candidate ? rho : NAN);
        at_rank(state.farthest, lane)[i] = farthest;
      }
      if (lane == 0 && peaks.density != nullptr) peaks.density[first_token + i] = rho;
    }
    cluster_sync();
    float farthest = 0.0f;
    for (int t = threadIdx.x; t < n; t += kPeaksThreads) {
      state.density[t] = __int_as_float(state.keys[t]);
      farthest = fmaxf(farthest, state.farthest[t]);
    }
    farthest = warp_max(farthest);
    if (lane == 0) farthest_of_warp[warp] = farthest;
    cluster_sync();  // also: the keys are free again in every block
    farthest = warp_max(farthest_of_warp[lane % kPeaksWarps]);

    for (int i = first_row + warp; i < end_row; i += kPeaksWarps) {
      const bool candidate = state.takes_part(i);
      const float gamma = candidate ? score_of(i, rows + (i - first_row) * layout.pitch, n, state, farthest) : 0.0f;
      if (lane < ranks) at_rank(state.keys, lane)[i] = candidate ? candidate_key(gamma) : INT32_MIN;
      if (lane == 0 && peaks.score != nullptr) peaks.score[first_token + i] = gamma;
    }
    cluster_sync();
    if (rank != 0) continue;

    // The first block chooses; the others may begin the next frame, which they can't disturb before its first barrier.
    Counts before{};
    FrameRecord record{};
    if (peaks.planned) record = plan.records[frame];
    const int wanted = peaks.planned ? record.num_context : peaks.num_peaks;
    for_each_choice(n, wanted, state, [&](int token, bool chosen) {
      const bool kept = chosen || (peaks.planned && token < n && !state.takes_part(token));
      Counts total;
      const Counts place = before + block_scan({chosen, kept, 0}, total, scratch);
      before = before + total;
      if (!chosen) return;
      if (peaks.planned) {
        peaks.centers.list[record.center_offset + place.a] = {
            static_cast<int>(first_token) + token, record.row_offset + place.b, item - record.first_anchor,
            static_cast<uint16_t>(place.a), static_cast<uint16_t>(wanted)};
        peaks.centers.inverse_norms[record.center_offset + place.a] = inverse_norm(state.norms[token]);
        peaks.centers.flags[first_token + token] = 1;
      } else if (peaks.peaks != nullptr) {
        peaks.peaks[static_cast<int64_t>(frame) * wanted + place.a] = token;
      }
    });
    if (!peaks.planned && peaks.peaks != nullptr) {
      for (int p = before.a + threadIdx.x; p < wanted; p += kPeaksThreads) {
        peaks.peaks[static_cast<int64_t>(frame) * wanted + p] = -1;
      }
    }
    __syncthreads();
  }
  cluster_sync();  // no block leaves while another may still write to it
}

cudaError_t choose_layout(int frames, int n, Layout& layout, int& clusters) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int available = limits.shared_bytes - 1024;  // the kernel's static arrays
  const int state_bytes = 4 * n * static_cast<int>(sizeof(float));
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

}  // namespace

cudaError_t density_peaks_workspace(int frames, int per_frame, size_t& bytes) {
  Layout layout;
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(frames, per_frame, layout, clusters));
  bytes = layout.rows_shared ? 0 : sizeof(float) * clusters * per_frame * layout.pitch;
  return cudaSuccess;
}

cudaError_t launch_density_peaks(const DensityPeaks& peaks, void* workspace, cudaStream_t stream) {
  Work work{peaks, {}, static_cast<float*>(workspace)};
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(peaks.frames, peaks.per_frame, work.layout, clusters));
  return launch<density_peaks_kernel>({dim3(clusters * work.layout.cluster), kPeaksThreads,
                                       static_cast<size_t>(work.layout.shared_bytes), work.layout.cluster, stream},
                                      work);
}

}  // namespace fastvid
