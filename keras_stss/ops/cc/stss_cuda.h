// Spatio-temporal self-similarity on a CUDA device. No TensorFlow: buffers and the stream are the caller's.
#ifndef KERAS_STSS_STSS_CUDA_H_
#define KERAS_STSS_STSS_CUDA_H_

#include <stddef.h>

#ifdef KERAS_STSS_ON_HOST
#include "cuda_on_host.h"
#else
#include <cuda_runtime_api.h>
#endif

#include "stss_shape.h"

namespace keras_stss {

// dtype: 0 float32, 1 float16, 2 bfloat16; arithmetic is in float32 (see cuda_tiles.cuh). Buffers are on the device,
// rows of channels first; shape.offsets is on the host and holds at most 64. workspace: as many bytes as the function
// before it says (may be null where that is 0). Returns what a launch returned; the work itself is asynchronous.
size_t StssForwardWorkspace(const StssShape& shape, int dtype);
cudaError_t StssForwardCuda(const StssShape& shape, int dtype, const void* features, void* volume, void* workspace,
                            cudaStream_t stream);

// gradient: of the volume; features_gradient: written, every element. No atomics: the result does not change from run
// to run.
size_t StssBackwardWorkspace(const StssShape& shape, int dtype);
cudaError_t StssBackwardCuda(const StssShape& shape, int dtype, const void* features, const void* gradient,
                             void* features_gradient, void* workspace, cudaStream_t stream);

}  // namespace keras_stss

#endif  // KERAS_STSS_STSS_CUDA_H_
