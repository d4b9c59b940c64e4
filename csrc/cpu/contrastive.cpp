#include "cpu/contrastive.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/row_math.h"
#include "cpu/schedule.h"
#include "cpu/tile_math.h"

namespace bissl_fast::cpu {
namespace {

constexpr int64_t kRowGrain = 64;  // rows that are worth a thread

// The softmax of a temperature. Sums of exp((s - 1) / tau) reach down to exp(-2 / tau), which must stay a normal number
// and far above exp(kSmallest), what exp() leaves of the diagonal.
template <class T>
Softmax<T> softmax_of(const Problem& problem) {
  constexpr double kLargestRange = std::is_same_v<T, float> ? 60 : 600;
  return {static_cast<T>(1 / problem.temperature), 2 / problem.temperature <= kLargestRange};
}

template <class T>
std::vector<T> row_statistics(const Problem& problem, const Softmax<T>& softmax, const T* lse) {
  std::vector<T> statistics(problem.rows());
  for (int64_t i = 0; i < problem.rows(); ++i) {
    const double value = static_cast<double>(lse[i]);
    statistics[i] = static_cast<T>(softmax.shared ? std::exp(1 / problem.temperature - value)
                                                  : value * problem.temperature);
  }
  return statistics;
}

// The tiles of a problem: products of blocks of rows, with scratch memory for `count` tiles per worker.
template <class T>
class Tiles {
 public:
  Tiles(const Problem& problem, const T* units, int64_t count)
      : problem_(problem),
        units_(units),
        schedule_(problem.pairs, problem.cross_view),
        count_(count),
        scratch_(std::make_unique_for_overwrite<T[]>(schedule_.workers() * count * tile_size())) {}

  const Schedule& schedule() const { return schedule_; }

  // Rows of a (N, D) matrix that belong to a block.
  Matrix<T> rows_of(const T* matrix, int64_t block) const {
    return {const_cast<T*>(matrix) + schedule_.begin(block) * problem_.dim, schedule_.size(block), problem_.dim};
  }
  Matrix<T> scratch(int64_t index, int64_t row_block, int64_t col_block, int64_t worker) const {
    return {scratch_.get() + (worker * count_ + index) * tile_size(), schedule_.size(row_block),
            schedule_.size(col_block)};
  }
  // U_i U_j^T. A row's similarity to itself is sent so low that its exponential counts for nothing.
  Matrix<T> similarities(int64_t row_block, int64_t col_block, int64_t worker) const {
    const auto tile = scratch(0, row_block, col_block, worker);
    multiply(tile, rows_of(units_, row_block), rows_of(units_, col_block).transpose());
    if (row_block == col_block) {
      for (int64_t i = 0; i < tile.rows; ++i) tile.data[i * tile.cols + i] = kItself;
    }
    return tile;
  }
  // tau * Sdot = Udot_i U_j^T + U_i Udot_j^T.
  Matrix<T> tangents(const T* udot, int64_t row_block, int64_t col_block, int64_t worker) const {
    const auto tile = scratch(1, row_block, col_block, worker);
    multiply(tile, rows_of(udot, row_block), rows_of(units_, col_block).transpose());
    multiply(tile, rows_of(units_, row_block), rows_of(udot, col_block).transpose(), true);
    return tile;
  }
  // out_i += W_ij X_j, and for the mirrored tile out_j += W_ij^T X_i.
  void scatter(const Matrix<T>& weights, const T* x, T* out, int64_t row_block, int64_t col_block) const {
    multiply(rows_of(out, row_block), weights, rows_of(x, col_block), true);
    if (row_block != col_block) {
      multiply(rows_of(out, col_block), weights.transpose(), rows_of(x, row_block), true);
    }
  }
  Tile<T> with_statistics(const Matrix<T>& tile, const T* statistics, int64_t row_block, int64_t col_block) const {
    return {tile.data,
            tile.rows,
            tile.cols,
            statistics + schedule_.begin(row_block),
            statistics + schedule_.begin(col_block),
            row_block == col_block};
  }

 private:
  static constexpr T kItself = -1e6;

  int64_t tile_size() const { return schedule_.largest() * schedule_.largest(); }

  const Problem& problem_;
  const T* units_;
  Schedule schedule_;
  int64_t count_;
  std::unique_ptr<T[]> scratch_;
};

template <class T>
std::vector<T> row_maxima(const Problem& problem, const Tiles<T>& tiles) {
  std::vector<T> maxima(problem.rows(), -std::numeric_limits<T>::infinity());
  tiles.schedule().run([&](int64_t i, int64_t j, int64_t worker) {
    const auto tile = tiles.with_statistics(tiles.similarities(i, j, worker), maxima.data(), i, j);
    join_maxima(tile, maxima.data() + tiles.schedule().begin(i), maxima.data() + tiles.schedule().begin(j));
  });
  return maxima;
}

// r_i = sum_j P_ij Sdot_ij, the tangent of lse_i.
template <class T>
std::vector<T> log_sum_tangents(const Problem& problem, const Tiles<T>& tiles, const Softmax<T>& softmax,
                                const T* statistics, const T* udot) {
  std::vector<double> sums(problem.rows(), 0.0);
  tiles.schedule().run([&](int64_t i, int64_t j, int64_t worker) {
    const auto tile = tiles.with_statistics(tiles.similarities(i, j, worker), statistics, i, j);
    const auto tangents = tiles.tangents(udot, i, j, worker);
    add_tangent_sums(tile, tangents.data, softmax, sums.data() + tiles.schedule().begin(i),
                     sums.data() + tiles.schedule().begin(j));
  });
  return {sums.begin(), sums.end()};
}

template <class Work>
void each_row(const Problem& problem, const Work& work) {
  torch::stable::parallel_for(0, problem.rows(), kRowGrain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) work(i);
  });
}

}  // namespace

template <class T>
void normalise(const Problem& problem, const T* z1, const T* z2, T* units, T* inv_norms) {
  const int64_t dim = problem.dim;
  each_row(problem, [&](int64_t i) {
    const T* z = i < problem.pairs ? z1 + i * dim : z2 + (i - problem.pairs) * dim;
    inv_norms[i] = normalise_row(z, dim, units + i * dim);
  });
}

template <class T>
double forward(const Problem& problem, const T* units, T* lse) {
  const int64_t dim = problem.dim;
  const Tiles<T> tiles(problem, units, 1);
  const auto softmax = softmax_of<T>(problem);
  const auto maxima = softmax.shared ? std::vector<T>(problem.rows(), T{1}) : row_maxima(problem, tiles);
  std::vector<double> sums(problem.rows(), 0.0);
  tiles.schedule().run([&](int64_t i, int64_t j, int64_t worker) {
    const auto tile = tiles.with_statistics(tiles.similarities(i, j, worker), maxima.data(), i, j);
    add_exp_sums(tile, softmax, sums.data() + tiles.schedule().begin(i), sums.data() + tiles.schedule().begin(j));
  });

  double total = 0;
  for (int64_t i = 0; i < problem.rows(); ++i) {
    const double log_sum = std::log(sums[i]) + static_cast<double>(maxima[i]) / problem.temperature;
    const double positive = dot_rows(units + i * dim, units + problem.partner(i) * dim, dim);
    lse[i] = static_cast<T>(log_sum);
    total += log_sum - positive / problem.temperature;
  }
  return total / static_cast<double>(problem.rows());
}

template <class T>
void backward(const Problem& problem, const T* units, const T* inv_norms, const T* lse, T* grad, T* radial) {
  const int64_t dim = problem.dim;
  const Tiles<T> tiles(problem, units, 1);
  const auto softmax = softmax_of<T>(problem);
  const auto statistics = row_statistics(problem, softmax, lse);
  std::fill_n(grad, problem.rows() * dim, T{0});
  tiles.schedule().run([&](int64_t i, int64_t j, int64_t worker) {
    const auto weights = tiles.similarities(i, j, worker);
    to_weights(tiles.with_statistics(weights, statistics.data(), i, j), softmax);
    tiles.scatter(weights, units, grad, i, j);
  });

  const T scale = static_cast<T>(1 / (problem.temperature * static_cast<double>(problem.rows())));
  each_row(problem, [&](int64_t i) {
    radial[i] = finish_gradient_row(units + i * dim, units + problem.partner(i) * dim, inv_norms[i], scale, dim,
                                    grad + i * dim);
  });
}

template <class T>
void backward_backward(const Problem& problem, const T* units, const T* inv_norms, const T* lse, const T* grad,
                       const T* radial, const T* tangent, T* product) {
  const int64_t dim = problem.dim;
  const Tiles<T> tiles(problem, units, 2);
  const auto softmax = softmax_of<T>(problem);
  const auto statistics = row_statistics(problem, softmax, lse);
  const auto udot = std::make_unique_for_overwrite<T[]>(problem.rows() * dim);
  each_row(problem, [&](int64_t i) {
    unit_tangent_row(units + i * dim, tangent + i * dim, inv_norms[i], dim, udot.get() + i * dim);
  });
  const auto lse_tangents = log_sum_tangents(problem, tiles, softmax, statistics.data(), udot.get());

  std::fill_n(product, problem.rows() * dim, T{0});
  tiles.schedule().run([&](int64_t i, int64_t j, int64_t worker) {
    const auto weights = tiles.similarities(i, j, worker);
    const auto tangent_weights = tiles.tangents(udot.get(), i, j, worker);
    to_tangent_weights(tiles.with_statistics(weights, statistics.data(), i, j), tangent_weights.data, softmax,
                       lse_tangents.data() + tiles.schedule().begin(i),
                       lse_tangents.data() + tiles.schedule().begin(j));
    tiles.scatter(weights, udot.get(), product, i, j);
    tiles.scatter(tangent_weights, units, product, i, j);
  });

  const T scale = static_cast<T>(1 / (problem.temperature * static_cast<double>(problem.rows())));
  each_row(problem, [&](int64_t i) {
    finish_product_row(units + i * dim, tangent + i * dim, udot.get() + i * dim,
                       udot.get() + problem.partner(i) * dim, grad + i * dim, radial[i], inv_norms[i], scale, dim,
                       product + i * dim);
  });
}

#define INSTANTIATE(T)                                                                                       \
  template void normalise(const Problem&, const T*, const T*, T*, T*);                                       \
  template double forward(const Problem&, const T*, T*);                                                     \
  template void backward(const Problem&, const T*, const T*, const T*, T*, T*);                              \
  template void backward_backward(const Problem&, const T*, const T*, const T*, const T*, const T*, const T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace bissl_fast::cpu
