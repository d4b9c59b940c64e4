// The tiles of a problem: products of blocks of rows, and the memory that they lie in.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>

#include "cpu/contrastive.h"
#include "cpu/gemm.h"
#include "cpu/schedule.h"
#include "cpu/tile_math.h"

namespace bissl_fast::cpu {

using Visit = Schedule::Visit;

// With `scratch` tiles of working memory per worker.
template <class T>
class Tiles {
 public:
  Tiles(const Problem& problem, const T* units, int64_t blocks_per_view, int64_t scratch)
      : problem_(problem),
        units_(units),
        schedule_(problem.pairs, problem.cross_view, blocks_per_view),
        scratch_count_(scratch),
        scratch_(std::make_unique_for_overwrite<T[]>(schedule_.workers() * scratch * tile_size())) {}

  const Schedule& schedule() const { return schedule_; }
  T* scratch(const Visit& at, int64_t index) const {
    return scratch_.get() + (at.worker * scratch_count_ + index) * tile_size();
  }

  // U_i U_j^T -> out. A row's similarity to itself is sent so low that its exponential is zero.
  void similarities(const Visit& at, T* out) const {
    const auto tile = as_tile(at, out);
    multiply(tile, rows_of(units_, at.row_block), rows_of(units_, at.col_block).transpose());
    if (at.diagonal()) {
      for (int64_t i = 0; i < tile.rows; ++i) out[i * tile.cols + i] = kItself;
    }
  }
  // The same, where positive pairs, too, are sent so low.
  void negatives(const Visit& at, T* out) const {
    similarities(at, out);
    each_positive(at, [&](int64_t entry, int64_t, int64_t) { out[entry] = kItself; });
  }
  // Copies the entries of positive pairs to both rows that they belong to.
  void copy_positives(const Visit& at, const T* values, double* positives) const {
    each_positive(at, [&](int64_t entry, int64_t i, int64_t j) { positives[i] = positives[j] = values[entry]; });
  }
  // Sets them to minus the sum of what both rows lack.
  void pull_positives(const Visit& at, T* weights, const T* lacks) const {
    each_positive(at, [&](int64_t entry, int64_t i, int64_t j) { weights[entry] = -(lacks[i] + lacks[j]); });
  }
  // tau * Sdot = Udot_i U_j^T + U_i Udot_j^T -> out.
  void tangents(const Visit& at, const T* udot, T* out) const {
    const auto tile = as_tile(at, out);
    multiply(tile, rows_of(udot, at.row_block), rows_of(units_, at.col_block).transpose());
    multiply(tile, rows_of(units_, at.row_block), rows_of(udot, at.col_block).transpose(), true);
  }
  // out_i += W_ij X_j, and for the mirrored tile out_j += W_ij^T X_i.
  void scatter(const Visit& at, T* weights, const T* x, T* out) const {
    const auto tile = as_tile(at, weights);
    multiply(rows_of(out, at.row_block), tile, rows_of(x, at.col_block), true);
    if (!at.diagonal()) multiply(rows_of(out, at.col_block), tile.transpose(), rows_of(x, at.row_block), true);
  }
  Tile<T> with_statistics(const Visit& at, const T* values, const T* statistics) const {
    return {values,
            schedule_.size(at.row_block),
            schedule_.size(at.col_block),
            statistics + schedule_.begin(at.row_block),
            statistics + schedule_.begin(at.col_block),
            at.diagonal()};
  }
  // The entries of a vector of N that belong to a tile's rows, and to its columns.
  template <class V>
  V* of_rows(const Visit& at, V* vector) const {
    return vector + schedule_.begin(at.row_block);
  }
  template <class V>
  V* of_cols(const Visit& at, V* vector) const {
    return vector + schedule_.begin(at.col_block);
  }

 private:
  static constexpr T kItself = -std::numeric_limits<T>::infinity();

  // Calls work(entry, i, j) for the positive pairs of a tile: they lie on the diagonal of the tiles between a block of
  // one view and its partner in the other.
  template <class Work>
  void each_positive(const Visit& at, const Work& work) const {
    if (std::abs(at.row_block - at.col_block) != schedule_.blocks_per_view()) return;
    const int64_t first = schedule_.begin(at.row_block), second = schedule_.begin(at.col_block);
    for (int64_t k = 0, size = schedule_.size(at.row_block); k < size; ++k) work(k * size + k, first + k, second + k);
  }
  int64_t tile_size() const { return schedule_.largest() * schedule_.largest(); }
  Matrix<T> as_tile(const Visit& at, T* memory) const {
    return {memory, schedule_.size(at.row_block), schedule_.size(at.col_block)};
  }
  // The rows of a (N, D) matrix that belong to a block. BLAS takes its inputs without const.
  Matrix<T> rows_of(const T* matrix, int64_t block) const {
    return {const_cast<T*>(matrix) + schedule_.begin(block) * problem_.dim, schedule_.size(block), problem_.dim};
  }

  const Problem& problem_;
  const T* units_;
  Schedule schedule_;
  int64_t scratch_count_;
  std::unique_ptr<T[]> scratch_;
};

}  // namespace bissl_fast::cpu
