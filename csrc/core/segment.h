// Where a video is cut into segments (DySeg).
#pragma once

#include <cmath>

#include "host_device.h"
#include "order.h"

namespace fastvid {

constexpr float kNormFloor = 1e-12f;

// 1 / ||x|| from a squared norm, finite also for zero.
FASTVID_HOST_DEVICE float inverse_norm(float squared) { return 1.0f / fmaxf(sqrtf(squared), kNormFloor); }

// Cosine from a dot product and two squared norms.
FASTVID_HOST_DEVICE float cosine(float dot, float squared_a, float squared_b) {
  return dot / (fmaxf(sqrtf(squared_a), kNormFloor) * fmaxf(sqrtf(squared_b), kNormFloor));
}

// Whether frame i is less similar to its successor than frame j is; NaN counts as most similar.
FASTVID_HOST_DEVICE bool less_similar(float similarity_i, int i, float similarity_j, int j) {
  return ranks_before(order_key(-similarity_i), i, order_key(-similarity_j), j);
}

// Whether a video is cut after a frame that is not its last. num_less_similar counts the frames of the video that are
// less similar to their successors.
FASTVID_HOST_DEVICE bool is_cut(float similarity, float threshold, int num_less_similar, int min_segments) {
  return similarity < threshold || num_less_similar < min_segments - 1;
}

}  // namespace fastvid
