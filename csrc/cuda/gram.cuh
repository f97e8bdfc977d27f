// Products of all pairs of tokens of a frame: each pair once, but for the few that are neighbours.
#pragma once

#include "pipeline.h"

namespace fastvid {

constexpr int kGramTokens = 200;  // whose products a block makes: the whole frame, or two groups of it

// Where the products of a frame's n tokens stand: row i holds columns first_column(i) to n, and the rows follow one
// another.
struct GramShape {
  static constexpr int kBand = 8;  // rows that begin with the same column
  int groups;                      // that the tokens are cut into, whose pairs are multiplied one by one; or one
  int size;                        // tokens of a group; of several, whole bands, and swizzled rows of a tile
  int pitch;                       // columns of the first row, whole vectors of four

  __host__ __device__ explicit GramShape(int n) {
    constexpr int kMost = kGramTokens / 2 / kBand * kBand;
    groups = n > kGramTokens ? ceil_div(n, kMost) : 1;
    size = groups > 1 ? ceil_div(ceil_div(n, groups), kBand) * kBand : n;
    pitch = ceil_div(n, 4) * 4;
  }
  __host__ __device__ static int first_column(int i) { return i / kBand * kBand; }
  // Place of row i's column 0, which may not be there.
  __host__ __device__ int at(int i) const {
    const int first = first_column(i);
    return first * pitch - first * (first - kBand) / 2 + (i - first) * (pitch - first) - first;
  }
  __host__ __device__ int floats() const { return at(pitch - 1) + pitch; }  // of a frame
  // Products are made for a pair of groups at a time.
  __host__ __device__ int pairs() const { return groups == 1 ? 1 : groups * (groups - 1) / 2; }
  __host__ __device__ int pair_rows() const { return groups == 1 ? size : 2 * size; }
};

}  // namespace fastvid
