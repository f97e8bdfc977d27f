// What the ops accept. Every refusal names the argument, what came and what is wanted.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#if defined(__GNUC__)
#define FASTVID_EXPORT __attribute__((visibility("default")))
#else
#define FASTVID_EXPORT
#endif

namespace fastvid {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// What STD_TORCH_CHECK throws, without the place in the source. name: of the argument, or of the op.
template <typename... Parts>
[[noreturn]] void refuse(const std::string& name, const Parts&... parts) {
  std::ostringstream message;
  message << name << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

FASTVID_EXPORT void check_prune(const Tensor& tokens, const Tensor& saliency, const MaybeTensor& frame_features,
                                const MaybeTensor& cu_frames, double retention_ratio, int64_t min_segments,
                                double segment_threshold, double context_ratio, int64_t anchor_stride,
                                double merge_floor, int64_t num_neighbors, std::optional<double> thin_threshold,
                                bool spread_remainder, bool merge_centers);
FASTVID_EXPORT void check_segment(const Tensor& frame_features, const MaybeTensor& cu_frames, int64_t min_segments,
                                  double threshold);
FASTVID_EXPORT void check_plan(const Tensor& segment_ids, const Tensor& similarity, int64_t tokens_per_frame,
                               double retention_ratio, double context_ratio, int64_t anchor_stride,
                               std::optional<double> thin_threshold, bool spread_remainder);
FASTVID_EXPORT void check_knn_density(const Tensor& tokens, const MaybeTensor& mask, int64_t num_neighbors);
FASTVID_EXPORT void check_select_peaks(const Tensor& tokens, const Tensor& density, int64_t num_peaks,
                                       const MaybeTensor& mask);
FASTVID_EXPORT void check_scatter_merge(const Tensor& tokens, const Tensor& centers, const MaybeTensor& mask,
                                        double merge_floor, bool merge_centers);

}  // namespace fastvid
