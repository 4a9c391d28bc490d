// Displacement and confidence squeezed from the self-similarity, without ever holding it.
#ifndef KERAS_STSS_DISPLACEMENT_H_
#define KERAS_STSS_DISPLACEMENT_H_

#include <stdint.h>

#include "dispatch.h"
#include "parallel.h"
#include "simd.h"
#include "stss_shape.h"

namespace keras_stss {

// With s = max(S[b,t,y,x,l], 0), S as in stss_shape.h, and p* the place of its first maximum in the window:
//   weights = softmax over (i, j) of exp(-|(i, j) - p*|^2 / (2 sigma^2)) * s[i,j] / temperature
//   output[b,t,y,x,l] = (sum weights * (j - columns/2) / (columns/2), sum weights * (i - rows/2) / (rows/2), s[p*]),
// zero for a side of 1 and for frames t + offsets[l] outside the clip. An infinite sigma means no kernel.
struct Squeeze {
  float sigma, temperature;
};

// Both return false where there is no memory for scratch. features (batch, time, height, width, channels), output and
// gradient (batch, time, height, width, offset_count, 3). The scratch of the backward pass is float32, and as large as
// DisplacementBackwardScratch says, aligned to 64 bytes.
KERAS_STSS_FOR_EACH_ISA(bool DisplacementForward(const StssShape& shape, Squeeze squeeze, DType dtype,
                                                 const void* features, void* output, const Parallel& parallel))
KERAS_STSS_FOR_EACH_ISA(int64_t DisplacementBackwardScratch(const StssShape& shape))
KERAS_STSS_FOR_EACH_ISA(bool DisplacementBackward(const StssShape& shape, Squeeze squeeze, DType dtype,
                                                  const void* features, const void* gradient, void* features_gradient,
                                                  float* scratch, const Parallel& parallel))

}  // namespace keras_stss

#endif  // KERAS_STSS_DISPLACEMENT_H_
