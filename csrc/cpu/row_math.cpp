#include "cpu/row_math.h"

#include <algorithm>
#include <cmath>

#include "constants.h"
#include "cpu/instruction_sets.h"

namespace bissl_fast::cpu {
namespace {

// A row shorter than eps was divided by the constant eps, so its normalisation is linear.
template <class T>
INLINE bool is_clamped(T inv_norm) {
  return inv_norm >= static_cast<T>(1 / kNormEps);
}

template <class T>
INLINE double dot(const T* a, const T* b, int64_t dim) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < dim; ++k) sum += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  return sum;
}

template <class T>
INLINE T normalise_row_body(const T* z, int64_t dim, T* u) {
  const double norm = std::sqrt(dot(z, z, dim));
  const T inv_norm = norm < kNormEps ? static_cast<T>(1 / kNormEps) : static_cast<T>(1 / norm);  // a NaN stays
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) u[k] = z[k] * inv_norm;
  return inv_norm;
}

template <class T>
INLINE T finish_gradient_row_body(const T* u, T inv_norm, T scale, int64_t dim, T* grad) {
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) grad[k] = scale * grad[k];
  const T radial = static_cast<T>(dot(u, grad, dim));
  const T removed = is_clamped(inv_norm) ? T{0} : radial;
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) grad[k] = inv_norm * (grad[k] - removed * u[k]);
  return radial;
}

template <class T>
INLINE void unit_tangent_row_body(const T* u, const T* v, T inv_norm, int64_t dim, T* udot) {
  const T removed = is_clamped(inv_norm) ? T{0} : static_cast<T>(dot(u, v, dim));
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) udot[k] = inv_norm * (v[k] - removed * u[k]);
}

template <class T>
INLINE void finish_product_row_body(const T* u, const T* v, const T* udot, const T* grad,
                                    T radial, T inv_norm, T scale, int64_t dim, T* product) {
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) product[k] = scale * product[k];
  if (is_clamped(inv_norm)) {
#pragma omp simd
    for (int64_t k = 0; k < dim; ++k) product[k] *= inv_norm;
    return;
  }
  const T along_u = static_cast<T>(dot(u, product, dim)) * inv_norm + static_cast<T>(dot(grad, udot, dim));
  const T along_grad = static_cast<T>(dot(u, v, dim)) * inv_norm;
#pragma omp simd
  for (int64_t k = 0; k < dim; ++k) {
    product[k] = inv_norm * (product[k] - radial * udot[k]) - along_u * u[k] - along_grad * grad[k];
  }
}

}  // namespace

// target_clones takes plain functions only, so each template is spelled out for float and double.
#define DEFINE_ROW_MATH(T)                                                                                          \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET double dot_rows(const T* a, const T* b, int64_t dim) {                                        \
    return dot(a, b, dim);                                                                                          \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET T normalise_row(const T* z, int64_t dim, T* u) {                                              \
    return normalise_row_body(z, dim, u);                                                                           \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET T finish_gradient_row(const T* u, T inv_norm, T scale, int64_t dim,         \
                                            T* grad) {                                                              \
    return finish_gradient_row_body(u, inv_norm, scale, dim, grad);                                        \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void unit_tangent_row(const T* u, const T* v, T inv_norm, int64_t dim, T* udot) {             \
    unit_tangent_row_body(u, v, inv_norm, dim, udot);                                                               \
  }                                                                                                                 \
  template <>                                                                                                       \
  PER_INSTRUCTION_SET void finish_product_row(const T* u, const T* v, const T* udot,         \
                                              const T* grad, T radial, T inv_norm, T scale, int64_t dim,            \
                                              T* product) {                                                         \
    finish_product_row_body(u, v, udot, grad, radial, inv_norm, scale, dim, product);                 \
  }

DEFINE_ROW_MATH(float)
DEFINE_ROW_MATH(double)

}  // namespace bissl_fast::cpu
