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

// What one block merges at a time: centres, and anchor frames that they may come from.
constexpr int kMergeCenters = 128;
constexpr int kMergeItemAnchors = 16;
// Anchor frames of a segment whose assignments are held at once; segments with more are merged in several passes.
constexpr int kMergeAnchors = 128;

// What `plan` decides for a frame, and where its segment stands. One load brings it all.
struct alignas(16) FrameRecord {
  int segment_begin, segment_end;  // frames of the segment
  int first_anchor, end_anchor;    // of the segment, in the list of anchor frames
  int first_center, end_center;    // of the segment, in the list of centres
  int num_salient, num_context;    // of the frame
  int row_offset;                  // kept rows before the frame
  int center_offset;               // centres before the frame
  int own_anchor;                  // which anchor frame of the segment it is, -1: none
  int unused;
};

// A density peak that tokens merge into.
struct alignas(16) Center {
  int row;                 // flat token index, -1: none
  int output_row;          // row of the result
  int anchor;              // which anchor frame of the segment it belongs to
  uint16_t number, count;  // which centre of that frame it is, of how many
};

// A part of the centres of a segment, from at most kMergeItemAnchors anchor frames.
struct alignas(16) MergeItem {
  int first_frame, end_frame;     // the segment
  int first_center, end_center;   // in the list of centres
  int first_anchor, num_anchors;  // of the segment
  int pass;                       // first_anchor / kMergeAnchors
  int unused;
};

struct PlanTotals {
  int anchors, items, rows;
};

struct FramePlan {
  FrameRecord* records;  // (T,)
  int* anchors;          // (T,) the anchor frames, ascending
  MergeItem* items;      // (max_merge_items,)
  PlanTotals* totals;    // (1,)
  int* scratch;          // (plan_scratch(T),) where shared memory does not suffice
  int* tickets;          // (passes,) work units that blocks have taken, per pass of merging
  PlanEstimate estimate;
};

// The centres of all frames, in ascending order of token.
struct Centers {
  Center* list;
  float* inverse_norms;
  unsigned long long* counts;  // tokens merged into each
  uint8_t* flags;              // (T*N,) whether a token is a centre
};

// Which tokens a stage considers: by an explicit mask, by saliency rank, or all.
struct Candidates {
  const uint8_t* mask = nullptr;         // (T*N,)
  const uint16_t* rank = nullptr;        // (T*N,) place by saliency, with records
  const FrameRecord* records = nullptr;  // tokens ranked below their frame's num_salient are salient, no candidates
  int per_frame = 0;                     // N

  // What memory says of a token, and what follows from it.
  __device__ __forceinline__ int mark(int frame, int token) const {
    const int64_t i = static_cast<int64_t>(frame) * per_frame + token;
    if (rank != nullptr) return rank[i];
    return mask == nullptr || mask[i];
  }
  __device__ __forceinline__ bool takes_part(int mark, int num_salient) const {
    return rank != nullptr ? mark >= num_salient : mark != 0;
  }
  __device__ __forceinline__ bool operator()(int frame, int token) const {
    return takes_part(mark(frame, token), rank != nullptr ? records[frame].num_salient : 0);
  }
};

// Saliency whose ranks are wanted, and what is written of it.
struct Ranking {
  AnyFloats saliency;
  uint16_t* rank;         // (T*N,) place among the frame's tokens
  uint8_t* center_flags;  // (T*N,) cleared
};

// Means of the tokens of each frame.
struct FrameFeatures {
  float* data;  // (T, stride), or null: not wanted
  int stride;
};

// ---- segment.cu
template <typename T>
cudaError_t launch_frame_features(const Tokens<T>& tokens, const FrameFeatures& features, cudaStream_t stream);
cudaError_t launch_similarity(const AnyFloats& features, int frames, const Videos& videos, float* similarity,
                              cudaStream_t stream);
cudaError_t launch_segment(const float* similarity, int frames, const Videos& videos, float threshold, int min_segments,
                           int* scratch, int* segment_ids, cudaStream_t stream);
inline int64_t segment_scratch(int64_t frames) { return 2 * frames; }

// ---- plan.cu
struct SegmentParams {
  Videos videos;
  float threshold;   // tau
  int min_segments;  // c
};
inline int64_t plan_scratch(int64_t frames) { return 9 * frames + 8; }
// num_salient and num_context of frames whose segments are given.
cudaError_t launch_plan(const int* segment_ids, const float* similarity, int frames, const BudgetParams& params,
                        const FramePlan& plan, int* num_salient, int* num_context, cudaStream_t stream);
// Segments and plan, for prune, and ranks of the saliency; also clears the counts of max_centers centres and the
// tickets.
cudaError_t launch_segment_and_plan(const float* similarity, int frames, const SegmentParams& segments,
                                    const BudgetParams& params, const FramePlan& plan, const Ranking& ranking,
                                    const Centers& centers, int max_centers, int passes, cudaStream_t stream);

// ---- gram.cu
// Whether products of all frames come with the features of those, so that the tokens are read once for both.
template <typename T>
cudaError_t gram_makes_features(int per_frame, bool& makes);
// Products of all pairs of tokens of the anchor frames, in their order, or of every frame where plan is null, into
// rows (gram.cuh). As many of those frames are expected; any number will do. Without a plan also features, if those
// are wanted and gram_makes_features.
template <typename T>
cudaError_t launch_gram(const Tokens<T>& tokens, const FramePlan* plan, int expected, float* gram,
                        const FrameFeatures& features, cudaStream_t stream);

// What launch_gram leaves.
struct Products {
  const float* rows = nullptr;  // (gram.cuh), of one frame after the other
  bool of_all = false;          // of all frames, or of the anchor frames

  // Place of an anchor frame, the item-th of them.
  __device__ __forceinline__ int64_t place(int frame, int item) const { return of_all ? frame : item; }
};

// ---- density_peaks.cu
struct DensityPeaks {
  int frames, per_frame;   // T, N
  float inverse_channels;  // 1 / D
  Candidates candidates;
  int num_neighbors;           // k
  const float* given_density;  // (B, N) or null: computed
  float* density;              // (B, N) or null
  float* score;                // (B, N) or null
  // Choice of centres: for prune by the plan into `centers`, for select_peaks num_peaks a frame into `peaks`.
  bool planned;
  FramePlan plan;
  Centers centers;
  int num_peaks;
  int64_t* peaks;  // (B, num_peaks) or null
  Products products;
};
// Floats of a frame's products, and of what launch_density_peaks needs in device memory besides, for as many anchor
// frames as are to be expected.
int64_t gram_floats(int per_frame);
cudaError_t density_peaks_floats(int frames, int per_frame, int expected, int64_t& floats);
cudaError_t launch_density_peaks(const DensityPeaks& peaks, float* workspace, cudaStream_t stream);

// ---- scatter_merge.cu
constexpr uint16_t kNoNumber = 0xffff;  // past that of any centre: the token does not merge

struct Assignments {
  uint16_t* table;  // (at most kMergeAnchors, pitch): per anchor frame of a segment, the number of each row's centre
  int64_t pitch;
  int64_t* assignment;  // (B, N) or null: the op's result
};
inline int64_t assignment_pitch(int64_t rows) { return (rows + 63) / 64 * 64; }

// Where merged and kept rows go.
template <typename T>
struct Output {
  T* rows;            // (capacity, channels)
  int channels;       // D
  int64_t* indices;   // (capacity,), null: scatter_merge, no kept rows
  int* frame_counts;  // (T,)
  int capacity;       // rows past the kept ones are filled with 0 and index -1

  __device__ __forceinline__ T* row(int index) const { return rows + static_cast<int64_t>(index) * channels; }
};
// Also writes the rows that are kept as they are, and what is said of all kept rows. Products, if given, are looked up
// where they have all that is wanted of a frame.
template <typename T>
cudaError_t launch_assign(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                          const Candidates& candidates, const Products& products, const Assignments& assignments,
                          const Output<T>& output, bool merge_centers, int pass, cudaStream_t stream);
// The plan of the op scatter_merge: every frame is a segment with one anchor frame, itself, and given centres.
template <typename T>
cudaError_t launch_scatter_merge_plan(const Tokens<T>& tokens, const int64_t* center_tokens, int centers_per_frame,
                                      const FramePlan& plan, const Centers& centers, cudaStream_t stream);

template <typename T>
cudaError_t launch_merge(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                         const Assignments& assignments, const Output<T>& output, float merge_floor, int pass,
                         int max_items, cudaStream_t stream);

// ---- prune.cu
// Copies tokens of any strides into whole vectors, padded with zeros.
template <typename T>
cudaError_t launch_pack(const T* source, int64_t frame_stride, int64_t token_stride, int64_t channel_stride,
                        int channels, const Tokens<T>& packed, cudaStream_t stream);
// Writes boundaries that stand on the host, as kernel arguments, so that a capture keeps them.
cudaError_t launch_store_cu_frames(const int32_t* host, int count, int32_t* device, cudaStream_t stream);

}  // namespace fastvid
