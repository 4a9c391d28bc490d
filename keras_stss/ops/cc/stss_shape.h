// Sizes and settings of one spatio-temporal self-similarity: all that a kernel has to know beside its buffers.
#ifndef KERAS_STSS_STSS_SHAPE_H_
#define KERAS_STSS_STSS_SHAPE_H_

#include <stdint.h>

namespace keras_stss {

// Added to the sum of squares under the root of the cosine's norm.
constexpr float kCosineEpsilon = 1e-6f;

// features (batch, time, height, width, channels) -> volume (batch, time, height, width, offset_count, rows, columns):
//   S[b,t,y,x,l,i,j] = <F[b,t,y,x], F[b, t + offsets[l], y + i - rows/2, x + j - columns/2]>,
// zero where the second position is outside the clip. Any size may be 0; rows and columns are odd. Offsets may be any
// numbers in frames, larger than the clip too.
struct StssShape {
  int64_t batch, time, height, width, channels;
  const int64_t* offsets;  // (offset_count), on the host
  int64_t offset_count, rows, columns;
  bool cosine;  // vectors are multiplied by 1 / sqrt(sum of squares + kCosineEpsilon)
};

}  // namespace keras_stss

#endif  // KERAS_STSS_STSS_SHAPE_H_
