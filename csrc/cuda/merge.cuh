// Means of the tokens that merge into a centre, as a product of the tokens with one-hot assignments.
#pragma once

#include <type_traits>

#include "cluster.cuh"
#include "core/scatter_merge.h"
#include "emit.cuh"
#include "pipeline.h"
#include "wgmma.cuh"

namespace fastvid {

constexpr int kMergeThreads = 2 * kWarpgroup;
constexpr int kMostMergeColumns = 16;  // of eight centres, whose sums a warp holds
static_assert(kMergeCenters == kMostMergeColumns * 8 && kMergeCenters <= kMergeThreads);  // a thread lists a centre
constexpr int kManyMergeStages = 4, kFewMergeStages = 3;  // of tiles; few where shared memory does not hold many

// What a block takes of an item at a time: as many tokens as a one-hot row of two-byte elements has room for, and two
// slices of their channels, one for each warpgroup.
constexpr int kMergeRows = kTileRowBytes / sizeof(uint16_t);
constexpr int kMergeSliceBytes = kMergeRows * kTileRowBytes, kMergeTileBytes = 2 * kMergeSliceBytes;
constexpr int kMergeChunks = 2 * kTileRowBytes / kVectorBytes;  // of a token
constexpr int kNumberBytes = kMergeRows * sizeof(uint16_t);     // assignments of an anchor frame's tokens
constexpr int kOneHotBytes = kMergeCenters * kTileRowBytes;

// How a block's shared memory is laid out, in bytes.
template <int kStages>
struct MergeLayout {
  static constexpr int kNumbersAt = kStages * kMergeTileBytes;
  // Assignments come a tile before their tokens, and stay until the next but one.
  static constexpr int kNumberSlots = kStages + 2, kSlotBytes = kMergeItemAnchors * kNumberBytes;
  // There are two one-hot matrices, (centres, tokens): one is made while the tensor cores read the other.
  static constexpr int kOneHotAt = kNumbersAt + kNumberSlots * kSlotBytes, kBytes = kOneHotAt + 2 * kOneHotBytes;
  // Sums, (centres, pitch), take the place of all that; with this pitch, writes of theirs lie in different banks.
  static constexpr int kSumPitch = kMergeChunks * 8 + 4;
  static_assert(kOneHotAt % kTileAlignment == 0 && kMergeCenters * kSumPitch * sizeof(float) <= kBytes);
};

// What a block keeps of a centre.
struct MergeCenter {
  int row, output_row;  // as in Center
  MergeWeights weights;
};

template <typename T>
struct MergeWork {
  Tokens<T> tokens;
  FramePlan plan;
  Centers centers;
  Assignments assignments;
  Output<T> output;
  float merge_floor;
  int pass;
};

struct MergeState {
  MergeCenter centers[kMergeCenters];     // of the unit at hand
  int anchor_centers[kMergeItemAnchors];  // where the first centre of each anchor frame would be among them
  int drawn;                              // the cluster's next unit
};

// One block of merge_kernel. What its cluster works on at a time is a unit: the centres of an item, and a tile of
// channels. The blocks of the cluster share the tokens, and then the centres whose rows they write.
template <typename T, int kStages>
class MergeBlock {
 public:
  using Layout = MergeLayout<kStages>;

  __device__ __forceinline__ MergeBlock(const MergeWork<T>& work, unsigned char* shared, MergeState& state)
      : work_(work), shared_(shared), state_(state) {}

  __device__ __forceinline__ void run() {
    cluster_sync();  // all blocks have started, so that others may write to them
    // The plan is older than the predecessor, which leaves the assignments: these are waited for once a unit, at no
    // cost where they are there.
    const int units = work_.plan.totals->items * channel_tiles_;
    // The first ticket is the cluster's own number, which saves the way to memory.
    const bool draws = rank_ == 0 && threadIdx.x == 0;
    for (int unit = blockIdx.x / ranks_; unit < units;) {
      int next = 0;  // is on its way while the unit is at work
      if (draws) next = gridDim.x / ranks_ + atomicAdd(work_.plan.tickets + work_.pass, 1);
      begin(work_.plan.items[unit / channel_tiles_], unit % channel_tiles_);
      const Center center = threadIdx.x < num_centers_ ? work_.centers.list[first_center_ + threadIdx.x] : Center{};
      for (int t = 0; t < kAhead; ++t) start_tokens(t);
      wait_for_predecessor();
      start_numbers(0);
      for (int t = 0; t < kAhead; ++t) {
        start_numbers(t + 1);
        commit_copies();
      }
      list_centers(center);
      if (num_centers_ <= 32) {
        add_tiles<4>();
      } else if (num_centers_ <= 64) {
        add_tiles<8>();
      } else if (num_centers_ <= 96) {
        add_tiles<12>();
      } else {
        add_tiles<kMostMergeColumns>();
      }
      for (int rank = 0; draws && rank < ranks_; ++rank) *at_rank(&state_.drawn, rank) = next;
      write_rows();
      unit = state_.drawn;
      cluster_sync();  // all have read the ticket, and the sums, which lie where the next tiles will
    }
    wait_for_predecessor();
  }

 private:
  static constexpr int kAhead = kStages - 1;                      // tiles under way
  static constexpr int kCopyStep = kMergeThreads / kMergeChunks;  // rows between a thread's copies
  static constexpr int kNumbers = kVectorBytes / sizeof(uint16_t), kNumberChunks = kNumberBytes / kVectorBytes;
  static_assert(kCopyStep % 8 == 0 && kMergeItemAnchors * kNumberChunks <= kMergeThreads);
  // A one among one-hot elements, of bfloat16 or float16; float32 tokens have bfloat16 ones.
  static constexpr uint16_t kOne = std::is_same_v<T, __half> ? 0x3c00 : 0x3f80;

  // An item of another pass has neither tiles nor centres.
  __device__ __forceinline__ void begin(const MergeItem& item, int channel_tile) {
    const bool taken = item.pass == work_.pass;
    const Tokens<T>& tokens = work_.tokens;
    first_center_ = item.first_center;
    num_centers_ = taken ? item.end_center - item.first_center : 0;
    first_anchor_ = item.first_anchor;
    num_anchors_ = item.num_anchors;
    first_token_ = item.first_frame * tokens.per_frame;
    end_token_ = item.end_frame * tokens.per_frame;
    // Tiles start so that assignments are whole vectors; tokens of other segments count as zeros.
    int start = first_token_ / kNumbers * kNumbers;
    const int tiles = taken ? ceil_div(end_token_ - start, kMergeRows) : 0, first_tile = tiles * rank_ / ranks_;
    num_tiles_ = tiles * (rank_ + 1) / ranks_ - first_tile;
    start += first_tile * kMergeRows;
    channel_ = (channel_tile * kMergeChunks + chunk_) * Vector<T>::kSize;
    token_ = start + copy_row_;
    source_ = tokens.row(token_) + channel_;
    const int row = threadIdx.x / kNumberChunks, chunk = threadIdx.x % kNumberChunks;
    number_token_ = start + chunk * kNumbers;
    numbers_ = work_.assignments.table +
               (item.first_anchor - item.pass * kMergeAnchors + row) * work_.assignments.pitch + number_token_;
  }

  // The next tile's tokens.
  __device__ __forceinline__ void start_tokens(int t) {
    if (t >= num_tiles_) return;
    const uint32_t to = shared_address(shared_) + t % kStages * kMergeTileBytes + chunk_ / 8 * kMergeSliceBytes +
                        tile_offset(copy_row_, chunk_ % 8);
#pragma unroll
    for (int i = 0; i < kMergeRows / kCopyStep; ++i) {
      const int at = token_ + i * kCopyStep;
      const bool present = channel_ < work_.tokens.channels && at >= first_token_ && at < end_token_;
      copy_async(to + i * kCopyStep * kTileRowBytes, source_ + i * kCopyStep * work_.tokens.row_stride, present);
    }
    source_ += kMergeRows * work_.tokens.row_stride;
    token_ += kMergeRows;
  }
  // The next tile's assignments.
  __device__ __forceinline__ void start_numbers(int t) {
    if (t >= num_tiles_ || threadIdx.x >= num_anchors_ * kNumberChunks) return;
    unsigned char* const to = numbers_of(t) + threadIdx.x * kVectorBytes;
    const int first = number_token_, end = first + kNumbers;
    const bool whole = first >= first_token_ && end <= end_token_, none = end <= first_token_ || first >= end_token_;
    if (whole || none) {
      copy_async(shared_address(to), numbers_, whole);
    } else {
      // Another segment shares the vector; it may have fewer anchor frames, and what they lack is not written.
#pragma unroll 1
      for (int e = 0; e < kNumbers; ++e) {
        reinterpret_cast<uint16_t*>(to)[e] =
            first + e >= first_token_ && first + e < end_token_ ? numbers_[e] : kNoNumber;
      }
    }
    numbers_ += kMergeRows;
    number_token_ += kMergeRows;
  }
  __device__ __forceinline__ unsigned char* numbers_of(int t) const {
    return shared_ + Layout::kNumbersAt + t % Layout::kNumberSlots * Layout::kSlotBytes;
  }
  __device__ __forceinline__ unsigned char* one_hot_of(int t) const {
    return shared_ + Layout::kOneHotAt + t % 2 * kOneHotBytes;
  }

  // Of `center`, the thread's. Also clears the one-hot matrices. A barrier has to follow.
  __device__ __forceinline__ void list_centers(const Center& center) const {
    if (threadIdx.x < num_centers_) {
      const unsigned long long count = work_.centers.counts[first_center_ + threadIdx.x];
      state_.centers[threadIdx.x] = {center.row, center.output_row,
                                     merge_weights(static_cast<int64_t>(count), work_.merge_floor)};
      if (threadIdx.x == 0 || center.number == 0) {
        state_.anchor_centers[center.anchor - first_anchor_] = static_cast<int>(threadIdx.x) - center.number;
      }
    }
    const int vectors = ceil_div(num_centers_, 32) * 32 * kTileRowBytes / kVectorBytes;  // that add_tiles reads
    for (int i = threadIdx.x; i < vectors; i += kMergeThreads) {
      for (int t = 0; t < 2; ++t) reinterpret_cast<uint4*>(one_hot_of(t))[i] = uint4{};
    }
  }
  // Makes the one-hot matrix of a tile out of that of the last but one. Its assignments must be there.
  __device__ __forceinline__ void make_one_hot(int t) const {
    unsigned char* const one_hot = one_hot_of(t);
    for (int i = threadIdx.x; i < num_anchors_ * kMergeRows; i += kMergeThreads) {
      const int first = state_.anchor_centers[i / kMergeRows], token = i % kMergeRows;
      const auto set = [&](int tile, uint16_t value) {
        const int center = first + reinterpret_cast<const uint16_t*>(numbers_of(tile))[i];
        if (center < 0 || center >= num_centers_) return;
        *reinterpret_cast<uint16_t*>(one_hot + tile_offset(center, token / 8) + token % 8 * sizeof(uint16_t)) = value;
      };
      if (t >= 2) set(t - 2, 0);
      set(t, kOne);
    }
  }

  // Sums the tokens that the centres get, 8 * kColumns at most; a barrier has to follow. A thread's sums are of a
  // channel and the eighth behind it, and of two centres in eight.
  template <int kColumns>
  __device__ __forceinline__ void add_tiles() {
    // Of float32 a slice has half as many channels, so that two warps share the centres of one.
    constexpr int kShares = sizeof(T) / sizeof(uint16_t), kOwnColumns = kColumns / kShares;
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp % 4, slice = threadIdx.x / kWarpgroup;
    const int channels = warp / kShares * 16, first_center = warp % kShares * kOwnColumns * 8;
    float sums[kOwnColumns][4] = {};
    wait_copies<kAhead - 1>();
    __syncthreads();
    if (num_tiles_ > 0) make_one_hot(0);
    for (int t = 0; t < num_tiles_; ++t) {
      wait_copies<kAhead - 1>();
      publish_copies();  // and the one-hot matrix
      __syncthreads();
      const unsigned char* const tokens = shared_ + t % kStages * kMergeTileBytes + slice * kMergeSliceBytes;
      const auto meanwhile = [&] {
        start_tokens(t + kAhead);
        start_numbers(t + kAhead + 1);
        commit_copies();
        if (t + 1 < num_tiles_) make_one_hot(t + 1);
      };
      if constexpr (std::is_same_v<T, float>) {
        meanwhile();
        add_floats(sums, tokens, one_hot_of(t), channels, first_center);
      } else {
        begin_products<T>();
#pragma unroll
        for (int step = 0; step < kMergeRows / 16; ++step) {
          multiply_channels<T>(sums, shared_address(tokens), shared_address(one_hot_of(t)), step);
        }
        commit_products<T>();
        meanwhile();
        wait_products<T>();
      }
    }
    wait_copies<0>();
    __syncthreads();
    float* const mine = reinterpret_cast<float*>(shared_) + (first_center + lane % 4 * 2) * Layout::kSumPitch +
                        slice * kSliceChannels<T> + channels + lane / 4;
#pragma unroll
    for (int c = 0; c < kOwnColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) mine[(c * 8 + i % 2) * Layout::kSumPitch + i / 2 * 8] = sums[c][i];
    }
  }
  // float32 tokens go in as the sum of two tf32 values, 22 bits together; ones are exact.
  template <int kColumns>
  __device__ __forceinline__ void add_floats(float (&sums)[kColumns][4], const unsigned char* tokens,
                                             const unsigned char* one_hot, int channels, int first_center) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll 2
    for (int k = 0; k < kMergeRows; k += 8) {
      uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = channels + i % 2 * 8 + lane / 4;
        const uint32_t at = tile_offset(k + i / 2 * 4 + lane % 4, channel / 4) + channel % 4 * sizeof(float);
        split_tf32(*reinterpret_cast<const uint32_t*>(tokens + at), high[i], low[i]);
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        uint32_t ones[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t at =
              tile_offset(first_center + c * 8 + lane / 4, k / 8) + (i * 4 + lane % 4) * sizeof(uint16_t);
          ones[i] = static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(one_hot + at)) << 16;
        }
        multiply_tf32(sums[c], low, ones[0], ones[1]);
        multiply_tf32(sums[c], high, ones[0], ones[1]);
      }
    }
  }

  // Writes the merged rows from the sums that add_tiles leaves; a barrier of the cluster.
  __device__ __forceinline__ void write_rows() const {
    constexpr int kSize = Vector<T>::kSize;
    const int end = channel_ < work_.tokens.channels ? num_centers_ : 0;
    const auto own_of = [&](int c) {
      const int row = c < end ? state_.centers[c].row : -1;
      return row >= 0 ? *reinterpret_cast<const Vector<T>*>(work_.tokens.row(row) + channel_) : Vector<T>{};
    };
    const int step = kCopyStep * ranks_;
    int c = rank_ * kCopyStep + copy_row_;
    Vector<T> own = own_of(c), next = own_of(c + step);
    cluster_sync();
#pragma unroll 1
    for (; c < end; c += step) {
      const Vector<T> after = own_of(c + 2 * step);
      const MergeWeights weights = state_.centers[c].weights;
      const float* const sums = reinterpret_cast<const float*>(shared_) + c * Layout::kSumPitch + chunk_ * kSize;
      Vector<T> merged;
#pragma unroll
      for (int q = 0; q < kSize / 4; ++q) {
        const float4* const at = reinterpret_cast<const float4*>(sums) + q;
        const float4 sum = ranks_ > 1 ? cluster_total(at, ranks_) : *at;
        const float parts[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          merged.at[q * 4 + e] = from_float<T>(merged_value(to_float(own.at[q * 4 + e]), parts[e], weights));
        }
      }
      write_vector(work_.output.row(state_.centers[c].output_row), work_.output.channels, channel_, merged);
      own = next;
      next = after;
    }
  }

  const MergeWork<T>& work_;
  unsigned char* const shared_;
  MergeState& state_;
  const int ranks_ = cluster_size(), rank_ = cluster_rank();
  const int channel_tiles_ = ceil_div(work_.tokens.row_bytes(), 2 * kTileRowBytes);
  const int chunk_ = threadIdx.x % kMergeChunks, copy_row_ = threadIdx.x / kMergeChunks;
  int first_center_, num_centers_, first_anchor_, num_anchors_, first_token_, end_token_, num_tiles_;
  int channel_;  // of the thread's vectors
  // Of the next tile.
  const T* source_;
  int token_, number_token_;
  const uint16_t* numbers_;
};

}  // namespace fastvid
