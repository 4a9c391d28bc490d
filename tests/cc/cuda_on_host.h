// Runs CUDA kernels on the host, thread by thread, so that they can be checked where there is no GPU.
//
// Compiling a .cu file as C++ with KERAS_STSS_ON_HOST makes its kernels ordinary functions. A launch runs one block
// after another; the threads of a block are coroutines that run until they reach a barrier or an instruction that a warp
// executes together. What the GPU would leave to chance is made to fail or to show:
//   - a run may order threads and blocks in any way (KERAS_STSS_ORDER=0: warps in step, as numbered; 1: each warp as far
//     ahead of the others as it can get, the last first; more: the same, shuffled with that seed), and a block may get
//     the work of many (KERAS_STSS_GRID: how many blocks there are at most); a missing barrier shows in the results;
//   - shared memory starts as NaN and is exactly as large as asked for (the address sanitizer sees the rest);
//   - asynchronous copies arrive only when they are waited for;
//   - a barrier or warp instruction that not all threads reach stops the program, and so does a misaligned address.
// Matrix products round every partial sum towards zero, as tensor cores may.
#ifndef KERAS_STSS_CUDA_ON_HOST_H_
#define KERAS_STSS_CUDA_ON_HOST_H_

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9;
using std::max;
using std::min;

struct uint4 {
  uint32_t x, y, z, w;
};

// Half precision, stored as its bits -----------------------------------------------------------------------------------

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline float __bfloat162float(__nv_bfloat16 value) { return __uint_as_float(static_cast<uint32_t>(value.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
inline float __half2float(__half value) {
  const int exponent = (value.bits >> 10) & 31, fraction = value.bits & 1023;
  const float sign = value.bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexpf(1024.0f + fraction, exponent - 25) : ldexpf(fraction, -24));
}
inline __half __float2half_rn(float value) {
  const uint16_t sign = __float_as_uint(value) >> 16 & 0x8000;
  const float size = fabsf(value);
  if (value != value) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent = -14;
  if (size >= ldexpf(1.0f, -14)) exponent = ilogbf(size);
  const int units = static_cast<int>(nearbyintf(ldexpf(size, 10 - exponent)));  // 11 bits; a carry moves the exponent
  return {static_cast<uint16_t>(sign | (units + ((exponent + 14) << 10)))};
}
inline float rsqrtf(float value) { return static_cast<float>(1.0 / sqrt(static_cast<double>(value))); }

// Threads --------------------------------------------------------------------------------------------------------------

namespace cuda_on_host {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

[[noreturn]] inline void Fail(const char* what) {
  fprintf(stderr, "cuda_on_host: %s\n", what);
  abort();
}

// What a lane contributes to an instruction of its warp.
struct Deposit {
  const void* address = nullptr;
  uint32_t a[4] = {}, b[2] = {};
  float value = 0;
  int instruction = 0;
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
  int group;
};

enum class State { kReady, kWarp, kBlock, kDone };

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
// Saves the registers that a call keeps, and the stack pointer; some forty times faster than swapcontext.
extern "C" void KerasStssSwitch(void** save, void* load);
asm(R"(
.text
.weak KerasStssSwitch
KerasStssSwitch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
struct Context {
  void* stack = nullptr;
  void Start(char* memory, size_t size, void (*entry)()) {
    uintptr_t* top = reinterpret_cast<uintptr_t*>(reinterpret_cast<uintptr_t>(memory + size) / 16 * 16);
    *--top = 0;  // the stack as after a call: its pointer is 8 beyond a multiple of 16
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < 6; ++i) *--top = 0;
    stack = top;
  }
  static void Switch(Context* from, Context* to) { KerasStssSwitch(&from->stack, to->stack); }
};
#else
struct Context {
  ucontext_t context;
  void Start(char* memory, size_t size, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = memory;
    context.uc_stack.ss_size = size;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  static void Switch(Context* from, Context* to) { swapcontext(&from->context, &to->context); }
};
#endif

struct Thread {
  Context context;
  std::vector<char> stack;
  State state = State::kReady;
  int instructions = 0, barriers = 0, committed = 0;  // how many it has reached
  std::vector<Copy> copies;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Deposit> deposits[2];
  std::vector<int> at_barrier;  // how many threads have reached the n-th barrier, n modulo 2
  Context scheduler;
  std::function<void()> kernel;
  unsigned char* shared = nullptr;
  int current = 0;
};

inline Block* block = nullptr;

inline Thread& Current() { return block->threads[block->current]; }

inline void Wait(State state) {
  Current().state = state;
  Context::Switch(&Current().context, &block->scheduler);
}

// Gives this lane's deposit and returns those of all lanes of the warp.
inline const Deposit* Exchange(const Deposit& mine) {
  Thread& thread = Current();
  std::vector<Deposit>& deposits = block->deposits[thread.instructions++ % 2];
  deposits[block->current] = mine;
  Wait(State::kWarp);
  const Deposit* all = &deposits[block->current / 32 * 32];
  for (int lane = 0; lane < 32; ++lane)
    if (all[lane].instruction != mine.instruction) Fail("the lanes of a warp are at different instructions");
  return all;
}

inline void Entry() {
  block->kernel();
  if (!Current().copies.empty()) Fail("a thread ended with asynchronous copies that it did not wait for");
  Wait(State::kDone);
}

inline bool CanRun(int number) {
  const Thread& thread = block->threads[number];
  if (thread.state == State::kReady) return true;
  if (thread.state == State::kDone) return false;
  const bool warp = thread.state == State::kWarp;
  const int first = warp ? number / 32 * 32 : 0, last = warp ? first + 32 : static_cast<int>(block->threads.size());
  for (int other = first; other < last; ++other) {
    const Thread& its = block->threads[other];
    if (warp ? its.instructions < thread.instructions : its.barriers < thread.barriers) return false;
  }
  return true;
}

inline int Setting(const char* name, int otherwise) {
  const char* asked = getenv(name);
  return asked ? atoi(asked) : otherwise;
}

// Order of blocks or, with groups, of threads by warps; from KERAS_STSS_ORDER.
inline std::vector<int> Order(int count, int group) {
  const int mode = Setting("KERAS_STSS_ORDER", 0);
  std::mt19937 random(mode);
  const auto arranged = [&](int size) {
    std::vector<int> order(size);
    for (int i = 0; i < size; ++i) order[i] = mode == 1 ? size - 1 - i : i;
    if (mode > 1) std::shuffle(order.begin(), order.end(), random);
    return order;
  };
  std::vector<int> order;
  for (int outer : arranged(count / group))
    for (int inner : arranged(group)) order.push_back(outer * group + inner);
  return order;
}

inline void RunBlock(const std::vector<int>& order) {
  for (Thread& thread : block->threads) {
    thread.state = State::kReady;
    thread.instructions = thread.barriers = thread.committed = 0;
    thread.context.Start(thread.stack.data(), thread.stack.size(), Entry);
  }
  const auto run = [&](size_t from, size_t to) {
    bool progress = false;
    for (size_t i = from; i < to; ++i) {
      if (!CanRun(order[i])) continue;
      progress = true;
      block->current = order[i];
      block->threads[order[i]].state = State::kReady;
      Context::Switch(&block->scheduler, &block->threads[order[i]].context);
    }
    return progress;
  };
  for (bool progress = true; progress;) {
    progress = false;
    const size_t together = Setting("KERAS_STSS_ORDER", 0) ? 32 : order.size();
    for (size_t first = 0; first < order.size(); first += together)
      while (run(first, first + together)) progress = true;
  }
  for (const Thread& thread : block->threads)
    if (thread.state != State::kDone) Fail("a barrier or warp instruction that not all threads reach");
}

struct ThreadIndex {
  struct X {
    operator unsigned() const { return block->current; }
  } x;
};
inline ThreadIndex thread_index;
inline Index block_index, grid_size;

inline float TowardsZero(double value) {
  const float rounded = static_cast<float>(value);
  return fabs(static_cast<double>(rounded)) > fabs(value) ? nextafterf(rounded, 0.0f) : rounded;
}

// c += a b of a 16 by `depth` and a `depth` by 8 matrix; element(word, index) is an element of a word.
template <int per_word, typename Element>
void MultiplyFragments(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int instruction,
                       const Element& element) {
  Deposit mine;
  mine.instruction = instruction;
  memcpy(mine.a, a, sizeof(a));
  mine.b[0] = b0, mine.b[1] = b1;
  const Deposit* all = Exchange(mine);
  const int lane = block->current % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4, lower = i / 2, column = 2 * (lane % 4) + i % 2;
    double sum = c[i];
    for (int right = 0; right < 2; ++right)  // the left and right four words along the summed index
      for (int word = 0; word < 4; ++word)
        for (int part = 0; part < per_word; ++part)
          sum += static_cast<double>(element(all[row * 4 + word].a[2 * right + lower], part)) *
                 element(all[column * 4 + word].b[right], part);
    c[i] = TowardsZero(sum);
  }
}

}  // namespace cuda_on_host

#define threadIdx cuda_on_host::thread_index
#define blockIdx cuda_on_host::block_index
#define gridDim cuda_on_host::grid_size
#define KERAS_STSS_SHARED(name) unsigned char* const name = cuda_on_host::block->shared

inline void __syncthreads() {
  ++cuda_on_host::Current().barriers;
  cuda_on_host::Wait(cuda_on_host::State::kBlock);
}

inline void __syncwarp() {
  cuda_on_host::Deposit mine;
  mine.instruction = 6;
  cuda_on_host::Exchange(mine);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4, "32-bit values");
  cuda_on_host::Deposit mine;
  mine.instruction = 1;
  memcpy(&mine.value, &value, 4);
  memcpy(&value, &cuda_on_host::Exchange(mine)[(cuda_on_host::block->current ^ mask) % 32].value, 4);
  return value;
}

// The instructions of cuda_device.cuh ----------------------------------------------------------------------------------

namespace keras_stss {
namespace gpu {

inline void CopyAsync16(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || (valid && reinterpret_cast<uintptr_t>(from) % 16))
    cuda_on_host::Fail("an asynchronous copy from or to a misaligned address");
  cuda_on_host::Current().copies.push_back({to, from, valid, cuda_on_host::Current().committed});
}

inline void CopyAsyncCommit() { ++cuda_on_host::Current().committed; }

template <int pending>
void CopyAsyncWait() {
  cuda_on_host::Thread& thread = cuda_on_host::Current();
  const auto arrives = [&](const cuda_on_host::Copy& copy) { return copy.group < thread.committed - pending; };
  for (const cuda_on_host::Copy& copy : thread.copies) {
    if (!arrives(copy)) continue;
    if (copy.valid)
      memcpy(copy.to, copy.from, 16);
    else
      memset(copy.to, 0, 16);
  }
  thread.copies.erase(std::remove_if(thread.copies.begin(), thread.copies.end(), arrives), thread.copies.end());
}

inline const cuda_on_host::Deposit* ExchangeRows(const void* row, int instruction) {
  if (reinterpret_cast<uintptr_t>(row) % 16) cuda_on_host::Fail("a matrix row at a misaligned address");
  cuda_on_host::Deposit mine;
  mine.instruction = instruction;
  mine.address = row;
  return cuda_on_host::Exchange(mine);
}

inline void LoadMatrices(uint32_t (&words)[4], const void* row) {
  const cuda_on_host::Deposit* all = ExchangeRows(row, 2);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i)
    memcpy(&words[i], static_cast<const char*>(all[8 * i + lane / 4].address) + 4 * (lane % 4), 4);
}

inline void LoadMatricesTransposed(uint32_t (&words)[4], const void* row) {
  const cuda_on_host::Deposit* all = ExchangeRows(row, 3);
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j)
      memcpy(&pair[j], static_cast<const char*>(all[8 * i + 2 * (lane % 4) + j].address) + 2 * (lane / 4), 2);
    words[i] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

inline void MultiplyHalf(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  cuda_on_host::MultiplyFragments<2>(c, a, b0, b1, 4, [](uint32_t word, int part) {
    return __half2float(__half{static_cast<uint16_t>(word >> (16 * part))});
  });
}

inline void MultiplyHalf(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  cuda_on_host::MultiplyFragments<2>(c, a, b0, b1, 4, [](uint32_t word, int part) {
    return __bfloat162float(__nv_bfloat16{static_cast<uint16_t>(word >> (16 * part))});
  });
}

// The hardware ignores the 13 low bits; here they must have been rounded away.
inline void MultiplyTf32(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  cuda_on_host::MultiplyFragments<1>(c, a, b0, b1, 5, [](uint32_t word, int) {
    const float value = __uint_as_float(word);
    if ((word & 0x1fff) && value == value) cuda_on_host::Fail("an operand that was not rounded to tf32");
    return value;
  });
}

inline uint32_t RoundTf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7f800000) == 0x7f800000) return value == value ? bits : 0x7fffffff;
  return (bits + 0x1000) & ~0x1fffu;  // nearest, ties away from zero
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), int64_t grid, int size, size_t shared, cudaStream_t,
                   const Arguments&... arguments) {
  if (grid < 1 || grid > 0x7fffffff || size % 32) return cudaErrorInvalidConfiguration;
  if (shared > 99 * 1024) return cudaErrorInvalidValue;  // what every GPU since 2020 has
  static std::vector<cuda_on_host::Thread> threads;      // their stacks are kept from launch to launch
  cuda_on_host::Block block;
  block.threads.swap(threads);
  block.threads.resize(size);
  for (cuda_on_host::Thread& thread : block.threads) thread.stack.resize(64 << 10);
  for (auto& deposits : block.deposits) deposits.resize(size);
  block.kernel = [&] { kernel(arguments...); };
  cuda_on_host::block = &block;
  grid = min(grid, static_cast<int64_t>(cuda_on_host::Setting("KERAS_STSS_GRID", 0x7fffffff)));
  cuda_on_host::grid_size.x = static_cast<unsigned>(grid);
  const std::vector<int> order = cuda_on_host::Order(size, 32);
  for (int number : cuda_on_host::Order(static_cast<int>(grid), 1)) {
    block.shared = static_cast<unsigned char*>(malloc(shared + 1));
    memset(block.shared, 0xff, shared);
    cuda_on_host::block_index.x = static_cast<unsigned>(number);
    cuda_on_host::RunBlock(order);
    free(block.shared);
  }
  cuda_on_host::block = nullptr;
  block.threads.swap(threads);
  return cudaSuccess;
}

}  // namespace gpu
}  // namespace keras_stss

#endif  // KERAS_STSS_CUDA_ON_HOST_H_
