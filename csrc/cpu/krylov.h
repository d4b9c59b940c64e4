// Vector work of conjugate gradients on the CPU, on plain pointers. The contract is in ops/krylov/schemas.py.
#pragma once

#include "segments.h"

namespace bissl_fast::cpu {

// Per entry (L).
template <class T>
struct Vectors {
  T *x, *r, *d;
  const T* q;
  const T* inverse_diagonal;  // null without a preconditioner: then z = r
};

// Per segment (S).
template <class T>
struct Scalars {
  const T* rz;
  T *curvature, *rz_next, *rr_next;
};

template <class T>
void segment_dots(const Segments& segments, const T* a, const T* b, T* dots);

template <class T>
void cg_update(const Segments& segments, const Vectors<T>& vectors, const Scalars<T>& scalars);

}  // namespace bissl_fast::cpu
