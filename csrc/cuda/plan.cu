#include "core/plan.h"

#include "block.cuh"
#include "launch.h"
#include "segment.cuh"

namespace fastvid {
namespace {

constexpr int kPlanThreads = 512;

// Fills the plan from the cuts. Three prefix sums over the frames or the segments: places of the segments (and of the
// runs that thinning leaves), offsets of rows and centres, items of merging.
__device__ __forceinline__ void make_plan(const uint8_t* cuts, const float* similarity, int frames,
                                          const BudgetParams& params, const FramePlan& plan) {
  __shared__ Counts scratch[kPlanThreads / kWarp];
  const auto ends_run = [&](int f) { return cuts[f] || (params.thin && similarity[f] < params.thin_threshold); };

  // Arrays of the plan that are filled last hold what only this function needs until then.
  int* const starts = plan.anchors;          // (segments,) first frame of each segment
  int* const segment_of = plan.segment_end;  // (T,)
  int* const runs_before = plan.row_offset;  // (T,) runs that end before the frame
  Counts before{};
  for (int base = 0; base < frames; base += kPlanThreads) {
    const int f = base + threadIdx.x;
    Counts flags{}, total;
    if (f < frames) flags = {cuts[f], ends_run(f), 0};
    const Counts place = before + block_scan(flags, total, scratch);
    if (f < frames) {
      segment_of[f] = place.a;
      runs_before[f] = place.b;
      if (f == 0 || cuts[f - 1]) starts[place.a] = f;
    }
    before = before + total;
  }
  const int segments = before.a, runs = before.b;
  __syncthreads();

  for (int f = threadIdx.x; f < frames; f += kPlanThreads) {
    const int s = segment_of[f];
    const int begin = starts[s], end = s + 1 < segments ? starts[s + 1] : frames;
    FrameBudget budget;
    if (params.thin) {
      const int first_run = runs_before[begin], end_run = end < frames ? runs_before[end] : runs;
      const SegmentPlan segment(params, end - begin, end_run - first_run);
      budget = ends_run(f) ? segment.share(runs_before[f] - first_run) : segment.thinned_share();
    } else {
      budget = SegmentPlan(params, end - begin, end - begin).share(f - begin);
    }
    plan.segment_begin[f] = begin;
    plan.num_salient[f] = budget.salient;
    plan.num_context[f] = budget.context;
  }
  __syncthreads();
  for (int f = threadIdx.x; f < frames; f += kPlanThreads) {
    const int s = segment_of[f];
    plan.segment_end[f] = s + 1 < segments ? starts[s + 1] : frames;  // each thread reads and writes its own frames
  }
  __syncthreads();

  before = Counts{};
  for (int base = 0; base < frames; base += kPlanThreads) {
    const int f = base + threadIdx.x;
    Counts counts{}, total;
    if (f < frames) counts = {plan.num_salient[f] + plan.num_context[f], plan.num_context[f], plan.num_context[f] > 0};
    const Counts place = before + block_scan(counts, total, scratch);
    if (f < frames) {
      plan.row_offset[f] = place.a;
      plan.center_offset[f] = place.b;
      plan.anchor_offset[f] = place.c;
      if (counts.c) plan.anchors[place.c] = f;
    }
    before = before + total;
  }
  if (threadIdx.x == 0) {
    plan.row_offset[frames] = before.a;
    plan.center_offset[frames] = before.b;
    plan.anchor_offset[frames] = before.c;
  }
  __syncthreads();

  // Items: a segment's anchors go in groups of kMergeAnchors, the centres of a group in items of kMergeCenters.
  before = Counts{};
  for (int base = 0; base < frames; base += kPlanThreads) {
    const int f = base + threadIdx.x;
    const bool first = f < frames && plan.segment_begin[f] == f;
    const int end = first ? plan.segment_end[f] : 0;
    const auto for_each_item = [&](auto&& visit) {
      const int last_anchor = plan.anchor_offset[end];
      int pass = 0;
      for (int a = plan.anchor_offset[f]; a < last_anchor; a += kMergeAnchors, ++pass) {
        const int group_end = min(a + kMergeAnchors, last_anchor);
        const int end_center = plan.center_offset[plan.anchors[group_end - 1] + 1];
        for (int c = plan.center_offset[plan.anchors[a]]; c < end_center; c += kMergeCenters) {
          visit(MergeItem{f, end, c, min(c + kMergeCenters, end_center), pass});
        }
      }
    };
    int count = 0;
    if (first) for_each_item([&](const MergeItem&) { ++count; });
    Counts total;
    int place = before.a + block_scan({count, 0, 0}, total, scratch).a;
    if (first) for_each_item([&](const MergeItem& item) { plan.items[place++] = item; });
    before = before + total;
  }
  if (threadIdx.x == 0) *plan.num_items = before.a;
}

// num_salient and num_context of frames whose segments are given. Grid: one block; a few bytes a frame.
__global__ __launch_bounds__(kPlanThreads) void plan_kernel(const int* segment_ids, const float* similarity, int frames,
                                                            BudgetParams params, FramePlan plan, uint8_t* cuts) {
  for (int f = threadIdx.x; f < frames; f += kPlanThreads) {
    cuts[f] = f + 1 == frames || segment_ids[f] != segment_ids[f + 1];
  }
  __syncthreads();
  make_plan(cuts, similarity, frames, params, plan);
}

// Segments and plan at once, for prune. Grid: one block; a few bytes a frame, latency is its limit.
__global__ __launch_bounds__(kPlanThreads) void segment_and_plan_kernel(const float* similarity, int frames,
                                                                        Videos videos, float threshold,
                                                                        int min_segments, BudgetParams params,
                                                                        FramePlan plan, uint8_t* cuts, Centers centers,
                                                                        int max_centers) {
  for (int c = threadIdx.x; c < max_centers; c += kPlanThreads) centers.counts[c] = 0;
  find_cuts(similarity, frames, videos, threshold, min_segments, cuts);
  make_plan(cuts, similarity, frames, params, plan);
}

}  // namespace

cudaError_t launch_plan(const int* segment_ids, const float* similarity, int frames, const BudgetParams& params,
                        FramePlan plan, uint8_t* cuts, cudaStream_t stream) {
  return launch(plan_kernel, dim3(1), kPlanThreads, 0, 1, stream, segment_ids, similarity, frames, params, plan, cuts);
}

cudaError_t launch_segment_and_plan(const float* similarity, int frames, const Videos& videos, float threshold,
                                    int min_segments, const BudgetParams& params, FramePlan plan, uint8_t* cuts,
                                    Centers centers, int max_centers, cudaStream_t stream) {
  return launch(segment_and_plan_kernel, dim3(1), kPlanThreads, 0, 1, stream, similarity, frames, videos, threshold,
                min_segments, params, plan, cuts, centers, max_centers);
}

}  // namespace fastvid
