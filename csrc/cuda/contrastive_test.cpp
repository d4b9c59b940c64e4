// What the CUDA kernels compute, in loops on the host, against the definition in long double. No GPU, no Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "cuda/contrastive.h"
#include "cuda/product.h"

namespace {

using bissl_fast::Problem;
using Real = long double;

int failures = 0;

void expect(bool condition, const char* claim, const Problem& problem, const char* rows, double value) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s at B=%ld D=%ld tau=%g cross_view=%d, %s rows (%g)\n", claim,
              static_cast<long>(problem.pairs), static_cast<long>(problem.dim), problem.temperature,
              problem.cross_view, rows, value);
}

// Every index of a kernel, first to last or last to first: threads come in no order, so both must give the same bits.
class HostEngine {
 public:
  explicit HostEngine(bool backwards) : backwards_(backwards) {}

  template <class Body>
  void each(int64_t count, const Body& body) {
    for (int64_t k = 0; k < count; ++k) body(backwards_ ? count - 1 - k : k);
  }

  template <class T>
  void multiply(const bissl_fast::cuda::Matrix<T>& out, const bissl_fast::cuda::Matrix<T>& a,
                const bissl_fast::cuda::Matrix<T>& b) {
    bissl_fast::cuda::multiply(out, a, b, torch::stable::Device("cpu"));
  }

  template <class T>
  T* scratch(int64_t count) {
    const size_t bytes = sizeof(T) * static_cast<size_t>(count);
    scratch_.push_back(std::make_unique<char[]>(bytes));
    std::memset(scratch_.back().get(), 0xff, bytes);  // NaN: what is read before it is written shows
    return reinterpret_cast<T*>(scratch_.back().get());
  }

 private:
  bool backwards_;
  std::vector<std::unique_ptr<char[]>> scratch_;
};

// A number and its derivative along the tangent: the gradient of the definition in it is a Hessian product.
struct Dual {
  Real value = 0, slope = 0;

  Dual() = default;
  Dual(Real a) : value(a) {}
  Dual(Real a, Real b) : value(a), slope(b) {}
  Dual& operator+=(const Dual& b) { return *this = {value + b.value, slope + b.slope}; }
  friend Dual operator-(const Dual& a, const Dual& b) { return {a.value - b.value, a.slope - b.slope}; }
  friend Dual operator*(const Dual& a, const Dual& b) {
    return {a.value * b.value, a.slope * b.value + a.value * b.slope};
  }
  friend Dual operator/(const Dual& a, const Dual& b) {
    const Real quotient = a.value / b.value;
    return {quotient, (a.slope - quotient * b.slope) / b.value};
  }
};
Dual exp(const Dual& a) { return {std::exp(a.value), std::exp(a.value) * a.slope}; }
Dual log1p(const Dual& a) { return {std::log1p(a.value), a.slope / (1 + a.value)}; }
Dual sqrt(const Dual& a) { return {std::sqrt(a.value), a.slope / (2 * std::sqrt(a.value))}; }

using Duals = std::vector<Dual>;

Dual dot(const Dual* a, const Dual* b, int64_t size) {
  Dual sum;
  for (int64_t k = 0; k < size; ++k) sum += a[k] * b[k];
  return sum;
}

struct Definition {
  Dual loss;
  Duals grad;  // dloss/dz, and the product as its slope
};

// Adds row i's share of the loss and of dloss/du.
void add_row(const Problem& problem, const Duals& units, int64_t i, Dual* loss, Duals* of_units) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  const Dual temperature(problem.temperature), count(rows);
  Duals exps(rows);
  Real largest = -INFINITY;
  const auto is_candidate = [&](int64_t j) { return problem.is_negative(i, j) || j == problem.partner(i); };
  for (int64_t j = 0; j < rows; ++j) {
    if (!is_candidate(j)) continue;
    exps[j] = dot(&units[i * dim], &units[j * dim], dim) / temperature;
    largest = std::max(largest, exps[j].value);
  }
  Dual negatives;
  for (int64_t j = 0; j < rows; ++j) {
    exps[j] = is_candidate(j) ? exp(exps[j] - Dual(largest)) : Dual();
    if (j != problem.partner(i)) negatives += exps[j];
  }
  const Dual positive = exps[problem.partner(i)];
  Dual sum = negatives;
  sum += positive;
  *loss += log1p(negatives / positive) / count;
  for (int64_t j = 0; j < rows; ++j) {
    Dual slope = (j == problem.partner(i) ? Dual() - negatives : exps[j]) / sum;  // without P - 1, which cancels
    slope = slope / (temperature * count);  // dloss/ds_ij
    for (int64_t k = 0; k < dim; ++k) {
      (*of_units)[i * dim + k] += slope * units[j * dim + k];
      (*of_units)[j * dim + k] += slope * units[i * dim + k];
    }
  }
}

// The definition and its chain rule, row by row.
Definition define(const Problem& problem, const Duals& z) {
  const int64_t rows = problem.rows(), dim = problem.dim;
  Duals units(z), norms(rows), of_units(rows * dim);
  std::vector<bool> clamped(rows);
  for (int64_t i = 0; i < rows; ++i) {
    const Dual square = dot(&z[i * dim], &z[i * dim], dim);
    clamped[i] = std::sqrt(square.value) < 1e-12L;
    norms[i] = clamped[i] ? Dual(1e-12L) : sqrt(square);
    for (int64_t k = 0; k < dim; ++k) units[i * dim + k] = z[i * dim + k] / norms[i];
  }
  Definition found{{}, Duals(rows * dim)};
  for (int64_t i = 0; i < rows; ++i) add_row(problem, units, i, &found.loss, &of_units);
  for (int64_t i = 0; i < rows; ++i) {
    const Dual radial = clamped[i] ? Dual() : dot(&units[i * dim], &of_units[i * dim], dim);
    for (int64_t k = i * dim; k < (i + 1) * dim; ++k) {
      found.grad[k] = (of_units[k] - radial * units[k]) / norms[i];
    }
  }
  return found;
}

template <class T>
struct Result {
  T loss;
  std::vector<T> units, inv_norms, lse, grad, radial, product;
};

template <class T>
Result<T> kernels(const Problem& problem, const Duals& z, bool backwards) {
  namespace cuda = bissl_fast::cuda;
  const int64_t rows = problem.rows(), count = rows * problem.dim;
  std::vector<T> stacked, tangent, kept(cuda::kept_size(problem));
  for (const auto& entry : z) {
    stacked.push_back(static_cast<T>(entry.value));
    tangent.push_back(static_cast<T>(entry.slope));
  }
  Result<T> found{0, std::vector<T>(count), std::vector<T>(rows), std::vector<T>(rows),
                  std::vector<T>(count), std::vector<T>(rows), std::vector<T>(count)};
  {
    HostEngine engine(backwards);
    cuda::normalise<T>(engine, problem, stacked.data(), stacked.data() + count / 2, found.units.data(),
                       found.inv_norms.data());
    cuda::forward<T>(engine, problem, found.units.data(), &found.loss, found.lse.data(), kept.data());
  }
  const cuda::Saved<T> saved{found.units.data(), found.inv_norms.data(), kept.data()};
  {
    HostEngine engine(backwards);
    cuda::backward<T>(engine, problem, saved, found.grad.data(), found.radial.data());
  }
  HostEngine engine(backwards);
  cuda::backward_backward<T>(engine, problem, saved, found.grad.data(), found.radial.data(), tangent.data(),
                             found.product.data());
  return found;
}

// The largest error of a row, relative to the row or to the size of its terms, which cancel in one column.
template <class T>
double worst_row(const Problem& problem, const Result<T>& found, const std::vector<T>& values,
                 const std::vector<Real>& expected, double terms) {
  double worst = 0;
  for (int64_t i = 0; i < problem.rows(); ++i) {
    double error = 0, size = 0;
    for (int64_t k = i * problem.dim; k < (i + 1) * problem.dim; ++k) {
      error += std::pow(static_cast<double>(values[k] - expected[k]), 2);
      size += std::pow(static_cast<double>(expected[k]), 2);
    }
    const double scale = std::sqrt(size) + static_cast<double>(found.inv_norms[i]) * terms;
    worst = std::max(worst, std::isnan(error) ? INFINITY : std::sqrt(error) / scale);
  }
  return worst;
}

template <class T>
void compare(const Problem& problem, const char* rows, const Duals& z, double tolerance) {
  const Definition definition = define(problem, z);
  const Result<T> found = kernels<T>(problem, z, false), backwards = kernels<T>(problem, z, true);
  const bool same = found.loss == backwards.loss && found.grad == backwards.grad &&
                    found.product == backwards.product && found.lse == backwards.lse;
  expect(same, "the order of threads does not matter", problem, rows, 0);

  const Real loss = definition.loss.value;
  const double allowed = tolerance / problem.temperature;
  expect(std::abs(found.loss - loss) <= allowed * loss + 1e-30L, "loss equals its definition", problem, rows,
         static_cast<double>(found.loss - loss));
  std::vector<Real> grad, product;
  double longest = 0;
  for (int64_t k = 0; k < problem.rows() * problem.dim; ++k) {
    grad.push_back(definition.grad[k].value);
    product.push_back(definition.grad[k].slope);
    longest = std::max(longest, static_cast<double>(std::abs(z[k].slope) * found.inv_norms[k / problem.dim]));
  }
  // Probabilities that T cannot hold are lost.
  const double held = std::max(static_cast<double>(loss / static_cast<Real>(problem.rows())),
                               std::numeric_limits<T>::min() / static_cast<double>(std::numeric_limits<T>::epsilon()));
  const double terms = held / problem.temperature;
  double error = worst_row(problem, found, found.grad, grad, terms);
  expect(error <= allowed, "gradient equals the definition's", problem, rows, error);
  error = worst_row(problem, found, found.product, product, terms * longest / problem.temperature);
  expect(error <= allowed, "product equals the definition's", problem, rows, error);

  Real along = 0;  // holds the reference itself to the definition of a derivative
  for (size_t k = 0; k < grad.size(); ++k) along += grad[k] * z[k].slope;
  const Real slope = definition.loss.slope;
  expect(std::abs(along - slope) <= 1e-14L * (1 + std::abs(slope)) / problem.temperature,
         "the reference gradient is the slope of the loss", problem, rows, static_cast<double>(along - slope));
}

// Two views alike, so that losses are small at small temperatures; entries are floats, exact in every dtype.
Duals draw(const Problem& problem, float noise, unsigned seed = 7) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  const int64_t half = problem.pairs * problem.dim;
  Duals z(2 * half);
  for (int64_t k = 0; k < 2 * half; ++k) {
    const float value = k < half ? normal(generator)
                                 : static_cast<float>(z[k - half].value) + noise * normal(generator);
    z[k] = {value, normal(generator)};
  }
  return z;
}

// A partner's cosine is near one, where a float product errs by more than half its last bit, 2^-25, which tau divides:
// kernels must form it better. One draw may be lucky, so the mean square of several counts.
void check_loss_of_aligned_pairs(const Problem& problem) {
  constexpr unsigned kDraws = 16;
  double squares = 0;
  for (unsigned seed = 0; seed < kDraws; ++seed) {
    const Duals z = draw(problem, 1e-2f, seed);
    const Real loss = define(problem, z).loss.value;
    squares += std::pow(static_cast<double>((kernels<float>(problem, z, false).loss - loss) / loss), 2);
  }
  const double error = std::sqrt(squares / kDraws);
  expect(error <= 0x1p-25 / problem.temperature, "loss of aligned pairs keeps its digits", problem, "aligned", error);
}

// Makes the first row zero, and the last one shorter than eps.
void clamp_rows(const Problem& problem, Duals& z) {
  for (int64_t k = 0; k < problem.dim; ++k) {
    z[k] = Dual(0);
    auto& last = z[(problem.rows() - 1) * problem.dim + k];
    const Real shrink = 0x1p-44L / static_cast<Real>(problem.dim);
    last = {static_cast<float>(last.value * shrink), static_cast<float>(last.slope * shrink)};
  }
}

void check(const Problem& problem) {
  for (const float noise : {1.0f, 0.125f, 1e-3f}) {  // in lengths of a row, the distance of the views
    Duals z = draw(problem, noise);
    const char* rows = noise == 1 ? "random" : noise > 0.1f ? "separated" : "aligned";
    compare<double>(problem, rows, z, 2e-14);
    compare<float>(problem, rows, z, 1e-5);
    if (noise != 1) continue;
    clamp_rows(problem, z);
    compare<double>(problem, "clamped", z, 2e-14);
    compare<float>(problem, "clamped", z, 1e-5);
  }
}

}  // namespace

int main() {
  for (const bool cross_view : {false, true}) {
    for (const int64_t pairs : {1, 2, 3, 31, 33, 65}) {
      for (const int64_t dim : {1, 3, 17, 64, 100, 257}) {
        if (pairs > 40 && dim != 17 && dim != 257) continue;
        for (const double temperature : {0.5, 0.07, 0.03, 0.02, 0.005}) {
          if (pairs * dim > 4000 && temperature != 0.07) continue;
          check({pairs, dim, temperature, cross_view});
        }
      }
    }
    check({257, 3, 0.1, cross_view});  // several panels, the last one of two rows
    check_loss_of_aligned_pairs({45, 128, 0.02, cross_view});
  }
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims failed\n", failures);
  return failures == 0 ? 0 : 1;
}
