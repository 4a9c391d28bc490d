// What Python asks the loaded library about itself.
#include "dispatch.h"

#ifdef KERAS_STSS_CUDA
#include <cuda_runtime_api.h>
#endif

#define KERAS_STSS_EXPORT extern "C" __attribute__((visibility("default")))

// The instruction set of the CPU kernels that run here.
KERAS_STSS_EXPORT const char* KerasStssInstructionSet() {
  switch (keras_stss::BestIsa()) {
    case keras_stss::Isa::kAvx512:
      return "avx512";
    case keras_stss::Isa::kAvx2:
      return "avx2";
    default:
      return "plain";
  }
}

// Whether CUDA kernels cannot start because the driver is older than the runtime they are linked with. Drivers serve
// every runtime of their own major version.
KERAS_STSS_EXPORT int KerasStssDriverTooOld() {
#ifdef KERAS_STSS_CUDA
  int driver = 0, runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess) return 1;
  return driver / 1000 < runtime / 1000;
#else
  return 0;
#endif
}
