// A block of threads that sum together, for a GPU and for the host loops that test it.
//
// A team offers lanes(work): work(lane) for each of kTeam lanes, at the same time and in any order, and everybody waits
// for all of them; and sums(k): kTeam doubles that its lanes share, for each k below kTeamSums. Vectors are marked
// __restrict__ where a loop writes, so that loads of the next rounds need not wait for its stores.
#pragma once

#include <cstdint>

#include "segments.h"

namespace bissl_fast::cuda {

inline constexpr int kTeam = 256;
inline constexpr int kTeamSums = 4;

struct Pair {
  double first, second;
};

// Sums over count terms, term(k) each: lanes take every 256th and are added pairwise. The order is always the same.
// Two sums with one `which` need a barrier between them, so kernels give each its own.
template <class Team, class Term>
HOST_DEVICE Pair team_sums(const Team& team, int which, int64_t count, const Term& term) {
  double *first = team.sums(which), *second = team.sums(which + 1);
  team.lanes([&](int lane) {
    Pair sum{0, 0};
    UNROLLED
    for (int64_t k = lane; k < count; k += kTeam) {
      const Pair next = term(k);
      sum.first += next.first;
      sum.second += next.second;
    }
    first[lane] = sum.first;
    second[lane] = sum.second;
  });
  for (int half = kTeam / 2; half > 0; half /= 2) {
    team.lanes([&](int lane) {
      if (lane >= half) return;
      first[lane] += first[lane + half];
      second[lane] += second[lane + half];
    });
  }
  return {first[0], second[0]};
}

// The sums over a segment's slots. Every block that needs them forms them again: a few KB from the cache, and no kernel and no
// atomic is spent on them.
template <class Team>
HOST_DEVICE Pair segment_sums(const Team& team, int which, const Segments& segments, int64_t segment,
                              const Pair* shares) {
  const int64_t first = segments.first_slot(segment);
  return team_sums(team, which, segments.first_slot(segment + 1) - first, [&](int64_t k) { return shares[first + k]; });
}

// Segments as a kernel's argument: nothing is copied to the device, and a captured graph keeps them.
struct SegmentTable {
  static constexpr int64_t kMost = 512;

  int64_t count;
  int64_t offsets[kMost + 1];

  HOST_DEVICE Segments view() const { return {offsets, count}; }
};

// Calls work(table, first) for batches of segments that fit a kernel's arguments; `first` is the batch's first segment.
template <class Work>
void each_table(const Segments& segments, const Work& work) {
  for (int64_t first = 0; first < segments.count(); first += SegmentTable::kMost) {
    const int64_t left = segments.count() - first;
    SegmentTable table{left < SegmentTable::kMost ? left : SegmentTable::kMost, {}};
    for (int64_t s = 0; s <= table.count; ++s) table.offsets[s] = segments.begin(first + s) - segments.begin(first);
    work(table, first);
  }
}

}  // namespace bissl_fast::cuda
