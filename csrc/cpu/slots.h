// The slots of a flat vector's segments, spread over threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "segments.h"

namespace bissl_fast::cpu {

inline constexpr int64_t kVectorGrain = 4 * kSlotLength;  // entries that are worth a thread

// Calls work(number, slot) for every slot that has entries. Threads take ranges of entries, not of segments, so that one
// long segment among short ones keeps all of them busy.
template <class Work>
void each_slot(const Segments& segments, const Work& work) {
  torch::stable::parallel_for(0, segments.begin(segments.count()), kVectorGrain, [&](int64_t begin, int64_t end) {
    int64_t s = 0;
    while (segments.begin(s + 1) <= begin) ++s;
    int64_t k = (begin - segments.begin(s) + kSlotLength - 1) / kSlotLength;  // the first slot to begin in the range
    for (; s < segments.count() && segments.begin(s) < end; ++s, k = 0) {
      const int64_t limit = segments.begin(s + 1);
      for (int64_t at = segments.begin(s) + k * kSlotLength; at < std::min(limit, end); at += kSlotLength, ++k) {
        work(segments.first_slot(s) + k, Slot{s, at, std::min(at + kSlotLength, limit)});
      }
    }
  });
}

// The sum of a segment's slots, in order; a slot without entries was never written.
inline double sum_of_slots(const Segments& segments, int64_t segment, const double* shares) {
  const int64_t length = segments.begin(segment + 1) - segments.begin(segment);
  const int64_t first = segments.first_slot(segment), count = (length + kSlotLength - 1) / kSlotLength;
  double sum = 0;
  for (int64_t k = 0; k < count; ++k) sum += shares[first + k];
  return sum;
}

}  // namespace bissl_fast::cpu
