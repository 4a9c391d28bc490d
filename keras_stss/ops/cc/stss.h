// CPU kernels of the spatio-temporal self-similarity and of its gradient.
#ifndef KERAS_STSS_STSS_H_
#define KERAS_STSS_STSS_H_

#include "dispatch.h"
#include "parallel.h"
#include "simd.h"
#include "stss_shape.h"

namespace keras_stss {

// features (B, T, H, W, C) -> volume (B, T, H, W, L, U, V), see StssShape. Sums in float32.
KERAS_STSS_FOR_EACH_ISA(bool StssForward(const StssShape& shape, DType dtype, const void* features, void* volume,
                                         const Parallel& parallel))

// The volume's gradient (B, T, H, W, L, U, V) -> the gradient (B, T, H, W, C) of the features, which take part in it
// both as the position compared and as the one that is compared with. Values that the gradient holds for positions
// outside the clip are ignored.
KERAS_STSS_FOR_EACH_ISA(bool StssBackward(const StssShape& shape, DType dtype, const void* features,
                                          const void* gradient, void* features_gradient, const Parallel& parallel))

}  // namespace keras_stss

#endif  // KERAS_STSS_STSS_H_
