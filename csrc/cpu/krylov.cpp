#include "cpu/krylov.h"

#include <vector>

#include "cpu/lanes.h"
#include "cpu/slots.h"

namespace bissl_fast::cpu {
namespace {

// r.z and r.r of a slot.
struct Squares {
  double rz, rr;
};

template <class T>
INLINE double dot_body(const T* a, const T* b, int64_t count) {
  LaneSum sum;
  in_lanes(count, [&](int64_t k, int64_t lane) {
    sum.lanes[lane] += static_cast<double>(a[k]) * static_cast<double>(b[k]);
  }, a, b);
  return sum.total();
}

template <class T>
INLINE Squares residual_body(T* r, const T* q, const T* inverse_diagonal, T alpha, int64_t count) {
  LaneSum rr, rz;
  if (inverse_diagonal == nullptr) {
    in_lanes(count, [&](int64_t k, int64_t lane) {
      const T next = r[k] - alpha * q[k];
      r[k] = next;
      rr.lanes[lane] += static_cast<double>(next) * static_cast<double>(next);
    }, r, q);
    return {rr.total(), rr.total()};
  }
  in_lanes(count, [&](int64_t k, int64_t lane) {
    const T next = r[k] - alpha * q[k];
    r[k] = next;
    rr.lanes[lane] += static_cast<double>(next) * static_cast<double>(next);
    rz.lanes[lane] += static_cast<double>(next) * static_cast<double>(inverse_diagonal[k] * next);
  }, r, q, inverse_diagonal);
  return {rz.total(), rr.total()};
}

template <class T>
INLINE void direction_body(T* x, T* d, const T* r, const T* inverse_diagonal, T alpha, T beta, int64_t count) {
  if (inverse_diagonal == nullptr) {
    in_lanes(count, [&](int64_t k, int64_t) {
      x[k] += alpha * d[k];
      d[k] = r[k] + beta * d[k];
    }, x, d, r);
  } else {
    in_lanes(count, [&](int64_t k, int64_t) {
      x[k] += alpha * d[k];
      d[k] = inverse_diagonal[k] * r[k] + beta * d[k];
    }, x, d, r, inverse_diagonal);
  }
}

// target_clones takes plain functions only, so each template is spelled out for float and double.
#define DEFINE_SLOT_MATH(T)                                                                                           \
  PER_INSTRUCTION_SET double dot(const T* a, const T* b, int64_t count) { return dot_body(a, b, count); }             \
  PER_INSTRUCTION_SET Squares residual(T* r, const T* q, const T* inverse_diagonal, T alpha, int64_t count) {         \
    return residual_body(r, q, inverse_diagonal, alpha, count);                                                       \
  }                                                                                                                   \
  PER_INSTRUCTION_SET void direction(T* x, T* d, const T* r, const T* inverse_diagonal, T alpha, T beta,              \
                                     int64_t count) {                                                                 \
    direction_body(x, d, r, inverse_diagonal, alpha, beta, count);                                                    \
  }

DEFINE_SLOT_MATH(float)
DEFINE_SLOT_MATH(double)

}  // namespace

template <class T>
void segment_dots(const Segments& segments, const T* a, const T* b, T* dots) {
  std::vector<double> shares(segments.slots());
  each_slot(segments, [&](int64_t number, const Slot& slot) {
    shares[number] = dot(a + slot.begin, b + slot.begin, slot.end - slot.begin);
  });
  for (int64_t s = 0; s < segments.count(); ++s) dots[s] = static_cast<T>(sum_of_slots(segments, s, shares.data()));
}

// Three passes. x waits for the third, where d is read anyway: 10 words move per entry, not 11. Passes over one segment
// after the other would find short ones in cache, and were no faster.
template <class T>
void cg_update(const Segments& segments, const Vectors<T>& v, const Scalars<T>& scalars) {
  const T* const m = v.inverse_diagonal;
  const int64_t count = segments.count();
  std::vector<double> shares(segments.slots()), shares_rz(m ? segments.slots() : 0);
  std::vector<T> alpha(count), beta(count);
  each_slot(segments, [&](int64_t number, const Slot& slot) {
    shares[number] = dot(v.d + slot.begin, v.q + slot.begin, slot.end - slot.begin);
  });
  for (int64_t s = 0; s < count; ++s) {
    const double curvature = sum_of_slots(segments, s, shares.data());
    scalars.curvature[s] = static_cast<T>(curvature);
    alpha[s] = step_length<T>(static_cast<double>(scalars.rz[s]), curvature);
  }
  each_slot(segments, [&](int64_t number, const Slot& slot) {
    const int64_t at = slot.begin;
    const auto found = residual(v.r + at, v.q + at, m ? m + at : nullptr, alpha[slot.segment], slot.end - at);
    shares[number] = found.rr;
    if (m) shares_rz[number] = found.rz;
  });
  for (int64_t s = 0; s < count; ++s) {
    const double rr = sum_of_slots(segments, s, shares.data());
    const double rz = m ? sum_of_slots(segments, s, shares_rz.data()) : rr;
    scalars.rr_next[s] = static_cast<T>(rr);
    scalars.rz_next[s] = static_cast<T>(rz);
    beta[s] = conjugation<T>(rz, static_cast<double>(scalars.rz[s]));
  }
  each_slot(segments, [&](int64_t, const Slot& slot) {
    const int64_t at = slot.begin, s = slot.segment;
    direction(v.x + at, v.d + at, v.r + at, m ? m + at : nullptr, alpha[s], beta[s], slot.end - at);
  });
}

template void segment_dots(const Segments&, const float*, const float*, float*);
template void segment_dots(const Segments&, const double*, const double*, double*);
template void cg_update(const Segments&, const Vectors<float>&, const Scalars<float>&);
template void cg_update(const Segments&, const Vectors<double>&, const Scalars<double>&);

}  // namespace bissl_fast::cpu
