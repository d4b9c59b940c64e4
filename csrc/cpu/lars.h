// A LARS step of many tensors on the CPU, on plain pointers.
#pragma once

#include <vector>

#include "lars_formula.h"
#include "segments.h"

namespace bissl_fast::cpu {

template <class T>
struct LarsTensor {
  T *weight, *momentum;
  const T* gradient;
  bool adapted;  // with decay, and scaled by the ratio of norms
};

// Segment s holds the entries of tensor s.
template <class T>
void lars_step(const Segments& segments, const std::vector<LarsTensor<T>>& tensors, const LarsSettings& settings);

}  // namespace bissl_fast::cpu
