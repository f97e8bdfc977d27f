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

// Float32 as the tensor cores read it: they leave out the last 13 bits.
struct Tf32 {};

#ifdef FASTVID_WGMMA
template <typename T>
constexpr bool kByWarpgroup = sizeof(T) == 2 || std::is_same_v<T, Tf32>;
// Whether a tile goes in beside one of its low parts.
template <typename T>
constexpr bool kByParts = std::is_same_v<T, float>;

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
#define FASTVID_WGMMA_TILES(T, type, depth, flags, columns, registers, A, B, P, ...)                               \
  template <int kColumns>                                                                                          \
  __device__ __forceinline__ void wgmma##columns(float (&s)[kColumns][4], uint64_t a, uint64_t b, T) {             \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P                                                              \
                 ", 0;"                                                                                            \
                 "wgmma.mma_async.sync.aligned.m64n" #columns depth ".f32." type "." type " {" registers "}, %" #A \
                 ", %" #B ", p, " flags ";}"                                                                       \
                 : __VA_ARGS__                                                                                     \
                 : "l"(a), "l"(b), "r"(1));                                                                        \
  }
#define FASTVID_WGMMA_OPS(T, ...)                                                                                     \
  FASTVID_WGMMA_TILES(T, __VA_ARGS__, 8, FASTVID_REGISTERS4, 4, 5, 6, FASTVID_SUMS4(s, 0))                            \
  FASTVID_WGMMA_TILES(T, __VA_ARGS__, 40, FASTVID_REGISTERS20, 20, 21, 22, FASTVID_SUMS16(s, 0), FASTVID_SUMS4(s, 4)) \
  FASTVID_WGMMA_TILES(T, __VA_ARGS__, 72, FASTVID_REGISTERS36, 36, 37, 38, FASTVID_SUMS32(s, 0), FASTVID_SUMS4(s, 8)) \
  FASTVID_WGMMA_TILES(T, __VA_ARGS__, 104, FASTVID_REGISTERS52, 52, 53, 54, FASTVID_SUMS32(s, 0),                     \
                      FASTVID_SUMS16(s, 8), FASTVID_SUMS4(s, 12))                                                     \
  FASTVID_WGMMA_TILES(T, __VA_ARGS__, 128, FASTVID_REGISTERS64, 64, 65, 66, FASTVID_SUMS32(s, 0), FASTVID_SUMS32(s, 8))
/* Rows in registers times 64 channels of sixteen rows of tile b. */
#define FASTVID_WGMMA_ROWS(T, type)                                                                       \
  __device__ __forceinline__ void wgmma64_rows(float (&s)[8][4], const uint32_t (&a)[4], uint64_t b, T) { \
    asm volatile(                                                                                         \
        "{.reg .pred p; setp.ne.b32 p, %37, 0;"                                                           \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" FASTVID_REGISTERS32              \
        "}, {%32,%33,%34,%35}, %36, p, 1, 1, 1;}"                                                         \
        : FASTVID_SUMS32(s, 0)                                                                            \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));                                    \
  }
FASTVID_WGMMA_OPS(__nv_bfloat16, "bf16", "k16", "1, 1, 0, 0")
FASTVID_WGMMA_OPS(__half, "f16", "k16", "1, 1, 0, 0")
FASTVID_WGMMA_OPS(Tf32, "tf32", "k8", "1, 1")
FASTVID_WGMMA_ROWS(__nv_bfloat16, "bf16")
FASTVID_WGMMA_ROWS(__half, "f16")

template <typename T, int kColumns, int kSums>
__device__ __forceinline__ void multiply_step(float (&sums)[kSums][4], uint64_t a, uint64_t b) {
  if constexpr (kColumns == 1) wgmma8(sums, a, b, T{});
  if constexpr (kColumns == 5) wgmma40(sums, a, b, T{});
  if constexpr (kColumns == 9) wgmma72(sums, a, b, T{});
  if constexpr (kColumns == 13) wgmma104(sums, a, b, T{});
  if constexpr (kColumns == 16) wgmma128(sums, a, b, T{});
}
#else
template <typename T>
constexpr bool kByWarpgroup = false;
template <typename T>
constexpr bool kByParts = false;
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
      multiply_step<T, kColumns>(sums, rows.at(step), columns.at(step));
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

// The same over one half of a slice of float32 values, as the sum of what the tensor cores make of them and of their
// low parts, in tiles low_a and low_b. The product of two values comes out to 2^-19 of its size at worst.
template <int kColumns, int kSums>
__device__ __forceinline__ void multiply_parts(float (&sums)[kSums][4], uint32_t a, uint32_t b, uint32_t low_a,
                                               uint32_t low_b, int half) {
#ifdef FASTVID_WGMMA
  const TileDescriptor rows(a), columns(b), low_rows(low_a), low_columns(low_b);
#pragma unroll
  for (int i = 0; i < kTileRowBytes / 2; i += kStepBytes) {
    const int step = half * kTileRowBytes / 2 + i;
    multiply_step<Tf32, kColumns>(sums, low_rows.at(step), columns.at(step));
    multiply_step<Tf32, kColumns>(sums, rows.at(step), low_columns.at(step));
    multiply_step<Tf32, kColumns>(sums, rows.at(step), columns.at(step));
  }
#endif
}

// What the tensor cores leave out of a value, exactly.
__device__ __forceinline__ float low_part(uint32_t bits) {
  return __uint_as_float(bits) - __uint_as_float(bits & ~0x1fffu);
}
// Writes the low parts of one half of a slice of up to kMostRows rows, by kThreads threads. Eight lanes take four
// chunks of rows r and r + 4, which lie in different banks.
template <int kThreads, int kMostRows>
__device__ __forceinline__ void write_low_parts(const unsigned char* tile, unsigned char* low, int rows, int half) {
  constexpr int kStep = kThreads / 4, kAtOnce = 3;  // loads under way, as far as registers reach
  static_assert(kMostRows % (kAtOnce * kStep) == 0);
  const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * 8 + lane / 8 + lane % 8 / 4 * 4;
  const uint32_t at = tile_offset(first, half * 4 + lane % 4);
#pragma unroll
  for (int r = 0; r < kMostRows; r += kAtOnce * kStep) {
    uint4 bits[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = r + i * kStep;
      if (first + row < rows) bits[i] = *reinterpret_cast<const uint4*>(tile + at + row * kTileRowBytes);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int row = r + i * kStep;
      if (first + row < rows) {
        *reinterpret_cast<float4*>(low + at + row * kTileRowBytes) =
            make_float4(low_part(bits[i].x), low_part(bits[i].y), low_part(bits[i].z), low_part(bits[i].w));
      }
    }
  }
}

// multiply_slice with as few columns as hold so many, where that spares the tensor cores something.
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
