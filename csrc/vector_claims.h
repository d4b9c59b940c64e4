// What the vector kernels of every device must fulfil, against the definition in long double. No GPU, no Python.
// `Kernels` offers dots(), cg_update() and lars_step() on plain pointers; cpu/ and cuda/krylov_test.cpp have one each.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "lars_formula.h"
#include "segments.h"

namespace bissl_fast::claims {

using Real = long double;

inline int failures = 0;

inline void expect(bool condition, const std::string& claim, const std::string& where, Real value) {
  if (condition) return;
  ++failures;
  std::printf("FAILED: %s at %s (%Lg)\n", claim.c_str(), where.c_str(), value);
}

inline std::vector<int64_t> offsets_of(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> offsets{0};
  for (const int64_t length : lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

template <class T>
std::vector<T> draw(int64_t count, int seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;  // entries are floats, exact in every dtype
  std::vector<T> drawn(count);
  for (T& value : drawn) value = normal(generator);
  return drawn;
}

// Entries are compared on the scale of the largest one expected.
template <class T>
void expect_close(const std::vector<T>& found, const std::vector<Real>& expected, const std::string& claim,
                  const std::string& where) {
  Real scale = std::numeric_limits<T>::min(), worst = 0;
  for (const Real value : expected) scale = std::max(scale, std::abs(value));
  for (size_t k = 0; k < expected.size(); ++k) {
    const Real error = std::abs(static_cast<Real>(found[k]) - expected[k]) / scale;
    worst = std::max(worst, std::isnan(error) ? std::numeric_limits<Real>::infinity() : error);
  }
  expect(worst <= 16 * std::numeric_limits<T>::epsilon(), claim, where, worst);
}

// What an update works on, and what it gave.
template <class T>
struct Update {
  std::vector<T> x, r, d, q, inverse_diagonal, rz, curvature, rz_next, rr_next;

  bool operator==(const Update&) const = default;
};

template <class T>
Update<T> draw_update(const Segments& segments, bool preconditioned) {
  const int64_t length = segments.begin(segments.count());
  Update<T> u{draw<T>(length, 1), draw<T>(length, 2), draw<T>(length, 3), draw<T>(length, 4), {}, {}, {}, {}, {}};
  for (int64_t k = 0; k < length; ++k) {
    u.d[k] += u.d[k] < 0 ? -1 : 1;  // so that d.q is not small where a segment is short
    u.q[k] = 2 * u.d[k] + u.q[k] / 8;
  }
  if (preconditioned) {
    for (const T value : draw<T>(length, 5)) u.inverse_diagonal.push_back(std::abs(value) + T{0.5});
  }
  for (int64_t s = 0; s < segments.count(); ++s) u.rz.push_back(segments.begin(s) < segments.begin(s + 1) ? s + 1 : 0);
  u.curvature = u.rz_next = u.rr_next = std::vector<T>(segments.count(), std::numeric_limits<T>::quiet_NaN());
  return u;
}

// The definition.
template <class T>
Update<Real> expected_update(const Segments& segments, const Update<T>& from) {
  const auto wide = [](const std::vector<T>& v) { return std::vector<Real>(v.begin(), v.end()); };
  Update<Real> u{wide(from.x), wide(from.r), wide(from.d), wide(from.q), wide(from.inverse_diagonal), wide(from.rz),
                 {}, {}, {}};
  for (int64_t s = 0; s < segments.count(); ++s) {
    const auto each = [&](const auto& work) {
      for (int64_t k = segments.begin(s); k < segments.begin(s + 1); ++k) work(k);
    };
    const auto z = [&](int64_t k) { return from.inverse_diagonal.empty() ? u.r[k] : u.inverse_diagonal[k] * u.r[k]; };
    Real curvature = 0, rz = 0, rr = 0;
    each([&](int64_t k) { curvature += u.d[k] * u.q[k]; });
    const Real alpha = u.rz[s] == 0 ? 0 : u.rz[s] / curvature;
    each([&](int64_t k) {
      u.x[k] += alpha * u.d[k];
      u.r[k] -= alpha * u.q[k];
      rz += u.r[k] * z(k);
      rr += u.r[k] * u.r[k];
    });
    const Real beta = rz == 0 || u.rz[s] == 0 ? 0 : rz / u.rz[s];
    each([&](int64_t k) { u.d[k] = z(k) + beta * u.d[k]; });
    u.curvature.push_back(curvature);
    u.rz_next.push_back(rz);
    u.rr_next.push_back(rr);
  }
  return u;
}

template <class T, class Kernels>
void check_update(const Kernels& kernels, const Segments& segments, bool preconditioned, const std::string& where) {
  const Update<T> from = draw_update<T>(segments, preconditioned);
  const Update<Real> expected = expected_update(segments, from);
  Update<T> found = from, again = from;
  kernels.cg_update(segments, found, false);
  kernels.cg_update(segments, again, true);
  expect(found == again, "the order of threads does not matter", where, 0);
  expect_close(found.x, expected.x, "x equals its definition", where);
  expect_close(found.r, expected.r, "r equals its definition", where);
  expect_close(found.d, expected.d, "d equals its definition", where);
  expect_close(found.curvature, expected.curvature, "d.q equals its definition", where);
  expect_close(found.rz_next, expected.rz_next, "r.z equals its definition", where);
  expect_close(found.rr_next, expected.rr_next, "r.r equals its definition", where);
  std::vector<T> dots(segments.count(), std::numeric_limits<T>::quiet_NaN());
  kernels.dots(segments, from.d, from.q, dots);
  expect_close(dots, expected.curvature, "dots equal their definition", where);
  expect(dots == found.curvature, "dots have the bits of the update's", where, 0);
}

// One vector of tensors laid out as segments: weight, momentum and gradient of each.
template <class T>
struct Step {
  std::vector<T> weight, momentum, gradient;

  bool operator==(const Step&) const = default;
};

inline bool is_adapted(int64_t tensor) { return tensor % 3 != 1; }

template <class T>
Step<Real> expected_step(const Segments& segments, const Step<T>& from, const LarsSettings& settings) {
  const auto wide = [](const std::vector<T>& v) { return std::vector<Real>(v.begin(), v.end()); };
  Step<Real> step{wide(from.weight), wide(from.momentum), wide(from.gradient)};
  for (int64_t s = 0; s < segments.count(); ++s) {
    const Real decay = is_adapted(s) ? settings.weight_decay : 0;
    Real weights = 0, updates = 0;
    for (int64_t k = segments.begin(s); k < segments.begin(s + 1); ++k) {
      const Real update = step.gradient[k] + decay * step.weight[k];
      weights += step.weight[k] * step.weight[k];
      updates += update * update;
    }
    const bool scaled = is_adapted(s) && weights > 0 && updates > 0;
    const Real ratio = scaled ? settings.trust * std::sqrt(weights / updates) : 1;
    for (int64_t k = segments.begin(s); k < segments.begin(s + 1); ++k) {
      step.momentum[k] = settings.momentum * step.momentum[k] + ratio * (step.gradient[k] + decay * step.weight[k]);
      step.weight[k] -= settings.lr * step.momentum[k];
    }
  }
  return step;
}

template <class T, class Kernels>
void check_step(const Kernels& kernels, const Segments& segments, const std::string& where) {
  const int64_t length = segments.begin(segments.count());
  const LarsSettings settings{0.25, 0.0625, 0.875, 0.5};  // exact in float
  Step<T> from{draw<T>(length, 1), draw<T>(length, 2), draw<T>(length, 3)};
  std::fill(from.weight.begin(), from.weight.begin() + segments.begin(1), T{0});  // a norm of zero
  const Step<Real> expected = expected_step(segments, from, settings);
  Step<T> found = from, again = from;
  kernels.lars_step(segments, found, settings, false);
  kernels.lars_step(segments, again, settings, true);
  expect(found == again, "the order of threads does not matter to a step", where, 0);
  expect(found.gradient == from.gradient, "a step leaves the gradient", where, 0);
  expect_close(found.momentum, expected.momentum, "momentum equals its definition", where);
  expect_close(found.weight, expected.weight, "weight equals its definition", where);
}

// Every entry lies in one slot of its own segment, and slot() finds what first_slot() promises.
inline void check_slots(const Segments& segments, const std::string& where) {
  int64_t covered = 0;
  for (int64_t number = 0; number < segments.slots(); ++number) {
    const Slot slot = segments.slot(number);
    expect(segments.begin(slot.segment) <= slot.begin && slot.end <= segments.begin(slot.segment + 1) &&
               slot.end - slot.begin <= kSlotLength && segments.first_slot(slot.segment) <= number &&
               number < segments.first_slot(slot.segment + 1),
           "a slot lies in its segment", where, static_cast<Real>(number));
    expect(slot.begin == slot.end || slot.begin == covered, "slots follow one another", where, slot.begin);
    covered = std::max(covered, slot.end);
  }
  expect(covered == segments.begin(segments.count()), "slots cover the vector", where, covered);
}

template <class Kernels>
int check_all(const Kernels& kernels) {
  std::vector<std::vector<int64_t>> cases{{1}, {40'000}, {0, 5, 0, 0, 8192, 0}, {0, 0}, {8191, 8192, 8193, 16384, 1, 5}};
  cases.emplace_back(1300, 3);  // more segments than a kernel's arguments hold
  cases.push_back({9408, 64, 64, 36'864, 64, 1, 0, 3, 73'728, 128});
  cases.push_back({1, 2, 3, 4, 5, 6, 7, 8, 9, 120'000});
  for (const auto& lengths : cases) {
    const auto offsets = offsets_of(lengths);
    const Segments segments(offsets.data(), static_cast<int64_t>(lengths.size()));
    const std::string name = std::to_string(lengths.size()) + " segments from " + std::to_string(lengths[0]);
    check_slots(segments, name);
    for (const bool preconditioned : {false, true}) {
      const std::string where = name + (preconditioned ? ", preconditioned" : "");
      check_update<float>(kernels, segments, preconditioned, where + ", float");
      check_update<double>(kernels, segments, preconditioned, where + ", double");
    }
    check_step<float>(kernels, segments, name + ", float");
    check_step<double>(kernels, segments, name + ", double");
  }
  const auto offsets = offsets_of({3'000'000'000, 0, 5, 2'147'483'648});  // of which no vector is made
  check_slots({offsets.data(), 4}, "billions of entries");
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace bissl_fast::claims
