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
  int64_t ranks = 1;  // processes whose values are normalised together, each with as many

  int64_t cols() const { return channels * run; }
  int64_t values() const { return rows * run; }  // M of this process
  int64_t statistics() const { return groups * channels; }
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
  Wide<T>* sums;  // (2, G, C): sum_g, sum_gx
};

// Sums over the values of all ranks and over this one's own, where there are several; `moments` are otherwise null and
// formed where they are needed.
template <class T>
struct KnownSums {
  const Wide<T> *sums, *own_sums;        // (2, G, C), of batch_norm_backward
  const Wide<T> *moments, *own_moments;  // (5, G, C), of batch_norm_tangent_moments
};

// -> mean and variance (2, G, C) of this process's values.
template <class T>
void batch_norm_statistics(const BatchNormShape& shape, const T* x, Wide<T>* statistics);

// -> mean, rstd, out; from the statistics of every rank (R, 2, G, C) unless these are null.
template <class T>
void batch_norm(const BatchNormShape& shape, const ForwardInputs<T>& inputs, const Wide<T>* every, double eps,
                Wide<T>* mean, Wide<T>* rstd, T* out);

// -> out once more.
template <class T>
void batch_norm_apply(const BatchNormShape& shape, const ForwardInputs<T>& inputs, const Wide<T>* mean,
                      const Wide<T>* rstd, T* out);

// -> sums (2, G, C) of v and of v xhat over this process's values, v being masked where there is a mask.
template <class T>
void batch_norm_moments(const BatchNormShape& shape, const Normalisation<T>& saved, const T* v, Wide<T>* moments);

// -> all gradients; with `known_sums`, those are read instead.
template <class T>
void batch_norm_backward(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                         bool known_sums, const Gradients<T>& gradients);

// -> out_t; from the moments of x_t over all ranks, without a mask, unless these are null.
template <class T>
void batch_norm_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const Tangents<T>& tangents,
                        const Wide<T>* moments, T* out_t);

// -> sums (5, G, C) of x_t, xhat x_t, g x_t, g_t and g_t xhat over this process's values.
template <class T>
void batch_norm_tangent_moments(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                const T* grad_out_t, const T* x_t, Wide<T>* moments);

// -> the tangents of all gradients along grad_out_t, x_t and weight_t.
template <class T>
void batch_norm_backward_tangent(const BatchNormShape& shape, const Normalisation<T>& saved, const T* grad_out,
                                 const KnownSums<T>& known, const T* grad_out_t, const T* x_t, const Wide<T>* weight_t,
                                 const Gradients<T>& tangents);

}  // namespace bissl_fast::cpu
