// The gradient with respect to features, common to all that is computed from self-similarities.
//
// With G the gradient of the similarities S[q, k] = <N[q], N[k]>, each position p gathers
//   dN[p] = sum over k of G[p, k] N[k] (as the query)  +  sum over q of G[q, p] N[q] (as the key),
// so that nothing is scattered and no atomics are needed. Both sums are a product of a banded matrix of weights, 64
// targets by the positions of a region, with that region's vectors; a few rows of the region at a time. Cosine:
// dF = r (dN - N <N, dN>) with N = r F.
#ifndef KERAS_STSS_CUDA_GATHER_CUH_
#define KERAS_STSS_CUDA_GATHER_CUH_

#include "cuda_tiles.cuh"

namespace keras_stss {
namespace gpu {

constexpr int kStageRows = 2;  // rows of the region in shared memory at a time

// A few rows of the region, with all that tells which weights belong to them.
struct Stage {
  int64_t partner;  // frame of the region
  int offset;       // index of the temporal offset
  int row;          // first region row
  bool mirrored;    // the region holds the queries, the tile the keys
};

// Layout of a stage in shared memory. tiles: fragments of 8 channels that each warp owns.
template <typename T, int blocks, int tiles>
struct GatherLayout {
  static constexpr int kWide = Region<blocks>::kWide, kPositions = kStageRows * kWide;
  static constexpr int kSlab = 8 * tiles * kWarps;  // channels of a block
  static constexpr int kWeightPitch = kPositions * sizeof(T) / 4 + 4;  // words
  // Elements; chosen so that the rows (half precision) or columns (float32) that are read together lie in different banks.
  static constexpr int kVectorPitch = kSlab + 8;
  static constexpr int kWeightWords = kTargets * kWeightPitch;
  static constexpr int kVectorWords = kPositions * kVectorPitch * sizeof(T) / 4;
  static constexpr int kWords = kWeightWords + kVectorWords;
};

// Loads the slab's channels of a stage's positions, normalised for the cosine and rounded to T; zeros outside.
template <typename T, int blocks, int tiles>
__device__ void LoadVectors(T* to, const T* features, const float* norms, const Problem& problem, const Stage& stage,
                            const Origin& origin, int first_channel) {
  using Layout = GatherLayout<T, blocks, tiles>;
  const auto position_of = [&](int index, int64_t* position) {
    const int y = origin.y + stage.row + index / Layout::kWide, x = origin.x + index % Layout::kWide;
    *position = problem.Position(stage.partner, y, x);
    return problem.Inside(y, x);
  };
  if (problem.vectors) {
    constexpr int kElements = 16 / sizeof(T), kParts = Layout::kSlab / kElements;
#pragma unroll 4  // loads in flight against registers
    for (int i = threadIdx.x; i < Layout::kPositions * kParts; i += kThreads) {
      const int index = i / kParts, channel = first_channel + i % kParts * kElements;
      int64_t position;
      alignas(16) T values[kElements];
      if (position_of(index, &position) && channel < problem.channels) {
        *reinterpret_cast<uint4*>(values) =
            *reinterpret_cast<const uint4*>(features + position * problem.channels + channel);
        if (problem.cosine) {
          const float norm = norms[position];
#pragma unroll
          for (int j = 0; j < kElements; ++j) values[j] = FromFloat<T>(ToFloat(values[j]) * norm);
        }
      } else {
        *reinterpret_cast<uint4*>(values) = uint4{0, 0, 0, 0};
      }
      *reinterpret_cast<uint4*>(to + index * Layout::kVectorPitch + i % kParts * kElements) =
          *reinterpret_cast<const uint4*>(values);
    }
  } else {
#pragma unroll 2
    for (int i = threadIdx.x; i < Layout::kPositions * Layout::kSlab; i += kThreads) {
      const int index = i / Layout::kSlab, channel = first_channel + i % Layout::kSlab;
      int64_t position;
      float value = 0.0f;
      if (position_of(index, &position) && channel < problem.channels) {
        value = ToFloat(features[position * problem.channels + channel]);
        if (problem.cosine) value *= norms[position];
      }
      to[index * Layout::kVectorPitch + i % Layout::kSlab] = FromFloat<T>(value);
    }
  }
}

// sums += weights (targets, positions of the stage) times vectors (positions, channels). Target rows 2 m and 2 m + 1
// are skipped where none of their displacements is in the group.
template <typename T, int blocks, int tiles>
__device__ __forceinline__ void AddStage(float (&sums)[4][tiles][4], const uint32_t* weights, const T* vectors,
                                         const Stage& stage, const Group& group) {
  using Layout = GatherLayout<T, blocks, tiles>;
  constexpr int kElements = 32 / sizeof(T);  // positions of a fragment
  const int warp = threadIdx.x / 32;
#pragma unroll
  for (int step = 0; step < Layout::kPositions / kElements; ++step) {
    Operand<T, 2> right[tiles / 2][2];
#pragma unroll
    for (int n = 0; n < tiles / 2; ++n)
      LoadRightDown(right[n], vectors + step * kElements * Layout::kVectorPitch + (warp * tiles + 2 * n) * 8,
                    Layout::kVectorPitch);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      if (stage.row + kStageRows - 1 < 2 * m || stage.row > 2 * m + group.rows) continue;
      const Operand<T, 4> left = LoadLeft<T>(weights + 16 * m * Layout::kWeightPitch + 8 * step, Layout::kWeightPitch);
#pragma unroll
      for (int n = 0; n < tiles; ++n) Multiply(sums[m][n], left, right[n / 2][n % 2]);
    }
  }
}

// Position (or -1) and channel of the pair of neighbouring sums sums[m][n][2 half] and sums[m][n][2 half + 1].
__device__ __forceinline__ int64_t TargetOf(const Problem& problem, const Tile& tile, int m, int half) {
  const int y = tile.y + 2 * m + half, x = tile.x + threadIdx.x % 32 / 4;
  return problem.Inside(y, x) ? problem.Position(tile.frame, y, x) : -1;
}
template <int tiles>
__device__ __forceinline__ int ChannelOf(int first_channel, int n) {
  return first_channel + (threadIdx.x / 32 * tiles + n) * 8 + 2 * (threadIdx.x % 4);
}

// dots[target] = <N, dN> over all channels, when the block has all of them. partial: 4 times 64 floats.
template <typename T, int tiles>
__device__ __forceinline__ void Dots(const float (&sums)[4][tiles][4], float* partial, const T* features,
                                     const float* norms, const Problem& problem, const Tile& tile) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t position = TargetOf(problem, tile, m, half);
      float dot = 0.0f;
      if (position >= 0) {
#pragma unroll
        for (int n = 0; n < tiles; ++n) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const int channel = ChannelOf<tiles>(0, n) + j;
            if (channel < problem.channels)
              dot += sums[m][n][2 * half + j] * ToFloat(features[position * problem.channels + channel]);
          }
        }
        dot *= norms[position];
      }
      dot += __shfl_xor_sync(0xffffffffu, dot, 1);
      dot += __shfl_xor_sync(0xffffffffu, dot, 2);
      if (threadIdx.x % 4 == 0)
        partial[threadIdx.x / 32 * kTargets + (2 * m + half) * kSide + threadIdx.x % 32 / 4] = dot;
    }
  }
  __syncthreads();
}

// Writes a tile's gradient: final where the block has all that it takes, else dN itself, to `unfinished`.
template <typename T, int tiles>
__device__ __forceinline__ void Finish(const float (&sums)[4][tiles][4], float* partial, const T* features,
                                       const float* norms, T* features_gradient, float* unfinished,
                                       const Problem& problem, const Tile& tile, int first_channel) {
  if (norms && !unfinished) Dots<T, tiles>(sums, partial, features, norms, problem, tile);
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t position = TargetOf(problem, tile, m, half);
      if (position < 0) continue;
      float norm = 1.0f, dot = 0.0f;
      if (norms && !unfinished) {
        norm = norms[position];
        const float* mine = partial + (2 * m + half) * kSide + threadIdx.x % 32 / 4;
        dot = ((mine[0] + mine[kTargets]) + (mine[2 * kTargets] + mine[3 * kTargets])) * norm;
      }
#pragma unroll
      for (int n = 0; n < tiles; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int channel = ChannelOf<tiles>(first_channel, n) + j;
          if (channel >= problem.channels) continue;
          const int64_t index = position * problem.channels + channel;
          const float sum = sums[m][n][2 * half + j];
          if (unfinished)
            unfinished[index] = sum;
          else if (norms)
            features_gradient[index] = FromFloat<T>(norm * (sum - dot * ToFloat(features[index])));
          else
            features_gradient[index] = FromFloat<T>(sum);
        }
      }
    }
  }
}

// A block gathers the gradient of one tile and one slab of channels. Weights is a functor with
//   static size_t Words(): shared memory that it needs for itself, in words, and
//   void operator()(T* weights, uint32_t* shared, problem, tile, stage, origin, group): fills weights, target by
//   target, GatherLayout::kWeightPitch words apart; zero outside band and map; the block is synchronised afterwards.
// norms: null for dot products; unfinished: null where a slab holds all channels or for dot products.
template <typename T, int blocks, int tiles, typename Weights>
__device__ __forceinline__ void Gather(const Weights& weights_of, const T* features, const float* norms,
                                       T* features_gradient, float* unfinished, const Problem& problem,
                                       uint32_t* shared) {
  using Layout = GatherLayout<T, blocks, tiles>;
  uint32_t* weights = shared;
  T* vectors = reinterpret_cast<T*>(shared + Layout::kWeightWords);
  const int slabs = (problem.channels + Layout::kSlab - 1) / Layout::kSlab;
  for (int64_t job = blockIdx.x; job < problem.Tiles() * slabs; job += gridDim.x) {
    const Tile tile(problem, job / slabs);
    const int first_channel = static_cast<int>(job % slabs) * Layout::kSlab;
    float sums[4][tiles][4] = {};
    // Offsets, directions and groups of displacements, as one loop: its body is long.
    const int groups = problem.row_groups * problem.column_groups;
    for (int part = 0; part < problem.offset_count * 2 * groups; ++part) {
      const Group group(problem, part % groups);
      Stage stage;
      stage.mirrored = part / groups % 2 == 1;
      stage.offset = part / groups / 2;
      const int64_t offset = problem.offsets[stage.offset];
      stage.partner = problem.Partner(tile.frame, stage.mirrored ? -offset : offset);
      if (stage.partner < 0) continue;
      const Origin origin(problem, tile, group, stage.mirrored);
      for (stage.row = 0; stage.row < group.rows + kSide - 1; stage.row += kStageRows) {
        if (!origin.Meets(problem, group, stage.row, kStageRows)) continue;
        weights_of(reinterpret_cast<T*>(weights), shared + Layout::kWords, problem, tile, stage, origin, group);
        LoadVectors<T, blocks, tiles>(vectors, features, norms, problem, stage, origin, first_channel);
        __syncthreads();
        AddStage<T, blocks, tiles>(sums, weights, vectors, stage, group);
        __syncthreads();
      }
    }
    Finish<T, tiles>(sums, reinterpret_cast<float*>(shared), features, norms, features_gradient, unfinished, problem,
                     tile, first_channel);
    __syncthreads();
  }
}

// dF = r (dN - N <N, dN>) where the channels were gathered slab by slab; a warp a position.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FinishKernel(const T* features, const float* norms, const float* unfinished, T* features_gradient,
                 int64_t positions, int channels) {
  const int lane = threadIdx.x % 32;
  for (int64_t position = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; position < positions;
       position += static_cast<int64_t>(gridDim.x) * kWarps) {
    const float norm = norms[position];
    float dot = 0.0f;
    for (int channel = lane; channel < channels; channel += 32)
      dot += unfinished[position * channels + channel] * ToFloat(features[position * channels + channel]);
    dot = WarpSum(dot) * norm * norm;
    for (int channel = lane; channel < channels; channel += 32) {
      const int64_t index = position * channels + channel;
      features_gradient[index] = FromFloat<T>(norm * (unfinished[index] - dot * ToFloat(features[index])));
    }
  }
}

// Host side -----------------------------------------------------------------------------------------------------------

constexpr int64_t kOneSlab = 128;  // channels that one block can gather

inline size_t GatherBytes(const StssShape& shape) {
  if (!shape.cosine || shape.channels <= kOneSlab) return 0;
  return static_cast<size_t>(shape.batch * shape.time * shape.height * shape.width * shape.channels) * sizeof(float);
}

template <typename T>
cudaError_t LaunchFinish(const Problem& problem, const T* features, const float* norms, const float* unfinished,
                         T* features_gradient, cudaStream_t stream) {
  return Launch(FinishKernel<T>, Grid(CeilDivide(problem.Positions(), kWarps)), kThreads, 0, stream, features, norms,
                unfinished, features_gradient, problem.Positions(), problem.channels);
}

}  // namespace gpu
}  // namespace keras_stss

#endif  // KERAS_STSS_CUDA_GATHER_CUH_
