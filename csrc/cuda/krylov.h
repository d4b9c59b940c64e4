// Vector work of conjugate gradients in teams, a slot each, for any engine that offers
//   teams(count, body)         body(team, index) for every index below count, in any order, at the same time
//   scratch<T>(count)          memory that lives as long as the engine
// krylov.cu runs this on a GPU, krylov_test.cpp in loops on the host. Every sum has one writer and one order.
#pragma once

#include "cuda/team.h"

namespace bissl_fast::cuda {

// Leaves the shares of a.b, one per slot.
template <class T>
struct DotShares {
  SegmentTable table;
  const T *a, *b;
  Pair* shares;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t number) const {
    const Slot slot = table.view().slot(number);
    const T *of_a = a + slot.begin, *of_b = b + slot.begin;
    const Pair sum = team_sums(team, 0, slot.end - slot.begin, [&](int64_t k) {
      return Pair{static_cast<double>(of_a[k]) * static_cast<double>(of_b[k]), 0};
    });
    team.lanes([&](int lane) {
      if (lane == 0) shares[number] = sum;
    });
  }
};

// Adds the shares of one segment.
template <class T>
struct Dots {
  SegmentTable table;
  const Pair* shares;
  T* dots;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t segment) const {
    const Pair sum = segment_sums(team, 0, table.view(), segment, shares);
    team.lanes([&](int lane) {
      if (lane == 0) dots[segment] = static_cast<T>(sum.first);
    });
  }
};

// An update of one batch of segments: what it works on, per entry and per segment, and what its kernels leave to the
// next, per slot and per segment.
template <class T>
struct Update {
  SegmentTable table;
  T *x, *r, *d;
  const T *q, *inverse_diagonal;
  const T* rz;
  T *curvature, *rz_next, *rr_next;
  Pair *curvature_shares, *square_shares;
  T* alpha;
};

// r -= alpha q, and the shares of r.z and r.r.
template <class T>
struct Residual {
  Update<T> u;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t index) const {
    const Segments segments = u.table.view();
    const int64_t number = segments.slots() - 1 - index;  // backwards: the cache holds the end of the pass before
    const Slot slot = segments.slot(number);
    const double curvature = segment_sums(team, 0, segments, slot.segment, u.curvature_shares).first;
    const T alpha = step_length<T>(static_cast<double>(u.rz[slot.segment]), curvature);
    T* __restrict__ r = u.r + slot.begin;
    const T* __restrict__ q = u.q + slot.begin;
    const T* __restrict__ scale = u.inverse_diagonal != nullptr ? u.inverse_diagonal + slot.begin : nullptr;
    const Pair squares = team_sums(team, 2, slot.end - slot.begin, [&](int64_t k) {
      const T next = r[k] - alpha * q[k], z = scale != nullptr ? scale[k] * next : next;
      r[k] = next;
      return Pair{static_cast<double>(next) * static_cast<double>(z),
                  static_cast<double>(next) * static_cast<double>(next)};
    });
    team.lanes([&](int lane) {
      if (lane != 0) return;
      u.square_shares[number] = squares;
      if (number != segments.first_slot(slot.segment)) return;
      u.curvature[slot.segment] = static_cast<T>(curvature);
      u.alpha[slot.segment] = alpha;
    });
  }
};

// x += alpha d, d = z + beta d.
template <class T>
struct Direction {
  Update<T> u;

  template <class Team>
  HOST_DEVICE void operator()(const Team& team, int64_t number) const {
    const Segments segments = u.table.view();
    const Slot slot = segments.slot(number);
    const int64_t s = slot.segment;
    const Pair squares = segment_sums(team, 0, segments, s, u.square_shares);
    const T alpha = u.alpha[s], beta = conjugation<T>(squares.first, static_cast<double>(u.rz[s]));
    T *__restrict__ x = u.x, *__restrict__ d = u.d;
    const T *__restrict__ r = u.r, *__restrict__ scale = u.inverse_diagonal;
    team.lanes([&](int lane) {
      UNROLLED
      for (int64_t k = slot.begin + lane; k < slot.end; k += kTeam) {
        const T z = scale != nullptr ? scale[k] * r[k] : r[k];
        x[k] += alpha * d[k];
        d[k] = z + beta * d[k];
      }
      if (lane != 0 || number != segments.first_slot(s)) return;
      u.rz_next[s] = static_cast<T>(squares.first);
      u.rr_next[s] = static_cast<T>(squares.second);
    });
  }
};

template <class T, class Engine>
void segment_dots(Engine& engine, const Segments& segments, const T* a, const T* b, T* dots) {
  each_table(segments, [&](const SegmentTable& table, int64_t first) {
    const int64_t slots = table.view().slots(), begin = segments.begin(first);
    Pair* shares = engine.template scratch<Pair>(slots);
    engine.teams(slots, DotShares<T>{table, a + begin, b + begin, shares});
    engine.teams(table.count, Dots<T>{table, shares, dots + first});
  });
}

// Three kernels: d.q; r and its squares; x and d. x waits for the third, where d is read anyway: 10 words move per
// entry, not 11. Only a kernel's end lets every block see a sum over all of them, so r.r costs one more kernel than two.
template <class T, class Engine>
void cg_update(Engine& engine, const Segments& segments, const Update<T>& whole) {
  each_table(segments, [&](const SegmentTable& table, int64_t first) {
    const int64_t slots = table.view().slots(), begin = segments.begin(first);
    Update<T> u = whole;
    u.table = table;
    u.x += begin, u.r += begin, u.d += begin, u.q += begin;
    if (u.inverse_diagonal != nullptr) u.inverse_diagonal += begin;
    u.rz += first, u.curvature += first, u.rz_next += first, u.rr_next += first;
    u.curvature_shares = engine.template scratch<Pair>(slots);
    u.square_shares = engine.template scratch<Pair>(slots);
    u.alpha = engine.template scratch<T>(table.count);
    engine.teams(slots, DotShares<T>{table, u.d, u.q, u.curvature_shares});
    engine.teams(slots, Residual<T>{u});
    engine.teams(slots, Direction<T>{u});
  });
}

}  // namespace bissl_fast::cuda
