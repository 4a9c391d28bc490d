// Runs the CPU kernels of the displacement operation on buffers of exactly the right size, in several orders and on
// several threads, and wants the same bytes each time; and nearly the same numbers on every instruction set. Built with a sanitizer by tests/test_motion_squeeze.py.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "displacement.h"

namespace {

using namespace keras_stss;

struct Kernels {
  const char* name;
  bool (*forward)(const StssShape&, Squeeze, DType, const void*, void*, const Parallel&);
  int64_t (*scratch)(const StssShape&);
  bool (*backward)(const StssShape&, Squeeze, DType, const void*, const void*, void*, float*, const Parallel&);
};

// The plain ones, and those of every instruction set that this processor has.
std::vector<Kernels> AllKernels() {
  std::vector<Kernels> all = {
      {"plain", &plain::DisplacementForward, &plain::DisplacementBackwardScratch, &plain::DisplacementBackward}};
#if defined(__x86_64__)
  if (BestIsa() != Isa::kPlain)
    all.push_back({"avx2", &avx2::DisplacementForward, &avx2::DisplacementBackwardScratch, &avx2::DisplacementBackward});
  if (BestIsa() == Isa::kAvx512)
    all.push_back({"avx512", &avx512::DisplacementForward, &avx512::DisplacementBackwardScratch,
                   &avx512::DisplacementBackward});
#endif
  return all;
}

// One unit at a time, the last one first.
void Reversed(void*, int64_t units, int64_t, Parallel::Body body, void* argument) {
  for (int64_t unit = units; unit-- > 0;) body(argument, unit, unit + 1);
}

// Three threads, each with every third pair of units.
void Threaded(void*, int64_t units, int64_t, Parallel::Body body, void* argument) {
  std::vector<std::thread> threads;
  for (int64_t which = 0; which < 3; ++which) {
    threads.emplace_back([=] {
      for (int64_t unit = 2 * which; unit < units; unit += 6) body(argument, unit, std::min(unit + 2, units));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

struct Free {
  void operator()(void* memory) const { free(memory); }
};
using Bytes = std::unique_ptr<char, Free>;

Bytes Allocate(int64_t bytes, int fill) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes > 0 ? bytes : 1)) abort();
  memset(memory, fill, bytes);
  return Bytes(static_cast<char*>(memory));
}

// Small numbers from a seed, as float32 or bfloat16.
Bytes Numbers(int64_t count, DType dtype, uint32_t seed) {
  Bytes bytes = Allocate(count * SizeOf(dtype), 0);
  for (int64_t i = 0; i < count; ++i) {
    seed = seed * 1664525u + 1013904223u;
    const float value = static_cast<float>(static_cast<int32_t>(seed) >> 16) / 16384.0f;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (dtype == DType::kFloat32) {
      memcpy(bytes.get() + 4 * i, &value, 4);
    } else {
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      memcpy(bytes.get() + 2 * i, &half, 2);
    }
  }
  return bytes;
}

float At(const Bytes& bytes, int64_t index, DType dtype) {
  uint32_t bits = 0;
  if (dtype == DType::kFloat32) {
    memcpy(&bits, bytes.get() + 4 * index, 4);
  } else {
    memcpy(reinterpret_cast<char*>(&bits) + 2, bytes.get() + 2 * index, 2);
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Whether all numbers are the same but for rounding, relative to the largest; NaN, which nobody writes, is not.
bool Near(const Bytes& found, const Bytes& expected, int64_t count, DType dtype) {
  float largest = 1.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(At(expected, i, dtype)));
  const float tolerance = largest * (dtype == DType::kFloat32 ? 2e-5f : 8e-3f);
  for (int64_t i = 0; i < count; ++i)
    if (!(std::fabs(At(found, i, dtype) - At(expected, i, dtype)) <= tolerance)) return false;
  return true;
}

int Check(int64_t batch, int64_t time, int64_t height, int64_t width, int64_t channels, std::vector<int64_t> offsets,
          int64_t rows, int64_t columns, bool cosine, DType dtype) {
  const StssShape shape{batch,          time, height,  width, channels,
                        offsets.data(), static_cast<int64_t>(offsets.size()), rows, columns, cosine};
  const Squeeze squeeze{rows > 7 ? INFINITY : 2.0f, 0.25f};
  const int64_t positions = batch * time * height * width, size = SizeOf(dtype);
  const int64_t inputs = positions * channels, outputs = positions * shape.offset_count * 3;
  const Bytes features = Numbers(inputs, dtype, 1), gradient = Numbers(outputs, dtype, 2);
  const Parallel orders[] = {Serial(), {nullptr, &Reversed}, {nullptr, &Threaded}};
  Bytes plain_output, plain_result;
  for (const Kernels& kernels : AllKernels()) {
    Bytes first_output, first_result;
    for (const Parallel& parallel : orders) {
      Bytes output = Allocate(outputs * size, 0xff), result = Allocate(inputs * size, 0xff);
      const Bytes scratch = Allocate(kernels.scratch(shape) * 4, 0xff);
      if (!kernels.forward(shape, squeeze, dtype, features.get(), output.get(), parallel)) return 1;
      if (!kernels.backward(shape, squeeze, dtype, features.get(), gradient.get(), result.get(),
                            reinterpret_cast<float*>(scratch.get()), parallel))
        return 1;
      if (!first_output) {
        first_output = std::move(output);
        first_result = std::move(result);
      } else if (memcmp(output.get(), first_output.get(), outputs * size) ||
                 memcmp(result.get(), first_result.get(), inputs * size)) {
        printf("%s: the order of work makes a difference\n", kernels.name);
        return 1;
      }
    }
    if (!plain_output) {
      plain_output = std::move(first_output);
      plain_result = std::move(first_result);
    } else if (!Near(first_output, plain_output, outputs, dtype) || !Near(first_result, plain_result, inputs, dtype)) {
      printf("%s: other numbers than the plain kernels\n", kernels.name);
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main() {
  const DType f32 = DType::kFloat32, b16 = DType::kBFloat16;
  const int failures = Check(1, 3, 18, 5, 17, {1}, 5, 7, true, f32) + Check(2, 1, 3, 4, 3, {1, 0}, 3, 3, true, f32) +
                       Check(1, 4, 5, 6, 3, {-1, 2, 9}, 3, 1, false, b16) +
                       Check(1, 2, 2, 3, 33, {1}, 9, 21, true, f32) + Check(1, 2, 1, 1, 1, {1, -1}, 1, 1, true, f32) +
                       Check(1, 2, 33, 4, 64, {1}, 15, 15, true, b16) + Check(0, 2, 3, 3, 4, {1}, 3, 3, true, f32) +
                       Check(1, 2, 0, 3, 4, {1}, 3, 3, true, f32) + Check(1, 2, 3, 3, 0, {1}, 3, 3, true, f32);
  puts(failures ? "failed" : "ok");
  return failures;
}
