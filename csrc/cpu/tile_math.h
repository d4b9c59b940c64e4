// Element-wise work on one tile of similarities: what happens between the matrix products.
#pragma once

#include <cstdint>

namespace bissl_fast::cpu {

// What a tile holds, and so how its probabilities are formed.
enum class Form {
  // Similarities; P_ij = exp((s_ij - 1) / tau) * row[i] with row[i] = exp(1 / tau - lse_i): one exp for P_ij and P_ji.
  kShared,
  // Similarities, where 2 / tau is too large for the range of T: P_ij = exp((s_ij - row[i]) / tau) with
  // row[i] = tau * lse_i (or the row's maximum, before lse is known).
  kPerRow,
  // exp((s_ij - 1) / tau), kept from the forward pass; row[i] as with kShared.
  kExponentials,
};

template <class T>
struct Softmax {
  T inv_temperature;
  Form form;
};

// A tile of `rows x cols` values, row-major, and the softmax statistics of its rows and columns.
// `diagonal`: a block against itself, where both triangles are in the tile and only rows are summed.
template <class T>
struct Tile {
  const T* values;
  int64_t rows, cols;
  const T* row_stats;
  const T* col_stats;
  bool diagonal;
};

// Largest similarity of each row and each column, joined with what is there.
template <class T>
void join_maxima(const Tile<T>& tile, T* row_max, T* col_max);

// Adds each row's and each column's sum of exponentials, and leaves the exponentials of the rows in `out` (which may be
// the tile). With kShared, statistics are not read.
template <class T>
void add_exp_sums(const Tile<T>& tile, Softmax<T> softmax, double* row_sums, double* col_sums, T* out);

// P + P^T -> out, which may be the tile.
template <class T>
void to_weights(const Tile<T>& tile, Softmax<T> softmax, T* out);

// Adds rowsum(P o Sdot) and colsum(P^T o Sdot), the tangent of the row log-sums. `tangents` holds tau * Sdot.
template <class T>
void add_tangent_sums(const Tile<T>& tile, const T* tangents, Softmax<T> softmax, double* row_sums, double* col_sums);

// P + P^T -> out, which may be the tile; tangents -> Pdot + Pdot^T, with Pdot_ij = P_ij (Sdot_ij - r_i).
template <class T>
void to_tangent_weights(const Tile<T>& tile, T* tangents, Softmax<T> softmax, const T* row_tangents,
                        const T* col_tangents, T* out);

}  // namespace bissl_fast::cpu
