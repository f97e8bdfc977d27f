// Random inputs for the rules of csrc/core, compiled with AddressSanitizer and UndefinedBehaviorSanitizer: nothing
// overflows, divides by zero or promises more tokens than there are. Takes the number of rounds (default 200000).

#include <fastvid/core/knn_density.h>
#include <fastvid/core/order.h>
#include <fastvid/core/plan.h>
#include <fastvid/core/scatter_merge.h>
#include <fastvid/core/segment.h>
#include <fastvid/core/select_peaks.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace {

using fastvid::BudgetParams;

class Fuzz {
 public:
  explicit Fuzz(uint64_t seed) : random_(seed) {}

  int whole(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  double ratio() {  // often one of the ends, or next to a fraction of N
    const int kind = whole(0, 5);
    if (kind == 0) return 0.0;
    if (kind == 1) return 1.0;
    if (kind == 2) return std::nextafter(static_cast<double>(whole(1, 1000)) / whole(1, 1000), kind);
    return std::uniform_real_distribution<double>(0.0, 1.0)(random_);
  }
  float any_float() {
    const uint32_t bits = static_cast<uint32_t>(random_());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

 private:
  std::mt19937_64 random_;
};

void require(bool holds, const char* what, const BudgetParams& params, int length) {
  if (holds) return;
  std::printf("%s does not hold: N %d, r %.17g, d %.17g, p %d, spread %d, thin %d, length %d\n", what,
              params.tokens_per_frame, params.retention_ratio, params.context_ratio, params.anchor_stride,
              params.spread_remainder, params.thin, length);
  std::exit(1);
}

void fuzz_plan(Fuzz& fuzz) {
  BudgetParams params{};
  params.tokens_per_frame = fuzz.whole(0, 9) == 0 ? fuzz.whole(1, 1 << 20) : fuzz.whole(1, 600);
  params.retention_ratio = std::fmin(std::fmax(fuzz.ratio(), 1e-12), 1.0);
  params.context_ratio = std::fmin(fuzz.ratio(), 1.0);
  const int far = fuzz.whole(0, 9);  // a stride that no segment is as long as, and the longest there is
  params.anchor_stride = far == 0 ? fuzz.whole(1, 2147483647) : far == 1 ? 2147483647 : fuzz.whole(1, 12);
  params.thin = fuzz.whole(0, 2) == 0;
  params.spread_remainder = params.thin || fuzz.whole(0, 1) == 0;
  const int most = 2147483647 / params.tokens_per_frame;
  const int length = fuzz.whole(1, most < 40 ? most : 40);
  const int holders = params.thin ? fuzz.whole(1, length) : length;

  const int budget = fastvid::frame_budget(params);
  const fastvid::SegmentPlan plan(params, length, holders);
  int kept = 0, anchors = 0;
  for (int i = 0; i < holders; ++i) {
    const fastvid::FrameBudget frame = plan.share(i);
    require(frame.salient >= 0 && frame.context >= 0, "budgets are not negative", params, length);
    require(frame.salient + frame.context <= params.tokens_per_frame, "a frame has its budget's tokens", params,
            length);
    kept += frame.salient + frame.context;
    anchors += frame.context > 0;
  }
  const bool whole = budget == params.tokens_per_frame;
  require(kept + (length - holders) * plan.thinned_share().salient <= budget * length, "the budget is an upper bound",
          params, length);
  if (!params.thin && params.spread_remainder) require(kept == budget * length, "the count is exact", params, length);
  if (!whole) require(anchors <= fastvid::max_anchors(params, length), "max_anchors is one", params, length);
  const int videos = fuzz.whole(0, 50);
  const fastvid::PlanEstimate estimate = fastvid::estimate_plan(params, length, videos, fuzz.whole(1, 2147483647));
  require(estimate.segments >= 1 && estimate.segments <= estimate.anchors && estimate.anchors <= length,
          "an estimate is possible", params, length);
  require(estimate.centers >= 0 && estimate.centers <= budget * length, "so are its centres", params, length);
}

void fuzz_floats(Fuzz& fuzz) {
  const float a = fuzz.any_float(), b = fuzz.any_float();
  const BudgetParams none{};
  const int32_t key_a = fastvid::order_key(a), key_b = fastvid::order_key(b);
  if (a == a && b == b) require((key_a > key_b) == (a > b), "keys are ordered as their values", none, 0);
  require(fastvid::ranks_before(key_a, 0, key_b, 1) != fastvid::ranks_before(key_b, 1, key_a, 0), "an order is total",
          none, 0);
  require(fastvid::candidate_key(a) > INT32_MIN, "a candidate stands above none", none, 0);
  require(!(fastvid::squared_distance(std::fabs(a), std::fabs(b), fuzz.any_float()) < 0.0f), "no distance is negative",
          none, 0);
  require(fastvid::floored_norm(std::fabs(a)) > 0.0f, "a norm is positive", none, 0);
  const int64_t count = fuzz.whole(0, 2147483647);
  const fastvid::MergeWeights weights = fastvid::merge_weights(count, 0.6f);
  require(weights.own >= 0.6f && weights.own <= 1.0f && weights.others >= 0.0f, "weights are some", none, 0);
  require(!(fastvid::merged_value(1.0f, 0.0f, fastvid::merge_weights(0, 0.6f)) != 1.0f),
          "nothing merged changes nothing", none, 0);
}

}  // namespace

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 200000;
  Fuzz fuzz(20261122);
  for (long i = 0; i < rounds; ++i) {
    fuzz_plan(fuzz);
    fuzz_floats(fuzz);
  }
  std::printf("%ld rounds\n", rounds);
}
