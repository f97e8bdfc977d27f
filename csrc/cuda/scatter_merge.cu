#include <algorithm>

#include "assign.cuh"
#include "core/segment.h"
#include "launch.h"
#include "merge.cuh"
#include "pipeline.h"

namespace fastvid {
namespace {

constexpr int kPlanThreads = 256;
constexpr int kMergeBlocksPerMultiprocessor = 2;
constexpr int kStaticSharedBytes = 12 * 1024;  // at most, of the kernels below

// The centre of every token of a frame, per anchor frame of its segment; counts tokens per centre. Writes the rows that
// prune keeps as they are on their way.
// Grid: (cluster, parts of a frame, frames); the blocks of a cluster share the channels. Memory: reads all tokens once
// per kCenters centres of a segment, and the centres once per part of a frame, out of L2. Limit: L2 bandwidth.
template <typename T, int kCenters>
__global__ __launch_bounds__(kAssignThreads, 1) void assign_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FramePlan plan,
    const __grid_constant__ Centers centers, const __grid_constant__ Candidates candidates,
    const __grid_constant__ Assignments assignments, const __grid_constant__ Output<T> output, bool merge_centers,
    int pass, int first_frame, const AssignTile tile) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  // Last frames first: of what was read before, they are in L2.
  const int frame = first_frame + gridDim.z - 1 - blockIdx.z;
  assign_part<T, kCenters>(tokens, plan, centers, candidates, assignments, output, merge_centers, pass, frame,
                           blockIdx.y, gridDim.y, tile, shared);
}

// Merged rows of all centres.
// Grid: persistent; blocks draw tickets for item x channel tile. Memory: each tile of channels of a segment is read
// once per kMergeCenters centres; the result is written once. Limit: memory bandwidth.
template <typename T, bool kWide>
__global__ __launch_bounds__(kMergeThreads, kMergeBlocksPerMultiprocessor) void merge_kernel(
    const __grid_constant__ Tokens<T> tokens, const __grid_constant__ FramePlan plan,
    const __grid_constant__ Centers centers, const __grid_constant__ Assignments assignments,
    const __grid_constant__ Output<T> output, float merge_floor, int pass) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  __shared__ int drawn;
  __shared__ MergeCenter item_centers[kMergeCenters];
  const int channel_tiles = ceil_div(tokens.row_bytes(), MergeTile<kWide>::kRowBytes);
  // The plan is older than the predecessor, which leaves the assignments: sum_item waits for those, once an item, at no
  // cost where they are there.
  const int units = plan.totals->items * channel_tiles;
  // The first ticket is the block's own number, which saves the way to memory.
  for (int unit = blockIdx.x; unit < units;) {
    int next = 0;  // is on its way while the unit is at work
    if (threadIdx.x == 0) next = gridDim.x + atomicAdd(plan.tickets + pass, 1);
    int num_centers = 0;  // 0: no item of this pass
    const int channel_tile = unit % channel_tiles;
    if (const MergeItem item = plan.items[unit / channel_tiles]; item.pass == pass) {
      num_centers = item.end_center - item.first_center;
      if (num_centers <= kWarpgroupRows) {
        sum_item<T, kWide, 1>(tokens, centers, assignments, merge_floor, item, channel_tile, item_centers, shared);
      } else {
        sum_item<T, kWide, 2>(tokens, centers, assignments, merge_floor, item, channel_tile, item_centers, shared);
      }
    }
    wait_for_predecessor();  // for others to start, where there was no item to wait for
    if (threadIdx.x == 0) drawn = next;
    write_item<T, kWide>(tokens, output, num_centers, channel_tile, item_centers, shared);
    unit = drawn;
    __syncthreads();  // all have read the ticket, and the sums, which lie where the next tiles will
  }
  wait_for_predecessor();
}

// The plan of the op scatter_merge. Grid: over the frames, and a warp a centre for its norm; reads the centres once.
template <typename T>
__global__ __launch_bounds__(kPlanThreads) void scatter_merge_plan_kernel(const __grid_constant__ Tokens<T> tokens,
                                                                          const int64_t* center_tokens,
                                                                          int centers_per_frame, const FramePlan plan,
                                                                          const Centers centers) {
  wait_for_predecessor();
  const int frames = tokens.frames, n = tokens.per_frame, lane = threadIdx.x % kWarp;
  const int items_per_frame = ceil_div(centers_per_frame, kMergeCenters);
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
    *plan.totals = {frames, frames * items_per_frame, 0};
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
  const int available = limits.shared_bytes - kStaticSharedBytes;
  int parts = ceil_div(tokens.per_frame, kAssignRows);
  const auto part_tile = [&](int centers) {
    const int rows = ceil_div(ceil_div(tokens.per_frame, parts), 16) * 16;
    return AssignTile{rows, std::min(centers, most_centers<T>(rows))};
  };
  const auto launch_tile = [&](auto most, const AssignTile& tile) {
    constexpr auto kKernel = assign_kernel<T, most()>;
    const size_t shared_bytes = assign_stages(most()) * tile.bytes();
    const UnitCost cost{ceil_div(tokens.row_bytes(), kTileRowBytes), 6.0, 1.0};
    int cluster;
    FASTVID_RETURN_IF_FAILED(
        choose_cluster<kKernel>(tokens.frames * parts, kAssignThreads, shared_bytes, cost, cluster));
    constexpr int kMostFrames = 65535;  // along z
    for (int first = 0; first < tokens.frames; first += kMostFrames) {
      const dim3 grid(cluster, parts, std::min(kMostFrames, tokens.frames - first));
      FASTVID_RETURN_IF_FAILED(launch<kKernel>({grid, kAssignThreads, shared_bytes, cluster, stream}, tokens, plan,
                                               centers, candidates, assignments, output, merge_centers, pass, first,
                                               tile));
    }
    return cudaSuccess;
  };
  AssignTile tile = part_tile(kFewCenters);
  const auto fits = [&](int most) { return assign_stages(most) * tile.bytes() <= available; };
  // Segments differ: where there is room for the mean one alone, many are not taken at once.
  const bool few = most_centers<T>(tile.rows) == kFewCenters ||
                   plan.estimate.centers / plan.estimate.segments <= kFewCenters * 3 / 4;
  if (few && fits(kFewCenters)) {
    return launch_tile(std::integral_constant<int, kFewCenters>{}, tile);
  }
  // All centres of most segments at once, where that leaves the frame whole.
  tile = part_tile(kManyCenters);
  if (!fits(kManyCenters)) tile = part_tile(kFewCenters);
  while (tile.rows > 16 && !fits(kManyCenters)) {
    ++parts;
    tile = part_tile(tile.centers);
  }
  return launch_tile(std::integral_constant<int, kManyCenters>{}, tile);
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
  const int blocks = limits.multiprocessors * kMergeBlocksPerMultiprocessor;
  const auto launch_tiles = [&](auto wide) {
    using Tile = MergeTile<wide()>;
    const int64_t units = static_cast<int64_t>(max_items) * ceil_div(tokens.row_bytes(), Tile::kRowBytes);
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(units, blocks)));
    return launch<merge_kernel<T, wide()>>({grid, kMergeThreads, kMergeStages * Tile::kBytes, 1, stream}, tokens, plan,
                                           centers, assignments, output, merge_floor, pass);
  };
  // Few units, of very different lengths, end sooner where there are more of them. Short ones are not worth it.
  const int segments = plan.estimate.segments;
  const bool few = segments * ceil_div(tokens.row_bytes(), MergeTile<true>::kRowBytes) <= 2 * blocks;
  const bool large = tokens.frames * tokens.per_frame / segments >= 9 * kMergeHalfRows;
  return few && large ? launch_tiles(std::false_type{}) : launch_tiles(std::true_type{});
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
