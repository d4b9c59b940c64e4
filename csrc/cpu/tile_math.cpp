#include "cpu/tile_math.h"

#include <algorithm>

#include "cpu/exp.h"
#include "cpu/instruction_sets.h"
#include "cpu/schedule.h"

namespace bissl_fast::cpu {
namespace {

constexpr int64_t kMaxCols = Schedule::kLargestBlock;  // no tile is wider

// P_ij and P_ji of one value of a tile.
template <class T, Form kForm>
struct Probabilities {
  T forward, backward;
  INLINE Probabilities(T value, T inv_temperature, T row, T col) {
    if constexpr (kForm == Form::kPerRow) {
      forward = exp((value - row) * inv_temperature);
      backward = exp((value - col) * inv_temperature);
    } else {
      const T e = kForm == Form::kShared ? exp((value - 1) * inv_temperature) : value;
      forward = e * row;
      backward = e * col;
    }
  }
};

template <class T>
INLINE void flush(const T* partial, int64_t count, double* sums) {
  for (int64_t j = 0; j < count; ++j) sums[j] += partial[j];
}

template <class T>
INLINE void join_maxima_body(const Tile<T>& tile, T* row_max, T* col_max) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    T largest = row_max[i];
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < tile.cols; ++j) largest = std::max(largest, s[j]);
    row_max[i] = largest;
    if (tile.diagonal) continue;
#pragma omp simd
    for (int64_t j = 0; j < tile.cols; ++j) col_max[j] = std::max(col_max[j], s[j]);
  }
}

template <class T, Form kForm>
INLINE void add_exp_sums_body(const Tile<T>& tile, T inv_temperature, double* row_sums, double* col_sums,
                              T* out) {
  alignas(64) T col_partial[kMaxCols] = {};
  constexpr bool kPlain = kForm == Form::kShared;  // no statistics yet
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    T* e = out + i * tile.cols;
    const T row = kPlain ? T{1} : tile.row_stats[i];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kForm> p(s[j], inv_temperature, row, kPlain ? T{1} : tile.col_stats[j]);
      sum += p.forward;
      e[j] = p.forward;
      col_partial[j] += p.backward;
    }
    row_sums[i] += sum;
  }
  if (!tile.diagonal) flush(col_partial, tile.cols, col_sums);
}

template <class T, Form kForm>
INLINE void to_weights_body(const Tile<T>& tile, T inv_temperature, T* out) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    T* weights = out + i * tile.cols;
    const T row = tile.row_stats[i];
#pragma omp simd
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kForm> p(s[j], inv_temperature, row, tile.col_stats[j]);
      weights[j] = p.forward + p.backward;
    }
  }
}

template <class T, Form kForm>
INLINE void add_tangent_sums_body(const Tile<T>& tile, const T* tangents, T inv_temperature, double* row_sums,
                                  double* col_sums) {
  alignas(64) T col_partial[kMaxCols] = {};
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    const T* sdot = tangents + i * tile.cols;
    const T row = tile.row_stats[i];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kForm> p(s[j], inv_temperature, row, tile.col_stats[j]);
      const T scaled = sdot[j] * inv_temperature;
      sum += p.forward * scaled;
      col_partial[j] += p.backward * scaled;
    }
    row_sums[i] += sum;
  }
  if (!tile.diagonal) flush(col_partial, tile.cols, col_sums);
}

template <class T, Form kForm>
INLINE void to_tangent_weights_body(const Tile<T>& tile, T* tangents, T inv_temperature, const T* row_tangents,
                                    const T* col_tangents, T* out) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    T* weights = out + i * tile.cols;
    T* sdot = tangents + i * tile.cols;
    const T row = tile.row_stats[i];
    const T row_tangent = row_tangents[i];
#pragma omp simd
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kForm> p(s[j], inv_temperature, row, tile.col_stats[j]);
      const T scaled = sdot[j] * inv_temperature;
      weights[j] = p.forward + p.backward;
      sdot[j] = p.forward * (scaled - row_tangent) + p.backward * (scaled - col_tangents[j]);
    }
  }
}

}  // namespace

// target_clones takes plain functions only, so each template is spelled out for float and double.
#define DEFINE_TILE_MATH(T)                                                                                         \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void join_maxima(const Tile<T>& tile, T* row_max, T* col_max) {                               \
    join_maxima_body(tile, row_max, col_max);                                                                       \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_exp_sums(const Tile<T>& tile, Softmax<T> softmax, double* row_sums,                  \
                                        double* col_sums, T* out) {                                                 \
    if (softmax.form == Form::kShared) {                                                                            \
      add_exp_sums_body<T, Form::kShared>(tile, softmax.inv_temperature, row_sums, col_sums, out);                  \
    } else {                                                                                                        \
      add_exp_sums_body<T, Form::kPerRow>(tile, softmax.inv_temperature, row_sums, col_sums, out);                  \
    }                                                                                                               \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void to_weights(const Tile<T>& tile, Softmax<T> softmax, T* out) {                            \
    switch (softmax.form) {                                                                                         \
      case Form::kShared: return to_weights_body<T, Form::kShared>(tile, softmax.inv_temperature, out);             \
      case Form::kPerRow: return to_weights_body<T, Form::kPerRow>(tile, softmax.inv_temperature, out);             \
      case Form::kExponentials:                                                                                     \
        return to_weights_body<T, Form::kExponentials>(tile, softmax.inv_temperature, out);                         \
    }                                                                                                               \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_tangent_sums(const Tile<T>& tile, const T* tangents, Softmax<T> softmax,             \
                                            double* row_sums, double* col_sums) {                                   \
    const T scale = softmax.inv_temperature;                                                                        \
    switch (softmax.form) {                                                                                         \
      case Form::kShared:                                                                                           \
        return add_tangent_sums_body<T, Form::kShared>(tile, tangents, scale, row_sums, col_sums);                  \
      case Form::kPerRow:                                                                                           \
        return add_tangent_sums_body<T, Form::kPerRow>(tile, tangents, scale, row_sums, col_sums);                  \
      case Form::kExponentials:                                                                                     \
        return add_tangent_sums_body<T, Form::kExponentials>(tile, tangents, scale, row_sums, col_sums);            \
    }                                                                                                               \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void to_tangent_weights(const Tile<T>& tile, T* tangents, Softmax<T> softmax,                 \
                                              const T* row_tangents, const T* col_tangents, T* out) {               \
    const T scale = softmax.inv_temperature;                                                                        \
    switch (softmax.form) {                                                                                         \
      case Form::kShared:                                                                                           \
        return to_tangent_weights_body<T, Form::kShared>(tile, tangents, scale, row_tangents, col_tangents, out);   \
      case Form::kPerRow:                                                                                           \
        return to_tangent_weights_body<T, Form::kPerRow>(tile, tangents, scale, row_tangents, col_tangents, out);   \
      case Form::kExponentials:                                                                                     \
        return to_tangent_weights_body<T, Form::kExponentials>(tile, tangents, scale, row_tangents, col_tangents,   \
                                                               out);                                                \
    }                                                                                                               \
  }

DEFINE_TILE_MATH(float)
DEFINE_TILE_MATH(double)

}  // namespace bissl_fast::cpu
