// Where a team keeps a view while it is made: in a GPU's shared memory, or else in a workspace.
#pragma once

#include <cstdint>

#include "filters.h"
#include "host_device.h"

namespace bissl_fast::cuda {

inline constexpr int kViewTeam = 512;          // lanes that render a view together
inline constexpr int kPixelsKept = 3;          // pixels that a lane holds while others still read
inline constexpr int kRun = 8;                 // neighbouring outputs of a blur, formed by one lane
inline constexpr int64_t kLargestView = 1024;  // a row must fit what a team holds, a column's runs must fit a team

HOST_DEVICE inline int32_t round_up(int32_t count, int32_t unit) { return (count + unit - 1) / unit * unit; }

// Values that are moved at once.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Packed {
  T values[kCount];
};

// Places in floats from the start of a memory that begins at 16 bytes. A view of S x S pixels is resized in strips of
// rows, from the top, and the last strip is whole. What is needed only until a row is written lies where the row will
// be, so that two views of 96 pixels fit the shared memory of one H100 multiprocessor:
//   0         the view: S rows of `pitch`, pixels interleaved; odd, so that lanes in one column use distinct banks
//   lines     the strip's rows as wide as the crop, over the view's last strip and beyond
//   across    weights of columns, (taps, S)
//   down      weights of rows, (rows, taps): of the last strip only, the others wait in the row that they make
//   sums      a double per lane, and after that the blur's kernel, over all of the weights
struct ViewLayout {
  int32_t size, pitch, strip, line, lines, across, down, down_taps, first_outside, sums;
  int64_t floats;

  HOST_DEVICE int32_t down_weights(int32_t row) const {
    return row < first_outside ? row * pitch : down + (row - first_outside) * down_taps;
  }
  int64_t bytes() const { return static_cast<int64_t>(sizeof(float)) * floats; }
};

inline ViewLayout layout_of(int64_t view_size, int64_t height, int64_t width, bool cubic, int32_t strip) {
  const auto size = static_cast<int32_t>(view_size), rows = static_cast<int32_t>(height),
             columns = static_cast<int32_t>(width);
  ViewLayout at{};
  at.size = size;
  at.strip = strip;
  at.pitch = 3 * size | 1;
  at.line = round_up(3 * columns, 4);  // the bytes before the crop in its first word are of the same row
  at.lines = round_up((size - strip) * at.pitch, 4);
  at.across = at.lines + strip * at.line;
  if (const int32_t end = round_up(size * at.pitch, 4); at.across < end) at.across = end;
  at.down = at.across + ResizeAxis{columns, size, cubic, false}.taps * size;
  at.down_taps = ResizeAxis{rows, size, cubic, false}.taps;
  at.first_outside = at.down_taps <= at.pitch ? size - strip : 0;
  const int32_t weights_end = at.down + (size - at.first_outside) * at.down_taps;
  at.sums = round_up(size * at.pitch, 4);
  const int32_t kernel = 2 * round_up(size - 1, kRun) + 3 * kRun, sums = 2 * kViewTeam;
  const int32_t sums_end = at.sums + (kernel > sums ? kernel : sums);
  at.floats = round_up(weights_end > sums_end ? weights_end : sums_end, 4);  // so that the next view's begins at 16 bytes
  return at;
}

// The most rows that a team resizes at once.
inline int32_t most_rows(int64_t size) {
  const int64_t most = kPixelsKept * kViewTeam / size;
  return static_cast<int32_t>(most < size ? most : size);
}

// The layout with the longest strips within so many bytes; if there is none, the smallest one.
inline ViewLayout layout_within(int64_t bytes, int64_t size, int64_t height, int64_t width, bool cubic) {
  for (int32_t strip = most_rows(size);; strip /= 2) {
    const ViewLayout layout = layout_of(size, height, width, cubic, strip);
    if (layout.bytes() <= bytes || strip == 1) return layout;
  }
}

}  // namespace bissl_fast::cuda
