// The most similar centre of every token, per anchor frame of its segment.
#pragma once

#include <type_traits>

#include "block.cuh"
#include "cluster.cuh"
#include "core/order.h"
#include "core/segment.h"
#include "pipeline.h"
#include "wgmma.cuh"

namespace fastvid {

constexpr int kAssignThreads = 2 * kWarpgroup;  // each warpgroup takes a half of the tokens
constexpr int kAssignRows = 256;                // tokens of a frame that a cluster compares at a time at most,
constexpr int kAssignCenters = 128;             // with this many centres
constexpr int kAssignStages = 4;
constexpr int kAssignCopyStep = kAssignThreads / 8;  // rows between a thread's copies
constexpr int kAssignTokenCopies = kAssignRows / kAssignCopyStep;
constexpr int kAssignCenterCopies = kAssignCenters / kAssignCopyStep;
// Bytes of a stage: one slice of `rows` tokens (a multiple of 16) and of the centres.
__host__ __device__ constexpr int assign_tile_bytes(int rows) { return (rows + kAssignCenters) * kTileRowBytes; }
// Scores, (kAssignCenters, rows), stand where the tiles were.
__host__ __device__ constexpr int score_pitch(int rows) { return rows + 4; }
static_assert(score_pitch(kAssignRows) * kAssignCenters * sizeof(float) <=
              kAssignStages * assign_tile_bytes(kAssignRows));
static_assert(score_pitch(16) * kAssignCenters * sizeof(float) <= kAssignStages * assign_tile_bytes(16));

// The best centre so far, by cosine and then by the lower index; center -1: none.
struct Choice {
  int key, center;
};

// Centres [first, end) of the anchor frames of a segment that a pass takes.
struct CenterRange {
  int first, end;
};
__device__ __forceinline__ CenterRange centers_of_pass(const FramePlan& plan, const FrameRecord& record, int pass) {
  const int first_anchor = record.first_anchor + pass * kMergeAnchors, end_anchor = first_anchor + kMergeAnchors;
  if (first_anchor >= record.end_anchor) return {0, 0};
  return {pass == 0 ? record.first_center : plan.records[plan.anchors[first_anchor]].center_offset,
          end_anchor >= record.end_anchor ? record.end_center : plan.records[plan.anchors[end_anchor]].center_offset};
}

// How many of a thread's rows, the first being copy_row, lie within the first `rows` of a tile.
__device__ __forceinline__ int copies_of(int copy_row, int rows) {
  return max(0, (rows - copy_row + kAssignCopyStep - 1) / kAssignCopyStep);
}

// Works on part `part` of `parts` of a frame's tokens, at most tile_rows (a multiple of 16), in a cluster that shares
// the channels.
template <typename T>
__device__ __forceinline__ void assign_part(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                            const Candidates& candidates, const Assignments& assignments,
                                            bool merge_centers, int pass, int frame, int part, int parts, int tile_rows,
                                            unsigned char* shared) {
  __shared__ Choice best[2][kAssignRows];  // of the anchor frame that a tile of centres, odd or even, left open
  __shared__ Center tile_centers[kAssignCenters];
  __shared__ float inverse_norms[kAssignCenters];  // -1: no centre
  __shared__ int anchor_centers[kAssignCenters];   // first centre in the tile, of each anchor frame that has some there
  __shared__ bool mergeable[kAssignRows], is_center[kAssignRows];
  float* const scores = reinterpret_cast<float*>(shared);  // (centres, pitch), where the tiles were

  const int n = tokens.per_frame, ranks = cluster_size(), rank = cluster_rank();
  const int first_token = n * part / parts;
  const int num_tokens = n * (part + 1) / parts - first_token;
  // Tokens whose scores this block adds up; whole float4 of them but for the last.
  const int first_own = num_tokens * rank / ranks / 4 * 4;
  const int end_own = rank + 1 == ranks ? num_tokens : num_tokens * (rank + 1) / ranks / 4 * 4,
            num_own = end_own - first_own;
  const Slices slices(tokens.row_bytes(), rank, ranks);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int half = ceil_div(num_tokens, 16) * 8, pitch = score_pitch(tile_rows);
  const int group_row = threadIdx.x / kWarpgroup * half;  // first token of the warpgroup's half
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const int tile_bytes = assign_tile_bytes(tile_rows);
  const uint32_t tile0 = shared_address(shared), copy_at = tile_offset(copy_row, chunk);

  const int first_channel = (slices.first * 8 + chunk) * Vector<T>::kSize;
  const auto slice_tile = [&](int slice) { return tile0 + slice % kAssignStages * tile_bytes + copy_at; };
  const auto is_within = [&](int slice) { return first_channel + slice * kSliceChannels<T> < tokens.channels; };
  SliceCopy<T, kAssignTokenCopies, kAssignCopyStep> token_copy;
  token_copy.rows = copies_of(copy_row, tile_rows);
  const auto rewind_tokens = [&] {
#pragma unroll
    for (int i = 0; i < kAssignTokenCopies; ++i) {
      const int r = copy_row + i * kAssignCopyStep;
      token_copy.source[i] = tokens.row(frame * n + first_token + (r < num_tokens ? r : 0)) + first_channel;
    }
  };
  const auto start_tokens = [&](int slice) {
    if (slice < slices.count) token_copy.start(slice_tile(slice), is_within(slice));
  };
  // Tokens are none of the pipeline's results: they come while the kernels before this one end.
  rewind_tokens();
  for (int slice = 0; slice < kAssignStages - 1; ++slice) start_tokens(slice);
  wait_for_predecessor();
  const FrameRecord record = plan.records[frame];
  const CenterRange range = centers_of_pass(plan, record, pass);
  if (threadIdx.x < num_tokens) {
    mergeable[threadIdx.x] = candidates(frame, first_token + threadIdx.x);
    is_center[threadIdx.x] = centers.flags[frame * n + first_token + threadIdx.x];
  }
  // Even tiles, since each reads all tokens again.
  const int num_tiles = ceil_div(range.end - range.first, kAssignCenters);

  for (int t = 0, tile_center = range.first; t < num_tiles; ++t) {
    const int num_centers = ceil_div(range.end - tile_center, num_tiles - t);
    SliceCopy<T, kAssignCenterCopies, kAssignCopyStep> center_copy;
    center_copy.rows = copies_of(copy_row, num_centers);
#pragma unroll
    for (int i = 0; i < kAssignCenterCopies; ++i) {
      const int c = copy_row + i * kAssignCopyStep;
      if (c >= num_centers) continue;
      const Center center = centers.list[tile_center + c];
      center_copy.source[i] = tokens.row(max(center.row, 0)) + first_channel;
      if (chunk == 0) {
        tile_centers[c] = center;
        inverse_norms[c] = center.row >= 0 ? centers.inverse_norms[tile_center + c] : -1.0f;
      }
    }
    const auto start_centers = [&](int slice) {
      if (slice < slices.count) center_copy.start(slice_tile(slice) + tile_rows * kTileRowBytes, is_within(slice));
      commit_copies();
    };
    if (t > 0) rewind_tokens();
    for (int slice = 0; slice < kAssignStages - 1; ++slice) {
      if (t > 0) start_tokens(slice);
      start_centers(slice);
    }

    // Products of the first 64 or 128 centres with the first eights of tokens of each half; static numbers for the sake
    // of the inner loop. Rows past the last token or centre hold what they will: no score comes of them.
    const auto multiply_slices = [&](auto blocks, auto columns) {
      float sums[blocks()][columns()][4] = {};
      for (int slice = 0; slice < slices.count; ++slice) {
        wait_copies<kAssignStages - 2>();
        publish_copies();
        __syncthreads();
        const uint32_t tile = tile0 + slice % kAssignStages * tile_bytes;
        begin_products<T>();
#pragma unroll
        for (int m = 0; m < blocks(); ++m) {
          multiply_slice<T>(sums[m], tile + (tile_rows + m * kWarpgroupRows) * kTileRowBytes,
                            tile + group_row * kTileRowBytes, columns);
        }
        start_tokens(slice + kAssignStages - 1);  // while the tensor cores work
        start_centers(slice + kAssignStages - 1);
        end_products<T>();
      }
      wait_copies<0>();
      __syncthreads();
#pragma unroll
      for (int m = 0; m < blocks(); ++m) {
        const int center = m * kWarpgroupRows + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int c = 0; c < columns(); ++c) {
          const int token = c * 8 + lane % 4 * 2;
          if (token >= half || group_row + token >= tile_rows) break;
          float* const at = scores + center * pitch + group_row + token;
          *reinterpret_cast<float2*>(at) = make_float2(sums[m][c][0], sums[m][c][1]);
          *reinterpret_cast<float2*>(at + 8 * pitch) = make_float2(sums[m][c][2], sums[m][c][3]);
        }
      }
    };
    const auto multiply_centers = [&](auto columns) {
      if (num_centers <= kWarpgroupRows) {
        multiply_slices(std::integral_constant<int, 1>{}, columns);
      } else {
        multiply_slices(std::integral_constant<int, 2>{}, columns);
      }
    };
    if (half <= 64) {
      multiply_centers(std::integral_constant<int, 8>{});
    } else {
      multiply_centers(std::integral_constant<int, 16>{});
    }
    if (threadIdx.x < num_centers) {
      const Center center = tile_centers[threadIdx.x];
      if (threadIdx.x == 0 || center.number == 0) anchor_centers[center.anchor - tile_centers[0].anchor] = threadIdx.x;
    }
    cluster_sync();
    if (ranks > 1) {
      const int quads = ceil_div(num_own, 4);
      for (int unit = threadIdx.x; unit < num_centers * quads; unit += kAssignThreads) {
        const int c = unit / quads;
        float4* const at = reinterpret_cast<float4*>(scores + c * pitch + first_own) + unit - c * quads;
        *at = cluster_total(at, ranks);
      }
      cluster_sync();  // peers have read this block's scores
    }

    // The best centre of this block's tokens, by a thread a token and anchor frame. A token's own norm is common to its
    // scores.
    const int first_anchor = tile_centers[0].anchor;
    const int num_anchors = tile_centers[num_centers - 1].anchor - first_anchor + 1;
    for (int unit = threadIdx.x; unit < num_own * num_anchors; unit += kAssignThreads) {
      const int anchor = unit / num_own, row = first_own + unit - anchor * num_own, first = anchor_centers[anchor];
      const Center center = tile_centers[first];
      const int past = first + center.count - center.number, end = min(past, num_centers);
      Choice choice{INT32_MIN, -1};
#pragma unroll 4
      for (int c = first; c < end; ++c) {
        const float inverse = inverse_norms[c];
        const int key = inverse >= 0.0f ? candidate_key(scores[c * pitch + row] * inverse) : INT32_MIN;
        if (key > choice.key) choice = {key, tile_center + c};
      }
      if (const Choice before = best[(t + 1) % 2][row]; center.number > 0 && before.key >= choice.key) choice = before;
      if (past > num_centers) {  // the next tile has more centres of this frame
        best[t % 2][row] = choice;
        continue;
      }
      const int token = frame * n + first_token + row;
      const bool merges = choice.key > INT32_MIN && mergeable[row] &&
                          (merge_centers || !is_center[row] || center.anchor != record.own_anchor);
      const int number = choice.center - (tile_center + first - center.number);
      if (merges) atomicAdd(centers.counts + choice.center, 1ull);
      assignments.table[(center.anchor - pass * kMergeAnchors) * assignments.pitch + token] =
          static_cast<uint16_t>(merges ? kFirstNumber + number : kNoNumber);
      if (assignments.assignment != nullptr) assignments.assignment[token] = merges ? number : -1;
    }
    __syncthreads();  // tiles follow where the scores are
    tile_center += num_centers;
  }
  wait_copies<0>();
}

}  // namespace fastvid
