// Work on single rows: the normalisation and its first and second derivative. Symbols as in ops/schemas.py.
#pragma once

#include <cstdint>

namespace bissl_fast::cpu {

// a . b
template <class T>
double dot_rows(const T* a, const T* b, int64_t dim);

// u = z / max(|z|, eps); returns 1 / max(|z|, eps).
template <class T>
T normalise_row(const T* z, int64_t dim, T* u);

// G / scale (in `grad`: the weighted sum of unit rows) -> dloss/dz in place; returns radial = u . G.
template <class T>
T finish_gradient_row(const T* u, T inv_norm, T scale, int64_t dim, T* grad);

// udot = J v, the tangent of the unit row.
template <class T>
void unit_tangent_row(const T* u, const T* v, T inv_norm, int64_t dim, T* udot);

// Gdot / scale (in `product`) -> Hessian times v, in place.
template <class T>
void finish_product_row(const T* u, const T* v, const T* udot, const T* grad, T radial,
                        T inv_norm, T scale, int64_t dim, T* product);

}  // namespace bissl_fast::cpu
