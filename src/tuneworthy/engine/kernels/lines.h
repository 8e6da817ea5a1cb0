// A few queries and many lines of D numbers, keys or values: products with each line, and weighted
// sums of all. WIDTH is D, or 0 where D is only known when running. A line is read from memory once
// for all queries, and as many lines at `next` are brought nearer meanwhile.
//
// Where the processor has it, sixteen sums are folded into one vector of them (AVX-512), and 16-bit
// numbers are multiplied as they are stored, two of them at a time (AVX512-BF16).

#pragma once

#include <type_traits>

#include "lanes.h"

namespace {

constexpr int QUERIES = 4;  // at a time

// Calls work(first, how many) for all queries, where "how many" is known when compiling.
template <typename Work, int COUNT = QUERIES>
inline void by_few(int64_t queries, const Work& work, int64_t first = 0) {
  for (; queries - first >= COUNT; first += COUNT)
    work(first, std::integral_constant<int, COUNT>());
  if constexpr (COUNT > 1) by_few<Work, COUNT - 1>(queries, work, first);
}

template <typename T>
inline void fetch(const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(from + i, 0, 1);
}

#ifdef __AVX512F__
// Products of the numbers of two lines, in lanes that are still to be added up.
template <typename T>
inline Floats along(const T* some, const T* others, int64_t d) {
  Floats sums = {};
  int64_t i = 0;
#ifdef __AVX512BF16__
  if constexpr (std::is_same_v<T, Bfloat16>)
    for (; i + 2 * LANES <= d; i += 2 * LANES)
      sums = _mm512_dpbf16_ps(sums, (__m512bh)_mm512_loadu_si512(some + i),
                              (__m512bh)_mm512_loadu_si512(others + i));
#endif
  for (; i < d; i += LANES) sums += load_lanes(some + i) * load_lanes(others + i);
  return sums;
}

// The sums of COUNT vectors' lanes, `of(first)` and on: all in one vector where COUNT is LANES.
template <int COUNT, typename Of>
inline Floats folded(const Of& of, int64_t first) {
  if constexpr (COUNT == 1) return of(first);
  else {
    const __m512 a = folded<COUNT / 2>(of, first), b = folded<COUNT / 2>(of, first + COUNT / 2);
    if constexpr (COUNT == 2) return _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
    else if constexpr (COUNT == 4)
      return (__m512)_mm512_unpacklo_pd((__m512d)a, (__m512d)b) +
             (__m512)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
    else return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xDD);
  }
}
#endif

// Products of `queries` with `count` lines, `stride` from one query's to the next one's; there are
// whole LANES of lines and of room for their products, of which those beyond `count` mean nothing.
template <typename T, int WIDTH>
void products(int64_t queries, const T* query, const T* lines, int64_t count, int64_t width,
              float* out, int64_t stride, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  for (int64_t t = 0; t < count; t += LANES) {
    fetch(next + t * d, LANES * d);
#ifdef __AVX512F__
    for (int64_t q = 0; q < queries; q++) {
      const auto of = [&](int64_t i) { return along<T>(query + q * d, lines + i * d, d); };
      save_lanes(out + q * stride + t, folded<LANES>(of, t));
    }
#else
    by_few(queries, [&](int64_t first, auto few) {
      for (int64_t line = t; line < t + LANES; line++) {
        Floats sums[few] = {};
        for (int64_t i = 0; i < d; i += LANES) {
          const Floats lanes = load_lanes(lines + line * d + i);
          for (int q = 0; q < few; q++) sums[q] += lanes * load_lanes(query + (first + q) * d + i);
        }
        for (int q = 0; q < few; q++) out[(first + q) * stride + line] = sum(sums[q]);
      }
    });
#endif
  }
}

// Sums of PARTS × LANES columns of all lines, times each query's weights.
template <int COUNT, int PARTS, typename W, typename T>
inline void columns(const W* weights, int64_t stride, const T* lines, int64_t count, int64_t d,
                    float* out, const T* next) {
  Floats sums[COUNT][PARTS] = {};
  for (int64_t t = 0; t < count; t++) {
    fetch(next + t * d, PARTS * LANES);
    Floats lanes[PARTS];
    for (int i = 0; i < PARTS; i++) lanes[i] = load_lanes(lines + t * d + i * LANES);
    for (int q = 0; q < COUNT; q++)
      for (int i = 0; i < PARTS; i++) sums[q][i] += lanes[i] * load(weights + q * stride + t);
  }
  for (int q = 0; q < COUNT; q++)
    for (int i = 0; i < PARTS; i++) save_lanes(out + q * d + i * LANES, sums[q][i]);
}

#ifdef __AVX512BF16__
// The same for weights and lines of 16 bits, two lines at a time: a number of each in every pair.
template <int COUNT, int PARTS>
inline void paired(const Bfloat16* weights, int64_t stride, const Bfloat16* lines, int64_t count,
                   int64_t d, float* out, const Bfloat16* next) {
  __m512 sums[COUNT][PARTS] = {};
  for (int64_t t = 0; t < count; t += 2) {
    fetch(next + t * d, PARTS * LANES);
    fetch(next + (t + 1) * d, PARTS * LANES);
    __m512i pairs[PARTS];
    for (int i = 0; i < PARTS; i += 2) {
      const Bfloat16* line = lines + t * d + i * LANES;
      const __m512i one = _mm512_loadu_si512(line);
      const __m512i other =
          t + 1 < count ? _mm512_loadu_si512(line + d) : _mm512_setzero_si512();
      pairs[i] = _mm512_unpacklo_epi16(one, other);
      pairs[i + 1] = _mm512_unpackhi_epi16(one, other);
    }
    for (int q = 0; q < COUNT; q++) {
      int32_t pair;
      std::memcpy(&pair, weights + q * stride + t, sizeof pair);
      for (int i = 0; i < PARTS; i++)
        sums[q][i] = _mm512_dpbf16_ps(sums[q][i], (__m512bh)_mm512_set1_epi32(pair),
                                      (__m512bh)pairs[i]);
    }
  }
  // Interleaving went quarter by quarter, four numbers of each half: so it is undone.
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = first + _mm512_set1_epi32(8);
  for (int q = 0; q < COUNT; q++)
    for (int i = 0; i < PARTS; i += 2) {
      const __m512 a = sums[q][i], b = sums[q][i + 1];
      float* to = out + q * d + i * LANES;
      _mm512_storeu_ps(to, _mm512_permutex2var_ps(a, first, b));
      _mm512_storeu_ps(to + LANES, _mm512_permutex2var_ps(a, second, b));
    }
}
#endif

// Sums (queries, D) of `count` lines, each times the query's weight of it. Weights may be rounded
// as lines are, in place.
template <typename T, int WIDTH>
void sums(int64_t queries, float* weights, int64_t stride, const T* lines, int64_t count,
          int64_t width, float* out, const T* next) {
  const int64_t d = WIDTH ? WIDTH : width;
  by_few(queries, [&](int64_t first, auto few) {
    float *weight = weights + first * stride, *to = out + first * d;
    int64_t i = 0;
#ifdef __AVX512BF16__
    if constexpr (std::is_same_v<T, Bfloat16>) {
      Bfloat16* rounded = reinterpret_cast<Bfloat16*>(weight);
      for (int q = 0; q < few; q++)
        store_line(rounded + 2 * q * stride, weight + q * stride, whole_lanes(count), 1.0f);
      for (; i + 4 * LANES <= d; i += 4 * LANES)
        paired<few, 4>(rounded, 2 * stride, lines + i, count, d, to + i, next + i);
      for (; i + 2 * LANES <= d; i += 2 * LANES)
        paired<few, 2>(rounded, 2 * stride, lines + i, count, d, to + i, next + i);
      for (; i < d; i += LANES)
        columns<few, 1>(rounded, 2 * stride, lines + i, count, d, to + i, next + i);
    }
#endif
    for (; i + 4 * LANES <= d; i += 4 * LANES)
      columns<few, 4>(weight, stride, lines + i, count, d, to + i, next + i);
    for (; i < d; i += LANES)
      columns<few, 1>(weight, stride, lines + i, count, d, to + i, next + i);
  });
}

}  // namespace
