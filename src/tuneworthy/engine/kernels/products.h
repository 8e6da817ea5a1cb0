// Products x · Wᵀ with weights that lie as they are read, and what is done with a product at once.
//
// A panel is two vectors' worth of W's lines, 2 × LANES of them: for each step along their length,
// the next number (float) or pair of numbers (bfloat16) of every line. A tile is up to TILE lines
// of x times a panel, its sums in registers. While the tiles of a panel are computed the next panel
// is brought nearer: for few lines of x, weights from memory would be waited for else.
//
// Suffixes of names are shapes: M lines of x, K their length, N lines of W.

#pragma once

#include <algorithm>
#include <type_traits>

#include "layers.h"

namespace {

constexpr int VECTORS = 2, PANEL = VECTORS * LANES, TILE = 12;

// PLAIN and ADDED: a panel is 32 lines of one W. GATED and APART: 16 each of two Ws of N lines.
enum How { PLAIN, ADDED, GATED, APART };

#ifdef __AVX512F__
template <typename T>
constexpr bool MULTIPLIES = std::is_same_v<T, float>;
inline Floats spread(const float* at) { return Floats{} + *at; }
inline Floats whole(const float* at) { return load_lanes(at); }
inline Floats with_products(Floats sums, Floats some, Floats others) {
  return sums + some * others;
}
#else
template <typename T>
constexpr bool MULTIPLIES = false;
#endif

// Processors with units for matrices have more to offer than this, and oneDNN knows how.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <>
constexpr bool MULTIPLIES<Bfloat16> = true;
inline __m512bh spread(const Bfloat16* at) {
  int32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return (__m512bh)_mm512_set1_epi32(pair);
}
inline __m512bh whole(const Bfloat16* at) { return (__m512bh)_mm512_loadu_si512(at); }
inline Floats with_products(Floats sums, __m512bh some, __m512bh others) {
  return _mm512_dpbf16_ps(sums, some, others);
}
#endif

// Numbers of a line in each lane.
template <typename T>
constexpr int DEEP = std::is_same_v<T, Bfloat16> ? 2 : 1;

// COUNT lines of x times a panel, into `out` (COUNT, PANEL); from `next` on, a line of the cache is
// fetched at each step.
template <typename T, int COUNT>
inline void tile(const T* x, int64_t x_stride, const T* panel, int64_t depth, const float* bias,
                 float* out, const char* next) {
  Floats sums[COUNT][VECTORS];
  for (int m = 0; m < COUNT; m++)
    for (int v = 0; v < VECTORS; v++)
      sums[m][v] = bias ? load_lanes(bias + v * LANES) : Floats{};
  for (int64_t k = 0; k < depth; k += DEEP<T>) {
    const auto first = whole(panel + k * PANEL);
    const auto second = whole(panel + k * PANEL + DEEP<T> * LANES);
    __builtin_prefetch(next, 0, 1);
    next += 64;
    for (int m = 0; m < COUNT; m++) {
      const auto number = spread(x + m * x_stride + k);
      sums[m][0] = with_products(sums[m][0], number, first);
      sums[m][1] = with_products(sums[m][1], number, second);
    }
  }
  for (int m = 0; m < COUNT; m++)
    for (int v = 0; v < VECTORS; v++) save_lanes(out + m * PANEL + v * LANES, sums[m][v]);
}

template <typename T, int COUNT = TILE>
inline void tile_of(int64_t count, const T* x, int64_t x_stride, const T* panel, int64_t depth,
                    const float* bias, float* out, const char* next) {
  if constexpr (COUNT > 1)
    if (count < COUNT)
      return tile_of<T, COUNT - 1>(count, x, x_stride, panel, depth, bias, out, next);
  tile<T, COUNT>(x, x_stride, panel, depth, bias, out, next);
}

// A line of a tile to where it belongs.
template <typename T>
inline void keep(const float* sums, int64_t panel, int64_t columns, How how, const T* other,
                 T* out) {
  for (int v = 0; v < VECTORS; v++) {
    const bool paired = how == GATED || how == APART;
    const int64_t at = paired ? panel * LANES : panel * PANEL + v * LANES;
    const int64_t lanes = std::min<int64_t>(LANES, columns - at);
    if (lanes <= 0) return;
    float line[LANES];
    Floats found = load_lanes(sums + v * LANES);
    if (how == GATED) found = found * sigmoid_lanes(found) * load_lanes(sums + LANES);
    if (how == ADDED) {
      load_line(line, other + at, lanes);
      found += load_lanes(line);
    }
    T* to = out + at + (how == APART ? v * columns : 0);
    if (lanes == LANES) save_lanes(to, found);
    else {
      save_lanes(line, found);
      store_line(to, line, lanes, 1.0f);
    }
    if (how == GATED) return;
  }
}

// `columns` is N; `bias`, if there is one, lies as the panels do.
template <typename T>
void product(const T* x_MK, int64_t x_stride, int64_t lines, int64_t depth, const T* panels,
             int64_t columns, const float* bias, How how, const T* other, T* out,
             int64_t out_stride, int threads) {
  if constexpr (MULTIPLIES<T>) {
    if (!lines) return;
    const int64_t in_panel = how == GATED || how == APART ? LANES : PANEL;
    const int64_t count = (columns + in_panel - 1) / in_panel;
    // Where there are more threads than panels, each panel meets the lines of x in parts.
    const int64_t parts = std::clamp<int64_t>((2 * threads - 1) / count + 1, 1,
                                              (lines + TILE - 1) / TILE);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < count * parts; task++) {
      const int64_t p = task / parts, part = task % parts;
      const int64_t first = lines * part / parts, mine = lines * (part + 1) / parts - first;
      const int64_t tiles = (mine + TILE - 1) / TILE, most = (mine + tiles - 1) / tiles;
      const T* panel = panels + p * depth * PANEL;
      const char* next = reinterpret_cast<const char*>(panel + depth * PANEL);
      const int64_t ahead = depth * PANEL * int64_t(sizeof(T)) / tiles;
      float sums[TILE * PANEL];
      for (int64_t m = 0; m < mine; m += most) {
        const int64_t few = std::min(most, mine - m), line = first + m;
        tile_of<T>(few, x_MK + line * x_stride, x_stride, panel, depth,
                   bias ? bias + p * PANEL : nullptr, sums, next + m / most * ahead);
        for (int64_t i = 0; i < few; i++)
          keep(sums + i * PANEL, p, columns, how, other + (line + i) * out_stride,
               out + (line + i) * out_stride);
      }
    }
  }
}

}  // namespace
