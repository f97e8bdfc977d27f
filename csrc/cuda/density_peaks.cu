#include "density_peaks.cuh"

#include <algorithm>

#include "gram.cuh"
#include "launch.h"
#include "mma.cuh"

namespace fastvid {
namespace {

constexpr int kPeaksBlocksPerMultiprocessor = 2;
constexpr int kPeaksLeastCluster = 2;  // blocks a frame, where there are clusters: words can be sent within one only
constexpr int kStaticBytes = 2048;     // of shared memory, at most

// How a frame of n tokens is laid out over a cluster.
struct Layout {
  int cluster;        // blocks a frame
  int rows_per_rank;  // distances from this many tokens stand with each block,
  bool rows_shared;   // in shared rather than in device memory
  int pitch;          // floats a row: an odd number of vectors, for the sake of the banks
  int shared_bytes;
};

struct Work {
  DensityPeaks peaks;
  Layout layout;
  float* rows;  // distances, (clusters, N, pitch), unless they are shared
};

// Starts to copy four numbers; to shared memory without waiting for them.
template <bool kShared>
__device__ __forceinline__ void copy_vector(float* target, const float* source) {
  if constexpr (kShared) {
    copy_async(shared_address(target), source, true);
  } else {
    *reinterpret_cast<float4*>(target) = *reinterpret_cast<const float4*>(source);
  }
}

// This block's rows of a frame's products, of which each pair stands there once, and the squared norms of all tokens.
template <bool kShared>
__device__ __forceinline__ void load_products(const float* products, const GramShape& shape, int n, const OwnRows& rows,
                                              float* norms) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = rows.first + warp; i < rows.end; i += kPeaksWarps) {
    const float* const source = products + shape.at(i);
    for (int j = shape.first_column(i) + lane * 4; j < n; j += kWarp * 4) {
      copy_vector<kShared>(rows.at(i) + j, source + j);
    }
  }
  commit_copies();
  for (int j = threadIdx.x; j < n; j += kPeaksThreads) norms[j] = products[shape.at(j) + j];
  // Pairs (i, j) of which row j has the product: transposed, eight j and four vectors along i at a time.
  const int end_column = rows.first < rows.end ? shape.first_column(rows.end - 1) : 0;
  for (int j = warp * 8 + lane % 8; j < end_column; j += kPeaksWarps * 8) {
    const float* const source = products + shape.at(j);
#pragma unroll 4
    for (int i = max(rows.first, shape.first_column(j) + shape.kBand) + lane / 8 * 4; i < rows.end; i += 16) {
      const float4 vector = *reinterpret_cast<const float4*>(source + i);
      float* const target = rows.at(i) + j;
      target[0] = vector.x;
      if (i + 1 < rows.end) target[rows.pitch] = vector.y;
      if (i + 2 < rows.end) target[rows.pitch * 2] = vector.z;
      if (i + 3 < rows.end) target[rows.pitch * 3] = vector.w;
    }
  }
}

// rho, gamma and the centres of every anchor frame (or of every frame, for the ops knn_density and select_peaks), from
// the products of its tokens that gram has left in device memory.
// Grid: clusters of layout.cluster blocks, a frame at a time. Memory: reads the N^2 / 2 products of each frame out of
// L2. Limit: latency; the phases follow one another, and the blocks of a cluster wait for each other's results.
template <bool kRowsShared>
__global__ __launch_bounds__(kPeaksThreads, kPeaksBlocksPerMultiprocessor) void density_peaks_kernel(
    const __grid_constant__ Work work) {
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Counts scratch[kPeaksWarps];
  __shared__ Exchange exchange;
  const DensityPeaks& peaks = work.peaks;
  const Layout& layout = work.layout;
  const int n = peaks.per_frame;
  const GramShape shape(n);
  const int ranks = cluster_size(), rank = cluster_rank(), cluster = blockIdx.x / ranks;
  const FrameState state(shared, n);
  OwnRows rows;
  rows.first = min(rank * layout.rows_per_rank, n);
  rows.end = min(rows.first + layout.rows_per_rank, n);
  rows.pitch = layout.pitch;
  rows.products = kRowsShared ? reinterpret_cast<float*>(shared + FrameState::bytes(n))
                              : work.rows + (static_cast<int64_t>(cluster) * n + rows.first) * layout.pitch;

  if (threadIdx.x == 0) {
    exchange.densities[0].init();
    exchange.densities[1].init();
    exchange.keys.init();
    Inbox::publish();
  }
  cluster_sync();  // all blocks have started, so that others may write to them
  // The plan and the candidates are older than the kernel before this one, unless that made the plan.
  if (peaks.products.of_all) wait_for_predecessor();
  const int frames = peaks.planned ? peaks.plan.totals->anchors : peaks.frames;
  const auto takes_part = [&](int frame, int t) { return t < n && peaks.candidates(frame, t); };
  int item = cluster, frame = 0;
  bool first_takes_part = false;  // whether the thread's first token does
  const auto look_up = [&] {
    if (item >= frames) return;
    frame = peaks.planned ? peaks.plan.anchors[item] : item;
    first_takes_part = takes_part(frame, threadIdx.x);
  };
  look_up();
  wait_for_predecessor();
  for (int turn = 0; item < frames; ++turn) {
    if (rows.first < rows.end) {
      const float* const products = peaks.products.rows + peaks.products.place(frame, item) * shape.floats();
      load_products<kRowsShared>(products, shape, n, rows, state.norms);
    }
    const int num_candidates = mark_candidates(n, state, first_takes_part, [&](int t) { return takes_part(frame, t); });
    wait_copies<0>();
    __syncthreads();
    find_peaks(peaks, item, frame, turn, num_candidates, rows, state, exchange, scratch);
    __syncthreads();  // the next frame's products come where this one's are
    item += gridDim.x / ranks;
    look_up();
  }
}

// For as many anchor frames as are to be expected.
cudaError_t choose_layout(int frames, int n, int expected, Layout& layout, int& clusters) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int available = limits.shared_bytes - kStaticBytes;
  const int state_bytes = FrameState::bytes(n);
  if (state_bytes > available) return cudaErrorInvalidConfiguration;
  layout.pitch = (ceil_div(n, 4) | 1) * 4;
  const auto lay_out = [&](int cluster) {
    layout.cluster = cluster;
    layout.rows_per_rank = ceil_div(ceil_div(n, cluster), 4) * 4;
    return static_cast<int64_t>(layout.rows_per_rank) * layout.pitch * static_cast<int64_t>(sizeof(float));
  };
  int64_t rows_bytes = lay_out(limits.clusters ? kPeaksLeastCluster : 1);
  if (limits.clusters) {
    // As many blocks as it takes for two to fit on a multiprocessor; more where that is quicker.
    const int half = limits.shared_bytes / kPeaksBlocksPerMultiprocessor - kStaticBytes;
    while (layout.cluster < kMaxClusterSize && state_bytes + rows_bytes > half) {
      rows_bytes = lay_out(layout.cluster + 1);
    }
    const UnitCost cost{std::max(n, kMaxClusterSize), 0.36 * n, 1.67};
    rows_bytes = lay_out(best_sharing(limits, expected, kPeaksBlocksPerMultiprocessor, cost, layout.cluster).cluster);
  }
  layout.rows_shared = state_bytes + rows_bytes <= available;
  layout.shared_bytes = state_bytes + (layout.rows_shared ? static_cast<int>(rows_bytes) : 0);
  // Where there are few, no two share a multiprocessor.
  if (expected * layout.cluster <= limits.multiprocessors) {
    layout.shared_bytes = std::max(layout.shared_bytes, limits.shared_bytes / 2);
  }
  const int blocks = limits.multiprocessors * kPeaksBlocksPerMultiprocessor;
  clusters = std::max(1, std::min(frames, blocks / layout.cluster));
  return cudaSuccess;
}

}  // namespace

int64_t gram_floats(int per_frame) { return GramShape(per_frame).floats(); }

cudaError_t density_peaks_floats(int frames, int per_frame, int expected, int64_t& floats) {
  Layout layout;
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(frames, per_frame, expected, layout, clusters));
  floats = layout.rows_shared ? 0 : static_cast<int64_t>(clusters) * per_frame * layout.pitch;
  return cudaSuccess;
}

cudaError_t launch_density_peaks(const DensityPeaks& peaks, float* workspace, cudaStream_t stream) {
  const int expected = peaks.planned ? peaks.plan.estimate.anchors : peaks.frames;
  Work work{peaks, {}, workspace};
  int clusters;
  FASTVID_RETURN_IF_FAILED(choose_layout(peaks.frames, peaks.per_frame, expected, work.layout, clusters));
  const Launch shape{dim3(clusters * work.layout.cluster), kPeaksThreads, static_cast<size_t>(work.layout.shared_bytes),
                     work.layout.cluster, stream};
  return work.layout.rows_shared ? launch<density_peaks_kernel<true>>(shape, work)
                                 : launch<density_peaks_kernel<false>>(shape, work);
}

}  // namespace fastvid
