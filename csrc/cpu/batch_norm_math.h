// What batch norm does to one tile: sums over its rows, and sums of products of its tensors written back.
#pragma once

#include <cstdint>

#include "storage.h"

namespace bissl_fast::cpu {

// `rows` rows that lie `stride` apart, of `channels` channels with `run` neighbouring columns each. Every tensor of an
// op lies alike. Arrays over the columns hold a value for each.
struct Tile {
  int64_t rows, stride, channels, run;
  int64_t cols() const { return channels * run; }
};

// Where a mask is given, values count as zero where it is zero or negative.
template <class T>
struct Masked {
  const T* values;
  const T* mask;
};

// All sums are formed in double, save of a few neighbours.
inline constexpr int64_t kMaxCols = 1024;  // of a tile

// sums += x.
template <class T>
void add_values(const Tile& tile, const T* x, double* sums);

// sums += (x - centre)^2.
template <class T>
void add_squares(const Tile& tile, const T* x, const Wide<T>* centre, double* sums);

// sums += g, products += g * (x - mean).
template <class T>
void add_moments(const Tile& tile, Masked<T> g, const T* x, const Wide<T>* mean, double* sums, double* products);

// products += g * t.
template <class T>
void add_products(const Tile& tile, Masked<T> g, const T* t, double* products);

// The factors of each column.
template <class T>
struct Factors {
  const Wide<T> *mean, *of_x, *of_x_t, *of_g, *of_g_t, *constant;
};

// out = of_x * (x - mean) + constant + residual, and its ReLU.
template <class T>
void write_normalised(const Tile& tile, const Factors<T>& by, const T* x, const T* residual, bool relu, T* out);

// out_t = mask * (of_x * (x - mean) + of_x_t * x_t + constant + residual_t); x_t and residual_t may be null.
template <class T>
void write_tangent(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t, const T* residual_t,
                   const T* mask, T* out_t);

// dx = of_x * (x - mean) + of_x_t * x_t + of_g * g + of_g_t * g_t + constant; x_t and g_t (masked as g) may be null.
template <class T>
void write_gradient(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t, Masked<T> g, const T* g_t,
                    T* dx);

// out = g.
template <class T>
void write_masked(const Tile& tile, Masked<T> g, T* out);

}  // namespace bissl_fast::cpu
