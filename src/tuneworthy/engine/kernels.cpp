// What answering does between products, for processors: each function is one pass over memory
// where eager PyTorch makes several. Compiled on the machine that it runs on (see kernels.py).
//
// Numbers are stored as float or bfloat16 and computed with as float. Pointers come from tensors
// whose shapes, strides and number formats kernels.py has checked. Suffixes of names are shapes:
// B rows, Q new tokens of each, H heads, K heads of keys, G = H / K, D width, S room of a slot.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

struct Bfloat16 {
  uint16_t bits;
};

inline float load(const float* at) { return *at; }
inline float load(const Bfloat16* at) {
  uint32_t word = uint32_t(at->bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
inline void save(float* at, float value) { *at = value; }
inline void save(Bfloat16* at, float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  // To the nearest, of two equally near the even one; what is no number stays none.
  at->bits = value != value ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline Floats load_lanes(const float* at) {
  Floats lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}
inline Floats load_lanes(const Bfloat16* at) {
  Halves halves;
  std::memcpy(&halves, at, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}
inline void save_lanes(float* at, Floats lanes) { std::memcpy(at, &lanes, sizeof lanes); }
inline void save_lanes(Bfloat16* at, Floats lanes) {
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  Words nan = (Words)(lanes != lanes);
  words = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  words = (nan & 0x7fc0) | (~nan & words);
  Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(at, &halves, sizeof halves);
}
// Of all lanes, half of them at a time.
inline float sum(Floats lanes) {
  typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
  typedef float Four __attribute__((vector_size(4 * sizeof(float))));
  Eight eights[2];
  std::memcpy(eights, &lanes, sizeof eights);
  eights[0] += eights[1];
  Four fours[2];
  std::memcpy(fours, eights, sizeof fours);
  fours[0] += fours[1];
  return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
}

// e^x for x <= 0, to about two units in the last place: 2^n times a polynomial of the rest
// (Cephes' expf, S. Moshier). Below -87 it is 0.
inline Floats exp_lanes(Floats x) {
  Ints tiny = x < -87.0f;
  Floats bounded = (Floats)((~tiny & (Ints)x));
  Floats scaled = bounded * 1.44269504088896341f - 0.5f;
  Ints n = __builtin_convertvector(scaled, Ints);  // towards 0: to the nearest, as x <= 0
  Floats whole = __builtin_convertvector(n, Floats);
  Floats r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Floats power = (Floats)((n + 127) << 23);
  return (Floats)(~tiny & (Ints)(p * power));
}

constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

template <typename T>
void norm(const T* x, int64_t stride, const float* gain, T* out, int64_t rows, int64_t width,
          float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const T* from = x + row * stride;
    T* to = out + row * width;
    Floats squares = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
      Floats lanes = load_lanes(from + i);
      squares += lanes * lanes;
    }
    for (int64_t j = i; j < width; j++) rest += load(from + j) * load(from + j);
    float inverse = 1 / std::sqrt((sum(squares) + rest) / width + epsilon);
    for (i = 0; i + LANES <= width; i += LANES)
      save_lanes(to + i, load_lanes(from + i) * inverse * load_lanes(gain + i));
    for (; i < width; i++) save(to + i, load(from + i) * inverse * gain[i]);
  }
}

template <typename T>
inline void load_line(float* line, const T* at, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) save_lanes(line + i, load_lanes(at + i));
  for (; i < count; i++) line[i] = load(at + i);
}
template <typename T>
inline void store_line(T* at, const float* line, int64_t count, float scale) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) save_lanes(at + i, load_lanes(line + i) * scale);
  for (; i < count; i++) save(at + i, line[i] * scale);
}

// One head's line of D numbers, turned by its rotary embedding (or as it is), times `scale`.
template <typename T>
inline void turn_one(const T* x, const T* cos, const T* sin, float scale, T* out, int64_t width) {
  const int64_t half = width / 2;
  int64_t i = 0;
  if (!cos) {
    for (; i < width; i += LANES) save_lanes(out + i, load_lanes(x + i) * scale);
    return;
  }
  for (; i + LANES <= half; i += LANES) {
    Floats c = load_lanes(cos + i) * scale, s = load_lanes(sin + i) * scale;
    Floats first = load_lanes(x + i), second = load_lanes(x + half + i);
    save_lanes(out + i, first * c - second * s);
    save_lanes(out + half + i, second * c + first * s);
  }
  for (; i < half; i++) {
    float c = load(cos + i) * scale, s = load(sin + i) * scale;
    float first = load(x + i), second = load(x + half + i);
    save(out + i, first * c - second * s);
    save(out + half + i, second * c + first * s);
  }
}

template <typename T>
void turn(const T* x, int64_t stride, const T* cos, const T* sin, int64_t turn_stride, float scale,
          T* out, int64_t tokens, int64_t heads, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t token = 0; token < tokens; token++)
    for (int64_t h = 0; h < heads; h++)
      turn_one(x + token * stride + h * width, cos ? cos + token * turn_stride : nullptr,
               cos ? sin + token * turn_stride : nullptr, scale,
               out + (token * heads + h) * width, width);
}

// Scores of one query to exponentials, in place: those of keys `first` to `last` (not itself), 0 for
// all others; gives what makes weights of them. There is room for whole lanes in `line`.
inline float soften(float* line, int64_t first, int64_t last, int64_t whole, float softcap) {
  if (softcap > 0)
    for (int64_t i = first; i < last; i++) line[i] = softcap * std::tanh(line[i] / softcap);
  std::fill(line, line + first, HIDDEN);
  std::fill(line + last, line + whole, HIDDEN);
  Floats highest = load_lanes(line);
  for (int64_t i = LANES; i < whole; i += LANES) {
    Floats lanes = load_lanes(line + i);
    highest = highest > lanes ? highest : lanes;
  }
  float most = highest[0];
  for (int i = 1; i < LANES; i++) most = std::max(most, highest[i]);
  Floats together = {};
  for (int64_t i = 0; i < whole; i += LANES) {
    Floats lanes = exp_lanes(load_lanes(line + i) - most);
    together += lanes;
    save_lanes(line + i, lanes);
  }
  return 1 / sum(together);
}

inline int64_t whole_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

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

// Of each line's logarithms: where the highest is, the first of equals; and that of the sum.
template <typename T>
void likeliest(const T* logits, int64_t stride, int64_t lines, int64_t width, int64_t* highest,
               float* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < lines; n++) {
    const T* line = logits + n * stride;
    Floats most = Floats{} + HIDDEN;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
      Floats lanes = load_lanes(line + i);
      most = most > lanes ? most : lanes;
    }
    float top = HIDDEN;
    for (int j = 0; j < LANES; j++) top = std::max(top, most[j]);
    for (; i < width; i++) top = std::max(top, load(line + i));
    if (highest) {
      highest[n] = 0;
      for (i = 0; i < width; i++)
        if (load(line + i) == top) {
          highest[n] = i;
          break;
        }
    }
    if (sums) {
      Floats together = {};
      float rest = 0;
      for (i = 0; i + LANES <= width; i += LANES)
        together += exp_lanes(load_lanes(line + i) - top);
      for (; i < width; i++) rest += std::exp(load(line + i) - top);
      sums[n] = top + std::log(sum(together) + rest);
    }
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

// What a step knows of its rows, the same for every layer; see `slots.Stepping`.
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

// Each function for both ways of storing numbers.
#define FOR(T, NAME)                                                                               \
  void norm_##NAME(const T* x, int64_t stride, const float* gain, T* out, int64_t rows,            \
                   int64_t width, float epsilon, int threads) {                                    \
    norm(x, stride, gain, out, rows, width, epsilon, threads);                                     \
  }                                                                                                \
  void turn_##NAME(const T* x, int64_t stride, const T* cos, const T* sin, int64_t turn_stride,    \
                   float scale, T* out, int64_t tokens, int64_t heads, int64_t width,              \
                   int threads) {                                                                  \
    turn(x, stride, cos, sin, turn_stride, scale, out, tokens, heads, width, threads);             \
  }                                                                                                \
  void weights_##NAME(T* scores, int64_t lines, int64_t block, int64_t keys, int64_t window,       \
                      float softcap, int threads) {                                                \
    weights(scores, lines, block, keys, window, softcap, threads);                                 \
  }                                                                                                \
  void likeliest_##NAME(const T* logits, int64_t stride, int64_t lines, int64_t width,             \
                        int64_t* highest, float* sums, int threads) {                              \
    likeliest(logits, stride, lines, width, highest, sums, threads);                               \
  }                                                                                                \
  void put_##NAME(const Rows* rows, int64_t layer, const T* query, int64_t query_stride,           \
                  const T* key, int64_t key_stride, const T* value, int64_t value_stride,          \
                  const T* cos, const T* sin, int64_t turn_stride, float scale, T* queries,        \
                  int threads) {                                                                   \
    put(*rows, layer, query, query_stride, key, key_stride, value, value_stride, cos, sin,         \
        turn_stride, scale, queries, threads);                                                     \
  }                                                                                                \
  void attend_##NAME(const Rows* rows, int64_t layer, int64_t window, float softcap,               \
                     const T* queries, T* before, T* out, int threads) {                           \
    attend(*rows, layer, window, softcap, queries, before, out, threads);                          \
  }

extern "C" {
FOR(float, float32)
FOR(Bfloat16, bfloat16)
}
