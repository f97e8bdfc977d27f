// How a segment's budget of tokens is shared among its frames. A batch has fewer than 2^31 tokens, so int holds them.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastvid {

struct BudgetParams {
  int tokens_per_frame;    // N
  double retention_ratio;  // r
  double context_ratio;    // d
  int anchor_stride;       // p
  bool spread_remainder;
  bool thin;  // whether thin_threshold is given
  float thin_threshold;
};

struct FrameBudget {
  int salient;
  int context;
};

FASTVID_HOST_DEVICE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// R = max(1, int(N * r)): tokens that a frame may keep.
FASTVID_HOST_DEVICE int frame_budget(const BudgetParams& params) {
  const int budget = static_cast<int>(params.tokens_per_frame * params.retention_ratio);
  return budget > 1 ? budget : 1;
}

// Part i when total is spread over parts that differ by at most one, the larger first.
FASTVID_HOST_DEVICE int spread(int total, int parts, int i) { return total / parts + (i < total % parts ? 1 : 0); }

// A stride past the segment's end means the same as one to its end, and leaves sums with it within int.
FASTVID_HOST_DEVICE int within(int stride, int length) { return stride < length ? stride : length; }

// The largest stride up to anchor_stride with which no anchor frame needs more than most_centers centres.
FASTVID_HOST_DEVICE int effective_stride(int length, int centers, int most_centers, int anchor_stride) {
  for (int stride = within(anchor_stride, length); stride > 1; --stride) {
    if (ceil_div(centers, ceil_div(length, stride)) <= most_centers) return stride;
  }
  return 1;
}

// The budget of one segment: `holders` frames share it, every stride-th of them, from the last, is an anchor frame.
// Without thinning all frames of the segment are holders; with it, the last frame of every run of similar frames.
class SegmentPlan {
 public:
  FASTVID_HOST_DEVICE SegmentPlan(const BudgetParams& params, int length, int holders)
      : tokens_(params.tokens_per_frame), holders_(holders) {
    const int budget = frame_budget(params);
    keeps_all_ = budget == tokens_;
    const int total = budget * length;
    most_centers_ = tokens_;
    stride_ = within(params.anchor_stride, length);
    if (params.thin) {
      context_ = static_cast<int>(total * params.context_ratio);
      if (context_ < 1) context_ = 1;
      salient_ = total - context_;
      if (length > 1) most_centers_ = tokens_ / 2;
    } else {
      context_ = params.spread_remainder ? static_cast<int>(total * params.context_ratio)
                                         : static_cast<int>(budget * params.context_ratio) * length;
      salient_ = total - context_;
      const int room = tokens_ - ceil_div(salient_, length);
      stride_ = effective_stride(length, context_, room, stride_);
    }
    anchors_ = ceil_div(holders_, stride_);
    if (!params.thin && !params.spread_remainder) context_ -= context_ % anchors_;
  }

  // Budget of holder i, counted from the segment's start.
  FASTVID_HOST_DEVICE FrameBudget share(int i) const {
    if (keeps_all_) return {tokens_, 0};
    FrameBudget frame{spread(salient_, holders_, i), 0};
    const int from_end = holders_ - 1 - i;
    if (from_end % stride_ == 0) {
      const int share = spread(context_, anchors_, from_end / stride_);
      frame.context = share < most_centers_ ? share : most_centers_;
    }
    if (frame.salient > tokens_ - frame.context) frame.salient = tokens_ - frame.context;
    return frame;
  }

  // Budget of a frame that thinning leaves without one.
  FASTVID_HOST_DEVICE FrameBudget thinned_share() const { return {keeps_all_ ? tokens_ : 0, 0}; }

 private:
  int tokens_, holders_, stride_, anchors_, most_centers_, salient_, context_;
  bool keeps_all_;
};

// No segment of `frames` frames has more anchor frames than this.
FASTVID_HOST_DEVICE int max_anchors(const BudgetParams& params, int frames) {
  const int budget = frame_budget(params);
  const bool full_stride =
      params.thin || budget * params.context_ratio * params.anchor_stride + 1 <= params.tokens_per_frame - budget;
  return full_stride && frames > 0 ? ceil_div(frames, within(params.anchor_stride, frames)) : frames;
}

// What to expect of a plan that only the device knows. Launches take the shapes of their grids from it, and with those
// the order of sums; whatever the plan is, it is carried out.
struct PlanEstimate {
  int segments, anchors, centers;
};
inline PlanEstimate estimate_plan(const BudgetParams& params, int frames, int videos, int min_segments) {
  constexpr int kScene = 8, kRun = 2;  // frames that look alike, and so alike that thinning keeps one, as a guess
  if (frames == 0) return {0, 0, 0};
  const int length = ceil_div(frames, videos < 1 ? 1 : videos), cuts = within(min_segments, length);
  const int64_t segments = cuts > length / kScene ? cuts : length / kScene;
  const int64_t stride = within(params.anchor_stride, length), holders = params.thin ? length / kRun : length;
  // A segment's length is no multiple of the stride: what is left over, half a stride, takes one more anchor frame.
  const int64_t anchors = holders / stride + segments * (stride - 1) / (2 * stride) + 1;
  const auto of_all = [&](int64_t a_video) {
    const int64_t count = ceil_div(frames, length) * a_video;
    return static_cast<int>(count < frames ? count : frames);
  };
  const double centers = static_cast<double>(frames) * frame_budget(params) * params.context_ratio;
  return {of_all(segments), of_all(anchors > segments ? anchors : segments), static_cast<int>(centers)};
}

}  // namespace fastvid
