// The rules of csrc/core by themselves, from the installed headers: no torch, no CUDA, no Python. tests/test_core.py
// holds them against the reference on random inputs; here stand the cases that one can check by hand.

#include <fastvid/core/knn_density.h>
#include <fastvid/core/order.h>
#include <fastvid/core/plan.h>
#include <fastvid/core/scatter_merge.h>
#include <fastvid/core/segment.h>
#include <fastvid/core/select_peaks.h>

#include <cmath>
#include <cstdio>
#include <limits>

namespace {

int checked = 0, failed = 0;

void check(bool holds, const char* expression, int line) {
  ++checked;
  if (holds) return;
  ++failed;
  std::printf("core_test.cpp:%d: %s does not hold\n", line, expression);
}
#define CHECK(...) check((__VA_ARGS__), #__VA_ARGS__, __LINE__)

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void test_order() {
  using fastvid::order_key;
  const float ascending[] = {-kInfinity, -1.0f, -1e-45f, 0.0f, 1e-45f, 1.0f, kInfinity};
  for (int i = 0; i + 1 < 7; ++i) CHECK(order_key(ascending[i]) < order_key(ascending[i + 1]));
  CHECK(order_key(-0.0f) == order_key(0.0f));
  CHECK(order_key(kNan) < order_key(-kInfinity));
  CHECK(order_key(-0.0) == order_key(0.0));
  CHECK(order_key(1.0) > order_key(0.5));
  CHECK(fastvid::candidate_key(kNan) > std::numeric_limits<int32_t>::min());
  CHECK(fastvid::ranks_before(order_key(2.0f), 5, order_key(1.0f), 0));
  CHECK(fastvid::ranks_before(order_key(1.0f), 0, order_key(1.0f), 5));
  CHECK(!fastvid::ranks_before(order_key(1.0f), 5, order_key(1.0f), 5));
}

void test_segment() {
  CHECK(fastvid::cosine(3.0f, 9.0f, 1.0f) == 1.0f);
  CHECK(fastvid::cosine(0.0f, 0.0f, 0.0f) == 0.0f);
  CHECK(fastvid::similarity_key(0.1f) > fastvid::similarity_key(0.2f));
  CHECK(fastvid::similarity_key(kNan) < fastvid::similarity_key(1.0f));
  CHECK(fastvid::is_cut(0.8f, 0.9f, 100, 1));
  CHECK(!fastvid::is_cut(0.9f, 0.9f, 100, 8));
  CHECK(fastvid::is_cut(0.99f, 0.9f, 6, 8));
  CHECK(!fastvid::is_cut(0.99f, 0.9f, 7, 8));
}

fastvid::BudgetParams budget(int tokens_per_frame, double retention_ratio, double context_ratio, bool spread) {
  return {tokens_per_frame, retention_ratio, context_ratio, 4, spread, false, 0.0f};
}

void test_plan() {
  using fastvid::FrameBudget;
  CHECK(fastvid::ceil_div(7, 4) == 2);
  CHECK(fastvid::frame_budget(budget(196, 0.1, 0.4, true)) == 19);
  CHECK(fastvid::frame_budget(budget(4, 0.1, 0.4, true)) == 1);
  CHECK(fastvid::spread(7, 3, 0) == 3 && fastvid::spread(7, 3, 1) == 2 && fastvid::spread(7, 3, 2) == 2);

  // 8 frames of 196 tokens at r = 0.1: 152 tokens, 60 of them in the anchor frames 3 and 7.
  const fastvid::SegmentPlan plan(budget(196, 0.1, 0.4, true), 8, 8);
  int salient = 0, context = 0;
  for (int i = 0; i < 8; ++i) {
    const FrameBudget share = plan.share(i);
    salient += share.salient;
    context += share.context;
    CHECK((share.context > 0) == (i == 3 || i == 7));
  }
  CHECK(salient == 92);
  CHECK(context == 60);

  // Without the remainders: int(19 * 0.4) = 7 a frame, 35 for 5 frames, of which the two anchor frames hold 17 each.
  const fastvid::SegmentPlan even(budget(196, 0.1, 0.4, false), 5, 5);
  CHECK(even.share(0).context == 17 && even.share(4).context == 17 && even.share(2).context == 0);

  const fastvid::SegmentPlan everything(budget(10, 1.0, 0.4, true), 3, 3);
  CHECK(everything.share(1).salient == 10 && everything.share(1).context == 0);
}

void test_density_peaks() {
  CHECK(fastvid::squared_distance(1.0f, 1.0f, 1.0f) == 0.0f);
  CHECK(fastvid::squared_distance(1.0f, 1.0f, 1.5f) == 0.0f);  // rounding below zero
  CHECK(fastvid::squared_distance(4.0f, 1.0f, -1.0f) == 7.0f);
  CHECK(std::isnan(fastvid::squared_distance(kNan, 1.0f, 0.0f)));
  CHECK(fastvid::density(0.0f, 4) == 1.0f);
  CHECK(std::fabs(fastvid::density(4.0f, 4) - std::exp(-1.0f)) < 1e-6f);
  CHECK(fastvid::denser(0.5f, 9, 0.4f, 0));
  CHECK(fastvid::denser(0.5f, 0, 0.5f, 9));
  CHECK(!fastvid::denser(0.5f, 9, 0.5f, 0));
  CHECK(fastvid::peak_score(0.5f, 9.0f) == 1.5f);
}

void test_merge() {
  CHECK(fastvid::merge_weights(0, 0.6f).own == 1.0f && fastvid::merge_weights(0, 0.6f).others == 0.0f);
  CHECK(fastvid::merge_weights(1, 0.5f).own == 0.5f && fastvid::merge_weights(1, 0.5f).others == 0.5f);
  CHECK(fastvid::merge_weights(99, 0.6f).own == 0.6f);
  CHECK(fastvid::merged_value(3.0f, 0.0f, fastvid::merge_weights(0, 1.0f)) == 3.0f);
  CHECK(fastvid::merged_value(4.0f, 4.0f, fastvid::merge_weights(2, 0.5f)) == 3.0f);
}

}  // namespace

int main() {
  test_order();
  test_segment();
  test_plan();
  test_density_peaks();
  test_merge();
  std::printf("%d checks, %d failed\n", checked, failed);
  return failed == 0 ? 0 : 1;
}
