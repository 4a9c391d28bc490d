// Convolutions over very many tiny maps on the CPU: see map_conv.h for the packed form, in which every lane of a vector
// is a map. Compiled once for each instruction set.
#include "map_conv.h"
#include "map_conv_plan.h"
#include "map_conv_tiles.h"
#include "simd.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

// Kernel gradients are summed over chunks of blocks, as many as this at most, and then over the chunks: both in an
// order that depends on the number of maps only.
constexpr int64_t kMostChunks = 64;
// What the kernel's gradient reads again and again stays within this share of the second-level cache.
constexpr int64_t kCacheBytes = 512 * 1024;

// Maps as they are stored, `valid` of them, to a block; zeros in the lanes that are left. row: room for one map.
void PackBlock(const void* input, int64_t first_map, int64_t valid, int64_t cells, DType dtype, float* row,
               float* block) {
  if (valid < kMapLanes) memset(block, 0, cells * kMapLanes * sizeof(float));
  for (int64_t lane = 0; lane < valid; ++lane) {
    Widen(input, (first_map + lane) * cells, cells, dtype, row);
    for (int64_t cell = 0; cell < cells; ++cell) block[cell * kMapLanes + lane] = row[cell];
  }
}

void UnpackBlock(const float* block, int64_t first_map, int64_t valid, int64_t cells, DType dtype, float* row,
                 void* output) {
  for (int64_t lane = 0; lane < valid; ++lane) {
    for (int64_t cell = 0; cell < cells; ++cell) row[cell] = block[cell * kMapLanes + lane];
    Narrow(row, cells, dtype, output, (first_map + lane) * cells);
  }
}

int64_t Valid(int64_t maps, int64_t block) { return Smaller(kMapLanes, maps - block * kMapLanes); }

// ReLU(x * scale + shift) of a block; zero in the lanes without a map.
void Activate(const float* x, int64_t positions, int64_t channels, MapActivation activation, const LaneMask& mask,
              float* output) {
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t c = 0; c < channels; ++c, x += kMapLanes, output += kMapLanes) {
      const Vec scale = Broadcast(activation.scale[c]), shift = Broadcast(activation.shift[c]);
      for (int i = 0; i < kVectors; ++i)
        Store(output + i * kLanes, mask.Keep(Relu(MultiplyAdd(Load(x + i * kLanes), scale, shift)), i));
    }
  }
}

// Turns the gradient of ReLU(x * scale + shift) into that of x, in place; its sums over the block for scale and shift
// go to d_scale and d_shift. room: 2 · channels vectors.
void ActivateGrad(const float* x, int64_t positions, int64_t channels, MapActivation activation, const LaneMask& mask,
                  float* gradient, float* room, float* d_scale, float* d_shift) {
  memset(room, 0, 2 * channels * kLanes * sizeof(float));
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t c = 0; c < channels; ++c, x += kMapLanes, gradient += kMapLanes) {
      const Vec scale = Broadcast(activation.scale[c]), shift = Broadcast(activation.shift[c]);
      float *scale_sums = room + c * kLanes, *shift_sums = room + (channels + c) * kLanes;
      Vec for_scale = Load(scale_sums), for_shift = Load(shift_sums);
      for (int i = 0; i < kVectors; ++i) {
        const Vec value = mask.Keep(Load(x + i * kLanes), i);
        Vec open = MultiplyAdd(value, scale, shift) > 0.0f ? Load(gradient + i * kLanes) : Vec{};
        open = mask.Keep(open, i);
        for_scale = MultiplyAdd(open, value, for_scale);
        for_shift += open;
        Store(gradient + i * kLanes, open * scale);
      }
      Store(scale_sums, for_scale);
      Store(shift_sums, for_shift);
    }
  }
  SumLanes(room, channels, d_scale);
  SumLanes(room + channels * kLanes, channels, d_shift);
}

// Mean of a block's y per filter, and the sum of squares about it. room: filters vectors.
void BlockStatistics(const float* y, int64_t positions, int64_t filters, int64_t valid, const LaneMask& mask,
                     float* room, float* mean, float* squares) {
  memset(room, 0, filters * kLanes * sizeof(float));
  for (int64_t cell = 0, f = 0; cell < positions * filters; ++cell, f = f + 1 == filters ? 0 : f + 1) {
    Vec sum = Load(room + f * kLanes);
    for (int i = 0; i < kVectors; ++i) sum += mask.Keep(Load(y + cell * kMapLanes + i * kLanes), i);
    Store(room + f * kLanes, sum);
  }
  SumLanes(room, filters, mean);
  for (int64_t f = 0; f < filters; ++f) mean[f] /= static_cast<float>(positions * valid);
  memset(room, 0, filters * kLanes * sizeof(float));
  for (int64_t cell = 0, f = 0; cell < positions * filters; ++cell, f = f + 1 == filters ? 0 : f + 1) {
    Vec sum = Load(room + f * kLanes);
    for (int i = 0; i < kVectors; ++i) {
      const Vec about = mask.Keep(Load(y + cell * kMapLanes + i * kLanes) - mean[f], i);
      sum = MultiplyAdd(about, about, sum);
    }
    Store(room + f * kLanes, sum);
  }
  SumLanes(room, filters, squares);
}

// Joins the blocks' means and sums of squares, in order and in double precision.
void JoinStatistics(int64_t maps, int64_t positions, int64_t filters, const float* means, const float* squares,
                    float* mean, float* variance) {
  for (int64_t f = 0; f < filters; ++f) {
    double count = 0.0, middle = 0.0, total = 0.0;
    for (int64_t block = 0; block < Blocks(maps); ++block) {
      const double here = static_cast<double>(positions * Valid(maps, block));
      const double apart = means[block * filters + f] - middle;
      total += squares[block * filters + f] + apart * apart * (count * here / (count + here));
      middle += apart * (here / (count + here));
      count += here;
    }
    mean[f] = static_cast<float>(middle);
    variance[f] = static_cast<float>(count > 0.0 ? total / count : 0.0);
  }
}

// The gradient of y itself: its own, and what comes back through its mean and variance.
void TotalGradient(const float* d_y, const float* y, int64_t positions, int64_t filters, double values,
                   MapStatisticsGradient statistics, const LaneMask& mask, float* output) {
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t f = 0; f < filters; ++f, d_y += kMapLanes, y += kMapLanes, output += kMapLanes) {
      const Vec constant = Broadcast(static_cast<float>(statistics.d_mean[f] / values));
      const Vec slope = Broadcast(static_cast<float>(2.0 * statistics.d_variance[f] / values));
      const Vec mean = Broadcast(statistics.mean[f]);
      for (int i = 0; i < kVectors; ++i) {
        const Vec through = MultiplyAdd(Load(y + i * kLanes) - mean, slope, constant);
        Store(output + i * kLanes, mask.Keep(Load(d_y + i * kLanes) + through, i));
      }
    }
  }
}

// totals[i] = the sum of parts[part * stride + i] over `count` parts, in order and in double precision.
void SumParts(const float* parts, int64_t count, int64_t stride, int64_t size, float* totals,
              const Parallel& parallel) {
  parallel(size, 2 * count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double total = 0.0;
      for (int64_t part = 0; part < count; ++part) total += parts[part * stride + i];
      totals[i] = static_cast<float>(total);
    }
  });
}

// Roughly the cycles that a block's convolution takes.
int64_t Cost(const MapConvLayer& layer) {
  return OutPositions(layer) * Taps(layer) * layer.channels * layer.filters * kMapLanes / (kLanes * 2) + 1000;
}

// Threads may fail at the same time.
void Fail(bool* failed) { __atomic_store_n(failed, true, __ATOMIC_RELAXED); }

// A layer of a stack.
struct Prepared {
  Plan plan;
  Buffer<float> weights;
  bool Prepare(const MapConvLayer& layer, const float* kernel) {
    const int64_t terms = Taps(layer) * layer.channels;
    if (!PlanForward(layer, &plan) || !weights.Allocate(terms * layer.filters)) return false;
    PackWeights(kernel, 1, terms, layer.filters, layer.filters, 1, weights.get());
    return true;
  }
};

}  // namespace

bool MapPack(int64_t maps, int64_t cells, DType dtype, const void* input, float* packed, const Parallel& parallel) {
  bool failed = false;
  parallel(Blocks(maps), 4 * cells * kMapLanes, [&](int64_t begin, int64_t end) {
    const Buffer<float> row(cells);
    if (!row.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block)
      PackBlock(input, block * kMapLanes, Valid(maps, block), cells, dtype, row.get(),
                packed + block * cells * kMapLanes);
  });
  return !failed;
}

bool MapUnpack(int64_t maps, int64_t cells, const float* packed, DType dtype, void* output, const Parallel& parallel) {
  bool failed = false;
  parallel(Blocks(maps), 4 * cells * kMapLanes, [&](int64_t begin, int64_t end) {
    const Buffer<float> row(cells);
    if (!row.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block)
      UnpackBlock(packed + block * cells * kMapLanes, block * kMapLanes, Valid(maps, block), cells, dtype, row.get(),
                  output);
  });
  return !failed;
}

bool MapConvStack(const MapConvLayer* layers, int64_t count, int64_t maps, DType dtype, const void* input,
                  const float* const* kernels, const float* const* shifts, void* output, const Parallel& parallel) {
  Prepared prepared[kMostMapLayers];
  const int64_t in_cells = InPositions(layers[0]) * layers[0].channels;
  int64_t cells = in_cells, cost = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!prepared[i].Prepare(layers[i], kernels[i])) return false;
    cells = Larger(cells, OutPositions(layers[i]) * layers[i].filters);
    cost += Cost(layers[i]);
  }
  const int64_t out_cells = OutPositions(layers[count - 1]) * layers[count - 1].filters;
  bool failed = false;
  parallel(Blocks(maps), cost, [&](int64_t begin, int64_t end) {
    const Buffer<float> even(cells * kMapLanes), odd(cells * kMapLanes), row(cells);
    if (!even.get() || !odd.get() || !row.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block) {
      float *from = even.get(), *to = odd.get();
      PackBlock(input, block * kMapLanes, Valid(maps, block), in_cells, dtype, row.get(), from);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t terms = Taps(layers[i]) * layers[i].channels;
        ConvBlock(prepared[i].plan, from, prepared[i].weights.get(), terms, layers[i].filters, shifts[i], true, to);
        float* other = from;
        from = to;
        to = other;
      }
      UnpackBlock(from, block * kMapLanes, Valid(maps, block), out_cells, dtype, row.get(), output);
    }
  });
  return !failed;
}

bool MapConv(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation, const float* kernel,
             float* y, float* mean, float* variance, const Parallel& parallel) {
  const int64_t terms = Taps(layer) * layer.channels, positions = OutPositions(layer), filters = layer.filters;
  const int64_t x_size = InPositions(layer) * layer.channels * kMapLanes, y_size = positions * filters * kMapLanes;
  const int64_t statistics = mean ? Blocks(maps) * filters : 0;
  Prepared prepared;
  const Buffer<float> means(statistics), squares(statistics);
  if (!prepared.Prepare(layer, kernel) || !means.get() || !squares.get()) return false;
  bool failed = false;
  parallel(Blocks(maps), Cost(layer), [&](int64_t begin, int64_t end) {
    const Buffer<float> activated(activation.scale ? x_size : 0), room(filters * kLanes);
    if (!activated.get() || !room.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t valid = Valid(maps, block);
      const LaneMask mask(valid);
      const float* from = x + block * x_size;
      float* to = y + block * y_size;
      if (activation.scale) {
        Activate(from, InPositions(layer), layer.channels, activation, mask, activated.get());
        from = activated.get();
      }
      ConvBlock(prepared.plan, from, prepared.weights.get(), terms, filters, nullptr, false, to);
      if (mean)
        BlockStatistics(to, positions, filters, valid, mask, room.get(), means.get() + block * filters,
                        squares.get() + block * filters);
    }
  });
  if (mean && !failed) JoinStatistics(maps, positions, filters, means.get(), squares.get(), mean, variance);
  return !failed;
}

bool MapConvGrad(const MapConvLayer& layer, int64_t maps, const float* x, MapActivation activation, const float* kernel,
                 const float* y, const float* d_y, MapStatisticsGradient statistics, float* d_x, float* d_scale,
                 float* d_shift, float* d_kernel, const Parallel& parallel) {
  const int64_t channels = layer.channels, filters = layer.filters, taps = Taps(layer), blocks = Blocks(maps);
  const int64_t x_size = InPositions(layer) * channels * kMapLanes;
  const int64_t y_size = OutPositions(layer) * filters * kMapLanes;
  const int64_t values = maps * OutPositions(layer);
  // Blocks that share a sweep of the kernel's gradient, and blocks whose sum is one part of it.
  const int64_t group = Larger(1, Smaller(8, kCacheBytes / ((x_size + y_size) * 4)));
  const int64_t chunk = Larger(group, DivideUp(blocks, kMostChunks)), chunks = DivideUp(blocks, chunk);
  const int64_t size = taps * channels * filters;
  const bool active = activation.scale;
  Plan backward, pairs;
  const Buffer<float> weights(size), parts(chunks * size), sums(active ? 2 * blocks * channels : 0);
  if (!PlanBackward(layer, &backward) || !PlanKernel(layer, &pairs) || !weights.get() || !parts.get() || !sums.get())
    return false;
  PackWeights(kernel, taps, filters, channels, 1, filters, weights.get());
  bool failed = false;
  parallel(chunks, 2 * chunk * Cost(layer), [&](int64_t begin, int64_t end) {
    const Buffer<float> activated(active ? group * x_size : 0), total(statistics.mean ? group * y_size : 0);
    const Buffer<float> room(2 * channels * kLanes);
    if (!activated.get() || !total.get() || !room.get()) return Fail(&failed);
    for (int64_t part = begin; part < end; ++part) {
      memset(parts.get() + part * size, 0, size * sizeof(float));
      const int64_t last = Smaller((part + 1) * chunk, blocks);
      for (int64_t first = part * chunk; first < last; first += group) {
        const int64_t here = Smaller(group, last - first);
        const float* inputs = active ? activated.get() : x + first * x_size;
        const float* gradients = statistics.mean ? total.get() : d_y + first * y_size;
        for (int64_t i = 0; i < here; ++i) {
          const int64_t block = first + i;
          const LaneMask mask(Valid(maps, block));
          if (active)
            Activate(x + block * x_size, InPositions(layer), channels, activation, mask, activated.get() + i * x_size);
          if (statistics.mean)
            TotalGradient(d_y + block * y_size, y + block * y_size, OutPositions(layer), filters, values, statistics,
                          mask, total.get() + i * y_size);
        }
        KernelGrad(layer, pairs, inputs, gradients, here, parts.get() + part * size);
        for (int64_t i = 0; i < here; ++i) {
          const int64_t block = first + i;
          ConvBlock(backward, gradients + i * y_size, weights.get(), taps * filters, channels, nullptr, false,
                    d_x + block * x_size);
          if (active)
            ActivateGrad(x + block * x_size, InPositions(layer), channels, activation, LaneMask(Valid(maps, block)),
                         d_x + block * x_size, room.get(), sums.get() + 2 * block * channels,
                         sums.get() + (2 * block + 1) * channels);
        }
      }
    }
  });
  if (failed) return false;
  SumParts(parts.get(), chunks, size, size, d_kernel, parallel);
  if (active) {
    SumParts(sums.get(), blocks, 2 * channels, channels, d_scale, parallel);
    SumParts(sums.get() + channels, blocks, 2 * channels, channels, d_shift, parallel);
  }
  return true;
}

bool MapFinish(int64_t maps, int64_t positions, int64_t channels, const float* y, MapActivation activation, DType dtype,
               void* output, const Parallel& parallel) {
  const int64_t cells = positions * channels;
  bool failed = false;
  parallel(Blocks(maps), 5 * cells * kMapLanes, [&](int64_t begin, int64_t end) {
    const Buffer<float> activated(cells * kMapLanes), row(cells);
    if (!activated.get() || !row.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t valid = Valid(maps, block);
      Activate(y + block * cells * kMapLanes, positions, channels, activation, LaneMask(valid), activated.get());
      UnpackBlock(activated.get(), block * kMapLanes, valid, cells, dtype, row.get(), output);
    }
  });
  return !failed;
}

bool MapFinishGrad(int64_t maps, int64_t positions, int64_t channels, const float* y, MapActivation activation,
                   DType dtype, const void* gradient, float* d_y, float* d_scale, float* d_shift,
                   const Parallel& parallel) {
  const int64_t cells = positions * channels;
  const Buffer<float> sums(2 * Blocks(maps) * channels);
  if (!sums.get()) return false;
  bool failed = false;
  parallel(Blocks(maps), 6 * cells * kMapLanes, [&](int64_t begin, int64_t end) {
    const Buffer<float> row(cells), room(2 * channels * kLanes);
    if (!row.get() || !room.get()) return Fail(&failed);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t valid = Valid(maps, block);
      float* to = d_y + block * cells * kMapLanes;
      PackBlock(gradient, block * kMapLanes, valid, cells, dtype, row.get(), to);
      ActivateGrad(y + block * cells * kMapLanes, positions, channels, activation, LaneMask(valid), to, room.get(),
                   sums.get() + 2 * block * channels, sums.get() + (2 * block + 1) * channels);
    }
  });
  if (failed) return false;
  SumParts(sums.get(), Blocks(maps), 2 * channels, channels, d_scale, parallel);
  SumParts(sums.get() + channels, Blocks(maps), 2 * channels, channels, d_shift, parallel);
  return true;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss
