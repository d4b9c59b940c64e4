// Every CPU kernel on shapes drawn from a seed, in buffers of their exact length: what a sanitizer sees, and that kernels
// in two dtypes agree. Seconds of work, BISSL_FAST_FUZZ_SECONDS if that is set.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/augment.h"
#include "cpu/batch_norm.h"
#include "cpu/contrastive.h"
#include "cpu/krylov.h"
#include "cpu/lars.h"

namespace {

using namespace bissl_fast;

std::mt19937_64 generator(0);
int failures = 0;

int64_t between(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(generator); }
bool maybe() { return between(0, 1) == 1; }

// Mostly short, now and then around the lengths at which kernels cut their work.
int64_t size(int64_t most) {
  const int64_t edge = int64_t{1} << between(0, 7);
  return std::min(most, between(0, 3) ? between(1, 20) : std::max(int64_t{1}, edge + between(-1, 1)));
}

template <class T>
std::vector<T> draw(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<T> values(count);
  for (T& value : values) value = normal(generator);
  return values;
}

template <class T, class From>
std::vector<T> as(const std::vector<From>& values) {
  return {values.begin(), values.end()};
}

template <class T, class Other>
void expect_alike(const std::vector<T>& found, const std::vector<Other>& expected, const char* claim) {
  double largest = 1e-3;
  for (const Other value : expected) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (size_t k = 0; k < found.size(); ++k) {
    if (std::abs(static_cast<double>(found[k]) - static_cast<double>(expected[k])) <= 2e-3 * largest) continue;
    if (++failures < 20) std::printf("FAILED: %s, entry %zu of %zu\n", claim, k, found.size());
    return;
  }
}

template <class T>
std::vector<T> contrastive(const Problem& problem, const std::vector<double>& z, const std::vector<double>& v) {
  const int64_t rows = problem.rows(), count = rows * problem.dim;
  const std::vector<T> first = as<T>(std::vector<double>(z.begin(), z.begin() + count / 2));
  const std::vector<T> second = as<T>(std::vector<double>(z.begin() + count / 2, z.end())), tangent = as<T>(v);
  std::vector<T> units(count), inv_norms(rows), lse(rows), kept(cpu::kept_size(problem));
  std::vector<T> grad(count), radial(rows), product(count);
  cpu::normalise(problem, first.data(), second.data(), units.data(), inv_norms.data());
  cpu::forward(problem, units.data(), lse.data(), kept.data());
  const cpu::Saved<T> saved{units.data(), inv_norms.data(), kept.data()};
  cpu::backward(problem, saved, grad.data(), radial.data());
  cpu::backward_backward(problem, saved, grad.data(), radial.data(), tangent.data(), product.data());
  return grad;
}

void losses() {
  const Problem problem{size(70), size(130), maybe() ? 0.5 : 0.2, maybe()};
  const int64_t count = problem.rows() * problem.dim;
  auto z = draw<double>(count);
  const auto v = draw<double>(count);
  for (double& value : z) value += value < 0 ? -0.5 : 0.5;  // gradients of rows near zero are rounding over their norm
  expect_alike(contrastive<float>(problem, z, v), contrastive<double>(problem, z, v), "gradients agree in two dtypes");
}

std::vector<int64_t> offsets_of_segments() {
  std::vector<int64_t> offsets{0};
  for (int64_t count = between(1, 6); count > 0; --count) {
    offsets.push_back(offsets.back() + (between(0, 40) ? between(0, 50) : 8192 + between(-1, 1)));
  }
  return offsets;
}

template <class T>
void vectors() {
  const auto offsets = offsets_of_segments();
  const Segments segments(offsets.data(), static_cast<int64_t>(offsets.size()) - 1);
  const int64_t length = offsets.back(), count = segments.count();
  auto x = draw<T>(length), r = draw<T>(length), d = draw<T>(length), rz = draw<T>(count);
  const auto q = draw<T>(length), scale = draw<T>(length);
  std::vector<T> dots(count), curvature(count), rz_next(count), rr_next(count);
  cpu::segment_dots(segments, q.data(), scale.data(), dots.data());
  cpu::cg_update<T>(segments, {x.data(), r.data(), d.data(), q.data(), maybe() ? scale.data() : nullptr},
                    {rz.data(), curvature.data(), rz_next.data(), rr_next.data()});
  std::vector<cpu::LarsTensor<T>> tensors;
  for (int64_t s = 0; s < count; ++s) {
    tensors.push_back({x.data() + offsets[s], r.data() + offsets[s], q.data() + offsets[s], maybe()});
  }
  cpu::lars_step(segments, tensors, {0.1, 0.01, 0.9, 0.1});
  std::vector<double> expected(count);
  for (int64_t s = 0; s < count; ++s) {
    for (int64_t k = offsets[s]; k < offsets[s + 1]; ++k) expected[s] += double{q[k]} * double{scale[k]};
  }
  expect_alike(dots, expected, "dots are those of a loop");
}

template <class T>
std::vector<T> batch_norm(const cpu::BatchNormShape& shape, const std::vector<double>& values, bool relu, int given) {
  const int64_t count = shape.size(), channels = shape.channels, statistics = shape.groups * channels;
  const std::vector<T> x = as<T>(values), weight(channels, T{0.5}), bias(channels, T{0.25});
  std::vector<T> out(count), mean(statistics), rstd(statistics), sums(2 * statistics), every(2 * statistics);
  std::vector<T> dx(count), dresidual(count), tangent(count), sums_t(2 * statistics), moments(5 * statistics);
  const cpu::ForwardInputs<T> inputs{x.data(), weight.data(), bias.data(), given & 1 ? x.data() : nullptr, relu};
  cpu::batch_norm_statistics<T>(shape, x.data(), every.data());
  cpu::batch_norm<T>(shape, inputs, given & 1 ? every.data() : nullptr, 1e-5, mean.data(), rstd.data(), out.data());
  cpu::batch_norm_apply(shape, inputs, mean.data(), rstd.data(), out.data());
  const cpu::Normalisation<T> saved{relu ? out.data() : nullptr, x.data(), weight.data(), mean.data(), rstd.data()};
  T* residual = given & 1 ? dresidual.data() : nullptr;
  cpu::batch_norm_backward<T>(shape, saved, x.data(), false, {dx.data(), residual, sums.data()});
  cpu::batch_norm_tangent<T>(shape, saved,
                             {given & 2 ? x.data() : nullptr, given & 4 ? bias.data() : nullptr,
                              given & 8 ? bias.data() : nullptr, given & 1 ? x.data() : nullptr},
                             nullptr, tangent.data());
  const T* moved = given & 2 ? x.data() : nullptr;
  cpu::batch_norm_tangent_moments<T>(shape, saved, x.data(), x.data(), moved, moments.data());
  const T *own_sums = given & 8 ? sums.data() : nullptr, *known = given & 8 ? moments.data() : nullptr;
  cpu::batch_norm_backward_tangent<T>(shape, saved, x.data(), {sums.data(), own_sums, known, known}, x.data(), moved,
                                      given & 4 ? bias.data() : nullptr, {tangent.data(), residual, sums_t.data()});
  return out;
}

void batch_norms() {
  const cpu::BatchNormShape shape{between(1, 3), size(20), size(40), maybe() ? 1 : size(30)};
  if (shape.values() < 2) return;
  const auto values = draw<double>(shape.size());
  const bool relu = maybe();
  const int given = static_cast<int>(between(0, 15));
  expect_alike(batch_norm<float>(shape, values, relu, given), batch_norm<double>(shape, values, relu, given),
               "batch norms agree in two dtypes");
}

void views() {
  const int64_t count = between(1, 3), height = size(60), width = size(60), n = between(1, 4), side = size(40);
  std::vector<uint8_t> pixels(count * height * width * kChannels);
  for (auto& value : pixels) value = static_cast<uint8_t>(between(0, 255));
  std::vector<int64_t> samples(n);
  std::vector<ViewIntegers> integers(n);
  std::vector<ViewNumbers> numbers(n);
  for (int64_t k = 0; k < n; ++k) {
    const auto tall = static_cast<int32_t>(between(1, height)), wide = static_cast<int32_t>(between(1, width));
    samples[k] = between(0, count - 1);
    integers[k] = {static_cast<int32_t>(between(0, height - tall)), static_cast<int32_t>(between(0, width - wide)), tall,
                   wide, maybe(), maybe(), maybe(), {kBrightness, kContrast, kSaturation, kHue}};
    std::shuffle(integers[k].order, integers[k].order + kColours, generator);
    for (float& factor : numbers[k].factors) factor = static_cast<float>(between(-5, 20)) / 10;
    numbers[k].sigma = maybe() ? static_cast<float>(between(0, 300)) / 10 : 0;
  }
  const ViewRecipe recipe{side, maybe(), 0.5f, {1, 2, 3}, {0.5, 0.25, 0}, maybe()};
  const ImageArray images{pixels.data(), count, height, width};
  std::vector<float> out(n * side * side * kChannels);
  std::vector<BFloat16> half(out.size());
  cpu::render_views(images, samples.data(), integers.data(), numbers.data(), n, recipe, out.data());
  cpu::render_views(images, samples.data(), integers.data(), numbers.data(), n, recipe, half.data());
  std::vector<float> loaded;
  for (const BFloat16 value : half) loaded.push_back(load(value));
  std::vector<float> rounded(out);
  for (float& value : rounded) {
    BFloat16 stored;
    store(value, &stored);
    value = load(stored);
  }
  expect_alike(loaded, rounded, "views agree in two dtypes");
}

}  // namespace

int main() {
  const char* given = std::getenv("BISSL_FAST_FUZZ_SECONDS");
  const double seconds = given ? std::atof(given) : 6;
  const auto begun = std::chrono::steady_clock::now();
  int64_t rounds = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() < seconds) {
    losses();
    vectors<float>();
    vectors<double>();
    batch_norms();
    views();
    ++rounds;
  }
  std::printf("%ld rounds, %s\n", static_cast<long>(rounds), failures == 0 ? "all claims hold" : "claims failed");
  return failures == 0 ? 0 : 1;
}
