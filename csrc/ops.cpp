// The schemas of torch.ops.fastvid, and the argument checks of each op as an op of its own (_check_NAME), which the
// Python implementations for the CPU call first. What runs on CUDA is libfastvid_cuda's, what runs on the CPU Python's.

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <stdexcept>

#include "checks.h"

#define PRUNE_ARGS                                                                                        \
  "(Tensor tokens, Tensor saliency, Tensor? frame_features=None, Tensor? cu_frames=None, *, "             \
  "float retention_ratio=0.1, int min_segments=8, float segment_threshold=0.9, float context_ratio=0.4, " \
  "int anchor_stride=4, float merge_floor=0.6, int num_neighbors=4, float? thin_threshold=None, "         \
  "bool spread_remainder=True, bool merge_centers=False)"
#define SEGMENT_ARGS "(Tensor frame_features, Tensor? cu_frames=None, *, int min_segments=8, float threshold=0.9)"
#define PLAN_ARGS                                                                                \
  "(Tensor segment_ids, Tensor similarity, int tokens_per_frame, *, float retention_ratio=0.1, " \
  "float context_ratio=0.4, int anchor_stride=4, float? thin_threshold=None, bool spread_remainder=True)"
#define KNN_DENSITY_ARGS "(Tensor tokens, Tensor? mask=None, *, int num_neighbors=4)"
#define SELECT_PEAKS_ARGS "(Tensor tokens, Tensor density, int num_peaks, Tensor? mask=None)"
#define SCATTER_MERGE_ARGS \
  "(Tensor tokens, Tensor centers, Tensor? mask=None, *, float merge_floor=0.6, bool merge_centers=False)"

namespace {

// Runs where no kernel for the tensors' device is loaded. The check takes the arguments off the stack.
template <void (*kBoxedCheck)(StableIValue*, uint64_t, uint64_t)>
void no_kernel(StableIValue* stack, uint64_t num_arguments, uint64_t /* num_outputs */) {
  kBoxedCheck(stack, num_arguments, 0);
  throw std::runtime_error(
      "fastvid: no kernel for the device of these tensors is loaded. CUDA tensors need libfastvid_cuda.so and a CUDA "
      "build of torch; what computes on the CPU is the Python package fastvid_ext");
}

}  // namespace

STABLE_TORCH_LIBRARY(fastvid, m) {
  m.def("prune" PRUNE_ARGS " -> (Tensor tokens, Tensor indices, Tensor frame_counts)");
  m.def("prune_padded" PRUNE_ARGS " -> (Tensor tokens, Tensor indices, Tensor frame_counts)");
  m.def("segment" SEGMENT_ARGS " -> (Tensor segment_ids, Tensor similarity)");
  m.def("plan" PLAN_ARGS " -> (Tensor num_salient, Tensor num_context)");
  m.def("knn_density" KNN_DENSITY_ARGS " -> Tensor density");
  m.def("select_peaks" SELECT_PEAKS_ARGS " -> (Tensor centers, Tensor score)");
  m.def("scatter_merge" SCATTER_MERGE_ARGS " -> (Tensor merged, Tensor assignment, Tensor counts)");
  m.def("_check_prune" PRUNE_ARGS " -> ()");
  m.def("_check_prune_padded" PRUNE_ARGS " -> ()");
  m.def("_check_segment" SEGMENT_ARGS " -> ()");
  m.def("_check_plan" PLAN_ARGS " -> ()");
  m.def("_check_knn_density" KNN_DENSITY_ARGS " -> ()");
  m.def("_check_select_peaks" SELECT_PEAKS_ARGS " -> ()");
  m.def("_check_scatter_merge" SCATTER_MERGE_ARGS " -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastvid, CompositeExplicitAutograd, m) {
  m.impl("_check_prune", TORCH_BOX(&fastvid::check_prune));
  m.impl("_check_prune_padded", TORCH_BOX(&fastvid::check_prune));
  m.impl("_check_segment", TORCH_BOX(&fastvid::check_segment));
  m.impl("_check_plan", TORCH_BOX(&fastvid::check_plan));
  m.impl("_check_knn_density", TORCH_BOX(&fastvid::check_knn_density));
  m.impl("_check_select_peaks", TORCH_BOX(&fastvid::check_select_peaks));
  m.impl("_check_scatter_merge", TORCH_BOX(&fastvid::check_scatter_merge));
  m.impl("prune", no_kernel<TORCH_BOX(&fastvid::check_prune)>);
  m.impl("prune_padded", no_kernel<TORCH_BOX(&fastvid::check_prune)>);
  m.impl("segment", no_kernel<TORCH_BOX(&fastvid::check_segment)>);
  m.impl("plan", no_kernel<TORCH_BOX(&fastvid::check_plan)>);
  m.impl("knn_density", no_kernel<TORCH_BOX(&fastvid::check_knn_density)>);
  m.impl("select_peaks", no_kernel<TORCH_BOX(&fastvid::check_select_peaks)>);
  m.impl("scatter_merge", no_kernel<TORCH_BOX(&fastvid::check_scatter_merge)>);
}
