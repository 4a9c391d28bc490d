// Displacement and confidence squeezed from the self-similarity on a CUDA device; the volume is never in memory.
// No TensorFlow: buffers and the stream are the caller's.
#ifndef KERAS_STSS_DISPLACEMENT_CUDA_H_
#define KERAS_STSS_DISPLACEMENT_CUDA_H_

#include <stddef.h>

#ifdef KERAS_STSS_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "stss_shape.h"

namespace keras_stss {

// The operation that displacement.h defines; conventions as in stss_cuda.h. output and gradient:
// (batch, time, height, width, offset_count, 3). sigma: above zero, infinity means no kernel; temperature: above zero.
size_t DisplacementForwardWorkspace(const StssShape& shape, int dtype);
cudaError_t DisplacementForwardCuda(const StssShape& shape, float sigma, float temperature, int dtype,
                                    const void* features, void* output, void* workspace, cudaStream_t stream);

// Recomputes the similarities; keeps 32 bytes for each position and offset.
size_t DisplacementBackwardWorkspace(const StssShape& shape, int dtype);
cudaError_t DisplacementBackwardCuda(const StssShape& shape, float sigma, float temperature, int dtype,
                                     const void* features, const void* gradient, void* features_gradient,
                                     void* workspace, cudaStream_t stream);

}  // namespace keras_stss

#endif  // KERAS_STSS_DISPLACEMENT_CUDA_H_
