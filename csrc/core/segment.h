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

// Key by which frames are ranked, the least similar to their successors first; NaN counts as most similar.
FASTVID_HOST_DEVICE int32_t similarity_key(float similarity) { return order_key(-similarity); }

// Whether a video is cut after a frame that is not its last. num_less_similar counts the frames of the video that are
// less similar to their successors.
FASTVID_HOST_DEVICE bool is_cut(float similarity, float threshold, int num_less_similar, int min_segments) {
  return similarity < threshold || num_less_similar < min_segments - 1;
}

}  // namespace fastvid
