// Tensor maps, by which the copy engine of sm_90 brings a slice of many tokens with one instruction.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "tokens.cuh"

namespace fastvid {

// The map of `rows` tokens of a frame at a time by one slice of 128 bytes, swizzled as tile_offset says; zeros beyond
// the channels and the frame.
cudaError_t make_token_map(const void* data, CUtensorMapDataType type, int element_bytes, int channels, int per_frame,
                           int frames, int64_t row_stride, int rows, CUtensorMap& map);

template <typename T>
cudaError_t make_token_map(const Tokens<T>& tokens, int rows, CUtensorMap& map) {
  const auto type = sizeof(T) == 4                     ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                    : std::is_same_v<T, __nv_bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return make_token_map(tokens.data, type, sizeof(T), tokens.channels, tokens.per_frame, tokens.frames,
                        tokens.row_stride, rows, map);
}

}  // namespace fastvid
