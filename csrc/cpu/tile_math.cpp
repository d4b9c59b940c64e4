#include "cpu/tile_math.h"

#include <algorithm>

#include "cpu/exp.h"
#include "cpu/instruction_sets.h"

namespace bissl_fast::cpu {
namespace {

constexpr int64_t kMaxCols = 512;  // no tile is wider

// P_ij and P_ji of one similarity.
template <class T, bool kShared>
struct Probabilities {
  T forward, backward;
  INLINE Probabilities(T similarity, T inv_temperature, T row, T col) {
    if constexpr (kShared) {
      const T e = exp((similarity - 1) * inv_temperature);
      forward = e * row;
      backward = e * col;
    } else {
      forward = exp((similarity - row) * inv_temperature);
      backward = exp((similarity - col) * inv_temperature);
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

template <class T, bool kShared>
INLINE void add_exp_sums_body(const Tile<T>& tile, T inv_temperature, double* row_sums, double* col_sums) {
  alignas(64) T col_partial[kMaxCols] = {};
  for (int64_t i = 0; i < tile.rows; ++i) {
    const T* s = tile.values + i * tile.cols;
    const T row = kShared ? T{1} : tile.row_stats[i];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kShared> p(s[j], inv_temperature, row, kShared ? T{1} : tile.col_stats[j]);
      sum += p.forward;
      col_partial[j] += p.backward;
    }
    row_sums[i] += sum;
  }
  if (!tile.diagonal) flush(col_partial, tile.cols, col_sums);
}

template <class T, bool kShared>
INLINE void to_weights_body(const Tile<T>& tile, T inv_temperature) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    T* s = tile.values + i * tile.cols;
    const T row = tile.row_stats[i];
#pragma omp simd
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kShared> p(s[j], inv_temperature, row, tile.col_stats[j]);
      s[j] = p.forward + p.backward;
    }
  }
}

template <class T, bool kShared>
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
      const Probabilities<T, kShared> p(s[j], inv_temperature, row, tile.col_stats[j]);
      const T scaled = sdot[j] * inv_temperature;
      sum += p.forward * scaled;
      col_partial[j] += p.backward * scaled;
    }
    row_sums[i] += sum;
  }
  if (!tile.diagonal) flush(col_partial, tile.cols, col_sums);
}

template <class T, bool kShared>
INLINE void to_tangent_weights_body(const Tile<T>& tile, T* tangents, T inv_temperature, const T* row_tangents,
                                    const T* col_tangents) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    T* s = tile.values + i * tile.cols;
    T* sdot = tangents + i * tile.cols;
    const T row = tile.row_stats[i];
    const T row_tangent = row_tangents[i];
#pragma omp simd
    for (int64_t j = 0; j < tile.cols; ++j) {
      const Probabilities<T, kShared> p(s[j], inv_temperature, row, tile.col_stats[j]);
      const T scaled = sdot[j] * inv_temperature;
      s[j] = p.forward + p.backward;
      sdot[j] = p.forward * (scaled - row_tangent) + p.backward * (scaled - col_tangents[j]);
    }
  }
}

}  // namespace

// target_clones takes plain functions only, so each template is spelled out for float and double.
#define DEFINE_TILE_MATH(T)                                                                                          \
  template <>                                                                                                        \
  PER_INSTRUCTION_SET void join_maxima(const Tile<T>& tile, T* row_max, T* col_max) {                                \
    join_maxima_body(tile, row_max, col_max);                                                                        \
  }                                                                                                                  \
  template <>                                                                                                        \
  PER_INSTRUCTION_SET void add_exp_sums(const Tile<T>& tile, Softmax<T> softmax, double* row_sums,                   \
                                        double* col_sums) {                                                          \
    softmax.shared ? add_exp_sums_body<T, true>(tile, softmax.inv_temperature, row_sums, col_sums)                   \
                   : add_exp_sums_body<T, false>(tile, softmax.inv_temperature, row_sums, col_sums);                 \
  }                                                                                                                  \
  template <>                                                                                                        \
  PER_INSTRUCTION_SET void to_weights(const Tile<T>& tile, Softmax<T> softmax) {                                     \
    softmax.shared ? to_weights_body<T, true>(tile, softmax.inv_temperature)                                         \
                   : to_weights_body<T, false>(tile, softmax.inv_temperature);                                       \
  }                                                                                                                  \
  template <>                                                                                                        \
  PER_INSTRUCTION_SET void add_tangent_sums(const Tile<T>& tile, const T* tangents, Softmax<T> softmax,              \
                                            double* row_sums, double* col_sums) {                                    \
    softmax.shared                                                                                                   \
        ? add_tangent_sums_body<T, true>(tile, tangents, softmax.inv_temperature, row_sums, col_sums)                \
        : add_tangent_sums_body<T, false>(tile, tangents, softmax.inv_temperature, row_sums, col_sums);              \
  }                                                                                                                  \
  template <>                                                                                                        \
  PER_INSTRUCTION_SET void to_tangent_weights(const Tile<T>& tile, T* tangents, Softmax<T> softmax,                  \
                                              const T* row_tangents, const T* col_tangents) {                        \
    softmax.shared                                                                                                   \
        ? to_tangent_weights_body<T, true>(tile, tangents, softmax.inv_temperature, row_tangents, col_tangents)      \
        : to_tangent_weights_body<T, false>(tile, tangents, softmax.inv_temperature, row_tangents, col_tangents);    \
  }

DEFINE_TILE_MATH(float)
DEFINE_TILE_MATH(double)

}  // namespace bissl_fast::cpu
