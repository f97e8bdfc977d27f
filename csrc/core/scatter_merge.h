// How tokens merge into a centre.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastvid {

// How much a centre weighs in its merge, w = max(1 / (n + 1), beta), and each of the n tokens that merge into it,
// (1 - w) / n.
struct MergeWeights {
  float own, others;
};
FASTVID_HOST_DEVICE MergeWeights merge_weights(int64_t count, float merge_floor) {
  const float even = 1.0f / static_cast<float>(count + 1), own = even > merge_floor ? even : merge_floor;
  return {own, count > 0 ? (1.0f - own) / static_cast<float>(count) : 0.0f};
}

// w * x + (1 - w) * mean, from the sum of the tokens; without weight of theirs the centre is left as it is.
FASTVID_HOST_DEVICE float merged_value(float center, float sum, const MergeWeights& weights) {
  return weights.others > 0.0f ? weights.own * center + weights.others * sum : center;
}

}  // namespace fastvid
