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
#define FASTVID_SUMS8(s, c) FASTVID_SUMS4(s, c), FASTVID_SUMS4(s, c + 1)
#define FASTVID_SUMS16(s, c) FASTVID_SUMS8(s, c), FASTVID_SUMS8(s, c + 2)
#define FASTVID_SUMS32(s, c) FASTVID_SUMS16(s, c), FASTVID_SUMS16(s, c + 4)
#define FASTVID_SUMS64(s, c) FASTVID_SUMS32(s, c), FASTVID_SUMS32(s, c + 8)
#define FASTVID_REGISTERS4 "%0,%1,%2,%3"
#define FASTVID_REGISTERS8 FASTVID_REGISTERS4 ",%4,%5,%6,%7"
#define FASTVID_REGISTERS16 FASTVID_REGISTERS8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define FASTVID_REGISTERS32 FASTVID_REGISTERS16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FASTVID_REGISTERS36 FASTVID_REGISTERS32 ",%32,%33,%34,%35"
#define FASTVID_REGISTERS40 FASTVID_REGISTERS36 ",%36,%37,%38,%39"
#define FASTVID_REGISTERS48 FASTVID_REGISTERS40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define FASTVID_REGISTERS52 FASTVID_REGISTERS48 ",%48,%49,%50,%51"
#define FASTVID_REGISTERS64 FASTVID_REGISTERS52 ",%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FASTVID_REGISTERS68 FASTVID_REGISTERS64 ",%64,%65,%66,%67"
#define FASTVID_REGISTERS72 FASTVID_REGISTERS68 ",%68,%69,%70,%71"
#define FASTVID_REGISTERS96                                                                        \
  FASTVID_REGISTERS72                                                                              \
  ",%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%" \
  "95"
#define FASTVID_REGISTERS100 FASTVID_REGISTERS96 ",%96,%97,%98,%99"

/* 64 rows of tile a times `columns` rows of tile b, into `sums`; %A and %B name the tiles, %P a one. */
#define FASTVID_WGMMA_TILES(name, T, type, depth, flags, columns, registers, A, B, P, ...)                         \
  template <int kColumns>                                                                                          \
  __device__ __forceinline__ void name##columns(float (&s)[kColumns][4], uint64_t a, uint64_t b, T) {              \
    asm volatile("{.reg .pred p; setp.ne.b32 p, %" #P                                                              \
                 ", 0;"                                                                                            \
                 "wgmma.mma_async.sync.aligned.m64n" #columns depth ".f32." type "." type " {" registers "}, %" #A \
                 ", %" #B ", p, " flags ";}"                                                                       \
                 : __VA_ARGS__                                                                                     \
                 : "l"(a), "l"(b), "r"(1));                                                                        \
  }
#define FASTVID_WGMMA_OPS(...)                                                                            \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 8, FASTVID_REGISTERS4, 4, 5, 6, FASTVID_SUMS4(s, 0))            \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 16, FASTVID_REGISTERS8, 8, 9, 10, FASTVID_SUMS8(s, 0))          \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 72, FASTVID_REGISTERS36, 36, 37, 38, FASTVID_SUMS32(s, 0),      \
                      FASTVID_SUMS4(s, 8))                                                                \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 80, FASTVID_REGISTERS40, 40, 41, 42, FASTVID_SUMS32(s, 0),      \
                      FASTVID_SUMS8(s, 8))                                                                \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 104, FASTVID_REGISTERS52, 52, 53, 54, FASTVID_SUMS32(s, 0),     \
                      FASTVID_SUMS16(s, 8), FASTVID_SUMS4(s, 12))                                         \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 128, FASTVID_REGISTERS64, 64, 65, 66, FASTVID_SUMS64(s, 0))     \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 136, FASTVID_REGISTERS68, 68, 69, 70, FASTVID_SUMS64(s, 0),     \
                      FASTVID_SUMS4(s, 16))                                                               \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 144, FASTVID_REGISTERS72, 72, 73, 74, FASTVID_SUMS64(s, 0),     \
                      FASTVID_SUMS8(s, 16))                                                               \
  FASTVID_WGMMA_TILES(wgmma, __VA_ARGS__, 200, FASTVID_REGISTERS100, 100, 101, 102, FASTVID_SUMS64(s, 0), \
                      FASTVID_SUMS32(s, 16), FASTVID_SUMS4(s, 24))
/* Of tile a, 64 channels of sixteen rows, in place of rows. */
#define FASTVID_WGMMA_CHANNELS(...)                                                                     \
  FASTVID_WGMMA_TILES(channels, __VA_ARGS__, 32, FASTVID_REGISTERS16, 16, 17, 18, FASTVID_SUMS16(s, 0)) \
  FASTVID_WGMMA_TILES(channels, __VA_ARGS__, 64, FASTVID_REGISTERS32, 32, 33, 34, FASTVID_SUMS32(s, 0)) \
  FASTVID_WGMMA_TILES(channels, __VA_ARGS__, 96, FASTVID_REGISTERS48, 48, 49, 50, FASTVID_SUMS32(s, 0), \
                      FASTVID_SUMS16(s, 8))                                                             \
  FASTVID_WGMMA_TILES(channels, __VA_ARGS__, 128, FASTVID_REGISTERS64, 64, 65, 66, FASTVID_SUMS64(s, 0))
/* The same with eight rows of tile b, into `s` or, where add is 0, as its first value. */
#define FASTVID_WGMMA_FEW_CHANNELS(T, type)                                                         \
  __device__ __forceinline__ void channels8(float (&s)[1][4], uint64_t a, uint64_t b, int add, T) { \
    asm volatile(                                                                                   \
        "{.reg .pred p; setp.ne.b32 p, %6, 0;"                                                      \
        "wgmma.mma_async.sync.aligned.m64n8k16.f32." type "." type " {" FASTVID_REGISTERS4          \
        "}, %4, %5, p, 1, 1, 1, 0;}"                                                                \
        : FASTVID_SUMS4(s, 0)                                                                       \
        : "l"(a), "l"(b), "r"(add));                                                                \
  }
FASTVID_WGMMA_OPS(__nv_bfloat16, "bf16", "k16", "1, 1, 0, 0")
FASTVID_WGMMA_OPS(__half, "f16", "k16", "1, 1, 0, 0")
FASTVID_WGMMA_OPS(Tf32, "tf32", "k8", "1, 1")
FASTVID_WGMMA_CHANNELS(__nv_bfloat16, "bf16", "k16", "1, 1, 1, 0")
FASTVID_WGMMA_CHANNELS(__half, "f16", "k16", "1, 1, 1, 0")
FASTVID_WGMMA_FEW_CHANNELS(__nv_bfloat16, "bf16")
FASTVID_WGMMA_FEW_CHANNELS(__half, "f16")

template <typename T, int kColumns, int kSums>
__device__ __forceinline__ void multiply_tiles(float (&sums)[kSums][4], uint64_t a, uint64_t b) {
  if constexpr (kColumns == 1) wgmma8(sums, a, b, T{});
  if constexpr (kColumns == 2) wgmma16(sums, a, b, T{});
  if constexpr (kColumns == 9) wgmma72(sums, a, b, T{});
  if constexpr (kColumns == 10) wgmma80(sums, a, b, T{});
  if constexpr (kColumns == 13) wgmma104(sums, a, b, T{});
  if constexpr (kColumns == 16) wgmma128(sums, a, b, T{});
  if constexpr (kColumns == 17) wgmma136(sums, a, b, T{});
  if constexpr (kColumns == 18) wgmma144(sums, a, b, T{});
  if constexpr (kColumns == 25) wgmma200(sums, a, b, T{});
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

constexpr int kSliceSteps = kTileRowBytes / kStepBytes;

// The left operand from sixteen channels a warp of the sixteen tokens from row `row` of a tile.
__device__ __forceinline__ void load_channels(uint32_t (&channels)[4], uint32_t tile, int row) {
  const int lane = threadIdx.x % kWarp, chunk = threadIdx.x / kWarp % 4 * 2 + lane / 8 % 2;
  load_matrices_transposed(channels, tile + tile_offset(row + lane / 16 * 8 + lane % 8, chunk));
}

// Adds to the first kColumns of sums the products of the warpgroup's 64 rows, from address a, with 8 * kColumns rows
// from address b, over one step of a slice of both. Between begin_products and commit_products, by all warps of the
// warpgroup. A product that adds to the sums of the one before waits for it, some 120 cycles: steps of several sums
// should take turns.
template <typename T, int kColumns, int kSums>
__device__ __forceinline__ void multiply_step(float (&sums)[kSums][4], uint32_t a, uint32_t b, int step) {
#ifdef FASTVID_WGMMA
  if constexpr (kByWarpgroup<T>) {
    multiply_tiles<T, kColumns>(sums, TileDescriptor(a).at(step * kStepBytes), TileDescriptor(b).at(step * kStepBytes));
    return;
  }
#endif
  uint32_t rows[4];
  load_rows(rows, a + threadIdx.x / kWarp % 4 * 16 * kTileRowBytes, step);
#pragma unroll
  for (int c = 0; c < kColumns; c += 2) {
    uint32_t columns[4];
    load_columns(columns, b + c * 8 * kTileRowBytes, step);
    multiply(sums[c], rows, columns[0], columns[1], T{});
    if (c + 1 < kColumns) multiply(sums[c + 1], rows, columns[2], columns[3], T{});
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
    multiply_tiles<Tf32, kColumns>(sums, low_rows.at(step), columns.at(step));
    multiply_tiles<Tf32, kColumns>(sums, rows.at(step), low_columns.at(step));
    multiply_tiles<Tf32, kColumns>(sums, rows.at(step), columns.at(step));
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

// Goes through the slices of float32 tiles, whose low parts come by halves of a slice: one is written while the other
// is multiplied. write_low and multiply take (slice, half); wait_for(slice) waits until it has come; meanwhile(slice,
// half) may have others copied to where the slice before this one was.
template <typename WaitFor, typename WriteLow, typename Multiply, typename Meanwhile>
__device__ __forceinline__ void multiply_slices_by_parts(int slices, WaitFor&& wait_for, WriteLow&& write_low,
                                                         Multiply&& multiply, Meanwhile&& meanwhile) {
  wait_for(0);
  barrier_sync_anywhere(0, blockDim.x);
  write_low(0, 0);
  for (int slice = 0; slice < slices; ++slice) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      publish_copies();
      barrier_sync_anywhere(0, blockDim.x);
      begin_products<Tf32>();
      multiply(slice, half);
      commit_products<Tf32>();
      wait_products<Tf32, 1>();
      if (half == 1 && slice + 1 < slices) wait_for(slice + 1);  // its low parts come next
      // From here on nobody's products need the other half's low parts, nor the slice before this one.
      barrier_sync_anywhere(0, blockDim.x);
      if (half == 0) {
        write_low(slice, 1);
      } else if (slice + 1 < slices) {
        write_low(slice + 1, 0);
      }
      meanwhile(slice, half);
    }
  }
  wait_products<Tf32>();
}

// Adds to sums the products of 64 channels, sixteen a warp, of the sixteen tokens from row 16 * `step` of the tile at
// address `tokens`, with 8 * kColumns rows from address b, over as deep a step. Between begin_products and
// commit_products.
template <typename T, int kColumns>
__device__ __forceinline__ void multiply_channels(float (&sums)[kColumns][4], uint32_t tokens, uint32_t b, int step) {
#ifdef FASTVID_WGMMA
  const uint64_t channels = TileDescriptor(tokens).at(step * 16 * kTileRowBytes);
  const uint64_t rows = TileDescriptor(b).at(step * kStepBytes);
  if constexpr (kColumns == 4) channels32(sums, channels, rows, T{});
  if constexpr (kColumns == 8) channels64(sums, channels, rows, T{});
  if constexpr (kColumns == 12) channels96(sums, channels, rows, T{});
  if constexpr (kColumns == 16) channels128(sums, channels, rows, T{});
#else
  uint32_t channels[4];
  load_channels(channels, tokens, step * 16);
#pragma unroll
  for (int c = 0; c < kColumns; c += 2) {
    uint32_t columns[4];
    load_columns(columns, b + c * 8 * kTileRowBytes, step);
    multiply(sums[c], channels, columns[0], columns[1], T{});
    multiply(sums[c + 1], channels, columns[2], columns[3], T{});
  }
#endif
}

// Sums of 64 channels, sixteen a warp, in parts that need not wait for each other.
struct RowSums {
  static constexpr int kParts = 4;
  float parts[kParts][1][4];

  // total(0) is the sum of the warp's channel lane / 4, total(2) that of the eighth behind it.
  __device__ __forceinline__ float total(int i) const {
    return parts[0][0][i] + parts[1][0][i] + (parts[2][0][i] + parts[3][0][i]);
  }
};

// Sums of the first 64 channels of kRows rows of a tile, by a warpgroup; `ones` is a tile of eight rows of ones.
// Between begin_products and commit_products.
template <int kRows, typename T>
__device__ __forceinline__ void sum_rows(RowSums& sums, uint32_t tile, uint32_t ones, T) {
  static_assert(kRows % 16 == 0);
#ifdef FASTVID_WGMMA
  const TileDescriptor rows(tile), columns(ones);
#pragma unroll
  for (int row = 0; row < kRows; row += 16) {
    channels8(sums.parts[row / 16 % RowSums::kParts], rows.at(row * kTileRowBytes), columns.at(0),
              row / 16 >= RowSums::kParts, T{});
  }
#else
  uint32_t one;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(one) : "r"(ones));
#pragma unroll
  for (int row = 0; row < kRows; row += 16) {
    uint32_t channels[4];
    load_channels(channels, tile, row);
    float (&part)[4] = sums.parts[row / 16 % RowSums::kParts][0];
    if (row / 16 < RowSums::kParts) part[0] = part[1] = part[2] = part[3] = 0.0f;
    multiply(part, channels, one, one, T{});
  }
#endif
}

}  // namespace fastvid
