#include "cpu/batch_norm_math.h"

#include <type_traits>

#include "cpu/instruction_sets.h"

namespace bissl_fast::cpu {
namespace {

// Calls work with the condition as a constant, so that loops hold no branch.
template <class Work>
INLINE void known(bool condition, const Work& work) {
  if (condition) {
    work(std::true_type{});
  } else {
    work(std::false_type{});
  }
}

// Both are read first: a read on condition costs more. A NaN in the mask passes, so that it stays visible.
template <bool kMasked, class T>
INLINE T stored_at(const T* values, const T* mask, int64_t k) {
  const T value = values[k];
  if constexpr (kMasked) return load(mask[k]) <= 0 ? T{0} : value;
  return value;
}

template <bool kMasked, class T>
INLINE Wide<T> at(const T* values, const T* mask, int64_t k) {
  return load(stored_at<kMasked>(values, mask, k));
}

// Calls add(j, over_rows) for column j of four rows at a time: over_rows(value) sums value(k) over the elements k of the
// column in these rows, in its own type. What add sums up over the calls is to be double.
template <class Add>
INLINE void add_columns(const Tile& tile, const Add& add) {
  const int64_t cols = tile.cols(), stride = tile.stride, whole = tile.rows & ~int64_t{3};
  for (int64_t i = 0; i < whole; i += 4) {
    const int64_t row = i * stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) {
      const int64_t k = row + j;
      add(j, [=](const auto& value) INLINE_LAMBDA {
        return (value(k) + value(k + stride)) + (value(k + 2 * stride) + value(k + 3 * stride));
      });
    }
  }
  for (int64_t i = whole; i < tile.rows; ++i) {
    const int64_t row = i * stride;
#pragma omp simd
    for (int64_t j = 0; j < cols; ++j) add(j, [=](const auto& value) INLINE_LAMBDA { return value(row + j); });
  }
}

// sums[c] += the columns of channel c.
INLINE void fold(const Tile& tile, const double* columns, double* sums) {
  if (tile.run == 1) {
#pragma omp simd
    for (int64_t c = 0; c < tile.channels; ++c) sums[c] += columns[c];
    return;
  }
  for (int64_t c = 0; c < tile.channels; ++c) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < tile.run; ++j) sum += columns[c * tile.run + j];
    sums[c] += sum;
  }
}

// A sum for each column of a tile.
struct ColumnSums {
  alignas(64) double values[kMaxCols];

  INLINE explicit ColumnSums(const Tile& tile) {
    for (int64_t j = 0; j < tile.cols(); ++j) values[j] = 0;
  }
  INLINE double& operator[](int64_t j) { return values[j]; }
};

template <class T>
INLINE void add_values_body(const Tile& tile, const T* x, double* sums) {
  ColumnSums columns(tile);
  add_columns(tile, [&](int64_t j, const auto& over_rows) INLINE_LAMBDA {
    columns[j] += over_rows([&](int64_t k) INLINE_LAMBDA { return load(x[k]); });
  });
  fold(tile, columns.values, sums);
}

template <class T>
INLINE void add_squares_body(const Tile& tile, const T* x, const Wide<T>* centre, double* sums) {
  ColumnSums columns(tile);
  add_columns(tile, [&](int64_t j, const auto& over_rows) INLINE_LAMBDA {
    columns[j] += over_rows([&](int64_t k) INLINE_LAMBDA {
      const Wide<T> distance = load(x[k]) - centre[j];
      return distance * distance;
    });
  });
  fold(tile, columns.values, sums);
}

template <bool kMasked, class T>
INLINE void add_moments_body(const Tile& tile, Masked<T> g, const T* x, const Wide<T>* mean, double* sums,
                             double* products) {
  ColumnSums columns(tile), weighted(tile);
  add_columns(tile, [&](int64_t j, const auto& over_rows) INLINE_LAMBDA {
    columns[j] += over_rows([&](int64_t k) INLINE_LAMBDA { return at<kMasked>(g.values, g.mask, k); });
    weighted[j] += over_rows([&](int64_t k) INLINE_LAMBDA {
      return at<kMasked>(g.values, g.mask, k) * (load(x[k]) - mean[j]);
    });
  });
  fold(tile, columns.values, sums);
  fold(tile, weighted.values, products);
}

template <bool kMasked, class T>
INLINE void add_products_body(const Tile& tile, Masked<T> g, const T* t, double* products) {
  ColumnSums columns(tile);
  add_columns(tile, [&](int64_t j, const auto& over_rows) INLINE_LAMBDA {
    columns[j] += over_rows([&](int64_t k) INLINE_LAMBDA { return at<kMasked>(g.values, g.mask, k) * load(t[k]); });
  });
  fold(tile, columns.values, products);
}

template <bool kResidual, bool kRelu, class T>
INLINE void write_normalised_body(const Tile& tile, const Factors<T>& by, const T* x, const T* residual, T* out) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t row = i * tile.stride;
#pragma omp simd
    for (int64_t j = 0; j < tile.cols(); ++j) {
      Wide<T> z = by.of_x[j] * (load(x[row + j]) - by.mean[j]) + by.constant[j];
      if constexpr (kResidual) z += load(residual[row + j]);
      if constexpr (kRelu) z = z <= 0 ? Wide<T>{0} : z;  // a NaN stays
      store(z, out + row + j);
    }
  }
}

template <bool kMoving, bool kResidual, bool kMasked, class T>
INLINE void write_tangent_body(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t,
                               const T* residual_t, const T* mask, T* out_t) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t row = i * tile.stride;
#pragma omp simd
    for (int64_t j = 0; j < tile.cols(); ++j) {
      Wide<T> z_t = by.of_x[j] * (load(x[row + j]) - by.mean[j]) + by.constant[j];
      if constexpr (kMoving) z_t += by.of_x_t[j] * load(x_t[row + j]);
      if constexpr (kResidual) z_t += load(residual_t[row + j]);
      if constexpr (kMasked) z_t = load(mask[row + j]) <= 0 ? Wide<T>{0} : z_t;
      store(z_t, out_t + row + j);
    }
  }
}

template <bool kMoving, bool kCotangent, bool kMasked, class T>
INLINE void write_gradient_body(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t, Masked<T> g,
                                const T* g_t, T* dx) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t row = i * tile.stride;
#pragma omp simd
    for (int64_t j = 0; j < tile.cols(); ++j) {
      Wide<T> value = by.of_x[j] * (load(x[row + j]) - by.mean[j]) + by.constant[j];
      value += by.of_g[j] * at<kMasked>(g.values, g.mask, row + j);
      if constexpr (kMoving) value += by.of_x_t[j] * load(x_t[row + j]);
      if constexpr (kCotangent) value += by.of_g_t[j] * at<kMasked>(g_t, g.mask, row + j);
      store(value, dx + row + j);
    }
  }
}

template <bool kMasked, class T>
INLINE void write_masked_body(const Tile& tile, Masked<T> g, T* out) {
  for (int64_t i = 0; i < tile.rows; ++i) {
    const int64_t row = i * tile.stride;
#pragma omp simd
    for (int64_t j = 0; j < tile.cols(); ++j) out[row + j] = stored_at<kMasked>(g.values, g.mask, row + j);
  }
}

}  // namespace

// target_clones takes plain functions only, so each template is spelled out for every way to store a number.
#define DEFINE_BATCH_NORM_MATH(T)                                                                                   \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_values(const Tile& tile, const T* x, double* sums) {                                 \
    add_values_body(tile, x, sums);                                                                                 \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_squares(const Tile& tile, const T* x, const Wide<T>* centre, double* sums) {         \
    add_squares_body(tile, x, centre, sums);                                                                        \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_moments(const Tile& tile, Masked<T> g, const T* x, const Wide<T>* mean,              \
                                       double* sums, double* products) {                                            \
    known(g.mask, [&](auto masked) INLINE_LAMBDA { add_moments_body<masked>(tile, g, x, mean, sums, products); });  \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void add_products(const Tile& tile, Masked<T> g, const T* t, double* products) {              \
    known(g.mask, [&](auto masked) INLINE_LAMBDA { add_products_body<masked>(tile, g, t, products); });             \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void write_normalised(const Tile& tile, const Factors<T>& by, const T* x, const T* residual,  \
                                            bool relu, T* out) {                                                    \
    known(residual, [&](auto added) INLINE_LAMBDA {                                                                 \
      known(relu, [&](auto clipped) INLINE_LAMBDA { write_normalised_body<added, clipped>(tile, by, x, residual, out); }); \
    });                                                                                                             \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void write_tangent(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t,          \
                                         const T* residual_t, const T* mask, T* out_t) {                            \
    known(x_t, [&](auto moving) INLINE_LAMBDA {                                                                     \
      known(residual_t, [&](auto added) INLINE_LAMBDA {                                                             \
        known(mask, [&](auto masked) INLINE_LAMBDA {                                                                \
          write_tangent_body<moving, added, masked>(tile, by, x, x_t, residual_t, mask, out_t);                     \
        });                                                                                                         \
      });                                                                                                           \
    });                                                                                                             \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void write_gradient(const Tile& tile, const Factors<T>& by, const T* x, const T* x_t,         \
                                          Masked<T> g, const T* g_t, T* dx) {                                       \
    known(x_t, [&](auto moving) INLINE_LAMBDA {                                                                     \
      known(g_t, [&](auto cotangent) INLINE_LAMBDA {                                                                \
        known(g.mask, [&](auto masked) INLINE_LAMBDA {                                                              \
          write_gradient_body<moving, cotangent, masked>(tile, by, x, x_t, g, g_t, dx);                             \
        });                                                                                                         \
      });                                                                                                           \
    });                                                                                                             \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void write_masked(const Tile& tile, Masked<T> g, T* out) {                                    \
    known(g.mask, [&](auto masked) INLINE_LAMBDA { write_masked_body<masked>(tile, g, out); });                     \
  }

DEFINE_BATCH_NORM_MATH(BFloat16)
DEFINE_BATCH_NORM_MATH(Half)
DEFINE_BATCH_NORM_MATH(float)
DEFINE_BATCH_NORM_MATH(double)

}  // namespace bissl_fast::cpu
