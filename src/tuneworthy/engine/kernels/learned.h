// A decoder layer of the plain kind that is learned with: each of its linear layers is frozen and has a
// low-rank part beside it (adapted.h). There and back in one call each.
//
// Suffixes of names: see attention.h; C is the width of the hidden states, I that of the gate.

#pragma once

#include "adapted.h"
#include "layers.h"
#include "packs.h"

extern "C" {

// Its norms and linear layers: queries, keys, values, their output, gate, up, down.
struct Learned {
  const float *norm, *second_norm;
  Adapted parts[7];
  int64_t width;  // C
  float epsilon, second_epsilon, scale;
};
}

namespace {

constexpr int QUERY = 0, OUT = 3, GATE = 4, DOWN = 6;  // where the parts of one input begin

// What a layer leaves for the way back, one piece behind the other; see `learned.py` for their sizes.
template <typename T>
struct Kept {
  T *normed_TC, *queries_THD, *keys_TKD, *values_TKD, *found_THD, *after_TC, *second_normed_TC;
  T *gate_TI, *up_TI, *inner_TI, *low_three, *low_out, *low_gate, *low_down;
  float *inverses_T, *second_inverses_T, *sums_TH;

  Kept(const Learned& layer, const Pack& pack, int64_t tokens, T* numbers, float* floats) {
    const int64_t queries = pack.heads * pack.width, keys = pack.kv_heads * pack.width;
    const int64_t width = layer.width, inner = layer.parts[GATE].width;
    const auto next = [&](int64_t many) {
      T* at = numbers;
      numbers += tokens * many;
      return at;
    };
    normed_TC = next(width), queries_THD = next(queries), keys_TKD = next(keys);
    values_TKD = next(keys), found_THD = next(queries), after_TC = next(width);
    second_normed_TC = next(width), gate_TI = next(inner), up_TI = next(inner);
    inner_TI = next(inner);
    low_three = next(all_ranks(layer.parts, OUT));
    low_out = next(layer.parts[OUT].rank);
    low_gate = next(all_ranks(layer.parts + GATE, 2));
    low_down = next(layer.parts[DOWN].rank);
    inverses_T = floats, second_inverses_T = floats + tokens, sums_TH = floats + 2 * tokens;
  }
};

// Cosines and sines (T, D) of the rotary embedding, and those that turn back.
template <typename T>
struct Turning {
  const T *cos, *sin, *back;
  int64_t stride;
};

// Hidden states (T, C) behind the layer into `out`.
template <typename T>
void layer_there(const Learned& layer, const Pack& pack, int64_t tokens, const T* x,
                 const Turning<T>& turning, T* numbers, float* floats, T* out, int threads) {
  const int64_t d = pack.width, queries = pack.heads * d, keys = pack.kv_heads * d;
  const int64_t width = layer.width, inner = layer.parts[GATE].width;
  const Kept<T> kept(layer, pack, tokens, numbers, floats);
  Room<T> straight_queries(tokens * queries), straight_keys(tokens * keys);
  norm(x, width, layer.norm, kept.normed_TC, kept.inverses_T, tokens, width, layer.epsilon,
       threads);
  void* const three[] = {straight_queries.data(), straight_keys.data(), kept.values_TKD};
  const T* nothing = nullptr;
  adapt(layer.parts, 3, kept.normed_TC, tokens, width, kept.low_three, three, nothing, threads);
  turn(straight_queries.data(), queries, turning.cos, turning.sin, turning.stride, layer.scale,
       kept.queries_THD, tokens, pack.heads, d, threads);
  turn(straight_keys.data(), keys, turning.cos, turning.sin, turning.stride, 1.0f, kept.keys_TKD,
       tokens, pack.kv_heads, d, threads);
  learn(pack, kept.queries_THD, kept.keys_TKD, kept.values_TKD, kept.found_THD, kept.sums_TH,
        threads);
  void* const after[] = {kept.after_TC};
  adapt(layer.parts + OUT, 1, kept.found_THD, tokens, queries, kept.low_out, after, x, threads);
  norm(kept.after_TC, width, layer.second_norm, kept.second_normed_TC, kept.second_inverses_T,
       tokens, width, layer.second_epsilon, threads);
  void* const both[] = {kept.gate_TI, kept.up_TI};
  adapt(layer.parts + GATE, 2, kept.second_normed_TC, tokens, width, kept.low_gate, both, nothing,
        threads);
  gate(kept.gate_TI, kept.up_TI, kept.inner_TI, tokens * inner, threads);
  void* const outputs[] = {out};
  const T* plus = kept.after_TC;
  adapt(layer.parts + DOWN, 1, kept.inner_TI, tokens, inner, kept.low_down, outputs, plus, threads);
}

// Gradients of x, if it is wanted, and of all As and Bs, in the order of the parts: of A, of B.
template <typename T>
void layer_back(const Learned& layer, const Pack& pack, int64_t tokens, const T* x,
                const Turning<T>& turning, T* numbers, float* floats, const T* gradient, T* grad_x,
                float* const* grads, int threads) {
  const int64_t d = pack.width, queries = pack.heads * d, keys = pack.kv_heads * d;
  const int64_t width = layer.width, inner = layer.parts[GATE].width;
  const Kept<T> kept(layer, pack, tokens, numbers, floats);
  // As of one input lie one below the other, so the first one's gradients are followed by the others'.
  const auto back = [&](int first, int64_t count, std::initializer_list<const void*> gradients,
                        const T* in, const T* low, int64_t depth, T* out) {
    float* ups[3];
    for (int64_t i = 0; i < count; i++) ups[i] = grads[2 * (first + i) + 1];
    adapt_back(layer.parts + first, count, gradients.begin(), in, low, tokens, depth, out,
               grads[2 * first], ups, threads);
  };
  Room<T> grad_inner(tokens * inner), grad_up(tokens * inner);
  Room<T> grad_normed(tokens * width), grad_after(tokens * width);
  back(DOWN, 1, {gradient}, kept.inner_TI, kept.low_down, inner, grad_inner.data());
  T* grad_gate = grad_inner.data();  // in its place
  gate_back(grad_inner.data(), kept.gate_TI, kept.up_TI, grad_gate, grad_up.data(), tokens * inner,
            threads);
  back(GATE, 2, {grad_gate, grad_up.data()}, kept.second_normed_TC, kept.low_gate, width,
       grad_normed.data());
  norm_back<T>(grad_normed.data(), kept.after_TC, kept.second_inverses_T,
               layer.second_norm, gradient, grad_after.data(), tokens, width, threads);
  Room<T> grad_found(tokens * queries), grad_queries(tokens * queries);
  Room<T> grad_keys(tokens * keys), grad_values(tokens * keys);
  back(OUT, 1, {grad_after.data()}, kept.found_THD, kept.low_out, queries, grad_found.data());
  learn_back<T>(pack, kept.queries_THD, kept.keys_TKD, kept.values_TKD, kept.found_THD,
                kept.sums_TH, grad_found.data(), grad_queries.data(), grad_keys.data(),
                grad_values.data(), threads);
  // In place: a head's line is read before it is written, two numbers of it at a time.
  turn(grad_queries.data(), queries, turning.cos, turning.back, turning.stride, layer.scale,
       grad_queries.data(), tokens, pack.heads, d, threads);
  turn(grad_keys.data(), keys, turning.cos, turning.back, turning.stride, 1.0f, grad_keys.data(),
       tokens, pack.kv_heads, d, threads);
  back(QUERY, 3, {grad_queries.data(), grad_keys.data(), grad_values.data()}, kept.normed_TC,
       kept.low_three, width, grad_x ? grad_normed.data() : nullptr);
  if (grad_x)
    norm_back(grad_normed.data(), x, kept.inverses_T, layer.norm,
              static_cast<const T*>(grad_after.data()), grad_x, tokens, width, threads);
}

}  // namespace
