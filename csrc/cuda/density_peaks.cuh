// What follows from the products of a frame's tokens: densities, scores, and the choice of its centres.
#pragma once

#include "cluster.cuh"
#include "core/segment.h"
#include "knn_density.cuh"
#include "pipeline.h"
#include "select_peaks.cuh"

namespace fastvid {

// The tokens of a frame whose products a block holds.
struct OwnRows {
  int first, end;
  float* products;  // (end - first, pitch), in shared or device memory; become distances
  int pitch;

  __device__ __forceinline__ float* at(int token) const { return products + (token - first) * pitch; }
};

// Marks which tokens of a frame take part, and gives their number to every thread. A barrier of the block.
template <typename Candidate>
__device__ __forceinline__ int mark_candidates(int n, const FrameState& state, Candidate&& candidate) {
  int count = 0;
  if (threadIdx.x < FrameState::padded(n) - n) state.keys[n + threadIdx.x] = INT32_MIN;
  for (int base = 0; base < n; base += blockDim.x) {
    const int t = base + threadIdx.x;
    const bool takes_part = t < n && candidate(t);
    if (t < n) state.marks[t] = takes_part;
    count += __syncthreads_count(takes_part);
  }
  return count;
}

// rho and gamma of the block's rows, exchanged within the cluster; the first block then chooses the centres of frame
// `item` of those that the kernel works on.
__device__ __forceinline__ void find_peaks(const DensityPeaks& peaks, int item, int frame, int num_candidates,
                                           const OwnRows& rows, const FrameState& state, Counts* scratch) {
  const int n = peaks.per_frame, ranks = cluster_size(), rank = cluster_rank();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  const int64_t first_token = static_cast<int64_t>(frame) * n;

  const int neighbors = min(peaks.num_neighbors, num_candidates);
  for (int i = rows.first + warp; i < rows.end; i += warps) {
    float rho = 0.0f, farthest = 0.0f;
    if (state.marks[i]) {
      Nearest nearest;
      farthest = distances_of(i, rows.at(i), n, state, peaks.inverse_channels, nearest);
      rho = peaks.given_density != nullptr ? peaks.given_density[first_token + i]
                                           : density_of(rows.at(i), n, neighbors, nearest);
      if (rho != rho) rho = -INFINITY;
    }
    if (lane < ranks) {
      at_rank(state.density, lane)[i] = rho;
      at_rank(state.farthest, lane)[i] = farthest;
    }
    if (lane == 0 && peaks.density != nullptr) peaks.density[first_token + i] = rho;
  }
  cluster_sync();

  float farthest = 0.0f;
  for (int t = lane; t < n; t += kWarp) farthest = fmaxf(farthest, state.farthest[t]);
  farthest = warp_max(farthest);
  for (int i = rows.first + warp; i < rows.end; i += warps) {
    const bool candidate = state.marks[i];
    const float gamma = candidate ? score_of(i, rows.at(i), n, state, farthest) : 0.0f;
    if (lane == 0) {
      *at_rank(state.keys + i, 0) = candidate ? candidate_key(gamma) : INT32_MIN;
      if (peaks.score != nullptr) peaks.score[first_token + i] = gamma;
    }
  }
  // The first block chooses; the others may begin the next frame, which they can't disturb before its first barrier.
  int wanted = peaks.num_peaks, first_center = 0, first_row = 0, first_anchor = 0;
  if (rank == 0 && peaks.planned) {
    const FrameRecord& record = peaks.plan.records[frame];
    wanted = record.num_context;
    first_center = record.center_offset;
    first_row = record.row_offset;
    first_anchor = record.first_anchor;
  }
  cluster_sync();
  if (rank != 0) return;

  Counts before{};
  for_each_choice(n, wanted, state, [&](int token, bool chosen) {
    const bool kept = chosen || (peaks.planned && token < n && !state.marks[token]);
    Counts total;
    const Counts place = before + block_scan({chosen, kept, 0}, total, scratch);
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
  __syncthreads();
}

}  // namespace fastvid
