// Products of all pairs of tokens of a frame, by a cluster of blocks that share the channels.
#pragma once

#include "cluster.cuh"
#include "mma.cuh"

namespace fastvid {

constexpr int kGramThreads = 256;
constexpr int kGramWarps = kGramThreads / kWarp;
constexpr int kGramBlock = 32;             // tokens a side of the square that a warp multiplies at a time
constexpr int kGramTileRows = 256;         // tokens in shared memory at a time
constexpr int kGramHalfRows = kGramTileRows / 2;
constexpr int kGramBlocksPerWarp = 5;      // 36 squares on or above the diagonal of a tile, over 8 warps
constexpr int kGramPitch = kGramBlock + 8; // floats; keeps the writes of fragments free of bank conflicts
constexpr int kGramMaxBlocks = 36;

// A part of the upper triangle: the squares of rows [a, a + a_rows) by [b, b + b_rows).
struct GramPart {
  int a, a_rows, b, b_rows;
  bool diagonal;  // a == b: squares below the diagonal are left out

  __device__ __forceinline__ int blocks() const {
    const int across = (b_rows + kGramBlock - 1) / kGramBlock, down = (a_rows + kGramBlock - 1) / kGramBlock;
    return diagonal ? across * (across + 1) / 2 : across * down;
  }
  // Square number i, in units of kGramBlock from a and b.
  __device__ __forceinline__ void place(int i, int& row, int& column) const {
    const int across = (b_rows + kGramBlock - 1) / kGramBlock;
    row = 0;
    if (diagonal) {
      while (i >= across - row) i -= across - row++;
      column = row + i;
    } else {
      row = i / across;
      column = i - row * across;
    }
  }
  __device__ __forceinline__ int tile_rows() const { return diagonal ? a_rows : kGramHalfRows + b_rows; }
  // The token in a row of the tile, or -1.
  __device__ __forceinline__ int token(int tile_row) const {
    if (diagonal || tile_row < kGramHalfRows) return tile_row < a_rows ? a + tile_row : -1;
    return tile_row - kGramHalfRows < b_rows ? b + tile_row - kGramHalfRows : -1;
  }
};

// Calls visit(part) for every part of the Gram matrix of n tokens; up to 256 tokens there is one.
template <typename Visit>
__device__ __forceinline__ void for_each_gram_part(int n, Visit&& visit) {
  for (int a = 0; a < n; a += kGramTileRows) {
    visit(GramPart{a, min(kGramTileRows, n - a), a, min(kGramTileRows, n - a), true});
    for (int half = a; half < min(a + kGramTileRows, n); half += kGramHalfRows) {
      for (int b = a + kGramTileRows; b < n; b += kGramHalfRows) {
        visit(GramPart{half, min(kGramHalfRows, n - half), b, min(kGramHalfRows, n - b), false});
      }
    }
  }
}

// Where the rows of the Gram matrix lie once the parts are summed: row i with block i / rows_per_rank of the cluster,
// in shared memory where they fit, else in device memory.
struct GramRows {
  float* shared;       // (rows_per_rank, pitch), or null
  float* global;       // (N, pitch)
  int pitch, rows_per_rank;

  __device__ __forceinline__ float* row(int i) const {
    if (shared == nullptr) return global + static_cast<int64_t>(i) * pitch;
    const int rank = i / rows_per_rank;
    return at_rank(shared, rank) + (i - rank * rows_per_rank) * pitch;
  }
  // Row i, of those that the calling block holds.
  __device__ __forceinline__ float* own_row(int i) const {
    return shared == nullptr ? global + static_cast<int64_t>(i) * pitch : shared + i % rows_per_rank * pitch;
  }
};

// Computes `rows` and pushes the diagonal to `norms` (N,) of every block of the cluster. Ends with a cluster barrier.
//   tiles: `stages` tiles of tile_bytes, and then, in the same bytes, the partial squares.
// Every block multiplies all pairs over its share of the channels, so the cluster reads the frame once; the partial
// sums meet in distributed shared memory, in the order of the ranks.
template <typename T>
__device__ __forceinline__ void compute_gram(const Tokens<T>& tokens, int frame, const GramRows& rows, float* norms,
                                             unsigned char* tiles, int stages, int tile_bytes) {
  const int ranks = cluster_size(), rank = cluster_rank();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int n = tokens.per_frame, row_bytes = tokens.row_bytes();
  const int depth = (row_bytes + kTileRowBytes - 1) / kTileRowBytes;
  const int first_slice = depth * rank / ranks, slices = depth * (rank + 1) / ranks - first_slice;
  const T* const source = tokens.data + frame * tokens.frame_stride;
  const uint32_t tile0 = shared_address(tiles);
  float* const partial = reinterpret_cast<float*>(tiles);

  for_each_gram_part(n, [&](const GramPart& part) {
    const int tile_rows = (part.tile_rows() + kGramBlock - 1) / kGramBlock * kGramBlock;
    const auto start_slice = [&](int slice) {
      if (slice < slices) {
        const int chunk = threadIdx.x % 8, byte = (first_slice + slice) * kTileRowBytes + chunk * kVectorBytes;
        const uint32_t tile = tile0 + slice % stages * tile_bytes;
        for (int r = threadIdx.x / 8; r < tile_rows; r += kGramThreads / 8) {
          const int token = part.token(r);
          const bool present = token >= 0 && byte < row_bytes;
          const char* address = reinterpret_cast<const char*>(source + (present ? token : 0) * tokens.token_stride);
          copy_async(tile + tile_offset(r, chunk), address + (present ? byte : 0), present);
        }
      }
      commit_copies();
    };

    const int blocks = part.blocks();
    const int first_block = blocks * warp / kGramWarps, my_blocks = blocks * (warp + 1) / kGramWarps - first_block;
    int a_row[kGramBlocksPerWarp], b_row[kGramBlocksPerWarp];
#pragma unroll
    for (int i = 0; i < kGramBlocksPerWarp; ++i) {
      int row = 0, column = 0;
      if (i < my_blocks) part.place(first_block + i, row, column);
      a_row[i] = row * kGramBlock;
      b_row[i] = column * kGramBlock + (part.diagonal ? 0 : kGramHalfRows);
    }
    float sums[kGramBlocksPerWarp][2][4][4] = {};

    for (int slice = 0; slice < stages - 1; ++slice) start_slice(slice);
    for (int slice = 0; slice < slices; ++slice) {
      wait_copies(stages - 2);
      __syncthreads();
      start_slice(slice + stages - 1);
      const uint32_t tile = tile0 + slice % stages * tile_bytes;
#pragma unroll
      for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < kGramBlocksPerWarp; ++i) {
          if (i < my_blocks) {
            if (i == 0 || a_row[i] != a_row[i - 1]) {
              load_rows(a[0], tile, a_row[i], step * 2);
              load_rows(a[1], tile, a_row[i] + 16, step * 2);
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              uint32_t b[4];
              load_columns(b, tile, b_row[i] + half * 16, step * 2);
#pragma unroll
              for (int m = 0; m < 2; ++m) {
                multiply(sums[i][m][half * 2], a[m], b[0], b[1], T{});
                multiply(sums[i][m][half * 2 + 1], a[m], b[2], b[3], T{});
              }
            }
          }
        }
      }
    }
    wait_copies(0);
    __syncthreads();

    // The value of a pair goes to both its places, and from the diagonal to everybody's norms. (i, j) count from the
    // part's origin; squares on the diagonal hold both halves themselves.
    const auto store = [&](int i, int j, bool mirror, float value) {
      if (i >= part.a_rows || j >= part.b_rows) return;
      i += part.a;
      j += part.b;
      rows.row(i)[j] = value;
      if (mirror) rows.row(j)[i] = value;
      if (i == j) {
        for (int r = 0; r < ranks; ++r) at_rank(norms, r)[i] = value;
      }
    };
    const auto for_each_sum = [&](auto&& visit) {
#pragma unroll
      for (int i = 0; i < kGramBlocksPerWarp; ++i) {
        if (i >= my_blocks) continue;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              visit(i, m * 16 + half * 8 + lane / 4, c * 8 + lane % 4 * 2, sums[i][m][c][half * 2],
                    sums[i][m][c][half * 2 + 1]);
            }
          }
        }
      }
    };
    if (ranks == 1) {
      for_each_sum([&](int i, int row, int column, float left, float right) {
        const int down = a_row[i] + row, across = b_row[i] - (part.diagonal ? 0 : kGramHalfRows) + column;
        const bool mirror = !part.diagonal || a_row[i] != b_row[i];
        store(down, across, mirror, left);
        store(down, across + 1, mirror, right);
      });
      cluster_sync();
      return;
    }

    for_each_sum([&](int i, int row, int column, float left, float right) {
      float* const square = partial + (first_block + i) * kGramBlock * kGramPitch;
      *reinterpret_cast<float2*>(square + row * kGramPitch + column) = make_float2(left, right);
    });
    cluster_sync();
    constexpr int kQuads = kGramBlock / 4;
    for (int unit = rank * kGramThreads + threadIdx.x; unit < blocks * kGramBlock * kQuads;
         unit += ranks * kGramThreads) {
      const int block = unit / (kGramBlock * kQuads), row = unit / kQuads % kGramBlock, quad = unit % kQuads;
      const int at = (block * kGramBlock + row) * kGramPitch + quad * 4;
      float4 total = *reinterpret_cast<const float4*>(at_rank(partial, 0) + at);
      for (int r = 1; r < ranks; ++r) {
        const float4 other = *reinterpret_cast<const float4*>(at_rank(partial, r) + at);
        total.x += other.x;
        total.y += other.y;
        total.z += other.z;
        total.w += other.w;
      }
      int block_row, block_column;
      part.place(block, block_row, block_column);
      const bool mirror = !part.diagonal || block_row != block_column;
      const int i = block_row * kGramBlock + row, j = block_column * kGramBlock + quad * 4;
      store(i, j, mirror, total.x);
      store(i, j + 1, mirror, total.y);
      store(i, j + 2, mirror, total.z);
      store(i, j + 3, mirror, total.w);
    }
    cluster_sync();
  });
}

}  // namespace fastvid
