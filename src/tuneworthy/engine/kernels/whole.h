// Several decoder layers in a row, each of the plain kind: norm, attention, norm, gated feed-forward
// block, what comes out of each block added to what went in.

#pragma once

#include "attention.h"
#include "products.h"

extern "C" {

// Addresses of what a layer is made of; weights are panels (products.h).
struct Layer {
  const float *norm, *second_norm;
  const void *three, *out, *gate, *down;
  const float *three_bias, *out_bias, *gate_bias, *down_bias;
  int64_t window, inner;  // inner: columns of the gate
  float epsilon, second_epsilon, scale, softcap;
};

// What goes beside one product (Hu et al. 2021, "LoRA"): x·Aᵀ·Bᵀ is added before the sums are rounded.
// A (ranks, K) and B (N, ranks) are panels; `ranks` are those of all its layers, 0 where there are none.
struct LowRank {
  const void *downs, *ups;
  int64_t ranks;
};
}

namespace {

constexpr int LAYER_PRODUCTS = 4;  // of queries, keys and values; their output; gate and up; down

// Which tokens go through which ranks of an adapter: (T, rank), 1 or 0; null where all go through all.
template <typename T>
struct Sees {
  const T* of_TR;
  int64_t rank;
};

// A product of x (lines, K) with what goes beside it, if anything does; `low` has room for its ranks.
template <typename T>
void product_beside(const T* x, int64_t lines, int64_t depth, const void* panels, int64_t columns,
                    const float* bias, How how, const LowRank* beside, const Sees<T>& sees, T* low,
                    T* out, int64_t out_stride, int threads) {
  Stage<T> stages[2] = {{x, depth, static_cast<const T*>(panels), depth, nullptr}};
  const int64_t ranks = beside ? beside->ranks : 0;
  if (ranks) {
    product(x, depth, lines, depth, static_cast<const T*>(beside->downs), ranks, nullptr, PLAIN,
            static_cast<const T*>(nullptr), low, ranks, threads);
    if (sees.of_TR)
      for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < ranks; i++)
          if (!load(sees.of_TR + line * sees.rank + i % sees.rank)) low[line * ranks + i] = T{};
    stages[1] = {low, ranks, static_cast<const T*>(beside->ups), ranks, nullptr};
  }
  product(stages, ranks ? 2 : 1, lines, columns, bias, how, static_cast<const T*>(out), out,
          out_stride, threads);
}

// x (T, C) becomes the hidden states behind the last layer. `beside`, if anything is: what goes beside
// each layer's products, in their order.
template <typename T>
void layers(const Layer* all, int64_t count, const Rows& rows, T* x, int64_t width, const T* cos,
            const T* sin, int64_t turn_stride, const T* before_keys, const T* before_values,
            const LowRank* beside, const Sees<T>& sees, int threads) {
  const int64_t tokens = rows.starts_B[rows.batch], d = rows.width;
  const int64_t queries = rows.heads * d, keys = rows.kv_heads * d, three = queries + 2 * keys;
  int64_t inner = 0, ranks = 0;
  for (int64_t i = 0; i < count; i++) inner = std::max(inner, all[i].inner);
  for (int64_t i = 0; beside && i < count * LAYER_PRODUCTS; i++)
    ranks = std::max(ranks, beside[i].ranks);
  const int64_t wide = std::max(three, inner);
  Room<T> normed(tokens * width), some(tokens * wide), turned(tokens * queries),
      found(tokens * queries), low(tokens * ranks);
  for (int64_t i = 0; i < count; i++) {
    const Layer& layer = all[i];
    const LowRank* more = beside ? beside + i * LAYER_PRODUCTS : nullptr;
    const auto multiply = [&](int which, const T* from, int64_t depth, const void* panels,
                              int64_t columns, const float* bias, How how, T* to) {
      product_beside(from, tokens, depth, panels, columns, bias, how, more ? more + which : nullptr,
                     sees, low.data(), to, columns, threads);
    };
    norm(x, width, layer.norm, normed.data(), nullptr, tokens, width, layer.epsilon, threads);
    multiply(0, normed.data(), width, layer.three, three, layer.three_bias, PLAIN, some.data());
    put(rows, i, some.data(), three, some.data() + queries, three, some.data() + queries + keys,
        three, cos, sin, turn_stride, layer.scale, turned.data(), threads);
    const int64_t at = i * rows.kv_heads;
    const T* k = before_keys ? before_keys + at * whole_panels(rows.prefix) * d : nullptr;
    const T* v = before_values
                     ? before_values + at * whole_panels(d) * whole_steps<T>(rows.prefix)
                     : nullptr;
    const auto attention = rows.sees_BQQ ? attend<T> : read<T>;
    attention(rows, i, layer.window, layer.softcap, turned.data(), k, v, found.data(), threads);
    multiply(1, found.data(), queries, layer.out, width, layer.out_bias, ADDED, x);
    norm(x, width, layer.second_norm, normed.data(), nullptr, tokens, width,
         layer.second_epsilon, threads);
    multiply(2, normed.data(), width, layer.gate, layer.inner, layer.gate_bias, GATED, some.data());
    multiply(3, some.data(), layer.inner, layer.down, width, layer.down_bias, ADDED, x);
  }
}

}  // namespace
