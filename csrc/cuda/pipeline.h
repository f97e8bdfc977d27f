// The arrays through which the stages hand on their results, and the launchers of the kernels.
// Launchers take raw device pointers and return CUDA's error; what they are given has been checked.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/plan.h"
#include "cuda/tokens.cuh"

namespace fastvid {

// Where the videos of a batch begin; a boundary that is wrong is clamped, never followed out of bounds.
struct Videos {
  const void* cu_frames = nullptr;  // (count + 1,); null: one video
  bool wide = false;                // int64 rather than int32
  int count = 1;
};

// Centres that one block merges at a time; a segment's centres are cut into items of at most this many.
constexpr int kMergeCenters = 64;
// Anchor frames of a segment whose assignments are held at once; segments with more are merged in several passes.
constexpr int kMergeAnchors = 128;

struct MergeItem {
  int first_frame, end_frame;    // the segment
  int first_center, end_center;  // positions in the list of centres
  int pass;                      // which kMergeAnchors of the segment's anchor frames they belong to
};

// What `plan` decides for T frames. Offsets are exclusive prefix sums over the frames, T+1 entries each.
struct FramePlan {
  int* segment_begin;   // (T,) first frame of the frame's segment
  int* segment_end;     // (T,) one past its last
  int* num_salient;     // (T,)
  int* num_context;     // (T,)
  int* row_offset;      // (T+1,) kept rows before the frame
  int* center_offset;   // (T+1,) centres before the frame
  int* anchor_offset;   // (T+1,) anchor frames before the frame
  int* anchors;         // (T,) the anchor frames
  MergeItem* items;     // (max_merge_items,)
  int* num_items;       // (1,)
};

// The list of all centres, in ascending order of token.
struct Centers {
  int* rows;                    // flat token index, -1: none
  int* output_rows;             // row of the result, null: the position in this list
  unsigned long long* counts;   // tokens merged into it
  uint8_t* flags;               // (T*N,) whether a token is a centre; null: not needed
};

// Which tokens a stage considers: by an explicit mask, by saliency rank, or all.
struct Candidates {
  const uint8_t* mask = nullptr;      // (T*N,)
  const uint16_t* rank = nullptr;     // (T*N,) place by saliency, with num_salient
  const int* num_salient = nullptr;   // (T,) tokens below this rank are salient, no candidates
  int per_frame = 0;                  // N

  __device__ __forceinline__ bool operator()(int frame, int token) const {
    const int64_t i = static_cast<int64_t>(frame) * per_frame + token;
    if (rank != nullptr) return rank[i] >= num_salient[frame];
    return mask == nullptr || mask[i];
  }
};

// ---- segment.cu
template <typename T>
cudaError_t launch_mean_features(const Tokens<T>& tokens, float* features, int features_stride, cudaStream_t stream);
cudaError_t launch_similarity(const AnyFloats& features, int frames, const Videos& videos, float* similarity,
                              cudaStream_t stream);
cudaError_t launch_segment(const float* similarity, int frames, const Videos& videos, float threshold,
                           int min_segments, uint8_t* cuts, int* segment_ids, cudaStream_t stream);

// ---- plan.cu
cudaError_t launch_plan(const int* segment_ids, const float* similarity, int frames, const BudgetParams& params,
                        FramePlan plan, uint8_t* cuts, cudaStream_t stream);
cudaError_t launch_segment_and_plan(const float* similarity, int frames, const Videos& videos, float threshold,
                                    int min_segments, const BudgetParams& params, FramePlan plan, uint8_t* cuts,
                                    Centers centers, int max_centers, cudaStream_t stream);

// ---- density_peaks.cu
template <typename T>
struct DensityPeaks {
  Tokens<T> tokens;
  float inverse_channels;        // 1 / D
  Candidates candidates;
  int num_neighbors;             // k
  const float* given_density;    // (B, N) or null: computed
  float* density;                // (B, N) or null
  float* score;                  // (B, N) or null
  // Choice of centres: for prune by the plan into `centers`, for select_peaks num_peaks a frame into `peaks`.
  const FramePlan* plan_or_null; // host pointer; copied by the launcher
  Centers centers;
  int num_peaks;
  int64_t* peaks;                // (B, num_peaks) or null
};
// Bytes of device memory that the kernel needs for frames of this size.
template <typename T>
cudaError_t density_peaks_workspace(int frames, int per_frame, size_t& bytes);
template <typename T>
cudaError_t launch_density_peaks(const DensityPeaks<T>& work, void* workspace, cudaStream_t stream);

// ---- scatter_merge.cu
struct Assignments {
  uint16_t* table;       // (kMergeAnchors or fewer, pitch): per anchor frame of a segment, each row's centre
  int64_t pitch;
  int64_t* assignment;   // (B, N) or null: the op's result
};
constexpr uint16_t kNotMerged = 0xffff;
inline int64_t assignment_pitch(int64_t rows) { return (rows + 63) / 32 * 32; }

template <typename T>
cudaError_t launch_assign(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                          const Candidates& candidates, const Assignments& assignments, bool merge_centers, int pass,
                          cudaStream_t stream);
cudaError_t launch_scatter_merge_plan(const int64_t* center_tokens, int frames, int per_frame, int centers_per_frame,
                                      FramePlan plan, Centers centers, cudaStream_t stream);

// Where merged and kept rows go.
template <typename T>
struct Output {
  T* rows;             // (capacity, channels)
  int channels;        // D
  int64_t* indices;    // (capacity,), null: scatter_merge, no kept rows
  int* frame_counts;   // (T,)
  int capacity;        // rows past the kept ones are filled with 0 and index -1
};
template <typename T>
cudaError_t launch_merge(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                         const Candidates& candidates, const Assignments& assignments, const Output<T>& output,
                         float merge_floor, int pass, int max_items, cudaStream_t stream);

// ---- prune.cu
cudaError_t launch_rank_saliency(const AnyFloats& saliency, int frames, uint16_t* rank, uint8_t* center_flags,
                                 cudaStream_t stream);
// Copies tokens of any strides into whole vectors, padded with zeros.
template <typename T>
cudaError_t launch_pack(const T* source, int64_t frame_stride, int64_t token_stride, int64_t channel_stride,
                        int channels, const Tokens<T>& packed, cudaStream_t stream);
// Writes boundaries that stand on the host, as kernel arguments, so that a capture keeps them.
cudaError_t launch_store_cu_frames(const int32_t* host, int count, int32_t* device, cudaStream_t stream);

}  // namespace fastvid
