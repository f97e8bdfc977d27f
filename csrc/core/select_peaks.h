// Which tokens are density peaks.
#pragma once

#include <cmath>

#include "host_device.h"

namespace fastvid {

// Whether token j is denser than token i; equal densities go by the lower index, so that the order is total.
FASTVID_HOST_DEVICE bool denser(float density_j, int j, float density_i, int i) {
  const bool larger = density_j > density_i, equal = density_j == density_i, earlier = j < i;
  return larger | (equal & earlier);  // no branch: kernels ask this of every pair
}

// gamma = rho * delta, delta given squared.
FASTVID_HOST_DEVICE float peak_score(float density, float squared_delta) { return density * sqrtf(squared_delta); }

}  // namespace fastvid
