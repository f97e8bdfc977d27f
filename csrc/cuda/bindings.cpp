// torch.ops.fastvid on CUDA: checks, memory, and the order of the kernels.

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "core/plan.h"
#include "cuda/launch.h"
#include "cuda/pipeline.h"
#include "cuda/workspace.h"

namespace fastvid {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

constexpr int64_t kMaxTokensPerFrame = 4096;
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() / 2;

void check_cuda(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it, so that the next call starts clean
  const std::string name = std::string("fastvid::") + op;
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    refuse(name, "this build holds kernels for ", FASTVID_ARCHITECTURES, "; the device is sm_", major, minor,
           ". Build with FASTVID_CUDA_ARCHITECTURES=", major, minor);
  }
  refuse(name, "CUDA error: ", cudaGetErrorString(status));
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor empty_like(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::empty(shape, dtype, std::nullopt, like.device());
}

// Device memory for the arrays that lay_out takes of a workspace: it is called first to count the bytes, then over the
// memory. Hold it as long as the call; the caching allocator hands it on in stream order.
template <typename LayOut>
Tensor allocate(const Tensor& like, LayOut&& lay_out) {
  Workspace counted;
  lay_out(counted);
  Tensor memory = empty_like(like, {static_cast<int64_t>(std::max<size_t>(counted.bytes(), 1))}, ScalarType::Byte);
  Workspace placed(memory.mutable_data_ptr());
  lay_out(placed);
  return memory;
}

FloatKind kind_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return FloatKind::kFloat16;
    case ScalarType::BFloat16:
      return FloatKind::kBFloat16;
    case ScalarType::Double:
      return FloatKind::kFloat64;
    default:
      return FloatKind::kFloat32;
  }
}

AnyFloats any_floats(const Tensor& tensor) {
  return {tensor.const_data_ptr(), tensor.stride(0), tensor.stride(1), static_cast<int>(tensor.size(1)),
          kind_of(tensor)};
}

// Calls run(T{}) with the element type of the tokens.
template <typename Run>
auto by_dtype(const Tensor& tokens, Run&& run) {
  switch (tokens.scalar_type()) {
    case ScalarType::BFloat16:
      return run(__nv_bfloat16{});
    case ScalarType::Half:
      return run(__half{});
    case ScalarType::Float:
      return run(float{});
    default:
      refuse("tokens", "got dtype ", torch::headeronly::toString(tokens.scalar_type()),
             " on CUDA, want bfloat16, float16 or float32");
  }
}

void check_limits(const Tensor& tokens) {
  const int64_t frames = tokens.size(0), n = tokens.size(1), channels = tokens.size(2);
  if (n > kMaxTokensPerFrame) {
    refuse("tokens", "got N = ", n, " tokens a frame on CUDA, want at most ", kMaxTokensPerFrame);
  }
  if (frames > kMaxRows / n) refuse("tokens", "got ", frames, " x ", n, " tokens on CUDA, want at most ", kMaxRows);
  if (channels > kMaxRows / 8) refuse("tokens", "got D = ", channels, " on CUDA, want at most ", kMaxRows / 8);
}

int clamped(int64_t value) { return static_cast<int>(std::min<int64_t>(value, std::numeric_limits<int>::max())); }

// The tokens as the kernels want them: whole, aligned 16-byte vectors, rows at one stride. Others are packed into the
// workspace first.
template <typename T>
struct TokenInput {
  explicit TokenInput(const Tensor& tensor) : source(static_cast<const T*>(tensor.const_data_ptr())) {
    constexpr int kSize = kVectorBytes / sizeof(T);
    for (int i = 0; i < 3; ++i) strides[i] = tensor.stride(i);
    channels = static_cast<int>(tensor.size(2));
    view.frames = static_cast<int>(tensor.size(0));
    view.per_frame = static_cast<int>(tensor.size(1));
    view.channels = ceil_div(channels, kSize) * kSize;
    // A stride over a single frame or token says nothing.
    view.row_stride = view.per_frame > 1 ? strides[1] : strides[0];
    const bool one_stride = view.frames == 1 || strides[0] == view.per_frame * view.row_stride;
    is_packed = strides[2] == 1 && one_stride && channels == view.channels && view.row_stride % kSize == 0 &&
                (view.row_stride >= channels || rows() == 1) && reinterpret_cast<uintptr_t>(source) % kVectorBytes == 0;
  }
  void take(Workspace& workspace) {
    if (is_packed) {
      view.data = source;
    } else {
      view.data = workspace.take<T>(rows() * view.channels);
      view.row_stride = view.channels;
    }
  }
  cudaError_t fill(cudaStream_t stream) const {
    if (is_packed) return cudaSuccess;
    return launch_pack(source, strides[0], strides[1], strides[2], channels, view, stream);
  }
  int64_t rows() const { return static_cast<int64_t>(view.frames) * view.per_frame; }

  const T* source;
  int64_t strides[3];
  int channels;  // D
  bool is_packed;
  Tokens<T> view{};
};

// Boundaries on the device are read where they are; those on the host are copied by value.
struct VideoInput {
  VideoInput(const MaybeTensor& cu_frames, int64_t frames) {
    if (!cu_frames || frames == 0) return;
    videos.count = static_cast<int>(cu_frames->size(0)) - 1;
    videos.wide = cu_frames->scalar_type() == ScalarType::Long;
    if (!cu_frames->is_cpu()) {
      videos.cu_frames = cu_frames->const_data_ptr();
      return;
    }
    host.resize(videos.count + 1);
    if (videos.wide) {
      std::copy_n(static_cast<const int64_t*>(cu_frames->const_data_ptr()), host.size(), host.begin());
    } else {
      std::copy_n(static_cast<const int32_t*>(cu_frames->const_data_ptr()), host.size(), host.begin());
    }
    videos.wide = false;
  }
  void take(Workspace& workspace) {
    if (!host.empty()) videos.cu_frames = workspace.take<int32_t>(host.size());
  }
  cudaError_t fill(cudaStream_t stream) const {
    if (host.empty()) return cudaSuccess;
    return launch_store_cu_frames(host.data(), static_cast<int>(host.size()),
                                  static_cast<int32_t*>(const_cast<void*>(videos.cu_frames)), stream);
  }

  Videos videos;
  std::vector<int32_t> host;
};

FramePlan take_plan(Workspace& workspace, int frames, int max_items, int passes, const PlanEstimate& estimate = {}) {
  FramePlan plan{};
  plan.estimate = estimate;
  plan.records = workspace.take<FrameRecord>(frames);
  plan.anchors = workspace.take<int>(frames);
  plan.items = workspace.take<MergeItem>(max_items);
  plan.totals = workspace.take<PlanTotals>(1);
  plan.scratch = workspace.take<int>(plan_scratch(frames));
  plan.tickets = workspace.take<int>(passes);
  return plan;
}

// Items of a plan at most. One ends a segment, where the next would take too many anchor frames, or is full.
int max_merge_items(int64_t frames, int64_t centers) {
  return static_cast<int>(frames + frames / kMergeItemAnchors + centers / kMergeCenters + 1);
}

BudgetParams budget_params(int64_t tokens_per_frame, double retention_ratio, double context_ratio,
                           int64_t anchor_stride, std::optional<double> thin_threshold, bool spread_remainder) {
  BudgetParams params{};
  params.tokens_per_frame = clamped(tokens_per_frame);
  params.retention_ratio = retention_ratio;
  params.context_ratio = context_ratio;
  params.anchor_stride = clamped(anchor_stride);
  params.spread_remainder = spread_remainder;
  params.thin = thin_threshold.has_value();
  params.thin_threshold = static_cast<float>(thin_threshold.value_or(0.0));
  return params;
}

struct PruneParams {
  BudgetParams budget;
  int min_segments;
  float segment_threshold;
  float merge_floor;
  int num_neighbors;
  bool merge_centers;
};

// The pipeline behind prune and prune_padded. Writes the capacity's rows; `kept` points at their number on the device,
// valid while the workspace lives.
template <typename T>
cudaError_t run_prune(const Tensor& tokens, const Tensor& saliency, const MaybeTensor& frame_features,
                      const MaybeTensor& cu_frames, const PruneParams& params, const Output<T>& output, Tensor& memory,
                      const int*& kept) {
  TokenInput<T> input(tokens);
  VideoInput videos(cu_frames, tokens.size(0));
  const int frames = input.view.frames, n = input.view.per_frame;
  const int64_t rows = input.rows();
  const int max_items = max_merge_items(frames, output.capacity);
  const int anchors = std::min(max_anchors(params.budget, frames), kMergeAnchors);
  const int passes = ceil_div(max_anchors(params.budget, frames), kMergeAnchors);
  const PlanEstimate estimate = estimate_plan(params.budget, frames, videos.videos.count, params.min_segments);
  int64_t peaks_floats;
  FASTVID_RETURN_IF_FAILED(density_peaks_floats(frames, n, estimate.anchors, peaks_floats));
  bool gram_of_all = false;
  if (!frame_features) FASTVID_RETURN_IF_FAILED(gram_makes_features<T>(n, gram_of_all));
  // Where segments should have one anchor frame each, products are wanted until the tokens are assigned, if keeping
  // them takes little memory. Otherwise the assignments take their place.
  const bool keeps_products =
      int64_t{estimate.segments} * params.budget.anchor_stride >= frames && anchors <= kMergeAnchors / 2;

  FramePlan plan;
  Centers centers{};
  Assignments assignments{};
  FrameFeatures features{nullptr, input.view.channels};
  Ranking ranking{any_floats(saliency), nullptr, nullptr};
  float *similarity, *gram, *peaks_workspace;
  memory = allocate(tokens, [&](Workspace& workspace) {
    input.take(workspace);
    videos.take(workspace);
    plan = take_plan(workspace, frames, max_items, passes, estimate);
    if (!frame_features) features.data = workspace.take<float>(static_cast<int64_t>(frames) * features.stride);
    similarity = workspace.take<float>(frames);
    ranking.rank = workspace.take<uint16_t>(rows);
    centers.list = workspace.take<Center>(output.capacity);
    centers.inverse_norms = workspace.take<float>(output.capacity);
    centers.counts = workspace.take<unsigned long long>(output.capacity);
    centers.flags = workspace.take<uint8_t>(rows);
    peaks_workspace = workspace.take<float>(peaks_floats);
    assignments.pitch = assignment_pitch(rows);
    const int64_t gram_size = gram_floats(n) * frames, table_size = assignments.pitch * anchors;
    if (keeps_products) {
      gram = workspace.take<float>(gram_size);
      assignments.table = workspace.take<uint16_t>(table_size);
    } else {
      gram = workspace.take<float>(std::max(gram_size, (table_size + 1) / 2));
      assignments.table = reinterpret_cast<uint16_t*>(gram);
    }
  });
  ranking.center_flags = centers.flags;
  kept = &plan.totals->rows;

  const cudaStream_t stream = current_stream(tokens);
  FASTVID_RETURN_IF_FAILED(input.fill(stream));
  FASTVID_RETURN_IF_FAILED(videos.fill(stream));
  AnyFloats features_view{features.data, features.stride, 1, features.stride, FloatKind::kFloat32};
  if (frame_features) features_view = any_floats(*frame_features);
  if (gram_of_all) {
    FASTVID_RETURN_IF_FAILED(launch_gram(input.view, nullptr, frames, gram, features, stream));
  } else if (!frame_features) {
    FASTVID_RETURN_IF_FAILED(launch_frame_features(input.view, features, stream));
  }
  FASTVID_RETURN_IF_FAILED(launch_similarity(features_view, frames, videos.videos, similarity, stream));
  const SegmentParams segments{videos.videos, params.segment_threshold, params.min_segments};
  FASTVID_RETURN_IF_FAILED(launch_segment_and_plan(similarity, frames, segments, params.budget, plan, ranking, centers,
                                                   output.capacity, passes, stream));
  if (!gram_of_all) {
    FASTVID_RETURN_IF_FAILED(launch_gram(input.view, &plan, estimate.anchors, gram, {}, stream));
  }
  const Candidates candidates{nullptr, ranking.rank, plan.records, n};
  DensityPeaks peaks{};
  peaks.frames = frames;
  peaks.per_frame = n;
  peaks.inverse_channels = 1.0f / input.channels;
  peaks.candidates = candidates;
  peaks.num_neighbors = params.num_neighbors;
  peaks.planned = true;
  peaks.plan = plan;
  peaks.centers = centers;
  peaks.products = {gram, gram_of_all};
  FASTVID_RETURN_IF_FAILED(launch_density_peaks(peaks, peaks_workspace, stream));
  for (int pass = 0; pass < passes; ++pass) {
    FASTVID_RETURN_IF_FAILED(launch_assign(input.view, plan, centers, candidates,
                                           keeps_products ? peaks.products : Products{}, assignments, output,
                                           params.merge_centers, pass, stream));
    FASTVID_RETURN_IF_FAILED(
        launch_merge(input.view, plan, centers, assignments, output, params.merge_floor, pass, max_items, stream));
  }
  return cudaSuccess;
}

using PruneResult = std::tuple<Tensor, Tensor, Tensor>;

// Rows of the result are cut to those kept where `padded` is false, which reads their number back unless shapes tell.
PruneResult prune_on_cuda(const char* op, bool padded, const Tensor& tokens, const Tensor& saliency,
                          const MaybeTensor& frame_features, const MaybeTensor& cu_frames, const PruneParams& params) {
  check_limits(tokens);
  const DeviceGuard guard(tokens.get_device_index());
  const int64_t frames = tokens.size(0), channels = tokens.size(2);
  const int64_t capacity = frames * frame_budget(params.budget);
  Tensor rows = empty_like(tokens, {capacity, channels}, tokens.scalar_type());
  Tensor indices = empty_like(tokens, {capacity}, ScalarType::Long);
  Tensor frame_counts = empty_like(tokens, {frames}, ScalarType::Int);
  if (frames == 0) return {rows, indices, frame_counts};

  Tensor memory;
  const int* kept = nullptr;
  by_dtype(tokens, [&](auto element) {
    using T = decltype(element);
    const Output<T> output{static_cast<T*>(rows.mutable_data_ptr()), static_cast<int>(channels),
                           static_cast<int64_t*>(indices.mutable_data_ptr()),
                           static_cast<int*>(frame_counts.mutable_data_ptr()), static_cast<int>(capacity)};
    check_cuda(run_prune<T>(tokens, saliency, frame_features, cu_frames, params, output, memory, kept), op);
  });
  const bool exact = params.budget.spread_remainder && !params.budget.thin;
  if (!padded && !exact) {
    int count = 0;
    const cudaStream_t stream = current_stream(tokens);
    check_cuda(cudaMemcpyAsync(&count, kept, sizeof count, cudaMemcpyDeviceToHost, stream), op);
    check_cuda(cudaStreamSynchronize(stream), op);
    rows = torch::stable::narrow(rows, 0, 0, count);
    indices = torch::stable::narrow(indices, 0, 0, count);
  }
  return {rows, indices, frame_counts};
}

template <bool kPadded>
PruneResult prune(const Tensor& tokens, const Tensor& saliency, const MaybeTensor& frame_features,
                  const MaybeTensor& cu_frames, double retention_ratio, int64_t min_segments, double segment_threshold,
                  double context_ratio, int64_t anchor_stride, double merge_floor, int64_t num_neighbors,
                  std::optional<double> thin_threshold, bool spread_remainder, bool merge_centers) {
  check_prune(tokens, saliency, frame_features, cu_frames, retention_ratio, min_segments, segment_threshold,
              context_ratio, anchor_stride, merge_floor, num_neighbors, thin_threshold, spread_remainder,
              merge_centers);
  const PruneParams params{
      budget_params(tokens.size(1), retention_ratio, context_ratio, anchor_stride, thin_threshold, spread_remainder),
      clamped(min_segments),
      static_cast<float>(segment_threshold),
      static_cast<float>(merge_floor),
      clamped(num_neighbors),
      merge_centers};
  return prune_on_cuda(kPadded ? "prune_padded" : "prune", kPadded, tokens, saliency, frame_features, cu_frames,
                       params);
}

std::tuple<Tensor, Tensor> segment(const Tensor& frame_features, const MaybeTensor& cu_frames, int64_t min_segments,
                                   double threshold) {
  check_segment(frame_features, cu_frames, min_segments, threshold);
  if (frame_features.scalar_type() == ScalarType::Double) {
    refuse("frame_features", "got dtype Double on CUDA, want bfloat16, float16 or float32");
  }
  if (frame_features.size(0) > kMaxRows) {
    refuse("frame_features", "got ", frame_features.size(0), " frames on CUDA, want at most ", kMaxRows);
  }
  const DeviceGuard guard(frame_features.get_device_index());
  const int frames = static_cast<int>(frame_features.size(0));
  Tensor segment_ids = empty_like(frame_features, {frames}, ScalarType::Int);
  Tensor similarity = empty_like(frame_features, {frames}, ScalarType::Float);
  if (frames == 0) return {segment_ids, similarity};

  VideoInput videos(cu_frames, frames);
  int* scratch;
  const Tensor memory = allocate(frame_features, [&](Workspace& workspace) {
    videos.take(workspace);
    scratch = workspace.take<int>(segment_scratch(frames));
  });
  const cudaStream_t stream = current_stream(frame_features);
  float* const similarities = static_cast<float*>(similarity.mutable_data_ptr());
  check_cuda(videos.fill(stream), "segment");
  check_cuda(launch_similarity(any_floats(frame_features), frames, videos.videos, similarities, stream), "segment");
  check_cuda(launch_segment(similarities, frames, videos.videos, static_cast<float>(threshold), clamped(min_segments),
                            scratch, static_cast<int*>(segment_ids.mutable_data_ptr()), stream),
             "segment");
  return {segment_ids, similarity};
}

std::tuple<Tensor, Tensor> plan(const Tensor& segment_ids, const Tensor& similarity, int64_t tokens_per_frame,
                                double retention_ratio, double context_ratio, int64_t anchor_stride,
                                std::optional<double> thin_threshold, bool spread_remainder) {
  check_plan(segment_ids, similarity, tokens_per_frame, retention_ratio, context_ratio, anchor_stride, thin_threshold,
             spread_remainder);
  if (segment_ids.size(0) > kMaxRows / tokens_per_frame) {
    refuse("tokens_per_frame", "got ", tokens_per_frame, " for ", segment_ids.size(0), " frames on CUDA, want at most ",
           kMaxRows, " tokens");
  }
  const DeviceGuard guard(segment_ids.get_device_index());
  const int frames = static_cast<int>(segment_ids.size(0));
  Tensor num_salient = empty_like(segment_ids, {frames}, ScalarType::Int);
  Tensor num_context = empty_like(segment_ids, {frames}, ScalarType::Int);
  if (frames == 0) return {num_salient, num_context};

  const BudgetParams params =
      budget_params(tokens_per_frame, retention_ratio, context_ratio, anchor_stride, thin_threshold, spread_remainder);
  const int max_items = max_merge_items(frames, static_cast<int64_t>(frames) * frame_budget(params));
  const Tensor ids = torch::stable::contiguous(segment_ids), similarities = torch::stable::contiguous(similarity);
  FramePlan plan;
  const Tensor memory =
      allocate(segment_ids, [&](Workspace& workspace) { plan = take_plan(workspace, frames, max_items, 0); });
  check_cuda(launch_plan(static_cast<const int*>(ids.const_data_ptr()),
                         static_cast<const float*>(similarities.const_data_ptr()), frames, params, plan,
                         static_cast<int*>(num_salient.mutable_data_ptr()),
                         static_cast<int*>(num_context.mutable_data_ptr()), current_stream(segment_ids)),
             "plan");
  return {num_salient, num_context};
}

// What knn_density and select_peaks share: the kernel over all frames, with what the op adds to `peaks`.
template <typename Configure>
void density_peaks(const char* op, const Tensor& tokens, const MaybeTensor& mask, Configure&& configure) {
  const MaybeTensor dense_mask = mask ? MaybeTensor(torch::stable::contiguous(*mask)) : std::nullopt;
  by_dtype(tokens, [&](auto element) {
    using T = decltype(element);
    TokenInput<T> input(tokens);
    const int frames = input.view.frames, n = input.view.per_frame;
    int64_t peaks_floats;
    check_cuda(density_peaks_floats(frames, n, frames, peaks_floats), op);
    float *gram, *peaks_workspace;
    const Tensor memory = allocate(tokens, [&](Workspace& workspace) {
      input.take(workspace);
      gram = workspace.take<float>(gram_floats(n) * frames);
      peaks_workspace = workspace.take<float>(peaks_floats);
    });
    const cudaStream_t stream = current_stream(tokens);
    check_cuda(input.fill(stream), op);
    DensityPeaks peaks{};
    peaks.frames = frames;
    peaks.per_frame = n;
    peaks.inverse_channels = 1.0f / input.channels;
    peaks.products.rows = gram;
    peaks.candidates.mask = dense_mask ? static_cast<const uint8_t*>(dense_mask->const_data_ptr()) : nullptr;
    peaks.candidates.per_frame = n;
    configure(peaks);
    check_cuda(launch_gram(input.view, nullptr, frames, gram, {}, stream), op);
    check_cuda(launch_density_peaks(peaks, peaks_workspace, stream), op);
  });
}

Tensor knn_density(const Tensor& tokens, const MaybeTensor& mask, int64_t num_neighbors) {
  check_knn_density(tokens, mask, num_neighbors);
  check_limits(tokens);
  const DeviceGuard guard(tokens.get_device_index());
  Tensor density = empty_like(tokens, {tokens.size(0), tokens.size(1)}, ScalarType::Float);
  if (tokens.size(0) == 0) return density;
  density_peaks("knn_density", tokens, mask, [&](DensityPeaks& peaks) {
    peaks.num_neighbors = clamped(num_neighbors);
    peaks.density = static_cast<float*>(density.mutable_data_ptr());
  });
  return density;
}

std::tuple<Tensor, Tensor> select_peaks(const Tensor& tokens, const Tensor& density, int64_t num_peaks,
                                        const MaybeTensor& mask) {
  check_select_peaks(tokens, density, num_peaks, mask);
  check_limits(tokens);
  const DeviceGuard guard(tokens.get_device_index());
  Tensor centers = empty_like(tokens, {tokens.size(0), num_peaks}, ScalarType::Long);
  Tensor score = empty_like(tokens, {tokens.size(0), tokens.size(1)}, ScalarType::Float);
  if (tokens.size(0) == 0) return {centers, score};
  const Tensor given = torch::stable::contiguous(density);
  density_peaks("select_peaks", tokens, mask, [&](DensityPeaks& peaks) {
    peaks.given_density = static_cast<const float*>(given.const_data_ptr());
    peaks.score = static_cast<float*>(score.mutable_data_ptr());
    peaks.num_peaks = static_cast<int>(num_peaks);
    peaks.peaks = static_cast<int64_t*>(centers.mutable_data_ptr());
  });
  return {centers, score};
}

template <typename T>
cudaError_t run_scatter_merge(const Tensor& tokens, const Tensor& center_tokens, const MaybeTensor& mask,
                              float merge_floor, bool merge_centers, T* merged, int64_t* assignment, int64_t* counts) {
  TokenInput<T> input(tokens);
  const int frames = input.view.frames, n = input.view.per_frame;
  const int per_frame = static_cast<int>(center_tokens.size(1));
  const int64_t num_centers = static_cast<int64_t>(frames) * per_frame, rows = input.rows();
  const int max_items = frames * ceil_div(per_frame, kMergeCenters);
  FramePlan plan;
  Centers centers{};
  Assignments assignments{};
  const Tensor memory = allocate(tokens, [&](Workspace& workspace) {
    input.take(workspace);
    plan = take_plan(workspace, frames, max_items, 1, {frames, frames, clamped(num_centers)});
    centers.list = workspace.take<Center>(num_centers);
    centers.inverse_norms = workspace.take<float>(num_centers);
    centers.flags = workspace.take<uint8_t>(rows);
    assignments.pitch = assignment_pitch(rows);
    assignments.table = workspace.take<uint16_t>(assignments.pitch);
  });
  static_assert(sizeof(unsigned long long) == sizeof(int64_t));
  centers.counts = reinterpret_cast<unsigned long long*>(counts);
  assignments.assignment = assignment;

  const cudaStream_t stream = current_stream(tokens);
  Candidates candidates{};
  candidates.mask = mask ? static_cast<const uint8_t*>(mask->const_data_ptr()) : nullptr;
  candidates.per_frame = n;
  FASTVID_RETURN_IF_FAILED(input.fill(stream));
  FASTVID_RETURN_IF_FAILED(launch_scatter_merge_plan(
      input.view, static_cast<const int64_t*>(center_tokens.const_data_ptr()), per_frame, plan, centers, stream));
  const Output<T> output{merged, input.channels, nullptr, nullptr, 0};
  FASTVID_RETURN_IF_FAILED(
      launch_assign(input.view, plan, centers, candidates, {}, assignments, output, merge_centers, 0, stream));
  return launch_merge(input.view, plan, centers, assignments, output, merge_floor, 0, max_items, stream);
}

std::tuple<Tensor, Tensor, Tensor> scatter_merge(const Tensor& tokens, const Tensor& centers, const MaybeTensor& mask,
                                                 double merge_floor, bool merge_centers) {
  check_scatter_merge(tokens, centers, mask, merge_floor, merge_centers);
  check_limits(tokens);
  const DeviceGuard guard(tokens.get_device_index());
  const int64_t frames = tokens.size(0), n = tokens.size(1), per_frame = centers.size(1);
  Tensor merged = empty_like(tokens, {frames, per_frame, tokens.size(2)}, tokens.scalar_type());
  Tensor assignment = empty_like(tokens, {frames, n}, ScalarType::Long);
  Tensor counts = empty_like(tokens, {frames, per_frame}, ScalarType::Long);
  if (frames == 0) return {merged, assignment, counts};
  if (per_frame == 0) {  // nothing to merge into: -1 everywhere
    check_cuda(
        cudaMemsetAsync(assignment.mutable_data_ptr(), 0xff, frames * n * sizeof(int64_t), current_stream(tokens)),
        "scatter_merge");
    return {merged, assignment, counts};
  }
  const Tensor center_tokens = torch::stable::contiguous(centers);
  const MaybeTensor dense_mask = mask ? MaybeTensor(torch::stable::contiguous(*mask)) : std::nullopt;
  by_dtype(tokens, [&](auto element) {
    using T = decltype(element);
    check_cuda(run_scatter_merge<T>(tokens, center_tokens, dense_mask, static_cast<float>(merge_floor), merge_centers,
                                    static_cast<T*>(merged.mutable_data_ptr()),
                                    static_cast<int64_t*>(assignment.mutable_data_ptr()),
                                    static_cast<int64_t*>(counts.mutable_data_ptr())),
               "scatter_merge");
  });
  return {merged, assignment, counts};
}

}  // namespace
}  // namespace fastvid

STABLE_TORCH_LIBRARY_IMPL(fastvid, CUDA, m) {
  m.impl("prune", TORCH_BOX(&fastvid::prune<false>));
  m.impl("prune_padded", TORCH_BOX(&fastvid::prune<true>));
  m.impl("segment", TORCH_BOX(&fastvid::segment));
  m.impl("plan", TORCH_BOX(&fastvid::plan));
  m.impl("knn_density", TORCH_BOX(&fastvid::knn_density));
  m.impl("select_peaks", TORCH_BOX(&fastvid::select_peaks));
  m.impl("scatter_merge", TORCH_BOX(&fastvid::scatter_merge));
}
