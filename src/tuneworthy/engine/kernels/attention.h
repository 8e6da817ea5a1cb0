// Attention of packs, whose products are made elsewhere, and of rows that are answered.
//
// Suffixes of names are shapes: B rows, Q new tokens of each, H heads, K heads of keys, G = H / K,
// D width, S room of a slot, N queries, P tokens that all rows begin with.

#pragma once

#include <algorithm>
#include <vector>

#include "layers.h"

namespace {

// Scores of one query to exponentials, in place: those of keys `first` to `last` (not itself), 0 for
// all others; gives what makes weights of them. There is room for whole lanes in `line`.
inline float soften(float* line, int64_t first, int64_t last, int64_t whole, float softcap) {
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
  return 1 / sum(together);
}

// (N, block, S) scores of queries that stand one behind the other, the last at the last key.
template <typename T>
void weights(T* scores, int64_t lines, int64_t block, int64_t keys, int64_t window, float softcap,
             int threads) {
  const int64_t whole = whole_lanes(keys);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> line(whole);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < lines; n++) {
      T* at = scores + n * keys;
      const int64_t position = keys - block + n % block, last = position + 1;
      const int64_t first = window ? std::max<int64_t>(0, last - window) : 0;
      const int64_t start = first / LANES * LANES;
      load_line(&line[start], at + start, last - start);
      const float inverse =
          soften(&line[start], first - start, last - start, whole_lanes(last) - start, softcap);
      for (int64_t i = 0; i < start; i++) save(at + i, 0.0f);
      store_line(at + start, &line[start], last - start, inverse);
      for (int64_t i = last; i < keys; i++) save(at + i, 0.0f);
    }
  }
}

// Gradients of scores in place of those of their weights: w · (g − Σ g · w) along each line.
template <typename T>
void weights_back(T* gradients, const T* weights, int64_t lines, int64_t keys, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < lines; n++) {
    T* g = gradients + n * keys;
    const T* w = weights + n * keys;
    Floats along = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= keys; i += LANES) along += load_lanes(g + i) * load_lanes(w + i);
    for (; i < keys; i++) rest += load(g + i) * load(w + i);
    const float mean = sum(along) + rest;
    for (i = 0; i + LANES <= keys; i += LANES)
      save_lanes(g + i, load_lanes(w + i) * (load_lanes(g + i) - mean));
    for (; i < keys; i++) save(g + i, load(w + i) * (load(g + i) - mean));
  }
}

// Weighted sums and products with lines of D numbers, for up to QUERIES queries at a time: a line
// is read from memory once for all of them. WIDTH is D, or 0 where D is only known when running.
constexpr int QUERIES = 4;

template <typename T, int WIDTH, int COUNT>
inline void dots(const float* queries, const T* line, int64_t width, float* out, int64_t stride) {
  const int64_t d = WIDTH ? WIDTH : width;
  Floats sums[COUNT] = {};
  for (int64_t i = 0; i < d; i += LANES) {
    Floats lanes = load_lanes(line + i);
    for (int q = 0; q < COUNT; q++) sums[q] += lanes * load_lanes(queries + q * d + i);
  }
  for (int q = 0; q < COUNT; q++) out[q * stride] = sum(sums[q]);
}

template <typename T, int WIDTH, int COUNT>
inline void scores_of(const float* queries, const T* lines, int64_t count, int64_t width,
                      float* out, int64_t stride, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  for (int64_t t = 0; t < count; t++) {
    for (int64_t i = 0; i < d; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(next + t * d + i);
    dots<T, WIDTH, COUNT>(queries, lines + t * d, width, out + t, stride);
  }
}

template <typename T, int COUNT, int PARTS>
inline void sums_beside(const float* weights, int64_t stride, const T* lines, int64_t count,
                        int64_t d, float* out, const T* next) {
  Floats sums[COUNT][PARTS] = {};
  for (int64_t t = 0; t < count; t++) {
    for (int i = 0; i < PARTS * LANES; i += 64 / int64_t(sizeof(T)))
      __builtin_prefetch(next + t * d + i);
    Floats lanes[PARTS];
    for (int i = 0; i < PARTS; i++) lanes[i] = load_lanes(lines + t * d + i * LANES);
    for (int q = 0; q < COUNT; q++)
      for (int i = 0; i < PARTS; i++) sums[q][i] += lanes[i] * weights[q * stride + t];
  }
  for (int q = 0; q < COUNT; q++)
    for (int i = 0; i < PARTS; i++) save_lanes(out + q * d + i * LANES, sums[q][i]);
}

template <typename T, int WIDTH, int COUNT>
inline void sums_of(const float* weights, int64_t stride, const T* lines, int64_t count,
                    int64_t width, float* out, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  int64_t i = 0;
  for (; i + 4 * LANES <= d; i += 4 * LANES)
    sums_beside<T, COUNT, 4>(weights, stride, lines + i, count, d, out + i, next + i);
  for (; i < d; i += LANES)
    sums_beside<T, COUNT, 1>(weights, stride, lines + i, count, d, out + i, next + i);
}

template <typename T, int WIDTH>
void scores_for(int64_t queries, const float* query, const T* lines, int64_t count, int64_t width,
                float* out, int64_t stride, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  for (; queries >= QUERIES; queries -= QUERIES, query += QUERIES * d, out += QUERIES * stride)
    scores_of<T, WIDTH, QUERIES>(query, lines, count, width, out, stride, next);
  if (queries == 3) scores_of<T, WIDTH, 3>(query, lines, count, width, out, stride, next);
  if (queries == 2) scores_of<T, WIDTH, 2>(query, lines, count, width, out, stride, next);
  if (queries == 1) scores_of<T, WIDTH, 1>(query, lines, count, width, out, stride, next);
}

template <typename T, int WIDTH>
void sums_for(int64_t queries, const float* weights, int64_t stride, const T* lines, int64_t count,
              int64_t width, float* out, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  for (; queries >= QUERIES; queries -= QUERIES, weights += QUERIES * stride, out += QUERIES * d)
    sums_of<T, WIDTH, QUERIES>(weights, stride, lines, count, width, out, next);
  if (queries == 3) sums_of<T, WIDTH, 3>(weights, stride, lines, count, width, out, next);
  if (queries == 2) sums_of<T, WIDTH, 2>(weights, stride, lines, count, width, out, next);
  if (queries == 1) sums_of<T, WIDTH, 1>(weights, stride, lines, count, width, out, next);
}

}  // namespace

extern "C" {

// What a step knows of its rows, the same for every layer; see `stepping.Stepping`.
struct Rows {
  int64_t batch, count, heads, kv_heads, width, prefix;
  const int64_t* keys_B;      // addresses of each row's keys in layer 0, (layers, …, K, S, D)
  const int64_t* values_B;
  const int64_t* strides_B;   // from one layer to the next, in numbers
  const int64_t* rooms_B;     // S
  const int64_t* lengths_B;   // tokens that each slot holds
  const int64_t* depths_BQ;   // how far each new token stands behind them
  const uint8_t* sees_BQQ;    // which of the new ones see which
};
}

namespace {

template <typename T>
void put(const Rows& rows, int64_t layer, const T* query, int64_t query_stride, const T* key,
         int64_t key_stride, const T* value, int64_t value_stride, const T* cos, const T* sin,
         int64_t turn_stride, float scale, T* queries_KBGQD, int threads) {
  const int64_t d = rows.width, group = rows.heads / rows.kv_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t token = 0; token < rows.batch * rows.count; token++) {
    const int64_t row = token / rows.count, q = token % rows.count;
    const T* c = cos ? cos + token * turn_stride : nullptr;
    const T* s = cos ? sin + token * turn_stride : nullptr;
    const int64_t room = rows.rooms_B[row], place = rows.lengths_B[row] + q;
    T* keys = reinterpret_cast<T*>(rows.keys_B[row]) + layer * rows.strides_B[row];
    T* values = reinterpret_cast<T*>(rows.values_B[row]) + layer * rows.strides_B[row];
    for (int64_t k = 0; k < rows.kv_heads; k++) {
      const int64_t at = (k * room + place) * d;
      turn_one(key + token * key_stride + k * d, c, s, 1.0f, keys + at, d);
      std::memcpy(values + at, value + token * value_stride + k * d, d * sizeof(T));
      for (int64_t g = 0; g < group; g++)
        turn_one(query + token * query_stride + (k * group + g) * d, c, s, scale,
             queries_KBGQD + (((k * rows.batch + row) * group + g) * rows.count + q) * d, d);
    }
  }
}

// Attention of one row's queries of one head of keys. `before_NP` are their scores with the
// beginning that all rows share, and become weights of it. `window` is how many tokens back one
// sees, itself one of them, and `softcap` what scores are squeezed between; 0: neither.
template <typename T, int WIDTH>
void attend_one(const Rows& rows, int64_t layer, int64_t row, int64_t k, int64_t window,
                float softcap, const T* queries_ND, T* before_NP, T* out,
                std::vector<float>& scratch) {
  const int64_t d = WIDTH ? WIDTH : rows.width, count = rows.count;
  const int64_t group = rows.heads / rows.kv_heads, many = group * count;
  const int64_t length = rows.lengths_B[row], total = length + count, room = rows.rooms_B[row];
  const int64_t prefix = rows.prefix;
  const int64_t own = whole_lanes(total), shared = whole_lanes(prefix), stride = shared + own;
  const size_t needed = 2 * many * d + many * stride + many;
  if (scratch.size() < needed) scratch.resize(needed);
  float* query = scratch.data();
  float* sums = query + many * d;
  float* scores = sums + many * d;
  float* inverses = scores + many * stride;
  load_line(query, queries_ND, many * d);
  const int64_t head = layer * rows.strides_B[row] + k * room * d;
  const T* keys = reinterpret_cast<const T*>(rows.keys_B[row]) + head;
  const T* values = reinterpret_cast<const T*>(rows.values_B[row]) + head;
  scores_for<T, WIDTH>(many, query, keys, total, d, scores + shared, stride, values);
  for (int64_t n = 0; n < many; n++) {
    const int64_t q = n % count;
    float* line = scores + n * stride;
    load_line(line, before_NP + n * prefix, prefix);
    if (softcap > 0)
      for (int64_t i = 0; i < shared + total; i++)
        line[i] = softcap * std::tanh(line[i] / softcap);
    const int64_t position = prefix + length + rows.depths_BQ[row * count + q];
    const uint8_t* sees = rows.sees_BQQ + (row * count + q) * count;
    for (int64_t i = 0; i < count; i++) {
      const int64_t at = prefix + length + rows.depths_BQ[row * count + i];
      if (!sees[i] || (window && at <= position - window))
        line[shared + length + i] = HIDDEN;
    }
    if (window) {
      const int64_t first = std::max<int64_t>(0, position - window + 1);
      std::fill(line, line + std::min(first, prefix), HIDDEN);
      if (first > prefix)
        std::fill(line + shared, line + shared + std::min(first - prefix, length), HIDDEN);
    }
    std::fill(line + prefix, line + shared, HIDDEN);
    std::fill(line + shared + total, line + stride, HIDDEN);
    inverses[n] = soften(line, 0, stride, stride, 0);
    store_line(before_NP + n * prefix, line, prefix, inverses[n]);
  }
  sums_for<T, WIDTH>(many, scores + shared, stride, values, total, d, sums, keys + room * d);
  const int64_t at = (k * rows.batch + row) * many;
  for (int64_t n = 0; n < many; n++) {
    const int64_t head = (row * count + n % count) * rows.heads + k * group + n / count;
    const int64_t line = prefix ? at + n : head;
    store_line(out + line * d, sums + n * d, d, inverses[n]);
  }
}

// Lines of `out` stand as the next product wants them, (B, Q, H, D), or as `queries` do, (K, B, G,
// Q, D), where the beginning's part is still to be added.
template <typename T>
void attend(const Rows& rows, int64_t layer, int64_t window, float softcap, const T* queries,
            T* before, T* out, int threads) {
  const int64_t d = rows.width, many = rows.heads / rows.kv_heads * rows.count;
  auto one = d == 64 ? attend_one<T, 64> : d == 128 ? attend_one<T, 128> : attend_one<T, 0>;
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scratch;
#pragma omp for schedule(dynamic, 4)
    for (int64_t task = 0; task < rows.batch * rows.kv_heads; task++) {
      const int64_t row = task / rows.kv_heads, k = task % rows.kv_heads;
      const int64_t at = (k * rows.batch + row) * many;
      one(rows, layer, row, k, window, softcap, queries + at * d, before + at * rows.prefix, out,
          scratch);
    }
  }
}

}  // namespace
