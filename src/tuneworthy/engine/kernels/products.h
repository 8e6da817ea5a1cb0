// Products x · Wᵀ with weights that lie in panels, and what is done with a product at once.
//
// Suffixes of names are shapes: M lines of x, K their length, N lines of W.

#pragma once

#include "layers.h"
#include "tiles.h"

namespace {

// For how many lines of x this is the quickest way here. Processors with units for matrices have more
// to offer, and oneDNN knows how.
template <typename T>
constexpr int multiplies() {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  if (std::is_same_v<T, Bfloat16>) return std::numeric_limits<int>::max();
#endif
#if defined(__AVX512F__)
  return std::is_same_v<T, float> ? std::numeric_limits<int>::max() : 0;
#elif defined(__AVX__) && defined(__FMA__)
  return std::is_same_v<T, float> ? 64 : 0;
#else
  return 0;
#endif
}

// PLAIN and ADDED: a panel has lines of one W. GATED and APART: LANES each of two Ws of N lines.
enum How { PLAIN, ADDED, GATED, APART };

// A line of a tile to where it belongs.
template <typename T>
inline void keep(const float* sums, int64_t panel, int64_t columns, How how, const T* other,
                 T* out) {
  for (int v = 0; v < PANEL / LANES; v++) {
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

// x · Wᵀ, or the sum of several such products: x (M, K) of each stage, W as panels from `panel` on.
constexpr int MOST_STAGES = 8;

// `columns` is N; `bias`, if there is one, lies as the panels do.
template <typename T>
void product(const Stage<T>* stages, int stage_count, int64_t lines, int64_t columns,
             const float* bias, How how, const T* other, T* out, int64_t out_stride, int threads) {
  if (!lines) return;
  const int64_t in_panel = how == GATED || how == APART ? LANES : PANEL;
  const int64_t count = (columns + in_panel - 1) / in_panel;
  // Where there are more threads than panels, each panel meets the lines of x in parts.
  const int64_t parts =
      std::clamp<int64_t>((2 * threads - 1) / count + 1, 1, (lines + TILE - 1) / TILE);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t task = 0; task < count * parts; task++) {
    const int64_t p = task / parts, part = task % parts;
    const int64_t first = lines * part / parts, mine = lines * (part + 1) / parts - first;
    const int64_t most = tile_lines(mine), tiles = (mine + most - 1) / most;
    float sums[TILE * PANEL];
    Stage<T> here[MOST_STAGES];
    for (int64_t t = 0; t < tiles; t++) {
      const int64_t line = first + t * most, few = std::min(most, first + mine - line);
      for (int s = 0; s < stage_count; s++) {
        const auto& [x, x_stride, panels, depth, unused] = stages[s];
        const T* panel = panels + p * depth * PANEL;
        const T* next = panel + (tiles + t) * depth / tiles * PANEL;  // a part of the next panel
        here[s] = {x + line * x_stride, x_stride, panel, depth, next};
      }
      tile_of<T>(few, here, stage_count, bias ? bias + p * PANEL : nullptr, sums, PANEL);
      for (int64_t i = 0; i < few; i++)
        keep(sums + i * PANEL, p, columns, how, other + (line + i) * out_stride,
             out + (line + i) * out_stride);
    }
  }
}

template <typename T>
void product(const T* x_MK, int64_t x_stride, int64_t lines, int64_t depth, const T* panels,
             int64_t columns, const float* bias, How how, const T* other, T* out,
             int64_t out_stride, int threads) {
  const Stage<T> stage{x_MK, x_stride, panels, depth, nullptr};
  product(&stage, 1, lines, columns, bias, how, other, out, out_stride, threads);
}

}  // namespace
