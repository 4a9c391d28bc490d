// What the forward and the backward kernel share: norms, transposes, and rows of packed features that stay at hand.
//
// Included by *_cpu.cc files only: everything is static, as simd.h asks.
#ifndef KERAS_STSS_STSS_ROWS_H_
#define KERAS_STSS_STSS_ROWS_H_

#include <stdlib.h>

#include "parallel.h"
#include "simd.h"
#include "stss_shape.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));

KERAS_STSS_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
KERAS_STSS_INLINE int64_t Max(int64_t a, int64_t b) { return a < b ? b : a; }
KERAS_STSS_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
KERAS_STSS_INLINE int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// count floats, all zero, at a cache line's start; null where there is no memory.
KERAS_STSS_INLINE float* NewFloats(int64_t count) {
  const size_t bytes = static_cast<size_t>(RoundUp(Max(count, 1), 16)) * sizeof(float);
  void* memory = aligned_alloc(64, bytes);
  return memory ? static_cast<float*>(memset(memory, 0, bytes)) : nullptr;
}

// Bytes of scratch that a thread may use: a part of the volume's size within what a second-level cache holds.
KERAS_STSS_INLINE int64_t ScratchBytes(const StssShape& shape, DType dtype) {
  const double volume = static_cast<double>(SizeOf(dtype)) * shape.batch * shape.time * shape.height * shape.width *
                        shape.offset_count * shape.rows * shape.columns;
  const double part = volume / 22;
  return part < (1 << 18) ? 1 << 18 : part > (5 << 17) ? 5 << 17 : static_cast<int64_t>(part);
}

// Keeps a loaded value in a register: read again from memory with each product, a load that crosses a cache line would
// cost as much as two.
KERAS_STSS_INLINE Vec InRegister(Vec value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__x86_64__)
  asm("" : "+x"(value));
#endif
  return value;
}

KERAS_STSS_INLINE float Total(Vec value) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += value[lane];
  return total;
}

KERAS_STSS_INLINE float Dot(const float* a, const float* b, int64_t count) {
  Vec sums[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    sums[0] = MultiplyAdd(Load(a + i), Load(b + i), sums[0]);
    sums[1] = MultiplyAdd(Load(a + i + kLanes), Load(b + i + kLanes), sums[1]);
  }
  float total = Total(sums[0] + sums[1]);
  for (; i < count; ++i) total += a[i] * b[i];
  return total;
}

// 1 / sqrt(sum of squares + epsilon) of every position's vector.
static inline bool InverseNorms(const StssShape& shape, DType dtype, const void* features, float* norms,
                         const Parallel& parallel) {
  const int64_t channels = shape.channels, width = shape.width;
  bool failed = false;
  parallel(shape.batch * shape.time * shape.height, width * (20 + channels / 4), [&](int64_t begin, int64_t end) {
    float* wide = dtype == DType::kFloat32 ? nullptr : NewFloats(channels);
    if (!wide && dtype != DType::kFloat32) return __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
    for (int64_t i = begin * width; i < end * width; ++i) {
      if (wide) Widen(features, i * channels, channels, dtype, wide);
      const float* vector = wide ? wide : static_cast<const float*>(features) + i * channels;
      norms[i] = 1.0f / __builtin_sqrtf(Dot(vector, vector, channels) + kCosineEpsilon);
    }
    free(wide);
  });
  return !failed;
}

template <int... kValues>
struct Ints {};
template <int kCount, int... kValues>
struct CountTo : CountTo<kCount - 1, kCount - 1, kValues...> {};
template <int... kValues>
struct CountTo<0, kValues...> {
  using Type = Ints<kValues...>;
};

#if defined(__clang__)
#define KERAS_STSS_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define KERAS_STSS_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

// Exchanges the off-diagonal halves of every 2 by 2 block of kStep lanes.
template <int kStep, int... kLane>
KERAS_STSS_INLINE void Exchange(Vec& a, Vec& b, Ints<kLane...>) {
  const Vec first = a, second = b;
  a = KERAS_STSS_SHUFFLE(first, second, (kLane & kStep ? kLanes + kLane - kStep : kLane)...);
  b = KERAS_STSS_SHUFFLE(first, second, (kLane & kStep ? kLanes + kLane : kLane + kStep)...);
}

template <int kStep>
KERAS_STSS_INLINE void TransposeStep(Vec* rows) {
  if constexpr (kStep > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i)
      if (!(i & kStep)) Exchange<kStep>(rows[i], rows[i + kStep], typename CountTo<kLanes>::Type());
    TransposeStep<kStep / 2>(rows);
  }
}

// rows[i][j] <-> rows[j][i].
KERAS_STSS_INLINE void Transpose(Vec* rows) { TransposeStep<kLanes / 2>(rows); }

// Packed rows of features, made when first asked for and kept until their place is needed. A row's place follows from
// its frame and its number, so that a walk down a frame, or through time, finds again what it has made.
struct RowCache {
  float* rows;    // (frames, count, row_floats)
  int64_t* tags;  // (frames, count): which row is there, -1: none
  int64_t frames, count, row_floats;
};

// The row's place; sets *made where it holds the row already.
KERAS_STSS_INLINE float* FindRow(const RowCache& cache, const StssShape& shape, int64_t frame, int64_t row,
                                 bool* made) {
  const int64_t place = frame % cache.frames * cache.count + row % cache.count, tag = frame * shape.height + row;
  *made = cache.tags[place] == tag;
  cache.tags[place] = tag;
  return cache.rows + place * cache.row_floats;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_STSS_ROWS_H_
