// What follows from the products of a frame's tokens: densities, scores, and the choice of its centres.
#pragma once

#include "cluster.cuh"
#include "core/segment.h"
#include "knn_density.cuh"
#include "pipeline.h"
#include "select_peaks.cuh"

namespace fastvid {

constexpr int kPeaksThreads = 512;
constexpr int kPeaksWarps = kPeaksThreads / kWarp;
static_assert(kMaxClusterSize <= kTokenLanes);  // a lane a block sends what was found of a token

// The tokens of a frame whose products a block holds.
struct OwnRows {
  int first, end;
  float* products;  // (end - first, pitch), in shared or device memory; become distances
  int pitch;

  __device__ __forceinline__ float* at(int token) const { return products + (token - first) * pitch; }
};

// How the blocks of a cluster tell each other what they found. Two frames may be under way: a block sends densities of
// the next one while another still works on the last, but no further, since it needs that one's in turn.
struct Exchange {
  Inbox densities[2];
  Inbox keys;  // of the first block
  float farthest[2][kMaxClusterSize * kPeaksWarps];
};

// Marks which tokens of a frame take part, and gives their number to every thread. The norms must be there; a barrier
// of the block. candidate(t) may be asked past the last token; `first` is what it said of the thread's first one.
template <typename Candidate>
__device__ __forceinline__ int mark_candidates(int n, const FrameState& state, bool first, Candidate&& candidate) {
  int count = 0;
  for (int base = 0; base < n; base += blockDim.x) {
    const int t = base + threadIdx.x;
    const bool takes_part = base == 0 ? first : candidate(t);
    if (t < FrameState::padded(n)) {
      state.marks[t] = takes_part;
      if (!takes_part) {
        state.norms[t] = INFINITY;
        state.keys[t] = INT32_MIN;
      }
    }
    count += __syncthreads_count(takes_part);
  }
  return count;
}

// rho and gamma of the block's rows, exchanged within the cluster; the first block then chooses the centres of frame
// `item` of those that the kernel works on, the cluster's `turn`-th.
__device__ __forceinline__ void find_peaks(const DensityPeaks& peaks, int item, int frame, int turn, int num_candidates,
                                           const OwnRows& rows, const FrameState& state, Exchange& exchange,
                                           Counts* scratch) {
  const int n = peaks.per_frame, ranks = cluster_size(), rank = cluster_rank();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int64_t first_token = static_cast<int64_t>(frame) * n;
  Inbox& densities = exchange.densities[turn % 2];
  float* const density = state.density + turn % 2 * FrameState::padded(n);
  float* const all_farthest = exchange.farthest[turn % 2];
  if (threadIdx.x == 0) {
    densities.expect((n + ranks * kPeaksWarps) * sizeof(float));
    if (rank == 0) exchange.keys.expect(n * sizeof(int));
  }
  int wanted = peaks.num_peaks, first_center = 0, first_row = 0, first_anchor = 0;
  if (rank == 0 && peaks.planned) {
    const FrameRecord& record = peaks.plan.records[frame];
    wanted = record.num_context;
    first_center = record.center_offset;
    first_row = record.row_offset;
    first_anchor = record.first_anchor;
  }

  // A warp takes several tokens at a time, with n = 0 for what is none or takes no part.
  const int lane_of_token = lane % kTokenLanes;
  const auto for_each_token = [&](auto&& visit) {
#pragma unroll 1
    for (int first = rows.first + warp * kWarpTokens; first < rows.end; first += kPeaksWarps * kWarpTokens) {
      const int i = first + lane / kTokenLanes;
      visit(i, i < rows.end, i < rows.end && state.marks[i] ? n : 0);
    }
  };
  const int neighbors = min(peaks.num_neighbors, num_candidates);
  float farthest = 0.0f;
  for_each_token([&](int i, bool exists, int n_of_token) {
    Nearest nearest;
    distances_of(i, rows.at(i), n_of_token, state, peaks.inverse_channels, nearest, farthest);
    float rho = 0.0f;
    if (peaks.given_density == nullptr) {
      rho = density_of(rows.at(i), n_of_token, neighbors, nearest);
    } else if (n_of_token > 0) {
      rho = peaks.given_density[first_token + i];
    }
    if (n_of_token == 0) rho = 0.0f;
    if (rho != rho) rho = -INFINITY;
    if (exists && lane_of_token < ranks) densities.send(density + i, rho, lane_of_token);
    if (exists && lane_of_token == 0 && peaks.density != nullptr) peaks.density[first_token + i] = rho;
  });
  farthest = warp_max(farthest);
  if (lane < ranks) densities.send(all_farthest + rank * kPeaksWarps + warp, farthest, lane);
  densities.wait(turn / 2);

  for (int w = lane; w < ranks * kPeaksWarps; w += kWarp) farthest = fmaxf(farthest, all_farthest[w]);
  farthest = warp_max(farthest);
  for_each_token([&](int i, bool exists, int n_of_token) {
    const float gamma = score_of(i, rows.at(i), n_of_token, density, farthest);
    if (!exists || lane_of_token > 0) return;
    exchange.keys.send(state.keys + i, n_of_token > 0 ? candidate_key(gamma) : INT32_MIN, 0);
    if (peaks.score != nullptr) peaks.score[first_token + i] = n_of_token > 0 ? gamma : 0.0f;
  });
  if (rank != 0) return;
  exchange.keys.wait(turn);

  Counts before{};
  for_each_choice(n, wanted, state, [&](int token, bool chosen) {
    const bool kept = chosen || (peaks.planned && token < n && !state.marks[token]);
    Counts total;
    const Counts place = before + block_scan(chosen, kept, total, scratch);
    before = before + total;
    if (!chosen) return;
    if (peaks.planned) {
      peaks.centers.list[first_center + place.a] = {static_cast<int>(first_token) + token, first_row + place.b,
                                                    item - first_anchor, static_cast<uint16_t>(place.a),
                                                    static_cast<uint16_t>(wanted)};
      peaks.centers.inverse_norms[first_center + place.a] = inverse_norm(state.norms[token]);
      peaks.centers.flags[first_token + token] = 1;
    } else if (peaks.peaks != nullptr) {
      peaks.peaks[static_cast<int64_t>(frame) * wanted + place.a] = token;
    }
  });
  if (!peaks.planned && peaks.peaks != nullptr) {
    for (int p = before.a + threadIdx.x; p < wanted; p += blockDim.x) {
      peaks.peaks[static_cast<int64_t>(frame) * wanted + p] = -1;
    }
  }
}

}  // namespace fastvid
