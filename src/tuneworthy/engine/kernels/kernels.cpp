// What is done between products, for processors: each function is one pass over memory where eager
// PyTorch makes several. Compiled on the machine that it runs on, see __init__.py.
//
// Numbers are stored as float or bfloat16 and computed with as float. Pointers come from tensors
// whose shapes, strides and number formats __init__.py has checked.

#include "adapted.h"
#include "attention.h"
#include "layers.h"
#include "learned.h"
#include "packs.h"
#include "products.h"
#include "vocabulary.h"
#include "whole.h"

// Each function for both ways of storing numbers.
#define FOR(T, NAME)                                                                               \
  void norm_##NAME(const T* x, int64_t stride, const float* gain, T* out, float* inverses,         \
                   int64_t rows, int64_t width, float epsilon, int threads) {                      \
    norm(x, stride, gain, out, inverses, rows, width, epsilon, threads);                           \
  }                                                                                                \
  void norm_back_##NAME(const T* gradient, const T* x, const float* inverses, const float* gain,   \
                        T* out, int64_t rows, int64_t width, int threads) {                        \
    const T* plus = nullptr;                                                                       \
    norm_back(gradient, x, inverses, gain, plus, out, rows, width, threads);                       \
  }                                                                                                \
  void gate_##NAME(const T* gates, const T* ups, T* out, int64_t count, int threads) {             \
    gate(gates, ups, out, count, threads);                                                         \
  }                                                                                                \
  void gate_back_##NAME(const T* gradients, const T* gates, const T* ups, T* grad_gates,           \
                        T* grad_ups, int64_t count, int threads) {                                 \
    gate_back(gradients, gates, ups, grad_gates, grad_ups, count, threads);                        \
  }                                                                                                \
  void turn_##NAME(const T* x, int64_t stride, const T* cos, const T* sin, int64_t turn_stride,    \
                   float scale, T* out, int64_t tokens, int64_t heads, int64_t width,              \
                   int threads) {                                                                  \
    turn(x, stride, cos, sin, turn_stride, scale, out, tokens, heads, width, threads);             \
  }                                                                                                \
  void lose_##NAME(T* logits, const int64_t* targets, int64_t lines, int64_t width, int learns,    \
                   float* losses, uint8_t* right, int threads) {                                   \
    lose(logits, targets, lines, width, learns != 0, losses, right, threads);                      \
  }                                                                                                \
  void likeliest_##NAME(const T* logits, int64_t stride, int64_t lines, int64_t width,             \
                        int64_t* places, float* sums, int threads) {                               \
    likeliest(logits, stride, lines, width, places, sums, threads);                                \
  }                                                                                                \
  void put_##NAME(const Rows* rows, int64_t layer, const T* query, int64_t query_stride,           \
                  const T* key, int64_t key_stride, const T* value, int64_t value_stride,          \
                  const T* cos, const T* sin, int64_t turn_stride, float scale, T* queries,        \
                  int threads) {                                                                   \
    put(*rows, layer, query, query_stride, key, key_stride, value, value_stride, cos, sin,         \
        turn_stride, scale, queries, threads);                                                     \
  }                                                                                                \
  void read_##NAME(const Rows* rows, int64_t layer, int64_t window, float softcap,                 \
                   const T* queries, const T* before_keys, const T* before_values, T* out,         \
                   int threads) {                                                                  \
    read(*rows, layer, window, softcap, queries, before_keys, before_values, out, threads);        \
  }                                                                                                \
  void attend_##NAME(const Rows* rows, int64_t layer, int64_t window, float softcap,               \
                     const T* queries, const T* before_keys, const T* before_values, T* out,       \
                     int threads) {                                                                \
    attend(*rows, layer, window, softcap, queries, before_keys, before_values, out, threads);      \
  }                                                                                                \
  void lay_##NAME(const T* lines, int64_t sets, int64_t count, int64_t width, int columns,         \
                  T* panels, int threads) {                                                        \
    lay(lines, sets, count, width, columns != 0, panels, threads);                                 \
  }                                                                                                \
  void layers_##NAME(const Layer* all, int64_t count, const Rows* rows, T* x, int64_t width,       \
                     const T* cos, const T* sin, int64_t turn_stride, const T* before_keys,        \
                     const T* before_values, const LowRank* beside, const T* sees, int64_t rank,   \
                     int threads) {                                                                \
    layers(all, count, *rows, x, width, cos, sin, turn_stride, before_keys, before_values, beside, \
           Sees<T>{sees, rank}, threads);                                                          \
  }                                                                                                \
  int multiplies_##NAME() { return multiplies<T>(); }                                              \
  void product_##NAME(const T* x, int64_t x_stride, int64_t lines, int64_t depth, const T* panels, \
                      int64_t columns, const float* bias, int how, const T* other, T* out,         \
                      int64_t out_stride, int threads) {                                           \
    product(x, x_stride, lines, depth, panels, columns, bias, How(how), other, out, out_stride,    \
            threads);                                                                              \
  }                                                                                                \
  void adapt_##NAME(const Adapted* layers, int64_t count, const T* x, int64_t lines,               \
                    int64_t depth, T* low, void* const* outputs, int threads) {                    \
    adapt(layers, count, x, lines, depth, low, outputs, static_cast<const T*>(nullptr), threads);  \
  }                                                                                                \
  void adapt_back_##NAME(const Adapted* layers, int64_t count, const void* const* gradients,       \
                         const T* x, const T* low, int64_t lines, int64_t depth, T* grad_x,        \
                         float* grad_downs, float* const* grad_ups, int threads) {                 \
    adapt_back(layers, count, gradients, x, low, lines, depth, grad_x, grad_downs, grad_ups,       \
               threads);                                                                           \
  }                                                                                                \
  void learn_##NAME(const Pack* pack, const T* queries, const T* keys, const T* values, T* out,    \
                    float* sums, int threads) {                                                    \
    learn(*pack, queries, keys, values, out, sums, threads);                                       \
  }                                                                                                \
  void learn_back_##NAME(const Pack* pack, const T* queries, const T* keys, const T* values,       \
                         const T* out, const float* sums, const T* grad_out, T* grad_queries,      \
                         T* grad_keys, T* grad_values, int threads) {                              \
    learn_back(*pack, queries, keys, values, out, sums, grad_out, grad_queries, grad_keys,         \
               grad_values, threads);                                                              \
  }                                                                                                \
  void layer_there_##NAME(const Learned* layer, const Pack* pack, int64_t tokens, const T* x,      \
                          const T* cos, const T* sin, const T* back, int64_t turn_stride,          \
                          T* numbers, float* floats, T* out, int threads) {                        \
    layer_there(*layer, *pack, tokens, x, Turning<T>{cos, sin, back, turn_stride}, numbers,        \
                floats, out, threads);                                                             \
  }                                                                                                \
  void layer_back_##NAME(const Learned* layer, const Pack* pack, int64_t tokens, const T* x,       \
                         const T* cos, const T* sin, const T* back, int64_t turn_stride,           \
                         T* numbers, float* floats, const T* gradient, T* grad_x,                  \
                         float* const* grads, int threads) {                                       \
    layer_back(*layer, *pack, tokens, x, Turning<T>{cos, sin, back, turn_stride}, numbers, floats, \
               gradient, grad_x, grads, threads);                                                  \
  }

extern "C" {
FOR(float, float32)
FOR(Bfloat16, bfloat16)
}
