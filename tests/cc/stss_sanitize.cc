// Runs the CPU kernels of the self-similarity over a table of shapes on several threads, without TensorFlow, and
// compares them with plain loops. Compiled with sanitizers, for one instruction set (KERAS_STSS_ISA). Exits with 1
// where a value is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "stss.h"

namespace {

using keras_stss::DType;
using keras_stss::Parallel;
using keras_stss::StssShape;

struct Case {
  int64_t batch, time, height, width, channels;
  std::vector<int64_t> offsets;
  int64_t rows, columns;
};

const Case kCases[] = {
    {1, 1, 1, 1, 1, {0}, 1, 1},
    {1, 3, 5, 7, 17, {-1, 0, 2}, 3, 5},
    {2, 2, 3, 2, 33, {1}, 9, 3},
    {1, 4, 4, 18, 16, {-1, 0, 1}, 3, 9},
    {1, 2, 20, 35, 20, {1, -1}, 7, 7},
    {1, 3, 2, 40, 5, {-3, 5, 0}, 1, 3},
    {1, 2, 6, 6, 70, {0, 1}, 21, 35},
    {1, 5, 7, 3, 3, {-4, 4, INT64_MIN, INT64_MAX}, 5, 1},
    {1, 2, 3, 5, 0, {0}, 3, 3},
    {0, 2, 3, 5, 4, {0}, 3, 3},
    {1, 3, 4, 5, 8, {1, 1, -1}, 3, 3},  // an offset twice
    {1, 3, 4, 5, 8, {1, 1, 0}, 3, 3},
    {1, 2, 2, 90, 3, {0, 1}, 3, 9},
};

// Every thread takes ranges of three units, in an order that changes from run to run.
Parallel Threads(int64_t* count) {
  return {count, [](void* context, int64_t units, int64_t, Parallel::Body body, void* argument) {
            int64_t next = 0;
            std::vector<std::thread> threads;
            for (int64_t i = 0; i < *static_cast<int64_t*>(context); ++i)
              threads.emplace_back([&] {
                for (;;) {
                  const int64_t begin = __atomic_fetch_add(&next, 3, __ATOMIC_RELAXED);
                  if (begin >= units) return;
                  body(argument, begin, begin + 3 < units ? begin + 3 : units);
                }
              });
            for (auto& thread : threads) thread.join();
          }};
}

// Forward and gradient by their definition, in double precision.
void Plain(const StssShape& s, const std::vector<float>& features, const std::vector<float>& gradient,
           std::vector<double>* volume, std::vector<double>* result) {
  const int64_t positions = s.batch * s.time * s.height * s.width, channels = s.channels;
  std::vector<double> normal(features.begin(), features.end()), inverse(positions, 1.0), sums(features.size(), 0.0);
  for (int64_t p = 0; p < positions && s.cosine; ++p) {
    double squares = 1e-6;
    for (int64_t c = 0; c < channels; ++c) squares += normal[p * channels + c] * normal[p * channels + c];
    inverse[p] = 1 / std::sqrt(squares);
    for (int64_t c = 0; c < channels; ++c) normal[p * channels + c] *= inverse[p];
  }
  volume->assign(gradient.size(), 0.0);
  int64_t at = 0;
  for (int64_t p = 0; p < positions; ++p) {
    const int64_t x = p % s.width, y = p / s.width % s.height, t = p / (s.width * s.height) % s.time;
    for (int64_t l = 0; l < s.offset_count; ++l)
      for (int64_t u = -(s.rows / 2); u <= s.rows / 2; ++u)
        for (int64_t v = -(s.columns / 2); v <= s.columns / 2; ++v, ++at) {
          if (s.offsets[l] < -t || s.offsets[l] >= s.time - t || y + u < 0 || y + u >= s.height || x + v < 0 ||
              x + v >= s.width)
            continue;
          const int64_t q = p + (s.offsets[l] * s.height + u) * s.width + v;
          for (int64_t c = 0; c < channels; ++c) {
            (*volume)[at] += normal[p * channels + c] * normal[q * channels + c];
            sums[p * channels + c] += gradient[at] * normal[q * channels + c];
            sums[q * channels + c] += gradient[at] * normal[p * channels + c];
          }
        }
  }
  *result = sums;
  for (int64_t p = 0; p < positions && s.cosine; ++p) {
    double along = 0;
    for (int64_t c = 0; c < channels; ++c) along += normal[p * channels + c] * sums[p * channels + c];
    for (int64_t c = 0; c < channels; ++c)
      (*result)[p * channels + c] = inverse[p] * (sums[p * channels + c] - along * normal[p * channels + c]);
  }
}

float Read(const void* values, int64_t index, DType dtype) {
  return keras_stss::KERAS_STSS_ISA::ReadOne(values, index, dtype);
}

// Largest difference, as a part of what the dtype allows.
double Excess(const void* values, const std::vector<double>& wanted, DType dtype) {
  const double unit = dtype == DType::kFloat32 ? 2e-5 : dtype == DType::kFloat16 ? 2e-3 : 1.6e-2;
  double excess = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double difference = std::fabs(Read(values, i, dtype) - wanted[i]) / (unit * (1 + std::fabs(wanted[i])));
    excess = difference <= excess ? excess : difference;  // takes a NaN, and keeps it
  }
  return excess;
}

// Exactly as large as the tensor, so that the sanitizer sees what is read or written beyond it.
std::vector<char> Stored(std::vector<float>* values, DType dtype) {
  std::vector<char> stored(values->size() * keras_stss::SizeOf(dtype));
  for (size_t i = 0; i < values->size(); ++i) {
    keras_stss::KERAS_STSS_ISA::WriteOne(stored.data(), i, dtype, (*values)[i]);
    (*values)[i] = Read(stored.data(), i, dtype);
  }
  return stored;
}

bool Check(const Case& c, bool cosine, DType dtype) {
  const StssShape shape{c.batch,          c.time, c.height,  c.width, c.channels, c.offsets.data(),
                        static_cast<int64_t>(c.offsets.size()), c.rows, c.columns, cosine};
  const int64_t positions = c.batch * c.time * c.height * c.width;
  std::vector<float> features(positions * c.channels), gradient(positions * c.offsets.size() * c.rows * c.columns);
  std::mt19937 random(static_cast<unsigned>(positions + c.channels));
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (float& value : features) value = uniform(random);
  for (float& value : gradient) value = uniform(random);
  const std::vector<char> stored_features = Stored(&features, dtype), stored_gradient = Stored(&gradient, dtype);
  std::vector<double> volume, result;
  Plain(shape, features, gradient, &volume, &result);
  bool good = true;
  std::vector<char> first[2];
  for (int64_t threads : {1, 4}) {
    std::vector<char> own(stored_gradient.size(), 1), own_result(stored_features.size(), 1);
    const Parallel parallel = Threads(&threads);
    good &= keras_stss::KERAS_STSS_ISA::StssForward(shape, dtype, stored_features.data(), own.data(), parallel);
    good &= keras_stss::KERAS_STSS_ISA::StssBackward(shape, dtype, stored_features.data(), stored_gradient.data(),
                                                     own_result.data(), parallel);
    const double excess = Excess(own.data(), volume, dtype), excess_result = Excess(own_result.data(), result, dtype);
    const bool same = threads == 1 || (own == first[0] && own_result == first[1]);
    if (!(excess <= 1) || !(excess_result <= 1) || !same) {
      std::printf("(%d %d %d %d %d) window %d x %d cosine %d dtype %d threads %d: volume %.2g gradient %.2g %s\n",
                  int(c.batch), int(c.time), int(c.height), int(c.width), int(c.channels), int(c.rows), int(c.columns),
                  cosine, int(dtype), int(threads), excess, excess_result, same ? "" : "not as on one thread");
      good = false;
    }
    if (threads == 1) first[0] = own, first[1] = own_result;
  }
  return good;
}

}  // namespace

int main() {
  bool good = true;
  for (const Case& c : kCases)
    for (bool cosine : {false, true})
      for (DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) good &= Check(c, cosine, dtype);
  std::puts(good ? "all good" : "wrong");
  return !good;
}
