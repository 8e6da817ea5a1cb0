// Norms, rotary embeddings and gates.

#pragma once

#include "lanes.h"

namespace {

// Root-mean-square norm; `inverses`, if it is wanted, is what each row was multiplied by.
template <typename T>
void norm(const T* x, int64_t stride, const float* gain, T* out, float* inverses, int64_t rows,
          int64_t width, float epsilon, int threads) {
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
    if (inverses) inverses[row] = inverse;
    for (i = 0; i + LANES <= width; i += LANES)
      save_lanes(to + i, load_lanes(from + i) * inverse * load_lanes(gain + i));
    for (; i < width; i++) save(to + i, load(from + i) * inverse * gain[i]);
  }
}

// Gradient of the norm's input: with u = x · inverse and g = gradient · gain it is
// (g − u · mean(g · u)) · inverse. `plus`, if there is one, is added to it.
template <typename T>
void norm_back(const T* gradient, const T* x, const float* inverses, const float* gain,
               const T* plus, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const T *g = gradient + row * width, *from = x + row * width;
    const T* more = plus ? plus + row * width : nullptr;
    T* to = out + row * width;
    const float inverse = inverses[row];
    Floats along = {};
    float rest = 0;
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES)
      along += load_lanes(g + i) * load_lanes(gain + i) * load_lanes(from + i);
    for (; i < width; i++) rest += load(g + i) * gain[i] * load(from + i);
    const float share = (sum(along) + rest) * inverse * inverse / width;
    for (i = 0; i + LANES <= width; i += LANES) {
      const Floats lanes = load_lanes(g + i) * load_lanes(gain + i) - load_lanes(from + i) * share;
      save_lanes(to + i, more ? lanes * inverse + load_lanes(more + i) : lanes * inverse);
    }
    for (; i < width; i++)
      save(to + i, (load(g + i) * gain[i] - load(from + i) * share) * inverse +
                       (more ? load(more + i) : 0.0f));
  }
}

// silu(gate) · up, and their gradients.
inline Floats sigmoid_lanes(Floats x) {
  const Ints positive = x > 0.0f;
  const Floats e = exp_lanes((Floats)((positive & (Ints)(-x)) | (~positive & (Ints)x)));
  const Floats one = Floats{} + 1.0f;
  return (Floats)((positive & (Ints)one) | (~positive & (Ints)e)) / (one + e);
}

template <typename T>
void gate(const T* gates, const T* ups, T* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < (count + LANES - 1) / LANES; block++) {
    const int64_t i = block * LANES, many = count - i < LANES ? count - i : LANES;
    float g[LANES] = {}, u[LANES] = {};
    if (many == LANES) {
      const Floats x = load_lanes(gates + i);
      save_lanes(out + i, x * sigmoid_lanes(x) * load_lanes(ups + i));
      continue;
    }
    load_line(g, gates + i, many);
    load_line(u, ups + i, many);
    const Floats x = load_lanes(g);
    save_lanes(g, x * sigmoid_lanes(x) * load_lanes(u));
    store_line(out + i, g, many, 1.0f);
  }
}

template <typename T>
void gate_back(const T* gradients, const T* gates, const T* ups, T* grad_gates, T* grad_ups,
               int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < (count + LANES - 1) / LANES; block++) {
    const int64_t i = block * LANES, many = count - i < LANES ? count - i : LANES;
    if (many == LANES) {
      const Floats g = load_lanes(gradients + i), x = load_lanes(gates + i);
      const Floats s = sigmoid_lanes(x), gs = g * s;
      save_lanes(grad_gates + i, gs * load_lanes(ups + i) * (1.0f + x * (1.0f - s)));
      save_lanes(grad_ups + i, gs * x);
      continue;
    }
    for (int64_t j = i; j < i + many; j++) {
      const float g = load(gradients + j), x = load(gates + j), s = 1 / (1 + std::exp(-x));
      save(grad_gates + j, g * load(ups + j) * s * (1 + x * (1 - s)));
      save(grad_ups + j, g * x * s);
    }
  }
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

}  // namespace
