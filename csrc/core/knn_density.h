// Local density of a token among the tokens of its frame.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fastvid {

// ||x - y||^2 from two squared norms and a product; rounding must not make it negative, and NaN stays NaN.
FASTVID_HOST_DEVICE float squared_distance(float squared_x, float squared_y, float product) {
  const float squared = fmaf(-2.0f, product, squared_x + squared_y);
  return squared < 0.0f ? 0.0f : squared;
}

// rho = exp(-mean of the squared distances to the nearest neighbours).
FASTVID_HOST_DEVICE float density(float squared_distance_sum, int neighbors) {
  return expf(-squared_distance_sum / static_cast<float>(neighbors));
}

}  // namespace fastvid
