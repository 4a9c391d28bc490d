// The few device instructions that the kernels use, one function each.
//
// Compiled by nvcc these are the instructions themselves. Compiled by a host compiler with KERAS_STSS_ON_HOST, the same
// names come from cuda_on_host.h (in tests/cc), which runs a block's threads as coroutines: so the very same kernel
// source is checked where there is no GPU.
#ifndef KERAS_STSS_CUDA_DEVICE_CUH_
#define KERAS_STSS_CUDA_DEVICE_CUH_

#ifdef KERAS_STSS_ON_HOST
#include "cuda_on_host.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

// The block's dynamic shared memory.
#define KERAS_STSS_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace keras_stss {
namespace gpu {

// Copies 16 bytes from global to shared memory without waiting, or writes zeros there if not `valid` (`from` must then
// still be an address of global memory; it is not read).
__device__ __forceinline__ void CopyAsync16(void* to, const void* from, bool valid) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until all but the `pending` latest groups of this thread's copies have arrived.
template <int pending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(pending) : "memory");
}

// Four matrices of 8 rows of 16 bytes: lane 8 m + r gives the address of row r of matrix m; each lane receives the
// 32-bit word lane % 4 of row lane / 4 of every matrix.
__device__ __forceinline__ void LoadMatrices(uint32_t (&words)[4], const void* row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared)
               : "memory");
}

// The same for transposed 8 by 8 matrices of 16-bit elements: each lane receives the elements (2 (lane % 4), lane / 4)
// and (2 (lane % 4) + 1, lane / 4).
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&words)[4], const void* row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared)
               : "memory");
}

// c += a b on the tensor cores, for tiles of 16 rows and 8 columns, over 16 half-precision or 8 tf32 elements; with
// g = lane / 4 and t = lane % 4, c holds rows g and g + 8, columns 2 t and 2 t + 1.
__device__ __forceinline__ void MultiplyHalf(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void MultiplyHalf(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void MultiplyTf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Rounds to the 11 significant bits of tf32 (nearest).
__device__ __forceinline__ uint32_t RoundTf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}

// kernel<<<grid, block, shared, stream>>>(arguments...), allowing as much dynamic shared memory as asked for.
template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int64_t grid, int block, size_t shared, cudaStream_t stream,
                   const Arguments&... arguments) {
  if (shared > 48 * 1024) {
    const cudaError_t allowed =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (allowed != cudaSuccess) return allowed;
  }
  kernel<<<static_cast<unsigned>(grid), block, shared, stream>>>(arguments...);
  return cudaGetLastError();
}

}  // namespace gpu
}  // namespace keras_stss

#endif  // KERAS_STSS_ON_HOST
#endif  // KERAS_STSS_CUDA_DEVICE_CUH_
