// Products of all pairs of tokens of a frame, by a cluster of blocks that share the channels.
#pragma once

#include "cluster.cuh"
#include "mma.cuh"

namespace fastvid {

constexpr int kGramThreads = 384;
constexpr int kGramWarps = kGramThreads / kWarp;
constexpr int kGramBlock = 32;             // tokens a side of the square that a warp multiplies at a time
constexpr int kGramTileRows = 256;         // tokens in shared memory at a time
constexpr int kGramHalfRows = kGramTileRows / 2;
constexpr int kGramBlocksPerWarp = 3;      // 36 squares on or above the diagonal of a tile, over 12 warps
constexpr int kGramCopyStep = kGramThreads / 8;
constexpr int kGramCopies = (kGramTileRows + kGramCopyStep - 1) / kGramCopyStep;
constexpr int kGramPitch = kGramBlock + 8; // floats; keeps the writes of fragments free of bank conflicts

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
  // Finds the token in a row of the tile, if there is one.
  __device__ __forceinline__ bool token(int tile_row, int& token) const {
    const bool second = !diagonal && tile_row >= kGramHalfRows;
    const int row = second ? tile_row - kGramHalfRows : tile_row;
    token = row + (second ? b : a);
    return row < (second ? b_rows : a_rows);
  }
};

// The parts of the Gram matrix of n tokens, one after the other; up to 256 tokens there is one.
class GramParts {
 public:
  __device__ __forceinline__ explicit GramParts(int n) : n_(n) {}
  __device__ __forceinline__ bool next(GramPart& part) {
    if (a_ >= n_) return false;
    const int a_end = min(a_ + kGramTileRows, n_);
    if (b_ < 0) {
      part = {a_, a_end - a_, a_, a_end - a_, true};
      half_ = a_;
      b_ = a_ + kGramTileRows;
    } else {
      part = {half_, min(kGramHalfRows, n_ - half_), b_, min(kGramHalfRows, n_ - b_), false};
      b_ += kGramHalfRows;
    }
    if (b_ >= n_) {  // the next half, or the next rows
      b_ = a_ + kGramTileRows;
      if (!part.diagonal) half_ += kGramHalfRows;
      if (b_ >= n_ || half_ >= a_end) {
        a_ += kGramTileRows;
        b_ = -1;
      }
    }
    return true;
  }

 private:
  int n_, a_ = 0, half_ = 0, b_ = -1;
};

// Where the rows of the Gram matrix lie once the parts are summed: row i with block i / rows_per_rank of the cluster,
// in shared memory where they fit, else in device memory.
struct GramRows {
  float* shared;  // (rows_per_rank, pitch), or null
  float* global;  // (N, pitch)
  int pitch, rows_per_rank;
  uint32_t reciprocal;  // 2^32 / rows_per_rank, rounded up

  __device__ __forceinline__ float* row(int i) const {
    if (shared == nullptr) return global + static_cast<int64_t>(i) * pitch;
    const int rank = rows_per_rank == 1 ? i : static_cast<int>(__umulhi(i, reciprocal));
    return at_rank(shared, rank) + (i - rank * rows_per_rank) * pitch;
  }
  // Row i, of those that the calling block holds from first_row on.
  __device__ __forceinline__ float* own_row(int i, int first_row) const {
    return shared == nullptr ? global + static_cast<int64_t>(i) * pitch : shared + (i - first_row) * pitch;
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
  const int n = tokens.per_frame, depth = (tokens.row_bytes() + kTileRowBytes - 1) / kTileRowBytes;
  const int first_slice = depth * rank / ranks, slices = depth * (rank + 1) / ranks - first_slice;
  const uint32_t tile0 = shared_address(tiles);
  float* const partial = reinterpret_cast<float*>(tiles);

  GramParts parts(n);
  for (GramPart part; parts.next(part);) {
    const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
    const int first_channel = (first_slice * 8 + chunk) * Vector<T>::kSize;
    SliceCopy<T, kGramCopies, kGramCopyStep> copy;
    copy.rows = (tile_bytes / kTileRowBytes - copy_row + kGramCopyStep - 1) / kGramCopyStep;
#pragma unroll
    for (int i = 0; i < kGramCopies; ++i) {
      int token;
      const bool present = part.token(copy_row + i * kGramCopyStep, token);
      copy.set(i, tokens.row(frame * n + (present ? token : 0)) + first_channel, present);
    }
    const uint32_t copy_at = tile0 + tile_offset(copy_row, chunk);
    int started = 0, next_stage = 0;
    const auto start_slice = [&] {
      if (started < slices) {
        const bool within = first_channel + started * copy.kSliceChannels < tokens.channels;
        copy.start(copy_at + next_stage * tile_bytes, within);
        next_stage = next_stage + 1 < stages ? next_stage + 1 : 0;
        ++started;
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

    for (int slice = 0; slice < stages - 1; ++slice) start_slice();
    for (int slice = 0, stage = 0; slice < slices; ++slice) {
      wait_copies(stages - 2);
      __syncthreads();
      start_slice();
      const uint32_t tile = tile0 + stage * tile_bytes;
      stage = stage + 1 < stages ? stage + 1 : 0;
#pragma unroll
      for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < kGramBlocksPerWarp; ++i) {
          if (i < my_blocks) {
            if (i == 0 || a_row[i] != a_row[i - 1]) {
              load_rows(a[0], tile + a_row[i] * kTileRowBytes, step);
              load_rows(a[1], tile + (a_row[i] + 16) * kTileRowBytes, step);
            }
            uint32_t b[2][4];
            load_columns(b[0], tile + b_row[i] * kTileRowBytes, step);
            load_columns(b[1], tile + (b_row[i] + 16) * kTileRowBytes, step);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
              for (int m = 0; m < 2; ++m) {
                multiply(sums[i][m][half * 2], a[m], b[half][0], b[half][1], T{});
                multiply(sums[i][m][half * 2 + 1], a[m], b[half][2], b[half][3], T{});
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
      continue;
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
      const float4 total = cluster_total(reinterpret_cast<const float4*>(partial + at), ranks);
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
  }
}

}  // namespace fastvid
