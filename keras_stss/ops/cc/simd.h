// Vectors of the width that a file is compiled for.
//
// Files named *_cpu.cc are compiled once for each instruction set (see build.py), with KERAS_STSS_ISA naming the
// namespace: plain, avx2 or avx512. They must define nothing that the linker may merge with another file's copy (no
// standard containers, algorithms or streams, no inline functions with external linkage): it could keep the AVX-512 one
// for all. Everything here is therefore static and always inlined.
#ifndef KERAS_STSS_SIMD_H_
#define KERAS_STSS_SIMD_H_

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define KERAS_STSS_INLINE static inline __attribute__((always_inline))

namespace keras_stss {

// How features, volumes and their gradients are stored; arithmetic is in float32.
enum class DType : int32_t { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

KERAS_STSS_INLINE int64_t SizeOf(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

namespace KERAS_STSS_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float VecUnaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

KERAS_STSS_INLINE Vec Load(const float* from) { return *reinterpret_cast<const VecUnaligned*>(from); }
KERAS_STSS_INLINE void Store(float* to, Vec value) { *reinterpret_cast<VecUnaligned*>(to) = value; }
// Minus zero, which compilers leave out; plus zero would turn -0 into 0 and so costs an addition.
KERAS_STSS_INLINE Vec Broadcast(float value) { return value - Vec{}; }

// Contracted to one fused multiply-add where the instruction set has it (-ffp-contract=fast).
KERAS_STSS_INLINE Vec MultiplyAdd(Vec a, Vec b, Vec c) { return a * b + c; }

KERAS_STSS_INLINE float BFloat16ToFloat(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}

// Rounds to nearest, ties to even; a NaN stays one.
KERAS_STSS_INLINE uint16_t FloatToBFloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

KERAS_STSS_INLINE float Float16ToFloat(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, rest = half & 0x7fffu, bits;
  if (rest >= 0x7c00u) {  // infinity, NaN
    bits = sign | 0x7f800000u | ((rest & 0x3ffu) << 13);
  } else if (rest >= 0x400u) {
    bits = sign | ((rest << 13) + 0x38000000u);
  } else {  // zero, subnormal: rest * 2**-24
    float value = static_cast<float>(rest) * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
#endif
}

// Rounds to nearest, ties to even; overflows to infinity; a NaN stays one.
KERAS_STSS_INLINE uint16_t FloatToFloat16(float value) {
#if defined(__F16C__)
  return _cvtss_sh(value, 0);
#else
  uint32_t bits;
  memcpy(&bits, &value, 4);
  uint32_t sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (rest < 0x38800000u) {  // subnormal: adding 0.5 leaves units of 2**-24 in the low bits, rounded
    float shifted;
    memcpy(&shifted, &rest, 4);
    shifted += 0.5f;
    memcpy(&rest, &shifted, 4);
    return static_cast<uint16_t>(sign | (rest - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13));
#endif
}

KERAS_STSS_INLINE float ReadOne(const void* from, int64_t index, DType dtype) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(from)[index];
  uint16_t bits = static_cast<const uint16_t*>(from)[index];
  return dtype == DType::kFloat16 ? Float16ToFloat(bits) : BFloat16ToFloat(bits);
}

KERAS_STSS_INLINE void WriteOne(void* to, int64_t index, DType dtype, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(to)[index] = value;
  } else {
    static_cast<uint16_t*>(to)[index] = dtype == DType::kFloat16 ? FloatToFloat16(value) : FloatToBFloat16(value);
  }
}

// count values of a stored tensor, from its element `first` on, as float32.
KERAS_STSS_INLINE void Widen(const void* from, int64_t first, int64_t count, DType dtype, float* to) {
  if (dtype == DType::kFloat32) {
    memcpy(to, static_cast<const float*>(from) + first, count * sizeof(float));
    return;
  }
  const uint16_t* half = static_cast<const uint16_t*>(from) + first;
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) to[i] = BFloat16ToFloat(half[i]);
    return;
  }
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)  // maskz: GCC 12 warns about the plain form
    _mm512_storeu_ps(to + i, _mm512_maskz_cvtph_ps(
                                 0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
#endif
  for (; i < count; ++i) to[i] = Float16ToFloat(half[i]);
}

// The reverse, rounding to nearest.
KERAS_STSS_INLINE void Narrow(const float* from, int64_t count, DType dtype, void* to, int64_t first) {
  if (dtype == DType::kFloat32) {
    memcpy(static_cast<float*>(to) + first, from, count * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(to) + first;
  if (dtype == DType::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) half[i] = FloatToBFloat16(from[i]);
    return;
  }
  int64_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(half + i), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(from + i), 0));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
  for (; i < count; ++i) half[i] = FloatToFloat16(from[i]);
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_SIMD_H_
