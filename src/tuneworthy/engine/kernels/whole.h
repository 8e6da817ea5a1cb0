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
}

namespace {

// x (T, C) becomes the hidden states behind the last layer.
template <typename T>
void layers(const Layer* all, int64_t count, const Rows& rows, T* x, int64_t width, const T* cos,
            const T* sin, int64_t turn_stride, const T* before_keys, const T* before_values,
            int threads) {
  const int64_t tokens = rows.starts_B[rows.batch], d = rows.width;
  const int64_t queries = rows.heads * d, keys = rows.kv_heads * d, three = queries + 2 * keys;
  int64_t inner = 0;
  for (int64_t i = 0; i < count; i++) inner = std::max(inner, all[i].inner);
  const int64_t wide = std::max(three, inner);
  std::vector<T> normed(tokens * width), some(tokens * wide), turned(tokens * queries),
      found(tokens * queries);
  for (int64_t i = 0; i < count; i++) {
    const Layer& layer = all[i];
    norm(x, width, layer.norm, normed.data(), nullptr, tokens, width, layer.epsilon, threads);
    product(normed.data(), width, tokens, width, static_cast<const T*>(layer.three), three,
            layer.three_bias, PLAIN, static_cast<const T*>(nullptr), some.data(), three, threads);
    put(rows, i, some.data(), three, some.data() + queries, three, some.data() + queries + keys,
        three, cos, sin, turn_stride, layer.scale, turned.data(), threads);
    const int64_t at = i * rows.kv_heads;
    const T* k = before_keys ? before_keys + at * whole_panels(rows.prefix) * d : nullptr;
    const T* v = before_values
                     ? before_values + at * whole_panels(d) * whole_steps<T>(rows.prefix)
                     : nullptr;
    const auto attention = rows.sees_BQQ ? attend<T> : read<T>;
    attention(rows, i, layer.window, layer.softcap, turned.data(), k, v, found.data(), threads);
    product(found.data(), queries, tokens, queries, static_cast<const T*>(layer.out), width,
            layer.out_bias, ADDED, static_cast<const T*>(x), x, width, threads);
    norm(x, width, layer.second_norm, normed.data(), nullptr, tokens, width,
         layer.second_epsilon, threads);
    product(normed.data(), width, tokens, width, static_cast<const T*>(layer.gate), layer.inner,
            layer.gate_bias, GATED, static_cast<const T*>(nullptr), some.data(), layer.inner,
            threads);
    product(some.data(), layer.inner, tokens, layer.inner, static_cast<const T*>(layer.down),
            width, layer.down_bias, ADDED, static_cast<const T*>(x), x, width, threads);
  }
}

}  // namespace
