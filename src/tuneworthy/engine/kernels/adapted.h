// Frozen linear layers of one input, each with a low-rank part beside it: y = x·Wᵀ + b + s·(x·Aᵀ)·Bᵀ (Hu
// et al. 2021), and the gradients of x, A and B.
//
// Low-rank parts are rounded to the number format of the base, as its own weights are, and added to
// the sums of the base's products before these are rounded.

#pragma once

#include <vector>

#include "products.h"

extern "C" {

// Addresses of a layer of N columns over K numbers: panels of W's lines, and of its columns.
struct Adapted {
  const void *lines, *columns;
  const float *bias, *down_RK, *up_NR;
  int64_t width, rank;  // N, R
  float scale;
};
}

namespace {

// Bs × `scale` as panels of their lines, (N, R).
template <typename T>
Room<T> up_lines(const Adapted& layer) {
  Room<T> lines(layer.width * layer.rank), panels(whole_panels(layer.width) * layer.rank);
  store_line(lines.data(), layer.up_NR, layer.width * layer.rank, layer.scale);
  lay_lines(lines.data(), layer.rank, layer.width, layer.rank, panels.data());
  return panels;
}

// The same of their columns.
template <typename T>
Room<T> up_columns(const Adapted& layer) {
  Room<T> lines(layer.width * layer.rank);
  Room<T> panels(whole_panels(layer.rank) * whole_steps<T>(layer.width));
  store_line(lines.data(), layer.up_NR, layer.width * layer.rank, layer.scale);
  lay_columns(lines.data(), layer.rank, layer.width, layer.rank, panels.data());
  return panels;
}

inline int64_t all_ranks(const Adapted* layers, int64_t count) {
  int64_t ranks = 0;
  for (int64_t i = 0; i < count; i++) ranks += layers[i].rank;
  return ranks;
}

// The layers' As, one below the other, (ranks, K).
template <typename T>
Room<T> all_downs(const Adapted* layers, int64_t count, int64_t depth) {
  Room<T> downs(all_ranks(layers, count) * depth);
  T* to = downs.data();
  for (int64_t i = 0; i < count; to += layers[i++].rank * depth)
    store_line(to, layers[i].down_RK, layers[i].rank * depth, 1.0f);
  return downs;
}

// Each layer's y, and x·Aᵀ of all layers side by side into `low` (M, ranks). `plus` is added to y.
template <typename T>
void adapt(const Adapted* layers, int64_t count, const T* x_MK, int64_t lines, int64_t depth,
           T* low, void* const* outputs, const T* plus, int threads) {
  const int64_t ranks = all_ranks(layers, count);
  Room<T> downs(whole_panels(ranks) * depth);
  lay_lines(all_downs<T>(layers, count, depth).data(), depth, ranks, depth, downs.data());
  product(x_MK, depth, lines, depth, downs.data(), ranks, nullptr, PLAIN,
          static_cast<const T*>(nullptr), low, ranks, threads);
  int64_t at = 0;
  for (int64_t i = 0; i < count; i++) {
    const Adapted& layer = layers[i];
    const auto up = up_lines<T>(layer);
    const Stage<T> stages[] = {
        {x_MK, depth, static_cast<const T*>(layer.lines), depth, nullptr},
        {low + at, ranks, up.data(), layer.rank, nullptr},
    };
    product(stages, 2, lines, layer.width, layer.bias, plus ? ADDED : PLAIN, plus,
            static_cast<T*>(outputs[i]), layer.width, threads);
    at += layer.rank;
  }
}

template <typename T>
Room<T> turned_over(const T* lines, int64_t stride, int64_t count, int64_t width) {
  const int64_t steps = whole_steps<T>(count);
  Room<T> turned(width * steps);
  turn_over(lines, stride, count, width, turned.data(), steps);
  for (int64_t j = 0; j < width; j++)
    std::fill(turned.data() + j * steps + count, turned.data() + (j + 1) * steps, T{});
  return turned;
}

// Sums over lines, × scale: for few columns of what was turned over (few, lines) and all of `right`
// (lines, width), into `out` (few, width), or (width, few) where it is to be `turned`.
template <typename T>
void sum_over_lines(const T* left, int64_t few, const T* right_MN, int64_t lines, int64_t width,
                    float scale, bool turned, float* out, int threads) {
  const int64_t steps = whole_steps<T>(lines), most = tile_lines(few);
#pragma omp parallel num_threads(threads)
  {
    Room<T> panel(steps * PANEL);
    float sums[TILE * PANEL];
#pragma omp for schedule(static)
    for (int64_t start = 0; start < width; start += PANEL) {
      const int64_t some = std::min<int64_t>(PANEL, width - start);
      lay_columns(right_MN + start, width, lines, some, panel.data());
      for (int64_t first = 0; first < few; first += most) {
        const int64_t now = std::min(most, few - first);
        const Stage<T> stage{left + first * steps, steps, panel.data(), steps, panel.data()};
        tile_of<T>(now, &stage, 1, nullptr, sums, PANEL);
        for (int64_t m = 0; m < now; m++)
          for (int64_t j = 0; j < some; j++)
            out[turned ? (start + j) * few + first + m : (first + m) * width + start + j] =
                sums[m * PANEL + j] * scale;
      }
    }
  }
}

// Gradients from those of the layers' outputs: of x, if it is wanted, of all As, one below the other,
// and of each B. `low` is what `adapt` left.
template <typename T>
void adapt_back(const Adapted* layers, int64_t count, const void* const* gradients, const T* x_MK,
                const T* low, int64_t lines, int64_t depth, T* grad_x, float* grad_downs,
                float* const* grad_ups, int threads) {
  const int64_t ranks = all_ranks(layers, count);
  Room<T> grad_low(lines * ranks);
  std::vector<Stage<T>> stages;
  int64_t at = 0;
  for (int64_t i = 0; i < count; i++) {
    const Adapted& layer = layers[i];
    const T* gradient = static_cast<const T*>(gradients[i]);
    const auto up = up_columns<T>(layer);
    product(gradient, layer.width, lines, layer.width, up.data(), layer.rank, nullptr, PLAIN,
            static_cast<const T*>(nullptr), grad_low.data() + at, ranks, threads);
    const auto low_RM = turned_over(low + at, ranks, lines, layer.rank);
    sum_over_lines(low_RM.data(), layer.rank, gradient, lines, layer.width, layer.scale, true,
                   grad_ups[i], threads);
    stages.push_back({gradient, layer.width, static_cast<const T*>(layer.columns), layer.width,
                      nullptr});
    at += layer.rank;
  }
  const auto grad_RM = turned_over(grad_low.data(), ranks, lines, ranks);
  sum_over_lines(grad_RM.data(), ranks, x_MK, lines, depth, 1.0f, false, grad_downs, threads);
  if (!grad_x) return;  // nothing is computed below the lowest trainable layer
  Room<T> downs(whole_panels(depth) * whole_steps<T>(ranks));
  lay_columns(all_downs<T>(layers, count, depth).data(), depth, ranks, depth, downs.data());
  stages.push_back({grad_low.data(), ranks, downs.data(), whole_steps<T>(ranks), nullptr});
  product(stages.data(), int(stages.size()), lines, depth, nullptr, PLAIN,
          static_cast<const T*>(nullptr), grad_x, depth, threads);
}

}  // namespace
