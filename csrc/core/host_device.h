// Marks the functions that the kernels and the host tests share.
#pragma once

#if defined(__CUDACC__)
#define FASTVID_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FASTVID_HOST_DEVICE inline
#endif
