// Backward kernel of the spatio-temporal self-similarity.
//
// A position p takes part in the volume as a query, S[p, l, u, v] with the key p + (l, u, v), and as a key of the query
// p - (l, u, v). Seen from p, both are pairs with a neighbour n, and both give p that neighbour's normalised vector:
//   dN[p] = sum over n of (dS[p, n - p] + dS[n, p - n]) * N[n],
// a term only where the displacement is one of the volume's. So every position gathers from its neighbours and nothing
// is scattered: for offsets that are symmetric in time the two terms meet in one weight and half of the products
// fall away. Lanes are channels; a tile is some adjacent positions by some vectors of channels, all in registers, and
// walks along the neighbours' rows, each neighbour's vector loaded once for all positions that it is in reach of.
// With the cosine, N[n] = i[n] F[n] (i[n] goes into the weights) and dF[p] = i[p] (dN[p] - N[p] <N[p], dN[p]>).

#include "stss.h"
#include "stss_rows.h"

namespace keras_stss {
namespace KERAS_STSS_ISA {
namespace {

constexpr int kMaxPositions = kLanes == 16 ? 6 : 4;  // of a tile: kMaxPositions * kMaxVectors + kMaxVectors + 1
constexpr int kMaxVectors = kLanes == 16 ? 4 : 3;    // registers

// Everything that the units of one call have in common.
struct Plan {
  const StssShape* shape;
  DType dtype;
  const void* features;
  const void* gradient;
  const float* norms;  // (B, T, H, W) or null
  void* result;
  int64_t pitch;             // channels of a packed position, a multiple of the lanes
  int64_t reach_y, reach_x;  // displacements beyond these meet no position
  int64_t block, blocks;     // rows of a unit; units of a frame
  bool direct;               // rows of features can be used where they are
  int64_t step, line;        // of weights: from row to row of a matrix, and a matrix's size
  int64_t values;            // of the gradient
};

// A thread's own memory.
struct Scratch {
  float* sums;           // (block, W, pitch)
  float* weights;        // (rows in reach, line)
  const float** starts;  // (rows in reach): neighbours' rows
  RowCache rows;
  void* memory[3];
};

// How the weights of one row with one row of neighbours lie: that of position x and neighbour x' is at
// x * along + x' * across, one of the two steps being 1.
struct Order {
  int64_t across, along;
};

Plan MakePlan(const StssShape& shape, DType dtype) {
  Plan plan{};
  plan.shape = &shape;
  plan.dtype = dtype;
  plan.pitch = RoundUp(shape.channels, kLanes);
  plan.reach_y = Min(shape.rows / 2, shape.height - 1);
  plan.reach_x = Min(shape.columns / 2, shape.width - 1);
  plan.direct = dtype == DType::kFloat32 && shape.channels == plan.pitch;
  // Weights are written by the square, which goes up to 2 kLanes - 2 values beyond a position's window, into no other
  // position's: a whole matrix of a row's pairs, or for long rows its diagonal with that much room.
  plan.step = Min(RoundUp(shape.width, kLanes), 2 * plan.reach_x + 2 * kLanes);
  plan.line = shape.width * (plan.step + 1) + kLanes;
  plan.values = shape.batch * shape.time * shape.height * shape.width * shape.offset_count * shape.rows * shape.columns;
  const int64_t row_bytes = shape.width * plan.pitch * sizeof(float);
  const int64_t wanted = CeilDiv(shape.height * shape.batch * shape.time, 32);
  const int64_t fitting = Max(1, ScratchBytes(shape, dtype) / 2 / row_bytes);
  plan.blocks = CeilDiv(shape.height, Min(shape.height, Min(fitting, wanted)));
  plan.block = CeilDiv(shape.height, plan.blocks);
  plan.blocks = CeilDiv(shape.height, plan.block);
  return plan;
}

bool MakeScratch(const Plan& plan, Scratch* scratch) {
  const int64_t width = plan.shape->width, reach = Min(plan.shape->height, 2 * plan.reach_y + 1);
  const int64_t row_floats = width * plan.pitch, cached = plan.direct ? 0 : reach;
  float* floats = NewFloats((plan.block + cached) * row_floats + reach * plan.line);
  int64_t* tags = static_cast<int64_t*>(malloc((cached + 1) * sizeof(int64_t)));
  const float** starts = static_cast<const float**>(malloc(reach * sizeof(float*)));
  scratch->memory[0] = floats;
  scratch->memory[1] = tags;
  scratch->memory[2] = starts;
  if (!floats || !tags || !starts) return false;
  for (int64_t i = 0; i < cached; ++i) tags[i] = -1;
  scratch->sums = floats;
  scratch->rows = {scratch->sums + plan.block * row_floats, tags, 1, reach, row_floats};
  scratch->weights = scratch->rows.rows + cached * row_floats;
  scratch->starts = starts;
  return true;
}

// A row of features as float32 (W, pitch), not normalised.
const float* FeatureRow(const Plan& plan, const Scratch& scratch, int64_t frame, int64_t row) {
  const StssShape& shape = *plan.shape;
  const int64_t first = (frame * shape.height + row) * shape.width * shape.channels;
  if (plan.direct) return static_cast<const float*>(plan.features) + first;
  bool made;
  float* packed = FindRow(scratch.rows, shape, frame, row, &made);
  if (!made) {
    for (int64_t x = 0; x < shape.width; ++x)
      Widen(plan.features, first + x * shape.channels, shape.channels, plan.dtype, packed + x * plan.pitch);
  }
  return packed;
}

// One neighbour's vector into those of a tile's positions that it is in reach of: kFirst..kLast.
template <int kFirst, int kLast, int kPositions, int kVectors>
KERAS_STSS_INLINE void Take(Vec (&sums)[kPositions][kVectors], const float* neighbour, const float* weights,
                            int64_t along) {
  Vec vector[kVectors];
#pragma GCC unroll 16
  for (int j = 0; j < kVectors; ++j) vector[j] = InRegister(Load(neighbour + j * kLanes));
#pragma GCC unroll 16
  for (int i = kFirst; i <= kLast; ++i) {
    const Vec weight = weights[i * along] - Vec{};  // minus zero: nothing to compute
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) sums[i][j] = MultiplyAdd(weight, vector[j], sums[i][j]);
  }
}

// Where a walk along a row of neighbours is.
struct Walk {
  const float* neighbour;
  const float* weights;
  int64_t x;

  __attribute__((always_inline)) void Step(int64_t pitch, int64_t across) {
    neighbour += pitch;
    weights += across;
    ++x;
    // Keeps the compiler from computing every step's addresses in advance: it has no registers for so many.
    asm("" : "+r"(neighbour), "+r"(weights));
  }
};

// The neighbours that only a tile's first positions reach, and those that only its last do.
template <int kStep, int kPositions, int kVectors>
KERAS_STSS_INLINE void RampUp(Vec (&sums)[kPositions][kVectors], Walk& walk, Order order, int64_t pitch) {
  if constexpr (kStep < kPositions - 1) {
    if (walk.x >= 0) Take<0, kStep>(sums, walk.neighbour, walk.weights, order.along);
    walk.Step(pitch, order.across);
    RampUp<kStep + 1>(sums, walk, order, pitch);
  }
}

template <int kStep, int kPositions, int kVectors>
KERAS_STSS_INLINE void RampDown(Vec (&sums)[kPositions][kVectors], Walk& walk, Order order, int64_t pitch,
                                int64_t width) {
  if constexpr (kStep < kPositions) {
    if (walk.x >= width) return;
    Take<kStep, kPositions - 1>(sums, walk.neighbour, walk.weights, order.along);
    walk.Step(pitch, order.across);
    RampDown<kStep + 1>(sums, walk, order, pitch, width);
  }
}

// Adds to kPositions positions from x0 on what they gather from `count` rows of neighbours, for kVectors vectors of
// channels. No more positions than the window has columns.
template <int kPositions, int kVectors>
void Gather(const float* const* rows, int64_t count, int64_t channel, const float* weights, int64_t line, Order order,
            int64_t x0, int64_t width, int64_t reach, int64_t pitch, float* sums) {
  Vec total[kPositions][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kPositions; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) total[i][j] = Load(sums + i * pitch + j * kLanes);
  // From where on the first of the positions is not in reach.
  const int64_t after = Min(width, x0 + reach + 1);
  for (int64_t k = 0; k < count; ++k) {
    Walk walk{rows[k] + channel + (x0 - reach) * pitch,
              weights + k * line + x0 * order.along + (x0 - reach) * order.across, x0 - reach};
    RampUp<0>(total, walk, order, pitch);
    for (; walk.x < 0 && walk.x < after;) walk.Step(pitch, order.across);
    while (walk.x < after) {
      Take<0, kPositions - 1>(total, walk.neighbour, walk.weights, order.along);
      walk.Step(pitch, order.across);
    }
    RampDown<1>(total, walk, order, pitch, width);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPositions; ++i)
#pragma GCC unroll 16
    for (int j = 0; j < kVectors; ++j) Store(sums + i * pitch + j * kLanes, total[i][j]);
}

using Tile = void (*)(const float* const*, int64_t, int64_t, const float*, int64_t, Order, int64_t, int64_t, int64_t,
                      int64_t, float*);

template <int kVectors, int... kPositions>
Tile TileOf(int64_t positions, Ints<kPositions...>) {
  static constexpr Tile tiles[] = {Gather<kPositions + 1, kVectors>...};
  return tiles[positions - 1];
}

Tile TileOf(int64_t positions, int64_t vectors) {
  using Positions = CountTo<kMaxPositions>::Type;
  return vectors == 1   ? TileOf<1>(positions, Positions())
         : vectors == 2 ? TileOf<2>(positions, Positions())
         : vectors == 3 ? TileOf<3>(positions, Positions())
                        : TileOf<kMaxVectors>(positions, Positions());
}

// kLanes of the gradient's values from `index` on; those before its first and after its last are zero.
KERAS_STSS_INLINE Vec LoadGradient(const Plan& plan, int64_t index) {
  float values[kLanes];
  if (index < 0 || index + kLanes > plan.values) {
    for (int i = 0; i < kLanes; ++i)
      values[i] = index + i < 0 || index + i >= plan.values ? 0.0f : ReadOne(plan.gradient, index + i, plan.dtype);
    return Load(values);
  }
  if (plan.dtype == DType::kFloat32) return Load(static_cast<const float*>(plan.gradient) + index);
  Widen(plan.gradient, index, kLanes, plan.dtype, values);
  return Load(values);
}

// Adds to square[i], i < count, the gradient's values of query `query` + i of a row with the keys from `key` on, at
// the row and the displacements that `first` stands for: the index of query 0's value with key 0.
KERAS_STSS_INLINE void AddQueries(const Plan& plan, int64_t first, int64_t query, int64_t count, int64_t key,
                                  Vec* square) {
  const int64_t stride = plan.shape->offset_count * plan.shape->rows * plan.shape->columns - 1;
  const int64_t next = plan.shape->width * (stride + 1) * SizeOf(plan.dtype);
  for (int i = 0; i < count; ++i) {
    const int64_t index = first + (query + i) * stride + key;
    square[i] += LoadGradient(plan, index);
    const char* at = static_cast<const char*>(plan.gradient) + index * SizeOf(plan.dtype) + next;
    __builtin_prefetch(at);
    __builtin_prefetch(at + (kLanes - 1) * SizeOf(plan.dtype));
  }
}

// A square of the weights of a row's pairs with one row of neighbours, `offset` frames and u rows away: positions (or
// with `turned` neighbours) from `a` on by neighbours (or positions) from b on. Outside the window it holds anything.
void PairWeights(const Plan& plan, int64_t frame, int64_t y, int64_t offset, int64_t u, bool turned, int64_t a,
                 int64_t b, Vec* square) {
  const StssShape& shape = *plan.shape;
  const int64_t window = shape.rows * shape.columns, across = Min(kLanes, shape.width - b);
  const int64_t along = Min(kLanes, shape.width - a);
  const int64_t own = frame * shape.height + y, other = (frame + offset) * shape.height + y + u;
  for (int i = 0; i < kLanes; ++i) square[i] = Vec{};
  for (int pass = 0; pass < 2; ++pass) {  // the neighbours are the queries, then the row itself
    const bool self = pass == 1;
    if (self && turned) continue;
    bool found = false;
    for (int64_t l = 0; l < shape.offset_count; ++l) {
      if (shape.offsets[l] != (self ? offset : -offset)) continue;
      const int64_t first = ((self ? own : other) * shape.width * shape.offset_count + l) * window +
                            (shape.rows / 2 + (self ? u : -u)) * shape.columns + shape.columns / 2;
      if (self || turned) {
        AddQueries(plan, first, a, along, b, square);
      } else {
        AddQueries(plan, first, b, across, a, square);
      }
      found = true;
    }
    if (found && !self && !turned) Transpose(square);
  }
  if (!plan.norms) return;
  const float* norms = plan.norms + other * shape.width;
  if (turned) {
    for (int i = 0; i < along; ++i) square[i] *= norms[a + i];
  } else {
    const Vec norm = Load(norms + b);
    for (int i = 0; i < along; ++i) square[i] *= norm;
  }
}

// The weights of a row's pairs with one row of neighbours.
void RowWeights(const Plan& plan, int64_t frame, int64_t y, int64_t offset, int64_t u, bool turned, float* weights) {
  const int64_t width = plan.shape->width, reach = plan.reach_x;
  for (int64_t a = 0; a < width; a += kLanes) {
    const int64_t rows = Min(kLanes, width - a), begin = Max(0, a - reach), end = Min(width, a + rows + reach);
    for (int64_t b = begin / kLanes * kLanes; b < end; b += kLanes) {
      Vec square[kLanes];
      PairWeights(plan, frame, y, offset, u, turned, a, b, square);
      for (int64_t i = 0; i < rows; ++i) Store(weights + (a + i) * plan.step + b, square[i]);
    }
  }
}

// What the row y gathers from the frame `offset` frames away, into sums (W, pitch).
void GatherFrame(const Plan& plan, const Scratch& scratch, int64_t frame, int64_t y, int64_t offset, bool turned,
                 float* sums) {
  const StssShape& shape = *plan.shape;
  const int64_t width = shape.width, begin = Max(0, y - plan.reach_y), end = Min(shape.height, y + plan.reach_y + 1);
  for (int64_t row = begin; row < end; ++row) {
    scratch.starts[row - begin] = FeatureRow(plan, scratch, frame + offset, row);
    RowWeights(plan, frame, y, offset, row - y, turned, scratch.weights + (row - begin) * plan.line);
  }
  const Order order = turned ? Order{plan.step, 1} : Order{1, plan.step};
  const int64_t most = Min(kMaxPositions, 2 * plan.reach_x + 1), tiles = CeilDiv(width, most);
  const int64_t vectors = plan.pitch / kLanes, parts = CeilDiv(vectors, kMaxVectors);
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t vector = vectors * part / parts, channel = vector * kLanes;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t x = width * tile / tiles, positions = width * (tile + 1) / tiles - x;
      TileOf(positions, vectors * (part + 1) / parts - vector)(
          scratch.starts, end - begin, channel, scratch.weights, plan.line, order, x, width, plan.reach_x, plan.pitch,
          sums + x * plan.pitch + channel);
    }
  }
}

// From the gradient of a row's normalised vectors to that of the features, as stored.
void FinishRow(const Plan& plan, const Scratch& scratch, int64_t frame, int64_t y, float* sums) {
  const StssShape& shape = *plan.shape;
  const int64_t row = frame * shape.height + y, channels = shape.channels;
  const float* features = plan.norms ? FeatureRow(plan, scratch, frame, y) : nullptr;
  for (int64_t x = 0; x < shape.width; ++x) {
    float* sum = sums + x * plan.pitch;
    if (features) {
      const float norm = plan.norms[row * shape.width + x];
      const float* vector = features + x * plan.pitch;
      const float along = norm * (norm * Dot(vector, sum, plan.pitch));
      for (int64_t c = 0; c < channels; ++c) sum[c] = norm * (sum[c] - along * vector[c]);
    }
    Narrow(sum, channels, plan.dtype, plan.result, (row * shape.width + x) * channels);
  }
}

bool Among(const StssShape& shape, int64_t offset, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (shape.offsets[i] == offset) return true;
  return false;
}

// The gradient of one block of rows.
void GradientBlock(const Plan& plan, const Scratch& scratch, int64_t frame, int64_t block) {
  const StssShape& shape = *plan.shape;
  const int64_t begin = block * plan.block, end = Min(shape.height, begin + plan.block);
  const int64_t row_floats = shape.width * plan.pitch, t = frame % shape.time;
  memset(scratch.sums, 0, (end - begin) * row_floats * sizeof(float));
  // Frames that are compared with this one: each offset and its opposite, once.
  for (int64_t i = 0; i < 2 * shape.offset_count; ++i) {
    const bool forwards = i < shape.offset_count;
    const int64_t l = forwards ? i : i - shape.offset_count;
    if (shape.offsets[l] <= -shape.time || shape.offsets[l] >= shape.time) continue;
    const int64_t offset = forwards ? shape.offsets[l] : -shape.offsets[l];
    if (offset < -t || offset >= shape.time - t) continue;
    if (Among(shape, offset, forwards ? l : shape.offset_count)) continue;
    if (!forwards && Among(shape, -offset, l)) continue;
    for (int64_t y = begin; y < end; ++y)
      GatherFrame(plan, scratch, frame, y, offset, !forwards, scratch.sums + (y - begin) * row_floats);
  }
  for (int64_t y = begin; y < end; ++y)
    FinishRow(plan, scratch, frame, y, scratch.sums + (y - begin) * row_floats);
}

}  // namespace

bool StssBackward(const StssShape& shape, DType dtype, const void* features, const void* gradient,
                  void* features_gradient, const Parallel& parallel) {
  const int64_t positions = shape.batch * shape.time * shape.height * shape.width;
  if (!positions || !shape.channels) return true;
  Plan plan = MakePlan(shape, dtype);
  plan.features = features;
  plan.gradient = gradient;
  plan.result = features_gradient;
  float* norms = shape.cosine ? NewFloats(positions + kLanes) : nullptr;  // read by the vector
  plan.norms = norms;
  bool failed = shape.cosine && (!norms || !InverseNorms(shape, dtype, features, norms, parallel));
  const double cost = 0.05 * plan.block * shape.width * shape.offset_count * (2 * plan.reach_y + 1) *
                      (2 * plan.reach_x + 1) * (2 * shape.channels + 60);
  if (!failed) {
    const int64_t units = shape.batch * shape.time * plan.blocks;
    parallel(units, static_cast<int64_t>(cost < 1e15 ? cost : 1e15), [&](int64_t begin, int64_t end) {
      Scratch scratch;
      if (MakeScratch(plan, &scratch)) {
        for (int64_t unit = begin; unit < end; ++unit)
          GradientBlock(plan, scratch, unit / plan.blocks, unit % plan.blocks);
      } else {
        __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      }
      for (void* memory : scratch.memory) free(memory);
    });
  }
  free(norms);
  return !failed;
}

}  // namespace KERAS_STSS_ISA
}  // namespace keras_stss
