// The most similar centre of every token, per anchor frame of its segment.
#pragma once

#include <algorithm>
#include <type_traits>

#include "block.cuh"
#include "cluster.cuh"
#include "emit.cuh"
#include "pipeline.h"
#include "wgmma.cuh"

namespace fastvid {

constexpr int kAssignThreads = 2 * kWarpgroup;  // each warpgroup takes a half of the tokens
constexpr int kAssignRows = 256;                // tokens of a frame that a cluster compares at a time at most
// Centres that it compares them with, by one of two kinds of kernel. The fewer, the more stages of copies there is room
// for.
constexpr int kFewCenters = 2 * kWarpgroupRows, kManyCenters = 3 * kWarpgroupRows;
constexpr int assign_stages(int centers) { return centers > kFewCenters ? 4 : 5; }
// Fewer where their sums, with this many tokens, do not fit into registers.
template <typename T>
__host__ __device__ constexpr int most_centers(int rows) {
  return sizeof(T) == 4 || rows > 13 * 16 ? kFewCenters : kManyCenters;
}
constexpr int kAssignCopyStep = kAssignThreads / 8;  // rows between a thread's copies
constexpr int kAssignTokenCopies = kAssignRows / kAssignCopyStep;

// What a block holds at a time, of which the slices of a stage take a row each.
struct AssignTile {
  int rows;     // tokens, a multiple of 16
  int centers;  // a multiple of kWarpgroupRows

  __host__ __device__ constexpr int bytes() const { return (rows + centers) * kTileRowBytes; }
  // Scores, (centers, pitch), stand where the stages were.
  __host__ __device__ constexpr int pitch() const { return rows + 4; }
  constexpr bool scores_fit() const {
    return pitch() * centers * static_cast<int>(sizeof(float)) <= assign_stages(centers) * bytes();
  }
};
static_assert(AssignTile{kAssignRows, kManyCenters}.scores_fit() && AssignTile{16, kManyCenters}.scores_fit());

// The best centre so far, by cosine and then by the lower index; NaN is as little as can be. center -1: none.
struct Choice {
  float cosine;
  int center;
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

// Works on part `part` of `parts` of a frame's tokens, at most shape.rows, in a cluster that shares the channels; on up
// to kCenters centres at a time.
template <typename T, int kCenters>
__device__ __forceinline__ void assign_part(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                            const Candidates& candidates, const Assignments& assignments,
                                            const Output<T>& output, bool merge_centers, int pass, int frame, int part,
                                            int parts, const AssignTile& shape, unsigned char* shared) {
  constexpr int kStages = assign_stages(kCenters) - kByParts<T>;  // low parts take the place of the last one
  constexpr int kAhead = assign_stages(kCenters) - 2;  // slices that come while one is multiplied and one may still be
  constexpr int kCenterCopies = kCenters / kAssignCopyStep;
  __shared__ Choice best[2][kAssignRows];  // of the anchor frame that a tile of centres, odd or even, left open
  __shared__ Center tile_centers[kCenters];
  __shared__ float inverse_norms[kCenters];  // -1: no centre
  __shared__ int anchor_centers[kCenters];   // first centre in the tile, of each anchor frame that has some there
  __shared__ bool mergeable[kAssignRows], is_center[kAssignRows];
  __shared__ KeptRow kept_rows[kAssignRows];
  __shared__ Counts scratch[kAssignThreads / kWarp];
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
  const int half = ceil_div(num_tokens, 16) * 8, pitch = shape.pitch();
  const int group_row = threadIdx.x / kWarpgroup * half;  // first token of the warpgroup's half
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const uint32_t tile0 = shared_address(shared), copy_at = tile_offset(copy_row, chunk);

  const int first_channel = (slices.first * 8 + chunk) * Vector<T>::kSize;
  const auto slice_tile = [&](int slice) { return tile0 + slice % kStages * shape.bytes() + copy_at; };
  const auto is_within = [&](int slice) { return first_channel + slice * kSliceChannels<T> < tokens.channels; };
  const T* const source = tokens.row(frame * n + first_token + copy_row) + first_channel;
  const auto start_tokens = [&](int slice) {
    if (slice >= slices.count) return;
    const T* const from = source + slice * kSliceChannels<T>;
#pragma unroll
    for (int i = 0; i < kAssignTokenCopies; ++i) {
      const int r = copy_row + i * kAssignCopyStep;
      if (r >= shape.rows) break;
      copy_async(slice_tile(slice) + i * kAssignCopyStep * kTileRowBytes,
                 from + i * kAssignCopyStep * tokens.row_stride, r < num_tokens && is_within(slice));
    }
  };
  // Tokens are none of the pipeline's results: they come while the kernels before this one end.
  for (int slice = 0; slice < kAhead; ++slice) start_tokens(slice);
  wait_for_predecessor();
  const FrameRecord record = plan.records[frame];
  const CenterRange range = centers_of_pass(plan, record, pass);
  const bool keeps = output.indices != nullptr && pass == 0;
  const int all_kept = keeps ? plan.totals->rows : 0;
  int num_kept = 0;
  // Marks the tokens. Where rows are kept they stand in the order of the frame's tokens: those before this part count.
  const auto list_tokens = [&] {
    Counts before{};
    for (int base = keeps ? 0 : first_token; base < first_token + num_tokens; base += kAssignThreads) {
      const int token = base + threadIdx.x, row = token - first_token, index = frame * n + token;
      const bool exists = row < num_tokens, own = exists && row >= 0;
      const bool candidate = exists && candidates(frame, token), center = exists && centers.flags[index];
      if (own) {
        mergeable[row] = candidate;
        is_center[row] = center;
      }
      if (!keeps) continue;
      const bool salient = exists && !candidate, kept = salient || center;
      Counts total;
      const Counts place = before + block_scan(kept, own && salient, total, scratch);
      if (own && salient) kept_rows[place.b] = {row, record.row_offset + place.a};
      if (own && kept && rank == 0) output.indices[record.row_offset + place.a] = index;
      before = before + total;
    }
    num_kept = before.b;
    if (keeps && part + 1 == parts && rank == 0 && threadIdx.x == 0) output.frame_counts[frame] = before.a;
  };
  // Even tiles, since each reads all tokens again; one that only keeps rows where there are no centres.
  const int num_tiles = max(ceil_div(range.end - range.first, shape.centers), static_cast<int>(keeps));

  for (int t = 0, tile_center = range.first; t < num_tiles; ++t) {
    const int num_centers = ceil_div(range.end - tile_center, num_tiles - t);
    if (threadIdx.x < num_centers) {
      const Center center = centers.list[tile_center + threadIdx.x];
      tile_centers[threadIdx.x] = center;
      inverse_norms[threadIdx.x] = center.row >= 0 ? centers.inverse_norms[tile_center + threadIdx.x] : -1.0f;
    }
    __syncthreads();
    if (threadIdx.x < num_centers) {
      const Center center = tile_centers[threadIdx.x];
      if (threadIdx.x == 0 || center.number == 0) anchor_centers[center.anchor - tile_centers[0].anchor] = threadIdx.x;
    }
    SliceCopy<T, kCenterCopies, kAssignCopyStep> center_copy;
    center_copy.rows = copies_of<kAssignCopyStep>(copy_row, num_centers);
#pragma unroll
    for (int i = 0; i < kCenterCopies; ++i) {
      const int c = copy_row + i * kAssignCopyStep;
      center_copy.source[i] = tokens.row(c < num_centers ? max(tile_centers[c].row, 0) : 0) + first_channel;
    }
    const auto start_centers = [&](int slice) {
      if (slice < slices.count) center_copy.start(slice_tile(slice) + shape.rows * kTileRowBytes, is_within(slice));
      commit_copies();
    };
    for (int slice = 0; slice < kAhead; ++slice) {
      if (t > 0) start_tokens(slice);
      start_centers(slice);
    }
    if (t == 0) list_tokens();  // while they come

    const auto write_kept = [&](int slice) {
      if (t > 0) return;
      for (int i = copy_row; i < num_kept; i += kAssignCopyStep) {
        const KeptRow kept = kept_rows[i];
        const unsigned char* const from = shared + slice % kStages * shape.bytes() + tile_offset(kept.row, chunk);
        write_vector(output.row(kept.output_row), output.channels, first_channel + slice * kSliceChannels<T>,
                     *reinterpret_cast<const Vector<T>*>(from));
      }
    };
    // Products of the centres, by 64, with the first eights of tokens of each half; static numbers for the sake of the
    // inner loop. Rows past the last token or centre hold what they will: no score comes of them.
    const auto multiply_slices = [&](auto blocks, auto columns) {
      float sums[blocks()][columns()][4] = {};
      if constexpr (kByParts<T>) {
        const int low_tile = kStages * shape.bytes();
        multiply_slices_by_parts(
            slices.count,
            [](int slice) {
              if (slice == 0) {
                wait_copies<kAhead - 1>();
              } else {
                wait_copies<kAhead - 2>();  // a group for the slice that takes the place of the last one is yet to come
              }
            },
            [&](int slice, int h) {
              write_low_parts<kAssignThreads, kAssignRows + most_centers<T>(kAssignRows)>(
                  shared + slice % kStages * shape.bytes(), shared + low_tile, shape.rows + num_centers, h);
            },
            [&](int slice, int h) {
              const uint32_t tile = tile0 + slice % kStages * shape.bytes();
#pragma unroll
              for (int m = 0; m < blocks(); ++m) {
                const int center_at = (shape.rows + m * kWarpgroupRows) * kTileRowBytes;
                const int token_at = group_row * kTileRowBytes;
                multiply_parts<columns()>(sums[m], tile + center_at, tile + token_at, tile0 + low_tile + center_at,
                                          tile0 + low_tile + token_at, h);
              }
            },
            [&](int slice, int h) {
              if (h == 0) {
                start_tokens(slice + kAhead);
              } else {
                start_centers(slice + kAhead);
                write_kept(slice);
              }
            });
      } else {
        for (int slice = 0; slice < slices.count; ++slice) {
          wait_copies<kAhead - 1>();
          publish_copies();
          __syncthreads();
          const uint32_t tile = tile0 + slice % kStages * shape.bytes();
          begin_products<T>();
#pragma unroll
          for (int step = 0; step < kSliceSteps; ++step) {
#pragma unroll
            for (int m = 0; m < blocks(); ++m) {
              multiply_step<T, columns()>(sums[m], tile + (shape.rows + m * kWarpgroupRows) * kTileRowBytes,
                                          tile + group_row * kTileRowBytes, step);
            }
          }
          commit_products<T>();
          // Where the slice before the last one was: its products have ended, as every warp saw before the barrier.
          start_tokens(slice + kAhead);
          start_centers(slice + kAhead);
          write_kept(slice);
          wait_products<T, 1>();
        }
        wait_products<T>();
      }
      wait_copies<0>();
      __syncthreads();
#pragma unroll
      for (int m = 0; m < blocks(); ++m) {
        const int center = m * kWarpgroupRows + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int c = 0; c < columns(); ++c) {
          const int token = c * 8 + lane % 4 * 2;
          if (token >= half || group_row + token >= shape.rows) break;
          float* const at = scores + center * pitch + group_row + token;
          *reinterpret_cast<float2*>(at) = make_float2(sums[m][c][0], sums[m][c][1]);
          *reinterpret_cast<float2*>(at + 8 * pitch) = make_float2(sums[m][c][2], sums[m][c][3]);
        }
      }
    };
    const auto multiply_centers = [&](auto columns) {
      constexpr int kMostBlocks = std::min(kCenters, most_centers<T>(columns() * 16)) / kWarpgroupRows;
      if (num_centers <= kWarpgroupRows) {
        multiply_slices(std::integral_constant<int, 1>{}, columns);
      } else if (kMostBlocks == 2 || num_centers <= 2 * kWarpgroupRows) {
        multiply_slices(std::integral_constant<int, 2>{}, columns);
      } else {
        multiply_slices(std::integral_constant<int, kMostBlocks>{}, columns);
      }
    };
    if (half <= 72) {
      multiply_centers(std::integral_constant<int, 9>{});
    } else if (half <= 104) {
      multiply_centers(std::integral_constant<int, 13>{});
    } else {
      multiply_centers(std::integral_constant<int, 16>{});
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
    const int num_anchors = num_centers > 0 ? tile_centers[num_centers - 1].anchor - first_anchor + 1 : 0;
    for (int unit = threadIdx.x; unit < num_own * num_anchors; unit += kAssignThreads) {
      const int anchor = unit / num_own, row = first_own + unit - anchor * num_own, first = anchor_centers[anchor];
      const Center center = tile_centers[first];
      const int past = first + center.count - center.number, end = min(past, num_centers);
      Choice choice{-INFINITY, -1};
#pragma unroll 4
      for (int c = first; c < end; ++c) {
        const float inverse = inverse_norms[c], cosine = fmaxf(scores[c * pitch + row] * inverse, -INFINITY);
        const bool present = inverse >= 0.0f, better = cosine > choice.cosine, only = choice.center < 0;
        if (present & (better | only)) choice = {cosine, tile_center + c};
      }
      if (center.number > 0) {
        const Choice before = best[(t + 1) % 2][row];
        if (before.center >= 0 && (choice.center < 0 || before.cosine >= choice.cosine)) choice = before;
      }
      if (past > num_centers) {  // the next tile has more centres of this frame
        best[t % 2][row] = choice;
        continue;
      }
      const int token = frame * n + first_token + row;
      const bool merges = choice.center >= 0 && mergeable[row] &&
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
  if (keeps && part + 1 == parts) fill_rest(output, all_kept, frame, tokens.frames, rank, ranks);
}

}  // namespace fastvid
