// Numbers as they are stored, LANES of them at a time as they are computed with, and exponentials.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t))));

struct Bfloat16 {
  uint16_t bits;
};

inline float load(const float* at) { return *at; }
inline float load(const Bfloat16* at) {
  uint32_t word = uint32_t(at->bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
inline void save(float* at, float value) { *at = value; }
inline void save(Bfloat16* at, float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  // To the nearest, of two equally near the even one; what is no number stays none.
  at->bits = value != value ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline Floats load_lanes(const float* at) {
  Floats lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}
inline Floats load_lanes(const Bfloat16* at) {
  Halves halves;
  std::memcpy(&halves, at, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}
inline void save_lanes(float* at, Floats lanes) { std::memcpy(at, &lanes, sizeof lanes); }
inline void save_lanes(Bfloat16* at, Floats lanes) {
#ifdef __AVX512BF16__
  _mm256_storeu_si256((__m256i_u*)at, (__m256i)_mm512_cvtneps_pbh(lanes));
#else
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  Words nan = (Words)(lanes != lanes);
  words = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  words = (nan & 0x7fc0) | (~nan & words);
  Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(at, &halves, sizeof halves);
#endif
}
// Of all lanes, half of them at a time.
inline float sum(Floats lanes) {
  typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
  typedef float Four __attribute__((vector_size(4 * sizeof(float))));
  Eight eights[2];
  std::memcpy(eights, &lanes, sizeof eights);
  eights[0] += eights[1];
  Four fours[2];
  std::memcpy(fours, eights, sizeof fours);
  fours[0] += fours[1];
  return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
}

// e^x for x <= 0, to about two units in the last place: 2^n times a polynomial of the rest
// (Cephes' expf, S. Moshier). Below -87 it is 0, or next to it.
inline Floats exp_lanes(Floats x) {
#ifdef __AVX512F__
  const Floats bounded = _mm512_max_ps(x, _mm512_set1_ps(-110.0f));
  const Floats whole = _mm512_roundscale_ps(bounded * 1.44269504088896341f, 0);
#else
  const Ints tiny = x < -87.0f;
  const Floats bounded = (Floats)((~tiny & (Ints)x));
  const Floats scaled = bounded * 1.44269504088896341f - 0.5f;
  const Ints n = __builtin_convertvector(scaled, Ints);  // towards 0: to the nearest, as x <= 0
  const Floats whole = __builtin_convertvector(n, Floats);
#endif
  const Floats r = bounded - whole * 0.693359375f + whole * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
#ifdef __AVX512F__
  return _mm512_scalef_ps(p, whole);
#else
  const Floats power = (Floats)((n + 127) << 23);
  return (Floats)(~tiny & (Ints)(p * power));
#endif
}

// Room for numbers, which are not zeroed first.
template <typename T>
class Room {
 public:
  explicit Room(int64_t count) : held(new T[count]) {}
  T* data() { return held.get(); }
  const T* data() const { return held.get(); }

 private:
  std::unique_ptr<T[]> held;
};

constexpr float HIDDEN = -std::numeric_limits<float>::infinity();

inline int64_t whole_lanes(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

template <typename T>
inline void load_line(float* line, const T* at, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) save_lanes(line + i, load_lanes(at + i));
  for (; i < count; i++) line[i] = load(at + i);
}
template <typename T>
inline void store_line(T* at, const float* line, int64_t count, float scale) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) save_lanes(at + i, load_lanes(line + i) * scale);
  for (; i < count; i++) save(at + i, line[i] * scale);
}

template <typename T>
inline float highest(const T* line, int64_t count) {
  Floats most = Floats{} + HIDDEN;
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) {
    const Floats lanes = load_lanes(line + i);
    most = most > lanes ? most : lanes;
  }
  float top = HIDDEN;
  for (int j = 0; j < LANES; j++) top = std::max(top, most[j]);
  for (; i < count; i++) top = std::max(top, load(line + i));
  return top;
}

}  // namespace
