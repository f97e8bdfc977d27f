#include <algorithm>

#include "assign.cuh"
#include "emit.cuh"
#include "launch.h"
#include "merge.cuh"
#include "pipeline.h"

namespace fastvid {
namespace {

constexpr int kPlanThreads = 256;
constexpr int kMergeBlocksPerMultiprocessor = 2;

// The centre of every token of a frame, per anchor frame of its segment; counts tokens per centre. For prune also the
// rows that are kept as they are.
// Grid: (cluster, parts of kAssignRows tokens at most and perhaps one more for the kept rows, frames); the blocks of a
// cluster share the channels. Memory: reads all tokens once per kAssignCenters centres of a segment, and the centres
// once per part of a frame, out of L2. Limit: L2 bandwidth for short segments, tensor cores for long ones.
template <typename T>
__global__ __launch_bounds__(kAssignThreads, 2) void assign_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FramePlan plan,
    const __grid_constant__ Centers centers, const __grid_constant__ Candidates candidates,
    const __grid_constant__ Assignments assignments, const __grid_constant__ Output<T> output, bool merge_centers,
    int pass, int first_frame, int parts) {
  extern __shared__ __align__(128) unsigned char shared[];
  static_assert(kAssignThreads == kEmitTokens);
  wait_for_predecessor();
  const int frame = first_frame + blockIdx.z, part = blockIdx.y;
  if (part == parts) {
    emit_frame(tokens, plan, centers, candidates, output, frame, cluster_rank(), cluster_size(), shared);
  } else {
    assign_part(tokens, plan, centers, candidates, assignments, merge_centers, pass, frame, part, parts, shared);
  }
}

// Merged rows of all centres.
// Grid: persistent; blocks draw tickets for item x channel tile. Memory: each tile of channels of a segment is read
// once per kMergeCenters centres, out of L2; the result is written once. Limit: L2 bandwidth.
template <typename T>
__global__ __launch_bounds__(kMergeThreads, kMergeBlocksPerMultiprocessor) void merge_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FramePlan plan,
    const __grid_constant__ Centers centers, const __grid_constant__ Assignments assignments,
    const __grid_constant__ Output<T> output, float merge_floor, int pass) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ int drawn;
  wait_for_predecessor();
  const int items = plan.totals->items;
  const int channel_tiles = (tokens.row_bytes() + kMergeRowBytes - 1) / kMergeRowBytes;
  // The first ticket is the block's own number, which saves the way to memory.
  for (int work = blockIdx.x; work < items * channel_tiles;) {
    int next = 0;
    if (threadIdx.x == 0) next = gridDim.x + atomicAdd(plan.tickets + pass, 1);
    const MergeItem item = plan.items[work / channel_tiles];
    if (item.pass == pass) {
      merge_item(tokens, centers, assignments, output, merge_floor, item, work % channel_tiles, shared);
    }
    if (threadIdx.x == 0) drawn = next;
    __syncthreads();
    work = drawn;
    __syncthreads();
  }
}

// The plan of the op scatter_merge. Grid: over the frames, and a warp a centre for its norm; reads the centres once.
template <typename T>
__global__ __launch_bounds__(kPlanThreads) void scatter_merge_plan_kernel(const __grid_constant__ Tokens<T> tokens,
                                                                          const int64_t* center_tokens,
                                                                          int centers_per_frame, const FramePlan plan,
                                                                          const Centers centers) {
  wait_for_predecessor();
  const int frames = tokens.frames, n = tokens.per_frame, lane = threadIdx.x % kWarp;
  const int items_per_frame = (centers_per_frame + kMergeCenters - 1) / kMergeCenters;
  const int stride = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
  for (int f = first; f < frames; f += stride) {
    const int first_center = f * centers_per_frame, end_center = first_center + centers_per_frame;
    plan.records[f] = {f, f + 1, f, f + 1, first_center, end_center, 0, centers_per_frame, 0, first_center, 0, 0};
    plan.anchors[f] = f;
    for (int i = 0; i < items_per_frame; ++i) {
      const int c = first_center + i * kMergeCenters;
      plan.items[f * items_per_frame + i] = {f, f + 1, c, min(c + kMergeCenters, end_center), 0, 1, 0, 0};
    }
  }
  for (int c = first / kWarp; c < frames * centers_per_frame; c += stride / kWarp) {
    const int frame = c / centers_per_frame;
    const int64_t token = center_tokens[c];
    const int row = token >= 0 && token < n ? frame * n + static_cast<int>(token) : -1;
    float squared = 0.0f;
    if (row >= 0) {
      for (int d = lane; d < tokens.channels; d += kWarp) {
        const float x = to_float(tokens.row(row)[d]);
        squared += x * x;
      }
    }
    squared = warp_sum(squared);
    if (lane == 0) {
      centers.list[c] = {row, c, 0, static_cast<uint16_t>(c - frame * centers_per_frame),
                         static_cast<uint16_t>(centers_per_frame)};
      centers.inverse_norms[c] = inverse_norm(squared);
      centers.counts[c] = 0;
      if (row >= 0) centers.flags[row] = 1;
    }
  }
  if (first == 0) {
    *plan.totals = {frames, frames * items_per_frame, 0, frames * centers_per_frame};
    plan.tickets[0] = 0;
  }
}

}  // namespace

template <typename T>
cudaError_t launch_assign(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                          const Candidates& candidates, const Assignments& assignments, const Output<T>& output,
                          bool merge_centers, int pass, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int parts = ceil_div(tokens.per_frame, kAssignRows);
  const bool emits = output.indices != nullptr && pass == 0;
  // Enough blocks for two a multiprocessor. At least two share a part, which halves the time that the parts of the
  // longest segment, with the most centres, keep everybody waiting at the end.
  const int blocks = tokens.frames * parts, wanted = 2 * limits.multiprocessors;
  int cluster = limits.clusters ? 2 : 1;
  while (limits.clusters && cluster < kMaxClusterSize && blocks * cluster * 2 <= wanted + wanted / 8) cluster *= 2;
  constexpr int kMostFrames = 65535;  // along z
  for (int first = 0; first < tokens.frames; first += kMostFrames) {
    const dim3 grid(cluster, parts + emits, std::min(kMostFrames, tokens.frames - first));
    FASTVID_RETURN_IF_FAILED(
        launch<assign_kernel<T>>({grid, kAssignThreads, kAssignStages * kAssignTileBytes, cluster, stream}, tokens,
                                 plan, centers, candidates, assignments, output, merge_centers, pass, first, parts));
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t launch_scatter_merge_plan(const Tokens<T>& tokens, const int64_t* center_tokens, int centers_per_frame,
                                      const FramePlan& plan, const Centers& centers, cudaStream_t stream) {
  FASTVID_RETURN_IF_FAILED(
      cudaMemsetAsync(centers.flags, 0, static_cast<size_t>(tokens.frames) * tokens.per_frame, stream));
  const int blocks = std::min(1024, ceil_div(tokens.frames * centers_per_frame, kPlanThreads / kWarp));
  return launch<scatter_merge_plan_kernel<T>>({dim3(blocks), kPlanThreads, 0, 1, stream}, tokens, center_tokens,
                                              centers_per_frame, plan, centers);
}

template <typename T>
cudaError_t launch_merge(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                         const Assignments& assignments, const Output<T>& output, float merge_floor, int pass,
                         int max_items, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int64_t work =
      static_cast<int64_t>(max_items) * ceil_div(tokens.channels * static_cast<int>(sizeof(T)), kMergeRowBytes);
  const int blocks = static_cast<int>(std::min<int64_t>(work, limits.multiprocessors * kMergeBlocksPerMultiprocessor));
  return launch<merge_kernel<T>>({dim3(blocks), kMergeThreads, kMergeStages * kMergeTileBytes, 1, stream}, tokens, plan,
                                 centers, assignments, output, merge_floor, pass);
}

#define FASTVID_INSTANTIATE(T)                                                                              \
  template cudaError_t launch_scatter_merge_plan(const Tokens<T>&, const int64_t*, int, const FramePlan&,   \
                                                 const Centers&, cudaStream_t);                             \
  template cudaError_t launch_assign(const Tokens<T>&, const FramePlan&, const Centers&, const Candidates&, \
                                     const Assignments&, const Output<T>&, bool, int, cudaStream_t);        \
  template cudaError_t launch_merge(const Tokens<T>&, const FramePlan&, const Centers&, const Assignments&, \
                                    const Output<T>&, float, int, int, cudaStream_t);
FASTVID_INSTANTIATE(float)
FASTVID_INSTANTIATE(__half)
FASTVID_INSTANTIATE(__nv_bfloat16)

}  // namespace fastvid
