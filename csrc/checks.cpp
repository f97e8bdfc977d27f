#include "checks.h"

#include <torch/headeronly/core/Layout.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <string>

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor_inl.h>

namespace fastvid {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kAny = -1;  // a size that is not prescribed

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",)" : ")");
  return text.str();
}

std::string device_of(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(tensor.get_device_index());
}

void check_strided(const char* name, const Tensor& tensor) {
  if (!tensor.defined()) refuse(name, "got None, want a tensor");
  if (tensor.layout() != torch::headeronly::Layout::Strided) {
    refuse(name, "got a sparse or nested tensor, want a strided one");
  }
}

// wanted: how the shape reads in the message; sizes: what each dimension must be, or kAny.
void check_shape(const char* name, const Tensor& tensor, const char* wanted, std::initializer_list<int64_t> sizes) {
  check_strided(name, tensor);
  bool fits = tensor.dim() == static_cast<int64_t>(sizes.size());
  int64_t i = 0;
  for (int64_t size : sizes) {
    if (fits && size != kAny && tensor.size(i) != size) fits = false;
    ++i;
  }
  if (!fits) {
    std::ostringstream values;
    bool first = true;
    for (int64_t size : sizes) {
      values << (first ? "" : ", ");
      if (size == kAny) {
        values << "any";
      } else {
        values << size;
      }
      first = false;
    }
    refuse(name, "got shape ", shape_of(tensor), ", want ", wanted, " = (", values.str(),
           sizes.size() == 1 ? ",)" : ")");
  }
}

void check_not_empty(const char* name, const Tensor& tensor, int64_t dim, const char* symbol) {
  if (tensor.size(dim) < 1) refuse(name, "got shape ", shape_of(tensor), ", want ", symbol, " of at least 1");
}

void check_floating(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::BFloat16:
    case ScalarType::Half:
    case ScalarType::Float:
    case ScalarType::Double:
      return;
    default:
      refuse(name, "got dtype ", torch::headeronly::toString(tensor.scalar_type()),
             ", want bfloat16, float16, float32 or float64");
  }
}

void check_dtype(const char* name, const Tensor& tensor, ScalarType dtype, const char* wanted) {
  if (tensor.scalar_type() != dtype) {
    refuse(name, "got dtype ", torch::headeronly::toString(tensor.scalar_type()), ", want ", wanted);
  }
}

void check_device(const char* name, const Tensor& tensor, const char* like_name, const Tensor& like) {
  const bool same = tensor.is_cpu() == like.is_cpu() && tensor.is_cuda() == like.is_cuda() &&
                    tensor.get_device_index() == like.get_device_index();
  if (!same) refuse(name, "got ", device_of(tensor), ", want the device of ", like_name, ", ", device_of(like));
}

void check_at_least(const char* name, int64_t value, int64_t least) {
  if (value < least) refuse(name, "got ", value, ", want at least ", least);
}

void check_number(const char* name, double value) {
  if (std::isnan(value)) refuse(name, "got nan, want a number");
}

void check_ratio(const char* name, double value) {
  if (!(value >= 0.0 && value <= 1.0)) refuse(name, "got ", value, ", want a value in [0, 1]");
}

void check_retention_ratio(double value) {
  if (!(value > 0.0 && value <= 1.0)) refuse("retention_ratio", "got ", value, ", want a value in (0, 1]");
}

template <typename Index>
void check_boundaries(const Index* cuts, int64_t count, int64_t frames) {
  if (cuts[0] != 0) refuse("cu_frames", "starts at ", cuts[0], ", want 0");
  for (int64_t i = 1; i < count; ++i) {
    if (cuts[i] < cuts[i - 1]) {
      refuse("cu_frames", "descends from ", cuts[i - 1], " to ", cuts[i], " at position ", i, ", want ascending");
    }
  }
  if (cuts[count - 1] != frames) refuse("cu_frames", "ends at ", cuts[count - 1], ", want T = ", frames);
}

void check_cu_frames(const MaybeTensor& cu_frames, const char* like_name, const Tensor& like) {
  if (!cu_frames) return;
  check_shape("cu_frames", *cu_frames, "(B+1,)", {kAny});
  if (cu_frames->size(0) < 2)
    refuse("cu_frames", "got shape ", shape_of(*cu_frames), ", want (B+1,) with B of at least 1");
  const ScalarType dtype = cu_frames->scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long) {
    refuse("cu_frames", "got dtype ", torch::headeronly::toString(dtype), ", want int32 or int64");
  }
  if (!cu_frames->is_contiguous()) refuse("cu_frames", "got a strided tensor, want a contiguous one");
  if (!cu_frames->is_cpu()) {
    check_device("cu_frames", *cu_frames, like_name, like);
    return;
  }
  const int64_t count = cu_frames->size(0), frames = like.size(0);
  if (dtype == ScalarType::Int) {
    check_boundaries(static_cast<const int32_t*>(cu_frames->const_data_ptr()), count, frames);
  } else {
    check_boundaries(static_cast<const int64_t*>(cu_frames->const_data_ptr()), count, frames);
  }
}

void check_tokens(const Tensor& tokens, const char* wanted) {
  check_shape("tokens", tokens, wanted, {kAny, kAny, kAny});
  check_floating("tokens", tokens);
  check_not_empty("tokens", tokens, 1, "N");
  check_not_empty("tokens", tokens, 2, "D");
}

// On the device they are not read back: the kernels take what is out of range for -1.
void check_centers(const Tensor& centers, int64_t tokens_per_frame) {
  const auto* const data = static_cast<const int64_t*>(centers.const_data_ptr());
  for (int64_t b = 0; b < centers.size(0); ++b) {
    for (int64_t c = 0; c < centers.size(1); ++c) {
      const int64_t token = data[b * centers.stride(0) + c * centers.stride(1)];
      if (token < -1 || token >= tokens_per_frame) {
        refuse("centers", "got token ", token, " at (", b, ", ", c,
               "), want -1 or 0 to N - 1 = ", tokens_per_frame - 1);
      }
    }
  }
}

void check_mask(const MaybeTensor& mask, const Tensor& tokens) {
  if (!mask) return;
  check_shape("mask", *mask, "(B, N)", {tokens.size(0), tokens.size(1)});
  check_dtype("mask", *mask, ScalarType::Bool, "bool");
  check_device("mask", *mask, "tokens", tokens);
}

}  // namespace

void check_prune(const Tensor& tokens, const Tensor& saliency, const MaybeTensor& frame_features,
                 const MaybeTensor& cu_frames, double retention_ratio, int64_t min_segments, double segment_threshold,
                 double context_ratio, int64_t anchor_stride, double merge_floor, int64_t num_neighbors,
                 std::optional<double> thin_threshold, bool, bool) {
  check_tokens(tokens, "(T, N, D)");
  check_shape("saliency", saliency, "(T, N)", {tokens.size(0), tokens.size(1)});
  check_floating("saliency", saliency);
  check_device("saliency", saliency, "tokens", tokens);
  if (frame_features) {
    check_shape("frame_features", *frame_features, "(T, C)", {tokens.size(0), kAny});
    check_floating("frame_features", *frame_features);
    check_not_empty("frame_features", *frame_features, 1, "C");
    check_device("frame_features", *frame_features, "tokens", tokens);
  }
  check_cu_frames(cu_frames, "tokens", tokens);
  check_retention_ratio(retention_ratio);
  check_at_least("min_segments", min_segments, 1);
  check_number("segment_threshold", segment_threshold);
  check_ratio("context_ratio", context_ratio);
  check_at_least("anchor_stride", anchor_stride, 1);
  check_ratio("merge_floor", merge_floor);
  check_at_least("num_neighbors", num_neighbors, 1);
  if (thin_threshold) check_number("thin_threshold", *thin_threshold);
}

void check_segment(const Tensor& frame_features, const MaybeTensor& cu_frames, int64_t min_segments, double threshold) {
  check_shape("frame_features", frame_features, "(T, C)", {kAny, kAny});
  check_floating("frame_features", frame_features);
  check_not_empty("frame_features", frame_features, 1, "C");
  check_cu_frames(cu_frames, "frame_features", frame_features);
  check_at_least("min_segments", min_segments, 1);
  check_number("threshold", threshold);
}

void check_plan(const Tensor& segment_ids, const Tensor& similarity, int64_t tokens_per_frame, double retention_ratio,
                double context_ratio, int64_t anchor_stride, std::optional<double> thin_threshold, bool) {
  check_shape("segment_ids", segment_ids, "(T,)", {kAny});
  check_dtype("segment_ids", segment_ids, ScalarType::Int, "int32");
  check_shape("similarity", similarity, "(T,)", {segment_ids.size(0)});
  if (similarity.scalar_type() != ScalarType::Double || !similarity.is_cpu()) {
    check_dtype("similarity", similarity, ScalarType::Float, "float32 (or float64 on the CPU)");
  }
  check_device("similarity", similarity, "segment_ids", segment_ids);
  check_at_least("tokens_per_frame", tokens_per_frame, 1);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // what num_salient can hold
  if (tokens_per_frame > kMost) refuse("tokens_per_frame", "got ", tokens_per_frame, ", want at most ", kMost);
  check_retention_ratio(retention_ratio);
  check_ratio("context_ratio", context_ratio);
  check_at_least("anchor_stride", anchor_stride, 1);
  if (thin_threshold) check_number("thin_threshold", *thin_threshold);
}

void check_knn_density(const Tensor& tokens, const MaybeTensor& mask, int64_t num_neighbors) {
  check_tokens(tokens, "(B, N, D)");
  check_mask(mask, tokens);
  check_at_least("num_neighbors", num_neighbors, 1);
}

void check_select_peaks(const Tensor& tokens, const Tensor& density, int64_t num_peaks, const MaybeTensor& mask) {
  check_tokens(tokens, "(B, N, D)");
  check_shape("density", density, "(B, N)", {tokens.size(0), tokens.size(1)});
  const bool double_tokens = tokens.scalar_type() == ScalarType::Double;
  check_dtype("density", density, double_tokens ? ScalarType::Double : ScalarType::Float,
              double_tokens ? "float64 as the tokens" : "float32");
  check_device("density", density, "tokens", tokens);
  if (num_peaks < 0 || num_peaks > tokens.size(1)) {
    refuse("num_peaks", "got ", num_peaks, ", want 0 to N = ", tokens.size(1));
  }
  check_mask(mask, tokens);
}

void check_scatter_merge(const Tensor& tokens, const Tensor& centers, const MaybeTensor& mask, double merge_floor,
                         bool) {
  check_tokens(tokens, "(B, N, D)");
  check_shape("centers", centers, "(B, C)", {tokens.size(0), kAny});
  check_dtype("centers", centers, ScalarType::Long, "int64");
  check_device("centers", centers, "tokens", tokens);
  if (centers.size(1) > tokens.size(1)) {
    refuse("centers", "got ", centers.size(1), " centres, want at most N = ", tokens.size(1));
  }
  if (centers.is_cpu()) check_centers(centers, tokens.size(1));
  check_mask(mask, tokens);
  check_ratio("merge_floor", merge_floor);
}

}  // namespace fastvid
