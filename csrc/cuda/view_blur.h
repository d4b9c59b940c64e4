// Blur of a view by a team, in place. The team is described in augment.h.
#pragma once

#include <cstdint>

#include "cuda/view_layout.h"
#include "filters.h"
#include "views.h"

namespace bissl_fast::cuda {

// The kernel with zeros around it: entry kRun + reach is its middle, where `reach` is the radius in whole runs.
template <class Team>
HOST_DEVICE void weigh_blur(const Team& team, float* kernel, const BlurAxis& axis, int32_t reach) {
  team.lanes([&](int lane) {
    for (int32_t k = lane; k < 2 * reach + 3 * kRun; k += kViewTeam) kernel[k] = 0;
  });
  team.lanes([&](int lane) {
    if (lane != 0) return;
    float* middle = kernel + kRun + reach;
    blur_taps(axis, [&](int32_t k, float weight) { middle[k] = middle[-k] = weight; });
  });
}

HOST_DEVICE inline int32_t kept_inside(const BlurAxis& axis, int32_t k, int32_t size) {
  const int32_t inner = axis.inside(k, size);  // beyond one reflection no weight is left, and any value does
  return inner < 0 ? 0 : (inner >= size ? size - 1 : inner);
}

// A run of weights; it begins at 16 bytes.
HOST_DEVICE inline void load_run(const float* from, float* to) {
  IN_REGISTERS
  for (int part = 0; part < kRun; part += 4) {
    const auto four = *reinterpret_cast<const Packed<float, 4>*>(from + part);
    IN_REGISTERS
    for (int q = 0; q < 4; ++q) to[part + q] = four.values[q];
  }
}

// Outputs [start, start + kRun) of a line of `size` values that lie `stride` apart. Every value is read once; the
// weights slide along with it through two runs of registers: sum[q] takes kernel[kRun + reach + position - (start + q)].
HOST_DEVICE inline void blur_run(const BlurAxis& axis, const float* line, int32_t stride, int32_t size, int32_t start,
                                 const float* kernel, int32_t reach, float* sum) {
  float low[kRun], high[kRun], values[kRun];
  IN_REGISTERS
  for (int q = 0; q < kRun; ++q) sum[q] = 0;
  load_run(kernel, low);
  load_run(kernel + kRun, high);
  for (int32_t at = start - reach; at <= start + reach; at += kRun) {
    if (at >= 0 && at + kRun <= size) {
      IN_REGISTERS
      for (int v = 0; v < kRun; ++v) values[v] = line[stride * (at + v)];
    } else {
      IN_REGISTERS
      for (int v = 0; v < kRun; ++v) values[v] = line[stride * kept_inside(axis, at + v, size)];
    }
    IN_REGISTERS
    for (int v = 0; v < kRun; ++v) {
      IN_REGISTERS
      for (int q = 0; q < kRun; ++q) sum[q] += (v >= q ? high[v - q] : low[kRun + v - q]) * values[v];
    }
    kernel += kRun;
    IN_REGISTERS
    for (int q = 0; q < kRun; ++q) low[q] = high[q];
    load_run(kernel + kRun, high);
  }
}

// Blurs lines in place: as many at a time as there are lanes for all of their runs, so that no other line is touched.
template <class Team, class Line>
HOST_DEVICE void blur_lines(const Team& team, const BlurAxis& axis, int32_t lines, int32_t stride, int32_t size,
                            const float* kernel, int32_t reach, const Line& line) {
  const int32_t runs = (size + kRun - 1) / kRun, most = kViewTeam / runs;
  for (int32_t first = 0; first < lines; first += most) {
    const int32_t count = lines - first < most ? lines - first : most;
    const auto read = [&](int lane, float* kept) {
      const int32_t run = lane / count;
      if (run < runs) blur_run(axis, line(first + lane % count), stride, size, run * kRun, kernel, reach, kept);
    };
    const auto write = [&](int lane, const float* kept) {
      const int32_t start = lane / count * kRun;
      IN_REGISTERS
      for (int q = 0; q < kRun; ++q) {
        if (start + q < size) line(first + lane % count)[stride * (start + q)] = kept[q];
      }
    };
    team.template exchange<kRun>(read, write);
  }
}

// Blurs the first `channels` channels of a view, in all passes: columns, then rows. Neighbouring lanes have neighbouring columns, or
// neighbouring rows, which lie an odd number of values apart: their banks differ.
template <class Team>
HOST_DEVICE void blur_view(const Team& team, float* memory, const ViewLayout& at, const BlurAxis& axis,
                           int32_t channels) {
  const int32_t reach = round_up(axis.radius, kRun);
  float* kernel = memory + at.sums;
  weigh_blur(team, kernel, axis, reach);
  const int32_t step = kChannels / channels;  // from column to column: 1, or 3 where one channel stands for all
  for (int pass = 0; pass < axis.passes(); ++pass) {
    blur_lines(team, axis, channels * at.size, at.pitch, at.size, kernel, reach,
               [&](int32_t k) { return memory + step * k; });
    blur_lines(team, axis, channels * at.size, kChannels, at.size, kernel, reach,
               [&](int32_t k) { return memory + k % at.size * at.pitch + k / at.size; });
  }
}

}  // namespace bissl_fast::cuda
