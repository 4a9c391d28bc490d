// Convolutions over very many tiny maps: every lane of a vector is a map of its own.
//
// A similarity volume holds one small window per position and offset: thousands of maps of a few pixels and channels.
// With a map in each lane a convolution of whatever size, stride and channel count is one broadcast weight times full
// vectors, and taps that fall on the padding are not computed at all. Between two layers the maps stay in this packed
// form: (blocks, rows, columns, channels, kMapLanes) of float32, blocks = ceil(maps / kMapLanes); what the lanes past
// the last map hold is finite where the numbers are, and reaches no other lane.
#ifndef KERAS_STSS_MAP_CONV_H_
#define KERAS_STSS_MAP_CONV_H_

#include <stdint.h>

#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace keras_stss {

// Maps of a block: three vectors of AVX-512, six of AVX2. The same for all instruction sets, as tensors depend on it.
constexpr int64_t kMapLanes = 48;

// Convolutions of a stack, at most.
constexpr int64_t kMostMapLayers = 16;

// One convolution: maps of (rows, columns, channels) with a kernel (kernel_rows, kernel_columns, channels, filters),
// padded by pad_* zeros on both sides alike, give (out_rows, out_columns, filters).
struct MapConvLayer {
  int64_t rows, columns, channels;
  int64_t kernel_rows, kernel_columns, filters;
  int64_t stride_rows, stride_columns, pad_rows, pad_columns;
  int64_t out_rows, out_columns;
};

// What comes before the convolution, per input channel: ReLU(x * scale + shift). Null: nothing does.
struct MapActivation {
  const float *scale, *shift;
};

// The gradient through y's mean and variance per filter; null: y had no statistics taken.
struct MapStatisticsGradient {
  const float *mean, *d_mean, *d_variance;
};

// All functions return false where memory is out; what they write is then undefined.

// (maps, cells) of dtype → (blocks, cells, kMapLanes).
KERAS_STSS_FOR_EACH_ISA(bool MapPack(int64_t maps, int64_t cells, DType dtype, const void* input, float* packed,
                                     const Parallel& parallel))

// The reverse.
KERAS_STSS_FOR_EACH_ISA(bool MapUnpack(int64_t maps, int64_t cells, const float* packed, DType dtype, void* output,
                                       const Parallel& parallel))

// Inference: (maps, rows·columns·channels) of dtype through `count` convolutions, each with a shift per filter and
// ReLU, to (maps, out_rows·out_columns·filters) of dtype. Nothing between them is written to memory.
KERAS_STSS_FOR_EACH_ISA(bool MapConvStack(const MapConvLayer* layers, int64_t count, int64_t maps, DType dtype,
                                          const void* input, const float* const* kernels, const float* const* shifts,
                                          void* output, const Parallel& parallel))

// Training: y = convolution of the activated x, both packed; mean and biased variance of y per filter over all maps and
// positions (zero where there are none), unless mean is null.
KERAS_STSS_FOR_EACH_ISA(bool MapConv(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation,
                                     const float* kernel, float* y, float* mean, float* variance,
                                     const Parallel& parallel))

// d_scale and d_shift are written only where there is an activation.
KERAS_STSS_FOR_EACH_ISA(bool MapConvGrad(const MapConvLayer& layer, int64_t maps, const float* x,
                                         MapActivation activation, const float* kernel, const float* y,
                                         const float* d_y, MapStatisticsGradient statistics, float* d_x, float* d_scale,
                                         float* d_shift, float* d_kernel, const Parallel& parallel))

// (blocks, positions, channels, kMapLanes) → ReLU(y * scale + shift) as (maps, positions·channels) of dtype.
KERAS_STSS_FOR_EACH_ISA(bool MapFinish(int64_t maps, int64_t positions, int64_t channels, const float* y,
                                       MapActivation activation, DType dtype, void* output, const Parallel& parallel))

KERAS_STSS_FOR_EACH_ISA(bool MapFinishGrad(int64_t maps, int64_t positions, int64_t channels, const float* y,
                                           MapActivation activation, DType dtype, const void* gradient, float* d_y,
                                           float* d_scale, float* d_shift, const Parallel& parallel))

}  // namespace keras_stss

#endif  // KERAS_STSS_MAP_CONV_H_
