// How tokens merge into a centre.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace fastvid {

// w = max(1 / (n + 1), beta): weight that a centre keeps when n tokens merge into it.
FASTVID_HOST_DEVICE float own_weight(int64_t count, float merge_floor) {
  const float even = 1.0f / static_cast<float>(count + 1);
  return even > merge_floor ? even : merge_floor;
}

// w * x + (1 - w) * mean; without merged tokens the centre is left as it is.
FASTVID_HOST_DEVICE float merged_value(float center, float sum, int64_t count, float weight) {
  if (count == 0) return center;
  return weight * center + (1.0f - weight) * (sum / static_cast<float>(count));
}

}  // namespace fastvid
