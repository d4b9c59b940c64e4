// A LARS step of many tensors in teams, a slot each; the engine is that of krylov.h.
#pragma once

#include <cstdint>

#include "cuda/team.h"
#include "lars_formula.h"

namespace bissl_fast::cuda {

// Tensor s as segment s of a kernel's table.
template <class T>
struct LarsTable {
  SegmentTable segments;
  T* weights[SegmentTable::kMost];
  T* momenta[SegmentTable::kMost];
  const T* gradients[SegmentTable::kMost];
  bool adapted[SegmentTable::kMost];
};

// Leaves the shares of the squared norms of weight and decayed gradient, one pair per slot of an adapted tensor.
template <class T>
struct LarsNorms {
  LarsTable<T> table;
  T weight_decay;
  Pair* shares;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t number) const {
    const Segments segments = table.segments.view();
    const Slot slot = segments.slot(number);
    if (!table.adapted[slot.segment]) return;
    const int64_t at = slot.begin - segments.begin(slot.segment), count = slot.end - slot.begin;
    const T *weight = table.weights[slot.segment] + at, *gradient = table.gradients[slot.segment] + at;
    const Pair squares = team_sums(team, 0, count, [&](int64_t k) {
      const T update = gradient[k] + weight_decay * weight[k];
      return Pair{static_cast<double>(weight[k]) * static_cast<double>(weight[k]),
                  static_cast<double>(update) * static_cast<double>(update)};
    });
    team.lanes([&](int lane) {
      if (lane == 0) shares[number] = squares;
    });
  }
};

template <class T>
struct LarsUpdate {
  LarsTable<T> table;
  LarsFactors<T> factors;
  double trust;
  const Pair* shares;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t index) const {
    const Segments segments = table.segments.view();
    const int64_t number = segments.slots() - 1 - index;  // backwards: the cache holds the end of the pass before
    const Slot slot = segments.slot(number);
    const int64_t s = slot.segment, at = slot.begin - segments.begin(s), count = slot.end - slot.begin;
    const bool adapted = table.adapted[s];
    T ratio = 1;
    if (adapted) {
      const Pair squares = segment_sums(team, 0, segments, s, shares);
      ratio = lars_ratio<T>(trust, squares.first, squares.second);
    }
    T *__restrict__ weight = table.weights[s] + at, *__restrict__ momentum = table.momenta[s] + at;
    const T* __restrict__ gradient = table.gradients[s] + at;
    team.lanes([&](int lane) {
      UNROLLED
      for (int64_t k = lane; k < count; k += kTeam) {
        const T update = adapted ? ratio * (gradient[k] + factors.weight_decay * weight[k]) : gradient[k];
        const T next = factors.momentum * momentum[k] + update;
        momentum[k] = next;
        weight[k] -= factors.lr * next;
      }
    });
  }
};

// `tensors` is one pointer to each weight, momentum and gradient, and whether it is adapted.
template <class T>
struct LarsTensor {
  T *weight, *momentum;
  const T* gradient;
  bool adapted;
};

template <class T, class Engine>
void lars_step(Engine& engine, const Segments& segments, const LarsTensor<T>* tensors, const LarsSettings& settings) {
  const LarsFactors<T> factors(settings);
  each_table(segments, [&](const SegmentTable& batch, int64_t first) {
    LarsTable<T> table{batch, {}, {}, {}, {}};
    for (int64_t s = 0; s < batch.count; ++s) {
      const LarsTensor<T>& tensor = tensors[first + s];
      table.weights[s] = tensor.weight;
      table.momenta[s] = tensor.momentum;
      table.gradients[s] = tensor.gradient;
      table.adapted[s] = tensor.adapted;
    }
    const int64_t slots = batch.view().slots();
    Pair* shares = engine.template scratch<Pair>(slots);
    engine.teams(slots, LarsNorms<T>{table, factors.weight_decay, shares});
    engine.teams(slots, LarsUpdate<T>{table, factors, settings.trust, shares});
  });
}

}  // namespace bissl_fast::cuda
