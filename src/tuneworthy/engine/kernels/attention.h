// Attention of packs, whose products are made elsewhere, and of rows that are answered.
//
// Suffixes of names are shapes: B rows, Q new tokens of each, H heads, K heads of keys, G = H / K,
// D width, S room of a slot, N queries, P tokens that all rows begin with.

#pragma once

#include <algorithm>
#include <vector>

#include "layers.h"
#include "lines.h"

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

// Where one row's keys and values of one head are, (S, D) each.
template <typename T>
struct Caches {
  const T *keys, *values;
};

template <typename T>
Caches<T> caches(const Rows& rows, int64_t layer, int64_t row, int64_t k) {
  const int64_t at = layer * rows.strides_B[row] + k * rows.rooms_B[row] * rows.width;
  return {reinterpret_cast<const T*>(rows.keys_B[row]) + at,
          reinterpret_cast<const T*>(rows.values_B[row]) + at};
}

// Attention of one row's queries of one head of keys; those of the `next` one are fetched from
// memory meanwhile, which takes longer than computing. `before_NP` are their scores with the
// beginning that all rows share, and become weights of it. `window` is how many tokens back one
// sees, itself one of them, and `softcap` what scores are squeezed between; 0: neither.
template <typename T, int WIDTH>
void attend_one(const Rows& rows, int64_t layer, int64_t row, int64_t k, int64_t window,
                float softcap, const T* queries_ND, T* before_NP, T* out,
                std::vector<float>& scratch, Caches<T> mine, Caches<T> next) {
  const int64_t d = WIDTH ? WIDTH : rows.width, count = rows.count;
  const int64_t group = rows.heads / rows.kv_heads, many = group * count;
  const int64_t length = rows.lengths_B[row], total = length + count;
  const int64_t prefix = rows.prefix;
  const int64_t own = whole_lanes(total), shared = whole_lanes(prefix), stride = shared + own;
  const size_t needed = many * d + many * stride + many;
  if (scratch.size() < needed) scratch.resize(needed);
  float* found = scratch.data();
  float* scores = found + many * d;
  float* inverses = scores + many * stride;
  products<T, WIDTH>(many, queries_ND, mine.keys, total, d, scores + shared, stride, next.keys);
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
  sums<T, WIDTH>(many, scores + shared, stride, mine.values, total, d, found, next.values);
  const int64_t at = (k * rows.batch + row) * many;
  for (int64_t n = 0; n < many; n++) {
    const int64_t head = (row * count + n % count) * rows.heads + k * group + n / count;
    const int64_t line = prefix ? at + n : head;
    store_line(out + line * d, found + n * d, d, inverses[n]);
  }
}

constexpr int TASKS_AT_ONCE = 12;  // heads of rows that one thread takes up

// Lines of `out` stand as the next product wants them, (B, Q, H, D), or as `queries` do, (K, B, G,
// Q, D), where the beginning's part is still to be added.
template <typename T>
void attend(const Rows& rows, int64_t layer, int64_t window, float softcap, const T* queries,
            T* before, T* out, int threads) {
  const int64_t d = rows.width, many = rows.heads / rows.kv_heads * rows.count;
  auto one = d == 64 ? attend_one<T, 64> : d == 128 ? attend_one<T, 128> : attend_one<T, 0>;
  const int64_t tasks = rows.batch * rows.kv_heads;
  const int64_t at_once = std::clamp<int64_t>(tasks / (4 * threads), 1, TASKS_AT_ONCE);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scratch;
#pragma omp for schedule(dynamic, at_once)
    for (int64_t task = 0; task < tasks; task++) {
      const int64_t row = task / rows.kv_heads, k = task % rows.kv_heads;
      const int64_t then = std::min(task + 1, tasks - 1);
      const int64_t at = (k * rows.batch + row) * many;
      one(rows, layer, row, k, window, softcap, queries + at * d, before + at * rows.prefix, out,
          scratch, caches<T>(rows, layer, row, k),
          caches<T>(rows, layer, then / rows.kv_heads, then % rows.kv_heads));
    }
  }
}

}  // namespace
