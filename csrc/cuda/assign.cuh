// The most similar centre of every token, per anchor frame of its segment.
#pragma once

#include <type_traits>

#include "block.cuh"
#include "cluster.cuh"
#include "core/order.h"
#include "core/segment.h"
#include "mma.cuh"
#include "pipeline.h"

namespace fastvid {

constexpr int kAssignThreads = 256;
constexpr int kAssignRows = 128;    // tokens of a frame that a cluster compares at a time,
constexpr int kAssignCenters = 64;  // with this many centres
constexpr int kAssignStages = 4;
constexpr int kAssignTileBytes = (kAssignRows + kAssignCenters) * kTileRowBytes;
constexpr int kScorePitch = kAssignCenters + 4;
constexpr int kAssignTokenCopies = kAssignRows * 8 / kAssignThreads;
constexpr int kAssignCenterCopies = kAssignCenters * 8 / kAssignThreads;
constexpr int kScoreLanes = kAssignCenters / 4;  // threads that compare the scores of a token, four each
static_assert(kAssignRows * kScorePitch * sizeof(float) <= kAssignStages * kAssignTileBytes);

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

// Works on part `part` of `parts` of a frame's tokens, in a cluster that shares the channels.
template <typename T>
__device__ __forceinline__ void assign_part(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                            const Candidates& candidates, const Assignments& assignments,
                                            bool merge_centers, int pass, int frame, int part, int parts,
                                            unsigned char* shared) {
  __shared__ Choice best[kAssignRows];  // of the anchor frame that the last tile of centres left open
  __shared__ Center tile_centers[kAssignCenters];
  __shared__ float inverse_norms[kAssignCenters];
  __shared__ bool mergeable[kAssignRows], is_center[kAssignRows];
  float* const scores = reinterpret_cast<float*>(shared);  // (kAssignRows, kScorePitch), where the tiles were

  const int n = tokens.per_frame, ranks = cluster_size(), rank = cluster_rank();
  const int first_token = n * part / parts;
  const int num_tokens = n * (part + 1) / parts - first_token;
  const Slices slices(tokens.row_bytes(), rank, ranks);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_row = warp * 16;
  static_assert(kAssignRows == kAssignThreads / kWarp * 16);
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  constexpr int kCopyStep = kAssignThreads / 8;  // rows between a thread's copies
  const uint32_t tile0 = shared_address(shared), copy_at = tile_offset(copy_row, chunk);

  const int first_channel = (slices.first * 8 + chunk) * Vector<T>::kSize;
  const auto slice_tile = [&](int slice) { return tile0 + slice % kAssignStages * kAssignTileBytes + copy_at; };
  const auto is_within = [&](int slice) { return first_channel + slice * kSliceChannels<T> < tokens.channels; };
  SliceCopy<T, kAssignTokenCopies, kCopyStep> token_copy;
  const auto rewind_tokens = [&] {
#pragma unroll
    for (int i = 0; i < kAssignTokenCopies; ++i) {
      const int r = copy_row + i * kCopyStep;
      token_copy.set(i, tokens.row(frame * n + first_token + (r < num_tokens ? r : 0)) + first_channel, r < num_tokens);
    }
  };
  const auto start_tokens = [&](int slice) {
    if (slice < slices.count) token_copy.start(slice_tile(slice), is_within(slice));
  };
  rewind_tokens();
  // The tokens come while the plan is looked up.
  for (int slice = 0; slice < kAssignStages - 1; ++slice) start_tokens(slice);
  const FrameRecord record = plan.records[frame];
  const CenterRange range = centers_of_pass(plan, record, pass);
  if (threadIdx.x < num_tokens) {
    mergeable[threadIdx.x] = candidates(frame, first_token + threadIdx.x);
    is_center[threadIdx.x] = centers.flags[frame * n + first_token + threadIdx.x];
  }

  for (int tile_center = range.first; tile_center < range.end; tile_center += kAssignCenters) {
    const int num_centers = min(kAssignCenters, range.end - tile_center);
    SliceCopy<T, kAssignCenterCopies, kCopyStep> center_copy;
#pragma unroll
    for (int i = 0; i < kAssignCenterCopies; ++i) {
      const int c = copy_row + i * kCopyStep;
      Center center{-1, 0, -1, 0, 0};
      if (c < num_centers) center = centers.list[tile_center + c];
      center_copy.set(i, tokens.row(max(center.row, 0)) + first_channel, center.row >= 0);
      if (chunk == 0) {
        tile_centers[c] = center;
        inverse_norms[c] = center.row >= 0 ? centers.inverse_norms[tile_center + c] : 0.0f;
      }
    }
    const auto start_centers = [&](int slice) {
      if (slice < slices.count) center_copy.start(slice_tile(slice) + kAssignRows * kTileRowBytes, is_within(slice));
      commit_copies();
    };
    if (tile_center > range.first) rewind_tokens();
    for (int slice = 0; slice < kAssignStages - 1; ++slice) {
      if (tile_center > range.first) start_tokens(slice);
      start_centers(slice);
    }

    float sums[kAssignCenters / 8][4] = {};
    // Products with the first sixteen centres of so many groups; the number is static for the sake of the inner loop.
    const auto multiply_slices = [&](auto groups) {
      for (int slice = 0; slice < slices.count; ++slice) {
        wait_copies(kAssignStages - 2);
        __syncthreads();
        start_tokens(slice + kAssignStages - 1);
        start_centers(slice + kAssignStages - 1);
        const uint32_t tile = tile0 + slice % kAssignStages * kAssignTileBytes;
#pragma unroll
        for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
          uint32_t a[4], b[groups()][4];
          load_rows(a, tile + warp_row * kTileRowBytes, step);
#pragma unroll
          for (int c = 0; c < groups(); ++c) load_columns(b[c], tile + (kAssignRows + c * 16) * kTileRowBytes, step);
#pragma unroll
          for (int c = 0; c < groups(); ++c) {
            multiply(sums[c * 2], a, b[c][0], b[c][1], T{});
            multiply(sums[c * 2 + 1], a, b[c][2], b[c][3], T{});
          }
        }
      }
    };
    if (num_centers <= 32) {
      multiply_slices(std::integral_constant<int, 2>{});
    } else {
      multiply_slices(std::integral_constant<int, kAssignCenters / 16>{});
    }
    wait_copies(0);
    __syncthreads();

#pragma unroll
    for (int c = 0; c < kAssignCenters / 8; ++c) {
      float* const at = scores + (warp_row + lane / 4) * kScorePitch + c * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(sums[c][0], sums[c][1]);
      *reinterpret_cast<float2*>(at + 8 * kScorePitch) = make_float2(sums[c][2], sums[c][3]);
    }
    cluster_sync();

    // The best centre of this block's tokens, kScoreLanes threads a token. A token's own norm is common to its scores.
    const int end_row = num_tokens * (rank + 1) / ranks;
    const int quad = threadIdx.x % kScoreLanes * 4;
    const unsigned group = 0xffffu << (lane & 16);
    static_assert(kScoreLanes == 16);
    for (int first = num_tokens * rank / ranks; first < end_row; first += kAssignThreads / kScoreLanes) {
      const int row = first + threadIdx.x / kScoreLanes;
      if (row >= end_row) continue;
      const float4 score = cluster_total(reinterpret_cast<const float4*>(scores + row * kScorePitch + quad), ranks);
      const float products[4] = {score.x, score.y, score.z, score.w};
      int keys[4];  // INT32_MIN: no centre
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool present = quad + e < num_centers && tile_centers[quad + e].row >= 0;
        keys[e] = present ? candidate_key(products[e] * inverse_norms[quad + e]) : INT32_MIN;
      }
      // Centre by centre frame: [c, end) are the tile's centres of one anchor frame.
      for (int c = 0, end; c < num_centers; c = end) {
        const Center center = tile_centers[c];
        const int past = c + center.count - center.number;
        end = min(past, num_centers);
        Choice choice{INT32_MIN, -1};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (quad + e >= c && quad + e < end && keys[e] > choice.key) choice = {keys[e], tile_center + quad + e};
        }
        const int key = __reduce_max_sync(group, choice.key);
        const int index = __reduce_min_sync(group, choice.key == key ? static_cast<unsigned>(choice.center) : ~0u);
        choice = {key, index};
        if (quad != 0) continue;
        if (center.number > 0 && best[row].key >= choice.key) choice = best[row];
        if (past > num_centers) {  // the next tile has more centres of this frame
          best[row] = choice;
          continue;
        }
        const int token = frame * n + first_token + row;
        const bool merges = choice.center >= 0 && mergeable[row] &&
                            (merge_centers || !is_center[row] || center.anchor != record.own_anchor);
        const int number = choice.center - (tile_center + c - center.number);
        if (merges) atomicAdd(centers.counts + choice.center, 1ull);
        assignments.table[(center.anchor - pass * kMergeAnchors) * assignments.pitch + token] =
            static_cast<uint16_t>(merges ? kFirstNumber + number : kNoNumber);
        if (assignments.assignment != nullptr) assignments.assignment[token] = merges ? number : -1;
      }
    }
    cluster_sync();  // peers have read this block's scores, and tiles may follow
  }
  wait_copies(0);
}

}  // namespace fastvid
