// Products of all pairs of tokens of a frame, in square tiles on and above the diagonal.
#pragma once

#include "pipeline.h"

namespace fastvid {

constexpr int kGramTokens = 200;  // whose products a block makes: two groups, or the whole frame

// How a frame of n tokens is cut into groups, and the matrix of their products into tiles; groups are as even as whole
// vectors of four allow, or, where a pair of groups is not all of the frame, whole swizzled rows of a tile.
struct GramTiles {
  int across;  // groups, and tiles a side of the matrix
  int size;    // tokens of a group
  __host__ __device__ explicit GramTiles(int n) {
    const int unit = n > kGramTokens ? 8 : 4, most = kGramTokens / 2 / unit * unit;
    across = ceil_div(n, most);
    size = ceil_div(ceil_div(n, across), unit) * unit;
  }
  __host__ __device__ int area() const { return size * size; }
  __host__ __device__ int floats() const { return across * (across + 1) / 2 * area(); }  // of a frame
  // Place of tile (row, column), row <= column, among the frame's.
  __device__ __forceinline__ int at(int row, int column) const {
    return row * across - row * (row - 1) / 2 + column - row;
  }
  // Products are made for a pair of groups at a time, or for one group that has no other.
  __host__ __device__ int pairs() const { return across == 1 ? 1 : across * (across - 1) / 2; }
  __host__ __device__ int pair_rows() const { return across == 1 ? size : 2 * size; }
};

}  // namespace fastvid
