// Which tokens are density peaks.
#pragma once

#include <cmath>

#include "host_device.h"
#include "order.h"

namespace fastvid {

// Whether token j is denser than token i; equal densities go by the lower index, so that the order is total.
FASTVID_HOST_DEVICE bool denser(float density_j, int j, float density_i, int i) {
  return ranks_before(density_j, j, density_i, i);
}

// gamma = rho * delta, delta given squared.
FASTVID_HOST_DEVICE float peak_score(float density, float squared_delta) { return density * sqrtf(squared_delta); }

}  // namespace fastvid
