// The most similar centre of every token, per anchor frame of its segment.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <type_traits>

#include "block.cuh"
#include "cluster.cuh"
#include "emit.cuh"
#include "gram.cuh"
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
  // How many of the stages they take.
  __host__ __device__ constexpr int score_stages() const {
    return ceil_div(pitch() * centers * static_cast<int>(sizeof(float)), bytes());
  }
  constexpr bool scores_fit() const { return score_stages() <= assign_stages(centers); }
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

template <typename T>
struct AssignWork {
  Tokens<T> tokens;
  FramePlan plan;
  Centers centers;
  Candidates candidates;
  Products products;
  Assignments assignments;
  Output<T> output;
  bool merge_centers;
  int pass, parts;  // of a frame's tokens
  AssignTile tile;
};

// What a block keeps in shared memory beside its stages; rows are those of the part at hand.
template <int kCenters>
struct AssignState {
  Choice best[2][kAssignRows];  // of the anchor frame that a turn, odd or even, left open
  Center centers[kCenters];     // of the turn
  // What a score is multiplied with, and at least is then; of no centre {NaN, -INFINITY}, which is less than any other.
  float2 scales[kCenters];
  int anchor_centers[kCenters];  // first centre in the turn, of each anchor frame that has some there
  bool mergeable[kAssignRows], is_center[kAssignRows];
  KeptRow kept_rows[kAssignRows];
  Counts scratch[kAssignThreads / kWarp];
};

// One block of assign_kernel. The blocks of a cluster share the channels of a part of a frame's tokens, at most
// tile.rows; these are compared with up to kCenters centres a turn. kLooksUp: products are given.
template <typename T, int kCenters, bool kLooksUp>
class AssignBlock {
 public:
  __device__ __forceinline__ AssignBlock(const AssignWork<T>& work, unsigned char* stages, AssignState<kCenters>& state)
      : work_(work), stages_(stages), state_(state), slices_(work.tokens.row_bytes(), rank_, ranks_) {}

  __device__ __forceinline__ void run() {
    // Tokens are none of the pipeline's results: they come while the kernels before this one end. So do the tokens of
    // the next turn, as far as there is room, while this one chooses.
    const int first = blockIdx.x / ranks_, prefetched = min(kAhead, kStages - first_stage_);
    for (int slice = 0; slice < kAhead; ++slice) start_tokens(part_of(first), slice);
    // In prune the plan is older than the predecessor; scatter_merge makes it right before.
    const bool keeps = keeps_rows();
    if (!keeps) wait_for_predecessor();
    Turn turn = first_turn(first);
    if (keeps) wait_for_predecessor();
    int started = kAhead;
    if (turn.part.unit != first) {
      commit_copies();
      wait_copies<0>();
      started = 0;
    }
    OwnCenter center = load_center(turn);
    OwnToken token = load_token(turn);
    while (turn.part.unit < num_units()) {
      part_ = turn.part;
      list_centers(turn, center);
      const bool multiplies = has_to_multiply(turn);
      for (int slice = 0; multiplies && slice < kAhead; ++slice) {
        if (slice >= started) start_tokens(part_, slice);
        start_centers(slice);
      }
      num_kept_ = 0;
      if (turn.index == 0) list_tokens(turn.record, token);  // while they come
      if (multiplies) {
        multiply_centers(turn.num_centers);
      } else {
        drop_tokens();
      }
      const Turn next = turn_after(turn);
      for (int slice = 0; slice < prefetched; ++slice) start_tokens(next.part, slice);
      started = prefetched;
      if (multiplies) {
        add_up(turn.num_centers);
      } else {
        look_up_scores(turn);
        copy_kept();
        __syncthreads();
      }
      center = load_center(next);
      token = load_token(next);
      choose(turn);
      if (keeps && turn.index == 0 && is_last_of_frame(part_)) {
        fill_rest(work_.output, work_.plan.totals->rows, part_.frame, work_.tokens.frames, rank_, ranks_);
      }
      __syncthreads();
      if (multiplies) cluster_wait();  // tiles follow where the scores are, which peers have read
      turn = next;
    }
    wait_copies<0>();
  }

 private:
  static constexpr int kStages = assign_stages(kCenters) - kByParts<T>;  // low parts take the place of the last one
  // Slices that come while one is multiplied and the one before it may still be.
  static constexpr int kAhead = assign_stages(kCenters) - 2;
  static constexpr int kCenterCopies = kCenters / kAssignCopyStep;

  // Tokens of a frame that a cluster works on at a time.
  struct Part {
    int unit, frame, first_token, num_tokens;
    const T* source;  // of the thread's first copy
  };
  // Such a part with some of the centres of a pass.
  struct Turn {
    Part part;
    FrameRecord record;
    int index, count;                           // which turn of the part it is, of how many
    int first_center, num_centers, end_center;  // in the list of centres; the pass ends with the last
  };

  __device__ __forceinline__ int num_units() const { return work_.tokens.frames * work_.parts; }
  __device__ __forceinline__ bool keeps_rows() const { return work_.output.indices != nullptr && work_.pass == 0; }

  // Last frames first: of what was read before, they are in L2.
  __device__ __forceinline__ Part part_of(int unit) const {
    const int parts = work_.parts, n = work_.tokens.per_frame, part = unit % parts, first = n * part / parts;
    const int frame = work_.tokens.frames - 1 - unit / parts;
    return {unit, frame, first, n * (part + 1) / parts - first,
            work_.tokens.row(frame * n + first + copy_row_) + first_channel_};
  }
  __device__ __forceinline__ bool is_last_of_frame(const Part& part) const {
    return part.first_token + part.num_tokens == work_.tokens.per_frame;
  }

  // The first turn of a unit or, where it has none in this pass, of the block's next one that has.
  __device__ __forceinline__ Turn first_turn(int unit) const {
    Turn turn{};
    for (; unit < num_units(); unit += gridDim.x / ranks_) {
      turn.part = part_of(unit);
      turn.record = work_.plan.records[turn.part.frame];
      const CenterRange range = centers_of_pass(work_.plan, turn.record, work_.pass);
      // Even turns, since each reads all tokens again; one that only keeps rows where there are no centres.
      turn.count = max(ceil_div(range.end - range.first, work_.tile.centers), static_cast<int>(keeps_rows()));
      turn.first_center = range.first;
      turn.end_center = range.end;
      if (turn.count > 0) {
        turn.num_centers = ceil_div(range.end - range.first, turn.count);
        return turn;
      }
    }
    turn.part.unit = unit;
    return turn;
  }
  __device__ __forceinline__ Turn turn_after(const Turn& turn) const {
    if (turn.index + 1 == turn.count) return first_turn(turn.part.unit + gridDim.x / ranks_);
    Turn next = turn;
    ++next.index;
    next.first_center += turn.num_centers;
    next.num_centers = ceil_div(next.end_center - next.first_center, next.count - next.index);
    return next;
  }

  // Not where there are no centres, nor where the frame is its segment's only anchor frame, so that the centres are its
  // own and the products known.
  __device__ __forceinline__ bool has_to_multiply(const Turn& turn) const {
    const FrameRecord& record = turn.record;
    const bool known = record.own_anchor == 0 && record.end_anchor - record.first_anchor == 1;
    return !kLooksUp || (turn.num_centers > 0 && !known);
  }

  // Slices of a turn begin behind the stages that the scores of the one before it take.
  __device__ __forceinline__ uint32_t stage_at(int slice) const {
    return (slice + first_stage_) % kStages * work_.tile.bytes();
  }
  __device__ __forceinline__ bool is_within(int slice) const {
    return first_channel_ + slice * kSliceChannels<T> < work_.tokens.channels;
  }
  __device__ __forceinline__ void start_tokens(const Part& part, int slice) const {
    if (slice >= slices_.count || part.unit >= num_units()) return;
    const T* const from = part.source + slice * kSliceChannels<T>;
    const uint32_t to = copy_to_ + stage_at(slice);
#pragma unroll
    for (int i = 0; i < kAssignTokenCopies; ++i) {
      const int r = copy_row_ + i * kAssignCopyStep;
      if (r >= work_.tile.rows) break;
      copy_async(to + i * kAssignCopyStep * kTileRowBytes, from + i * kAssignCopyStep * work_.tokens.row_stride,
                 r < part.num_tokens && is_within(slice));
    }
  }

  // The thread's centre of a turn, if there is one.
  struct OwnCenter {
    Center center;
    float inverse_norm;
  };
  __device__ __forceinline__ OwnCenter load_center(const Turn& turn) const {
    if (turn.part.unit >= num_units() || threadIdx.x >= turn.num_centers) return {};
    const int c = turn.first_center + threadIdx.x;
    return {work_.centers.list[c], work_.centers.inverse_norms[c]};
  }
  // A barrier of the block.
  __device__ __forceinline__ void list_centers(const Turn& turn, const OwnCenter& own) {
    const bool present = threadIdx.x < turn.num_centers;
    if (present) {
      state_.centers[threadIdx.x] = own.center;
      state_.scales[threadIdx.x] =
          own.center.row >= 0 ? make_float2(own.inverse_norm, -FLT_MAX) : make_float2(NAN, -INFINITY);
    }
    __syncthreads();
    if (present && (threadIdx.x == 0 || own.center.number == 0)) {
      state_.anchor_centers[own.center.anchor - state_.centers[0].anchor] = threadIdx.x;
    }
    center_copy_.rows = copies_of<kAssignCopyStep>(copy_row_, turn.num_centers);
#pragma unroll
    for (int i = 0; i < kCenterCopies; ++i) {
      const int c = copy_row_ + i * kAssignCopyStep;
      center_copy_.source[i] =
          work_.tokens.row(c < turn.num_centers ? max(state_.centers[c].row, 0) : 0) + first_channel_;
    }
  }
  // The next slice's, and with them whatever tokens are not yet committed.
  __device__ __forceinline__ void start_centers(int slice) {
    if (slice < slices_.count) {
      center_copy_.start(copy_to_ + stage_at(slice) + work_.tile.rows * kTileRowBytes, is_within(slice));
    }
    commit_copies();
  }

  // What memory says of the first token that a thread marks in a turn.
  struct OwnToken {
    int mark, center_flag;
  };
  __device__ __forceinline__ int first_marked(const Part& part) const { return keeps_rows() ? 0 : part.first_token; }
  __device__ __forceinline__ OwnToken load_token(const Turn& turn) const {
    const Part& part = turn.part;
    const int token = first_marked(part) + threadIdx.x;
    if (part.unit >= num_units() || turn.index > 0 || token >= part.first_token + part.num_tokens) return {};
    return load_token(part.frame, token);
  }
  __device__ __forceinline__ OwnToken load_token(int frame, int token) const {
    return {work_.candidates.mark(frame, token), work_.centers.flags[frame * work_.tokens.per_frame + token]};
  }

  // Marks the tokens. Where rows are kept they stand in the order of the frame's tokens: those before the part count.
  __device__ __forceinline__ void list_tokens(const FrameRecord& record, OwnToken own_token) {
    const bool keeps = keeps_rows();
    const int n = work_.tokens.per_frame, begin = first_marked(part_);
    Counts before{};
    for (int base = begin; base < part_.first_token + part_.num_tokens; base += kAssignThreads) {
      const int token = base + threadIdx.x, row = token - part_.first_token, index = part_.frame * n + token;
      const bool exists = row < part_.num_tokens, own = exists && row >= 0;
      if (base > begin && exists) own_token = load_token(part_.frame, token);
      const bool candidate = exists && work_.candidates.takes_part(own_token.mark, record.num_salient);
      const bool center = exists && own_token.center_flag;
      if (own) {
        state_.mergeable[row] = candidate;
        state_.is_center[row] = center;
      }
      if (!keeps) continue;
      const bool salient = exists && !candidate, kept = salient || center;
      Counts total;
      const Counts place = before + block_scan(kept, own && salient, total, state_.scratch);
      if (own && salient) state_.kept_rows[place.b] = {row, record.row_offset + place.a};
      if (own && kept && rank_ == 0) work_.output.indices[record.row_offset + place.a] = index;
      before = before + total;
    }
    num_kept_ = before.b;
    if (keeps && is_last_of_frame(part_) && rank_ == 0 && threadIdx.x == 0) {
      work_.output.frame_counts[part_.frame] = before.a;
    }
  }
  // A slice of the rows that are kept as they are.
  __device__ __forceinline__ void write_kept(int slice) const {
    const unsigned char* const tile = stages_ + stage_at(slice);
    const int channel = first_channel_ + slice * kSliceChannels<T>;
    const auto visit = [&](auto&& write) {
#pragma unroll 1
      for (int i = copy_row_; i < num_kept_; i += kAssignCopyStep) {
        const KeptRow kept = state_.kept_rows[i];
        write(work_.output.row(kept.output_row),
              *reinterpret_cast<const Vector<T>*>(tile + tile_offset(kept.row, chunk_)));
      }
    };
    // Apart, as otherwise what single elements need would be worked out for vectors as well.
    if (work_.output.channels % Vector<T>::kSize != 0) {
      visit([&](T* row, const Vector<T>& value) { write_vector(row, work_.output.channels, channel, value); });
    } else if (is_within(slice)) {
      visit([&](T* row, const Vector<T>& value) { *reinterpret_cast<Vector<T>*>(row + channel) = value; });
    }
  }

  // In place of products: tokens on their way must not come later. A barrier of the block.
  __device__ __forceinline__ void drop_tokens() const {
    commit_copies();
    wait_copies<0>();
    __syncthreads();
  }
  // The scores of this block's tokens with centres of their frame. A barrier has to follow.
  __device__ __forceinline__ void look_up_scores(const Turn& turn) const {
    const OwnTokens own = own_tokens();
    const GramShape shape(work_.tokens.per_frame);
    const float* const products =
        work_.products.rows + work_.products.place(part_.frame, turn.record.first_anchor) * shape.floats();
#pragma unroll 1
    for (int unit = threadIdx.x; unit < turn.num_centers * own.count; unit += kAssignThreads) {
      const int c = unit / own.count, row = own.first + unit - c * own.count, token = part_.first_token + row;
      const int center = max(state_.centers[c].row - part_.frame * work_.tokens.per_frame, 0);  // of none, any score
      scores()[c * work_.tile.pitch() + row] = products[shape.at(min(token, center)) + max(token, center)];
    }
  }
  // This block's channels of all rows that are kept as they are.
  __device__ __forceinline__ void copy_kept() const {
    const int vectors = slices_.count * 8, first_row = part_.frame * work_.tokens.per_frame + part_.first_token;
#pragma unroll 1
    for (int unit = threadIdx.x; unit < num_kept_ * vectors; unit += kAssignThreads) {
      const int i = unit / vectors, channel = (slices_.first * 8 + unit - i * vectors) * Vector<T>::kSize;
      if (channel >= work_.tokens.channels) continue;
      const KeptRow kept = state_.kept_rows[i];
      write_vector(work_.output.row(kept.output_row), work_.output.channels, channel,
                   *reinterpret_cast<const Vector<T>*>(work_.tokens.row(first_row + kept.row) + channel));
    }
  }

  // Scores of the centres, by 64, with the first eights of tokens of each half; static numbers for the sake of the
  // inner loop. Rows past the last token or centre hold what they will: nothing comes of their scores.
  template <int kBlocks, int kColumns>
  __device__ __forceinline__ void multiply(int num_centers) {
    const int rows = work_.tile.rows, half = half_of_part(), group_row = uniform(threadIdx.x / kWarpgroup) * half;
    const uint32_t first_stage = shared_address(stages_);
    float sums[kBlocks][kColumns][4] = {};
    if constexpr (kByParts<T>) {
      const int low_tile = kStages * work_.tile.bytes();
      multiply_slices_by_parts(
          slices_.count,
          [](int slice) {
            if (slice == 0) {
              wait_copies<kAhead - 1>();
            } else {
              wait_copies<kAhead - 2>();  // a group for the slice that takes the place of the last one is yet to come
            }
          },
          [&](int slice, int h) {
            write_low_parts<kAssignThreads, kAssignRows + most_centers<T>(kAssignRows)>(
                stages_ + stage_at(slice), stages_ + low_tile, rows + num_centers, h);
          },
          [&](int slice, int h) {
            const uint32_t tile = first_stage + stage_at(slice), token_at = group_row * kTileRowBytes;
#pragma unroll
            for (int m = 0; m < kBlocks; ++m) {
              const int center_at = (rows + m * kWarpgroupRows) * kTileRowBytes;
              multiply_parts<kColumns>(sums[m], tile + center_at, tile + token_at, first_stage + low_tile + center_at,
                                       first_stage + low_tile + token_at, h);
            }
          },
          [&](int slice, int h) {
            if (h == 0) {
              start_tokens(part_, slice + kAhead);
            } else {
              start_centers(slice + kAhead);
              write_kept(slice);
            }
          });
    } else {
      for (int slice = 0; slice < slices_.count; ++slice) {
        wait_copies<kAhead - 1>();
        publish_copies();
        __syncthreads();
        const uint32_t tile = first_stage + stage_at(slice);
        begin_products<T>();
#pragma unroll
        for (int step = 0; step < kSliceSteps; ++step) {
#pragma unroll
          for (int m = 0; m < kBlocks; ++m) {
            multiply_step<T, kColumns>(sums[m], tile + (rows + m * kWarpgroupRows) * kTileRowBytes,
                                       tile + group_row * kTileRowBytes, step);
          }
        }
        commit_products<T>();
        // Where the slice before the last one was: its products have ended, as every warp saw before the barrier.
        start_tokens(part_, slice + kAhead);
        start_centers(slice + kAhead);
        write_kept(slice);
        wait_products<T, 1>();
      }
      wait_products<T>();
    }
    wait_copies<0>();
    __syncthreads();
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, pitch = work_.tile.pitch();
#pragma unroll
    for (int m = 0; m < kBlocks; ++m) {
      const int center = m * kWarpgroupRows + warp % 4 * 16 + lane / 4;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const int token = c * 8 + lane % 4 * 2;
        if (token >= half || group_row + token >= rows) break;
        float* const at = scores() + center * pitch + group_row + token;
        *reinterpret_cast<float2*>(at) = make_float2(sums[m][c][0], sums[m][c][1]);
        *reinterpret_cast<float2*>(at + 8 * pitch) = make_float2(sums[m][c][2], sums[m][c][3]);
      }
    }
  }
  template <int kColumns>
  __device__ __forceinline__ void multiply_columns(int num_centers) {
    constexpr int kMostBlocks = std::min(kCenters, most_centers<T>(kColumns * 16)) / kWarpgroupRows;
    if (num_centers <= kWarpgroupRows) {
      multiply<1, kColumns>(num_centers);
    } else if (kMostBlocks == 2 || num_centers <= 2 * kWarpgroupRows) {
      multiply<2, kColumns>(num_centers);
    } else {
      multiply<kMostBlocks, kColumns>(num_centers);
    }
  }
  __device__ __forceinline__ void multiply_centers(int num_centers) {
    const int half = half_of_part();
    if (half <= 72) {
      multiply_columns<9>(num_centers);
    } else if (half <= 104) {
      multiply_columns<13>(num_centers);
    } else {
      multiply_columns<16>(num_centers);
    }
  }

  // Adds up the scores of this block's tokens over the cluster.
  __device__ __forceinline__ void add_up(int num_centers) {
    cluster_sync<Writes::kOwnShared>();
    if (ranks_ == 1) return;
    const OwnTokens own = own_tokens();
    const int quads = ceil_div(own.count, 4);
    for (int unit = threadIdx.x; unit < num_centers * quads; unit += kAssignThreads) {
      const int c = unit / quads;
      float4* const at = reinterpret_cast<float4*>(scores() + c * work_.tile.pitch() + own.first) + unit - c * quads;
      *at = cluster_total(at, ranks_);
    }
    __syncthreads();
    cluster_arrive();
  }

  // The best centre of this block's tokens, by a thread a token and anchor frame. A token's own norm is common to its
  // scores.
  __device__ __forceinline__ void choose(const Turn& turn) {
    constexpr int kAtOnce = 8;  // loads under way
    const OwnTokens own = own_tokens();
    const int pitch = work_.tile.pitch(), first_anchor = state_.centers[0].anchor;
    const int num_anchors = turn.num_centers > 0 ? state_.centers[turn.num_centers - 1].anchor - first_anchor + 1 : 0;
    for (int unit = threadIdx.x; unit < own.count * num_anchors; unit += kAssignThreads) {
      const int anchor = unit / own.count, row = own.first + unit - anchor * own.count;
      const int first = state_.anchor_centers[anchor];
      const Center center = state_.centers[first];
      const int past = first + center.count - center.number, end = min(past, turn.num_centers);
      Choice choice{-INFINITY, -1};
      for (int c = first; c < end; c += kAtOnce) {
        float cosines[kAtOnce];
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          const int at = min(c + e, end - 1);  // the last one again does not count
          const float2 scale = state_.scales[at];
          cosines[e] = fmaxf(scores()[at * pitch + row] * scale.x, scale.y);
        }
#pragma unroll
        for (int e = 0; e < kAtOnce; ++e) {
          if (cosines[e] > choice.cosine) choice = {cosines[e], turn.first_center + c + e};
        }
      }
      if (center.number > 0) {
        const Choice before = state_.best[(turn.index + 1) % 2][row];
        if (before.center >= 0 && (choice.center < 0 || before.cosine >= choice.cosine)) choice = before;
      }
      if (past > turn.num_centers) {  // the next turn has more centres of this frame
        state_.best[turn.index % 2][row] = choice;
        continue;
      }
      const int token = part_.frame * work_.tokens.per_frame + part_.first_token + row;
      const bool merges = choice.center >= 0 && state_.mergeable[row] &&
                          (work_.merge_centers || !state_.is_center[row] || center.anchor != turn.record.own_anchor);
      const int number = choice.center - (turn.first_center + first - center.number);
      const Assignments& assignments = work_.assignments;
      if (merges) atomicAdd(work_.centers.counts + choice.center, 1ull);
      assignments.table[(center.anchor - work_.pass * kMergeAnchors) * assignments.pitch + token] =
          static_cast<uint16_t>(merges ? number : kNoNumber);
      if (assignments.assignment != nullptr) assignments.assignment[token] = merges ? number : -1;
    }
  }

  // Tokens of each warpgroup, a multiple of eight.
  __device__ __forceinline__ int half_of_part() const { return ceil_div(part_.num_tokens, 16) * 8; }
  // Rows whose scores this block adds up; whole float4 of them but for the last.
  struct OwnTokens {
    int first, count;
  };
  __device__ __forceinline__ OwnTokens own_tokens() const {
    const int n = part_.num_tokens, first = n * rank_ / ranks_ / 4 * 4;
    return {first, (rank_ + 1 == ranks_ ? n : n * (rank_ + 1) / ranks_ / 4 * 4) - first};
  }
  // (centres, pitch), where the first stages were.
  __device__ __forceinline__ float* scores() const { return reinterpret_cast<float*>(stages_); }

  const AssignWork<T>& work_;
  unsigned char* const stages_;
  AssignState<kCenters>& state_;
  const int ranks_ = cluster_size(), rank_ = cluster_rank();
  const int copy_row_ = threadIdx.x / 8, chunk_ = threadIdx.x % 8;
  const int first_stage_ = work_.tile.score_stages();
  const Slices slices_;
  const int first_channel_ = (slices_.first * 8 + chunk_) * Vector<T>::kSize;
  const uint32_t copy_to_ = shared_address(stages_) + tile_offset(copy_row_, chunk_);
  Part part_;
  SliceCopy<T, kCenterCopies, kAssignCopyStep> center_copy_;
  int num_kept_;
};

}  // namespace fastvid
