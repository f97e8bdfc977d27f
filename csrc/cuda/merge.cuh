// Means of the tokens that merge into a centre, as a product of one-hot assignments with the tokens.
#pragma once

#include <type_traits>

#include "core/scatter_merge.h"
#include "mma.cuh"
#include "pipeline.h"

namespace fastvid {

constexpr int kMergeThreads = 128;
constexpr int kMergeRowBytes = 256;  // channels that a block merges at a time
constexpr int kMergeWarpBytes = 64;  // of which each warp takes a quarter
constexpr int kMergeTileRows = 32;   // tokens a tile
constexpr int kMergeStages = 4;
constexpr int kMergeTileBytes = kMergeTileRows * kMergeRowBytes;
constexpr int kMergeGroups = kMergeCenters / 16;  // centres go through the tensor cores by sixteens

__device__ __forceinline__ uint32_t merge_tile_offset(int row, int chunk) {
  return chunk / 8 * (kMergeTileRows * kTileRowBytes) + tile_offset(row, chunk % 8);
}

// A thread's rows of the one-hot matrix: where a centre's assignments stand, and its number there.
struct OneHotRow {
  const uint16_t* assignments;
  uint32_t number;  // twice, for pairs of tokens
};

// A pair of ones or zeros of T: whether two tokens chose the centre.
template <typename T>
__device__ __forceinline__ uint32_t chosen_pair(const OneHotRow& row, int token) {
  constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
  return __vcmpeq2(*reinterpret_cast<const uint32_t*>(row.assignments + token), row.number) & kOnes;
}
__device__ __forceinline__ uint32_t chosen_one(const OneHotRow& row, int token) {
  return row.assignments[token] == (row.number & 0xffff) ? __float_as_uint(1.0f) : 0u;
}

// Adds the tokens of a tile to the sums of the centres that they chose. `token` is the tile's first.
template <typename T, int kColumns>
__device__ __forceinline__ void add_tile(float (&sums)[kMergeGroups][kColumns][4], const OneHotRow (&rows)[kMergeGroups][2],
                                         int groups, const unsigned char* tile, int first_chunk, int token) {
  const int lane = threadIdx.x % kWarp;
  const uint32_t tile_address = shared_address(tile);
#pragma unroll
  for (int k = 0; k < kMergeTileRows; k += 16) {
    uint32_t b[kColumns / 2][4];
#pragma unroll
    for (int pair = 0; pair < kColumns / 2; ++pair) {
      load_matrices_transposed(
          b[pair], tile_address + merge_tile_offset(k + lane % 16, first_chunk + pair * 2 + lane / 16));
    }
    const int at = token + k + lane % 4 * 2;
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) {
      if (g >= groups) break;
      const uint32_t a[4] = {chosen_pair<T>(rows[g][0], at), chosen_pair<T>(rows[g][1], at),
                             chosen_pair<T>(rows[g][0], at + 8), chosen_pair<T>(rows[g][1], at + 8)};
#pragma unroll
      for (int pair = 0; pair < kColumns / 2; ++pair) {
        multiply(sums[g][pair * 2], a, b[pair][0], b[pair][1], T{});
        multiply(sums[g][pair * 2 + 1], a, b[pair][2], b[pair][3], T{});
      }
    }
  }
}

// float32 tokens go in as the sum of two tf32 values, 22 bits together; ones are exact.
template <>
__device__ __forceinline__ void add_tile<float, 2>(float (&sums)[kMergeGroups][2][4],
                                                   const OneHotRow (&rows)[kMergeGroups][2], int groups,
                                                   const unsigned char* tile, int first_chunk, int token) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int k = 0; k < kMergeTileRows; k += 8) {
    uint32_t high[2][2], low[2][2];
#pragma unroll
    for (int column = 0; column < 2; ++column) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int channel = column * 8 + lane / 4;
        const uint32_t at =
            merge_tile_offset(k + half * 4 + lane % 4, first_chunk + channel / 4) + channel % 4 * sizeof(float);
        split_tf32(*reinterpret_cast<const uint32_t*>(tile + at), high[column][half], low[column][half]);
      }
    }
    const int at = token + k + lane % 4;
#pragma unroll
    for (int g = 0; g < kMergeGroups; ++g) {
      if (g >= groups) break;
      const uint32_t a[4] = {chosen_one(rows[g][0], at), chosen_one(rows[g][1], at), chosen_one(rows[g][0], at + 4),
                             chosen_one(rows[g][1], at + 4)};
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        multiply_tf32(sums[g][column], a, low[column][0], low[column][1]);
        multiply_tf32(sums[g][column], a, high[column][0], high[column][1]);
      }
    }
  }
}

// Writes the merged rows of an item's centres for one tile of channels. `tiles` is kMergeStages tiles.
template <typename T>
__device__ __forceinline__ void merge_item(const Tokens<T>& tokens, const FramePlan& plan, const Centers& centers,
                                           const Assignments& assignments, const Output<T>& output, float merge_floor,
                                           const MergeItem& item, int channel_tile, unsigned char* tiles) {
  constexpr int kColumns = kMergeWarpBytes / static_cast<int>(sizeof(T)) / 8;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, n = tokens.per_frame;
  const int num_centers = item.end_center - item.first_center, groups = (num_centers + 15) / 16;
  const int first_token = item.first_frame * n, end_token = item.end_frame * n;
  const int first_byte = channel_tile * kMergeRowBytes, row_bytes = tokens.row_bytes();
  const int first_anchor = plan.anchor_offset[item.first_frame] + item.pass * kMergeAnchors;

  OneHotRow rows[kMergeGroups][2];
#pragma unroll
  for (int g = 0; g < kMergeGroups; ++g) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int c = g * 16 + half * 8 + lane / 4;
      const int row = c < num_centers ? centers.rows[item.first_center + c] : -1;
      // Without a centre the number is one that no assignment has.
      rows[g][half] = {assignments.table, 0xfffefffeu};
      if (row >= 0) {
        const int frame = row / n;
        const uint32_t number = item.first_center + c - plan.center_offset[frame];
        rows[g][half] = {assignments.table + (plan.anchor_offset[frame] - first_anchor) * assignments.pitch,
                         number | number << 16};
      }
    }
  }

  // Tiles start at even tokens, so that pairs of assignments are whole words; tokens of other segments count as zeros,
  // whatever their assignments are.
  const int start = first_token / kMergeTileRows * kMergeTileRows;
  const int num_tiles = (end_token - start + kMergeTileRows - 1) / kMergeTileRows;
  const int chunk = threadIdx.x % 16, byte = first_byte + chunk * kVectorBytes;
  const auto start_tile = [&](int t) {
    if (t < num_tiles) {
      const uint32_t tile = shared_address(tiles) + t % kMergeStages * kMergeTileBytes;
#pragma unroll
      for (int i = 0; i < kMergeTileRows * 16 / kMergeThreads; ++i) {
        const int r = threadIdx.x / 16 + i * (kMergeThreads / 16), token = start + t * kMergeTileRows + r;
        const bool present = token >= first_token && token < end_token && byte < row_bytes;
        const char* source = reinterpret_cast<const char*>(present ? tokens.row(token) : tokens.data);
        copy_async(tile + merge_tile_offset(r, chunk), source + (present ? byte : 0), present);
      }
    }
    commit_copies();
  };

  float sums[kMergeGroups][kColumns][4] = {};
  __syncthreads();  // the tiles may still hold the last item's
  for (int t = 0; t < kMergeStages - 1; ++t) start_tile(t);
  for (int t = 0; t < num_tiles; ++t) {
    wait_copies(kMergeStages - 2);
    __syncthreads();
    start_tile(t + kMergeStages - 1);
    add_tile<T, kColumns>(sums, rows, groups, tiles + t % kMergeStages * kMergeTileBytes,
                          warp * (kMergeWarpBytes / kVectorBytes), start + t * kMergeTileRows);
  }
  wait_copies(0);

#pragma unroll
  for (int g = 0; g < kMergeGroups; ++g) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int c = g * 16 + half * 8 + lane / 4;
      if (c >= num_centers) continue;
      const int center = item.first_center + c, row = centers.rows[center];
      const int64_t count = static_cast<int64_t>(centers.counts[center]);
      const float weight = own_weight(count, merge_floor);
      const int output_row = centers.output_rows != nullptr ? centers.output_rows[center] : center;
      T* const target = output.rows + static_cast<int64_t>(output_row) * output.channels;
      const T* const source = row >= 0 ? tokens.row(row) : nullptr;
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int channel = (first_byte + warp * kMergeWarpBytes) / static_cast<int>(sizeof(T)) + column * 8 +
                              lane % 4 * 2 + e;
          if (channel >= output.channels) continue;
          const float sum = sums[g][column][half * 2 + e];
          const float own = row >= 0 ? to_float(source[channel]) : 0.0f;
          target[channel] = from_float<T>(merged_value(own, sum, count, weight));
        }
      }
    }
  }
}

}  // namespace fastvid
