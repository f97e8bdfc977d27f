// Means of the tokens that merge into a centre, as a product of one-hot assignments with the tokens.
#pragma once

#include <type_traits>

#include "cluster.cuh"
#include "core/scatter_merge.h"
#include "emit.cuh"
#include "pipeline.h"
#include "wgmma.cuh"

namespace fastvid {

constexpr int kMergeThreads = 2 * kWarpgroup;
constexpr int kMergeHalfRows = 64;  // tokens of a warpgroup's half of a tile
constexpr int kMergeHalfBytes = kMergeHalfRows * kTileRowBytes;
static_assert(kMergeCenters == 2 * kWarpgroupRows);  // centres go through the tensor cores by so many rows
template <typename T>
constexpr int kMergeColumns = kSliceChannels<T> / 8;  // of the sums of a warp
constexpr int kMergeStages = 4;
// Of an item's tokens and channels, what a block takes at a time: a wide tile, of whose channels each warpgroup takes a
// half, or a narrow one, of whose tokens it does, and of which there are twice as many.
template <bool kWide>
struct MergeTile {
  static constexpr int kRows = kWide ? kMergeHalfRows : 2 * kMergeHalfRows;  // tokens
  static constexpr int kRowBytes = kWide ? 2 * kTileRowBytes : kTileRowBytes, kChunks = kRowBytes / kVectorBytes;
  // Assignments of an anchor frame's tokens; the padding keeps the frames in different banks.
  static constexpr int kNumberBytes = kRows * sizeof(uint16_t), kOneHotPitch = kNumberBytes + kVectorBytes;
  static constexpr int kTokenBytes = kRows * kRowBytes;
  static constexpr int kBytes =
      (kTokenBytes + kMergeItemAnchors * kOneHotPitch + kTileAlignment - 1) / kTileAlignment * kTileAlignment;
  static constexpr int kSumPitch = kRowBytes / 2 + 4;  // floats; channels of a tile of 2-byte elements at most
  static_assert(kMergeCenters * kSumPitch * sizeof(float) <= kMergeStages * kBytes);

  // Where a 16-byte chunk of a token stands: the halves lie one after the other.
  static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
    return chunk / 8 * kMergeHalfBytes + tile_offset(row, chunk % 8);
  }
};

// What a block keeps of an item's centres.
struct MergeCenter {
  int row, output_row;  // as in Center
  int anchor, number;   // of the item, and of the anchor frame
  MergeWeights weights;
};

// A thread's rows of the one-hot matrix: where a centre's assignments stand in a tile, and its number there.
struct OneHotRow {
  int at;           // bytes
  uint32_t number;  // twice, for pairs of tokens
};
constexpr uint32_t kAbsentNumber = 0x7fff7fffu;  // NaN

// A pair of ones or zeros: whether two tokens chose the centre.
__device__ __forceinline__ uint32_t chosen_pair(const unsigned char* assignments, uint32_t number, __nv_bfloat16) {
  const __nv_bfloat162 ones =
      __heq2(*reinterpret_cast<const __nv_bfloat162*>(assignments), *reinterpret_cast<const __nv_bfloat162*>(&number));
  return *reinterpret_cast<const uint32_t*>(&ones);
}
__device__ __forceinline__ uint32_t chosen_pair(const unsigned char* assignments, uint32_t number, __half) {
  const __half2 ones =
      __heq2(*reinterpret_cast<const __half2*>(assignments), *reinterpret_cast<const __half2*>(&number));
  return *reinterpret_cast<const uint32_t*>(&ones);
}
__device__ __forceinline__ uint32_t chosen_one(const unsigned char* assignments, uint32_t number) {
  return *reinterpret_cast<const uint16_t*>(assignments) == (number & 0xffff) ? __float_as_uint(1.0f) : 0u;
}

// Adds the tokens of a tile to the sums of the centres that they chose: sixteen centres a warp of each group of
// kWarpgroupRows. `half` is the warpgroup's part of the tile, with the assignments of its tokens. Calls meanwhile()
// while the tensor cores work.
template <typename T, int kGroups, typename Meanwhile>
__device__ __forceinline__ void add_tokens(float (&sums)[kGroups][kMergeColumns<T>][4],
                                           const OneHotRow (&one_hot)[kGroups][2], const unsigned char* half,
                                           const unsigned char* assignments, Meanwhile&& meanwhile) {
  const int lane = threadIdx.x % kWarp;
  constexpr int kSteps = kMergeHalfRows / 16;
  uint32_t rows[2][kGroups][4];  // one-hot rows of the step at hand, which must stay until it ends, and of the next one
  const auto make_rows = [&](int step) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const OneHotRow& mine = one_hot[g][i % 2];
        const int token = step * 16 + lane % 4 * 2 + i / 2 * 8;
        rows[step % 2][g][i] = chosen_pair(assignments + mine.at + token * sizeof(uint16_t), mine.number, T{});
      }
    }
  };
  make_rows(0);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    begin_products<T>();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      multiply_transposed(sums[g], rows[step % 2][g], shared_address(half), step * 16, T{});
    }
    commit_products<T>();
    if (step == 0) {
      meanwhile();
    } else {
      wait_products<T, 1>();
    }
    if (step + 1 < kSteps) make_rows(step + 1);
  }
  wait_products<T>();
}

// float32 tokens go in as the sum of two tf32 values, 22 bits together; ones are exact.
template <int kGroups>
__device__ __forceinline__ void add_float_tokens(float (&sums)[kGroups][kMergeColumns<float>][4],
                                                 const OneHotRow (&one_hot)[kGroups][2], const unsigned char* half,
                                                 const unsigned char* assignments) {
  constexpr int kColumns = kMergeColumns<float>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll 2
  for (int k = 0; k < kMergeHalfRows; k += 8) {
    uint32_t high[kColumns][2], low[kColumns][2];
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int channel = column * 8 + lane / 4;
        const uint32_t at = tile_offset(k + i * 4 + lane % 4, channel / 4) + channel % 4 * 4;
        split_tf32(*reinterpret_cast<const uint32_t*>(half + at), high[column][i], low[column][i]);
      }
    }
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      uint32_t rows[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const OneHotRow& mine = one_hot[g][i % 2];
        rows[i] = chosen_one(assignments + mine.at + (k + lane % 4 + i / 2 * 4) * sizeof(uint16_t), mine.number);
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        multiply_tf32(sums[g][column], rows, low[column][0], low[column][1]);
        multiply_tf32(sums[g][column], rows, high[column][0], high[column][1]);
      }
    }
  }
}

// Sums, for one tile of channels, the tokens that an item's centres get from its segment; kGroups * kWarpgroupRows
// centres at most. The sums (centres, kSumPitch) take the place of the kMergeStages tiles; a barrier has to follow. The
// assignments are waited for when the first tokens are under way.
template <typename T, bool kWide, int kGroups>
__device__ __forceinline__ void sum_item(const Tokens<T>& tokens, const Centers& centers,
                                         const Assignments& assignments, float merge_floor, const MergeItem& item,
                                         int channel_tile, MergeCenter* item_centers, unsigned char* tiles) {
  using Tile = MergeTile<kWide>;
  constexpr int kColumns = kMergeColumns<T>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n = tokens.per_frame;
  const int num_centers = item.end_center - item.first_center;
  const int half = threadIdx.x / kWarpgroup;
  const int first_token = item.first_frame * n, end_token = item.end_frame * n;

  // Tiles start at multiples of their size, so that assignments are whole vectors; tokens of other segments count as
  // zeros.
  const int first_tile = first_token / Tile::kRows;
  const int start = first_tile * Tile::kRows, num_tiles = ceil_div(end_token, Tile::kRows) - first_tile;
  constexpr int kCopyStep = kMergeThreads / Tile::kChunks;  // rows between a thread's copies
  static_assert(kCopyStep % 8 == 0);
  const int chunk = threadIdx.x % Tile::kChunks, copy_row = threadIdx.x / Tile::kChunks;
  const int channel = (channel_tile * Tile::kChunks + chunk) * Vector<T>::kSize;
  constexpr int kNumberChunks = Tile::kNumberBytes / kVectorBytes;
  const bool has_channel = channel < tokens.channels, copies_numbers = threadIdx.x < item.num_anchors * kNumberChunks;
  static_assert(kMergeItemAnchors * kNumberChunks <= kMergeThreads);
  const T* source = tokens.row(start + copy_row) + channel;  // of the next tile to start, as are the next two
  int token = start + copy_row;
  constexpr int kNumbers = kVectorBytes / sizeof(uint16_t);
  const int numbers_row = threadIdx.x / kNumberChunks, numbers_chunk = threadIdx.x % kNumberChunks;
  const uint16_t* numbers = assignments.table +
                            (item.first_anchor - item.pass * kMergeAnchors + numbers_row) * assignments.pitch + start +
                            numbers_chunk * kNumbers;
  const int64_t row_step = kCopyStep * tokens.row_stride;
  const uint32_t tile0 = shared_address(tiles), copy_at = Tile::offset(copy_row, chunk);
  const uint32_t numbers_at = Tile::kTokenBytes + numbers_row * Tile::kOneHotPitch + numbers_chunk * kVectorBytes;
  const auto start_tokens = [&](int t) {
    if (t >= num_tiles) return;
    const uint32_t tile = tile0 + t % kMergeStages * Tile::kBytes;
#pragma unroll
    for (int i = 0; i < Tile::kRows / kCopyStep; ++i) {
      const int at = token + i * kCopyStep;
      const bool present = has_channel && at >= first_token && at < end_token;
      copy_async(tile + copy_at + i * kCopyStep * kTileRowBytes, source + i * row_step, present);
    }
    source += Tile::kRows * tokens.row_stride;
    token += Tile::kRows;
  };
  const auto start_numbers = [&](int t) {
    if (t < num_tiles && copies_numbers) {
      const uint32_t tile = tile0 + t % kMergeStages * Tile::kBytes;
      const int first = start + t * Tile::kRows + numbers_chunk * kNumbers, end = first + kNumbers;
      const bool whole = first >= first_token && end <= end_token, none = end <= first_token || first >= end_token;
      if (whole || none) {
        copy_async(tile + numbers_at, numbers, whole);
      } else {
        // Another segment shares the vector; it may have fewer anchor frames, and what they lack is not written.
        uint16_t* const target = reinterpret_cast<uint16_t*>(tiles + t % kMergeStages * Tile::kBytes + numbers_at);
        for (int e = 0; e < kNumbers; ++e) {
          target[e] = first + e >= first_token && first + e < end_token ? numbers[e] : kNoNumber;
        }
      }
      numbers += Tile::kRows;
    }
    commit_copies();
  };
  for (int t = 0; t < kMergeStages - 1; ++t) start_tokens(t);
  wait_for_predecessor();
  for (int t = 0; t < kMergeStages - 1; ++t) start_numbers(t);

  if (threadIdx.x < num_centers) {
    const int c = item.first_center + threadIdx.x;
    const Center center = centers.list[c];
    item_centers[threadIdx.x] = {center.row, center.output_row, center.anchor - item.first_anchor, center.number,
                                 merge_weights(static_cast<int64_t>(centers.counts[c]), merge_floor)};
  }
  __syncthreads();
  OneHotRow one_hot[kGroups][2];
  const int first_row = warp % 4 * 16 + lane / 4;  // of the thread's sums, as the next eight further down
#pragma unroll
  for (int i = 0; i < 2 * kGroups; ++i) {
    const int c = i / 2 * kWarpgroupRows + i % 2 * 8 + first_row;
    const bool present = c < num_centers && item_centers[c].row >= 0;
    one_hot[i / 2][i % 2] = {present ? item_centers[c].anchor * Tile::kOneHotPitch : 0,
                             present ? (kFirstNumber + item_centers[c].number) * 0x10001u : kAbsentNumber};
  }

  const int numbers_of_half =
      Tile::kTokenBytes + (kWide ? 0 : half * kMergeHalfRows * static_cast<int>(sizeof(uint16_t)));
  float sums[kGroups][kColumns][4] = {};
  for (int t = 0; t < num_tiles; ++t) {
    wait_copies<kMergeStages - 2>();
    publish_copies();
    __syncthreads();
    const unsigned char* const tile = tiles + t % kMergeStages * Tile::kBytes;
    const auto start_next = [&] {
      start_tokens(t + kMergeStages - 1);
      start_numbers(t + kMergeStages - 1);
    };
    if constexpr (std::is_same_v<T, float>) {
      start_next();
      add_float_tokens(sums, one_hot, tile + half * kMergeHalfBytes, tile + numbers_of_half);
    } else {
      add_tokens<T>(sums, one_hot, tile + half * kMergeHalfBytes, tile + numbers_of_half, start_next);
    }
  }
  wait_copies<0>();
  __syncthreads();

  float* const mine = reinterpret_cast<float*>(tiles) + (kWide ? half * kColumns * 8 : 0) + lane % 4 * 2;
  const auto leave_sums = [&](bool add) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float* const row = mine + (g * kWarpgroupRows + i * 8 + first_row) * Tile::kSumPitch;
#pragma unroll
        for (int column = 0; column < kColumns; ++column) {
          float2* const at = reinterpret_cast<float2*>(row + column * 8);
          const float2 before = add ? *at : make_float2(0.0f, 0.0f);
          *at = make_float2(before.x + sums[g][column][i * 2], before.y + sums[g][column][i * 2 + 1]);
        }
      }
    }
  };
  if (kWide || half == 0) leave_sums(false);
  if (!kWide) {  // the other half of the tokens
    __syncthreads();
    if (half == 1) leave_sums(true);
  }
}

// Writes the merged rows of an item's centres for one tile of channels, from the sums that sum_item leaves; a barrier.
template <typename T, bool kWide>
__device__ __forceinline__ void write_item(const Tokens<T>& tokens, const Output<T>& output, int num_centers,
                                           int channel_tile, const MergeCenter* item_centers,
                                           const unsigned char* tiles) {
  using Tile = MergeTile<kWide>;
  constexpr int kSize = Vector<T>::kSize, kStep = kMergeThreads / Tile::kChunks;
  const int chunk = threadIdx.x % Tile::kChunks, channel = (channel_tile * Tile::kChunks + chunk) * kSize;
  const int end = channel < tokens.channels ? num_centers : 0;
  const auto own_of = [&](int c) {
    const int row = c < end ? item_centers[c].row : -1;
    return row >= 0 ? *reinterpret_cast<const Vector<T>*>(tokens.row(row) + channel) : Vector<T>{};
  };
  int c = threadIdx.x / Tile::kChunks;
  Vector<T> own = own_of(c), next = own_of(c + kStep);
  __syncthreads();
#pragma unroll 1
  for (; c < end; c += kStep) {
    const Vector<T> after = own_of(c + 2 * kStep);
    const MergeWeights weights = item_centers[c].weights;
    const float* const sums = reinterpret_cast<const float*>(tiles) + c * Tile::kSumPitch + chunk * kSize;
    Vector<T> merged;
#pragma unroll
    for (int q = 0; q < kSize / 4; ++q) {
      const float4 sum = reinterpret_cast<const float4*>(sums)[q];
      const float parts[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        merged.at[q * 4 + e] = from_float<T>(merged_value(to_float(own.at[q * 4 + e]), parts[e], weights));
      }
    }
    write_vector(output.row(item_centers[c].output_row), output.channels, channel, merged);
    own = next;
    next = after;
  }
}

}  // namespace fastvid
