// What a convolution over tiny maps sums for which position: part of map_conv_cpu.cc.
#ifndef KERAS_STSS_MAP_CONV_PLAN_H_
#define KERAS_STSS_MAP_CONV_PLAN_H_

#include <stdlib.h>

#include "map_conv.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t Larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t Blocks(int64_t maps) { return DivideUp(maps, kMapLanes); }

// Memory for one call, aligned for vectors; get() is null where there was none.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { Allocate(count); }
  ~Buffer() { free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  // Once only. Whether there was memory.
  bool Allocate(int64_t count) {
    if (posix_memalign(&data_, 64, Larger(count, 1) * sizeof(T))) data_ = nullptr;
    return data_;
  }
  T* get() const { return static_cast<T*>(data_); }

 private:
  void* data_ = nullptr;
};

// A run of cells (vectors of kMapLanes values) against a run of weights; both counted in cells.
struct Segment {
  int64_t cell, term, cells;
};

// For each position of a result, which segments are summed.
struct Plan {
  Buffer<Segment> segments;
  Buffer<int64_t> first;  // of a position; one more at the end
  int64_t positions = 0;

  // `most` segments at a position. Whether there was memory.
  bool Allocate(int64_t count, int64_t most) {
    positions = count;
    return segments.Allocate(count * most) && first.Allocate(count + 1);
  }
};

int64_t Taps(const MapConvLayer& layer) { return layer.kernel_rows * layer.kernel_columns; }
int64_t InPositions(const MapConvLayer& layer) { return layer.rows * layer.columns; }
int64_t OutPositions(const MapConvLayer& layer) { return layer.out_rows * layer.out_columns; }

// The part of [0, kernel) that meets [0, size) when it starts at `start`.
struct Range {
  int64_t begin, end;
  Range(int64_t start, int64_t kernel, int64_t size) : begin(Larger(0, -start)), end(Smaller(kernel, size - start)) {}
};

bool PlanForward(const MapConvLayer& layer, Plan* plan) {
  if (!plan->Allocate(OutPositions(layer), layer.kernel_rows)) return false;
  int64_t count = 0;
  for (int64_t row = 0; row < layer.out_rows; ++row) {
    const int64_t top = row * layer.stride_rows - layer.pad_rows;
    const Range rows(top, layer.kernel_rows, layer.rows);
    for (int64_t column = 0; column < layer.out_columns; ++column) {
      plan->first.get()[row * layer.out_columns + column] = count;
      const int64_t left = column * layer.stride_columns - layer.pad_columns;
      const Range columns(left, layer.kernel_columns, layer.columns);
      if (columns.begin >= columns.end) continue;
      for (int64_t tap = rows.begin; tap < rows.end; ++tap) {
        plan->segments.get()[count++] = {((top + tap) * layer.columns + left + columns.begin) * layer.channels,
                                         (tap * layer.kernel_columns + columns.begin) * layer.channels,
                                         (columns.end - columns.begin) * layer.channels};
      }
    }
  }
  plan->first.get()[plan->positions] = count;
  return true;
}

// The output position that sees input position `at` under tap `tap`, or -1.
int64_t SeenFrom(int64_t at, int64_t pad, int64_t tap, int64_t stride, int64_t outputs) {
  const int64_t ahead = at + pad - tap;
  return ahead >= 0 && ahead % stride == 0 && ahead / stride < outputs ? ahead / stride : -1;
}

bool PlanBackward(const MapConvLayer& layer, Plan* plan) {
  if (!plan->Allocate(InPositions(layer), Taps(layer))) return false;
  int64_t count = 0;
  for (int64_t row = 0; row < layer.rows; ++row) {
    for (int64_t column = 0; column < layer.columns; ++column) {
      plan->first.get()[row * layer.columns + column] = count;
      for (int64_t y = 0; y < layer.kernel_rows; ++y) {
        const int64_t out_row = SeenFrom(row, layer.pad_rows, y, layer.stride_rows, layer.out_rows);
        for (int64_t x = 0; x < layer.kernel_columns && out_row >= 0; ++x) {
          const int64_t out_column = SeenFrom(column, layer.pad_columns, x, layer.stride_columns, layer.out_columns);
          if (out_column < 0) continue;
          plan->segments.get()[count++] = {(out_row * layer.out_columns + out_column) * layer.filters,
                                           (y * layer.kernel_columns + x) * layer.filters, layer.filters};
        }
      }
    }
  }
  plan->first.get()[plan->positions] = count;
  return true;
}

// Here a "position" is a tap, and a segment pairs the input's cell with the output's (in `term`).
bool PlanKernel(const MapConvLayer& layer, Plan* plan) {
  if (!plan->Allocate(Taps(layer), OutPositions(layer))) return false;
  int64_t count = 0;
  for (int64_t tap = 0; tap < plan->positions; ++tap) {
    plan->first.get()[tap] = count;
    for (int64_t row = 0; row < layer.out_rows; ++row) {
      const int64_t y = row * layer.stride_rows - layer.pad_rows + tap / layer.kernel_columns;
      for (int64_t column = 0; column < layer.out_columns && y >= 0 && y < layer.rows; ++column) {
        const int64_t x = column * layer.stride_columns - layer.pad_columns + tap % layer.kernel_columns;
        if (x < 0 || x >= layer.columns) continue;
        plan->segments.get()[count++] = {(y * layer.columns + x) * layer.channels,
                                         (row * layer.out_columns + column) * layer.filters, 1};
      }
    }
  }
  plan->first.get()[plan->positions] = count;
  return true;
}

}  // namespace
}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_MAP_CONV_PLAN_H_
