// Batch norm on the CPU against its definition written as loops, and against differences of itself. No Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "cpu/batch_norm.h"

namespace {

using bissl_fast::BFloat16;
using bissl_fast::Half;
using bissl_fast::Wide;
using bissl_fast::cpu::BatchNormShape;
using Values = std::vector<double>;

constexpr double kEps = 1e-5;
int failures = 0;

void expect(bool condition, const char* claim, const BatchNormShape& shape, double value) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s at groups=%ld rows=%ld channels=%ld run=%ld (%g)\n", claim, static_cast<long>(shape.groups),
              static_cast<long>(shape.rows), static_cast<long>(shape.channels), static_cast<long>(shape.run), value);
}

Values random_values(int64_t count, unsigned seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal;
  Values values(count);
  for (auto& value : values) value = normal(generator);
  return values;
}

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
  return sum;
}

Values combined(const Values& a, double factor, const Values& b) {
  Values sum(a);
  for (size_t k = 0; k < a.size(); ++k) sum[k] += factor * b[k];
  return sum;
}

double error(const Values& found, const Values& expected) {
  const Values difference = combined(found, -1, expected);
  return std::sqrt(dot(difference, difference) / std::max(dot(expected, expected), 1e-20));
}

// x, weight, bias and residual, or a tangent of them.
struct Point {
  Values x, weight, bias, residual;

  static Point random(const BatchNormShape& shape, unsigned seed) {
    return {random_values(shape.size(), seed), random_values(shape.channels, seed + 1),
            random_values(shape.channels, seed + 2), random_values(shape.size(), seed + 3)};
  }
  Point moved(double step, const Point& along) const {
    return {combined(x, step, along.x), combined(weight, step, along.weight), combined(bias, step, along.bias),
            combined(residual, step, along.residual)};
  }
};

Values definition(const BatchNormShape& shape, const Point& at, bool relu) {
  Values out(shape.size());
  const int64_t cols = shape.cols();
  for (int64_t group = 0; group < shape.groups; ++group) {
    for (int64_t channel = 0; channel < shape.channels; ++channel) {
      std::vector<int64_t> members;
      for (int64_t row = group * shape.rows; row < (group + 1) * shape.rows; ++row) {
        for (int64_t j = 0; j < shape.run; ++j) members.push_back(row * cols + channel * shape.run + j);
      }
      double mean = 0, var = 0;
      for (const int64_t k : members) mean += at.x[k] / static_cast<double>(members.size());
      for (const int64_t k : members) var += (at.x[k] - mean) * (at.x[k] - mean) / static_cast<double>(members.size());
      for (const int64_t k : members) {
        const double z =
            at.weight[channel] * (at.x[k] - mean) / std::sqrt(var + kEps) + at.bias[channel] + at.residual[k];
        out[k] = relu ? std::max(z, 0.0) : z;
      }
    }
  }
  return out;
}

template <class T>
std::vector<T> as(const Values& values) {
  std::vector<T> stored(values.size());
  for (size_t k = 0; k < values.size(); ++k) bissl_fast::store(static_cast<Wide<T>>(values[k]), &stored[k]);
  return stored;
}

template <class T>
Values loaded(const std::vector<T>& stored) {
  Values values;
  for (const T value : stored) values.push_back(bissl_fast::load(value));
  return values;
}

template <class T>
Values rounded(const Values& values) {
  return loaded(as<T>(values));
}

// The kernels at one point, in one dtype.
template <class T>
struct Kernels {
  using W = Wide<T>;

  BatchNormShape shape;
  bool relu;
  std::vector<T> x;
  std::vector<W> weight, bias;
  std::vector<T> residual, out;
  std::vector<W> mean, rstd, sums;

  Kernels(const BatchNormShape& shape, const Point& at, bool relu)
      : shape(shape), relu(relu), x(as<T>(at.x)), weight(as<W>(at.weight)), bias(as<W>(at.bias)),
        residual(as<T>(at.residual)), out(shape.size()), mean(shape.groups * shape.channels), rstd(mean.size()),
        sums(2 * mean.size()) {
    batch_norm<T>(shape, inputs(), nullptr, kEps, mean.data(), rstd.data(), out.data());
  }
  bissl_fast::cpu::ForwardInputs<T> inputs() const {
    return {x.data(), weight.data(), bias.data(), residual.data(), relu};
  }
  bissl_fast::cpu::Normalisation<T> saved() const {
    return {relu ? out.data() : nullptr, x.data(), weight.data(), mean.data(), rstd.data()};
  }
  // A plane of sums (2, G, C) over the groups.
  Values total(const std::vector<W>& planes, int64_t plane) const {
    Values all(shape.channels);
    const W* sums = planes.data() + plane * shape.statistics();
    for (int64_t k = 0; k < shape.statistics(); ++k) all[k % shape.channels] += sums[k];
    return all;
  }

  Values again() const {
    std::vector<T> result(out.size());
    batch_norm_apply<T>(shape, inputs(), mean.data(), rstd.data(), result.data());
    return loaded(result);
  }
  Point backward(const Values& grad_out, bool known_sums = false) {
    const std::vector<T> g = as<T>(grad_out);
    std::vector<T> dx(g.size()), dresidual(g.size());
    batch_norm_backward<T>(shape, saved(), g.data(), known_sums, {dx.data(), dresidual.data(), sums.data()});
    return {loaded(dx), total(sums, 1), total(sums, 0), loaded(dresidual)};
  }
  Values tangent(const Point& along) const {
    const std::vector<T> x_t = as<T>(along.x), residual_t = as<T>(along.residual);
    const std::vector<W> weight_t = as<W>(along.weight), bias_t = as<W>(along.bias);
    std::vector<T> out_t(out.size());
    batch_norm_tangent<T>(shape, saved(), {x_t.data(), weight_t.data(), bias_t.data(), residual_t.data()}, nullptr,
                          out_t.data());
    return loaded(out_t);
  }
  // After backward(grad_out); a null pointer stands for an absent tangent.
  Point backward_tangent(const Values& grad_out, const Values* grad_out_t, const Point* along) const {
    const std::vector<T> g = as<T>(grad_out), g_t = as<T>(grad_out_t ? *grad_out_t : Values());
    const std::vector<T> x_t = as<T>(along ? along->x : Values());
    const std::vector<W> w_t = as<W>(along ? along->weight : Values());
    std::vector<T> dx(g.size()), dresidual(g.size());
    std::vector<W> sums_t(sums.size());
    batch_norm_backward_tangent<T>(shape, saved(), g.data(), {sums.data(), nullptr, nullptr, nullptr},
                                   grad_out_t ? g_t.data() : nullptr, along ? x_t.data() : nullptr,
                                   along ? w_t.data() : nullptr,
                                   {dx.data(), grad_out_t ? dresidual.data() : nullptr, sums_t.data()});
    return {loaded(dx), total(sums_t, 1), total(sums_t, 0), loaded(dresidual)};
  }
};

double inner(const Point& a, const Point& b) {
  return dot(a.x, b.x) + dot(a.weight, b.weight) + dot(a.bias, b.bias) + dot(a.residual, b.residual);
}

void check_first_order(const BatchNormShape& shape, bool relu) {
  const Point at = Point::random(shape, 1), along = Point::random(shape, 11);
  const Values g = random_values(shape.size(), 21);
  Kernels<double> kernels(shape, at, relu);
  expect(error(kernels.out, definition(shape, at, relu)) <= 1e-12, "output equals its definition", shape, 0);
  expect(kernels.again() == kernels.out, "apply gives the same bits", shape, 0);

  const Point gradient = kernels.backward(g), again = kernels.backward(g, true);
  expect(gradient.x == again.x && gradient.residual == again.residual, "known sums give the same bits", shape, 0);
  // So short a step that hardly a ReLU is crossed.
  const double step = 1e-7;
  const Values ahead = definition(shape, at.moved(step, along), relu);
  const Values behind = definition(shape, at.moved(-step, along), relu);
  const double slope = (dot(g, ahead) - dot(g, behind)) / (2 * step), found = inner(gradient, along);
  const double scale = std::sqrt(dot(g, g) * inner(along, along));
  expect(std::abs(found - slope) <= 1e-6 * scale, "gradient equals a difference of outputs", shape, found - slope);
  const double adjoint = dot(g, kernels.tangent(along));
  expect(std::abs(found - adjoint) <= 1e-12 * scale, "tangent is the gradient's adjoint", shape, found - adjoint);
}

void check_second_order(const BatchNormShape& shape, bool relu) {
  const Point at = Point::random(shape, 1), along = Point::random(shape, 11);
  const Values g = random_values(shape.size(), 21), g_t = random_values(shape.size(), 22);
  Kernels<double> kernels(shape, at, relu);
  kernels.backward(g);
  const Point product = kernels.backward_tangent(g, &g_t, &along);

  const double step = 1e-6;
  Kernels<double> ahead(shape, at.moved(step, along), relu), behind(shape, at.moved(-step, along), relu);
  const Point after = ahead.backward(combined(g, step, g_t)), before = behind.backward(combined(g, -step, g_t));
  const auto differs = [&](const Values& found, const Values& high, const Values& low) {
    Values slope = combined(high, -1, low);
    for (auto& value : slope) value /= 2 * step;
    return error(found, slope);
  };
  expect(differs(product.x, after.x, before.x) <= 1e-4, "product equals a difference of gradients", shape, 0);
  expect(differs(product.weight, after.weight, before.weight) <= 1e-4, "so for the weight", shape, 0);
  expect(differs(product.bias, after.bias, before.bias) <= 1e-4, "so for the bias", shape, 0);
  expect(differs(product.residual, after.residual, before.residual) <= 1e-4, "so for the residual", shape, 0);

  const Point one = kernels.backward_tangent(g, &g_t, nullptr), other = kernels.backward_tangent(g, nullptr, &along);
  expect(error(combined(one.x, 1, other.x), product.x) <= 1e-12, "absent tangents are zero", shape, 0);
  expect(error(combined(one.weight, 1, other.weight), product.weight) <= 1e-12, "so for the weight", shape, 0);

  Kernels<float> single(shape, at, relu);
  expect(error(single.backward(g).x, kernels.backward(g).x) <= 1e-4, "float agrees with double", shape, 0);
  expect(error(single.backward_tangent(g, &g_t, &along).x, product.x) <= 1e-3, "so in second order", shape, 0);
}

// Two ranks with half of the rows each give the halves of what one process gives, and shares of its sums.
void check_ranks(const BatchNormShape& whole, bool relu) {
  const BatchNormShape half{1, whole.rows / 2, whole.channels, whole.run, 2};
  const int64_t size = half.size(), plane = half.statistics();
  const Point at = Point::random(whole, 1), along = Point::random(whole, 11);
  const Values g = random_values(whole.size(), 21), g_t = random_values(whole.size(), 22);
  Kernels<double> one(whole, at, relu);
  const Point gradient = one.backward(g), product = one.backward_tangent(g, &g_t, &along);
  const Values tangent = one.tangent(along);

  Values out(whole.size()), dx(out), dresidual(out), out_t(out), dx_t(out), dresidual_t(out);
  Values every(4 * plane), mean(plane), rstd(plane);
  // Of each rank, and behind these of both.
  Values sums(6 * plane), moments(6 * plane), turned(15 * plane), sums_t(4 * plane);
  const auto add_up = [&](Values& planes, int64_t count) {
    for (int64_t k = 0; k < count * plane; ++k) planes[2 * count * plane + k] = planes[k] + planes[count * plane + k];
  };
  const auto saved = [&](int64_t from) {
    return bissl_fast::cpu::Normalisation<double>{relu ? out.data() + from : nullptr, at.x.data() + from,
                                                  at.weight.data(), mean.data(), rstd.data()};
  };
  for (const int64_t rank : {0, 1}) {
    batch_norm_statistics<double>(half, at.x.data() + rank * size, every.data() + 2 * plane * rank);
  }
  for (const int64_t from : {int64_t{0}, size}) {
    batch_norm<double>(half, {at.x.data() + from, at.weight.data(), at.bias.data(), at.residual.data() + from, relu},
                       every.data(), kEps, mean.data(), rstd.data(), out.data() + from);
  }
  for (const int64_t rank : {0, 1}) {
    const int64_t from = rank * size;
    auto unmasked = saved(from);
    unmasked.mask = nullptr;
    batch_norm_moments<double>(half, saved(from), g.data() + from, sums.data() + 2 * plane * rank);
    batch_norm_moments<double>(half, unmasked, along.x.data() + from, moments.data() + 2 * plane * rank);
    batch_norm_tangent_moments<double>(half, saved(from), g.data() + from, g_t.data() + from, along.x.data() + from,
                                       turned.data() + 5 * plane * rank);
  }
  add_up(sums, 2);
  add_up(moments, 2);
  add_up(turned, 5);
  for (const int64_t rank : {0, 1}) {
    const int64_t from = rank * size;
    double* all = sums.data() + 4 * plane;
    batch_norm_backward<double>(half, saved(from), g.data() + from, true,
                                {dx.data() + from, dresidual.data() + from, all});
    batch_norm_tangent<double>(
        half, saved(from),
        {along.x.data() + from, along.weight.data(), along.bias.data(), along.residual.data() + from},
        moments.data() + 4 * plane, out_t.data() + from);
    batch_norm_backward_tangent<double>(
        half, saved(from), g.data() + from,
        {all, sums.data() + 2 * plane * rank, turned.data() + 10 * plane, turned.data() + 5 * plane * rank},
        g_t.data() + from, along.x.data() + from, along.weight.data(),
        {dx_t.data() + from, dresidual_t.data() + from, sums_t.data() + 2 * plane * rank});
  }
  Values dbias_t(plane), dweight_t(plane);
  for (int64_t c = 0; c < plane; ++c) {
    dbias_t[c] = sums_t[c] + sums_t[2 * plane + c];
    dweight_t[c] = sums_t[plane + c] + sums_t[3 * plane + c];
  }
  expect(error(out, one.out) <= 1e-12, "two ranks give the output of one process", whole, error(out, one.out));
  expect(error(dx, gradient.x) <= 1e-11, "its gradient", whole, error(dx, gradient.x));
  expect(dresidual == gradient.residual, "that of the residual", whole, 0);
  expect(error(out_t, tangent) <= 1e-11, "its tangent", whole, error(out_t, tangent));
  expect(error(dx_t, product.x) <= 1e-11, "its product", whole, error(dx_t, product.x));
  expect(error(dweight_t, product.weight) <= 1e-11, "so for the weight", whole, error(dweight_t, product.weight));
  expect(error(dbias_t, product.bias) <= 1e-11, "so for the bias", whole, error(dbias_t, product.bias));
}

// What is shaped like x is rounded once, and sums not at all.
template <class T>
void check_half(const BatchNormShape& shape, bool relu, double rounding) {
  const auto drawn = [&](unsigned seed) {
    const Point point = Point::random(shape, seed);
    return Point{rounded<T>(point.x), rounded<float>(point.weight), rounded<float>(point.bias),
                 rounded<T>(point.residual)};
  };
  const Point at = drawn(1), along = drawn(11);
  const Values g = rounded<T>(random_values(shape.size(), 21)), g_t = rounded<T>(random_values(shape.size(), 22));
  Kernels<T> narrow(shape, at, relu);
  Kernels<double> wide(shape, at, relu);
  expect(error(loaded(narrow.out), wide.out) <= rounding, "16 bits: the output is rounded once", shape, rounding);
  expect(narrow.again() == loaded(narrow.out), "16 bits: apply gives the same bits", shape, rounding);
  expect(error(narrow.tangent(along), wide.tangent(along)) <= rounding, "16 bits: the tangent", shape, rounding);
  const Point first = narrow.backward(g), product = narrow.backward_tangent(g, &g_t, &along);
  const Point exact = wide.backward(g), exact_product = wide.backward_tangent(g, &g_t, &along);
  expect(error(first.x, exact.x) <= rounding, "16 bits: the gradient", shape, rounding);
  expect(error(product.x, exact_product.x) <= rounding, "16 bits: the product", shape, rounding);
  expect(first.residual == exact.residual, "16 bits: what the mask leaves is not rounded", shape, rounding);
  // Sums may cancel, so that their scale is that of what is summed up.
  const auto differs = [&](const Values& found, const Values& expected) {
    const Values difference = combined(found, -1, expected);
    return std::sqrt(dot(difference, difference) / static_cast<double>(shape.size()));
  };
  expect(differs(first.weight, exact.weight) <= 1e-6, "16 bits: sums are float's", shape, rounding);
  expect(differs(product.weight, exact_product.weight) <= 1e-5, "16 bits: so in second order", shape, rounding);
}

void check_corners() {
  const BatchNormShape shape{1, 5, 3, 7};
  Point at = Point::random(shape, 1);
  std::fill(at.x.begin(), at.x.end(), 3e5);
  const Kernels<float> constant(shape, at, false);
  expect(constant.rstd[0] == static_cast<float>(1 / std::sqrt(kEps)), "a constant channel has no variance", shape,
         constant.rstd[0]);
  expect(constant.out[0] == static_cast<float>(at.bias[0]) + static_cast<float>(at.residual[0]), "and gives its bias",
         shape, constant.out[0]);
  at.x[8] = std::numeric_limits<double>::quiet_NaN();
  const Kernels<float> broken(shape, at, true);
  expect(std::isnan(broken.out[7]) && std::isnan(broken.rstd[1]) && !std::isnan(broken.out[0]),
         "a NaN stays visible in its channel", shape, 0);
  // A first row far from all others: differences to it would cancel.
  const BatchNormShape tall{1, 4000, 1, 3};
  Point far = Point::random(tall, 1);
  for (size_t k = 3; k < far.x.size(); ++k) far.x[k] += 1e4;
  for (size_t k = 0; k < far.x.size(); ++k) far.x[k] = static_cast<float>(far.x[k]);
  const Kernels<float> narrow(tall, far, false);
  const Kernels<double> wide(tall, far, false);
  expect(std::abs(narrow.rstd[0] / wide.rstd[0] - 1) <= 1e-6, "float statistics are accurate", tall, narrow.rstd[0]);
}

}  // namespace

int main() {
  // Runs that fill a register, spill over, and are longer than a tile is wide; rows from two to many tiles.
  for (const int64_t run : {1, 3, 16, 49, 130, 1500}) {
    for (const int64_t rows : {2, 7, 150}) {
      for (const int64_t channels : {1, 3, 17, 64}) {
        if (run * rows * channels > 40000) continue;
        for (const int64_t groups : {1, 3}) {
          for (const bool relu : {false, true}) {
            const BatchNormShape shape{groups, rows, channels, run};
            check_first_order(shape, relu);
            if (shape.values() <= 3) continue;  // two values are always at -1 and 1: flat
            check_second_order(shape, relu);
            if (groups == 1 && rows % 2 == 0) check_ranks(shape, relu);
            check_half<BFloat16>(shape, relu, std::ldexp(1, -8));
            check_half<Half>(shape, relu, std::ldexp(1, -11));
          }
        }
      }
    }
  }
  check_corners();
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims failed\n", failures);
  return failures == 0 ? 0 : 1;
}
