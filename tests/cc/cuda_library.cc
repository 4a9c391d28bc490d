// The CUDA operations behind a plain C interface, for ctypes: on a GPU (compiled by nvcc) or on the host (by a C++
// compiler with KERAS_STSS_ON_HOST; see cuda_on_host.h). Returns cudaError_t.
#include <stddef.h>
#include <stdint.h>

#include "displacement_cuda.h"
#include "stss_cuda.h"

using keras_stss::StssShape;

namespace {

// sizes: batch, time, height, width, channels, offset_count, rows, columns, cosine
StssShape Shape(const int64_t* sizes, const int64_t* offsets) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], offsets, sizes[5], sizes[6], sizes[7], sizes[8] != 0};
}

}  // namespace

#define KERAS_STSS_EXPORT extern "C" __attribute__((visibility("default")))

KERAS_STSS_EXPORT size_t stss_forward_workspace(const int64_t* sizes, const int64_t* offsets, int dtype) {
  return keras_stss::StssForwardWorkspace(Shape(sizes, offsets), dtype);
}
KERAS_STSS_EXPORT int stss_forward(const int64_t* sizes, const int64_t* offsets, int dtype, const void* features,
                                   void* volume, void* workspace, void* stream) {
  return keras_stss::StssForwardCuda(Shape(sizes, offsets), dtype, features, volume, workspace,
                                     static_cast<cudaStream_t>(stream));
}
KERAS_STSS_EXPORT size_t stss_backward_workspace(const int64_t* sizes, const int64_t* offsets, int dtype) {
  return keras_stss::StssBackwardWorkspace(Shape(sizes, offsets), dtype);
}
KERAS_STSS_EXPORT int stss_backward(const int64_t* sizes, const int64_t* offsets, int dtype, const void* features,
                                    const void* gradient, void* features_gradient, void* workspace, void* stream) {
  return keras_stss::StssBackwardCuda(Shape(sizes, offsets), dtype, features, gradient, features_gradient, workspace,
                                      static_cast<cudaStream_t>(stream));
}

// settings: sigma, temperature
KERAS_STSS_EXPORT size_t displacement_forward_workspace(const int64_t* sizes, const int64_t* offsets, int dtype) {
  return keras_stss::DisplacementForwardWorkspace(Shape(sizes, offsets), dtype);
}
KERAS_STSS_EXPORT int displacement_forward(const int64_t* sizes, const int64_t* offsets, const float* settings,
                                           int dtype, const void* features, void* output, void* workspace,
                                           void* stream) {
  return keras_stss::DisplacementForwardCuda(Shape(sizes, offsets), settings[0], settings[1], dtype, features, output,
                                             workspace, static_cast<cudaStream_t>(stream));
}
KERAS_STSS_EXPORT size_t displacement_backward_workspace(const int64_t* sizes, const int64_t* offsets, int dtype) {
  return keras_stss::DisplacementBackwardWorkspace(Shape(sizes, offsets), dtype);
}
KERAS_STSS_EXPORT int displacement_backward(const int64_t* sizes, const int64_t* offsets, const float* settings,
                                            int dtype, const void* features, const void* gradient,
                                            void* features_gradient, void* workspace, void* stream) {
  return keras_stss::DisplacementBackwardCuda(Shape(sizes, offsets), settings[0], settings[1], dtype, features,
                                              gradient, features_gradient, workspace,
                                              static_cast<cudaStream_t>(stream));
}
