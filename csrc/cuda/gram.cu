#include "gram.cuh"

#include <algorithm>
#include <type_traits>

#include "cluster.cuh"
#include "launch.h"
#include "wgmma.cuh"

namespace fastvid {
namespace {

constexpr int kMultiplyThreads = 2 * kWarpgroup;  // each warpgroup makes a half of the products
constexpr int kCopyThreads = kWarpgroup;
constexpr int kGramThreads = kMultiplyThreads + kCopyThreads;
constexpr int kManyStages = 7, kFewStages = 3;  // of slices; few where shared memory does not hold many
// What a block keeps besides: inboxes, and a tile of ones for features.
constexpr int kInboxBytes = 1024, kOnesBytes = 8 * kTileRowBytes;
// Whether slices come by the copy engine.
#ifdef FASTVID_WGMMA
constexpr bool kByEngine = true;
#else
constexpr bool kByEngine = false;
#endif

// The products of up to kRows tokens with themselves, on and above the diagonal, by blocks of 64 rows: block m has the
// columns from 64 m on.
template <int kRows>
struct GramBlocks {
  static constexpr int kCount = ceil_div(kRows, kWarpgroupRows);
  static constexpr int sums(int m) { return std::max(kRows / 8 - m * kWarpgroupRows / 8, 1); }  // of eight columns
  // As floats in shared memory: where a block begins, and from row to row, by which writes of fragments lie in
  // different banks.
  static __host__ __device__ constexpr int pitch(int m) { return kRows - m * kWarpgroupRows + (40 - kRows % 32) % 32; }
  static __host__ __device__ constexpr int rows(int m) {
    return m + 1 < kCount ? kWarpgroupRows : kRows - m * kWarpgroupRows;
  }
  // All blocks stand there at once, or, in two rounds, those of one warpgroup at a time.
  static __host__ __device__ constexpr int offset(int m, int rounds) {
    int floats = 0;
    for (int before = 0; before < kCount; ++before) {
      if (before < m && (rounds == 1 || gram_part(before) == gram_part(m))) floats += pitch(before) * kWarpgroupRows;
    }
    return floats;
  }
  static constexpr int sum_bytes(int rounds) {
    int floats = 0;
    for (int m = 0; m < kCount; ++m) floats = std::max(floats, offset(m, rounds) + pitch(m) * rows(m));
    return floats * static_cast<int>(sizeof(float));
  }
  static constexpr int kStageRows = ceil_div(kRows, 16) * 16, kStageBytes = kStageRows * kTileRowBytes;
  // Tensor cores read the last block's rows whole, past the end of a stage.
  static constexpr int bytes(int stages) {
    return stages * kStageBytes + (kCount * kWarpgroupRows - kStageRows) * kTileRowBytes;
  }
  static constexpr int shared_bytes(int stages) { return bytes(stages) + kInboxBytes + kOnesBytes; }
};

// Rows of a stage that are filled at a time: a group's, or all, with zeros where there are no tokens, which features
// add up as well.
__host__ __device__ constexpr int box_rows(const GramShape& shape, int rows) {
  return shape.groups > 1 ? shape.size : ceil_div(rows, 16) * 16;
}

// Barriers between the warps that multiply and the one that copies: a slice has come (to warps that copy it themselves;
// the copy engine has inboxes), a slice's place is free.
template <int kStages>
struct StageBarriers {
  static constexpr int kOfAll = 0,
                       kOfCopy = 15;  // among all warps, which wait in different places; and those that copy
  static_assert(2 * kStages < kOfCopy);
  static __device__ __forceinline__ int full(int stage) { return 1 + stage; }
  static __device__ __forceinline__ int free(int stage) { return 1 + kStages + stage; }
};

struct GramArguments {
  FramePlan plan;
  bool planned;
  float* gram;
  FrameFeatures features;
  bool halves;  // whether clusters of their own make the two parts of a frame's products
};

// A block of gram_kernel: two warpgroups that multiply, and one that has tokens copied and makes features. Its code is
// entered by all, and ends with what all do together, so that there is one copy of that: instructions that are met once
// a frame cost more to fetch than to carry out.
template <typename T, int kRows, int kStages>
class GramBlock {
 public:
  __device__ __forceinline__ GramBlock(const Tokens<T>& tokens, const CUtensorMap& map, const GramArguments& arguments,
                                       unsigned char* shared)
      : tokens_(tokens),
        map_(map),
        arguments_(arguments),
        features_(arguments.features),
        shared_(shared),
        tile0_(shared_address(shared)),
        inboxes_(reinterpret_cast<Inbox*>(shared + Blocks::bytes(kStages))),
        sums_(reinterpret_cast<float*>(shared + kSumsAt)),
        shape_(tokens.per_frame),
        part_(!arguments.halves ? GramPart::kBoth
              : blockIdx.y == 0 ? GramPart::kFirst
                                : GramPart::kSecond),
        makes_features_(features_.data != nullptr && part_ != GramPart::kSecond),
        first_(0),
        second_(arguments.halves ? 0 : blockIdx.y),
        ranks_(cluster_size()),
        rank_(cluster_rank()),
        slices_(tokens.row_bytes(), rank_, ranks_),
        next_(blockIdx.z) {
    while (second_ >= shape_.groups - 1 - first_ && shape_.groups > 1) second_ -= shape_.groups - 1 - first_++;
    second_ += first_ + 1;
    second_at_ = (second_ - 1) * shape_.size;
    num_rows_ = shape_.groups == 1 ? shape_.size : min(2 * shape_.size, tokens.per_frame - second_at_);
  }

  __device__ __forceinline__ void run() {
    const int group = uniform(threadIdx.x / kWarpgroup);
    if (kByEngine && threadIdx.x == kMultiplyThreads) {
      prefetch_token_map(map_);
      for (int stage = 0; stage < kRing; ++stage) inboxes_[stage].init();
      Inbox::publish();
    }
    if (makes_features_) {
      T* const ones = reinterpret_cast<T*>(shared_ + kOnesAt);
      for (int i = threadIdx.x; i < kOnesBytes / static_cast<int>(sizeof(T)); i += kGramThreads) {
        ones[i] = from_float<T>(1.0f);
      }
    }
    publish_copies();  // and the inboxes, to the copy engine
    __syncthreads();
    wait_for_predecessor();
    frames_ = arguments_.planned ? arguments_.plan.totals->anchors : tokens_.frames;
    for (int item = blockIdx.z; item < frames_; item += gridDim.z) {
      if (group == 0) {
        multiply<0, 3>(item);
      } else if (group == 1) {
        multiply<1, 2>(item);
      } else {
        copy(item);
      }
      add_up(item, kRounds - 1);
    }
  }

 private:
  using Blocks = GramBlocks<kRows>;
  using Barriers = StageBarriers<kStages>;
  static constexpr int kRing = kStages - kByParts<T>;  // low parts take the place of the last stage
  static constexpr int kOnesAt = Blocks::bytes(kStages) + kInboxBytes;
  static_assert(kOnesAt % kTileAlignment == 0);
  // Sums take the place of the last stages when all slices have been multiplied; those before may hold the next slices.
  static constexpr int kRounds = kStages > kFewStages ? 1 : 2;
  static constexpr int kSumsAt = (Blocks::bytes(kStages) - Blocks::sum_bytes(kRounds)) / kVectorBytes * kVectorBytes;
  static_assert(kSumsAt >= 0);

  // Products of two blocks of rows, by a warpgroup, which leaves them in shared memory; if they are not the block's, it
  // takes part in what all warps do, no more.
  template <int kFirst, int kSecond>
  __device__ __forceinline__ void multiply(int item) {
    const bool works = part_ == GramPart::kBoth || part_ == gram_part(kFirst);
    float first_sums[Blocks::sums(kFirst)][4] = {}, second_sums[Blocks::sums(kSecond)][4] = {};
    const auto for_each_block = [&](auto&& visit) {
      visit(first_sums, std::integral_constant<int, kFirst>{});
      if constexpr (kSecond < Blocks::kCount) visit(second_sums, std::integral_constant<int, kSecond>{});
    };
    if constexpr (kByParts<T>) {
      multiply_parts_of_slices([](int) {},
                               [&](int slice, int half) {
                                 for_each_block([&](auto& sums, auto m) {
                                   constexpr int kAt = m() * kWarpgroupRows * kTileRowBytes;
                                   const uint32_t rows = tile0_ + stage_at(slice) + kAt,
                                                  low_rows = tile0_ + kRing * Blocks::kStageBytes + kAt;
                                   multiply_parts<Blocks::sums(m())>(sums, rows, rows, low_rows, low_rows, half);
                                 });
                               });
    } else {
      for (int slice = 0; slice < slices_.count; ++slice) {
        wait_for(slice);
        if (works) {
          const uint32_t tile = tile0_ + stage_at(slice);
          begin_products<T>();
#pragma unroll
          for (int step = 0; step < kSliceSteps; ++step) {
            for_each_block([&](auto& sums, auto m) {
              const uint32_t rows = tile + m() * kWarpgroupRows * kTileRowBytes;
              multiply_step<T, Blocks::sums(m())>(sums, rows, rows, step);
            });
          }
          commit_products<T>();
          wait_products<T>();
        }
        release(item, slice);
      }
    }

    for (int round = 0; round < kRounds; ++round) {
      // Nobody reads a slice any more, or sums of the round before.
      barrier_sync_anywhere(Barriers::kOfAll, kGramThreads);
      if (works && (kRounds == 1 || round == kFirst)) {
        const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp % 4 * 16 + lane / 4, column = lane % 4 * 2;
        for_each_block([&](auto& sums, auto m) {
          float* const at = sums_ + Blocks::offset(m(), kRounds) + row * Blocks::pitch(m()) + column;
#pragma unroll
          for (int c = 0; c < Blocks::sums(m()); ++c) {
            if (row < Blocks::rows(m())) *reinterpret_cast<float2*>(at + c * 8) = make_float2(sums[c][0], sums[c][1]);
            if (row + 8 < Blocks::rows(m())) {
              *reinterpret_cast<float2*>(at + 8 * Blocks::pitch(m()) + c * 8) = make_float2(sums[c][2], sums[c][3]);
            }
          }
        });
      }
      if (round + 1 < kRounds) add_up(item, round);
    }
  }

  // Has the slices of a frame copied, and makes its features, by a warpgroup.
  __device__ __forceinline__ void copy(int item) {
    if constexpr (kByParts<T>) {
      start_until(item, kRing - 1);
      multiply_parts_of_slices(
          [&](int) {
            if (next_ == item) start_next();
          },
          [](int, int) {});
    } else if constexpr (kByEngine) {
      const bool starts = threadIdx.x < kMultiplyThreads + kWarp;
      if (starts) start_until(item, kRing);
      for (int slice = 0; slice < slices_.count; ++slice) {
        // Where the last slice was, which all should be done with by now.
        if (starts && slice > 0 && next_ == item) start_next();
        wait_for(slice);
        if (makes_features_) write_features(item, slice);
        if (!starts) release(item, slice);
      }
      // The next frame's first slices come while this one's products are written, to where no sums come.
      constexpr int kEarly = std::min(kSumsAt / Blocks::kStageBytes, kRing);
      if (starts) start_until(item + gridDim.z, kEarly);
    } else {
      constexpr int kBehind = kStages - 2;  // slices under way behind the one that comes
      for (int slice = -kBehind; slice < slices_.count; ++slice) {
        if (next_ == item) start_next();
        commit_copies();
        if (slice < 0) continue;
        wait_copies<kBehind>();
        barrier_arrive(Barriers::full(slice % kRing), kGramThreads);
        if (makes_features_) {
          barrier_sync(Barriers::kOfCopy, kCopyThreads);
          write_features(item, slice);
        }
      }
    }
    for (int round = 0; round < kRounds; ++round) {
      barrier_sync_anywhere(Barriers::kOfAll, kGramThreads);
      if (round + 1 < kRounds) add_up(item, round);
    }
  }

  // Starts the slices of frame `item` before the given one.
  __device__ __forceinline__ void start_until(int item, int slice) {
    while (item < frames_ && next_ == item && next_slice_ < slice) start_next();
  }

  // Says that the thread is done with a slice, to the warps that start others in its place, if there are to be any.
  __device__ __forceinline__ void release(int item, int slice) {
    if (slice + kRing < slices_.count || item + gridDim.z < frames_) {
      barrier_arrive(Barriers::free(slice % kRing), kGramThreads);
    }
  }

  // Starts to copy the next slice, where its place is free.
  __device__ __forceinline__ void start_next() {
    if (!kByParts<T> && (next_ != blockIdx.z || next_slice_ >= kRing)) {
      barrier_sync(Barriers::free(next_slice_ % kRing), kGramThreads);
    }
    start_slice(next_, next_slice_);
    if (++next_slice_ == slices_.count) {
      next_slice_ = 0;
      next_ += gridDim.z;
    }
  }

  static __device__ __forceinline__ int stage_at(int slice) { return slice % kRing * Blocks::kStageBytes; }

  // By all threads: start_next(slice) may have a slice copied to where the one before `slice` was.
  template <typename StartNext, typename Multiply>
  __device__ __forceinline__ void multiply_parts_of_slices(StartNext&& start_next, Multiply&& multiply) {
    multiply_slices_by_parts(
        slices_.count, [&](int slice) { wait_for(slice); },
        [&](int slice, int half) {
          write_low_parts<kGramThreads, ceil_div(kRows, 288) * 288>(
              shared_ + stage_at(slice), shared_ + kRing * Blocks::kStageBytes, num_rows_, half);
        },
        multiply,
        [&](int slice, int half) {
          if (half == 1) start_next(slice);
        });
  }

  // Starts to copy one of the block's slices, by the warpgroup that copies.
  __device__ __forceinline__ void start_slice(int item, int slice) {
    const int frame = arguments_.planned ? arguments_.plan.anchors[item] : item;
    const int channel = (slices_.first + slice) * kSliceChannels<T>, first_token = first_ * shape_.size;
    const uint32_t tile = tile0_ + stage_at(slice);
    if constexpr (kByEngine) {
      if (threadIdx.x == kMultiplyThreads) {
        Inbox& inbox = inboxes_[slice % kRing];
        const int rows = box_rows(shape_, kRows);
        inbox.expect((shape_.groups > 1 ? 2 : 1) * rows * kTileRowBytes);
        inbox.copy_tile(map_, tile, channel, first_token, frame);
        if (shape_.groups > 1) {
          inbox.copy_tile(map_, tile + rows * kTileRowBytes, channel, second_at_ + shape_.size, frame);
        }
      }
      __syncwarp();
    } else {
      const int chunk = threadIdx.x % 8, first_channel = channel + chunk * Vector<T>::kSize;
      const int rows = shape_.groups > 1 ? num_rows_ : box_rows(shape_, kRows);
      for (int row = (threadIdx.x - kMultiplyThreads) / 8; row < rows; row += kCopyThreads / 8) {
        const int token = frame * tokens_.per_frame + (row < shape_.size ? first_token : second_at_) + row;
        copy_async(tile + tile_offset(row, chunk), tokens_.row(token) + first_channel,
                   row < num_rows_ && first_channel < tokens_.channels);
      }
    }
  }

  // By all threads that read a slice, once each.
  __device__ __forceinline__ void wait_for(int slice) {
    if constexpr (kByEngine) {
      const int stage = slice % kRing;
      inboxes_[stage].wait(phases_ >> stage & 1);
      phases_ ^= 1u << stage;
    } else {
      barrier_sync_anywhere(Barriers::full(slice % kRing), kGramThreads);
    }
  }

  // Means of a slice's tokens, by a warpgroup.
  __device__ __forceinline__ void write_features(int item, int slice) {
    if constexpr (sizeof(T) == 2) {
      RowSums sums;
      begin_products<T>();
      sum_rows<Blocks::kStageRows>(sums, tile0_ + stage_at(slice), tile0_ + kOnesAt, T{});
      commit_products<T>();
      const int lane = threadIdx.x % kWarp, channel = threadIdx.x / kWarp % 4 * 16 + lane / 4;
      const int left = features_.stride - (slices_.first + slice) * kSliceChannels<T> - channel;
      float* const at = features_.data + static_cast<int64_t>(item + 1) * features_.stride - left;
      const float inverse = 1.0f / tokens_.per_frame;
      wait_products<T>();
      if (lane % 4 == 0 && left > 0) at[0] = sums.total(0) * inverse;
      if (lane % 4 == 0 && left > 8) at[8] = sums.total(2) * inverse;
    }
  }

  // The sums of a round, which the blocks of the cluster have in shared memory, become products in device memory. By
  // all threads, which share the vectors evenly, as rows differ in length.
  __device__ __forceinline__ void add_up(int item, int round) {
    // The products within a group come with those of the next one, for the last group with those of the one before.
    const bool neighbors = second_ == first_ + 1, last = second_ + 1 == shape_.groups;
    const GramPart part = kRounds == 1 ? part_ : round == 0 ? GramPart::kFirst : GramPart::kSecond;
    const GramVectors vectors(neighbors, neighbors && last ? num_rows_ : shape_.size, neighbors ? 0 : shape_.size,
                              num_rows_, part);
    float* const products = arguments_.gram + static_cast<int64_t>(item) * shape_.floats() + second_at_;
    const int end = vectors.count() * (rank_ + 1) / ranks_;
    cluster_sync<Writes::kOwnShared>();
#pragma unroll 1
    for (int i = vectors.count() * rank_ / ranks_ + threadIdx.x; i < end; i += kGramThreads) {
      const auto [row, column] = vectors.place(i);
      const int m = row / kWarpgroupRows, left = m * kWarpgroupRows;
      const int sum_at = Blocks::offset(m, kRounds) + (row - left) * Blocks::pitch(m) + column - left;
      const int target_at = shape_.at(row + (row < shape_.size ? first_ * shape_.size : second_at_)) + column;
      const float4* const sums = reinterpret_cast<const float4*>(sums_ + sum_at);
      __stcg(reinterpret_cast<float4*>(products + target_at), ranks_ == 1 ? *sums : cluster_total(sums, ranks_));
    }
    publish_copies();  // tokens may be copied to where the sums are
    __syncthreads();
    cluster_arrive();
    cluster_wait();  // peers have read this block's sums
  }

  const Tokens<T>& tokens_;
  const CUtensorMap& map_;
  const GramArguments& arguments_;
  const FrameFeatures& features_;
  unsigned char* const shared_;
  const uint32_t tile0_;
  Inbox* const inboxes_;  // for each stage
  float* const sums_;
  uint32_t phases_ = 0;  // a bit a stage, of its inbox
  const GramShape shape_;
  const GramPart part_;
  const bool makes_features_;
  int first_, second_;  // groups of the pair; where there is one, the first
  const int ranks_, rank_;
  const Slices slices_;
  int next_, next_slice_ = 0;  // frame and slice to start
  int second_at_;              // the second group's first token, less the rows before it
  int num_rows_, frames_;
};

// Products of all tokens of a pair of groups, of one frame after the other; and frame features from the same reading
// of the tokens, where those are wanted and a frame is one pair.
// Grid: (cluster, pairs or parts of one, frames at a time); the blocks of a cluster share the channels and add up in
// the order of their ranks. Two warpgroups multiply what a third has copied. Memory: reads two groups of tokens (D
// channels), writes each pair's product, 4 bytes. Limit: device memory where all frames are read, else L2.
template <typename T, int kRows, int kStages>
__global__ __launch_bounds__(kGramThreads, 1) void gram_kernel(const __grid_constant__ Tokens<T> tokens,
                                                               const __grid_constant__ CUtensorMap map,
                                                               const __grid_constant__ GramArguments arguments) {
  extern __shared__ __align__(kTileAlignment) unsigned char shared[];
  GramBlock<T, kRows, kStages>(tokens, map, arguments, shared).run();
}

// Calls launch_as(kRows, kStages), constants, for the kernel that suits frames of n tokens on this device.
template <typename LaunchAs>
cudaError_t by_shape(const DeviceLimits& limits, int n, LaunchAs&& launch_as) {
  const auto by_stages = [&](auto rows) {
    return GramBlocks<rows()>::shared_bytes(kManyStages) <= limits.shared_bytes
               ? launch_as(rows, std::integral_constant<int, kManyStages>{})
               : launch_as(rows, std::integral_constant<int, kFewStages>{});
  };
  const int rows = GramShape(n).pair_rows();
  if (rows <= 144) return by_stages(std::integral_constant<int, 144>{});
  return by_stages(std::integral_constant<int, kGramTokens>{});
}

}  // namespace

template <typename T>
cudaError_t gram_makes_features(int per_frame, bool& makes) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  // Otherwise, tensor cores would take longer for all frames than it takes to read those.
  makes = sizeof(T) == 2 && per_frame <= kGramTokens && limits.warpgroups;
  return cudaSuccess;
}
template cudaError_t gram_makes_features<float>(int, bool&);
template cudaError_t gram_makes_features<__half>(int, bool&);
template cudaError_t gram_makes_features<__nv_bfloat16>(int, bool&);

template <typename T>
cudaError_t launch_gram(const Tokens<T>& tokens, const FramePlan* plan, int expected, float* gram,
                        const FrameFeatures& features, cudaStream_t stream) {
  DeviceLimits limits;
  FASTVID_RETURN_IF_FAILED(device_limits(limits));
  const int pairs = GramShape(tokens.per_frame).pairs();
  return by_shape(limits, tokens.per_frame, [&](auto rows, auto stages) {
    constexpr auto kKernel = gram_kernel<T, rows(), stages()>;
    const size_t shared_bytes = GramBlocks<rows()>::shared_bytes(stages());
    Sharing sharing{1, 0.0};
    bool halves = false;
    if (limits.clusters && stages() > kFewStages) {
      const int slices = ceil_div(tokens.row_bytes(), kTileRowBytes);
      sharing = best_sharing(limits, pairs * expected, 1, {slices, 11.0, 1.0});
      // Not of float32, whose sums lose more to the tensor cores the fewer blocks share the channels.
      if (rows() == kGramTokens && pairs == 1 && sizeof(T) == 2) {
        // Two thirds of the time of a whole frame: all tokens are read, but half as much is multiplied and added up.
        const Sharing of_halves = best_sharing(limits, 2 * expected, 1, {slices, 12.8, 1.0});
        halves = 0.65 * of_halves.time < sharing.time;
        if (halves) sharing = of_halves;
      }
    }
    const int parts = halves ? 2 : pairs;
    const int at_a_time = std::max<int>(1, resident_clusters(limits, 1, sharing.cluster) / parts);
    const dim3 grid(sharing.cluster, parts, std::min(tokens.frames, at_a_time));
    CUtensorMap map{};
    if (limits.warpgroups) {
      FASTVID_RETURN_IF_FAILED(make_token_map(tokens, box_rows(GramShape(tokens.per_frame), rows()), map));
    }
    const GramArguments arguments{plan != nullptr ? *plan : FramePlan{}, plan != nullptr, gram, features, halves};
    return launch<kKernel>({grid, kGramThreads, shared_bytes, sharing.cluster, stream}, tokens, map, arguments);
  });
}
#define FASTVID_INSTANTIATE(T) \
  template cudaError_t launch_gram(const Tokens<T>&, const FramePlan*, int, float*, const FrameFeatures&, cudaStream_t);
FASTVID_INSTANTIATE(float)
FASTVID_INSTANTIATE(__half)
FASTVID_INSTANTIATE(__nv_bfloat16)

}  // namespace fastvid
