// Displacement and confidence on the CPU.
//
// Work is cut into chunks: some rows of queries of one frame pair. A chunk packs its query rows and the key rows within
// the window's reach as normalised float32, and goes through the queries four rows at a time:
//  1. scores of the four rows into a small scratch (scores[x][row][i][j]), by tiles of 4 query rows and kTileKeys key
//     rows at one x. The lanes are the window's columns: keys are stored with the channel before the column, so the
//     scores of all j are consecutive keys times one query element, whatever the number of channels.
//  2. the squeeze of each position's scores; backward, the scores' gradient takes their place in the scratch.
//  3. backward: two products of that gradient, with the keys for the queries' gradient and with the queries for the
//     keys'. Of the pairs (query row, key row) only those inside the window are visited, in runs of equal extent.
// A chunk alone writes the query gradients of its rows. The key gradients of the chunks of one pair overlap, so each
// chunk number has a buffer of its own, and offsets take their turn: no two units of one parallel call meet, and every
// sum has one order.

#include "displacement.h"
#include "displacement_chunk.h"
#include "vector_math.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

constexpr int kTileChannels = kLanes == 16 ? 4 : 2;  // vectors of channels of a gradient tile
constexpr int64_t kMaxChunks = 2;                    // of the rows of a frame, backward: one buffer each

struct Squeezed {
  float best;                // largest score
  int64_t row, column;       // its place
  float total, right, down;  // of the weights: sum, and sums times the place
};

// The squeeze of one position's scores [rows][span]; leaves the weights, not yet divided by their sum, in exps.
KERAS_STSS_INLINE Squeezed SqueezeScores(const Plan& plan, const Scratch& scratch, const float* scores, float* exps) {
  const StssShape& s = plan.s;
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  Vec top = {};
  IntVec place = lane;
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < plan.vectors; ++j) {
      const Vec value = Load(scores + i * plan.span + j * kLanes);
      const IntVec higher = value > top;
      top = higher ? value : top;
      place = higher ? lane + static_cast<int32_t>(i * plan.span + j * kLanes) : place;
    }
  }
  Squeezed found;
  found.best = Largest(top);
  const IntVec nowhere = IntVec{} + 0x7fffffff;
  const int64_t first = Smallest(top == Broadcast(found.best) ? place : nowhere);
  found.row = first < s.rows * plan.span ? first / plan.span : 0;  // NaN or infinity may leave none
  found.column = first < s.rows * plan.span ? Min(first % plan.span, s.columns - 1) : 0;

  // Its score times the kernel, 1 at the maximum, is the largest exponent.
  const float largest = found.best * scratch.fall_rows[s.rows - 1];
  const float* fall_columns = scratch.fall_columns + s.columns - 1 - found.column;
  Vec total = {}, right = {}, down = {};
  for (int64_t i = 0; i < s.rows; ++i) {
    const Vec fall = Broadcast(scratch.fall_rows[s.rows - 1 + i - found.row]);
    Vec row = {};
    for (int64_t j = 0; j < plan.span; j += kLanes) {
      const Vec value = Load(scores + i * plan.span + j) * fall;
      Vec weight = Exp(MultiplyAdd(value, Load(fall_columns + j), Broadcast(-largest)));
      weight = And(weight, LoadMask(scratch.columns + j));
      if (exps) Store(exps + i * plan.span + j, weight);
      right = MultiplyAdd(weight, Load(scratch.places + j), right);
      row += weight;
    }
    total += row;
    down = MultiplyAdd(row, Broadcast(static_cast<float>(i - plan.up)), down);
  }
  found.total = Sum(total);
  found.right = Sum(right);
  found.down = Sum(down);
  return found;
}

// The reciprocal of the largest displacement, or 0 where there is none.
KERAS_STSS_INLINE float Unit(int64_t radius) { return radius > 0 ? 1.0f / static_cast<float>(radius) : 0.0f; }

// Replaces one position's scores by their gradient; upstream: three numbers.
KERAS_STSS_INLINE void ScoreGradient(const Plan& plan, const Scratch& scratch, const float* upstream, float* scores) {
  const StssShape& s = plan.s;
  const Squeezed found = SqueezeScores(plan, scratch, scores, scratch.exps);
  const float right = upstream[0] * Unit(plan.left), down = upstream[1] * Unit(plan.up);
  const float mean = (right * found.right + down * found.down) / found.total;
  const float* fall_columns = scratch.fall_columns + s.columns - 1 - found.column;
  for (int64_t i = 0; i < s.rows; ++i) {
    const Vec fall = Broadcast(scratch.fall_rows[s.rows - 1 + i - found.row] / found.total);
    const Vec base = Broadcast(down * static_cast<float>(i - plan.up) - mean);
    for (int64_t j = 0; j < plan.span; j += kLanes) {
      const int64_t at = i * plan.span + j;
      const Vec slope = MultiplyAdd(Broadcast(right), Load(scratch.places + j), base);
      const Vec gradient = Load(scratch.exps + at) * (fall * Load(fall_columns + j)) * slope;
      // The rectifier passes what is above zero; a NaN goes through.
      Store(scores + at, And(gradient, ~(Load(scores + at) <= Vec{})));
    }
  }
  if (!(found.best <= 0.0f)) scores[found.row * plan.span + found.column] += upstream[2];
}

// out[m][k] += sum over n < n_count, v < v_count of coefficient(m, n, v) * vectors(n, v)[k], k in vectors of channels.
struct Product {
  const float* coefficients;
  int64_t coefficient_m, coefficient_n, coefficient_v;
  const float* vectors;
  int64_t vector_n, vector_v, n_count, v_count;
  float* out;
  int64_t out_m;
};

template <int M, int K>
__attribute__((noinline)) void ProductTile(const Product& product, int64_t channel) {
  const Product p = product;
  Vec sum[M][K];
  for (int m = 0; m < M; ++m)
    for (int k = 0; k < K; ++k) sum[m][k] = Load(p.out + m * p.out_m + channel + k * kLanes);
  for (int64_t n = 0; n < p.n_count; ++n) {
    const float* coefficient = p.coefficients + n * p.coefficient_n;
    const float* vector = p.vectors + n * p.vector_n + channel;
    for (int64_t v = 0; v < p.v_count; ++v) {
      Vec values[K];
      for (int k = 0; k < K; ++k) values[k] = Load(vector + k * kLanes);
      for (int m = 0; m < M; ++m) {
        const Vec factor = Broadcast(coefficient[m * p.coefficient_m]);
        for (int k = 0; k < K; ++k) sum[m][k] = MultiplyAdd(factor, values[k], sum[m][k]);
      }
      coefficient += p.coefficient_v;
      vector += p.vector_v;
    }
  }
  for (int m = 0; m < M; ++m)
    for (int k = 0; k < K; ++k) Store(p.out + m * p.out_m + channel + k * kLanes, sum[m][k]);
}

template <int M>
KERAS_STSS_INLINE void ProductRows(const Product& product, int64_t packed) {
  int64_t channel = 0;
  for (; channel + kTileChannels * kLanes <= packed; channel += kTileChannels * kLanes)
    ProductTile<M, kTileChannels>(product, channel);
  for (; channel < packed; channel += kLanes) ProductTile<M, 1>(product, channel);
}

KERAS_STSS_INLINE void Accumulate(const Product& product, int64_t rows, int64_t packed) {
  static_assert(kRows == 4, "one case for each");
  switch (rows) {
    case 1: return ProductRows<1>(product, packed);
    case 2: return ProductRows<2>(product, packed);
    case 3: return ProductRows<3>(product, packed);
    default: return ProductRows<4>(product, packed);
  }
}

// Adds what the gradient of the scores of query rows [y, y + count) means for the queries and for the keys.
KERAS_STSS_INLINE void AddGradients(const Plan& plan, const Scratch& scratch, const Chunk& chunk, int64_t y,
                                    int64_t count, float* query_gradient, float* key_gradient) {
  const StssShape& s = plan.s;
  const int64_t row = s.width * plan.packed, position = kRows * s.rows * plan.span;
  const int64_t last = Min(s.height, y + count + plan.up);
  for (int64_t r = Max(0, y - plan.up), run; r < last; r += run) {
    // A run of key rows that the same query rows see.
    const Range seen = Seeing(plan, y, count, r);
    for (run = 1; run < kRows && r + run < last; ++run) {
      const Range next = Seeing(plan, y, count, r + run);
      if (next.from != seen.from || next.to != seen.to) break;
    }
    const int64_t queries = seen.to - seen.from, top = y + seen.from;
    const float* scores = scratch.scores + (seen.from * s.rows + r - top + plan.up) * plan.span;
    const float* query_rows = scratch.queries + (top - chunk.first) * row;
    const float* key_rows = scratch.keys + (r - chunk.key_first) * row;
    const int64_t next_query = (s.rows - 1) * plan.span, next_key = plan.span;
    for (int64_t x = 0; x < s.width; ++x) {
      // Query x, keys x + j - left.
      int64_t from = Max(0, plan.left - x), to = Min(s.columns, s.width - x + plan.left);
      Accumulate({scores + x * position + from, next_query, next_key, 1,
                  key_rows + (x + from - plan.left) * plan.packed, row, plan.packed, run, to - from,
                  query_gradient + (top * s.width + x) * plan.packed, row},
                 queries, plan.packed);
      // Key x, queries x - j + left.
      from = Max(0, x + plan.left - s.width + 1), to = Min(s.columns, x + plan.left + 1);
      const int64_t other = x - from + plan.left;
      Accumulate({scores + other * position + from, next_key, next_query, 1 - position,
                  query_rows + other * plan.packed, row, -plan.packed, queries, to - from,
                  key_gradient + (r * s.width + x) * plan.packed, row},
                 run, plan.packed);
    }
  }
}

KERAS_STSS_INLINE int64_t ChunkCost(const Plan& plan, int64_t passes) {
  const StssShape& s = plan.s;
  return 1000 + passes * plan.chunk_rows * s.width * s.rows * (plan.span * s.channels / kLanes + 20);
}

// Outputs of query rows [y, y + count) at offset l.
KERAS_STSS_INLINE void WriteBlock(const Plan& plan, const Scratch& scratch, DType dtype, int64_t frame, int64_t y,
                                  int64_t count, int64_t l, void* output) {
  const StssShape& s = plan.s;
  for (int64_t m = 0; m < count; ++m) {
    for (int64_t x = 0; x < s.width; ++x) {
      const float* scores = scratch.scores + (x * kRows + m) * s.rows * plan.span;
      const Squeezed found = SqueezeScores(plan, scratch, scores, nullptr);
      const int64_t at = (((frame * s.height + y + m) * s.width + x) * s.offset_count + l) * 3;
      const bool is_number = found.total == found.total;
      WriteOne(output, at, dtype, found.right / found.total * Unit(plan.left));
      WriteOne(output, at + 1, dtype, found.down / found.total * Unit(plan.up));
      WriteOne(output, at + 2, dtype, is_number ? found.best : found.total);
    }
  }
}

}  // namespace

bool DisplacementForward(const StssShape& shape, Squeeze squeeze, DType dtype, const void* features, void* output,
                         const Parallel& parallel) {
  const Plan plan = MakePlan(shape, 1 << 20);
  const StssShape& s = plan.s;
  bool failed = false;
  const int64_t units = s.batch * s.time * s.offset_count * plan.chunks;
  parallel(units, ChunkCost(plan, 1), [&](int64_t begin, int64_t end) {
    Scratch scratch;
    if (!scratch.Allocate(plan)) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    scratch.Fill(plan, squeeze);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t number = unit % plan.chunks, l = unit / plan.chunks % s.offset_count;
      Chunk chunk;
      const bool exists =
          MakeChunk(plan, unit / plan.chunks / s.offset_count, s.offsets[l], number, &chunk);
      if (exists) {
        PackChunk(plan, scratch, dtype, features, chunk);
        for (int64_t y = chunk.first; y < chunk.last; y += kRows) {
          const int64_t count = Min(kRows, chunk.last - y);
          ScoreBlock(plan, scratch, chunk, y, count);
          WriteBlock(plan, scratch, dtype, chunk.query_frame, y, count, l, output);
        }
        continue;
      }
      const int64_t first = (chunk.query_frame * s.height + chunk.first) * s.width;
      for (int64_t at = first; at < first + (chunk.last - chunk.first) * s.width; ++at)
        for (int64_t i = 0; i < 3; ++i) WriteOne(output, (at * s.offset_count + l) * 3 + i, dtype, 0.0f);
    }
    free(scratch.block);
  });
  return !failed;
}

int64_t DisplacementBackwardScratch(const StssShape& shape) {
  const Plan plan = MakePlan(shape, kMaxChunks);
  return (1 + plan.chunks) * shape.batch * shape.time * shape.height * shape.width * plan.packed;
}

bool DisplacementBackward(const StssShape& shape, Squeeze squeeze, DType dtype, const void* features,
                          const void* gradient, void* features_gradient, float* buffers, const Parallel& parallel) {
  const Plan plan = MakePlan(shape, kMaxChunks);
  const StssShape& s = plan.s;
  const int64_t frames = s.batch * s.time, row = s.width * plan.packed, frame_size = s.height * row;
  // buffers: gradient of the packed features as queries, then as keys of each chunk number.
  const int64_t rows = frames * s.height;
  parallel((1 + plan.chunks) * rows, row / 8, [&](int64_t begin, int64_t end) {
    memset(buffers + begin * row, 0, (end - begin) * row * sizeof(float));
  });

  bool failed = false;
  for (int64_t l = 0; l < s.offset_count; ++l) {
    parallel(frames * plan.chunks, ChunkCost(plan, 3), [&](int64_t begin, int64_t end) {
      Scratch scratch;
      if (!scratch.Allocate(plan)) {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
        return;
      }
      scratch.Fill(plan, squeeze);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t number = unit % plan.chunks;
        Chunk chunk;
        if (!MakeChunk(plan, unit / plan.chunks, s.offsets[l], number, &chunk)) continue;
        PackChunk(plan, scratch, dtype, features, chunk);
        float* query_gradient = buffers + chunk.query_frame * frame_size;
        float* key_gradient = buffers + ((1 + number) * frames + chunk.key_frame) * frame_size;
        for (int64_t y = chunk.first; y < chunk.last; y += kRows) {
          const int64_t count = Min(kRows, chunk.last - y);
          ScoreBlock(plan, scratch, chunk, y, count);
          for (int64_t x = 0; x < s.width; ++x) {
            for (int64_t m = 0; m < count; ++m) {
              const int64_t at = ((chunk.query_frame * s.height + y + m) * s.width + x) * s.offset_count + l;
              float upstream[3];
              for (int i = 0; i < 3; ++i) upstream[i] = ReadOne(gradient, at * 3 + i, dtype);
              ScoreGradient(plan, scratch, upstream, scratch.scores + (x * kRows + m) * s.rows * plan.span);
            }
          }
          AddGradients(plan, scratch, chunk, y, count, query_gradient, key_gradient);
        }
      }
      free(scratch.block);
    });
  }
  if (failed) return false;

  // Through the normalisation: v / |v|, whose gradient has no part along v (but for epsilon).
  parallel(rows, row, [&](int64_t begin, int64_t end) {
    void* block = nullptr;
    if (posix_memalign(&block, 64, (s.width * s.channels + 16) * sizeof(float))) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    float* wide = static_cast<float*>(block);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t first = r * s.width * s.channels;
      Widen(features, first, s.width * s.channels, dtype, wide);
      for (int64_t x = 0; x < s.width; ++x) {
        float* sum = buffers + r * row + x * plan.packed;
        for (int64_t part = 1; part <= plan.chunks; ++part) {
          const float* add = sum + part * frames * frame_size;
          for (int64_t c = 0; c < plan.packed; c += kLanes) Store(sum + c, Load(sum + c) + Load(add + c));
        }
        float* vector = wide + x * s.channels;
        const float scale = s.cosine ? Scale(vector, s.channels) : 1.0f;
        float along = 0.0f;
        if (s.cosine) {
          for (int64_t c = 0; c < s.channels; ++c) along += vector[c] * sum[c];
          along *= scale * scale;
        }
        for (int64_t c = 0; c < s.channels; ++c) vector[c] = scale * (sum[c] - along * vector[c]);
      }
      Narrow(wide, s.width * s.channels, dtype, features_gradient, first);
    }
    free(block);
  });
  return !failed;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss
