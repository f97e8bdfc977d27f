// Tokens as the kernels see them: rows of whole 16-byte vectors at one stride.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace fastvid {

constexpr int kVectorBytes = 16;
constexpr int kWarp = 32;
constexpr int kTileRowBytes = 128;  // of a token in a tile of shared memory

template <typename T>
struct Tokens {
  const T* data;
  int64_t row_stride;     // from a token to the next, through all frames, in elements
  int frames, per_frame;  // T, N
  int channels;           // D, rounded up to whole vectors; what lies behind D is 0

  // Row f * N + t, the flat index by which tokens are named everywhere.
  __device__ __forceinline__ const T* row(int index) const { return data + index * row_stride; }
  __host__ __device__ __forceinline__ int row_bytes() const { return channels * static_cast<int>(sizeof(T)); }
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Sixteen bytes of tokens.
template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorBytes / sizeof(T);
  T at[kSize];
};

enum class FloatKind : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

// A small floating matrix of any dtype and strides, read element by element (saliency, frame features).
struct AnyFloats {
  const void* data;
  int64_t row_stride, column_stride;
  int columns;
  FloatKind kind;

  __device__ __forceinline__ double at(int row, int column) const {
    const int64_t i = row * row_stride + column * column_stride;
    switch (kind) {
      case FloatKind::kFloat32:
        return static_cast<const float*>(data)[i];
      case FloatKind::kFloat16:
        return __half2float(static_cast<const __half*>(data)[i]);
      case FloatKind::kBFloat16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
      default:
        return static_cast<const double*>(data)[i];
    }
  }
};

}  // namespace fastvid
