// What the STSS and displacement kernels share: how the work is cut into tiles, and products of tiles.
//
// A block of 128 threads owns a tile of 8 by 8 positions of one frame ("targets") and compares it with a region of
// another frame: the tile and a halo, as wide as a group of displacements needs. Region row k and target row p meet at
// the displacement k - p, so of all pairs of the dense product a band is wanted; whole fragments outside it are skipped.
//
// All products run on the tensor cores with float32 accumulation: half precision as it is stored, float32 as three
// products of its tf32 parts (high·high + high·low + low·high, about 21 significant bits). A fragment spans 8 words of
// 32 bits along the summed index, which are 8 float32 or 16 half-precision elements, so that one code serves all types.
#ifndef KERAS_STSS_CUDA_TILES_CUH_
#define KERAS_STSS_CUDA_TILES_CUH_

#include "cuda_device.cuh"
#include "stss_shape.h"

namespace keras_stss {
namespace gpu {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kBlocksOfProcessor = 3;  // that a multiprocessor should hold at a time: 168 registers a thread
constexpr int kSide = 8, kTargets = kSide * kSide;  // the tile
constexpr int kMaxOffsets = 64;
constexpr int64_t kMaxGrid = 0x7fffffff;

// Words of a position's vector that are in shared memory at a time, and their pitch: 4 more make rows of 16 bytes fall
// into different banks (pitch / 4 is odd).
constexpr int kChunkWords = 16, kChunkPitch = kChunkWords + 4;

// Shared memory, in words, of one chunk of the tile and of a region's positions.
constexpr int StageWords(int positions) { return (kTargets + positions) * kChunkPitch; }

// How many displacements a block takes together. blocks: fragments of 8 positions in a row of the region.
template <int blocks>
struct Region {
  static constexpr int kWide = 8 * blocks;                    // positions in a row
  static constexpr int kRowsOfWarp = blocks == 2 ? 10 : 6;    // rows that the two target rows of a warp meet
  static constexpr int kRows = kRowsOfWarp + kSide - 2;       // rows in all
  static constexpr int kGroupRows = kRowsOfWarp - 1, kGroupColumns = kWide - kSide + 1;  // displacements
  static constexpr int kFragments = kRowsOfWarp * blocks;     // that a warp meets
  static constexpr int kStageWords = StageWords(kRows * kWide);
};

// Everything that the kernels have to know; passed by value.
struct Problem {
  int64_t frames, time;  // batch·time
  int height, width, channels, offset_count, rows, columns;
  int group_rows, group_columns, row_groups, column_groups;  // displacements of a group; groups of the window
  int tile_rows, tile_columns;                               // tiles of a frame
  bool cosine, vectors;                                      // vectors: rows of channels are multiples of 16 bytes
  int64_t offsets[kMaxOffsets];

  __host__ __device__ int64_t Positions() const { return frames * height * width; }
  __host__ __device__ int64_t Tiles() const { return frames * tile_rows * tile_columns; }
  __device__ bool Inside(int y, int x) const { return y >= 0 && y < height && x >= 0 && x < width; }
  // Row of a position in (batch, time, height, width).
  __device__ int64_t Position(int64_t frame, int y, int x) const { return (frame * height + y) * width + x; }
  // The frame `offset` frames later in the same clip, or -1.
  __device__ int64_t Partner(int64_t frame, int64_t offset) const {
    const int64_t time_index = frame % time;
    return offset < -time_index || offset >= time - time_index ? -1 : frame + offset;
  }
};

// A tile of targets: first row and column of a frame.
struct Tile {
  int64_t frame;
  int y, x;
  __device__ Tile(const Problem& problem, int64_t number)
      : frame(number / (problem.tile_rows * problem.tile_columns)) {
    const int within = static_cast<int>(number % (problem.tile_rows * problem.tile_columns));
    y = within / problem.tile_columns * kSide;
    x = within % problem.tile_columns * kSide;
  }
};

// A group of displacements: the first of them, counted from the window's corner, and how many.
struct Group {
  int row, column, rows, columns;
  __device__ Group(const Problem& problem, int number) {
    row = number / problem.column_groups * problem.group_rows;
    column = number % problem.column_groups * problem.group_columns;
    rows = min(problem.group_rows, problem.rows - row);
    columns = min(problem.group_columns, problem.columns - column);
  }
};

// First row and column of the region that a group's displacements reach from a tile: as queries (the displacement
// leads from target to region), or mirrored (it leads from region to target).
struct Origin {
  int y, x;
  __device__ Origin(const Problem& problem, const Tile& tile, const Group& group, bool mirrored) {
    y = tile.y + (mirrored ? problem.rows / 2 - (group.row + group.rows - 1) : group.row - problem.rows / 2);
    x = tile.x +
        (mirrored ? problem.columns / 2 - (group.column + group.columns - 1) : group.column - problem.columns / 2);
  }
  // Whether `rows` rows of the region have any position in the map.
  __device__ bool Meets(const Problem& problem, const Group& group, int first_row, int rows) const {
    return y + first_row < problem.height && y + first_row + rows > 0 && x < problem.width &&
           x + group.columns + kSide - 1 > 0;
  }
};

__device__ __forceinline__ float ToFloat(float value) { return value; }
__device__ __forceinline__ float ToFloat(__half value) { return __half2float(value); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 value) { return __bfloat162float(value); }
template <typename T>
__device__ __forceinline__ T FromFloat(float value);
template <>
__device__ __forceinline__ float FromFloat<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __half FromFloat<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Sum over the lanes of a warp, the same in all of them.
__device__ __forceinline__ float WarpSum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Words of an operand of a product, as the tensor cores take them.
template <typename T, int count>
struct Operand {
  uint32_t words[count];
  __device__ __forceinline__ void Set(int index, uint32_t word) { words[index] = word; }
};
template <int count>
struct Operand<float, count> {
  uint32_t words[count], low[count];
  __device__ __forceinline__ void Set(int index, uint32_t word) {
    const float value = __uint_as_float(word);
    words[index] = RoundTf32(value);
    low[index] = RoundTf32(value - __uint_as_float(words[index]));
  }
};

template <typename T>
__device__ __forceinline__ void Multiply(float (&sum)[4], const Operand<T, 4>& a, const Operand<T, 2>& b) {
  MultiplyHalf(sum, a.words, b.words[0], b.words[1], T());
}
__device__ __forceinline__ void Multiply(float (&sum)[4], const Operand<float, 4>& a, const Operand<float, 2>& b) {
  // Tensor cores may cut off what a sum cannot hold: long sums are therefore made outside them, rounding to nearest.
  float part[4] = {};
  MultiplyTf32(part, a.low, b.words[0], b.words[1]);
  MultiplyTf32(part, a.words, b.low[0], b.low[1]);
  MultiplyTf32(part, a.words, b.words[0], b.words[1]);
#pragma unroll
  for (int i = 0; i < 4; ++i) sum[i] += part[i];
}

// Left operand: 16 rows of 8 words from `rows`, `pitch` words apart.
template <typename T>
__device__ __forceinline__ Operand<T, 4> LoadLeft(const uint32_t* rows, int pitch) {
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  LoadMatrices(words, rows + (lane % 16) * pitch + 4 * (lane / 16));
  Operand<T, 4> operand;
#pragma unroll
  for (int i = 0; i < 4; ++i) operand.Set(i, words[i]);
  return operand;
}

// Two right operands: 2 times 8 rows of 8 words.
template <typename T>
__device__ __forceinline__ void LoadRight(Operand<T, 2> (&operands)[2], const uint32_t* rows, int pitch) {
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  LoadMatrices(words, rows + (lane % 8 + 8 * (lane / 16)) * pitch + 4 * (lane / 8 % 2));
#pragma unroll
  for (int i = 0; i < 4; ++i) operands[i / 2].Set(i % 2, words[i]);
}

// Two right operands whose summed index runs down the rows: elements (16 or 8 rows, 2 times 8 columns).
template <typename T>
__device__ __forceinline__ void LoadRightDown(Operand<T, 2> (&operands)[2], const T* rows, int pitch) {
  const int lane = threadIdx.x % 32;
  uint32_t words[4];
  LoadMatricesTransposed(words, rows + (lane % 16) * pitch + 8 * (lane / 16));
#pragma unroll
  for (int i = 0; i < 4; ++i) operands[i / 2].Set(i % 2, words[i]);
}
__device__ __forceinline__ void LoadRightDown(Operand<float, 2> (&operands)[2], const float* rows, int pitch) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    operands[i / 2].Set(i % 2, __float_as_uint(rows[(lane % 4 + 4 * (i % 2)) * pitch + lane / 4 + 8 * (i / 2)]));
}

// Starts copying words [first_channel...) of `count` positions, `wide` in a row from (y, x) on, to `to`; zeros outside
// the map and beyond the channels.
template <typename T, int wide>
__device__ void LoadChunk(uint32_t* to, const T* frame, const Problem& problem, int y, int x, int count,
                          int first_channel) {
  if (problem.vectors) {
    constexpr int kParts = kChunkWords / 4, kElements = 16 / sizeof(T);
#pragma unroll 2
    for (int i = threadIdx.x; i < count * kParts; i += kThreads) {
      const int position = i / kParts, part = i % kParts, channel = first_channel + part * kElements;
      const int row = y + position / wide, column = x + position % wide;
      const bool valid = problem.Inside(row, column) && channel < problem.channels;
      const T* from = valid ? frame + problem.Position(0, row, column) * problem.channels + channel : frame;
      CopyAsync16(to + position * kChunkPitch + 4 * part, from, valid);
    }
  } else {
    constexpr int kElements = kChunkWords * 4 / sizeof(T), kPitch = kChunkPitch * 4 / sizeof(T);
#pragma unroll 1
    for (int i = threadIdx.x; i < count * kElements; i += kThreads) {
      const int position = i / kElements, channel = first_channel + i % kElements;
      const int row = y + position / wide, column = x + position % wide;
      const bool valid = problem.Inside(row, column) && channel < problem.channels;
      reinterpret_cast<T*>(to)[position * kPitch + i % kElements] =
          valid ? frame[problem.Position(0, row, column) * problem.channels + channel] : FromFloat<T>(0.0f);
    }
  }
}

// sums[i]: products of the warp's 16 targets (tile rows 2 warp and 2 warp + 1) with the i-th eight of a region's
// positions from `first` on, as far as `used`; others stay zero. The region: `positions` of them, `wide` in a row, from
// (y, x) of frame `partner` on. stages: shared memory for two chunks, stage_words each, free again when it
// returns.
template <typename T, int wide, int fragments>
__device__ __forceinline__ void Correlate(float (&sums)[fragments][4], uint32_t* stages, int stage_words,
                                          const T* features, const Problem& problem, const Tile& tile,
                                          int64_t partner, int y, int x, int positions, int first, int used) {
  static_assert(fragments % 2 == 0, "they are loaded in pairs");
  constexpr int kChannels = kChunkWords * 4 / sizeof(T);
  const T* target_frame = features + problem.Position(tile.frame, 0, 0) * problem.channels;
  const T* partner_frame = features + problem.Position(partner, 0, 0) * problem.channels;
  const auto load = [&](int chunk) {
    uint32_t* to = stages + chunk % 2 * stage_words;
    LoadChunk<T, kSide>(to, target_frame, problem, tile.y, tile.x, kTargets, chunk * kChannels);
    LoadChunk<T, wide>(to + kTargets * kChunkPitch, partner_frame, problem, y, x, positions, chunk * kChannels);
    CopyAsyncCommit();
  };
#pragma unroll
  for (int i = 0; i < fragments; ++i) sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
  const int chunks = (problem.channels + kChannels - 1) / kChannels;
  if (chunks > 0) load(0);
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) {
      load(chunk + 1);
      CopyAsyncWait<1>();
    } else {
      CopyAsyncWait<0>();
    }
    __syncthreads();
    const uint32_t* targets = stages + chunk % 2 * stage_words + 16 * (threadIdx.x / 32) * kChunkPitch;
    const uint32_t* region = stages + chunk % 2 * stage_words + (kTargets + first) * kChunkPitch;
#pragma unroll
    for (int step = 0; step < kChunkWords / 8; ++step) {
      const Operand<T, 4> left = LoadLeft<T>(targets + 8 * step, kChunkPitch);
#pragma unroll
      for (int i = 0; i < fragments; i += 2) {
        if (8 * i < used) {
          Operand<T, 2> right[2];
          LoadRight<T>(right, region + 8 * i * kChunkPitch + 8 * step, kChunkPitch);
          Multiply(sums[i], left, right[0]);
          Multiply(sums[i + 1], left, right[1]);
        }
      }
    }
    __syncthreads();
  }
}

// Correlate for all that a group of displacements reaches; each warp meets the rows that its two target rows need.
template <typename T, int blocks>
__device__ __forceinline__ void CorrelateGroup(float (&sums)[Region<blocks>::kFragments][4], uint32_t* stages,
                                               const T* features, const Problem& problem, const Tile& tile,
                                               int64_t partner, const Origin& origin, const Group& group) {
  using R = Region<blocks>;
  Correlate<T, R::kWide>(sums, stages, R::kStageWords, features, problem, tile, partner, origin.y, origin.x,
                         (group.rows + kSide - 1) * R::kWide, static_cast<int>(threadIdx.x) / 32 * 2 * R::kWide,
                         (group.rows + 1) * R::kWide);
}

// Cuts the group's similarities out of Correlate's sums: band[(target, row, column)], target * pitch apart; zero where
// the displacement leads out of the map.
template <int blocks>
__device__ __forceinline__ void CutBand(const float (&sums)[Region<blocks>::kFragments][4], float* band, int pitch,
                                        int band_columns, const float* norms, const Problem& problem, const Tile& tile,
                                        int64_t partner, const Origin& origin, const Group& group) {
  using R = Region<blocks>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, target_x = lane / 4;
  float target_norm[2] = {1.0f, 1.0f};
  if (problem.cosine) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int y = tile.y + 2 * warp + half, x = tile.x + target_x;
      if (problem.Inside(y, x)) target_norm[half] = norms[problem.Position(tile.frame, y, x)];
    }
  }
#pragma unroll
  for (int i = 0; i < R::kFragments; ++i) {
    const int row = i / blocks;  // of the region, counted from 2 warp
    const int y = origin.y + 2 * warp + row;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int column = i % blocks * 8 + 2 * (lane % 4) + j;
      const int x = origin.x + column, v = column - target_x;
      if (row > group.rows || v < 0 || v >= group.columns) continue;
      const bool inside = problem.Inside(y, x);
      const float norm = inside && problem.cosine ? norms[problem.Position(partner, y, x)] : 1.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int u = row - half;
        if (u < 0 || u >= group.rows) continue;
        const float value = inside ? sums[i][2 * half + j] * target_norm[half] * norm : 0.0f;
        band[((2 * warp + half) * kSide + target_x) * pitch + u * band_columns + v] = value;
      }
    }
  }
}

// norms[position] = 1 / sqrt(sum of squares + epsilon); a warp a position.
template <typename T>
__global__ void __launch_bounds__(kThreads) NormKernel(const T* features, float* norms, int64_t positions, int channels) {
  const int lane = threadIdx.x % 32;
  for (int64_t position = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; position < positions;
       position += static_cast<int64_t>(gridDim.x) * kWarps) {
    float squares = 0.0f;
    for (int channel = lane; channel < channels; channel += 32) {
      const float value = ToFloat(features[position * channels + channel]);
      squares += value * value;
    }
    squares = WarpSum(squares);
    if (lane == 0) norms[position] = rsqrtf(squares + kCosineEpsilon);
  }
}

// Host side -----------------------------------------------------------------------------------------------------------

inline int64_t CeilDivide(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t Grid(int64_t jobs) { return jobs < kMaxGrid ? jobs : kMaxGrid; }

// Fragments in a row of the region that suit a window: 2 hold up to 9 columns of displacements, 3 up to 17.
inline int BlocksFor(const StssShape& shape) { return shape.columns <= Region<2>::kGroupColumns ? 2 : 3; }

// cudaErrorInvalidValue where a size is none of a kernel's (the operation's own checks come first).
inline cudaError_t MakeProblem(const StssShape& shape, int element_bytes, const void* features, Problem* problem) {
  const int64_t limit = 0x3fffffff;
  if (shape.offset_count < 0 || shape.offset_count > kMaxOffsets || shape.height > limit || shape.width > limit ||
      shape.channels > limit || shape.rows < 1 || shape.columns < 1 || shape.rows > limit || shape.columns > limit)
    return cudaErrorInvalidValue;
  const bool two = BlocksFor(shape) == 2;
  const int64_t most_rows = two ? Region<2>::kGroupRows : Region<3>::kGroupRows;
  const int64_t most_columns = two ? Region<2>::kGroupColumns : Region<3>::kGroupColumns;
  problem->frames = shape.batch * shape.time;
  problem->time = shape.time;
  problem->height = static_cast<int>(shape.height);
  problem->width = static_cast<int>(shape.width);
  problem->channels = static_cast<int>(shape.channels);
  problem->offset_count = static_cast<int>(shape.offset_count);
  problem->rows = static_cast<int>(shape.rows);
  problem->columns = static_cast<int>(shape.columns);
  problem->row_groups = static_cast<int>(CeilDivide(shape.rows, most_rows));
  problem->column_groups = static_cast<int>(CeilDivide(shape.columns, most_columns));
  problem->group_rows = static_cast<int>(CeilDivide(shape.rows, problem->row_groups));
  problem->group_columns = static_cast<int>(CeilDivide(shape.columns, problem->column_groups));
  problem->tile_rows = static_cast<int>(CeilDivide(shape.height, kSide));
  problem->tile_columns = static_cast<int>(CeilDivide(shape.width, kSide));
  problem->cosine = shape.cosine;
  problem->vectors =
      shape.channels * element_bytes % 16 == 0 && reinterpret_cast<uintptr_t>(features) % 16 == 0;
  // Offsets as long as the clip lead out of it, as all longer ones do.
  for (int64_t i = 0; i < shape.offset_count; ++i) {
    const int64_t offset = shape.offsets[i];
    problem->offsets[i] = offset > shape.time ? shape.time : offset < -shape.time ? -shape.time : offset;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t LaunchNorms(const Problem& problem, const T* features, float* norms, cudaStream_t stream) {
  return Launch(NormKernel<T>, Grid(CeilDivide(problem.Positions(), kWarps)), kThreads, 0, stream, features, norms,
                problem.Positions(), problem.channels);
}

inline size_t NormBytes(const StssShape& shape) {
  return shape.cosine ? static_cast<size_t>(shape.batch * shape.time * shape.height * shape.width) * sizeof(float) : 0;
}

// Calls function(T()) with the type that a stored dtype (0 float32, 1 float16, 2 bfloat16) stands for.
template <typename Function>
cudaError_t WithType(int dtype, const Function& function) {
  switch (dtype) {
    case 0: return function(float());
    case 1: return function(__half());
    case 2: return function(__nv_bfloat16());
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace gpu
}  // namespace keras_stss

#endif  // KERAS_STSS_CUDA_TILES_CUH_
