// Products of all pairs of tokens of a frame: each pair once, but for the few that are neighbours.
#pragma once

#include "pipeline.h"
#include "wgmma.cuh"

namespace fastvid {

constexpr int kGramTokens = 200;  // whose products a block makes: the whole frame, or two groups of it

// Where the products of a frame's n tokens stand: row i holds columns first_column(i) to n, and the rows follow one
// another.
struct GramShape {
  static constexpr int kBand = 8;  // rows that begin with the same column
  int groups;                      // that the tokens are cut into, whose pairs are multiplied one by one; or one
  int size;                        // tokens of a group; of several, whole bands, and swizzled rows of a tile
  int longest;                     // vectors of four columns that the first row has

  __host__ __device__ explicit GramShape(int n) {
    constexpr int kMost = kGramTokens / 2 / kBand * kBand;
    groups = n > kGramTokens ? ceil_div(n, kMost) : 1;
    size = groups > 1 ? ceil_div(ceil_div(n, groups), kBand) * kBand : n;
    longest = ceil_div(n, 4);
  }
  __host__ __device__ static int first_column(int i) { return i / kBand * kBand; }
  static_assert(kBand == 8);  // a band's rows are two vectors shorter than those of the one before
  // Vectors in a row of a band, and in all rows before row i.
  __host__ __device__ static int vectors_in(int band, int longest) { return longest - 2 * band; }
  __host__ __device__ static int vectors_before(int i, int longest) {
    const int band = i / kBand;
    return kBand * band * (longest + 1 - band) + i % kBand * vectors_in(band, longest);
  }
  // Place of row i's column 0, which may not be there.
  __host__ __device__ int at(int i) const { return 4 * vectors_before(i, longest) - first_column(i); }
  __host__ __device__ int floats() const { return 4 * vectors_before(4 * longest, longest); }  // of a frame
  // Products are made for a pair of groups at a time.
  __host__ __device__ int pairs() const { return groups == 1 ? 1 : groups * (groups - 1) / 2; }
  __host__ __device__ int pair_rows() const { return groups == 1 ? size : 2 * size; }
};

// Of a pair's products, those that one or both warpgroups of a block make: a warpgroup takes rows by 64, the first one
// those of blocks 0 and 3, the second one those of 1 and 2.
enum class GramPart { kFirst, kSecond, kBoth };
constexpr GramPart gram_part(int block) { return block == 1 || block == 2 ? GramPart::kSecond : GramPart::kFirst; }

// The vectors of four products that a pair of groups has, row after row, so that threads may share them evenly: where
// the groups are neighbours those on and above the diagonal, by bands; else those of the first group's tokens with the
// second's.
class GramVectors {
 public:
  __device__ __forceinline__ GramVectors(bool by_bands, int rows, int first_column, int end_column, GramPart part)
      : by_bands_(by_bands),
        rows_(rows),
        first_column_(first_column),
        longest_(ceil_div(end_column - first_column, 4)) {
    const int first = before(kWarpgroupRows), last = before(3 * kWarpgroupRows), all = before(rows);
    begin_ = part == GramPart::kSecond ? first : 0;
    gap_at_ = part == GramPart::kFirst ? first : all;
    gap_ = last - first;
    count_ = part == GramPart::kBoth ? all : part == GramPart::kFirst ? all - gap_ : gap_;
  }
  __device__ __forceinline__ int count() const { return count_; }

  struct Place {
    int row, column;
  };
  __device__ __forceinline__ Place place(int i) const {
    i += i < gap_at_ ? begin_ : gap_;
    int band = 0, length = longest_;
    if (by_bands_) {
      // The smaller root of vectors_before, but for rounding.
      const float half = 0.5f * (longest_ + 1);
      band = static_cast<int>(half - approximate_root(fmaxf(half * half - i * (1.0f / GramShape::kBand), 0.0f)));
      if (before_band(band) > i) --band;
      if (before_band(band + 1) <= i) ++band;
      i -= before_band(band);
      length = GramShape::vectors_in(band, longest_);
    }
    const int row = static_cast<int>(__fdividef(i + 0.5f, static_cast<float>(length)));
    const int first = band * GramShape::kBand;
    return {first + row, first_column_ + first + (i - row * length) * 4};
  }

 private:
  static __device__ __forceinline__ float approximate_root(float x) {
    float root;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
  }
  __device__ __forceinline__ int before_band(int band) const {
    return GramShape::vectors_before(band * GramShape::kBand, longest_);
  }
  __device__ __forceinline__ int before(int row) const {
    row = min(row, rows_);
    return by_bands_ ? GramShape::vectors_before(row, longest_) : row * longest_;
  }

  bool by_bands_;
  int rows_, first_column_, longest_;  // vectors of the first row
  int begin_, gap_at_, gap_, count_;   // of the part: vectors before it, and left out in its middle
};

}  // namespace fastvid
