#include <algorithm>

#include "block.cuh"
#include "cluster.cuh"
#include "core/order.h"
#include "core/scatter_merge.h"
#include "core/segment.h"
#include "emit.cuh"
#include "launch.h"
#include "merge.cuh"
#include "mma.cuh"
#include "pipeline.h"

namespace fastvid {
namespace {

constexpr int kAssignThreads = 256;
constexpr int kAssignRows = 128;     // tokens of a frame that a cluster compares at a time
constexpr int kAssignCenters = 64;   // with this many centres at a time
constexpr int kAssignStages = 3;
constexpr int kAssignTileBytes = (kAssignRows + kAssignCenters) * kTileRowBytes;
constexpr int kScorePitch = kAssignCenters + 1;
constexpr int kAssignCopies = (kAssignRows + kAssignCenters) * 8 / kAssignThreads;
static_assert(kAssignRows * kScorePitch * sizeof(float) <= kAssignStages * kAssignTileBytes);

// The centre of every token of a frame, per anchor frame of its segment; counts tokens per centre.
// Grid: (cluster, parts of kAssignRows tokens at most, frames); the blocks of a cluster share the channels.
// Memory: reads all tokens once per kAssignCenters centres of a segment, and the centres once per part of a frame, out
// of L2. Limit: L2 bandwidth for short segments, tensor cores for long ones.
template <typename T>
__global__ __launch_bounds__(kAssignThreads, 2) void assign_kernel(const __grid_constant__ Tokens<T> tokens,
                                                                   const __grid_constant__ FramePlan plan,
                                                                   const Centers centers, const Candidates candidates,
                                                                   const Assignments assignments, bool merge_centers,
                                                                   int pass, int first_frame) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float center_norms[kAssignCenters];
  __shared__ int center_rows[kAssignCenters];
  float* const scores = reinterpret_cast<float*>(shared);  // (kAssignRows, kScorePitch), in the bytes of the tiles

  const int frame = first_frame + blockIdx.z, n = tokens.per_frame;
  const int begin = plan.segment_begin[frame], end = plan.segment_end[frame];
  const int first_anchor = plan.anchor_offset[begin] + pass * kMergeAnchors;
  const int end_anchor = min(plan.anchor_offset[end], first_anchor + kMergeAnchors);
  if (first_anchor >= end_anchor) return;  // for all blocks of the cluster alike
  const int first_center = plan.center_offset[plan.anchors[first_anchor]];
  const int end_center = plan.center_offset[plan.anchors[end_anchor - 1] + 1];

  const int ranks = cluster_size(), rank = cluster_rank();
  const int first_token = static_cast<int>(static_cast<int64_t>(n) * blockIdx.y / gridDim.y);
  const int num_tokens = static_cast<int>(static_cast<int64_t>(n) * (blockIdx.y + 1) / gridDim.y) - first_token;
  const int row_bytes = tokens.row_bytes(), depth = (row_bytes + kTileRowBytes - 1) / kTileRowBytes;
  const int first_slice = depth * rank / ranks, slices = depth * (rank + 1) / ranks - first_slice;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_row = warp % 4 * 32, warp_center = warp / 4 * 32;
  const uint32_t tile0 = shared_address(shared);

  // The rows of which this block takes the argmax, a thread a row, and what that thread knows so far.
  const int first_mine = num_tokens * rank / ranks, end_mine = num_tokens * (rank + 1) / ranks;
  const int my_row = first_mine + threadIdx.x;
  const bool has_row = my_row < end_mine;
  const int my_token = frame * n + first_token + my_row;
  const bool mergeable = has_row && candidates(frame, first_token + my_row);
  int anchor = first_anchor, anchor_end = 0, best = -1, best_key = 0;
  bool is_own_center = false;

  const int chunk = threadIdx.x % 8;
  const char* sources[kAssignCopies];
  const auto source_of = [&](int row) {
    return reinterpret_cast<const char*>(row < 0 ? nullptr : tokens.row(row)) + chunk * kVectorBytes;
  };
#pragma unroll
  for (int i = 0; i < kAssignRows * 8 / kAssignThreads; ++i) {
    const int r = threadIdx.x / 8 + i * (kAssignThreads / 8);
    sources[i] = r < num_tokens ? source_of(frame * n + first_token + r) : nullptr;
  }

  for (int tile_center = first_center; tile_center < end_center; tile_center += kAssignCenters) {
    const int num_centers = min(kAssignCenters, end_center - tile_center);
#pragma unroll
    for (int i = kAssignRows * 8 / kAssignThreads; i < kAssignCopies; ++i) {
      const int c = threadIdx.x / 8 + i * (kAssignThreads / 8) - kAssignRows;
      const int row = c < num_centers ? centers.rows[tile_center + c] : -1;
      sources[i] = row >= 0 ? source_of(row) : nullptr;
      if (chunk == 0) center_rows[c] = row;
    }
    const auto start_slice = [&](int slice) {
      if (slice < slices) {
        const int64_t byte = static_cast<int64_t>(first_slice + slice) * kTileRowBytes;
        const uint32_t tile = tile0 + slice % kAssignStages * kAssignTileBytes;
#pragma unroll
        for (int i = 0; i < kAssignCopies; ++i) {
          const bool present = sources[i] != nullptr && byte + chunk * kVectorBytes < row_bytes;
          copy_async(tile + tile_offset(threadIdx.x / 8 + i * (kAssignThreads / 8), chunk),
                     present ? sources[i] + byte : reinterpret_cast<const char*>(tokens.data), present);
        }
      }
      commit_copies();
    };

    float sums[2][4][4] = {};
    float squares[kAssignCenters * 8 / kAssignThreads] = {};
    const bool warp_works = warp_row < num_tokens && warp_center < num_centers;
    for (int slice = 0; slice < kAssignStages - 1; ++slice) start_slice(slice);
    for (int slice = 0; slice < slices; ++slice) {
      wait_copies(kAssignStages - 2);
      __syncthreads();
      start_slice(slice + kAssignStages - 1);
      const int tile_at = slice % kAssignStages * kAssignTileBytes;
      const uint32_t tile = tile0 + tile_at;
#pragma unroll
      for (int i = 0; i < kAssignCenters * 8 / kAssignThreads; ++i) {
        const int r = kAssignRows + threadIdx.x / 8 + i * (kAssignThreads / 8);
        const Vector<T> vector = *reinterpret_cast<const Vector<T>*>(shared + tile_at + tile_offset(r, chunk));
#pragma unroll
        for (int e = 0; e < Vector<T>::kSize; ++e) squares[i] += to_float(vector.at[e]) * to_float(vector.at[e]);
      }
      if (!warp_works) continue;
#pragma unroll
      for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
        uint32_t a[2][4];
        load_rows(a[0], tile, warp_row, step * 2);
        load_rows(a[1], tile, warp_row + 16, step * 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t b[4];
          load_columns(b, tile, kAssignRows + warp_center + half * 16, step * 2);
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply(sums[m][half * 2], a[m], b[0], b[1], T{});
            multiply(sums[m][half * 2 + 1], a[m], b[2], b[3], T{});
          }
        }
      }
    }
    wait_copies(0);
    __syncthreads();

#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float* const at = scores + (warp_row + m * 16 + lane / 4) * kScorePitch + warp_center + c * 8 + lane % 4 * 2;
        at[0] = sums[m][c][0];
        at[1] = sums[m][c][1];
        at[8 * kScorePitch] = sums[m][c][2];
        at[8 * kScorePitch + 1] = sums[m][c][3];
      }
    }
#pragma unroll
    for (int i = 0; i < kAssignCenters * 8 / kAssignThreads; ++i) {
      float square = squares[i];
#pragma unroll
      for (int step = 1; step < 8; step *= 2) square += __shfl_xor_sync(kFullWarp, square, step);
      if (chunk == 0) center_norms[threadIdx.x / 8 + i * (kAssignThreads / 8)] = square;
    }
    cluster_sync();

    // Cosines but for the token's own norm, of this block's rows, in place.
    for (int i = threadIdx.x; i < (end_mine - first_mine) * kAssignCenters; i += kAssignThreads) {
      const int c = i % kAssignCenters, at = (first_mine + i / kAssignCenters) * kScorePitch + c;
      float product = 0.0f, squared_norm = 0.0f;
      for (int r = 0; r < ranks; ++r) {
        product += at_rank(scores, r)[at];
        squared_norm += at_rank(center_norms, r)[c];
      }
      scores[at] = product / fmaxf(sqrtf(squared_norm), kNormFloor);
    }
    __syncthreads();
    if (has_row) {
      for (int c = 0; c < num_centers; ++c) {
        if (tile_center + c >= anchor_end) {  // the first centre of an anchor frame
          anchor_end = plan.center_offset[plan.anchors[anchor] + 1];
          best = -1;
          is_own_center = false;
        }
        if (center_rows[c] >= 0) {
          const int key = max(order_key(scores[my_row * kScorePitch + c]), INT32_MIN + 1);
          if (best < 0 || key > best_key) {
            best = tile_center + c;
            best_key = key;
          }
          is_own_center |= center_rows[c] == my_token;
        }
        if (tile_center + c + 1 == anchor_end) {  // the last
          const bool merges = mergeable && best >= 0 && (merge_centers || !is_own_center);
          const int local = best - plan.center_offset[plan.anchors[anchor]];
          assignments.table[(anchor - first_anchor) * assignments.pitch + my_token] = merges ? local : kNotMerged;
          if (merges) atomicAdd(centers.counts + best, 1ull);
          if (assignments.assignment != nullptr) assignments.assignment[my_token] = merges ? local : -1;
          ++anchor;
        }
      }
    }
    cluster_sync();  // peers have read this block's scores, and tiles may follow
  }
}

// The plan of the op scatter_merge: every frame is a segment with one anchor frame, itself, and given centres.
__global__ void scatter_merge_plan_kernel(const int64_t* center_tokens, int frames, int per_frame,
                                          int centers_per_frame, FramePlan plan, Centers centers) {
  const int items_per_frame = (centers_per_frame + kMergeCenters - 1) / kMergeCenters;
  const int stride = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
  for (int f = first; f <= frames; f += stride) {
    plan.center_offset[f] = f * centers_per_frame;
    plan.anchor_offset[f] = f;
    if (f == frames) {
      *plan.num_items = frames * items_per_frame;
      break;
    }
    plan.segment_begin[f] = f;
    plan.segment_end[f] = f + 1;
    plan.anchors[f] = f;
    for (int i = 0; i < items_per_frame; ++i) {
      const int c = f * centers_per_frame + i * kMergeCenters;
      plan.items[f * items_per_frame + i] = {f, f + 1, c, min(c + kMergeCenters, (f + 1) * centers_per_frame), 0};
    }
  }
  for (int c = first; c < frames * centers_per_frame; c += stride) {
    const int64_t token = center_tokens[c];
    const bool present = token >= 0 && token < per_frame;
    centers.rows[c] = present ? c / centers_per_frame * per_frame + static_cast<int>(token) : -1;
    centers.counts[c] = 0;
  }
}

constexpr int kMergeBlocksPerMultiprocessor = 4;

// Merged rows of all centres, and, for prune, the rows that are kept as they are.
// Grid: persistent; work is cut into (item or frame) x channel tile. Memory: each tile of channels of a segment is
// read once per kMergeCenters centres, out of L2; the result is written once. Limit: L2 bandwidth.
template <typename T>
__global__ __launch_bounds__(kMergeThreads, kMergeBlocksPerMultiprocessor) void merge_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FramePlan plan, const Centers centers,
    const Candidates candidates, const Assignments assignments, const Output<T> output, float merge_floor, int pass) {
  extern __shared__ __align__(128) unsigned char shared[];
  const int items = *plan.num_items;
  const int frames = output.indices != nullptr && pass == 0 ? tokens.frames : 0;
  const int channel_tiles = (tokens.row_bytes() + kMergeRowBytes - 1) / kMergeRowBytes;
  for (int work = blockIdx.x; work < (items + frames) * channel_tiles; work += gridDim.x) {
    const int i = work / channel_tiles, channel_tile = work - i * channel_tiles;
    if (i >= items) {
      emit_frame(tokens, plan, centers, candidates, output, i - items, channel_tile, shared);
    } else if (plan.items[i].pass == pass) {
      merge_item(tokens, plan, centers, assignments, output, merge_floor, plan.items[i], channel_tile, shared);
    }
  }
}

}  // namespace

template <typename T>
cudaError_t launch_assign(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                          const Candidates& candidates, const Assignments& assignments, bool merge_centers, int pass,
                          cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int parts = ceil_div(tokens.per_frame, kAssignRows);
  const int blocks = tokens.frames * parts, wanted = 2 * limits.multiprocessors;
  int cluster = 1;
  while (limits.clusters && cluster < 8 && blocks * cluster * 2 <= wanted + wanted / 8) cluster *= 2;
  for (int first = 0; first < tokens.frames; first += 65535) {
    const int frames = std::min(65535, tokens.frames - first);
    FASTVID_RETURN_IF_FAILED(launch(assign_kernel<T>, dim3(cluster, parts, frames), kAssignThreads,
                                    kAssignStages * kAssignTileBytes, cluster, stream, tokens, plan, centers,
                                    candidates, assignments, merge_centers, pass, first));
  }
  return cudaSuccess;
}

cudaError_t launch_scatter_merge_plan(const int64_t* center_tokens, int frames, int per_frame, int centers_per_frame,
                                      FramePlan plan, Centers centers, cudaStream_t stream) {
  const int blocks = std::min(1024, ceil_div(frames * std::max(centers_per_frame, 1) + 1, 256));
  return launch(scatter_merge_plan_kernel, dim3(blocks), 256, 0, 1, stream, center_tokens, frames, per_frame,
                centers_per_frame, plan, centers);
}

template <typename T>
cudaError_t launch_merge(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                         const Candidates& candidates, const Assignments& assignments, const Output<T>& output,
                         float merge_floor, int pass, int max_items, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int64_t work = (static_cast<int64_t>(max_items) + (output.indices != nullptr ? tokens.frames : 0)) *
                       ceil_div(tokens.channels * static_cast<int>(sizeof(T)), kMergeRowBytes);
  const int blocks = static_cast<int>(
      std::min<int64_t>(work, limits.multiprocessors * kMergeBlocksPerMultiprocessor));
  return launch(merge_kernel<T>, dim3(blocks), kMergeThreads, kMergeStages * kMergeTileBytes, 1, stream, tokens, plan,
                centers, candidates, assignments, output, merge_floor, pass);
}

#define FASTVID_INSTANTIATE(T)                                                                                       \
  template cudaError_t launch_assign(const Tokens<T>&, const FramePlan&, const Centers&, const Candidates&,          \
                                     const Assignments&, bool, int, cudaStream_t);                                   \
  template cudaError_t launch_merge(const Tokens<T>&, const FramePlan&, const Centers&, const Candidates&,           \
                                    const Assignments&, const Output<T>&, float, int, int, cudaStream_t);
FASTVID_INSTANTIATE(float)
FASTVID_INSTANTIATE(__half)
FASTVID_INSTANTIATE(__nv_bfloat16)

}  // namespace fastvid
