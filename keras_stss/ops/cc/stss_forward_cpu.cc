// Forward kernel of the spatio-temporal self-similarity.
//
// A vector's lanes are adjacent positions of a row. Rows are packed channel by channel (C, pitch), so that a score of a
// row of positions is a sum over channels of query lanes times key lanes that are loaded v places further: no lane is
// spent on pairs outside the window and no sum has to be reduced. What a load brings from beyond a row's ends is
// whatever lies beside it in the scratch; those lanes are cut off before they are stored, whatever they hold.
// A tile is kQueryRows rows by up to kMaxColumns displacements, all of them in registers; one load of a key serves all
// its query rows. The scores of a row, (U, V, lanes), are transposed into the volume.

#include "stss.h"
#include "stss_rows.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

constexpr int kQueryRows = 3;
constexpr int kMaxColumns = kLanes == 16 ? 9 : 4;  // kQueryRows * (kMaxColumns + 1) + 1 registers

// Everything that the units of one call have in common.
struct Plan {
  const StssShape* shape;
  DType dtype;
  const void* features;
  const float* norms;  // (B, T, H, W) or null
  char* volume;
  int64_t pitch;             // positions of a packed row, a multiple of the lanes
  int64_t row_floats;        // of a packed row
  int64_t reach_y, reach_x;  // displacements beyond these meet no position
  int64_t block, blocks;     // query rows of a unit; units of a frame
  int64_t cache_frames, cache_rows;
};

// A thread's own memory.
struct Scratch {
  float* queries;  // (block, row_floats)
  float* scores;   // (kQueryRows, window's reach, lanes)
  float* turned;   // (lanes, window's reach): where scores cannot be transposed straight into the volume
  float* wide;     // (lanes, C): half precision, widened
  RowCache keys;
  void* memory[2];
};

// Frames from the first key frame to the last one of a query, one of them left out.
int64_t Span(const StssShape& shape) {
  int64_t least = shape.time, most = -shape.time;
  for (int64_t i = 0; i < shape.offset_count; ++i) {
    least = Min(least, Max(shape.offsets[i], -shape.time));
    most = Max(most, Min(shape.offsets[i], shape.time));
  }
  return Max(1, most - least);
}

Plan MakePlan(const StssShape& shape, DType dtype) {
  Plan plan{};
  plan.shape = &shape;
  plan.dtype = dtype;
  plan.pitch = RoundUp(shape.width, kLanes);
  plan.row_floats = plan.pitch * shape.channels;
  plan.reach_y = Min(shape.rows / 2, shape.height - 1);
  plan.reach_x = Min(shape.columns / 2, shape.width - 1);
  const int64_t row_bytes = Max(plan.row_floats, 1) * sizeof(float), budget = ScratchBytes(shape, dtype);
  // Few frames are cut into more blocks, for the threads; long rows too, for the cache.
  const int64_t wanted = CeilDiv(shape.height * shape.batch * shape.time, 32);
  const int64_t fitting = Max(1, budget / 4 / row_bytes / kQueryRows) * kQueryRows;
  plan.block = Min(shape.height, Min(fitting, RoundUp(wanted, kQueryRows)));
  plan.blocks = CeilDiv(shape.height, plan.block);
  plan.block = Min(shape.height, RoundUp(CeilDiv(shape.height, plan.blocks), kQueryRows));
  plan.blocks = CeilDiv(shape.height, plan.block);
  // Whole frames, as many as the offsets span, let each be packed once while time goes on; else what one tile needs.
  const int64_t frames = (budget - plan.block * row_bytes) / (shape.height * row_bytes);
  plan.cache_frames = Max(1, Min(frames, Span(shape)));
  plan.cache_rows = frames > 0 ? shape.height : Min(shape.height, kQueryRows + 2 * plan.reach_y);
  return plan;
}

bool MakeScratch(const Plan& plan, Scratch* scratch) {
  const int64_t guard = RoundUp(plan.reach_x + kLanes, kLanes), reach = (2 * plan.reach_y + 1) * (2 * plan.reach_x + 1);
  const int64_t cached = plan.cache_frames * plan.cache_rows, queries = RoundUp(plan.block * plan.row_floats, kLanes);
  const int64_t scores = kQueryRows * reach * kLanes, turned = reach * kLanes;
  const int64_t wide = plan.dtype == DType::kFloat32 ? 0 : kLanes * plan.shape->channels;
  float* floats = NewFloats(queries + scores + turned + guard + cached * plan.row_floats + guard + wide);
  int64_t* tags = static_cast<int64_t*>(malloc(cached * sizeof(int64_t)));
  scratch->memory[0] = floats;
  scratch->memory[1] = tags;
  if (!floats || !tags) return false;
  for (int64_t i = 0; i < cached; ++i) tags[i] = -1;
  scratch->queries = floats;
  scratch->scores = scratch->queries + queries;
  scratch->turned = scratch->scores + scores;
  float* rows = scratch->turned + turned + guard;
  scratch->wide = rows + cached * plan.row_floats + guard;
  scratch->keys = {rows, tags, plan.cache_frames, plan.cache_rows, plan.row_floats};
  return true;
}

// One row of positions, (W, C) as stored -> (C, pitch), normalised. Lanes beyond the row's end repeat its last one.
void PackRow(const Plan& plan, int64_t row, float* wide, float* packed) {
  const int64_t width = plan.shape->width, channels = plan.shape->channels;
  for (int64_t x = 0; x < width; x += kLanes) {
    const int64_t count = Min(kLanes, width - x), first = (row * width + x) * channels;
    const float* from = static_cast<const float*>(plan.features) + first;
    if (plan.dtype != DType::kFloat32) {
      Widen(plan.features, first, count * channels, plan.dtype, wide);
      from = wide;
    }
    float norms[kLanes];
    int64_t starts[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t lane = Min(i, count - 1);
      starts[i] = lane * channels;
      norms[i] = plan.norms ? plan.norms[row * width + x + lane] : 1.0f;
    }
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = Load(from + starts[i] + c) * norms[i];
      Transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) Store(packed + (c + i) * plan.pitch + x, square[i]);
    }
    for (; c < channels; ++c)
      for (int i = 0; i < kLanes; ++i) packed[c * plan.pitch + x + i] = from[starts[i] + c] * norms[i];
  }
}

// Scores of kRows query rows with one key row, at kColumns adjacent displacements, for kLanes adjacent positions.
// keys points at the key of the first position at the first displacement, place is that key's x.
template <int kRows, int kColumns>
void Correlate(const float* queries, const float* keys, int64_t channels, int64_t pitch, int64_t row_floats,
               int64_t place, int64_t width, float* scores, int64_t score_stride) {
  Vec sums[kRows][kColumns];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) sums[i][j] = Vec{};
  for (int64_t c = 0; c < channels; ++c) {
    Vec query[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) query[i] = Load(queries + i * row_floats);
#pragma GCC unroll 16
    for (int j = 0; j < kColumns; ++j) {
      const Vec key = InRegister(Load(keys + j));
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sums[i][j] = MultiplyAdd(query[i], key, sums[i][j]);
    }
    queries += pitch;
    keys += pitch;
  }
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
#pragma GCC unroll 16
  for (int j = 0; j < kColumns; ++j) {
    const IntVec at = lane + static_cast<int32_t>(place + j);
    const IntVec inside = (at >= 0) & (at < static_cast<int32_t>(width));
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i)
      Store(scores + i * score_stride + j * kLanes, (Vec)((IntVec)sums[i][j] & inside));
  }
}

using Tile = void (*)(const float*, const float*, int64_t, int64_t, int64_t, int64_t, int64_t, float*, int64_t);

template <int kRows, int... kColumns>
Tile TileOf(int64_t columns, Ints<kColumns...>) {
  static constexpr Tile tiles[] = {Correlate<kRows, kColumns + 1>...};
  return tiles[columns - 1];
}

Tile TileOf(int64_t rows, int64_t columns) {
  using Columns = CountTo<kMaxColumns>::Type;
  return rows == 3   ? TileOf<3>(columns, Columns())
         : rows == 2 ? TileOf<2>(columns, Columns())
                     : TileOf<1>(columns, Columns());
}

// Scores of up to kQueryRows rows from y on, positions from x on, with all the key rows of a frame in reach.
void ScoreRows(const Plan& plan, const Scratch& scratch, const float* queries, int64_t y, int64_t rows, int64_t x,
               int64_t key_frame) {
  const StssShape& shape = *plan.shape;
  const int64_t window_y = 2 * plan.reach_y + 1, window_x = 2 * plan.reach_x + 1;
  const int64_t last = Min(x + kLanes, shape.width) - 1;  // position
  const int64_t chunks = CeilDiv(window_x, kMaxColumns), row_scores = window_x * kLanes;
  if (y < plan.reach_y || y + rows + plan.reach_y > shape.height)
    memset(scratch.scores, 0, rows * window_y * row_scores * sizeof(float));
  for (int64_t key = Max(0, y - plan.reach_y); key < Min(shape.height, y + rows + plan.reach_y); ++key) {
    bool made;
    float* packed = FindRow(scratch.keys, shape, key_frame, key, &made);
    if (!made) PackRow(plan, key_frame * shape.height + key, scratch.wide, packed);
    const int64_t from = Max(0, key - plan.reach_y - y), to = Min(rows, key + plan.reach_y - y + 1);
    float* scores = scratch.scores + (from * window_y + key - y - from + plan.reach_y) * row_scores;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t begin = window_x * chunk / chunks, end = window_x * (chunk + 1) / chunks;
      const int64_t v = begin - plan.reach_x;
      if (last + v + end - begin - 1 < 0 || x + v >= shape.width) {
        for (int64_t i = from; i < to; ++i)
          memset(scores + (i - from) * (window_y - 1) * row_scores + begin * kLanes, 0,
                 (end - begin) * kLanes * sizeof(float));
        continue;
      }
      TileOf(to - from, end - begin)(queries + from * plan.row_floats + x, packed + x + v, shape.channels, plan.pitch,
                                     plan.row_floats, x + v, shape.width, scores + begin * kLanes,
                                     (window_y - 1) * row_scores);
    }
  }
}

// scores (count, lanes) -> to (positions, count), `stride` floats from position to position.
void Turn(const float* scores, int64_t count, int64_t positions, float* to, int64_t stride) {
  if (count < kLanes) {
    for (int64_t x = 0; x < positions; ++x)
      for (int64_t i = 0; i < count; ++i) to[x * stride + i] = scores[i * kLanes + x];
    return;
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = Min(i, count - kLanes);  // the last square overlaps the one before it
    Vec square[kLanes];
    for (int j = 0; j < kLanes; ++j) square[j] = Load(scores + (at + j) * kLanes);
    Transpose(square);
    if (positions == kLanes) {
      for (int j = 0; j < kLanes; ++j) Store(to + j * stride + at, square[j]);
    } else {
      for (int j = 0; j < positions; ++j) Store(to + j * stride + at, square[j]);
    }
  }
}

// Writes one row's scores of one offset; `place` counts the volume's elements.
void WriteScores(const Plan& plan, const Scratch& scratch, const float* scores, int64_t positions, int64_t place) {
  const StssShape& shape = *plan.shape;
  const int64_t window = shape.rows * shape.columns, stride = shape.offset_count * window;
  const int64_t window_y = 2 * plan.reach_y + 1, window_x = 2 * plan.reach_x + 1, reach = window_y * window_x;
  if (reach == window && plan.dtype == DType::kFloat32)
    return Turn(scores, reach, positions, reinterpret_cast<float*>(plan.volume) + place, stride);
  Turn(scores, reach, positions, scratch.turned, reach);
  for (int64_t x = 0; x < positions; ++x) {
    const float* turned = scratch.turned + x * reach;
    if (reach == window) {
      Narrow(turned, reach, plan.dtype, plan.volume, place + x * stride);
      continue;
    }
    memset(plan.volume + (place + x * stride) * SizeOf(plan.dtype), 0, window * SizeOf(plan.dtype));
    const int64_t first = (shape.rows / 2 - plan.reach_y) * shape.columns + shape.columns / 2 - plan.reach_x;
    for (int64_t u = 0; u < window_y; ++u)
      Narrow(turned + u * window_x, window_x, plan.dtype, plan.volume, place + x * stride + first + u * shape.columns);
  }
}

// All offsets of one block of query rows.
void ScoreBlock(const Plan& plan, const Scratch& scratch, int64_t frame, int64_t block) {
  const StssShape& shape = *plan.shape;
  const int64_t begin = block * plan.block, end = Min(shape.height, begin + plan.block);
  const int64_t window = shape.rows * shape.columns, t = frame % shape.time;
  for (int64_t y = begin; y < end; ++y)
    PackRow(plan, frame * shape.height + y, scratch.wide, scratch.queries + (y - begin) * plan.row_floats);
  for (int64_t l = 0; l < shape.offset_count; ++l) {
    const int64_t offset = shape.offsets[l];
    if (offset < -t || offset >= shape.time - t) {
      const int64_t first = (frame * shape.height + begin) * shape.width, after = first + (end - begin) * shape.width;
      for (int64_t i = first; i < after; ++i)
        memset(plan.volume + (i * shape.offset_count + l) * window * SizeOf(plan.dtype), 0,
               window * SizeOf(plan.dtype));
      continue;
    }
    for (int64_t y = begin; y < end; y += kQueryRows) {
      const int64_t rows = Min(kQueryRows, end - y);
      for (int64_t x = 0; x < shape.width; x += kLanes) {
        ScoreRows(plan, scratch, scratch.queries + (y - begin) * plan.row_floats, y, rows, x, frame + offset);
        for (int64_t i = 0; i < rows; ++i) {
          const int64_t position = (frame * shape.height + y + i) * shape.width + x;
          const float* scores = scratch.scores + i * (2 * plan.reach_y + 1) * (2 * plan.reach_x + 1) * kLanes;
          WriteScores(plan, scratch, scores, Min(kLanes, shape.width - x),
                      (position * shape.offset_count + l) * window);
        }
      }
    }
  }
}

}  // namespace

bool StssForward(const StssShape& shape, DType dtype, const void* features, void* volume, const Parallel& parallel) {
  const int64_t positions = shape.batch * shape.time * shape.height * shape.width;
  if (!positions || !shape.offset_count) return true;
  Plan plan = MakePlan(shape, dtype);
  plan.features = features;
  plan.volume = static_cast<char*>(volume);
  float* norms = shape.cosine ? NewFloats(positions) : nullptr;
  plan.norms = norms;
  bool failed = shape.cosine && (!norms || !InverseNorms(shape, dtype, features, norms, parallel));
  const double cost = 0.05 * plan.block * shape.width * shape.offset_count * (2 * plan.reach_y + 1) *
                      (2 * plan.reach_x + 1) * (shape.channels + 20);
  if (!failed) {
    const int64_t units = shape.batch * shape.time * plan.blocks;
    parallel(units, static_cast<int64_t>(cost < 1e15 ? cost : 1e15), [&](int64_t begin, int64_t end) {
      Scratch scratch;
      if (MakeScratch(plan, &scratch)) {
        for (int64_t unit = begin; unit < end; ++unit)
          ScoreBlock(plan, scratch, unit / plan.blocks, unit % plan.blocks);
      } else {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      }
      free(scratch.memory[0]);
      free(scratch.memory[1]);
    });
  }
  free(norms);
  return !failed;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss
