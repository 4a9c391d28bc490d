// The convolutions over tiny maps alone, for the address and undefined-behaviour sanitizers: every function on buffers
// of exactly its size, over shapes that end in the middle of every tile, against plain loops in double precision.
//
// g++ -std=c++17 -g -O1 -fsanitize=address,undefined -DKERAS_STSS_ISA=plain -I keras_stss/ops/cc <this file>
#include <stdio.h>

#include <cmath>
#include <functional>
#include <random>
#include <vector>

#include "map_conv_cpu.cc"

namespace {

using keras_stss::DType;
using keras_stss::kMapLanes;
using keras_stss::MapConvLayer;
using keras_stss::Parallel;
namespace isa = keras_stss::KERAS_STSS_ISA;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// Ranges of three units, the last ones first: a result may depend on neither.
const Parallel kReversed{nullptr, [](void*, int64_t units, int64_t, Parallel::Body body, void* argument) {
                           for (int64_t end = units; end > 0; end -= 3) body(argument, end > 3 ? end - 3 : 0, end);
                         }};

std::mt19937 generator(7);
int failures = 0;

Floats Random(int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, scale);
  Floats values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

template <typename A, typename B>
void Compare(const char* what, const A& found, const B& expected, double tolerance) {
  double largest = 1e-3, worst = 0.0;
  for (double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double difference = std::fabs(found[i] - expected[i]);
    worst = difference <= worst ? worst : difference;  // a NaN is the worst
  }
  if (found.size() == expected.size() && worst <= tolerance * largest) return;
  printf("%s: off by %g of %g\n", what, worst, largest);
  ++failures;
}

// The terms of a convolution of (maps, rows, columns, channels): visit(input, kernel, output) with flat indices.
void Visit(const MapConvLayer& l, int64_t maps, const std::function<void(int64_t, int64_t, int64_t)>& visit) {
  for (int64_t n = 0; n < maps; ++n)
    for (int64_t u = 0; u < l.out_rows; ++u)
      for (int64_t v = 0; v < l.out_columns; ++v)
        for (int64_t a = 0; a < l.kernel_rows; ++a)
          for (int64_t b = 0; b < l.kernel_columns; ++b) {
            const int64_t y = u * l.stride_rows + a - l.pad_rows, x = v * l.stride_columns + b - l.pad_columns;
            if (y < 0 || y >= l.rows || x < 0 || x >= l.columns) continue;
            for (int64_t c = 0; c < l.channels; ++c)
              for (int64_t f = 0; f < l.filters; ++f)
                visit(((n * l.rows + y) * l.columns + x) * l.channels + c,
                      ((a * l.kernel_columns + b) * l.channels + c) * l.filters + f,
                      ((n * l.out_rows + u) * l.out_columns + v) * l.filters + f);
          }
}

Floats Packed(const Floats& maps, int64_t count, int64_t cells) {
  Floats packed((count + kMapLanes - 1) / kMapLanes * cells * kMapLanes);
  isa::MapPack(count, cells, DType::kFloat32, maps.data(), packed.data(), kReversed);
  return packed;
}

Floats Unpacked(const Floats& packed, int64_t count, int64_t cells) {
  Floats maps(count * cells);
  isa::MapUnpack(count, cells, packed.data(), DType::kFloat32, maps.data(), kReversed);
  return maps;
}

// One training convolution, forward and backward, with activation and statistics.
void CheckConv(const MapConvLayer& l, int64_t maps) {
  const int64_t in = l.rows * l.columns * l.channels, out = l.out_rows * l.out_columns * l.filters;
  const int64_t weights = l.kernel_rows * l.kernel_columns * l.channels * l.filters;
  const Floats x = Random(maps * in), kernel = Random(weights), d_y = Random(maps * out);
  const Floats scale = Random(l.channels), shift = Random(l.channels), d_mean = Random(l.filters),
               d_variance = Random(l.filters);
  Doubles active(maps * in), y(maps * out), mean(l.filters), variance(l.filters);
  for (int64_t i = 0; i < maps * in; ++i)
    active[i] = std::max(0.0, double(x[i]) * scale[i % l.channels] + shift[i % l.channels]);
  Visit(l, maps, [&](int64_t i, int64_t k, int64_t o) { y[o] += active[i] * kernel[k]; });
  const double count = double(maps) * l.out_rows * l.out_columns;
  for (int64_t o = 0; o < maps * out; ++o) mean[o % l.filters] += y[o] / count;
  for (int64_t o = 0; o < maps * out; ++o) variance[o % l.filters] += std::pow(y[o] - mean[o % l.filters], 2) / count;

  const Floats px = Packed(x, maps, in), pd_y = Packed(d_y, maps, out);
  Floats py(pd_y.size()), found_mean(l.filters), found_variance(l.filters);
  isa::MapConv(l, maps, px.data(), {scale.data(), shift.data()}, kernel.data(), py.data(), found_mean.data(),
               found_variance.data(), kReversed);
  Compare("y", Unpacked(py, maps, out), y, 1e-5);
  Compare("mean", found_mean, mean, 1e-5);
  Compare("variance", found_variance, variance, 1e-5);

  Doubles total(maps * out), d_active(maps * in), d_scale(l.channels), d_shift(l.channels), d_kernel(weights);
  for (int64_t o = 0; o < maps * out; ++o) {
    const int64_t f = o % l.filters;
    total[o] = d_y[o] + d_mean[f] / count + 2.0 * d_variance[f] * (y[o] - mean[f]) / count;
  }
  Visit(l, maps, [&](int64_t i, int64_t k, int64_t o) {
    d_active[i] += total[o] * kernel[k];
    d_kernel[k] += total[o] * active[i];
  });
  for (int64_t i = 0; i < maps * in; ++i) {
    const int64_t c = i % l.channels;
    if (active[i] <= 0.0) d_active[i] = 0.0;
    d_scale[c] += d_active[i] * x[i];
    d_shift[c] += d_active[i];
    d_active[i] *= scale[c];
  }
  Floats pd_x(px.size()), found_scale(l.channels), found_shift(l.channels), found_kernel(weights);
  isa::MapConvGrad(l, maps, px.data(), {scale.data(), shift.data()}, kernel.data(), py.data(), pd_y.data(),
                   {found_mean.data(), d_mean.data(), d_variance.data()}, pd_x.data(), found_scale.data(),
                   found_shift.data(), found_kernel.data(), kReversed);
  Compare("gradient of x", Unpacked(pd_x, maps, in), d_active, 1e-4);
  Compare("gradient of scale", found_scale, d_scale, 1e-4);
  Compare("gradient of shift", found_shift, d_shift, 1e-4);
  Compare("gradient of the kernel", found_kernel, d_kernel, 1e-4);

  Floats plain_kernel(weights);
  isa::MapConvGrad(l, maps, px.data(), {nullptr, nullptr}, kernel.data(), py.data(), pd_y.data(),
                   {nullptr, nullptr, nullptr}, pd_x.data(), nullptr, nullptr, plain_kernel.data(), kReversed);
  Doubles expected(weights);
  Visit(l, maps, [&](int64_t i, int64_t k, int64_t o) { expected[k] += double(d_y[o]) * x[i]; });
  Compare("gradient of the kernel alone", plain_kernel, expected, 1e-4);
}

// The stack in one go, and the last step of training, in each stored type.
void CheckStack(const std::vector<MapConvLayer>& layers, int64_t maps) {
  const int64_t in = layers[0].rows * layers[0].columns * layers[0].channels;
  const Floats input = Random(maps * in);
  Doubles current(input.begin(), input.end());
  std::vector<Floats> kernels, shifts;
  std::vector<const float*> kernel_data, shift_data;
  int64_t cells = in;
  for (const auto& l : layers) {
    kernels.push_back(Random(l.kernel_rows * l.kernel_columns * l.channels * l.filters, 0.3f));
    shifts.push_back(Random(l.filters));
    cells = l.out_rows * l.out_columns * l.filters;
    Doubles next(maps * cells);
    Visit(l, maps, [&](int64_t i, int64_t k, int64_t o) { next[o] += current[i] * kernels.back()[k]; });
    for (int64_t o = 0; o < maps * cells; ++o) next[o] = std::max(0.0, next[o] + shifts.back()[o % l.filters]);
    current = next;
  }
  for (const auto& kernel : kernels) kernel_data.push_back(kernel.data());
  for (const auto& shift : shifts) shift_data.push_back(shift.data());
  Floats output(maps * cells);
  isa::MapConvStack(layers.data(), layers.size(), maps, DType::kFloat32, input.data(), kernel_data.data(),
                    shift_data.data(), output.data(), kReversed);
  Compare("stack", output, current, 1e-5);
}

void CheckFinish(int64_t maps, int64_t positions, int64_t channels) {
  const int64_t size = maps * positions * channels;
  const Floats y = Random(size), scale = Random(channels), shift = Random(channels), gradient = Random(size);
  const Floats packed = Packed(y, maps, positions * channels);
  for (auto dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    std::vector<char> stored(size * keras_stss::SizeOf(dtype)), half(stored.size());
    isa::MapFinish(maps, positions, channels, packed.data(), {scale.data(), shift.data()}, dtype, stored.data(),
                   kReversed);
    for (int64_t i = 0; i < size; ++i) isa::WriteOne(half.data(), i, dtype, gradient[i]);
    Floats found(size), d_y(packed.size()), d_scale(channels), d_shift(channels);
    isa::Widen(stored.data(), 0, size, dtype, found.data());
    isa::MapFinishGrad(maps, positions, channels, packed.data(), {scale.data(), shift.data()}, dtype, half.data(),
                       d_y.data(), d_scale.data(), d_shift.data(), kReversed);
    Doubles expected(size), expected_y(size), expected_scale(channels), expected_shift(channels);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = i % channels;
      const double value = double(y[i]) * scale[c] + shift[c];
      const double open = value > 0.0 ? isa::ReadOne(half.data(), i, dtype) : 0.0;
      expected[i] = std::max(0.0, value);
      expected_y[i] = open * scale[c];
      expected_scale[c] += open * y[i];
      expected_shift[c] += open;
    }
    const double tolerance = dtype == DType::kFloat32 ? 1e-5 : dtype == DType::kFloat16 ? 1e-3 : 8e-3;
    Compare("finish", found, expected, tolerance);
    Compare("finish: gradient of y", Unpacked(d_y, maps, positions * channels), expected_y, 1e-5);
    Compare("finish: gradient of scale", d_scale, expected_scale, 1e-4);
    Compare("finish: gradient of shift", d_shift, expected_shift, 1e-4);
  }
}

}  // namespace

int main() {
  // rows, columns, channels · kernel, filters · strides · paddings · output
  const MapConvLayer layers[] = {
      {9, 9, 1, 3, 3, 4, 1, 1, 1, 1, 9, 9},   {9, 7, 4, 3, 3, 16, 2, 2, 1, 1, 5, 4},
      {3, 3, 5, 3, 3, 13, 1, 1, 0, 0, 1, 1},  {1, 1, 3, 1, 1, 9, 1, 1, 0, 0, 1, 1},
      {4, 6, 2, 2, 5, 7, 1, 2, 0, 1, 3, 2},   {2, 2, 6, 5, 5, 6, 3, 1, 2, 2, 1, 2},
      {5, 5, 17, 3, 3, 11, 2, 2, 3, 3, 5, 5},
  };
  int64_t checks = 0;
  for (const auto& layer : layers)
    for (int64_t maps : {1, 5, 47, 48, 49, 100, 193}) CheckConv(layer, maps), ++checks;
  for (int64_t maps : {1, 16, 48, 77}) {
    CheckStack({layers[0]}, maps);
    CheckStack({{9, 9, 1, 3, 3, 4, 1, 1, 1, 1, 9, 9},
                {9, 9, 4, 3, 3, 9, 2, 2, 1, 1, 5, 5},
                {5, 5, 9, 3, 3, 10, 2, 2, 1, 1, 3, 3},
                {3, 3, 10, 3, 3, 5, 1, 1, 0, 0, 1, 1}},
               maps);
    CheckFinish(maps, 3, 7);
    CheckFinish(maps, 1, 33);
    checks += 4;
  }
  // No maps: nothing is read or written but the sums.
  float mean[4] = {1, 1, 1, 1}, variance[4] = {1, 1, 1, 1}, d_kernel[36];
  const Floats kernel = Random(36);
  isa::MapConv(layers[0], 0, nullptr, {nullptr, nullptr}, kernel.data(), nullptr, mean, variance, kReversed);
  isa::MapConvGrad(layers[0], 0, nullptr, {nullptr, nullptr}, kernel.data(), nullptr, nullptr,
                   {mean, variance, variance}, nullptr, nullptr, nullptr, d_kernel, kReversed);
  for (float value : {mean[0], mean[3], variance[0], variance[3], d_kernel[0], d_kernel[35]})
    if (value != 0.0f) ++failures, printf("no maps: %g\n", value);
  printf("%lld checks, %d failures\n", static_cast<long long>(checks), failures);
  return failures ? 1 : 0;
}
