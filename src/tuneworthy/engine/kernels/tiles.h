// Up to TILE lines of numbers times a panel of other lines, all sums in registers: what products and
// attention are made of.
//
// A panel is PANEL lines that lie as they are read: for each step along their length the next
// number (float) or pair of numbers (bfloat16) of every line.

#pragma once

#include <type_traits>

#include "lanes.h"

namespace {

constexpr int PANEL = 2 * LANES;

// How many numbers a register of this processor holds, and of how many lines the sums fit into all
// registers beside what is multiplied.
#if defined(__AVX512F__)
constexpr int NATURAL = 16, TILE = 12;
#elif defined(__AVX__)
constexpr int NATURAL = 8, TILE = 3;
#elif defined(__aarch64__)
constexpr int NATURAL = 4, TILE = 3;
#else
constexpr int NATURAL = 4, TILE = 1;
#endif
constexpr int VECTORS = PANEL / NATURAL;
typedef float Natural __attribute__((vector_size(NATURAL * sizeof(float))));

// Numbers of a line that lie side by side.
template <typename T>
constexpr int DEEP = std::is_same_v<T, Bfloat16> ? 2 : 1;

inline int64_t whole_panels(int64_t count) { return (count + PANEL - 1) / PANEL * PANEL; }
template <typename T>
inline int64_t whole_steps(int64_t count) {
  return (count + DEEP<T> - 1) / DEEP<T> * DEEP<T>;
}

inline Natural spread(const float* at) { return Natural{} + *at; }
inline Natural whole(const float* at) {
  Natural numbers;
  std::memcpy(&numbers, at, sizeof numbers);
  return numbers;
}
inline Natural with_products(Natural sums, Natural some, Natural others) {
  return sums + some * others;
}

#ifdef __AVX512BF16__
inline __m512bh spread(const Bfloat16* at) {
  int32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}
inline __m512bh whole(const Bfloat16* at) { return (__m512bh)_mm512_loadu_si512(at); }
inline Natural with_products(Natural sums, __m512bh some, __m512bh others) {
  return _mm512_dpbf16_ps(sums, some, others);
}
#else
struct Pairs {
  Natural low, high;
};
inline Pairs spread(const Bfloat16* at) {
  return {Natural{} + load(at), Natural{} + load(at + 1)};
}
inline Pairs whole(const Bfloat16* at) {
  typedef uint32_t Bits __attribute__((vector_size(NATURAL * sizeof(uint32_t))));
  Bits bits;
  std::memcpy(&bits, at, sizeof bits);
  return {(Natural)(bits << 16), (Natural)(bits & 0xffff0000)};
}
inline Natural with_products(Natural sums, const Pairs& some, const Pairs& others) {
  return sums + some.low * others.low + some.high * others.high;
}
#endif

// Some lines of x times a panel: a stage of a product that may have several.
template <typename T>
struct Stage {
  const T* x;
  int64_t x_stride;
  const T* panel;
  int64_t depth;
  const void* next;  // what will be needed after the panel
};

// The sum of COUNT lines' stages, into `out` (COUNT, PANEL). From `next` on, a line of the cache is
// brought nearer at each step: weights from memory would be waited for else.
template <typename T, int COUNT>
inline void tile(const Stage<T>* stages, int count, const float* bias, float* out,
                 int64_t out_stride) {
  Natural sums[COUNT][VECTORS];
  for (int m = 0; m < COUNT; m++)
    for (int v = 0; v < VECTORS; v++)
      sums[m][v] = bias ? whole(bias + v * NATURAL) : Natural{};
  for (int s = 0; s < count; s++) {
    const T *x = stages[s].x, *panel = stages[s].panel;
    const int64_t x_stride = stages[s].x_stride, depth = stages[s].depth;
    const char* ahead = static_cast<const char*>(stages[s].next);
    for (int64_t k = 0; k < depth; k += DEEP<T>) {
      __builtin_prefetch(ahead, 0, 1);
      ahead += 64;
      decltype(whole(panel)) lines[VECTORS];
      for (int v = 0; v < VECTORS; v++)
        lines[v] = whole(panel + k * PANEL + v * DEEP<T> * NATURAL);
      for (int m = 0; m < COUNT; m++) {
        const auto number = spread(x + m * x_stride + k);
        for (int v = 0; v < VECTORS; v++) sums[m][v] = with_products(sums[m][v], number, lines[v]);
      }
    }
  }
  for (int m = 0; m < COUNT; m++)
    for (int v = 0; v < VECTORS; v++)
      std::memcpy(out + m * out_stride + v * NATURAL, &sums[m][v], sizeof(Natural));
}

// The same for `lines` lines, of which there may be 1 to TILE.
template <typename T, int COUNT = TILE>
inline void tile_of(int64_t lines, const Stage<T>* stages, int count, const float* bias, float* out,
                    int64_t out_stride) {
  if constexpr (COUNT > 1)
    if (lines < COUNT)
      return tile_of<T, COUNT - 1>(lines, stages, count, bias, out, out_stride);
  tile<T, COUNT>(stages, count, bias, out, out_stride);
}

// Of `lines` as nearly equal parts as possible, how many lines each has.
inline int64_t tile_lines(int64_t lines) {
  const int64_t tiles = (lines + TILE - 1) / TILE;
  return (lines + tiles - 1) / tiles;
}

// Lines (count, depth), `stride` numbers from each other, as panels, the last one filled with zeros.
template <typename T>
void lay_lines(const T* lines, int64_t stride, int64_t count, int64_t depth, T* panels) {
  constexpr int64_t step = DEEP<T>;
  for (int64_t i = 0; i < whole_panels(count); i++) {
    T* to = panels + i / PANEL * depth * PANEL + i % PANEL * step;
    for (int64_t k = 0; k < depth; k += step)
      if (i < count) std::memcpy(to + k * PANEL, lines + i * stride + k, step * sizeof(T));
      else std::memset(to + k * PANEL, 0, step * sizeof(T));
  }
}

// The next step of `count` columns: the numbers of a line, or pairs of two lines' numbers.
inline void lay_step(const float* const* lines, int64_t count, float* to) {
  std::memcpy(to, lines[0], count * sizeof(float));
}
inline void lay_step(const Bfloat16* const* lines, int64_t count, Bfloat16* to) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    Halves halves[2];
    for (int j = 0; j < 2; j++) std::memcpy(&halves[j], lines[j] + i, sizeof halves[j]);
    const Words pairs = __builtin_convertvector(halves[0], Words) |
                        __builtin_convertvector(halves[1], Words) << 16;
    std::memcpy(to + 2 * i, &pairs, sizeof pairs);
  }
  for (; i < count; i++)
    for (int j = 0; j < 2; j++) to[2 * i + j] = lines[j][i];
}

// The columns of lines (count, width) as panels, with zeros where there is no column or line.
template <typename T>
void lay_columns(const T* lines, int64_t stride, int64_t count, int64_t width, T* panels) {
  static const T nothing[PANEL] = {};
  const int64_t steps = whole_steps<T>(count);
  for (int64_t start = 0; start < width; start += PANEL) {
    const int64_t some = std::min<int64_t>(PANEL, width - start);
    for (int64_t k = 0; k < steps; k += DEEP<T>) {
      T* to = panels + start * steps + k * PANEL;
      const T* from[DEEP<T>];
      for (int j = 0; j < DEEP<T>; j++)
        from[j] = k + j < count ? lines + (k + j) * stride + start : nothing;
      lay_step(from, some, to);
      std::memset(to + some * DEEP<T>, 0, (PANEL - some) * DEEP<T> * sizeof(T));
    }
  }
}

// Lines (count, width) with their numbers in the order of columns, each of which has room for `steps`.
template <typename T>
void turn_over(const T* lines, int64_t stride, int64_t count, int64_t width, T* turned,
               int64_t steps) {
  constexpr int64_t block = 16;
  for (int64_t start = 0; start < count; start += block)
    for (int64_t j = 0; j < width; j++) {
      const int64_t end = std::min(count, start + block);
      for (int64_t i = start; i < end; i++) turned[j * steps + i] = lines[i * stride + j];
    }
}

// Sets of lines (count, width) as panels, of their lines or of their columns.
template <typename T>
void lay(const T* lines, int64_t sets, int64_t count, int64_t width, bool columns, T* panels,
         int threads) {
  const int64_t size = columns ? whole_panels(width) * whole_steps<T>(count)
                               : whole_panels(count) * width;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t set = 0; set < sets; set++) {
    const T* from = lines + set * count * width;
    if (columns) lay_columns(from, width, count, width, panels + set * size);
    else lay_lines(from, width, count, width, panels + set * size);
  }
}

}  // namespace
