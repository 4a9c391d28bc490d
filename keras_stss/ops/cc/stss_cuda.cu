// CUDA kernels of the spatio-temporal self-similarity and its gradient.
#include "stss_cuda.h"

#include "cuda_gather.cuh"
#include "cuda_tiles.cuh"

namespace keras_stss {
namespace gpu {
namespace {

// A block computes one tile's similarities for one temporal offset and one group of displacements: the dense product
// of tile and region on the tensor cores, of which the band goes through shared memory to the volume.
template <typename T, int blocks>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    ForwardKernel(const T* features, const float* norms, T* volume, const Problem problem) {
  KERAS_STSS_SHARED(shared);
  using R = Region<blocks>;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int groups = problem.row_groups * problem.column_groups;
  const int64_t jobs = problem.Tiles() * problem.offset_count * groups;
  float* band = reinterpret_cast<float*>(shared);
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const Group group(problem, static_cast<int>(job % groups));
    const int offset = static_cast<int>(job / groups % problem.offset_count);
    const Tile tile(problem, job / groups / problem.offset_count);
    const int64_t partner = problem.Partner(tile.frame, problem.offsets[offset]);
    const Origin origin(problem, tile, group, false);
    const bool any = partner >= 0 && origin.Meets(problem, group, 0, group.rows + kSide - 1);
    const int size = group.rows * group.columns;
    if (any) {
      float sums[R::kFragments][4];
      CorrelateGroup<T, blocks>(sums, reinterpret_cast<uint32_t*>(shared), features, problem, tile, partner, origin, group);
      CutBand<blocks>(sums, band, size, group.columns, norms, problem, tile, partner, origin, group);
    }
    __syncthreads();
    for (int target = warp; target < kTargets; target += kWarps) {
      const int y = tile.y + target / kSide, x = tile.x + target % kSide;
      if (!problem.Inside(y, x)) continue;
      const int64_t row = problem.Position(tile.frame, y, x) * problem.offset_count + offset;
      T* to = volume + (row * problem.rows + group.row) * problem.columns + group.column;
      for (int i = lane; i < size; i += 32) {
        const int u = problem.column_groups == 1 ? 0 : i / group.columns;  // one group: its rows are contiguous
        to[u * (problem.columns - group.columns) + i] = FromFloat<T>(any ? band[target * size + i] : 0.0f);
      }
    }
    __syncthreads();
  }
}

// Weights of the gradient: the gradient of the volume, of which a stage takes its band.
template <typename T, int blocks, int tiles>
struct VolumeWeights {
  const T* gradient;
  __device__ __forceinline__ void operator()(T* weights, uint32_t*, const Problem& problem, const Tile& tile,
                                             const Stage& stage, const Origin& origin, const Group& group) const {
    using Layout = GatherLayout<T, blocks, tiles>;
    constexpr int kPitch = Layout::kWeightPitch * 4 / sizeof(T), kWide = Layout::kWide;
    // A thread keeps the columns of target and region position; neighbouring threads read neighbouring displacements.
#pragma unroll 1
    for (int i = threadIdx.x; i < kSide * kWide; i += kThreads) {
      const int target_x = stage.mirrored ? i % kSide : i / kWide;
      const int column = stage.mirrored ? i / kSide : i % kWide;
      const int steps = column - target_x, v = stage.mirrored ? group.columns - 1 - steps : steps;
      const int x = tile.x + target_x, other_x = origin.x + column;
      const bool columns_meet =
          v >= 0 && v < group.columns && x < problem.width && other_x >= 0 && other_x < problem.width;
#pragma unroll 4  // loads in flight against registers
      for (int target_y = 0; target_y < kSide; ++target_y) {
        const int y = tile.y + target_y;
#pragma unroll
        for (int j = 0; j < kStageRows; ++j) {
          const int row = stage.row + j, other_y = origin.y + row;
          const int u = stage.mirrored ? group.rows - 1 - (row - target_y) : row - target_y;
          T weight = FromFloat<T>(0.0f);
          if (columns_meet && u >= 0 && u < group.rows && y < problem.height && other_y >= 0 &&
              other_y < problem.height) {
            const int64_t query = stage.mirrored ? problem.Position(stage.partner, other_y, other_x)
                                                 : problem.Position(tile.frame, y, x);
            weight = gradient[((query * problem.offset_count + stage.offset) * problem.rows + group.row + u) *
                                  problem.columns + group.column + v];
          }
          weights[(target_y * kSide + target_x) * kPitch + j * kWide + column] = weight;
        }
      }
    }
  }
};

template <typename T, int blocks, int tiles>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    BackwardKernel(const T* features, const T* gradient, const float* norms, T* features_gradient, float* unfinished,
                   const Problem problem) {
  KERAS_STSS_SHARED(shared);
  Gather<T, blocks, tiles>(VolumeWeights<T, blocks, tiles>{gradient}, features, norms, features_gradient, unfinished,
                           problem, reinterpret_cast<uint32_t*>(shared));
}

template <typename T, int blocks>
cudaError_t Forward(const Problem& problem, const T* features, const float* norms, T* volume, cudaStream_t stream) {
  using R = Region<blocks>;
  const int64_t jobs = problem.Tiles() * problem.offset_count * problem.row_groups * problem.column_groups;
  const size_t stages = 2 * R::kStageWords * sizeof(uint32_t);
  const size_t band = kTargets * problem.group_rows * problem.group_columns * sizeof(float);
  return Launch(ForwardKernel<T, blocks>, Grid(jobs), kThreads, stages > band ? stages : band, stream, features, norms,
                volume, problem);
}

template <typename T, int blocks, int tiles>
cudaError_t Backward(const Problem& problem, const T* features, const T* gradient, const float* norms,
                     T* features_gradient, float* unfinished, cudaStream_t stream) {
  using Layout = GatherLayout<T, blocks, tiles>;
  const int64_t jobs = problem.Tiles() * CeilDivide(problem.channels, Layout::kSlab);
  return Launch(BackwardKernel<T, blocks, tiles>, Grid(jobs), kThreads, Layout::kWords * sizeof(uint32_t), stream,
                features, gradient, norms, features_gradient, unfinished, problem);
}

}  // namespace
}  // namespace gpu

size_t StssForwardWorkspace(const StssShape& shape, int) { return gpu::NormBytes(shape); }

cudaError_t StssForwardCuda(const StssShape& shape, int dtype, const void* features, void* volume, void* workspace,
                            cudaStream_t stream) {
  return gpu::WithType(dtype, [&](auto type) {
    using T = decltype(type);
    gpu::Problem problem;
    const cudaError_t made = gpu::MakeProblem(shape, sizeof(T), features, &problem);
    if (made != cudaSuccess || problem.Positions() == 0 || problem.offset_count == 0) return made;
    float* norms = shape.cosine ? static_cast<float*>(workspace) : nullptr;
    if (norms) {
      const cudaError_t done = gpu::LaunchNorms(problem, static_cast<const T*>(features), norms, stream);
      if (done != cudaSuccess) return done;
    }
    const auto forward = gpu::BlocksFor(shape) == 2 ? gpu::Forward<T, 2> : gpu::Forward<T, 3>;
    return forward(problem, static_cast<const T*>(features), norms, static_cast<T*>(volume), stream);
  });
}

size_t StssBackwardWorkspace(const StssShape& shape, int) { return gpu::NormBytes(shape) + gpu::GatherBytes(shape); }

cudaError_t StssBackwardCuda(const StssShape& shape, int dtype, const void* features, const void* gradient,
                             void* features_gradient, void* workspace, cudaStream_t stream) {
  return gpu::WithType(dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(features);
    T* to = static_cast<T*>(features_gradient);
    gpu::Problem problem;
    const cudaError_t made = gpu::MakeProblem(shape, sizeof(T), features, &problem);
    if (made != cudaSuccess || problem.Positions() * problem.channels == 0) return made;
    float* norms = shape.cosine ? static_cast<float*>(workspace) : nullptr;
    float* unfinished = gpu::GatherBytes(shape) ? norms + problem.Positions() : nullptr;
    if (norms) {
      const cudaError_t done = gpu::LaunchNorms(problem, from, norms, stream);
      if (done != cudaSuccess) return done;
    }
    const bool two = gpu::BlocksFor(shape) == 2, narrow = shape.channels <= 64;
    const auto backward = two ? (narrow ? gpu::Backward<T, 2, 2> : gpu::Backward<T, 2, 4>)
                              : (narrow ? gpu::Backward<T, 3, 2> : gpu::Backward<T, 3, 4>);
    const cudaError_t done =
        backward(problem, from, static_cast<const T*>(gradient), norms, to, unfinished, stream);
    if (done != cudaSuccess || !unfinished) return done;
    return gpu::LaunchFinish(problem, from, norms, unfinished, to, stream);
  });
}

}  // namespace keras_stss
