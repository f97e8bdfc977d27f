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
constexpr int kStaticSharedBytes = sizeof(AssignState<kManyCenters>);  // at most, of the kernels below

// The centre of every token, per anchor frame of its segment; counts tokens per centre. Writes the rows that prune
// keeps as they are on their way.
// Grid: clusters that take parts of frames in turn; the blocks of a cluster share the channels. Memory: reads all
// tokens once per kCenters centres of a segment, and the centres once per part of a frame, out of L2. With kLooksUp,
// frames that are their segment's only anchor frame are not read again: products with their centres are known. Limit:
// memory bandwidth.
template <typename T, int kCenters, bool kLooksUp>
__global__ __launch_bounds__(kAssignThreads, 1) void assign_kernel(const __grid_constant__ AssignWork<T> work) {
  extern __shared__ __align__(kTileAlignment) unsigned char stages[];
  __shared__ AssignState<kCenters> state;
  AssignBlock<T, kCenters, kLooksUp>(work, stages, state).run();
}

// Merged rows of all centres.
// Grid: persistent; clusters draw tickets for item x channel tile. Memory: each tile of channels of a segment is read
// once per kMergeCenters centres; the result is written once. Limit: memory bandwidth; for one long segment, latency.
template <typename T, int kStages>
__global__ __launch_bounds__(kMergeThreads, kMergeBlocksPerMultiprocessor) void merge_kernel(
    const __grid_constant__ MergeWork<T> work) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  __shared__ MergeState state;
  MergeBlock<T, kStages>(work, shared, state).run();
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
                          const Candidates& candidates, const Products& products, const Assignments& assignments,
                          const Output<T>& output, bool merge_centers, int pass, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int available = limits.shared_bytes - kStaticSharedBytes;
  int parts = ceil_div(tokens.per_frame, kAssignRows);
  const auto part_tile = [&](int centers) {
    const int rows = ceil_div(ceil_div(tokens.per_frame, parts), 16) * 16;
    return AssignTile{rows, std::min(centers, most_centers<T>(rows))};
  };
  const auto launch_tile = [&](auto most, auto looks_up, const AssignTile& tile) {
    const int units = tokens.frames * parts;
    const size_t shared_bytes = assign_stages(most()) * tile.bytes();
    const UnitCost cost{ceil_div(tokens.row_bytes(), kTileRowBytes), 6.0, 1.0};
    const int cluster = limits.clusters ? best_sharing(limits, units, 1, cost).cluster : 1;
    const int64_t clusters = std::min<int64_t>(units, resident_clusters(limits, 1, cluster));
    return launch<assign_kernel<T, most(), looks_up()>>(
        {dim3(clusters * cluster), kAssignThreads, shared_bytes, cluster, stream},
        AssignWork<T>{tokens, plan, centers, candidates, products, assignments, output, merge_centers, pass, parts,
                      tile});
  };
  AssignTile tile = part_tile(kFewCenters);
  const auto fits = [&](int most) { return assign_stages(most) * tile.bytes() <= available; };
  // Segments differ: where there is room for the mean one alone, many are not taken at once.
  const bool few = most_centers<T>(tile.rows) == kFewCenters ||
                   plan.estimate.centers / plan.estimate.segments <= kFewCenters * 3 / 4;
  if (few && fits(kFewCenters)) {
    constexpr std::integral_constant<int, kFewCenters> kFew;
    return products.rows != nullptr ? launch_tile(kFew, std::true_type{}, tile)
                                    : launch_tile(kFew, std::false_type{}, tile);
  }
  // All centres of most segments at once, where that leaves the frame whole.
  tile = part_tile(kManyCenters);
  if (!fits(kManyCenters)) tile = part_tile(kFewCenters);
  while (tile.rows > 16 && !fits(kManyCenters)) {
    ++parts;
    tile = part_tile(tile.centers);
  }
  return launch_tile(std::integral_constant<int, kManyCenters>{}, std::false_type{}, tile);
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
  const int channel_tiles = ceil_div(tokens.row_bytes(), 2 * kTileRowBytes), segments = plan.estimate.segments;
  const int64_t expected =
      int64_t{1} * std::max(segments, ceil_div(plan.estimate.centers, kMergeCenters)) * channel_tiles;
  // Where few units are to be expected, and their segments are long, several blocks share one; four tiles are worth a
  // block. Of the costs it is known that one block a unit is best at 32 frames and two where one segment is wanted;
  // they are not fitted beyond that.
  const int tiles = tokens.frames * tokens.per_frame / segments / kMergeRows;
  const UnitCost cost{std::max(1, tiles / 4), 2.0, 1.3};
  const int cluster = limits.clusters ? best_sharing(limits, expected, kMergeBlocksPerMultiprocessor, cost).cluster : 1;
  const int64_t units = static_cast<int64_t>(max_items) * channel_tiles;
  const int64_t clusters = std::min(units, resident_clusters(limits, kMergeBlocksPerMultiprocessor, cluster));
  const dim3 grid(static_cast<unsigned>(clusters * cluster));
  const MergeWork<T> work{tokens, plan, centers, assignments, output, merge_floor, pass};
  const auto launch_stages = [&](auto stages) {
    constexpr int kBytes = MergeLayout<stages()>::kBytes;
    return launch<merge_kernel<T, stages()>>({grid, kMergeThreads, kBytes, cluster, stream}, work);
  };
  constexpr int kManyBytes = MergeLayout<kManyMergeStages>::kBytes + sizeof(MergeState);
  const bool many = kManyBytes <= limits.shared_bytes / kMergeBlocksPerMultiprocessor;
  return many ? launch_stages(std::integral_constant<int, kManyMergeStages>{})
              : launch_stages(std::integral_constant<int, kFewMergeStages>{});
}

#define FASTVID_INSTANTIATE(T)                                                                                        \
  template cudaError_t launch_scatter_merge_plan(const Tokens<T>&, const int64_t*, int, const FramePlan&,             \
                                                 const Centers&, cudaStream_t);                                       \
  template cudaError_t launch_assign(const Tokens<T>&, const FramePlan&, const Centers&, const Candidates&,           \
                                     const Products&, const Assignments&, const Output<T>&, bool, int, cudaStream_t); \
  template cudaError_t launch_merge(const Tokens<T>&, const FramePlan&, const Centers&, const Assignments&,           \
                                    const Output<T>&, float, int, int, cudaStream_t);
FASTVID_INSTANTIATE(float)
FASTVID_INSTANTIATE(__half)
FASTVID_INSTANTIATE(__nv_bfloat16)

}  // namespace fastvid
