// Shows csrc/core, the code that decides in the kernels, to Python. Arrays in, arrays out; for the tests alone.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "core/knn_density.h"
#include "core/order.h"
#include "core/plan.h"
#include "core/scatter_merge.h"
#include "core/segment.h"
#include "core/select_peaks.h"

namespace py = pybind11;

namespace {

fastvid::BudgetParams budget_params(int tokens_per_frame, double retention_ratio, double context_ratio,
                                    int anchor_stride, std::optional<double> thin_threshold, bool spread_remainder) {
  return {tokens_per_frame,
          retention_ratio,
          context_ratio,
          anchor_stride,
          spread_remainder,
          thin_threshold.has_value(),
          static_cast<float>(thin_threshold.value_or(0.0))};
}

// (salient, context) of the segment's frames that hold a budget.
std::vector<std::pair<int, int>> plan_segment(const fastvid::BudgetParams& params, int length, int holders) {
  const fastvid::SegmentPlan plan(params, length, holders);
  std::vector<std::pair<int, int>> shares;
  for (int i = 0; i < holders; ++i) {
    const fastvid::FrameBudget share = plan.share(i);
    shares.emplace_back(share.salient, share.context);
  }
  return shares;
}

std::pair<int, int> thinned_share(const fastvid::BudgetParams& params, int length, int holders) {
  const fastvid::FrameBudget share = fastvid::SegmentPlan(params, length, holders).thinned_share();
  return {share.salient, share.context};
}

// Whether each frame but the last of one video is cut from the next, as the kernel finds it.
std::vector<bool> cuts(const std::vector<float>& similarity, float threshold, int min_segments) {
  std::vector<bool> found;
  const int count = static_cast<int>(similarity.size());
  for (int i = 0; i < count; ++i) {
    int less = 0;
    for (int j = 0; j < count; ++j) {
      less +=
          fastvid::ranks_before(fastvid::similarity_key(similarity[j]), j, fastvid::similarity_key(similarity[i]), i);
    }
    found.push_back(fastvid::is_cut(similarity[i], threshold, less, min_segments));
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(fastvid_core, m) {
  py::class_<fastvid::BudgetParams>(m, "BudgetParams")
      .def(py::init(&budget_params), py::arg("tokens_per_frame"), py::arg("retention_ratio") = 0.1,
           py::arg("context_ratio") = 0.4, py::arg("anchor_stride") = 4, py::arg("thin_threshold") = std::nullopt,
           py::arg("spread_remainder") = true);

  m.def("order_key", py::vectorize([](float value) { return fastvid::order_key(value); }));
  m.def("candidate_key", py::vectorize([](float value) { return fastvid::candidate_key(value); }));
  m.def("order_key_double", py::vectorize([](double value) { return fastvid::order_key(value); }));
  m.def("candidate_key_double", py::vectorize([](double value) { return fastvid::candidate_key(value); }));
  m.def("ranks_before", py::vectorize([](float a, int i, float b, int j) {
          return fastvid::ranks_before(fastvid::order_key(a), i, fastvid::order_key(b), j);
        }));

  m.def("inverse_norm", py::vectorize(&fastvid::inverse_norm));
  m.def("cosine", py::vectorize(&fastvid::cosine));
  m.def("similarity_key", py::vectorize(&fastvid::similarity_key));
  m.def("is_cut", py::vectorize(&fastvid::is_cut));
  m.def("cuts", &cuts);

  m.def("frame_budget", &fastvid::frame_budget);
  m.def("spread", py::vectorize(&fastvid::spread));
  m.def("effective_stride", &fastvid::effective_stride);
  m.def("plan_segment", &plan_segment);
  m.def("thinned_share", &thinned_share);
  m.def("max_anchors", &fastvid::max_anchors);

  m.def("squared_distance", py::vectorize(&fastvid::squared_distance));
  m.def("density", py::vectorize(&fastvid::density));
  m.def("denser", py::vectorize(&fastvid::denser));
  m.def("peak_score", py::vectorize(&fastvid::peak_score));
  m.def("own_weight",
        py::vectorize([](int64_t count, float floor) { return fastvid::merge_weights(count, floor).own; }));
  m.def("merged_value", py::vectorize([](float center, float sum, int64_t count, float floor) {
          return fastvid::merged_value(center, sum, fastvid::merge_weights(count, floor));
        }));
}
