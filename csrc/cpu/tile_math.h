// Element-wise work on one tile of similarities: what happens between the matrix products.
#pragma once

#include <cstdint>

namespace bissl_fast::cpu {

// How similarities become probabilities. `shared`: P_ij = exp((s_ij - 1) / tau) * row[i], where row[i] is
// exp(1 / tau - lse_i), so that one exp serves P_ij and P_ji. Otherwise, where 2 / tau is too large for the range of T:
// P_ij = exp((s_ij - row[i]) / tau), where row[i] is tau * lse_i (or the row's maximum, before lse is known).
template <class T>
struct Softmax {
  T inv_temperature;
  bool shared;
};

// A tile of `rows x cols` similarities, row-major, and the softmax statistics of its rows and columns.
// `diagonal`: a block against itself, where both triangles are in the tile and only rows are summed.
template <class T>
struct Tile {
  T* values;
  int64_t rows, cols;
  const T* row_stats;
  const T* col_stats;
  bool diagonal;
};

// Largest similarity of each row and each column, joined with what is there.
template <class T>
void join_maxima(const Tile<T>& tile, T* row_max, T* col_max);

// Adds each row's and each column's sum of exponentials. With `shared`, the statistics are not read.
template <class T>
void add_exp_sums(const Tile<T>& tile, Softmax<T> softmax, double* row_sums, double* col_sums);

// similarities -> P + P^T.
template <class T>
void to_weights(const Tile<T>& tile, Softmax<T> softmax);

// Adds rowsum(P o Sdot) and colsum(P^T o Sdot), the tangent of the row log-sums. `tangents` holds tau * Sdot.
template <class T>
void add_tangent_sums(const Tile<T>& tile, const T* tangents, Softmax<T> softmax, double* row_sums, double* col_sums);

// similarities -> P + P^T, tangents -> Pdot + Pdot^T, with Pdot_ij = P_ij (Sdot_ij - r_i).
template <class T>
void to_tangent_weights(const Tile<T>& tile, T* tangents, Softmax<T> softmax, const T* row_tangents,
                        const T* col_tangents);

}  // namespace bissl_fast::cpu
