// The one order by which FastVID chooses: larger values first, NaN last, ties by the lower index.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace fastvid {

// A key whose integer order is the order of the values: -0 equals 0, and NaN lies below everything. Neither here nor in
// ranks_before is there a branch, which the loops of the kernels would pay for.
FASTVID_HOST_DEVICE int32_t order_key(float value) {
  const float unsigned_zero = value + 0.0f;
  int32_t bits;
  memcpy(&bits, &unsigned_zero, sizeof bits);
  return value != value ? INT32_MIN : bits ^ (bits >> 31 & INT32_MAX);
}

FASTVID_HOST_DEVICE int64_t order_key(double value) {
  const double unsigned_zero = value + 0.0;
  int64_t bits;
  memcpy(&bits, &unsigned_zero, sizeof bits);
  return value != value ? INT64_MIN : bits ^ (bits >> 63 & INT64_MAX);
}

// The same for a candidate among others that are none: above the least number, which marks those, even for NaN.
FASTVID_HOST_DEVICE int32_t candidate_key(float value) {
  const int32_t key = order_key(value);
  return key > INT32_MIN ? key : INT32_MIN + 1;
}

FASTVID_HOST_DEVICE int64_t candidate_key(double value) {
  const int64_t key = order_key(value);
  return key > INT64_MIN ? key : INT64_MIN + 1;
}

// Whether candidate i with key a is chosen before candidate j with key b.
template <typename Key>
FASTVID_HOST_DEVICE bool ranks_before(Key a, int i, Key b, int j) {
  const bool larger = a > b, equal = a == b, earlier = i < j;
  return larger | (equal & earlier);
}

}  // namespace fastvid
