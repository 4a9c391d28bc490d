// What a chunk of the displacement operation works on: its sizes, its scratch, its packed rows and its scores.
// Part of displacement_cpu.cc, which says how the work is cut.
#ifndef KERAS_STSS_DISPLACEMENT_CHUNK_H_
#define KERAS_STSS_DISPLACEMENT_CHUNK_H_

#include <math.h>
#include <stdlib.h>

#include "displacement.h"
#include "vector_math.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

constexpr int kRows = 4;                             // query rows at a time
constexpr int kTileKeys = kLanes == 16 ? 6 : 2;      // key rows of a score tile: what the registers hold

KERAS_STSS_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
KERAS_STSS_INLINE int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }
KERAS_STSS_INLINE int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Sizes that follow from the shape.
struct Plan {
  StssShape s;
  int64_t up, left;       // reach of the window
  int64_t vectors, span;  // of a row of scores: vectors, and floats with padding
  int64_t packed;         // floats of one packed position: channels, padded to vectors
  int64_t line;           // floats of one channel of a turned row of keys, with the columns outside the map
  int64_t chunk_rows, chunks, key_rows;
};

KERAS_STSS_INLINE Plan MakePlan(const StssShape& shape, int64_t most_chunks) {
  Plan plan;
  plan.s = shape;
  plan.up = shape.rows / 2;
  plan.left = shape.columns / 2;
  plan.vectors = (shape.columns + kLanes - 1) / kLanes;
  plan.span = plan.vectors * kLanes;
  plan.packed = RoundUp(shape.channels, kLanes);
  plan.line = shape.width + plan.span;
  // Enough units for several threads, of at least 8 rows; the number of threads must not matter to the result.
  const int64_t pairs = shape.batch * shape.time * shape.offset_count;
  plan.chunks = 1;
  while (pairs * plan.chunks < 16 && plan.chunks < most_chunks && plan.chunks * 16 <= shape.height) plan.chunks *= 2;
  plan.chunk_rows = RoundUp((shape.height + plan.chunks - 1) / plan.chunks, kRows);
  plan.key_rows = Min(shape.height, plan.chunk_rows + 2 * plan.up);
  return plan;
}

// A thread's own memory.
struct Scratch {
  void* block;
  float *queries, *keys;  // [row][x][packed]
  float* turned;          // [key row][channel][line], column x at place left + x, zero outside the map
  float* scores;          // [x][kRows][rows][span]
  float* exps;            // [rows][span]
  int32_t* inside;        // [x][span], all bits where x + j - left is inside the map and j inside the window
  int32_t* columns;       // [span], all bits where j is inside the window
  float* places;          // [span], j - left
  float *fall_rows, *fall_columns;  // Gaussian at distance d at place rows - 1 + d, columns - 1 + d; the first over
                                    // the temperature
  float* wide;            // [width][channels]

  bool Allocate(const Plan& plan) {
    const StssShape& s = plan.s;
    const int64_t sizes[] = {plan.chunk_rows * s.width * plan.packed,
                             plan.key_rows * s.width * plan.packed,
                             plan.key_rows * s.channels * plan.line + plan.span,
                             s.width * kRows * s.rows * plan.span,
                             s.rows * plan.span,
                             s.width * plan.span,
                             plan.span,
                             plan.span,
                             2 * s.rows,
                             2 * s.columns + plan.span,
                             s.width * s.channels};
    constexpr int kParts = sizeof(sizes) / sizeof(sizes[0]);
    int64_t total = 0;
    for (int64_t size : sizes) total += RoundUp(size, 16);
    block = nullptr;
    if (posix_memalign(&block, 64, total * sizeof(float) + 64)) return false;
    float* parts[kParts];
    float* next = static_cast<float*>(block);
    for (int i = 0; i < kParts; ++i) {
      parts[i] = next;
      next += RoundUp(sizes[i], 16);
    }
    queries = parts[0], keys = parts[1], turned = parts[2], scores = parts[3], exps = parts[4];
    inside = reinterpret_cast<int32_t*>(parts[5]), columns = reinterpret_cast<int32_t*>(parts[6]);
    places = parts[7], fall_rows = parts[8], fall_columns = parts[9], wide = parts[10];
    return true;
  }

  void Fill(const Plan& plan, Squeeze squeeze) {
    const StssShape& s = plan.s;
    const float slope = -0.5f / squeeze.sigma / squeeze.sigma, scale = 1.0f / squeeze.temperature;
    for (int64_t d = 1 - s.rows; d < s.rows; ++d)
      fall_rows[s.rows - 1 + d] = scale * expf(slope * static_cast<float>(d * d));
    for (int64_t d = 1 - s.columns; d < s.columns + plan.span; ++d)
      fall_columns[s.columns - 1 + d] = d < s.columns ? expf(slope * static_cast<float>(d * d)) : 0.0f;
    for (int64_t j = 0; j < plan.span; ++j) {
      places[j] = static_cast<float>(j - plan.left);
      columns[j] = j < s.columns ? -1 : 0;
      for (int64_t x = 0; x < s.width; ++x) {
        const int64_t other = x + j - plan.left;
        inside[x * plan.span + j] = j < s.columns && other >= 0 && other < s.width ? -1 : 0;
      }
    }
  }
};

KERAS_STSS_INLINE float Scale(const float* vector, int64_t channels) {
  Vec sum = {};
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) sum = MultiplyAdd(Load(vector + c), Load(vector + c), sum);
  float rest = 0.0f;
  for (; c < channels; ++c) rest += vector[c] * vector[c];
  return 1.0f / sqrtf(Sum(sum) + rest + kCosineEpsilon);
}

// `count` stored values as float32: where they are, if they are float32 already, or in `wide`.
KERAS_STSS_INLINE const float* AsFloat(const void* from, int64_t first, int64_t count, DType dtype, float* wide) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(from) + first;
  Widen(from, first, count, dtype, wide);
  return wide;
}

// One row of a frame as packed vectors.
KERAS_STSS_INLINE void PackRow(const Plan& plan, DType dtype, const void* features, int64_t frame, int64_t y,
                               float* wide, float* to) {
  const StssShape& s = plan.s;
  const int64_t first = ((frame * s.height + y) * s.width) * s.channels;
  const float* row = AsFloat(features, first, s.width * s.channels, dtype, wide);
  for (int64_t x = 0; x < s.width; ++x) {
    const float* from = row + x * s.channels;
    const float scale = s.cosine ? Scale(from, s.channels) : 1.0f;
    float* place = to + x * plan.packed;
    for (int64_t c = 0; c < s.channels; ++c) place[c] = from[c] * scale;
    for (int64_t c = s.channels; c < plan.packed; ++c) place[c] = 0.0f;
  }
}

// The same row with the channel before the column.
KERAS_STSS_INLINE void TurnRow(const Plan& plan, const float* packed, float* turned) {
  const StssShape& s = plan.s;
  memset(turned, 0, s.channels * plan.line * sizeof(float));
  for (int64_t x = 0; x < s.width; ++x)
    for (int64_t c = 0; c < s.channels; ++c) turned[c * plan.line + plan.left + x] = packed[x * plan.packed + c];
}

// One chunk: rows [first, last) of the queries of a frame, and the key rows in their reach.
struct Chunk {
  int64_t query_frame, key_frame, first, last, key_first, key_last;
};

// Rows of a block (queries [y, y + count)) that see key row r: [from, to).
struct Range {
  int64_t from, to;
};

KERAS_STSS_INLINE Range Seeing(const Plan& plan, int64_t y, int64_t count, int64_t r) {
  return {Max(0, r - plan.up - y), Min(count, r + plan.up - y + 1)};
}

// Scores of query rows [0, M) and key rows [0, N) at one x and one vector of columns.
template <int M, int N>
__attribute__((noinline)) void ScoreTile(const Plan& plan, const float* query, const float* key, int64_t row,
                                         IntVec inside, float* scores) {
  const int64_t query_row = plan.s.width * plan.packed, key_row = plan.s.channels * plan.line;
  Vec sum[M][N] = {};
  for (int64_t c = 0; c < plan.s.channels; ++c) {
    Vec keys[N];
    for (int n = 0; n < N; ++n) keys[n] = Load(key + n * key_row);
    for (int m = 0; m < M; ++m) {
      const Vec value = Broadcast(query[m * query_row]);
      for (int n = 0; n < N; ++n) sum[m][n] = MultiplyAdd(value, keys[n], sum[m][n]);
    }
    ++query;
    key += plan.line;
  }
  // row: the window's row of the first key for the first query.
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) {
      const int64_t i = row + n - m;
      if (i < 0 || i >= plan.s.rows) continue;
      const Vec rectified = sum[m][n] < 0.0f ? Vec{} : sum[m][n];  // a NaN stays one
      Store(scores + (m * plan.s.rows + i) * plan.span, And(rectified, inside));
    }
  }
}

template <int M>
KERAS_STSS_INLINE void ScoreTiles(const Plan& plan, int64_t keys, const float* query, const float* key, int64_t row,
                                  IntVec inside, float* scores) {
  static_assert(kTileKeys <= 6, "one case for each");
  switch (keys) {
    case 1: return ScoreTile<M, 1>(plan, query, key, row, inside, scores);
    case 2: return ScoreTile<M, 2>(plan, query, key, row, inside, scores);
    case 3: return ScoreTile<M, kTileKeys < 3 ? 1 : 3>(plan, query, key, row, inside, scores);
    case 4: return ScoreTile<M, kTileKeys < 4 ? 1 : 4>(plan, query, key, row, inside, scores);
    case 5: return ScoreTile<M, kTileKeys < 5 ? 1 : 5>(plan, query, key, row, inside, scores);
    default: return ScoreTile<M, kTileKeys < 6 ? 1 : 6>(plan, query, key, row, inside, scores);
  }
}

// Rectified scores of query rows [y, y + count).
KERAS_STSS_INLINE void ScoreBlock(const Plan& plan, const Scratch& scratch, const Chunk& chunk, int64_t y,
                                  int64_t count) {
  const StssShape& s = plan.s;
  memset(scratch.scores, 0, s.width * kRows * s.rows * plan.span * sizeof(float));
  const int64_t last = Min(s.height, y + count + plan.up);
  for (int64_t r = Max(0, y - plan.up); r < last; r += kTileKeys) {
    const int64_t keys = Min(kTileKeys, last - r);
    for (int64_t x = 0; x < s.width; ++x) {
      const float* query = scratch.queries + ((y - chunk.first) * s.width + x) * plan.packed;
      for (int64_t j = 0; j < plan.vectors; ++j) {
        const float* key = scratch.turned + (r - chunk.key_first) * s.channels * plan.line + x + j * kLanes;
        const IntVec inside = LoadMask(scratch.inside + x * plan.span + j * kLanes);
        float* scores = scratch.scores + x * kRows * s.rows * plan.span + j * kLanes;
        const int64_t row = r - y + plan.up;
        switch (count) {
          case 1: ScoreTiles<1>(plan, keys, query, key, row, inside, scores); break;
          case 2: ScoreTiles<2>(plan, keys, query, key, row, inside, scores); break;
          case 3: ScoreTiles<3>(plan, keys, query, key, row, inside, scores); break;
          default: ScoreTiles<kRows>(plan, keys, query, key, row, inside, scores);
        }
      }
    }
  }
}

// Packs the rows that a chunk needs.
KERAS_STSS_INLINE void PackChunk(const Plan& plan, const Scratch& scratch, DType dtype, const void* features,
                                 const Chunk& chunk) {
  const int64_t row = plan.s.width * plan.packed;
  for (int64_t y = chunk.first; y < chunk.last; ++y)
    PackRow(plan, dtype, features, chunk.query_frame, y, scratch.wide, scratch.queries + (y - chunk.first) * row);
  for (int64_t y = chunk.key_first; y < chunk.key_last; ++y) {
    float* packed = scratch.keys + (y - chunk.key_first) * row;
    PackRow(plan, dtype, features, chunk.key_frame, y, scratch.wide, packed);
    TurnRow(plan, packed, scratch.turned + (y - chunk.key_first) * plan.s.channels * plan.line);
  }
}

// Chunk `number` of the pair of frame `frame` (over all clips) and the one `offset` later; false where there is none.
KERAS_STSS_INLINE bool MakeChunk(const Plan& plan, int64_t frame, int64_t offset, int64_t number, Chunk* chunk) {
  const StssShape& s = plan.s;
  const int64_t first = number * plan.chunk_rows, last = Min(s.height, first + plan.chunk_rows);
  *chunk = {frame, frame + offset, first, last, Max(0, first - plan.up), Min(s.height, last + plan.up)};
  const int64_t t = frame % s.time;
  return offset >= -t && offset < s.time - t;
}

}  // namespace
}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss

#endif  // KERAS_STSS_DISPLACEMENT_CHUNK_H_
