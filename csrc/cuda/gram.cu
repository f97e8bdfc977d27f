#include "gram.cuh"

#include <algorithm>

#include "cluster.cuh"
#include "launch.h"
#include "wgmma.cuh"

namespace fastvid {
namespace {

constexpr int kGramThreads = 2 * kWarpgroup;  // each warpgroup takes a half of the rows
constexpr int kGramStages = 3;
constexpr int kGramTileBytes = 2 * kGramTile * kTileRowBytes;
constexpr int kGramPitch = kGramTile + 8;  // floats; keeps the writes of fragments free of bank conflicts
constexpr int kGramBlocksPerMultiprocessor = 2;
static_assert(kGramTile * kGramPitch * sizeof(float) <= kGramStages * kGramTileBytes);
static_assert(kGramTile == kGramThreads / kWarpgroup * kWarpgroupRows);

// One tile of the Gram matrix of one frame.
// Grid: (cluster, tiles of a frame, frames); the blocks of a cluster share the channels and add up in the order of
// their ranks. Memory: reads two tiles of tokens (D channels), out of L2 where other tiles read them too; writes 64 KB
// at most. Limit: L2 bandwidth, ceil(N / 128) reads of every token.
template <typename T>
__global__ __launch_bounds__(kGramThreads,
                             kGramBlocksPerMultiprocessor) void gram_kernel(const __grid_constant__ Tokens<T> tokens,
                                                                            const __grid_constant__ FramePlan plan,
                                                                            bool planned, float* gram) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  float* const partial = reinterpret_cast<float*>(shared);  // (kGramTile, kGramPitch), where the tiles were
  const GramTiles shape(tokens.per_frame);
  int row = 0, column = blockIdx.y;
  while (column >= shape.across - row) column -= shape.across - row++;
  column += row;
  const int first_a = row * shape.size, first_b = column * shape.size;
  const int num_a = min(shape.size, tokens.per_frame - first_a), num_b = min(shape.size, tokens.per_frame - first_b);

  const int ranks = cluster_size(), rank = cluster_rank();
  const Slices slices(tokens.row_bytes(), rank, ranks);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int first_row = uniform(threadIdx.x / kWarpgroup) * kWarpgroupRows;
  // On the diagonal, columns before a warpgroup's own rows are nobody's: each pair is wanted once.
  const int first_column = row == column ? first_row : 0, num_columns = uniform(shape.size - first_column);
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  constexpr int kCopyStep = kGramThreads / 8, kCopies = kGramTile / kCopyStep;
  const int first_channel = (slices.first * 8 + chunk) * Vector<T>::kSize;
  const uint32_t tile0 = shared_address(shared), copy_at = tile_offset(copy_row, chunk);
  const uint32_t a_at = first_row * kTileRowBytes,
                 b_at = row == column ? a_at : static_cast<uint32_t>(kGramTile * kTileRowBytes);

  wait_for_predecessor();
  const int frames = planned ? plan.totals->anchors : tokens.frames;
  for (int item = blockIdx.z; item < frames; item += gridDim.z) {
    const int first_token = (planned ? plan.anchors[item] : item) * tokens.per_frame;
    SliceCopy<T, kCopies, kCopyStep> copies[2];
    // Rows past the last token are not copied: what stands there ends in products that nobody reads.
    copies[0].rows = copies_of<kCopyStep>(copy_row, num_a);
    copies[1].rows = row == column ? 0 : copies_of<kCopyStep>(copy_row, num_b);
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int r = copy_row + i * kCopyStep;
      copies[0].source[i] = tokens.row(first_token + first_a + r) + first_channel;
      copies[1].source[i] = tokens.row(first_token + first_b + r) + first_channel;
    }
    const auto start_slice = [&](int slice) {
      if (slice < slices.count) {
        const uint32_t tile = tile0 + slice % kGramStages * kGramTileBytes + copy_at;
        const bool within = first_channel + slice * kSliceChannels<T> < tokens.channels;
        copies[0].start(tile, within);
        copies[1].start(tile + kGramTile * kTileRowBytes, within);
      }
      commit_copies();
    };

    float sums[kGramTile / 8][4] = {};
    for (int slice = 0; slice < kGramStages - 1; ++slice) start_slice(slice);
    for (int slice = 0; slice < slices.count; ++slice) {
      wait_copies<kGramStages - 2>();
      publish_copies();
      __syncthreads();
      const uint32_t tile = tile0 + slice % kGramStages * kGramTileBytes;
      begin_products<T>();
      multiply_columns<T>(sums, tile + a_at, tile + b_at, num_columns);
      commit_products<T>();
      start_slice(slice + kGramStages - 1);  // while the tensor cores work
      wait_products<T>();
    }
    wait_copies<0>();
    __syncthreads();

#pragma unroll
    for (int c = 0; c < kGramTile / 8; ++c) {
      if (c * 8 >= num_columns) break;
      float* const at = partial + (warp * 16 + lane / 4) * kGramPitch + first_column + c * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(at) = make_float2(sums[c][0], sums[c][1]);
      *reinterpret_cast<float2*>(at + 8 * kGramPitch) = make_float2(sums[c][2], sums[c][3]);
    }
    cluster_sync();
    float* const out = gram + (static_cast<int64_t>(item) * shape.count() + blockIdx.y) * shape.size * shape.size;
    const auto total_at = [&](int r, int c) {
      return cluster_total(reinterpret_cast<const float4*>(partial + r * kGramPitch + c), ranks);
    };
    const int quads = ceil_div(num_b, 4), first = rank * kGramThreads + threadIdx.x, step = ranks * kGramThreads;
    // On the diagonal, rows past the first 64 take their first columns from the mirror.
    const int num_mirrored = row == column ? max(num_a - kWarpgroupRows, 0) : 0;
    for (int unit = first; unit < num_a * quads; unit += step) {
      const int r = unit / quads, c = (unit - r * quads) * 4;
      if (num_mirrored > 0 && r >= kWarpgroupRows && c < kWarpgroupRows) continue;
      *reinterpret_cast<float4*>(out + r * shape.size + c) = total_at(r, c);
    }
    for (int unit = first; unit < ceil_div(num_mirrored, 4) * kWarpgroupRows; unit += step) {
      const int c = unit % kWarpgroupRows, r = kWarpgroupRows + unit / kWarpgroupRows * 4;
      const float4 total = total_at(c, r);
      const float parts[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (r + e < num_a) out[(r + e) * shape.size + c] = parts[e];
      }
    }
    cluster_sync();  // peers have read this block's sums
  }
}

}  // namespace

template <typename T>
cudaError_t launch_gram(const Tokens<T>& tokens, const FramePlan* plan, int expected, float* gram,
                        cudaStream_t stream) {
  const int tiles = GramTiles(tokens.per_frame).count();
  const UnitCost cost{ceil_div(tokens.row_bytes(), kTileRowBytes), 15.0, 1.4};
  int cluster;
  FASTVID_RETURN_IF_FAILED(
      choose_cluster<gram_kernel<T>>(tiles * expected, kGramThreads, kGramStages * kGramTileBytes, cost, cluster));
  const dim3 grid(cluster, tiles, std::min(tokens.frames, 65535));
  return launch<gram_kernel<T>>({grid, kGramThreads, kGramStages * kGramTileBytes, cluster, stream}, tokens,
                                plan != nullptr ? *plan : FramePlan{}, plan != nullptr, gram);
}
template cudaError_t launch_gram(const Tokens<float>&, const FramePlan*, int, float*, cudaStream_t);
template cudaError_t launch_gram(const Tokens<__half>&, const FramePlan*, int, float*, cudaStream_t);
template cudaError_t launch_gram(const Tokens<__nv_bfloat16>&, const FramePlan*, int, float*, cudaStream_t);

}  // namespace fastvid
