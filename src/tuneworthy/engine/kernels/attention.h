// Attention for rows that are answered, and what that of packs is made of (packs.h).
//
// Suffixes of names are shapes: B rows, T tokens, Q new tokens of each row, H heads, K heads of
// keys, G = H / K, D width, S room of a slot, N queries, P tokens that all rows begin with.

#pragma once

#include <vector>

#include "layers.h"
#include "lines.h"
#include "tiles.h"

namespace {

// The highest of some scores, and the sum of their exponentials with it taken off.
struct Softened {
  float most, sum;
};

// Scores of one query to exponentials, in place: those of keys `first` to `last` (not itself), 0
// for all others. There is room for whole lanes in `line`.
inline Softened soften(float* line, int64_t first, int64_t last, int64_t whole, float softcap) {
  if (first >= last) {
    std::fill(line, line + whole, 0.0f);
    return {HIDDEN, 0};
  }
  if (softcap > 0)
    for (int64_t i = first; i < last; i++) line[i] = softcap * std::tanh(line[i] / softcap);
  std::fill(line, line + first, HIDDEN);
  std::fill(line + last, line + whole, HIDDEN);
  const float most = highest(line, whole);
  Floats together = {};
  for (int64_t i = 0; i < whole; i += LANES) {
    Floats lanes = exp_lanes(load_lanes(line + i) - most);
    together += lanes;
    save_lanes(line + i, lanes);
  }
  return {most, sum(together)};
}

// What a query finds among some keys: the sum of their values (D,), each times its exponential.
struct Found {
  const float* values;
  Softened weights;
};

// What a query finds among two sets of keys: the weighted mean over both.
template <typename T>
inline void mean(T* out, int64_t d, Found some, Found others) {
  const float most = std::max(some.weights.most, others.weights.most);
  float x = std::exp(some.weights.most - most), y = std::exp(others.weights.most - most);
  const float inverse = 1 / (x * some.weights.sum + y * others.weights.sum);
  x *= inverse, y *= inverse;
  for (int64_t i = 0; i < d; i += LANES)
    save_lanes(out + i, load_lanes(some.values + i) * x + load_lanes(others.values + i) * y);
}
template <typename T>
inline void mean(T* out, int64_t d, Found some) {
  store_line(out, some.values, d, 1 / some.weights.sum);
}

// Keys and values of one head, as panels: lines of keys, columns of values.
template <typename T>
struct Panels {
  const T *keys, *values;
  int64_t count;
};

// Up to TILE queries and the keys that they see, each one's from `first` to `last` (not itself).
template <typename T>
class Sight {
 public:
  int64_t first[TILE], last[TILE];

  Sight(int64_t d, int64_t most_keys)
      : d(d), columns(whole_panels(d)), stride(whole_panels(most_keys)),
        scores(TILE * stride), values(TILE * columns) {}

  Found found(int64_t m) const { return {&values[m * columns], weights[m]}; }

  // Of `few` queries `stride` apart.
  void look(int64_t few, const T* queries, int64_t queries_stride, const Panels<T>& among,
            float softcap) {
    const int64_t start = *std::min_element(first, first + few) / PANEL * PANEL;
    const int64_t end = std::max(start, *std::max_element(last, last + few));
    for (int64_t key = start; key < end; key += PANEL) {
      const T* panel = among.keys + key * d;
      const Stage<T> stage{queries, queries_stride, panel, d, panel + PANEL * d};
      tile_of<T>(few, &stage, 1, nullptr, &scores[key], stride);
    }
    for (int64_t m = 0; m < few; m++) {
      float* line = &scores[m * stride + start];
      weights[m] =
          soften(line, first[m] - start, last[m] - start, whole_panels(end) - start, softcap);
      // As the next product reads them; for 32 bits that is where they are.
      store_line(reinterpret_cast<T*>(line), line, whole_panels(end) - start, 1.0f);
    }
    const int64_t steps = whole_steps<T>(among.count), depth = whole_steps<T>(end) - start;
    for (int64_t c = 0; c < columns; c += PANEL) {
      const T *line = reinterpret_cast<const T*>(&scores[start]), *panel = among.values + c * steps;
      const Stage<T> stage{line, stride * DEEP<T>, panel + start * PANEL, depth,
                           panel + PANEL * steps};
      tile_of<T>(few, &stage, 1, nullptr, &values[c], columns);
    }
  }

 private:
  int64_t d, columns, stride;
  std::vector<float> scores, values;
  Softened weights[TILE];
};

}  // namespace

extern "C" {

// What a pass of the model knows of its rows, the same for every layer; see `compiled.Rows`.
struct Rows {
  int64_t batch, heads, kv_heads, width, prefix;
  const int64_t* keys_B;      // addresses of each row's keys in layer 0, (layers, …, K, S, D)
  const int64_t* values_B;
  const int64_t* strides_B;   // from one layer to the next, in numbers
  const int64_t* rooms_B;     // S
  const int64_t* lengths_B;   // tokens that each slot holds
  const int64_t* starts_B;    // where each row's new tokens begin, and behind the last: B + 1
  const int64_t* depths_T;    // how far each new token stands behind its slot's; null: one each
  const uint8_t* sees_BQQ;    // which of a row's new ones see which; null: each those before it
};
}

namespace {

// Where one row's keys and values of one head are, (S, D) each.
template <typename T>
struct Caches {
  T *keys, *values;
};

template <typename T>
Caches<T> caches(const Rows& rows, int64_t layer, int64_t row, int64_t k) {
  const int64_t at = layer * rows.strides_B[row] + k * rows.rooms_B[row] * rows.width;
  return {reinterpret_cast<T*>(rows.keys_B[row]) + at,
          reinterpret_cast<T*>(rows.values_B[row]) + at};
}

// The beginning's panels of one head, from (K, …) of one layer.
template <typename T>
Panels<T> beginning(const Rows& rows, const T* keys, const T* values, int64_t k) {
  return {keys + k * whole_panels(rows.prefix) * rows.width,
          values + k * whole_panels(rows.width) * whole_steps<T>(rows.prefix), rows.prefix};
}

// How far back a token sees: the first position. `window`: how many tokens, itself one of them.
inline int64_t farthest(int64_t position, int64_t window) {
  return window ? std::max<int64_t>(0, position - window + 1) : 0;
}

// Keys and values (T, K, D) into their rows' slots, and queries × scale, (T, H, D).
template <typename T>
void put(const Rows& rows, int64_t layer, const T* query, int64_t query_stride, const T* key,
         int64_t key_stride, const T* value, int64_t value_stride, const T* cos, const T* sin,
         int64_t turn_stride, float scale, T* queries_THD, int threads) {
  const int64_t d = rows.width, tokens = rows.starts_B[rows.batch];
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t token = 0; token < tokens; token++) {
    const int64_t* after = std::upper_bound(rows.starts_B, rows.starts_B + rows.batch, token);
    const int64_t row = after - rows.starts_B - 1;
    const int64_t place = rows.lengths_B[row] + token - rows.starts_B[row];
    const T* c = cos ? cos + token * turn_stride : nullptr;
    const T* s = cos ? sin + token * turn_stride : nullptr;
    for (int64_t k = 0; k < rows.kv_heads; k++) {
      const Caches<T> to = caches<T>(rows, layer, row, k);
      turn_one(key + token * key_stride + k * d, c, s, 1.0f, to.keys + place * d, d);
      std::memcpy(to.values + place * d, value + token * value_stride + k * d, d * sizeof(T));
    }
    for (int64_t h = 0; h < rows.heads; h++)
      turn_one(query + token * query_stride + h * d, c, s, scale,
               queries_THD + (token * rows.heads + h) * d, d);
  }
}

// Attention of prompts, whose keys and values `put` has put away: each token sees all of its slot's
// before it, itself, and the beginning.
template <typename T>
void read(const Rows& rows, int64_t layer, int64_t window, float softcap, const T* queries_THD,
          const T* before_keys, const T* before_values, T* out_THD, int threads) {
  const int64_t d = rows.width, heads = rows.heads, group = heads / rows.kv_heads;
  const int64_t prefix = rows.prefix, all = rows.batch * rows.kv_heads;
  // Few rows: each head of queries is a task of its own, though keys are laid for each again.
  const int64_t parts = std::clamp<int64_t>((4 * threads - 1) / all + 1, 1, group);
  int64_t longest = 0;
  for (int64_t row = 0; row < rows.batch; row++)
    longest = std::max(longest, rows.lengths_B[row] + rows.starts_B[row + 1] - rows.starts_B[row]);
#pragma omp parallel num_threads(threads)
  {
    Sight<T> own(d, longest), shared(d, prefix);
    std::vector<T> keys(whole_panels(longest) * d);
    std::vector<T> values(whole_steps<T>(longest) * whole_panels(d));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < all * parts; task++) {
      const int64_t row = task / parts / rows.kv_heads, k = task / parts % rows.kv_heads;
      const int64_t part = task % parts, start = rows.starts_B[row], held = rows.lengths_B[row];
      const int64_t count = rows.starts_B[row + 1] - start, most = tile_lines(count);
      const Caches<T> slot = caches<T>(rows, layer, row, k);
      lay_lines<T>(slot.keys, d, held + count, d, keys.data());
      lay_columns<T>(slot.values, d, held + count, d, values.data());
      const Panels<T> mine = {keys.data(), values.data(), held + count};
      const Panels<T> before = beginning<T>(rows, before_keys, before_values, k);
      for (int64_t g = group * part / parts; g < group * (part + 1) / parts; g++)
        for (int64_t token = 0; token < count; token += most) {
          const int64_t few = std::min(most, count - token);
          const int64_t line = ((start + token) * heads + k * group + g) * d;
          for (int64_t m = 0; m < few; m++) {
            const int64_t at = held + token + m;
            own.first[m] = farthest(at, window);
            own.last[m] = at + 1;
            shared.first[m] = std::min(prefix, farthest(prefix + at, window));
            shared.last[m] = prefix;
          }
          own.look(few, queries_THD + line, heads * d, mine, softcap);
          if (prefix) shared.look(few, queries_THD + line, heads * d, before, softcap);
          for (int64_t m = 0; m < few; m++) {
            T* out = out_THD + line + m * heads * d;
            if (prefix) mean(out, d, own.found(m), shared.found(m));
            else mean(out, d, own.found(m));
          }
        }
    }
  }
}

struct Scratch {
  std::vector<float> numbers;
  std::vector<Softened> weights;
};

// What the next tokens of one row find among its slot's keys of one head, and with `shared` (G, T)
// of the beginning's. Those of the `next` one are fetched from memory meanwhile, which takes longer
// than computing.
template <typename T, int WIDTH>
void attend_one(const Rows& rows, int64_t layer, int64_t row, int64_t k, int64_t window,
                float softcap, const T* queries_THD, const Found* shared, T* out_THD,
                Scratch& scratch, Caches<T> next) {
  const int64_t d = WIDTH ? WIDTH : rows.width, heads = rows.heads, group = heads / rows.kv_heads;
  const int64_t start = rows.starts_B[row], count = rows.starts_B[row + 1] - start;
  const int64_t tokens = rows.starts_B[rows.batch], many = group * count;
  const int64_t length = rows.lengths_B[row], total = length + count, stride = whole_lanes(total);
  scratch.numbers.resize(many * (2 * d + stride));
  scratch.weights.resize(many);
  float *values = scratch.numbers.data(), *scores = values + many * d;
  T* queries = reinterpret_cast<T*>(scores + many * stride);
  Softened* weights = scratch.weights.data();
  const Caches<T> mine = caches<T>(rows, layer, row, k);
  for (int64_t n = 0; n < many; n++) {
    const int64_t token = start + n / group, head = k * group + n % group;
    std::memcpy(queries + n * d, queries_THD + (token * heads + head) * d, d * sizeof(T));
  }
  products<T, WIDTH>(many, queries, mine.keys, total, d, scores, stride, next.keys);
  for (int64_t n = 0; n < many; n++) {
    const int64_t q = n / group;
    float* line = scores + n * stride;
    const int64_t position = length + rows.depths_T[start + q];
    const int64_t first = farthest(rows.prefix + position, window) - rows.prefix;
    if (softcap > 0)
      for (int64_t i = 0; i < total; i++) line[i] = softcap * std::tanh(line[i] / softcap);
    for (int64_t i = 0; i < count; i++)
      if (!rows.sees_BQQ[(row * count + q) * count + i] ||
          length + rows.depths_T[start + i] < first)
        line[length + i] = HIDDEN;
    std::fill(line, line + std::clamp<int64_t>(first, 0, length), HIDDEN);
    weights[n] = soften(line, 0, total, stride, 0);
  }
  sums<T, WIDTH>(many, scores, stride, mine.values, total, d, values, next.values);
  for (int64_t n = 0; n < many; n++) {
    const int64_t token = start + n / group, g = n % group;
    const Found own = {values + n * d, weights[n]};
    T* out = out_THD + (token * heads + k * group + g) * d;
    if (rows.prefix) mean(out, d, own, shared[g * tokens + token]);
    else mean(out, d, own);
  }
}

constexpr int TASKS_AT_ONCE = 12;  // heads of rows that one thread takes up

// Attention of rows' next tokens, whose keys and values `put` has put away.
template <typename T>
void attend(const Rows& rows, int64_t layer, int64_t window, float softcap, const T* queries_THD,
            const T* before_keys, const T* before_values, T* out_THD, int threads) {
  const int64_t d = rows.width, columns = whole_panels(d), heads = rows.heads;
  const int64_t group = heads / rows.kv_heads, tokens = rows.starts_B[rows.batch];
  auto one = d == 64 ? attend_one<T, 64> : d == 128 ? attend_one<T, 128> : attend_one<T, 0>;
  const int64_t tasks = rows.batch * rows.kv_heads;
  const int64_t at_once = std::clamp<int64_t>(tasks / (4 * threads), 1, TASKS_AT_ONCE);
  const int64_t most = tile_lines(tokens), tiles = (tokens + most - 1) / most;
  const int64_t found = rows.prefix ? heads * tokens : 0;
  std::vector<Found> shared(found);
  std::vector<float> values(found * columns);
#pragma omp parallel num_threads(threads)
  {
    if (rows.prefix) {
      Sight<T> sight(d, rows.prefix);
#pragma omp for schedule(static)
      for (int64_t task = 0; task < heads * tiles; task++) {
        const int64_t head = task / tiles, token = task % tiles * most;
        const int64_t few = std::min(most, tokens - token);
        for (int64_t m = 0; m < few; m++) {
          const int64_t* after =
              std::upper_bound(rows.starts_B, rows.starts_B + rows.batch, token + m);
          const int64_t position = rows.lengths_B[after - rows.starts_B - 1] +
                                   rows.depths_T[token + m] + rows.prefix;
          sight.first[m] = std::min(rows.prefix, farthest(position, window));
          sight.last[m] = rows.prefix;
        }
        sight.look(few, queries_THD + (token * heads + head) * d, heads * d,
                   beginning<T>(rows, before_keys, before_values, head / group), softcap);
        for (int64_t m = 0; m < few; m++) {
          const int64_t at = head * tokens + token + m;
          shared[at] = sight.found(m);
          std::memcpy(&values[at * columns], shared[at].values, columns * sizeof(float));
          shared[at].values = &values[at * columns];
        }
      }
    }
    Scratch scratch;
#pragma omp for schedule(dynamic, at_once)
    for (int64_t task = 0; task < tasks; task++) {
      const int64_t row = task / rows.kv_heads, k = task % rows.kv_heads;
      const int64_t then = std::min(task + 1, tasks - 1);
      one(rows, layer, row, k, window, softcap, queries_THD,
          shared.data() + (rows.prefix ? k * group * tokens : 0), out_THD, scratch,
          caches<T>(rows, layer, then / rows.kv_heads, then % rows.kv_heads));
    }
  }
}

}  // namespace
