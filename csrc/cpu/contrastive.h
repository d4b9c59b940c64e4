// The contrastive losses on the CPU, on plain pointers. Shapes and symbols as in ops/schemas.py: N = 2 * pairs rows.
#pragma once

#include <cstdint>

#include "problem.h"

namespace bissl_fast::cpu {

// How many values a forward pass keeps for the derivatives, see kept.h; and whether a buffer can be what one kept.
int64_t kept_size(const Problem& problem);
template <class T>
bool is_kept(const Problem& problem, const T* kept);

// z1, z2 (B, D) -> units (N, D), inv_norms (N).
template <class T>
void normalise(const Problem& problem, const T* z1, const T* z2, T* units, T* inv_norms);

// units -> lse (N), kept (kept_size); returns the loss.
template <class T>
double forward(const Problem& problem, const T* units, T* lse, T* kept);

// What the forward pass leaves to its derivatives.
template <class T>
struct Saved {
  const T* units;
  const T* inv_norms;
  const T* kept;
};

// -> grad (N, D), radial (N).
template <class T>
void backward(const Problem& problem, const Saved<T>& saved, T* grad, T* radial);

// -> product (N, D).
template <class T>
void backward_backward(const Problem& problem, const Saved<T>& saved, const T* grad, const T* radial,
                       const T* tangent, T* product);

}  // namespace bissl_fast::cpu
