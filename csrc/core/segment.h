// Where a video is cut into segments (DySeg).
#pragma once

#include <cmath>

#include "host_device.h"
#include "order.h"

namespace fastvid {

constexpr float kNormFloor = 1e-12f;

// ||x|| from its square, above zero also for zero.
FASTVID_HOST_DEVICE float floored_norm(float squared) { return fmaxf(sqrtf(squared), kNormFloor); }

FASTVID_HOST_DEVICE float inverse_norm(float squared) { return 1.0f / floored_norm(squared); }

// Cosine from a dot product and two squared norms.
FASTVID_HOST_DEVICE float cosine(float dot, float squared_a, float squared_b) {
  return dot / (floored_norm(squared_a) * floored_norm(squared_b));
}

// Key by which frames are ranked, the least similar to their successors first; NaN counts as most similar.
FASTVID_HOST_DEVICE int32_t similarity_key(float similarity) { return order_key(-similarity); }

// Whether a video is cut after a frame that is not its last. num_less_similar counts the frames of the video that are
// less similar to their successors.
FASTVID_HOST_DEVICE bool is_cut(float similarity, float threshold, int num_less_similar, int min_segments) {
  return similarity < threshold || num_less_similar < min_segments - 1;
}

}  // namespace fastvid
