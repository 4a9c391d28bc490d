// The register tiles of the convolutions over tiny maps: part of map_conv_cpu.cc.
#ifndef KERAS_STSS_MAP_CONV_TILES_H_
#define KERAS_STSS_MAP_CONV_TILES_H_

#include "map_conv_plan.h"
#include "simd.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

// Registers: a tile holds kTile filters × kTileVectors vectors of sums, beside the vectors and the weight it reads.
constexpr int kTileVectors = 3;
constexpr int kTile = kLanes == 16 ? 8 : 4;
// The same for the kernel's gradient: kGradRows channels × kGradColumns filters.
constexpr int kGradRows = kLanes == 16 ? 4 : 2;
constexpr int kGradColumns = 4;
constexpr int kVectors = static_cast<int>(kMapLanes) / kLanes;
static_assert(kVectors % kTileVectors == 0, "a block is a whole number of tiles");

typedef int32_t Mask __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Which lanes of a block hold maps.
struct LaneMask {
  Mask lanes[kVectors];
  explicit LaneMask(int64_t valid) {
    for (int i = 0; i < kVectors; ++i)
      for (int lane = 0; lane < kLanes; ++lane) lanes[i][lane] = i * kLanes + lane < valid ? -1 : 0;
  }
  // Zero in the others, whatever they hold (NaN too).
  Vec Keep(Vec value, int i) const { return reinterpret_cast<Vec>(reinterpret_cast<Mask>(value) & lanes[i]); }
};

// Keeps a NaN.
KERAS_STSS_INLINE Vec Relu(Vec value) { return value < 0.0f ? Vec{} : value; }

// Pairs of lanes that are `step` apart are added up, those of a beside those of b.
template <int step>
KERAS_STSS_INLINE Vec AddPairs(Vec a, Vec b) {
  Mask low{};
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / (2 * step) * (2 * step), rest = lane % (2 * step);
    low[lane] = rest < step ? group + rest : kLanes + group + rest - step;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, low + step);
}

// Lane i: the sum of all lanes of values[i]. Overwrites values.
KERAS_STSS_INLINE Vec SumEach(Vec* values) {
#pragma GCC unroll 8
  for (int i = 0; i < kLanes / 2; ++i) values[i] = AddPairs<1>(values[2 * i], values[2 * i + 1]);
#pragma GCC unroll 4
  for (int i = 0; i < kLanes / 4; ++i) values[i] = AddPairs<2>(values[2 * i], values[2 * i + 1]);
  if (kLanes >= 8) {
#pragma GCC unroll 2
    for (int i = 0; i < kLanes / 8; ++i) values[i] = AddPairs<4>(values[2 * i], values[2 * i + 1]);
  }
  if (kLanes >= 16) values[0] = AddPairs<kLanes / 2>(values[0], values[1]);
  return values[0];
}

// sums[c] = the sum of the lanes of vectors[c], for `count` channels.
void SumLanes(const float* vectors, int64_t count, float* sums) {
  for (int64_t c = 0; c < count; c += kLanes) {
    Vec values[kLanes];
    const int64_t here = Smaller(kLanes, count - c);
    for (int i = 0; i < kLanes; ++i) values[i] = i < here ? Load(vectors + (c + i) * kLanes) : Vec{};
    const Vec total = SumEach(values);
    memcpy(sums + c, &total, here * sizeof(float));
  }
}

// Width of the register tile that begins where `left` columns of weights are left.
KERAS_STSS_INLINE int64_t TileWidth(int64_t left) { return left >= kTile ? kTile : left >= 4 ? 4 : 1; }

// Weights (outer, inner, columns), whose strides are given, in the order in which the tiles read them: for each tile of
// columns, its (outer, inner, width).
void PackWeights(const float* weights, int64_t outer, int64_t inner, int64_t columns, int64_t inner_stride,
                 int64_t column_stride, float* packed) {
  for (int64_t first = 0, width; first < columns; first += width) {
    width = TileWidth(columns - first);
    for (int64_t o = 0; o < outer; ++o)
      for (int64_t i = 0; i < inner; ++i)
        for (int64_t j = 0; j < width; ++j)
          *packed++ = weights[o * inner * columns + i * inner_stride + (first + j) * column_stride];
  }
}

// output[j] = start[j] + sum over the segments' cells of cell * weight[j], for `width` columns and all lanes.
template <int width>
void Tile(const Segment* segments, int64_t count, const float* input, const float* weights, const float* start,
          bool relu, float* output) {
  for (int part = 0; part < kVectors; part += kTileVectors) {
    Vec sums[width][kTileVectors];
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j)
#pragma GCC unroll 3
      for (int i = 0; i < kTileVectors; ++i) sums[j][i] = start ? Broadcast(start[j]) : Vec{};
    for (const Segment* segment = segments; segment < segments + count; ++segment) {
      const float* x = input + segment->cell * kMapLanes + part * kLanes;
      const float* weight = weights + segment->term * width;
      for (int64_t cell = 0; cell < segment->cells; ++cell, x += kMapLanes, weight += width) {
        const Vec x0 = Load(x), x1 = Load(x + kLanes), x2 = Load(x + 2 * kLanes);
#pragma GCC unroll 8
        for (int j = 0; j < width; ++j) {
          const Vec w = Broadcast(weight[j]);
          sums[j][0] = MultiplyAdd(x0, w, sums[j][0]);
          sums[j][1] = MultiplyAdd(x1, w, sums[j][1]);
          sums[j][2] = MultiplyAdd(x2, w, sums[j][2]);
        }
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < width; ++j)
#pragma GCC unroll 3
      for (int i = 0; i < kTileVectors; ++i)
        Store(output + j * kMapLanes + (part + i) * kLanes, relu ? Relu(sums[j][i]) : sums[j][i]);
  }
}

// One block: `columns` values at each of the plan's positions from weights of `terms` rows, packed.
void ConvBlock(const Plan& plan, const float* input, const float* packed, int64_t terms, int64_t columns,
               const float* start, bool relu, float* output) {
  for (int64_t position = 0; position < plan.positions; ++position, output += columns * kMapLanes) {
    const Segment* segments = plan.segments.get() + plan.first.get()[position];
    const int64_t count = plan.first.get()[position + 1] - plan.first.get()[position];
    for (int64_t first = 0, width; first < columns; first += width) {
      width = TileWidth(columns - first);
      const auto tile = width == kTile ? &Tile<kTile> : width == 4 ? &Tile<4> : &Tile<1>;
      tile(segments, count, input, packed + first * terms, start ? start + first : nullptr, relu,
           output + first * kMapLanes);
    }
  }
}

// d_kernel[c][f] += the sum over blocks, pairs and lanes of x[c] * d_y[f], for a tile.
template <int rows, int columns>
void KernelTile(const Segment* pairs, int64_t count, const float* x, int64_t x_stride, const float* d_y,
                int64_t d_y_stride, int64_t blocks, int64_t filters, float* d_kernel) {
  Vec sums[rows][columns] = {};
  for (int64_t block = 0; block < blocks; ++block, x += x_stride, d_y += d_y_stride) {
    for (const Segment* pair = pairs; pair < pairs + count; ++pair) {
      const float *a = x + pair->cell * kMapLanes, *b = d_y + pair->term * kMapLanes;
      for (int i = 0; i < kVectors; ++i, a += kLanes, b += kLanes) {
        Vec right[columns];
#pragma GCC unroll 4
        for (int f = 0; f < columns; ++f) right[f] = Load(b + f * kMapLanes);
#pragma GCC unroll 4
        for (int c = 0; c < rows; ++c) {
          const Vec left = Load(a + c * kMapLanes);
#pragma GCC unroll 4
          for (int f = 0; f < columns; ++f) sums[c][f] = MultiplyAdd(left, right[f], sums[c][f]);
        }
      }
    }
  }
  float totals[DivideUp(rows * columns, kLanes) * kLanes];
  SumLanes(reinterpret_cast<const float*>(sums), rows * columns, totals);
  for (int c = 0; c < rows; ++c)
    for (int f = 0; f < columns; ++f) d_kernel[c * filters + f] += totals[c * columns + f];
}

// d_kernel (taps, channels, filters) += what `blocks` blocks give.
void KernelGrad(const MapConvLayer& layer, const Plan& pairs, const float* x, const float* d_y, int64_t blocks,
                float* d_kernel) {
  const int64_t channels = layer.channels, filters = layer.filters;
  const int64_t x_stride = layer.rows * layer.columns * channels * kMapLanes;
  const int64_t d_y_stride = layer.out_rows * layer.out_columns * filters * kMapLanes;
  for (int64_t tap = 0; tap < pairs.positions; ++tap, d_kernel += channels * filters) {
    const Segment* first = pairs.segments.get() + pairs.first.get()[tap];
    const int64_t count = pairs.first.get()[tap + 1] - pairs.first.get()[tap];
    for (int64_t c = 0, rows; c < channels; c += rows) {
      rows = channels - c >= kGradRows ? kGradRows : 1;
      for (int64_t f = 0, columns; f < filters; f += columns) {
        columns = filters - f >= kGradColumns ? kGradColumns : 1;
        const auto tile = rows > 1 ? (columns > 1 ? &KernelTile<kGradRows, kGradColumns> : &KernelTile<kGradRows, 1>)
                                   : (columns > 1 ? &KernelTile<1, kGradColumns> : &KernelTile<1, 1>);
        tile(first, count, x + c * kMapLanes, x_stride, d_y + f * kMapLanes, d_y_stride, blocks, filters,
             d_kernel + c * filters + f);
      }
    }
  }
}

}  // namespace
}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_MAP_CONV_TILES_H_
