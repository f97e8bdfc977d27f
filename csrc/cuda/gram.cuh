// Products of all pairs of tokens of a frame, in square tiles on and above the diagonal.
#pragma once

#include "pipeline.h"

namespace fastvid {

constexpr int kGramTile = 128;  // tokens a side at most

// How a frame of n tokens is cut into tiles; tiles are as even as whole vectors of four allow.
struct GramTiles {
  int across;  // tiles a side of the matrix
  int size;    // tokens a side of a tile
  __host__ __device__ explicit GramTiles(int n)
      : across(ceil_div(n, kGramTile)), size(ceil_div(ceil_div(n, across), 4) * 4) {}
  __host__ __device__ int count() const { return across * (across + 1) / 2; }
  __host__ __device__ int floats() const { return count() * size * size; }  // of a frame
  // Place of tile (row, column), row <= column, among the frame's.
  __device__ __forceinline__ int at(int row, int column) const {
    return row * across - row * (row - 1) / 2 + column - row;
  }
};

}  // namespace fastvid
