#include "core/plan.h"

#include <algorithm>

#include "block.cuh"
#include "cluster.cuh"
#include "launch.h"
#include "saliency.cuh"
#include "segment.cuh"

namespace fastvid {
namespace {

constexpr int kPlanThreads = 512;
constexpr int kSharedPlanFrames = 2560;  // more frames than this are planned in device memory

// What the planning block knows of the frames, (T,) each unless said otherwise.
struct PlanScratch {
  int* cuts;         // whether a segment ends with the frame; then the segment that it belongs to
  int* starts;       // (T+1,) first frame of each segment
  int* runs_before;  // (T+1,) runs of similar frames that end before the frame (thinning); then items of each segment
  int* salient;
  int* rows_before;     // kept rows of the frames before
  int* centers_before;  // (T+1,)
  int* anchors_before;  // (T+1,)
  int* anchors;         // as in FramePlan
  float* similarity;

  __device__ __forceinline__ PlanScratch(int* memory, int frames)
      : cuts(memory),
        starts(cuts + frames),
        runs_before(starts + frames + 1),
        salient(runs_before + frames + 1),
        rows_before(salient + frames),
        centers_before(rows_before + frames),
        anchors_before(centers_before + frames + 1),
        anchors(anchors_before + frames + 1),
        similarity(reinterpret_cast<float*>(anchors + frames)) {}
};

// Cuts a segment's centres into items of merging: calls visit(item) for each.
template <typename Visit>
__device__ __forceinline__ void for_each_item(const PlanScratch& scratch, int begin, int end, Visit&& visit) {
  const int first_anchor = scratch.anchors_before[begin], end_anchor = scratch.anchors_before[end];
  for (int anchor = first_anchor, center = scratch.centers_before[begin]; anchor < end_anchor;) {
    // Neither more anchor frames than an item takes nor a change of pass.
    const int pass_end = first_anchor + ((anchor - first_anchor) / kMergeAnchors + 1) * kMergeAnchors;
    const int last = min(min(anchor + kMergeItemAnchors, pass_end), end_anchor) - 1;
    const int end_center = min(center + kMergeCenters, scratch.centers_before[scratch.anchors[last] + 1]);
    int next = anchor;
    while (next < end_anchor && scratch.centers_before[scratch.anchors[next] + 1] <= end_center) ++next;
    const bool whole = next > anchor && scratch.centers_before[scratch.anchors[next - 1] + 1] == end_center;
    visit(MergeItem{begin, end, center, end_center, anchor - first_anchor, (whole ? next : next + 1) - anchor,
                    (anchor - first_anchor) / kMergeAnchors, 0});
    anchor = next;
    center = end_center;
  }
}

// Fills the plan from scratch.cuts. Prefix sums over the frames give the places of the segments (and of the runs that
// thinning leaves), and the offsets of rows and centres.
__device__ __forceinline__ void make_plan(const PlanScratch& scratch, int frames, const BudgetParams& params,
                                          const FramePlan& plan) {
  __shared__ Counts of_warps[kPlanThreads / kWarp];
  const auto ends_run = [&](int f) {
    return params.thin && scratch.similarity[f] < params.thin_threshold;  // besides where a segment ends
  };
  Counts before{};
  for (int base = 0; base < frames; base += blockDim.x) {
    const int f = base + threadIdx.x;
    const bool cut = f < frames && scratch.cuts[f];
    Counts total;
    const Counts place = before + block_scan({cut, cut || (f < frames && ends_run(f)), 0}, total, of_warps);
    if (f < frames) {
      scratch.cuts[f] = place.a;
      scratch.runs_before[f] = place.b;
      if (cut) scratch.starts[place.a + 1] = f + 1;
    }
    before = before + total;
  }
  if (threadIdx.x == 0) {
    scratch.starts[0] = 0;
    scratch.runs_before[frames] = before.b;
  }
  __syncthreads();

  before = Counts{};
  for (int base = 0; base < frames; base += blockDim.x) {
    const int f = base + threadIdx.x;
    FrameBudget budget{};
    if (f < frames) {
      const int begin = scratch.starts[scratch.cuts[f]], end = scratch.starts[scratch.cuts[f] + 1];
      if (params.thin) {
        const int first_run = scratch.runs_before[begin];
        const SegmentPlan segment(params, end - begin, scratch.runs_before[end] - first_run);
        budget =
            f + 1 == end || ends_run(f) ? segment.share(scratch.runs_before[f] - first_run) : segment.thinned_share();
      } else {
        budget = SegmentPlan(params, end - begin, end - begin).share(f - begin);
      }
    }
    Counts total;
    const Counts place =
        before + block_scan({budget.salient + budget.context, budget.context, budget.context > 0}, total, of_warps);
    if (f < frames) {
      scratch.salient[f] = budget.salient;
      scratch.rows_before[f] = place.a;
      scratch.centers_before[f] = place.b;
      scratch.anchors_before[f] = place.c;
      if (budget.context > 0) plan.anchors[place.c] = scratch.anchors[place.c] = f;
    }
    before = before + total;
  }
  const Counts sums = before;
  if (threadIdx.x == 0) {
    scratch.centers_before[frames] = sums.b;
    scratch.anchors_before[frames] = sums.c;
  }
  __syncthreads();

  // Items of the longest segments come first: what is merged last should not be what takes longest.
  int* const items_of = scratch.runs_before;  // by segment
  for (int f = threadIdx.x; f < frames; f += blockDim.x) {
    const int begin = scratch.starts[scratch.cuts[f]], end = scratch.starts[scratch.cuts[f] + 1];
    FrameRecord record{};
    record.segment_begin = begin;
    record.segment_end = end;
    record.first_anchor = scratch.anchors_before[begin];
    record.end_anchor = scratch.anchors_before[end];
    record.first_center = scratch.centers_before[begin];
    record.end_center = scratch.centers_before[end];
    record.num_salient = scratch.salient[f];
    record.num_context = scratch.centers_before[f + 1] - scratch.centers_before[f];
    record.row_offset = scratch.rows_before[f];
    record.center_offset = scratch.centers_before[f];
    record.own_anchor = record.num_context > 0 ? scratch.anchors_before[f] - record.first_anchor : -1;
    plan.records[f] = record;
    if (f == begin) {
      int count = 0;
      for_each_item(scratch, begin, end, [&](const MergeItem&) { ++count; });
      items_of[scratch.cuts[f]] = count;
    }
  }
  __syncthreads();
  const int segments = scratch.cuts[frames - 1] + 1;
  for (int s = threadIdx.x; s < segments; s += blockDim.x) {
    const int begin = scratch.starts[s], end = scratch.starts[s + 1];
    int items = 0, place = 0;
    for (int other = 0; other < segments; ++other) {
      const int length = scratch.starts[other + 1] - scratch.starts[other], count = items_of[other];
      items += count;
      if (ranks_before(length, other, end - begin, s)) place += count;
    }
    for_each_item(scratch, begin, end, [&](const MergeItem& item) { plan.items[place++] = item; });
    if (s == 0) *plan.totals = {sums.c, items, sums.a};
  }
}

// num_salient and num_context of frames whose segments are given. Grid: one block; a few bytes a frame.
__global__ __launch_bounds__(kPlanThreads) void plan_kernel(const int* segment_ids, const float* similarity, int frames,
                                                            const BudgetParams params, const FramePlan plan,
                                                            int* num_salient, int* num_context) {
  extern __shared__ __align__(16) int shared[];
  const PlanScratch scratch(frames > kSharedPlanFrames ? plan.scratch : shared, frames);
  wait_for_predecessor();
  for (int f = threadIdx.x; f < frames; f += blockDim.x) {
    scratch.cuts[f] = f + 1 == frames || segment_ids[f] != segment_ids[f + 1];
    scratch.similarity[f] = similarity[f];
  }
  __syncthreads();
  make_plan(scratch, frames, params, plan);
  __syncthreads();
  for (int f = threadIdx.x; f < frames; f += blockDim.x) {
    num_salient[f] = scratch.salient[f];
    num_context[f] = scratch.centers_before[f + 1] - scratch.centers_before[f];
  }
}

// Segments and plan at once, and meanwhile the ranks of the saliency. Grid: one block that plans, and one a frame; a
// few bytes a frame, latency is its limit.
__global__ __launch_bounds__(kPlanThreads) void segment_and_plan_kernel(
    const float* similarity, int frames, const SegmentParams segments, const BudgetParams params, const FramePlan plan,
    const __grid_constant__ Ranking ranking, const Centers centers, int max_centers, int passes) {
  extern __shared__ __align__(16) int shared[];
  wait_for_predecessor();
  if (blockIdx.x > 0) {
    const int frame = blockIdx.x - 1;
    rank_tokens(ranking, frame, shared);
    const int64_t all = max_centers;
    const int end = all * (frame + 1) / frames;
    for (int c = all * frame / frames + threadIdx.x; c < end; c += blockDim.x) centers.counts[c] = 0;
    return;
  }
  const PlanScratch scratch(frames > kSharedPlanFrames ? plan.scratch : shared, frames);
  for (int p = threadIdx.x; p < passes; p += blockDim.x) plan.tickets[p] = 0;
  for_each_cut(similarity, frames, segments.videos, segments.threshold, segments.min_segments, scratch.salient,
               [&](int f, bool cut) {
                 scratch.cuts[f] = cut;
                 scratch.similarity[f] = similarity[f];
               });
  make_plan(scratch, frames, params, plan);
}

// Few frames need few warps, and then the prefix sums need few steps.
Launch plan_launch(int frames, cudaStream_t stream) {
  const int threads = std::min(kPlanThreads, ceil_div(frames, 128) * 128);
  const size_t shared_bytes = frames > kSharedPlanFrames ? 0 : plan_scratch(frames) * sizeof(int);
  return {dim3(1), threads, shared_bytes, 1, stream};
}

}  // namespace

cudaError_t launch_plan(const int* segment_ids, const float* similarity, int frames, const BudgetParams& params,
                        const FramePlan& plan, int* num_salient, int* num_context, cudaStream_t stream) {
  return launch<plan_kernel>(plan_launch(frames, stream), segment_ids, similarity, frames, params, plan, num_salient,
                             num_context);
}

cudaError_t launch_segment_and_plan(const float* similarity, int frames, const SegmentParams& segments,
                                    const BudgetParams& params, const FramePlan& plan, const Ranking& ranking,
                                    const Centers& centers, int max_centers, int passes, cudaStream_t stream) {
  Launch shape = plan_launch(frames, stream);
  shape.grid = dim3(1 + frames);
  shape.shared_bytes = std::max(shape.shared_bytes, rank_bytes(ranking.saliency.columns));
  return launch<segment_and_plan_kernel>(shape, similarity, frames, segments, params, plan, ranking, centers,
                                         max_centers, passes);
}

}  // namespace fastvid
