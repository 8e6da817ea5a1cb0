// Attention of packs that are learned from, and its gradients: rows that lie end to end, each token
// sees those of its row before it, itself, and what all rows begin with, which is the first of them.
//
// Weights are not kept but computed again on the way back, from each query's sum of exponentials (as
// Dao et al. 2022, "FlashAttention", do). Suffixes of names: see attention.h.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif

#include "attention.h"

extern "C" {

// A pack as all layers of one kind see it; see `structures.Pack`.
struct Pack {
  int64_t rows, prefix, heads, kv_heads, width, window;
  const int64_t* starts_R;  // where each row begins, and behind the last: R + 1
  float softcap;
};
}

namespace {

inline int64_t longest_row(const Pack& pack) {
  int64_t longest = 0;
  for (int64_t row = 0; row < pack.rows; row++)
    longest = std::max(longest, pack.starts_R[row + 1] - pack.starts_R[row]);
  return longest;
}

// How many tokens a row sees beside its own.
inline int64_t seen_before(const Pack& pack, int64_t row) { return row ? pack.prefix : 0; }

// The log of the sum of a query's exponentials.
inline float log_sum(Softened some) { return some.most + std::log(some.sum); }
inline float log_sum(Softened some, Softened others) {
  const float most = std::max(some.most, others.most);
  return most + std::log(some.sum * std::exp(some.most - most) +
                         others.sum * std::exp(others.most - most));
}

// Queries (T, H, D) × scale, keys and values (T, K, D), all after the rotary embedding, to what they
// find (T, H, D) and the log of each one's sum of exponentials (T, H).
template <typename T>
void learn(const Pack& pack, const T* queries, const T* keys, const T* values, T* out,
           float* sums_TH, int threads) {
  const int64_t d = pack.width, heads = pack.heads, group = heads / pack.kv_heads;
  const int64_t apart = pack.kv_heads * d, all = pack.rows * pack.kv_heads;
  const int64_t longest = longest_row(pack), prefix = pack.prefix;
  const int64_t key_panels = whole_panels(prefix) * d;
  const int64_t value_panels = whole_steps<T>(prefix) * whole_panels(d);
  // Few rows: each head of queries is a task of its own, though keys are laid for each again.
  const int64_t parts = std::clamp<int64_t>((4 * threads - 1) / all + 1, 1, group);
  std::vector<T> before_keys(pack.kv_heads * key_panels);
  std::vector<T> before_values(pack.kv_heads * value_panels);
#pragma omp parallel num_threads(threads)
  {
    Sight<T> own(d, longest), shared(d, prefix);
    std::vector<T> key_lines(whole_panels(longest) * d);
    std::vector<T> value_columns(whole_steps<T>(longest) * whole_panels(d));
#pragma omp for schedule(static)
    for (int64_t k = 0; k < pack.kv_heads; k++) {
      lay_lines(keys + k * d, apart, prefix, d, &before_keys[k * key_panels]);
      lay_columns(values + k * d, apart, prefix, d, &before_values[k * value_panels]);
    }
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < all * parts; task++) {
      // The longest rows stand at the end, and are begun with.
      const int64_t row = pack.rows - 1 - task / parts / pack.kv_heads;
      const int64_t k = task / parts % pack.kv_heads, part = task % parts;
      const int64_t start = pack.starts_R[row], count = pack.starts_R[row + 1] - start;
      const int64_t before = seen_before(pack, row), most = tile_lines(count);
      lay_lines(keys + start * apart + k * d, apart, count, d, key_lines.data());
      lay_columns(values + start * apart + k * d, apart, count, d, value_columns.data());
      const Panels<T> mine = {key_lines.data(), value_columns.data(), count};
      const Panels<T> others = {&before_keys[k * key_panels], &before_values[k * value_panels],
                                before};
      for (int64_t g = group * part / parts; g < group * (part + 1) / parts; g++)
        for (int64_t token = 0; token < count; token += most) {
          const int64_t few = std::min(most, count - token);
          const int64_t line = (start + token) * heads + k * group + g;
          for (int64_t m = 0; m < few; m++) {
            const int64_t at = token + m;
            own.first[m] = farthest(at, pack.window);
            own.last[m] = at + 1;
            shared.first[m] = std::min(before, farthest(before + at, pack.window));
            shared.last[m] = before;
          }
          own.look(few, queries + line * d, heads * d, mine, pack.softcap);
          if (before) shared.look(few, queries + line * d, heads * d, others, pack.softcap);
          for (int64_t m = 0; m < few; m++) {
            const int64_t at = line + m * heads;
            if (before) {
              mean(out + at * d, d, own.found(m), shared.found(m));
              sums_TH[at] = log_sum(own.found(m).weights, shared.found(m).weights);
            } else {
              mean(out + at * d, d, own.found(m));
              sums_TH[at] = log_sum(own.found(m).weights);
            }
          }
        }
    }
  }
}

// Some tokens' keys and values of one head, and their gradients turned over, (D, whole panels).
template <typename T>
struct Side {
  const T *key_lines, *key_columns, *value_lines;
  int64_t count;
  float *grad_keys, *grad_values;

  int64_t wide() const { return whole_panels(count); }
};

constexpr int64_t CHUNK = 144;  // queries, of all heads together, whose weights are kept at one time

// What a chunk of queries of one head of keys has to do with one side.
template <typename T>
class Weighing {
 public:
  Weighing(int64_t d, int64_t most_keys, int64_t most_queries)
      : d(d), stride(whole_panels(most_keys)), scores(TILE * stride), products(TILE * stride),
        weights(most_queries * stride), gradients(most_queries * stride),
        panel(whole_steps<T>(most_queries) * PANEL) {}

  // A chunk of queries, the farthest of which see from `first` to `last` (not itself).
  void begin(int64_t first, int64_t last) {
    from = first / PANEL * PANEL, to = whole_panels(last);
  }

  // Weights and gradients of scores of `few` queries, the chunk's from `at` on; queries and gradients
  // are `apart` numbers from each other.
  void weigh(const Side<T>& side, int64_t at, int64_t few, const int64_t* first,
             const int64_t* last, const T* queries, const T* gradient, int64_t apart,
             const float* sums, int64_t sums_apart, const float* along, float softcap) {
    start = *std::min_element(first, first + few) / PANEL * PANEL;
    end = std::max(start, *std::max_element(last, last + few));
    for (int64_t key = start; key < end; key += PANEL) {
      const T *lines = side.key_lines + key * d, *values = side.value_lines + key * d;
      const Stage<T> score{queries, apart, lines, d, values};
      tile_of<T>(few, &score, 1, nullptr, &scores[key], stride);
      const Stage<T> product{gradient, apart, values, d, lines + PANEL * d};
      tile_of<T>(few, &product, 1, nullptr, &products[key], stride);
    }
    const int64_t whole = whole_panels(end);
    for (int64_t m = 0; m < few; m++) {
      T *w = &weights[(at + m) * stride], *g = &gradients[(at + m) * stride];
      for (T* line : {w, g}) {
        std::memset(line + from, 0, (start - from) * sizeof(T));
        std::memset(line + whole, 0, std::max<int64_t>(0, to - whole) * sizeof(T));
      }
      for (int64_t i = start; i < whole; i += LANES) {
        Floats score = load_lanes(&scores[m * stride + i]), steep = Floats{} + 1.0f;
        if (softcap > 0) {
          for (int j = 0; j < LANES; j++) score[j] = std::tanh(score[j] / softcap);
          steep -= score * score;
          score *= softcap;
        }
        const Ints key = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + int32_t(i);
        const Ints seen = (key >= int32_t(first[m])) & (key < int32_t(last[m]));
        const Floats below = score - sums[m * sums_apart];
        const Floats weight = (Floats)(seen & (Ints)exp_lanes((Floats)((below < 0) & (Ints)below)));
        save_lanes(w + i, weight);
        save_lanes(g + i, weight * steep * (load_lanes(&products[m * stride + i]) - along[m]));
      }
    }
  }

  // What the queries weighed last add to their own gradients: columns c and on, from `at` on.
  Stage<T> of_queries(const Side<T>& side, int64_t at, int64_t c) const {
    const int64_t steps = whole_steps<T>(side.count);
    const T* panel = side.key_columns + c * steps + start * PANEL;
    return {&gradients[at * stride + start], stride, panel, whole_steps<T>(end) - start, panel};
  }

  // What the chunk's `count` queries, turned over as are the gradients of what they found (D, steps),
  // add to those of keys and values.
  void add(const Side<T>& side, int64_t count, const T* queries_DC, const T* gradients_DC) {
    add_to(side.grad_keys, side.wide(), gradients.data(), count, queries_DC);
    add_to(side.grad_values, side.wide(), weights.data(), count, gradients_DC);
  }

 private:
  void add_to(float* sums_DS, int64_t wide, const T* right, int64_t count, const T* left_DC) {
    const int64_t steps = whole_steps<T>(count), most = tile_lines(d);
    float sums[TILE * PANEL];
    for (int64_t key = from; key < to; key += PANEL) {
      lay_columns(right + key, stride, count, PANEL, panel.data());
      for (int64_t first = 0; first < d; first += most) {
        const int64_t few = std::min(most, d - first);
        const Stage<T> stage{left_DC + first * steps, steps, panel.data(), steps, panel.data()};
        tile_of<T>(few, &stage, 1, nullptr, sums, PANEL);
        for (int64_t m = 0; m < few; m++)
          for (int64_t i = 0; i < PANEL; i += LANES) {
            float* at = sums_DS + (first + m) * wide + key + i;
            save_lanes(at, load_lanes(at) + load_lanes(&sums[m * PANEL + i]));
          }
      }
    }
  }

  int64_t d, stride, from = 0, to = 0, start = 0, end = 0;
  std::vector<float> scores, products;
  std::vector<T> weights, gradients, panel;
};

// Keys and values of one head of some tokens, laid for the way back.
template <typename T>
struct Laid {
  std::vector<T> key_lines, key_columns, value_lines;

  void lay(const T* keys, const T* values, int64_t apart, int64_t count, int64_t d) {
    key_lines.resize(whole_panels(count) * d);
    value_lines.resize(whole_panels(count) * d);
    key_columns.resize(whole_steps<T>(count) * whole_panels(d));
    lay_lines(keys, apart, count, d, key_lines.data());
    lay_lines(values, apart, count, d, value_lines.data());
    lay_columns(keys, apart, count, d, key_columns.data());
  }

  Side<T> side(int64_t count, float* grad_keys, float* grad_values) const {
    return {key_lines.data(), key_columns.data(), value_lines.data(), count, grad_keys,
            grad_values};
  }
};

// Gradients (D, whole panels) as lines of numbers that lie `apart`.
template <typename T>
void turn_back(const float* sums_DS, int64_t count, int64_t d, T* lines, int64_t apart) {
  const int64_t wide = whole_panels(count);
  for (int64_t i = 0; i < count; i++)
    for (int64_t j = 0; j < d; j++) save(lines + i * apart + j, sums_DS[j * wide + i]);
}

// Gradients of queries, keys and values from those of `out`; `out` and sums are what `learn` left.
template <typename T>
void learn_back(const Pack& pack, const T* queries, const T* keys, const T* values, const T* out,
                const float* sums_TH, const T* grad_out, T* grad_queries, T* grad_keys,
                T* grad_values, int threads) {
  const int64_t d = pack.width, heads = pack.heads, group = heads / pack.kv_heads;
  const int64_t apart = pack.kv_heads * d, longest = longest_row(pack), prefix = pack.prefix;
  const int64_t* starts = pack.starts_R;
  const int64_t at_once = std::max<int64_t>(1, CHUNK / group);  // tokens of a chunk
  // Few rows: each head of queries is a task of its own. Several tasks add to what all rows begin
  // with, and then to every row: of these each thread has sums of its own, of keys and of values.
  const bool few_rows = pack.rows * pack.kv_heads < 4 * threads;
  const int64_t parts = few_rows ? group : 1, common = few_rows ? pack.rows : prefix ? 1 : 0;
  std::vector<int64_t> sizes(common), places(common + 1);
  for (int64_t row = 0; row < common; row++) {
    sizes[row] = d * whole_panels(starts[row + 1] - starts[row]);
    places[row + 1] = places[row] + 2 * pack.kv_heads * sizes[row];
  }
  std::vector<Laid<T>> shared(common * pack.kv_heads);
  std::vector<std::vector<float>> sums(threads);
#pragma omp parallel num_threads(threads)
  {
#ifdef _OPENMP
    std::vector<float>& mine = sums[omp_get_thread_num()];
#else
    std::vector<float>& mine = sums[0];
#endif
    mine.assign(places[common], 0.0f);
    const int64_t own_size = few_rows ? 0 : d * whole_panels(longest);
    std::vector<float> own_sums(2 * own_size), lines(TILE * whole_panels(d));
    std::vector<T> turned(2 * d * whole_steps<T>(group * at_once));
    Weighing<T> weighing(d, longest, group * at_once);
    Weighing<T> weighing_shared(d, prefix, group * at_once);
    Laid<T> laid;
    const auto side_of = [&](int64_t row, int64_t k) {
      float* at = &mine[places[row] + 2 * k * sizes[row]];
      return shared[row * pack.kv_heads + k].side(starts[row + 1] - starts[row], at,
                                                  at + sizes[row]);
    };
#pragma omp for schedule(static)
    for (int64_t task = 0; task < common * pack.kv_heads; task++) {
      const int64_t row = task / pack.kv_heads, k = task % pack.kv_heads;
      const int64_t at = starts[row] * apart + k * d;
      shared[task].lay(keys + at, values + at, apart, starts[row + 1] - starts[row], d);
    }
    // Which thread has which tasks is always the same, and so is the order of what is added up.
#pragma omp for schedule(static, 1)
    for (int64_t task = 0; task < pack.rows * pack.kv_heads * parts; task++) {
      const int64_t row = task / parts / pack.kv_heads, k = task / parts % pack.kv_heads;
      const int64_t part = task % parts, start = starts[row], count = starts[row + 1] - start;
      const int64_t before = seen_before(pack, row), most = tile_lines(count);
      const int64_t first_g = group * part / parts, last_g = group * (part + 1) / parts;
      if (row >= common) {
        laid.lay(keys + start * apart + k * d, values + start * apart + k * d, apart, count, d);
        std::fill(own_sums.begin(), own_sums.end(), 0.0f);
      }
      const Side<T> own = row < common
                              ? side_of(row, k)
                              : laid.side(count, own_sums.data(), own_sums.data() + own_size);
      const Side<T> others = before ? side_of(0, k) : Side<T>{};
      for (int64_t chunk = 0; chunk < count; chunk += at_once) {
        const int64_t many = std::min(at_once, count - chunk);
        weighing.begin(farthest(chunk, pack.window), chunk + many);
        weighing_shared.begin(std::min(before, farthest(before + chunk, pack.window)), before);
        for (int64_t g = first_g; g < last_g; g++)
          for (int64_t token = 0; token < many; token += most) {
            const int64_t few = std::min(most, many - token), at = (g - first_g) * many + token;
            const int64_t line = (start + chunk + token) * heads + k * group + g;
            int64_t first[TILE], last[TILE], first_before[TILE], last_before[TILE];
            float along[TILE];
            for (int64_t m = 0; m < few; m++) {
              const int64_t place = chunk + token + m;
              first[m] = farthest(place, pack.window), last[m] = place + 1;
              first_before[m] = std::min(before, farthest(before + place, pack.window));
              last_before[m] = before;
              const T *one = grad_out + (line + m * heads) * d, *other = out + (line + m * heads) * d;
              Floats together = {};
              for (int64_t i = 0; i < d; i += LANES)
                together += load_lanes(one + i) * load_lanes(other + i);
              along[m] = sum(together);
            }
            weighing.weigh(own, at, few, first, last, queries + line * d, grad_out + line * d,
                           heads * d, sums_TH + line, heads, along, pack.softcap);
            if (before)
              weighing_shared.weigh(others, at, few, first_before, last_before, queries + line * d,
                                    grad_out + line * d, heads * d, sums_TH + line, heads, along,
                                    pack.softcap);
            for (int64_t c = 0; c < d; c += PANEL) {
              Stage<T> stages[2] = {weighing.of_queries(own, at, c)};
              if (before) stages[1] = weighing_shared.of_queries(others, at, c);
              tile_of<T>(few, stages, before ? 2 : 1, nullptr, &lines[c], whole_panels(d));
            }
            for (int64_t m = 0; m < few; m++)
              store_line(grad_queries + (line + m * heads) * d, &lines[m * whole_panels(d)], d,
                         1.0f);
          }
        // The chunk's queries of all heads of the task, one behind the other.
        const int64_t queried = (last_g - first_g) * many, steps = whole_steps<T>(queried);
        std::fill(turned.begin(), turned.begin() + 2 * d * steps, T{});
        T *queries_DC = turned.data(), *gradients_DC = queries_DC + d * steps;
        for (int64_t g = first_g; g < last_g; g++) {
          const int64_t at = ((start + chunk) * heads + k * group + g) * d, to = (g - first_g) * many;
          turn_over(queries + at, heads * d, many, d, queries_DC + to, steps);
          turn_over(grad_out + at, heads * d, many, d, gradients_DC + to, steps);
        }
        weighing.add(own, queried, queries_DC, gradients_DC);
        if (before) weighing_shared.add(others, queried, queries_DC, gradients_DC);
      }
      if (row < common) continue;
      turn_back(own.grad_keys, count, d, grad_keys + start * apart + k * d, apart);
      turn_back(own.grad_values, count, d, grad_values + start * apart + k * d, apart);
    }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < common * pack.kv_heads; task++) {
      const int64_t row = task / pack.kv_heads, k = task % pack.kv_heads, size = sizes[row];
      const int64_t count = starts[row + 1] - starts[row], at = starts[row] * apart + k * d;
      float* first = &sums[0][places[row] + 2 * k * size];
      for (int thread = 1; thread < threads; thread++)
        if (!sums[thread].empty())
          for (int64_t i = 0; i < 2 * size; i++)
            first[i] += sums[thread][places[row] + 2 * k * size + i];
      turn_back(first, count, d, grad_keys + at, apart);
      turn_back(first + size, count, d, grad_values + at, apart);
    }
  }
}

}  // namespace
