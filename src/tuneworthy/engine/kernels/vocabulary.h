// What is chosen from logits, and what is lost by them.

#pragma once

#include <vector>

#include "lanes.h"

namespace {

// Of each line's logarithms: where the highest is, the first of equals; and that of the sum.
template <typename T>
void likeliest(const T* logits, int64_t stride, int64_t lines, int64_t width, int64_t* places,
               float* sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t n = 0; n < lines; n++) {
    const T* line = logits + n * stride;
    const float top = highest(line, width);
    int64_t i = 0;
    if (places) {
      while (i < width && load(line + i) != top) i++;
      places[n] = i < width ? i : 0;
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

// Loss of each line's target, in nats; whether that is the likeliest token, the first of equals; and,
// where `learns`, the gradient of the losses' sum in place of the logits: probabilities, less one at
// the target.
template <typename T>
void lose(T* logits, const int64_t* targets, int64_t lines, int64_t width, bool learns,
          float* losses, uint8_t* right, int threads) {
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> scratch(whole_lanes(width));
    float* powers = scratch.data();
#pragma omp for schedule(static)
    for (int64_t n = 0; n < lines; n++) {
      T* line = logits + n * width;
      const int64_t target = targets[n];
      const float top = highest(line, width);
      const float wanted = load(line + target);
      bool first = wanted == top;
      for (int64_t i = 0; first && i < target; i++) first = load(line + i) != top;
      right[n] = first;
      load_line(powers, line, width);
      for (int64_t i = width; i < whole_lanes(width); i++) powers[i] = HIDDEN;
      Floats together = {};
      for (int64_t i = 0; i < width; i += LANES) {
        const Floats lanes = exp_lanes(load_lanes(powers + i) - top);
        together += lanes;
        save_lanes(powers + i, lanes);
      }
      const float all = sum(together);
      losses[n] = top + std::log(all) - wanted;
      if (!learns) continue;
      powers[target] -= all;
      store_line(line, powers, width, 1 / all);
    }
  }
}

}  // namespace
