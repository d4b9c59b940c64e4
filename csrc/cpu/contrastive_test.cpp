// The CPU kernels against the definition written as double loops, and against differences of it. No Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/contrastive.h"
#include "cpu/exp.h"

namespace {

using bissl_fast::Problem;
using bissl_fast::cpu::backward;
using bissl_fast::cpu::backward_backward;
using bissl_fast::cpu::forward;
using bissl_fast::cpu::kept_size;
using bissl_fast::cpu::normalise;
using Values = std::vector<double>;

int failures = 0;

void expect(bool condition, const char* claim, const Problem& problem, double value) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s at B=%ld D=%ld tau=%g cross_view=%d (%g)\n", claim, static_cast<long>(problem.pairs),
              static_cast<long>(problem.dim), problem.temperature, problem.cross_view, value);
}

Values random_values(int64_t count, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (auto& value : values) value = normal(generator);
  return values;
}

// Whether row j is a candidate of row i: the positive is one of them.
bool is_candidate(const Problem& problem, int64_t i, int64_t j) {
  return problem.cross_view ? (i < problem.pairs) != (j < problem.pairs) : i != j;
}

// The loss of stacked embeddings z (N, D), by definition.
double definition(const Problem& problem, const Values& z) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  Values u(z);
  for (int64_t i = 0; i < rows; ++i) {
    double square = 0;
    for (int64_t k = 0; k < dim; ++k) square += z[i * dim + k] * z[i * dim + k];
    for (int64_t k = 0; k < dim; ++k) u[i * dim + k] /= std::max(std::sqrt(square), 1e-12);
  }
  const auto logit = [&](int64_t i, int64_t j) {
    double dot = 0;
    for (int64_t k = 0; k < dim; ++k) dot += u[i * dim + k] * u[j * dim + k];
    return dot / problem.temperature;
  };
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    Values logits;
    for (int64_t j = 0; j < rows; ++j) {
      if (is_candidate(problem, i, j)) logits.push_back(logit(i, j));
    }
    const double largest = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double value : logits) sum += std::exp(value - largest);
    total += std::log(sum) + largest - logit(i, problem.partner(i));
  }
  return total / static_cast<double>(rows);
}

struct Result {
  double loss;
  Values grad, product;
};

template <class T>
Result kernels(const Problem& problem, const Values& z, const Values& tangent) {
  const int64_t count = problem.rows() * problem.dim;
  const std::vector<T> stacked(z.begin(), z.end()), v(tangent.begin(), tangent.end());
  std::vector<T> units(count), inv_norms(problem.rows()), lse(problem.rows()), kept(kept_size(problem));
  std::vector<T> grad(count), radial(problem.rows()), product(count);
  normalise(problem, stacked.data(), stacked.data() + count / 2, units.data(), inv_norms.data());
  const double loss = forward(problem, units.data(), lse.data(), kept.data());
  const bissl_fast::cpu::Saved<T> saved{units.data(), inv_norms.data(), kept.data()};
  backward(problem, saved, grad.data(), radial.data());
  backward_backward(problem, saved, grad.data(), radial.data(), v.data(), product.data());
  return {loss, {grad.begin(), grad.end()}, {product.begin(), product.end()}};
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
  return sum;
}

double relative_difference(const Values& a, const Values& b) {
  double difference = 0;
  for (size_t k = 0; k < a.size(); ++k) difference += (a[k] - b[k]) * (a[k] - b[k]);
  return std::sqrt(difference / std::max(dot(b, b), 1e-300));
}

void check(const Problem& problem) {
  const int64_t count = problem.rows() * problem.dim;
  const Values z = random_values(count, 1), v = random_values(count, 2);
  const Result found = kernels<double>(problem, z, v);
  const double expected = definition(problem, z);
  expect(std::abs(found.loss - expected) <= 1e-12 * (1 + expected), "loss equals its definition", problem, found.loss);

  const double step = 1e-5 * std::min(1.0, problem.temperature);
  Values ahead(z), behind(z);
  for (int64_t k = 0; k < count; ++k) {
    ahead[k] += step * v[k];
    behind[k] -= step * v[k];
  }
  const double slope = (definition(problem, ahead) - definition(problem, behind)) / (2 * step);
  const double along = dot(found.grad, v);
  expect(std::abs(along - slope) <= 1e-6 * (1 + std::abs(slope)), "gradient equals a difference of losses", problem,
         along - slope);

  const Values after = kernels<double>(problem, ahead, v).grad, before = kernels<double>(problem, behind, v).grad;
  Values difference(count);
  for (int64_t k = 0; k < count; ++k) difference[k] = (after[k] - before[k]) / (2 * step);
  // One column has two unit vectors only, one pair nothing to tell apart: all derivatives vanish.
  const bool flat = problem.dim == 1 || problem.pairs == 1;
  const double error =
      flat ? std::sqrt(dot(found.product, found.product)) : relative_difference(found.product, difference);
  expect(error <= 1e-5, "product equals a difference of gradients", problem, error);

  const Result single = kernels<float>(problem, z, v);
  expect(std::abs(single.loss - found.loss) <= 1e-5 * (1 + found.loss), "float agrees with double", problem,
         single.loss - found.loss);
  if (!flat && problem.temperature >= 0.1) {
    expect(relative_difference(single.grad, found.grad) <= 1e-4, "float gradient agrees", problem, 0);
    expect(relative_difference(single.product, found.product) <= 1e-4, "float product agrees", problem, 0);
  }
}

template <class T>
void check_exp(double smallest, double tolerance) {
  double worst = 0;
  for (double x = smallest; x <= 2; x += 0.00917) {
    const T argument = static_cast<T>(x);
    const double expected = std::exp(static_cast<double>(argument));
    worst = std::max(worst, std::abs(static_cast<double>(bissl_fast::cpu::exp(argument)) / expected - 1));
  }
  const Problem none{0, 0, 0, false};
  expect(worst <= tolerance, "exp is accurate", none, worst);
  expect(bissl_fast::cpu::exp(T{-1e6}) <= static_cast<T>(std::exp(smallest)), "exp of far below is small", none, 0);
  expect(std::isnan(bissl_fast::cpu::exp(std::numeric_limits<T>::quiet_NaN())), "exp keeps NaN", none, 0);
}

}  // namespace

int main() {
  check_exp<float>(-86, 1.5e-7);
  check_exp<double>(-700, 4e-16);
  for (const bool cross_view : {false, true}) {
    for (const int64_t pairs : {1, 2, 3, 31, 33, 65, 127, 129, 257}) {
      for (const int64_t dim : {1, 3, 17, 100}) {
        for (const double temperature : {0.5, 0.07, 0.002}) {
          if (pairs > 40 && (dim != 17 || temperature == 0.07)) continue;
          check({pairs, dim, temperature, cross_view});
        }
      }
    }
  }
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims failed\n", failures);
  return failures == 0 ? 0 : 1;
}
