// Loops over a slot, with sums in an order that does not depend on the instructions that form them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/instruction_sets.h"

namespace bissl_fast::cpu {

inline constexpr int64_t kLanes = 32;  // four registers of AVX-512: enough to hide an addition's latency

// Lane k sums every 32nd value from the k-th, and the lanes are added in order.
struct LaneSum {
  alignas(64) double lanes[kLanes] = {};

  INLINE double total() const {
    double sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
    return sum;
  }
};

// Asks for the memory that a loop comes to 4 KiB later: the processor's own prefetchers stop at the end of a page, and
// a core then reads vectors at two thirds of the speed. What lies beyond the end is never touched.
template <class T>
INLINE void prefetch(const T* next) {
  constexpr int64_t kLine = 64 / sizeof(T), kAhead = 4096 / sizeof(T);
  for (int64_t k = 0; k < kLanes; k += kLine) __builtin_prefetch(next + kAhead + k);
}

// Calls body(k, lane) for every k below count. The vectors are those that the body reads at k.
template <class Body, class... T>
INLINE void in_lanes(int64_t count, const Body& body, const T*... vectors) {
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    (prefetch(vectors + k), ...);
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) body(k + lane, lane);
  }
  for (int64_t lane = 0; k + lane < count; ++lane) body(k + lane, lane);
}

}  // namespace bissl_fast::cpu
