// What is computed, for every device: shapes and symbols as in ops/schemas.py, N = 2 * pairs rows.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace bissl_fast {

struct Problem {
  int64_t pairs;       // B
  int64_t dim;         // D
  double temperature;  // tau > 0
  bool cross_view;     // negatives from the other view only (InfoNCE), else all other rows (NT-Xent)

  HOST_DEVICE int64_t rows() const { return 2 * pairs; }
  HOST_DEVICE int64_t partner(int64_t row) const { return row < pairs ? row + pairs : row - pairs; }
  HOST_DEVICE bool is_negative(int64_t row, int64_t other) const {
    const bool is_candidate = cross_view ? (row < pairs) != (other < pairs) : row != other;
    return is_candidate && other != partner(row);
  }
};

}  // namespace bissl_fast
