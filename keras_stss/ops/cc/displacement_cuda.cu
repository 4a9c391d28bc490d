// CUDA kernels of the displacement operation and its gradient.
//
// Forward: a block computes the similarities of one tile of queries as the self-similarity does, but keeps them in shared
// memory, finds each query's maximum, then the softmax's sums. A window too large for that is computed twice, one group
// of displacements at a time. Backward: the same again, keeping what describes each query's softmax; then the gather of
// cuda_gather.cuh, whose weights are recomputed from products of the tile with the stage.
#include "displacement_cuda.h"

#include "cuda_gather.cuh"
#include "cuda_tiles.cuh"

namespace keras_stss {
namespace gpu {
namespace {

// Largest shared memory that is used; all GPUs that the kernels are compiled for have it.
constexpr size_t kSharedLimit = 99 * 1024;

struct Settings {
  float slope;    // of the kernel's exponent: -1 / (2 sigma^2)
  float inverse;  // 1 / temperature
};

// What the gradient of one query's softmax needs.
struct alignas(16) Softmax {
  int row, column;          // of the maximum
  float largest;            // score there
  float scale;              // 1 / (sum of exponentials · temperature)
  float right, down, mean;  // gradient of the places: right · column + down · row - mean
  float confidence;         // gradient of the maximum
};

__device__ __forceinline__ float Rectify(float value) { return value < 0.0f ? 0.0f : value; }  // a NaN stays one

__device__ __forceinline__ float Kernel(const Settings& settings, int rows, int columns) {
  return expf(settings.slope * static_cast<float>(rows * rows + columns * columns));
}

// The reciprocal of the largest displacement, or 0 where there is none.
__device__ __forceinline__ float Unit(int side) { return side > 1 ? 1.0f / static_cast<float>(side / 2) : 0.0f; }

// A query's maximum and sums, while groups of displacements go by.
struct State {
  float largest;
  int place;
  float total, right, down;
};

// Takes a group's scores of one query into the maximum (the first of equals); a warp a query.
__device__ __forceinline__ void FindMaximum(State* state, const float* scores, const Group& group, int columns) {
  float largest = -1.0f;
  int place = 0x7fffffff;
  for (int i = threadIdx.x % 32; i < group.rows * group.columns; i += 32) {
    const float score = Rectify(scores[i]);
    const int here = (group.row + i / group.columns) * columns + group.column + i % group.columns;
    if (score > largest || (score == largest && here < place)) {
      largest = score;
      place = here;
    }
  }
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, largest, step);
    const int there = __shfl_xor_sync(0xffffffffu, place, step);
    if (other > largest || (other == largest && there < place)) {
      largest = other;
      place = there;
    }
  }
  if (threadIdx.x % 32 == 0 && (largest > state->largest || (largest == state->largest && place < state->place))) {
    state->largest = largest;
    state->place = place;
  }
}

// Adds a group's scores of one query to the softmax's sums.
__device__ __forceinline__ void AddWeights(State* state, const float* scores, const Group& group,
                                           const Problem& problem, const Settings& settings) {
  // A query without a maximum has only NaN for scores.
  const int place = state->place < problem.rows * problem.columns ? state->place : 0;
  const int best_row = place / problem.columns, best_column = place % problem.columns;
  float total = 0.0f, right = 0.0f, down = 0.0f;
  for (int i = threadIdx.x % 32; i < group.rows * group.columns; i += 32) {
    const int row = group.row + i / group.columns, column = group.column + i % group.columns;
    const float score = Rectify(scores[i]) * Kernel(settings, row - best_row, column - best_column);
    const float weight = expf((score - state->largest) * settings.inverse);
    total += weight;
    right += weight * static_cast<float>(column - problem.columns / 2);
    down += weight * static_cast<float>(row - problem.rows / 2);
  }
  total = WarpSum(total);
  right = WarpSum(right);
  down = WarpSum(down);
  if (threadIdx.x % 32 == 0) {
    state->total += total;
    state->right += right;
    state->down += down;
  }
}

// Shared memory of the kernel below: stages of Correlate, states, scores (of all groups, or of one).
template <int blocks>
size_t SqueezeShared(const Problem& problem, bool whole) {
  const size_t groups = whole ? static_cast<size_t>(problem.row_groups) * problem.column_groups : 1;
  const size_t scores = groups * problem.group_rows * problem.group_columns;
  return 2 * Region<blocks>::kStageWords * sizeof(uint32_t) + kTargets * (sizeof(State) + scores * sizeof(float));
}

// Writes output, or with softmaxes what the gradient needs. whole: the scores of the whole window fit.
template <typename T, int blocks>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    SqueezeKernel(const T* features, const float* norms, const T* gradient, T* output, Softmax* softmaxes,
                  const Settings settings, bool whole, const Problem problem) {
  KERAS_STSS_SHARED(shared);
  using R = Region<blocks>;
  State* states = reinterpret_cast<State*>(shared + 2 * R::kStageWords * sizeof(uint32_t));
  float* scores = reinterpret_cast<float*>(states + kTargets);
  const int warp = threadIdx.x / 32, groups = problem.row_groups * problem.column_groups;
  const int group_size = problem.group_rows * problem.group_columns;  // the last groups may be smaller
  for (int64_t job = blockIdx.x; job < problem.Tiles() * problem.offset_count; job += gridDim.x) {
    const int offset = static_cast<int>(job % problem.offset_count);
    const Tile tile(problem, job / problem.offset_count);
    const int64_t partner = problem.Partner(tile.frame, problem.offsets[offset]);
    if (threadIdx.x < kTargets) states[threadIdx.x] = {-1.0f, 0x7fffffff, 0.0f, 0.0f, 0.0f};
    __syncthreads();
#pragma unroll 1
    for (int part = 0; part < (partner < 0 ? 0 : 2 * groups); ++part) {
      const bool adding = part >= groups;  // the second time: the maximum is known
      const Group group(problem, part % groups);
      float* band = scores + (whole ? kTargets * group_size * (part % groups) : 0);
      const int pitch = group.rows * group.columns;
      if (!adding || !whole) {
        const Origin origin(problem, tile, group, false);
        float sums[R::kFragments][4];
        CorrelateGroup<T, blocks>(sums, reinterpret_cast<uint32_t*>(shared), features, problem, tile, partner, origin,
                             group);
        CutBand<blocks>(sums, band, pitch, group.columns, norms, problem, tile, partner, origin, group);
      }
      __syncthreads();
      for (int target = warp; target < kTargets; target += kWarps) {
        if (adding)
          AddWeights(states + target, band + target * pitch, group, problem, settings);
        else
          FindMaximum(states + target, band + target * pitch, group, problem.columns);
      }
      __syncthreads();
    }
    const int y = tile.y + static_cast<int>(threadIdx.x) / kSide, x = tile.x + static_cast<int>(threadIdx.x) % kSide;
    if (threadIdx.x < kTargets && problem.Inside(y, x)) {
      const int64_t index = problem.Position(tile.frame, y, x) * problem.offset_count + offset;
      const State state = states[threadIdx.x];
      const float right = state.right / state.total, down = state.down / state.total;
      if (output) {
        T* to = output + 3 * index;
        to[0] = FromFloat<T>(partner < 0 ? 0.0f : right * Unit(problem.columns));
        to[1] = FromFloat<T>(partner < 0 ? 0.0f : down * Unit(problem.rows));
        to[2] = FromFloat<T>(partner < 0 ? 0.0f : state.largest);
      } else if (partner >= 0) {
        const T* upstream = gradient + 3 * index;
        Softmax softmax;
        softmax.row = state.place / problem.columns;
        softmax.column = state.place % problem.columns;
        softmax.largest = state.largest;
        softmax.scale = settings.inverse / state.total;
        softmax.right = ToFloat(upstream[0]) * Unit(problem.columns);
        softmax.down = ToFloat(upstream[1]) * Unit(problem.rows);
        softmax.mean = softmax.right * right + softmax.down * down;
        softmax.confidence = ToFloat(upstream[2]);
        softmaxes[index] = softmax;
      }
    }
    __syncthreads();
  }
}

// Gradient of one query's similarity at a window's place.
__device__ __forceinline__ float ScoreGradient(const Softmax& softmax, float similarity, int row, int column,
                                               const Problem& problem, const Settings& settings) {
  if (similarity <= 0.0f) return 0.0f;  // the rectifier; a NaN goes through
  const float kernel = Kernel(settings, row - softmax.row, column - softmax.column);
  const float weight = expf((similarity * kernel - softmax.largest) * settings.inverse) * softmax.scale;
  const float slope = softmax.right * static_cast<float>(column - problem.columns / 2) +
                      softmax.down * static_cast<float>(row - problem.rows / 2) - softmax.mean;
  return weight * kernel * slope + (row == softmax.row && column == softmax.column ? softmax.confidence : 0.0f);
}

// Weights of the gradient: similarities of the tile and a stage, turned into their gradient.
template <typename T, int blocks, int tiles>
struct SoftmaxWeights {
  using Layout = GatherLayout<T, blocks, tiles>;
  static constexpr int kScorePitch = Layout::kPositions + 4;
  static constexpr int kStageWords = StageWords(Layout::kPositions);
  static_assert(kTargets * kScorePitch <= 2 * kStageWords, "the scores take the chunks' place");

  const T* features;
  const float* norms;
  const Softmax* softmaxes;
  Settings settings;

  __device__ __forceinline__ void operator()(T* weights, uint32_t* shared, const Problem& problem, const Tile& tile,
                                             const Stage& stage, const Origin& origin, const Group& group) const {
    constexpr int kFragments = Layout::kPositions / 8, kPitch = Layout::kWeightPitch * 4 / sizeof(T);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool meets = stage.row + kStageRows - 1 >= 2 * warp && stage.row <= 2 * warp + group.rows;
    float* scores = reinterpret_cast<float*>(shared);
    float sums[kFragments][4];
    Correlate<T, Layout::kWide>(sums, shared, kStageWords, features, problem, tile, stage.partner,
                                origin.y + stage.row, origin.x, Layout::kPositions, 0,
                                meets ? Layout::kPositions : 0);
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        scores[(16 * warp + lane / 4 + j / 2 * 8) * kScorePitch + 8 * i + 2 * (lane % 4) + j % 2] = sums[i][j];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTargets * Layout::kPositions; i += kThreads) {
      const int number = i / Layout::kPositions, index = i % Layout::kPositions;
      const int target_y = number / kSide, target_x = number % kSide;
      const int row = index / Layout::kWide, column = index % Layout::kWide;
      const int rows = stage.row + row - target_y, columns = column - target_x;
      const int u = stage.mirrored ? group.rows - 1 - rows : rows;
      const int v = stage.mirrored ? group.columns - 1 - columns : columns;
      const int y = tile.y + target_y, x = tile.x + target_x;
      const int other_y = origin.y + stage.row + row, other_x = origin.x + column;
      float gradient = 0.0f;
      if (u >= 0 && u < group.rows && v >= 0 && v < group.columns && problem.Inside(y, x) &&
          problem.Inside(other_y, other_x)) {
        const int64_t target = problem.Position(tile.frame, y, x);
        const int64_t other = problem.Position(stage.partner, other_y, other_x);
        const float norm = problem.cosine ? norms[target] * norms[other] : 1.0f;
        const Softmax softmax = softmaxes[(stage.mirrored ? other : target) * problem.offset_count + stage.offset];
        gradient = ScoreGradient(softmax, scores[number * kScorePitch + index] * norm, group.row + u,
                                 group.column + v, problem, settings);
      }
      weights[number * kPitch + index] = FromFloat<T>(gradient);
    }
  }
};

template <typename T, int blocks, int tiles>
__global__ void __launch_bounds__(kThreads, kBlocksOfProcessor)
    DisplacementBackwardKernel(const T* features, const float* norms, const Softmax* softmaxes, T* features_gradient,
                               float* unfinished, const Settings settings, const Problem problem) {
  KERAS_STSS_SHARED(shared);
  Gather<T, blocks, tiles>(SoftmaxWeights<T, blocks, tiles>{features, norms, softmaxes, settings}, features, norms,
                           features_gradient, unfinished, problem, reinterpret_cast<uint32_t*>(shared));
}

template <typename T, int blocks>
cudaError_t Squeeze(const Problem& problem, const Settings& settings, const T* features, const float* norms,
                    const T* gradient, T* output, Softmax* softmaxes, cudaStream_t stream) {
  const bool whole = SqueezeShared<blocks>(problem, true) <= kSharedLimit;
  return Launch(SqueezeKernel<T, blocks>, Grid(problem.Tiles() * problem.offset_count), kThreads,
                SqueezeShared<blocks>(problem, whole), stream, features, norms, gradient, output, softmaxes, settings,
                whole, problem);
}

template <typename T, int blocks, int tiles>
cudaError_t Backward(const Problem& problem, const Settings& settings, const T* features, const float* norms,
                     const Softmax* softmaxes, T* features_gradient, float* unfinished, cudaStream_t stream) {
  using Layout = GatherLayout<T, blocks, tiles>;
  const int64_t jobs = problem.Tiles() * CeilDivide(problem.channels, Layout::kSlab);
  const size_t words = Layout::kWords + 2 * SoftmaxWeights<T, blocks, tiles>::kStageWords;
  return Launch(DisplacementBackwardKernel<T, blocks, tiles>, Grid(jobs), kThreads, words * sizeof(uint32_t), stream,
                features, norms, softmaxes, features_gradient, unfinished, settings, problem);
}

Settings MakeSettings(float sigma, float temperature) { return {-0.5f / sigma / sigma, 1.0f / temperature}; }

size_t SoftmaxBytes(const StssShape& s) {
  return static_cast<size_t>(s.batch * s.time * s.height * s.width * s.offset_count) * sizeof(Softmax);
}

}  // namespace
}  // namespace gpu

size_t DisplacementForwardWorkspace(const StssShape& shape, int) { return gpu::NormBytes(shape); }

cudaError_t DisplacementForwardCuda(const StssShape& shape, float sigma, float temperature, int dtype,
                                    const void* features, void* output, void* workspace, cudaStream_t stream) {
  return gpu::WithType(dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(features);
    gpu::Problem problem;
    const cudaError_t made = gpu::MakeProblem(shape, sizeof(T), features, &problem);
    if (made != cudaSuccess || problem.Positions() == 0 || problem.offset_count == 0) return made;
    float* norms = shape.cosine ? static_cast<float*>(workspace) : nullptr;
    if (norms) {
      const cudaError_t done = gpu::LaunchNorms(problem, from, norms, stream);
      if (done != cudaSuccess) return done;
    }
    const auto squeeze = gpu::BlocksFor(shape) == 2 ? gpu::Squeeze<T, 2> : gpu::Squeeze<T, 3>;
    return squeeze(problem, gpu::MakeSettings(sigma, temperature), from, norms, nullptr, static_cast<T*>(output),
                   nullptr, stream);
  });
}

size_t DisplacementBackwardWorkspace(const StssShape& shape, int) {
  return gpu::SoftmaxBytes(shape) + gpu::NormBytes(shape) + gpu::GatherBytes(shape);
}

cudaError_t DisplacementBackwardCuda(const StssShape& shape, float sigma, float temperature, int dtype,
                                     const void* features, const void* gradient, void* features_gradient,
                                     void* workspace, cudaStream_t stream) {
  return gpu::WithType(dtype, [&](auto type) {
    using T = decltype(type);
    const T* from = static_cast<const T*>(features);
    T* to = static_cast<T*>(features_gradient);
    gpu::Problem problem;
    const cudaError_t made = gpu::MakeProblem(shape, sizeof(T), features, &problem);
    if (made != cudaSuccess || problem.Positions() * problem.channels == 0) return made;
    const gpu::Settings settings = gpu::MakeSettings(sigma, temperature);
    gpu::Softmax* softmaxes = static_cast<gpu::Softmax*>(workspace);
    float* rest = reinterpret_cast<float*>(static_cast<char*>(workspace) + gpu::SoftmaxBytes(shape));
    float* norms = shape.cosine ? rest : nullptr;
    float* unfinished = gpu::GatherBytes(shape) ? norms + problem.Positions() : nullptr;
    cudaError_t done = cudaSuccess;
    if (norms) done = gpu::LaunchNorms(problem, from, norms, stream);
    const bool two = gpu::BlocksFor(shape) == 2, narrow = shape.channels <= 64;
    if (done == cudaSuccess && problem.offset_count) {
      const auto squeeze = two ? gpu::Squeeze<T, 2> : gpu::Squeeze<T, 3>;
      const T* upstream = static_cast<const T*>(gradient);
      done = squeeze(problem, settings, from, norms, upstream, static_cast<T*>(nullptr), softmaxes, stream);
    }
    if (done != cudaSuccess) return done;
    const auto backward = two ? (narrow ? gpu::Backward<T, 2, 2> : gpu::Backward<T, 2, 4>)
                              : (narrow ? gpu::Backward<T, 3, 2> : gpu::Backward<T, 3, 4>);
    done = backward(problem, settings, from, norms, softmaxes, to, unfinished, stream);
    if (done != cudaSuccess || !unfinished) return done;
    return gpu::LaunchFinish(problem, from, norms, unfinished, to, stream);
  });
}

}  // namespace keras_stss
