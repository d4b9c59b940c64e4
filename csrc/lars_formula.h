// The arithmetic of one LARS step, for every device: the formula is in training/lars.py.
#pragma once

#include <cmath>

#include "host_device.h"

namespace bissl_fast {

struct LarsSettings {
  double lr, weight_decay, momentum, trust;
};

// The same in the dtype of the tensors, as PyTorch takes its numbers.
template <class T>
struct LarsFactors {
  T lr, weight_decay, momentum;

  explicit LarsFactors(const LarsSettings& settings)
      : lr(static_cast<T>(settings.lr)),
        weight_decay(static_cast<T>(settings.weight_decay)),
        momentum(static_cast<T>(settings.momentum)) {}
};

// The factor of an adapted update, from the squared norms of a tensor and of its decayed gradient.
template <class T>
HOST_DEVICE T lars_ratio(double trust, double weight_square, double update_square) {
  if (!(weight_square > 0 && update_square > 0)) return 1;
  return static_cast<T>(trust * (std::sqrt(weight_square) / std::sqrt(update_square)));
}

}  // namespace bissl_fast
