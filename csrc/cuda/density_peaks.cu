#include <algorithm>

#include "core/segment.h"
#include "launch.h"
#include "pipeline.h"
#include "select_peaks.cuh"

namespace fastvid {
namespace {

constexpr int kMaxStages = 7;

// How a frame of n tokens is laid out over a cluster; the same on host and device.
struct Layout {
  int cluster;        // blocks a frame
  int stages;         // tiles in flight
  int tile_bytes;
  int rows_per_rank;  // rows of the Gram matrix in each block's shared memory, 0: in device memory
  int pitch;          // floats
  int tiles_bytes;    // tiles, then partial squares
  int shared_bytes;
};

template <typename T>
struct Kernel {
  DensityPeaks<T> work;
  Layout layout;
  float* rows;   // Gram matrices, (clusters, N, pitch); null where they fit in shared memory
};

// rho, gamma and the centres of every anchor frame (or of every frame, for the ops knn_density and select_peaks).
// Grid: clusters of layout.cluster blocks, a frame at a time. Memory: reads each frame once (N * D), out of L2 in
// prune; the N^2 products stay in the cluster's shared memory up to N of about 400. Limit: the tensor cores and shared
// memory while it multiplies (N^2 * D), and latency in the phases after that.
template <typename T>
__global__ __launch_bounds__(kGramThreads, 1) void density_peaks_kernel(const __grid_constant__ Kernel<T> kernel) {
  extern __shared__ __align__(128) unsigned char shared[];
  const DensityPeaks<T>& work = kernel.work;
  const FramePlan& plan = work.plan;
  const Layout& layout = kernel.layout;
  const int n = work.tokens.per_frame;
  const int ranks = cluster_size(), rank = cluster_rank(), cluster = blockIdx.x / ranks;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  GramRows rows;
  rows.pitch = layout.pitch;
  rows.rows_per_rank = (n + ranks - 1) / ranks;
  rows.reciprocal = (0xffffffffu / rows.rows_per_rank) + 1;
  rows.shared = layout.rows_per_rank > 0 ? reinterpret_cast<float*>(shared + layout.tiles_bytes) : nullptr;
  rows.global = kernel.rows + static_cast<int64_t>(cluster) * n * layout.pitch;
  float* const after_rows =
      reinterpret_cast<float*>(shared + layout.tiles_bytes) + layout.rows_per_rank * layout.pitch;
  const FrameState state{after_rows, after_rows + n, after_rows + 2 * n, reinterpret_cast<int*>(after_rows + 3 * n)};
  __shared__ Counts scratch[kGramWarps];
  __shared__ float farthest_of_warp[kGramWarps];

  const int first_row = rank * rows.rows_per_rank, end_row = min(first_row + rows.rows_per_rank, n);
  wait_for_predecessor();
  const int frames = work.planned ? plan.totals->anchors : work.tokens.frames;
  for (int item = cluster; item < frames; item += gridDim.x / ranks) {
    const int frame = work.planned ? plan.anchors[item] : item;
    const int64_t first_token = static_cast<int64_t>(frame) * n;

    // A NaN density marks the tokens that take no part: it is denser than none.
    int my_candidates = 0;
    for (int t = threadIdx.x; t < n; t += kGramThreads) {
      const bool candidate = work.candidates(frame, t);
      state.density[t] = candidate ? 0.0f : NAN;
      my_candidates += candidate;
    }
    Counts candidates;
    block_scan({my_candidates, 0, 0}, candidates, scratch);
    const int neighbors = min(work.num_neighbors, candidates.a);

    compute_gram(work.tokens, frame, rows, state.norms, shared, layout.stages, layout.tile_bytes);

    // Densities of this block's tokens, collected until every block has read the marks.
    for (int i = first_row + warp; i < end_row; i += kGramWarps) {
      const bool candidate = state.takes_part(i);
      float rho = 0.0f, farthest = 0.0f;
      if (candidate) {
        float* const row = rows.own_row(i, first_row);
        Nearest nearest;
        farthest = distances_of(i, row, n, state, work.inverse_channels, nearest);
        rho = work.given_density != nullptr ? work.given_density[first_token + i]
                                            : density_of(row, n, neighbors, nearest);
        if (rho != rho) rho = -INFINITY;
      }
      if (lane < ranks) {
        at_rank(state.keys, lane)[i] = __float_as_int(candidate ? rho : NAN);
        at_rank(state.farthest, lane)[i] = farthest;
      }
      if (lane == 0 && work.density != nullptr) work.density[first_token + i] = rho;
    }
    cluster_sync();
    float farthest = 0.0f;
    for (int t = threadIdx.x; t < n; t += kGramThreads) {
      state.density[t] = __int_as_float(state.keys[t]);
      farthest = fmaxf(farthest, state.farthest[t]);
    }
    farthest = warp_max(farthest);
    if (lane == 0) farthest_of_warp[warp] = farthest;
    cluster_sync();  // also: keys are free again in every block
    farthest = warp_max(farthest_of_warp[lane % kGramWarps]);

    for (int i = first_row + warp; i < end_row; i += kGramWarps) {
      const bool candidate = state.takes_part(i);
      const float gamma = candidate ? score_of(i, rows.own_row(i, first_row), n, state, farthest) : 0.0f;
      if (lane < ranks) at_rank(state.keys, lane)[i] = candidate ? score_key(gamma) : INT32_MIN;
      if (lane == 0 && work.score != nullptr) work.score[first_token + i] = gamma;
    }
    cluster_sync();
    if (rank != 0) continue;

    // The first block chooses; the others may begin the next frame, which they can't disturb before its first barrier.
    Counts before{};
    FrameRecord record{};
    if (work.planned) record = plan.records[frame];
    const int wanted = work.planned ? record.num_context : work.num_peaks;
    for_each_choice(n, wanted, state, [&](int token, bool chosen) {
      const bool kept = chosen || (work.planned && token < n && !state.takes_part(token));
      Counts total;
      const Counts place = before + block_scan({chosen, kept, 0}, total, scratch);
      before = before + total;
      if (!chosen) return;
      if (work.planned) {
        work.centers.list[record.center_offset + place.a] = {static_cast<int>(first_token) + token,
                                                             record.row_offset + place.b,
                                                             item - record.first_anchor,
                                                             static_cast<uint16_t>(place.a),
                                                             static_cast<uint16_t>(wanted)};
        work.centers.inverse_norms[record.center_offset + place.a] = inverse_norm(state.norms[token]);
        work.centers.flags[first_token + token] = 1;
      } else if (work.peaks != nullptr) {
        work.peaks[static_cast<int64_t>(frame) * wanted + place.a] = token;
      }
    });
    if (!work.planned && work.peaks != nullptr) {
      for (int p = before.a + threadIdx.x; p < wanted; p += kGramThreads) {
        work.peaks[static_cast<int64_t>(frame) * wanted + p] = -1;
      }
    }
    __syncthreads();
  }
  cluster_sync();  // no block leaves while another may still write to it
}

cudaError_t choose_layout(int frames, int n, Layout& layout, int& clusters, DeviceLimits& limits) {
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int state_bytes = 4 * n * static_cast<int>(sizeof(float));
  const int available = limits.shared_bytes - 1024;  // the kernel's static arrays
  const int tile_rows = std::min(ceil_div(n, kGramBlock) * kGramBlock, kGramTileRows);
  const int across = tile_rows / kGramBlock;
  const int partial_bytes = across * (across + 1) / 2 * kGramBlock * kGramPitch * static_cast<int>(sizeof(float));
  layout.tile_bytes = tile_rows * kTileRowBytes;
  layout.pitch = ceil_div(n, 4) * 4;
  layout.cluster = limits.clusters && partial_bytes + state_bytes <= available ? kMaxClusterSize : 1;

  const int least_tiles = std::max(2 * layout.tile_bytes, layout.cluster > 1 ? partial_bytes : 0);
  if (least_tiles + state_bytes > available) return cudaErrorInvalidConfiguration;
  const int rows_per_rank = ceil_div(n, layout.cluster), rows_bytes = rows_per_rank * layout.pitch * 4;
  layout.rows_per_rank = least_tiles + state_bytes + rows_bytes <= available ? rows_per_rank : 0;
  const int other_bytes = state_bytes + (layout.rows_per_rank > 0 ? rows_bytes : 0);
  layout.stages = std::min(kMaxStages, (available - other_bytes) / layout.tile_bytes);
  layout.tiles_bytes = std::max(layout.stages * layout.tile_bytes, least_tiles);
  layout.shared_bytes = layout.tiles_bytes + other_bytes;
  clusters = std::max(1, std::min(frames, limits.multiprocessors / layout.cluster));
  return cudaSuccess;
}

}  // namespace

cudaError_t density_peaks_workspace(int frames, int per_frame, size_t& bytes) {
  Layout layout;
  DeviceLimits limits;
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(frames, per_frame, layout, clusters, limits));
  bytes = layout.rows_per_rank > 0 ? 0 : sizeof(float) * clusters * per_frame * layout.pitch;
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_density_peaks(const DensityPeaks<T>& work, void* workspace, cudaStream_t stream) {
  Kernel<T> kernel{};
  DeviceLimits limits;
  int clusters;
  FASTVID_RETURN_IF_FAILED(
      choose_layout(work.tokens.frames, work.tokens.per_frame, kernel.layout, clusters, limits));
  kernel.work = work;
  kernel.rows = static_cast<float*>(workspace);
  return launch<density_peaks_kernel<T>>({dim3(clusters * kernel.layout.cluster), kGramThreads,
                                          static_cast<size_t>(kernel.layout.shared_bytes), kernel.layout.cluster,
                                          stream},
                                         kernel);
}

template cudaError_t launch_density_peaks(const DensityPeaks<float>&, void*, cudaStream_t);
template cudaError_t launch_density_peaks(const DensityPeaks<__half>&, void*, cudaStream_t);
template cudaError_t launch_density_peaks(const DensityPeaks<__nv_bfloat16>&, void*, cudaStream_t);

}  // namespace fastvid
