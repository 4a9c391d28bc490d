// Arithmetic on the vectors of simd.h beyond what the compiler's operators give.
#ifndef KERAS_STSS_VECTOR_MATH_H_
#define KERAS_STSS_VECTOR_MATH_H_

#include "simd.h"

#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

namespace keras_stss {
namespace KERAS_STSS_ISA {

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef int32_t IntVecUnaligned __attribute__((vector_size(kLanes * sizeof(int32_t)), aligned(4), may_alias));

KERAS_STSS_INLINE IntVec LoadMask(const int32_t* from) { return *reinterpret_cast<const IntVecUnaligned*>(from); }
KERAS_STSS_INLINE Vec And(Vec value, IntVec mask) { return (Vec)((IntVec)value & mask); }

// value with lane i taken from lane i ^ distance.
template <int kDistance, typename Any>
KERAS_STSS_INLINE Any Swap(Any value) {
#if __has_builtin(__builtin_shufflevector) && defined(__AVX512F__)
  constexpr int d = kDistance;
  return __builtin_shufflevector(value, value, 0 ^ d, 1 ^ d, 2 ^ d, 3 ^ d, 4 ^ d, 5 ^ d, 6 ^ d, 7 ^ d, 8 ^ d, 9 ^ d,
                                 10 ^ d, 11 ^ d, 12 ^ d, 13 ^ d, 14 ^ d, 15 ^ d);
#elif __has_builtin(__builtin_shufflevector) && defined(__AVX2__)
  constexpr int d = kDistance;
  return __builtin_shufflevector(value, value, 0 ^ d, 1 ^ d, 2 ^ d, 3 ^ d, 4 ^ d, 5 ^ d, 6 ^ d, 7 ^ d);
#else
  Any swapped;
  for (int i = 0; i < kLanes; ++i) swapped[i] = value[i ^ kDistance];
  return swapped;
#endif
}

// The lanes joined in pairs: the order is fixed, so the result is too.
template <typename Any, typename Join>
KERAS_STSS_INLINE Any Reduce(Any value, const Join& join) {
  if (kLanes > 8) value = join(value, Swap<8 % kLanes>(value));
  if (kLanes > 4) value = join(value, Swap<4 % kLanes>(value));
  value = join(value, Swap<2>(value));
  return join(value, Swap<1>(value));
}

KERAS_STSS_INLINE float Sum(Vec value) {
  return Reduce(value, [](Vec a, Vec b) { return a + b; })[0];
}
KERAS_STSS_INLINE float Largest(Vec value) {
  return Reduce(value, [](Vec a, Vec b) { return a > b ? a : b; })[0];
}
KERAS_STSS_INLINE int32_t Smallest(IntVec value) {
  return Reduce(value, [](IntVec a, IntVec b) { return a < b ? a : b; })[0];
}

// exp(x) for x <= 0, within 2 units in the last place; 0 below -86; a NaN stays one. 2^n exp(r), |r| <= log(2) / 2.
KERAS_STSS_INLINE Vec Exp(Vec x) {
  const Vec magic = Broadcast(12582912.0f);  // 1.5 * 2^23: what is added to it ends up rounded, in its lowest bits
  const Vec shifted = MultiplyAdd(x, Broadcast(1.44269504088896341f), magic);
  const Vec n = shifted - magic;
  Vec r = MultiplyAdd(n, Broadcast(-0.693359375f), x);  // log(2) in two parts, the first one short
  r = MultiplyAdd(n, Broadcast(2.1219444005e-4f), r);
  // (exp(r) - 1 - r) / r^2, the least relative error of exp(r) that degree 4 can have.
  Vec q = Broadcast(0.0013813880505040288f);
  q = MultiplyAdd(q, r, Broadcast(0.008369063027203083f));
  q = MultiplyAdd(q, r, Broadcast(0.041668422520160675f));
  q = MultiplyAdd(q, r, Broadcast(0.166665181517601f));
  q = MultiplyAdd(q, r, Broadcast(0.4999999403953552f));
  const Vec p = MultiplyAdd(r * r, q, r) + 1.0f;
  const Vec scaled = (Vec)((IntVec)p + ((IntVec)shifted << 23));
  return x >= Broadcast(-86.0f) ? scaled : x * 0.0f;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_VECTOR_MATH_H_
