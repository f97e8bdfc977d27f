// Means of the tokens that merge into a centre, as a product of one-hot assignments with the tokens.
#pragma once

#include <type_traits>

#include "core/scatter_merge.h"
#include "mma.cuh"
#include "pipeline.h"

namespace fastvid {

constexpr int kMergeThreads = 256;
constexpr int kMergeTileRows = 64;             // tokens a tile, of which a warp takes a quarter,
constexpr int kMergeRowBytes = kTileRowBytes;  // channels that a block merges at a time, of which it takes a half
constexpr int kMergeWarpRows = 16;
static_assert(kMergeThreads / kWarp == 2 * kMergeTileRows / kMergeWarpRows);
constexpr int kMergeStages = 6;
constexpr int kMergeGroups = kMergeCenters / 16;  // centres go through the tensor cores by sixteens
// Assignments of an anchor frame's tokens in a tile; the padding keeps the frames in different banks.
constexpr int kOneHotPitch = kMergeTileRows * sizeof(uint16_t) + kVectorBytes;
constexpr int kMergeTokenBytes = kMergeTileRows * kMergeRowBytes;
constexpr int kMergeTileBytes = kMergeTokenBytes + kMergeItemAnchors * kOneHotPitch;
constexpr int kMergeSumPitch = kMergeRowBytes / 2 + 4;  // floats; channels of a tile of 2-byte elements at most
static_assert(2 * kMergeCenters * kMergeSumPitch * sizeof(float) <= kMergeStages * kMergeTileBytes);

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

// Adds sixteen tokens, from row `row` of a tile, to the sums of the centres that they chose.
template <typename T>
struct AddTokens {
  static constexpr int kColumns = 4;  // of eight channels
  __device__ __forceinline__ static void run(float (&sums)[kMergeGroups][kColumns][4],
                                             const OneHotRow (&one_hot)[kMergeGroups][2], int groups,
                                             const unsigned char* tile, int row, int first_chunk) {
    const int lane = threadIdx.x % kWarp;
    uint32_t b[kColumns / 2][4];
#pragma unroll
    for (int pair = 0; pair < kColumns / 2; ++pair) {
      load_matrices_transposed(b[pair], shared_address(tile) + row * kTileRowBytes +
                                            tile_offset(lane % 16, first_chunk + pair * 2 + lane / 16));
    }
    const unsigned char* const assignments = tile + kMergeTokenBytes + (row + lane % 4 * 2) * sizeof(uint16_t);
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) {
      if (g < groups) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const OneHotRow& mine = one_hot[g][i % 2];
          a[i] = chosen_pair(assignments + mine.at + i / 2 * 8 * sizeof(uint16_t), mine.number, T{});
        }
#pragma unroll
        for (int pair = 0; pair < kColumns / 2; ++pair) {
          multiply(sums[g][pair * 2], a, b[pair][0], b[pair][1], T{});
          multiply(sums[g][pair * 2 + 1], a, b[pair][2], b[pair][3], T{});
        }
      }
    }
  }
};

// float32 tokens go in as the sum of two tf32 values, 22 bits together; ones are exact.
template <>
struct AddTokens<float> {
  static constexpr int kColumns = 2;
  __device__ __forceinline__ static void run(float (&sums)[kMergeGroups][kColumns][4],
                                             const OneHotRow (&one_hot)[kMergeGroups][2], int groups,
                                             const unsigned char* tile, int row, int first_chunk) {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = row; k < row + 16; k += 8) {
      uint32_t high[kColumns][2], low[kColumns][2];
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int channel = column * 8 + lane / 4;
          const uint32_t at =
              tile_offset(k + half * 4 + lane % 4, first_chunk + channel / 4) + channel % 4 * sizeof(float);
          split_tf32(*reinterpret_cast<const uint32_t*>(tile + at), high[column][half], low[column][half]);
        }
      }
      const unsigned char* const assignments = tile + kMergeTokenBytes + (k + lane % 4) * sizeof(uint16_t);
#pragma unroll
      for (int g = 0; g < kMergeGroups; ++g) {
        if (g < groups) {
          uint32_t a[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const OneHotRow& mine = one_hot[g][i % 2];
            a[i] = chosen_one(assignments + mine.at + i / 2 * 4 * sizeof(uint16_t), mine.number);
          }
#pragma unroll
          for (int column = 0; column < kColumns; ++column) {
            multiply_tf32(sums[g][column], a, low[column][0], low[column][1]);
            multiply_tf32(sums[g][column], a, high[column][0], high[column][1]);
          }
        }
      }
    }
  }
};

// Writes one tile of channels of a row of the result, a vector a thread of a group of eight.
template <typename T>
__device__ __forceinline__ void write_vector(const Output<T>& output, int64_t row, int channel,
                                             const Vector<T>& value) {
  T* const target = output.rows + row * output.channels + channel;
  if (output.channels % Vector<T>::kSize == 0) {
    if (channel < output.channels) *reinterpret_cast<Vector<T>*>(target) = value;
  } else {
#pragma unroll
    for (int e = 0; e < Vector<T>::kSize; ++e) {
      if (channel + e < output.channels) target[e] = value.at[e];
    }
  }
}

// Writes the merged rows of an item's centres for one tile of channels. `tiles` is kMergeStages tiles.
template <typename T>
__device__ __forceinline__ void merge_item(const Tokens<T>& tokens, const Centers& centers,
                                           const Assignments& assignments, const Output<T>& output, float merge_floor,
                                           const MergeItem& item, int channel_tile, unsigned char* tiles) {
  constexpr int kColumns = AddTokens<T>::kColumns, kSize = Vector<T>::kSize;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n = tokens.per_frame;
  const int row_part = warp % 4, channel_half = warp / 4;
  const int num_centers = item.end_center - item.first_center, groups = (num_centers + 15) / 16;
  const int first_token = item.first_frame * n, end_token = item.end_frame * n;

  // Tiles start at multiples of their size, so that assignments are whole vectors; tokens of other segments count as
  // zeros, whatever their assignments are.
  const int start = first_token / kMergeTileRows * kMergeTileRows;
  const int num_tiles = (end_token - start + kMergeTileRows - 1) / kMergeTileRows;
  const int chunk = threadIdx.x % 8, copy_row = threadIdx.x / 8;
  const int channel = (channel_tile * 8 + chunk) * kSize;
  const bool has_channel = channel < tokens.channels, copies_numbers = threadIdx.x < item.num_anchors * 8;
  const T* source = tokens.row(start + copy_row) + channel;  // of the next tile to start, as are the next two
  int token = start + copy_row;
  const uint16_t* numbers = assignments.table +
                            (item.first_anchor - item.pass * kMergeAnchors + copy_row) * assignments.pitch + start +
                            chunk * 8;
  const int64_t row_step = kMergeThreads / 8 * tokens.row_stride;
  const uint32_t first_tile = shared_address(tiles), copy_at = tile_offset(copy_row, chunk);
  const uint32_t numbers_at = kMergeTokenBytes + copy_row * kOneHotPitch + chunk * kVectorBytes;
  const auto start_tile = [&](int t) {
    if (t < num_tiles) {
      const uint32_t tile = first_tile + t % kMergeStages * kMergeTileBytes;
#pragma unroll
      for (int i = 0; i < kMergeTileRows * 8 / kMergeThreads; ++i) {
        const int at = token + i * (kMergeThreads / 8);
        const bool present = has_channel && at >= first_token && at < end_token;
        copy_async(tile + copy_at + i * (kMergeThreads / 8) * kTileRowBytes,
                   present ? source + i * row_step : tokens.data, present);
      }
      if (copies_numbers) copy_async(tile + numbers_at, numbers, true);
      source += kMergeTileRows * tokens.row_stride;
      numbers += kMergeTileRows;
      token += kMergeTileRows;
    }
    commit_copies();
  };
  static_assert(kMergeItemAnchors * 8 <= kMergeThreads && kMergeThreads / 8 % 8 == 0);
  for (int t = 0; t < kMergeStages - 1; ++t) start_tile(t);

  OneHotRow one_hot[kMergeGroups][2];
#pragma unroll
  for (int g = 0; g < kMergeGroups; ++g) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int c = g * 16 + half * 8 + lane / 4;
      one_hot[g][half] = {0, kAbsentNumber};
      if (c < num_centers) {
        const Center center = centers.list[item.first_center + c];
        if (center.row >= 0) {
          one_hot[g][half] = {(center.anchor - item.first_anchor) * kOneHotPitch,
                              (kFirstNumber + center.number) * 0x10001u};
        }
      }
    }
  }

  float sums[kMergeGroups][kColumns][4] = {};
  for (int t = 0; t < num_tiles; ++t) {
    wait_copies(kMergeStages - 2);
    __syncthreads();
    start_tile(t + kMergeStages - 1);
    AddTokens<T>::run(sums, one_hot, groups, tiles + t % kMergeStages * kMergeTileBytes, row_part * kMergeWarpRows,
                      channel_half * 4);
  }
  wait_copies(0);
  __syncthreads();

  // Of the four warps with the same channels, two leave their sums and the two others add theirs: (0 + 2) + (1 + 3).
  float* const shared_sums = reinterpret_cast<float*>(tiles);
#pragma unroll
  for (int round = 0; round < 2; ++round) {
    if (row_part / 2 == round) {
      float* const mine = shared_sums + row_part % 2 * kMergeCenters * kMergeSumPitch + channel_half * kColumns * 8;
#pragma unroll
      for (int g = 0; g < kMergeGroups; ++g) {
        if (g < groups) {
#pragma unroll
          for (int column = 0; column < kColumns; ++column) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float2& at = *reinterpret_cast<float2*>(mine + (g * 16 + half * 8 + lane / 4) * kMergeSumPitch +
                                                      column * 8 + lane % 4 * 2);
              const float2 before = round == 0 ? make_float2(0.0f, 0.0f) : at;
              at = make_float2(before.x + sums[g][column][half * 2], before.y + sums[g][column][half * 2 + 1]);
            }
          }
        }
      }
    }
    __syncthreads();
  }
  for (int c = copy_row; c < num_centers; c += kMergeThreads / 8) {
    const Center center = centers.list[item.first_center + c];
    const int64_t count = static_cast<int64_t>(centers.counts[item.first_center + c]);
    const float weight = own_weight(count, merge_floor);
    Vector<T> own{}, merged;
    if (center.row >= 0 && has_channel) {
      own = *reinterpret_cast<const Vector<T>*>(tokens.row(center.row) + channel);
    }
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
      const float* const at = shared_sums + c * kMergeSumPitch + chunk * kSize + e;
      const float sum = at[0] + at[kMergeCenters * kMergeSumPitch];
      merged.at[e] = from_float<T>(merged_value(to_float(own.at[e]), sum, count, weight));
    }
    write_vector(output, center.output_row, channel, merged);
  }
  __syncthreads();  // the sums lie where the next tiles will
}

}  // namespace fastvid
