// The contrastive losses in panels of rows of S = U U^T, exact to second order, for any engine that offers
//   each(count, body)          body(index) for every index below count, in any order, at the same time
//   multiply(out, a, b)        a product of row-major matrices or their transposes
//   scratch<T>(count)          memory that lives as long as the engine
// contrastive.cu runs this on a GPU, contrastive_test.cpp in loops on the host. Every sum has one writer and one
// order: no atomics. A panel has about as many entries as the embeddings, so memory stays O(N D).
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/rows.h"

namespace bissl_fast::cuda {

inline constexpr int64_t kFewestRows = 256;  // of a panel, to keep the device busy where embeddings are narrow

inline int64_t panel_rows(const Problem& problem) {
  return std::min(problem.rows(), std::max(problem.dim, kFewestRows));
}

// How many values a forward pass keeps for the derivatives.
inline int64_t kept_size(const Problem& problem) { return 3 * problem.rows(); }

template <class T>
Softmax<T> softmax_of(const Problem& problem, T* kept) {
  return {kept, kept + problem.rows(), kept + 2 * problem.rows()};
}

// A row-major matrix without gaps, or the transpose of one.
template <class T>
struct Matrix {
  T* data;
  int64_t rows, cols;
  bool transposed = false;

  Matrix transpose() const { return {data, cols, rows, !transposed}; }
  Matrix panel(int64_t first, int64_t count) const { return {data + first * cols, count, cols}; }
};

// What a forward pass leaves to its derivatives.
template <class T>
struct Saved {
  T* units;
  T* inv_norms;
  T* kept;
};

// out[i] = a_i . b_i over rows of length `size`.
template <class T, class Engine>
void dots(Engine& engine, int64_t rows, int64_t size, const T* a, const T* b, double* out) {
  double* shares = engine.template scratch<double>(rows * kLanes);
  engine.each(rows * kLanes, [=] HOST_DEVICE(int64_t at) {
    const int64_t start = at / kLanes * size;
    shares[at] = dot_of_lane(a + start, b + start, size, at % kLanes);
  });
  engine.each(rows, [=] HOST_DEVICE(int64_t i) { out[i] = sum_of_lanes(shares + i * kLanes); });
}

// Calls work(first, count) for every panel of rows.
template <class Work>
void each_panel(const Problem& problem, const Work& work) {
  const int64_t step = panel_rows(problem);
  for (int64_t first = 0; first < problem.rows(); first += step) {
    work(first, std::min(step, problem.rows() - first));
  }
}

// z1, z2 (B, D) -> units (N, D), inv_norms (N).
template <class T, class Engine>
void normalise(Engine& engine, const Problem& problem, const T* z1, const T* z2, T* units, T* inv_norms) {
  const int64_t pairs = problem.pairs, dim = problem.dim;
  double* squares = engine.template scratch<double>(problem.rows());
  dots(engine, pairs, dim, z1, z1, squares);
  dots(engine, pairs, dim, z2, z2, squares + pairs);
  engine.each(problem.rows(), [=] HOST_DEVICE(int64_t i) { inv_norms[i] = inverse_norm<T>(squares[i]); });
  engine.each(problem.rows() * dim, [=] HOST_DEVICE(int64_t at) {
    const T z = at < pairs * dim ? z1[at] : z2[at - pairs * dim];
    units[at] = z * inv_norms[at / dim];
  });
}

template <class T, class Engine>
void softmax_panel(Engine& engine, const Problem& problem, int64_t first, int64_t count, const T* similarities,
                   const double* positives, ExpSum<T>* shares, const Softmax<T>& softmax, T* lse, double* losses) {
  const int64_t rows = problem.rows();
  engine.each(count * kLanes, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = at / kLanes;
    shares[at] = exp_sum_of_lane(problem, similarities + i * rows, first + i, at % kLanes);
  });
  engine.each(count, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = first + at;
    const double positive = positives[i % problem.pairs];
    losses[i] = finish_softmax(problem, shares + at * kLanes, positive, i, softmax, lse + i);
  });
}

// units -> loss (), lse (N), kept (kept_size).
template <class T, class Engine>
void forward(Engine& engine, const Problem& problem, T* units, T* loss, T* lse, T* kept) {
  const int64_t rows = problem.rows();
  const Matrix<T> all{units, rows, problem.dim};
  T* similarities = engine.template scratch<T>(panel_rows(problem) * rows);
  ExpSum<T>* lanes = engine.template scratch<ExpSum<T>>(panel_rows(problem) * kLanes);
  double* losses = engine.template scratch<double>(rows);
  double* positives = engine.template scratch<double>(problem.pairs);  // near one, where a product's rounding is largest
  dots<T>(engine, problem.pairs, problem.dim, units, units + problem.pairs * problem.dim, positives);
  each_panel(problem, [&](int64_t first, int64_t count) {
    engine.multiply(Matrix<T>{similarities, count, rows}, all.panel(first, count), all.transpose());
    softmax_panel(engine, problem, first, count, similarities, positives, lanes, softmax_of(problem, kept), lse,
                  losses);
  });
  double* shares = engine.template scratch<double>(kLanes);
  engine.each(kLanes, [=] HOST_DEVICE(int64_t lane) {
    shares[lane] = 0;
    for (int64_t i = lane; i < rows; i += kLanes) shares[lane] += losses[i];
  });
  engine.each(1, [=] HOST_DEVICE(int64_t) { *loss = static_cast<T>(sum_of_lanes(shares) / static_cast<double>(rows)); });
}

template <class T, class Engine>
void to_weights(Engine& engine, const Problem& problem, int64_t first, int64_t count, const Softmax<T>& softmax,
                T* similarities) {
  const int64_t rows = problem.rows();
  engine.each(count * rows, [=] HOST_DEVICE(int64_t at) {
    similarities[at] = weight(problem, softmax, first + at / rows, at % rows, similarities[at]);
  });
}

// -> grad (N, D), radial (N).
template <class T, class Engine>
void backward(Engine& engine, const Problem& problem, const Saved<T>& saved, T* grad, T* radial) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  const Matrix<T> all{saved.units, rows, dim};
  T* similarities = engine.template scratch<T>(panel_rows(problem) * rows);
  each_panel(problem, [&](int64_t first, int64_t count) {
    const Matrix<T> panel{similarities, count, rows};
    engine.multiply(panel, all.panel(first, count), all.transpose());
    to_weights(engine, problem, first, count, softmax_of(problem, saved.kept), similarities);
    engine.multiply(Matrix<T>{grad, rows, dim}.panel(first, count), panel, all);
  });
  double* along = engine.template scratch<double>(rows);
  dots<T>(engine, rows, dim, saved.units, grad, along);
  engine.each(rows, [=] HOST_DEVICE(int64_t i) { radial[i] = static_cast<T>(along[i]); });
  engine.each(rows * dim, [=] HOST_DEVICE(int64_t at) {
    const T inv_norm = saved.inv_norms[at / dim];
    const T removed = is_clamped(inv_norm) ? T{0} : radial[at / dim] * saved.units[at];
    grad[at] = inv_norm * (grad[at] - removed);
  });
}

// values = scale (values + others)
template <class T, class Engine>
void add_others(Engine& engine, int64_t count, T scale, T* values, const T* others) {
  engine.each(count, [=] HOST_DEVICE(int64_t at) { values[at] = scale * (values[at] + others[at]); });
}

// Panels of S and of Sdot = (Udot U^T + U Udot^T) / tau.
template <class T, class Engine>
class TangentPanels {
 public:
  TangentPanels(Engine& engine, const Problem& problem, T* units, T* udot)
      : engine_(engine),
        problem_(problem),
        units_{units, problem.rows(), problem.dim},
        udot_{udot, problem.rows(), problem.dim},
        similarities_(engine.template scratch<T>(panel_rows(problem) * problem.rows())),
        tangents_(engine.template scratch<T>(panel_rows(problem) * problem.rows())),
        others_(engine.template scratch<T>(panel_rows(problem) * problem.rows())) {}

  void fill(int64_t first, int64_t count) {
    const int64_t rows = problem_.rows();
    engine_.multiply(Matrix<T>{similarities_, count, rows}, units_.panel(first, count), units_.transpose());
    engine_.multiply(Matrix<T>{tangents_, count, rows}, udot_.panel(first, count), units_.transpose());
    engine_.multiply(Matrix<T>{others_, count, rows}, units_.panel(first, count), udot_.transpose());
    add_others(engine_, count * rows, static_cast<T>(1 / problem_.temperature), tangents_, others_);
  }
  T* similarities() const { return similarities_; }
  T* tangents() const { return tangents_; }
  const Matrix<T>& units() const { return units_; }
  const Matrix<T>& udot() const { return udot_; }

 private:
  Engine& engine_;
  Problem problem_;
  Matrix<T> units_, udot_;
  T *similarities_, *tangents_, *others_;
};

// udot = J v, and u . v.
template <class T, class Engine>
void unit_tangents(Engine& engine, const Problem& problem, const Saved<T>& saved, const T* tangent, T* udot,
                   double* along) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  dots<T>(engine, rows, dim, saved.units, tangent, along);
  engine.each(rows * dim, [=] HOST_DEVICE(int64_t at) {
    const T inv_norm = saved.inv_norms[at / dim];
    const T removed = is_clamped(inv_norm) ? T{0} : static_cast<T>(along[at / dim]) * saved.units[at];
    udot[at] = inv_norm * (tangent[at] - removed);
  });
}

template <class T, class Engine>
void log_sum_tangents(Engine& engine, const Problem& problem, int64_t first, int64_t count,
                      const Softmax<T>& softmax, const T* similarities, const T* tangents, double* shares,
                      const LogSumTangents<T>& log_sums) {
  const int64_t rows = problem.rows();
  engine.each(count * kLanes, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = at / kLanes;
    shares[at] = excess_of_lane(problem, softmax, similarities + i * rows, tangents + i * rows, first + i, at % kLanes);
  });
  engine.each(count, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = first + at;
    const double excess = sum_of_lanes(shares + at * kLanes);
    log_sums.excess[i] = static_cast<T>(excess);
    log_sums.mean[i] = static_cast<T>(excess + static_cast<double>(tangents[at * rows + problem.partner(i)]));
  });
}

// Tangents to weight tangents and similarities to weights, both in place.
template <class T, class Engine>
void to_weight_tangents(Engine& engine, const Problem& problem, int64_t first, int64_t count,
                        const Softmax<T>& softmax, const LogSumTangents<T>& log_sums, T* similarities, T* tangents) {
  const int64_t rows = problem.rows();
  engine.each(count * rows, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = first + at / rows, j = at % rows;
    tangents[at] = weight_tangent(problem, softmax, log_sums, i, j, similarities[at], tangents[at]);
    similarities[at] = weight(problem, softmax, i, j, similarities[at]);
  });
}

// product, which holds the tangent of dloss/du -> the tangent of dloss/dz.
template <class T, class Engine>
void finish_product(Engine& engine, const Problem& problem, const Saved<T>& saved, const T* grad, const T* radial,
                    const T* udot, const double* along, T* product) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  double* of_units = engine.template scratch<double>(rows);
  double* of_grad = engine.template scratch<double>(rows);
  dots<T>(engine, rows, dim, saved.units, product, of_units);
  dots<T>(engine, rows, dim, grad, udot, of_grad);
  engine.each(rows * dim, [=] HOST_DEVICE(int64_t at) {
    const int64_t i = at / dim;
    const T inv_norm = saved.inv_norms[i];
    if (is_clamped(inv_norm)) {
      product[at] *= inv_norm;
      return;
    }
    const T along_unit = static_cast<T>(of_units[i]) * inv_norm + static_cast<T>(of_grad[i]);
    const T along_grad = static_cast<T>(along[i]) * inv_norm;
    product[at] =
        inv_norm * (product[at] - radial[i] * udot[at]) - along_unit * saved.units[at] - along_grad * grad[at];
  });
}

// -> product (N, D).
template <class T, class Engine>
void backward_backward(Engine& engine, const Problem& problem, const Saved<T>& saved, const T* grad, const T* radial,
                       const T* tangent, T* product) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  const Softmax<T> softmax = softmax_of(problem, saved.kept);
  T* udot = engine.template scratch<T>(rows * dim);
  double* along = engine.template scratch<double>(rows);
  unit_tangents(engine, problem, saved, tangent, udot, along);

  // All of r is needed before any tangent of a weight.
  TangentPanels<T, Engine> panels(engine, problem, saved.units, udot);
  const LogSumTangents<T> log_sums{engine.template scratch<T>(rows), engine.template scratch<T>(rows)};
  double* shares = engine.template scratch<double>(panel_rows(problem) * kLanes);
  each_panel(problem, [&](int64_t first, int64_t count) {
    panels.fill(first, count);
    log_sum_tangents(engine, problem, first, count, softmax, panels.similarities(), panels.tangents(), shares,
                     log_sums);
  });

  T* second = engine.template scratch<T>(rows * dim);
  each_panel(problem, [&](int64_t first, int64_t count) {
    if (count < rows) panels.fill(first, count);  // a single panel still holds its values
    to_weight_tangents(engine, problem, first, count, softmax, log_sums, panels.similarities(), panels.tangents());
    engine.multiply(Matrix<T>{product, rows, dim}.panel(first, count), Matrix<T>{panels.tangents(), count, rows},
                    panels.units());
    engine.multiply(Matrix<T>{second, rows, dim}.panel(first, count), Matrix<T>{panels.similarities(), count, rows},
                    panels.udot());
  });
  add_others(engine, rows * dim, T{1}, product, second);
  finish_product(engine, problem, saved, grad, radial, udot, along, product);
}

}  // namespace bissl_fast::cuda
