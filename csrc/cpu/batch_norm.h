// Batch norm, residual and ReLU on the CPU, on plain pointers. Symbols as in ops/batch_norm/schemas.py.
#pragma once

#include <cstdint>

#include "storage.h"

namespace bissl_fast::cpu {

// Tensors shaped like x as matrices of (groups * rows) x (channels * run), row-major: a channel is `run` neighbouring
// columns. Contiguous (N, C, S) has N rows and run = S; channels-last has N * S rows and run = 1.
struct BatchNormShape {
  int64_t groups;
  int64_t rows;  // of a group
  int64_t channels;
  int64_t run;

  int64_t cols() const { return channels * run; }
  int64_t values() const { return rows * run; }  // M
  int64_t size() const { return groups * rows * cols(); }
};

// T is how tensors shaped like x are stored. Statistics and sums (G, C) are wide, and so are weights and biases (C).
// Pointers that may be null: residual, mask, dresidual, and all whose name ends in _t; dresidual's tangent needs
// grad_out_t. `mask` is out where there is a ReLU.

template <class T>
struct ForwardInputs {
  const T* x;
  const Wide<T> *weight, *bias;
  const T* residual;
  bool relu;
};

template <class T>
struct Normalisation {
  const T *mask, *x;
  const Wide<T> *weight, *mean, *rstd;
};

template <class T>
struct Tangents {
  const T* x_t;
  const Wide<T> *weight_t, *bias_t;
  const T* residual_t;
};

template <class T>
struct Gradients {
  T *dx, *dresidual;
  Wide<T> *sum_g, *sum_gx;
};

// -> mean, rstd, out.
template <class T>
void batch_norm(const BatchNormShape& shape, const ForwardInputs<T>& inputs, double eps, Wide<T>* mean, Wide<T>* rstd,
                T* out);

// -> out once more.
template <class T>
void batch_norm_apply(const BatchNormShape& shape, const ForwardInputs<T>& inputs, const Wide<T>* mean,
                      const Wide<T>* rstd, T* out);

// -> all gradients; with `known_sums`, sum_g and sum_gx are read instead.
template <class T>
void batch_norm_backward(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                         bool known_sums, const Gradients<T>& gradients);

// -> out_t.
template <class T>
void batch_norm_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const Tangents<T>& tangents,
                        T* out_t);

// -> the tangents of all gradients along grad_out_t, x_t and weight_t.
template <class T>
void batch_norm_backward_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                 const Wide<T>* sum_g, const Wide<T>* sum_gx, const T* grad_out_t, const T* x_t,
                                 const Wide<T>* weight_t, const Gradients<T>& tangents);

}  // namespace bissl_fast::cpu
