// The rows that prune keeps as they are, and what it says about all kept rows.
#pragma once

#include "block.cuh"
#include "pipeline.h"

namespace fastvid {

// A token that is kept as it is: its row among the tokens at hand, and where it goes.
struct KeptRow {
  int row, output_row;
};

// Writes a vector of a row of the result, as far as it lies within the channels.
template <typename T>
__device__ __forceinline__ void write_vector(T* row, int channels, int channel, const Vector<T>& value) {
  if (channels % Vector<T>::kSize == 0) {
    if (channel < channels) *reinterpret_cast<Vector<T>*>(row + channel) = value;
  } else {
#pragma unroll
    for (int e = 0; e < Vector<T>::kSize; ++e) {
      if (channel + e < channels) row[channel + e] = value.at[e];
    }
  }
}

// Share `rank` of `ranks` of the channels of the rows past the last kept one; the frames share these rows.
template <typename T>
__device__ __forceinline__ void fill_rest(const Output<T>& output, int num_kept, int frame, int frames, int rank,
                                          int ranks) {
  constexpr int kSize = Vector<T>::kSize;
  const int vectors = ceil_div(output.channels, kSize);
  for (int row = num_kept + frame; row < output.capacity; row += frames) {
    for (int v = vectors * rank / ranks + threadIdx.x; v < vectors * (rank + 1) / ranks; v += blockDim.x) {
      write_vector(output.row(row), output.channels, v * kSize, Vector<T>{});
    }
    if (rank == 0 && threadIdx.x == 0) output.indices[row] = -1;
  }
}

}  // namespace fastvid
