// The segments of a flat vector, cut into slots: the unit of work of every kernel that sums by segment.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace bissl_fast {

// A slot is at most so many entries of one segment. Sums are formed within slots, then over the slots of a segment in
// their order: the bits depend on where segments end, and on no number of threads.
inline constexpr int64_t kSlotLength = 8192;

struct Slot {
  int64_t segment, begin, end;
};

// Segment s holds the entries offsets[s] to offsets[s + 1], maybe none. Its slots have the numbers from
// offsets[s] / kSlotLength + s, so no table of slots is needed; every segment has at least one number, and a number
// may stand for no entries.
class Segments {
 public:
  HOST_DEVICE Segments(const int64_t* offsets, int64_t count) : offsets_(offsets), count_(count) {}

  HOST_DEVICE int64_t count() const { return count_; }
  HOST_DEVICE int64_t begin(int64_t segment) const { return offsets_[segment]; }
  HOST_DEVICE int64_t slots() const { return first_slot(count_); }
  HOST_DEVICE int64_t first_slot(int64_t segment) const { return begin(segment) / kSlotLength + segment; }

  HOST_DEVICE Slot slot(int64_t number) const {
    int64_t segment = 0, above = count_;  // the last segment whose slots begin at or before the number
    while (above - segment > 1) {
      const int64_t middle = (segment + above) / 2;
      (first_slot(middle) <= number ? segment : above) = middle;
    }
    const int64_t end = begin(segment + 1), first = begin(segment) + (number - first_slot(segment)) * kSlotLength;
    if (first >= end) return {segment, end, end};
    return {segment, first, end - first < kSlotLength ? end : first + kSlotLength};
  }

 private:
  const int64_t* offsets_;
  int64_t count_;
};

// Step lengths of conjugate gradients: nothing to do is no step; everything else is as it comes, 1 / 0 too.
template <class T>
HOST_DEVICE T step_length(double numerator, double denominator) {
  return static_cast<T>(numerator == 0 ? 0 : numerator / denominator);
}

// β: a segment that had nothing left to do takes no share of its old direction.
template <class T>
HOST_DEVICE T conjugation(double rz_next, double rz) {
  return rz == 0 ? T(0) : step_length<T>(rz_next, rz);
}

}  // namespace bissl_fast
