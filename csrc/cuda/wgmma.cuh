// Products of tiles by a warpgroup: 64 rows, sixteen a warp, straight out of shared memory on sm_90a (wgmma) and
// through registers elsewhere. Sums lie as mma.sync leaves them: sums[c][0, 1] in row lane / 4 and columns c * 8 + lane
// % 4 * 2 and the next, sums[c][2, 3] eight rows below.
#pragma once

#include <type_traits>

#include "mma.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define FASTVID_WGMMA 1
#endif

namespace fastvid {

constexpr int kWarpgroup = 4 * kWarp, kWarpgroupRows = 64;
constexpr int kTileAlignment = 1024;  // of tiles that wgmma reads: eight swizzled rows

// Lets the tensor cores see what this thread's copies have written to shared memory; a barrier has to follow.
__device__ __forceinline__ void publish_copies() {
#ifdef FASTVID_WGMMA
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#ifdef FASTVID_WGMMA
template <typename T>
constexpr bool kByWarpgroup = sizeof(T) == 2;

// Descriptor of a swizzled tile, one slice wide: groups of eight rows lie 1024 bytes apart. Those of tiles further on
// come by addition, which is quicker than anew: addresses are below 2^18.
struct TileDescriptor {
  uint32_t low;
  __device__ __forceinline__ explicit TileDescriptor(uint32_t address) : low((address >> 4 & 0x3fff) | 1u << 16) {}
  __device__ __forceinline__ uint64_t at(int bytes) const {
    return uint64_t{1u << 30 | 1024 >> 4} << 32 | (low + static_cast<uint32_t>(bytes >> 4));
  }
};

#define FASTVID_SUMS4(s, c) "+f"(s[c][0]), "+f"(s[c][1]), "+f"(s[c][2]), "+f"(s[c][3])
#define FASTVID_SUMS16(s, c) \
  FASTVID_SUMS4(s, c), FASTVID_SUMS4(s, c + 1), FASTVID_SUMS4(s, c + 2), FASTVID_SUMS4(s, c + 3)
#define FASTVID_SUMS32(s, c) FASTVID_SUMS16(s, c), FASTVID_SUMS16(s, c + 4)
#define FASTVID_REGISTERS4 "%0,%1,%2,%3"
#define FASTVID_REGISTERS20 FASTVID_REGISTERS4 ",%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19"
#define FASTVID_REGISTERS32                                                                                            \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30," \
  "%31"
#define FASTVID_REGISTERS36 FASTVID_REGISTERS32 ",%32,%33,%34,%35"
#define FASTVID_REGISTERS52 FASTVID_REGISTERS36 ",%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51"
#define FASTVID_REGISTERS64 FASTVID_REGISTERS52 ",%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* 64 rows of tile a times `columns` rows of tile b, into `sums`; %A and %B name the tiles, %P a one. */
#define FASTVID_WGMMA_TILES(T, type, columns, registers, A, B, P, ...)                                          \
  template <int kColumns>                                                                                       \
  __device__ __forceinline__ void wgmma##columns(float (&s)[kColumns][4], uint64_t a, uint64_t b, T) {          \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P                                                           \
                 ", 0;"                                                                                         \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" registers "}, %" #A \
                 ", %" #B ", p, 1, 1, 0, 0;}"                                                                   \
                 : __VA_ARGS__                                                                                  \
                 : "l"(a), "l"(b), "r"(1));                                                                     \
  }
#define FASTVID_WGMMA_OPS(T, type)                                                                               \
  FASTVID_WGMMA_TILES(T, type, 8, FASTVID_REGISTERS4, 4, 5, 6, FASTVID_SUMS4(s, 0))                              \
  FASTVID_WGMMA_TILES(T, type, 40, FASTVID_REGISTERS20, 20, 21, 22, FASTVID_SUMS16(s, 0), FASTVID_SUMS4(s, 4))   \
  FASTVID_WGMMA_TILES(T, type, 72, FASTVID_REGISTERS36, 36, 37, 38, FASTVID_SUMS32(s, 0), FASTVID_SUMS4(s, 8))   \
  FASTVID_WGMMA_TILES(T, type, 104, FASTVID_REGISTERS52, 52, 53, 54, FASTVID_SUMS32(s, 0), FASTVID_SUMS16(s, 8), \
                      FASTVID_SUMS4(s, 12))                                                                      \
  FASTVID_WGMMA_TILES(T, type, 128, FASTVID_REGISTERS64, 64, 65, 66, FASTVID_SUMS32(s, 0), FASTVID_SUMS32(s, 8)) \
  /* Rows in registers times 64 channels of sixteen rows of tile b. */                                           \
  __device__ __forceinline__ void wgmma64_rows(float (&s)[8][4], const uint32_t (&a)[4], uint64_t b, T) {        \
    asm volatile(                                                                                                \
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"                                                                  \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" FASTVID_REGISTERS32                     \
        "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"                                                                \
        : FASTVID_SUMS32(s, 0)                                                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                           \
  }
FASTVID_WGMMA_OPS(__nv_bfloat16, "bf16")
FASTVID_WGMMA_OPS(__half, "f16")
#else
template <typename T>
constexpr bool kByWarpgroup = false;
#endif

template <typename T>
__device__ __forceinline__ void begin_products() {
#ifdef FASTVID_WGMMA
  if constexpr (kByWarpgroup<T>) asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
template <typename T>
__device__ __forceinline__ void commit_products() {
#ifdef FASTVID_WGMMA
  if constexpr (kByWarpgroup<T>) asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits until at most so many of the committed products are under way.
template <typename T, int kPending = 0>
__device__ __forceinline__ void wait_products() {
#ifdef FASTVID_WGMMA
  if constexpr (kByWarpgroup<T>) asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#endif
}

// Adds to the first kColumns of sums the products of the warpgroup's 64 rows, from address a, with 8 * kColumns rows
// from address b, over one slice of both. Between begin_products and commit_products, by all warps of the warpgroup.
template <typename T, int kColumns, int kSums>
__device__ __forceinline__ void multiply_slice(float (&sums)[kSums][4], uint32_t a, uint32_t b) {
  static_assert(kColumns == 1 || kColumns == 5 || kColumns == 9 || kColumns == 13 || kColumns == 16,
                "others are a line of FASTVID_WGMMA_OPS each");
#ifdef FASTVID_WGMMA
  if constexpr (kByWarpgroup<T>) {
    const TileDescriptor rows(a), columns(b);
#pragma unroll
    for (int step = 0; step < kTileRowBytes; step += kStepBytes) {
      if constexpr (kColumns == 1) wgmma8(sums, rows.at(step), columns.at(step), T{});
      if constexpr (kColumns == 5) wgmma40(sums, rows.at(step), columns.at(step), T{});
      if constexpr (kColumns == 9) wgmma72(sums, rows.at(step), columns.at(step), T{});
      if constexpr (kColumns == 13) wgmma104(sums, rows.at(step), columns.at(step), T{});
      if constexpr (kColumns == 16) wgmma128(sums, rows.at(step), columns.at(step), T{});
    }
    return;
  }
#endif
  const uint32_t mine = a + threadIdx.x / kWarp % 4 * 16 * kTileRowBytes;
#pragma unroll
  for (int step = 0; step < kTileRowBytes / kStepBytes; ++step) {
    uint32_t rows[4];
    load_rows(rows, mine, step);
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      uint32_t columns[4];
      load_columns(columns, b + c * 8 * kTileRowBytes, step);
      multiply(sums[c], rows, columns[0], columns[1], T{});
      if (c + 1 < kColumns) multiply(sums[c + 1], rows, columns[2], columns[3], T{});
    }
  }
}

// The same with as few columns as hold so many, where that spares the tensor cores something.
template <typename T, int kSums>
__device__ __forceinline__ void multiply_columns(float (&sums)[kSums][4], uint32_t a, uint32_t b, int columns) {
  static_assert(kSums == 16);
  if (!kByWarpgroup<T>) {
    multiply_slice<T, 16>(sums, a, b);
  } else if (columns <= 8) {
    multiply_slice<T, 1>(sums, a, b);
  } else if (columns <= 40) {
    multiply_slice<T, 5>(sums, a, b);
  } else if (columns <= 72) {
    multiply_slice<T, 9>(sums, a, b);
  } else if (columns <= 104) {
    multiply_slice<T, 13>(sums, a, b);
  } else {
    multiply_slice<T, 16>(sums, a, b);
  }
}

// Adds to sums the product of sixteen columns that the warpgroup's 64 rows have in registers, sixteen rows a warp, with
// the first 64 channels of the sixteen tokens from row `row` of the tile at address `tokens`. Between begin_products
// and wait_products; until then the registers must stay as they are.
template <typename T>
__device__ __forceinline__ void multiply_transposed(float (&sums)[8][4], const uint32_t (&rows)[4], uint32_t tokens,
                                                    int row, T) {
#ifdef FASTVID_WGMMA
  wgmma64_rows(sums, rows, TileDescriptor(tokens).at(row * kTileRowBytes), T{});
#else
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int c = 0; c < 8; c += 2) {
    uint32_t columns[4];
    load_matrices_transposed(columns, tokens + tile_offset(row + lane % 16, c + lane / 16));
    multiply(sums[c], rows, columns[0], columns[1], T{});
    multiply(sums[c + 1], rows, columns[2], columns[3], T{});
  }
#endif
}

}  // namespace fastvid
