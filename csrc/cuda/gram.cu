#include "gram.cuh"

#include <algorithm>

#include "cluster.cuh"
#include "launch.h"
#include "mma.cuh"

namespace fastvid {
namespace {

constexpr int kGramThreads = 128;  // four warps, each a quarter of the tile
constexpr int kGramStages = 4;
constexpr int kGramTileBytes = 2 * kGramTile * kTileRowBytes;
constexpr int kGramPitch = kGramTile + 8;  // floats; keeps the writes of fragments free of bank conflicts
constexpr int kGramBlocksPerMultiprocessor = 3;
static_assert(kGramTile * kGramPitch * sizeof(float) <= kGramStages * kGramTileBytes);

// One tile of the Gram matrix of one frame.
// Grid: (cluster, tiles of a frame, frames); the blocks of a cluster share the channels and add up in the order of
// their ranks. Memory: reads two tiles of tokens (D channels), out of L2 where other tiles read them too; writes 16 KB.
// Limit: L2 bandwidth, N / 64 reads of every token.
template <typename T>
__global__ __launch_bounds__(kGramThreads,
                             kGramBlocksPerMultiprocessor) void gram_kernel(const __grid_constant__ Tokens<T> tokens,
                                                                            const __grid_constant__ FramePlan plan,
                                                                            bool planned, float* gram) {
  extern __shared__ __align__(128) unsigned char shared[];
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
  const int warp_a = warp / 2 * 32, warp_b = warp % 2 * 32;
  const int copy_row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  constexpr int kCopyStep = kGramThreads / 8, kCopies = 2 * kGramTile / kCopyStep;
  const int first_channel = (slices.first * 8 + chunk) * Vector<T>::kSize;
  const uint32_t tile0 = shared_address(shared), copy_at = tile_offset(copy_row, chunk);
  const uint32_t b_at = row == column ? 0 : kGramTile * kTileRowBytes;

  wait_for_predecessor();
  const int frames = planned ? plan.totals->anchors : tokens.frames;
  for (int item = blockIdx.z; item < frames; item += gridDim.z) {
    const int first_token = (planned ? plan.anchors[item] : item) * tokens.per_frame;
    SliceCopy<T, kCopies, kCopyStep> copy;
    if (row == column) copy.rows = kCopies / 2;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int r = (copy_row + i * kCopyStep) % kGramTile;
      const bool is_b = i >= kCopies / 2, present = r < (is_b ? num_b : num_a);
      copy.source[i] = tokens.row(first_token + (present ? (is_b ? first_b : first_a) + r : 0)) + first_channel;
    }
    const auto start_slice = [&](int slice) {
      if (slice < slices.count) {
        copy.start(tile0 + slice % kGramStages * kGramTileBytes + copy_at,
                   first_channel + slice * kSliceChannels<T> < tokens.channels);
      }
      commit_copies();
    };

    float sums[2][4][4] = {};
    for (int slice = 0; slice < kGramStages - 1; ++slice) start_slice(slice);
    for (int slice = 0; slice < slices.count; ++slice) {
      wait_copies(kGramStages - 2);
      __syncthreads();
      start_slice(slice + kGramStages - 1);
      const uint32_t tile = tile0 + slice % kGramStages * kGramTileBytes;
#pragma unroll
      for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
        uint32_t a[2][4], b[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          load_rows(a[half], tile + (warp_a + half * 16) * kTileRowBytes, step);
          load_columns(b[half], tile + b_at + (warp_b + half * 16) * kTileRowBytes, step);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply(sums[m][half * 2], a[m], b[half][0], b[half][1], T{});
            multiply(sums[m][half * 2 + 1], a[m], b[half][2], b[half][3], T{});
          }
        }
      }
    }
    wait_copies(0);
    __syncthreads();

#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float* const at = partial + (warp_a + m * 16 + lane / 4) * kGramPitch + warp_b + c * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(at) = make_float2(sums[m][c][0], sums[m][c][1]);
        *reinterpret_cast<float2*>(at + 8 * kGramPitch) = make_float2(sums[m][c][2], sums[m][c][3]);
      }
    }
    cluster_sync();
    float* const out = gram + (static_cast<int64_t>(item) * shape.count() + blockIdx.y) * shape.size * shape.size;
    constexpr int kQuads = kGramTile / 4;
    for (int unit = rank * kGramThreads + threadIdx.x; unit < num_a * kQuads; unit += ranks * kGramThreads) {
      const int r = unit / kQuads, c = unit % kQuads * 4;
      const float4 total = cluster_total(reinterpret_cast<const float4*>(partial + r * kGramPitch + c), ranks);
      const float values[4] = {total.x, total.y, total.z, total.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (c + e < num_b) out[r * shape.size + c + e] = values[e];
      }
    }
    cluster_sync();  // peers have read this block's sums
  }
}

}  // namespace

template <typename T>
cudaError_t launch_gram(const Tokens<T>& tokens, const FramePlan* plan, float* gram, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int tiles = GramTiles(tokens.per_frame).count();
  // How many frames are anchor frames is not known here: somewhat more than a quarter, and all of a few. Few tiles are
  // shared among more blocks.
  const int anchors = plan != nullptr ? std::min(tokens.frames, std::max(8, tokens.frames * 3 / 8)) : tokens.frames;
  const int64_t expected = static_cast<int64_t>(tiles) * anchors;
  int cluster = 1;
  while (limits.clusters && cluster < kMaxClusterSize &&
         expected * cluster * 2 <= limits.multiprocessors * kGramBlocksPerMultiprocessor) {
    cluster *= 2;
  }
  const dim3 grid(cluster, tiles, std::min(tokens.frames, 65535));
  return launch<gram_kernel<T>>({grid, kGramThreads, kGramStages * kGramTileBytes, cluster, stream}, tokens,
                                plan != nullptr ? *plan : FramePlan{}, plan != nullptr, gram);
}
template cudaError_t launch_gram(const Tokens<float>&, const FramePlan*, float*, cudaStream_t);
template cudaError_t launch_gram(const Tokens<__half>&, const FramePlan*, float*, cudaStream_t);
template cudaError_t launch_gram(const Tokens<__nv_bfloat16>&, const FramePlan*, float*, cudaStream_t);

}  // namespace fastvid
