// Crop, antialiased resize and flip by a team, into the rows of its view. The team is described in augment.h.
#pragma once

#include <cstdint>

#include "colour.h"
#include "cuda/view_layout.h"
#include "filters.h"
#include "views.h"

namespace bissl_fast::cuda {

// Calls work(row, column) for every 512th cell of a grid, a lane's share, with no division on the way.
template <class Work>
HOST_DEVICE void each_cell(int lane, int32_t rows, int32_t columns, const Work& work) {
  const int32_t down = kViewTeam / columns, across = kViewTeam % columns;
  int32_t row = lane / columns, column = lane % columns;
  while (row < rows) {
    work(row, column);
    row += down;
    column += across;
    if (column >= columns) {
      column -= columns;
      ++row;
    }
  }
}

struct Crop {
  const uint8_t* corner;  // of the first pixel
  int64_t stride;         // bytes from row to row of the image
  bool in_words;          // whether all rows of the image begin at a word of four bytes; then no word leaves its row
  ResizeAxis down, across;

  // Bytes before the corner in its word.
  HOST_DEVICE int32_t lead() const { return in_words ? static_cast<int32_t>(reinterpret_cast<uintptr_t>(corner) % 4) : 0; }
};

// Both axes' weights; those of the rows give values in 0..1.
template <class Team>
HOST_DEVICE void weigh_taps(const Team& team, float* memory, const ViewLayout& at, const Crop& crop) {
  team.lanes([&](int lane) {
    for (int32_t k = lane; k < 2 * at.size; k += kViewTeam) {
      if (k < at.size) {
        float* weights = memory + at.across + k;
        resize_taps(crop.across, k, 1.0f, [&](int32_t t, float weight) { weights[t * at.size] = weight; });
      } else {
        float* weights = memory + at.down_weights(k - at.size);
        resize_taps(crop.down, k - at.size, 1.0f / 255, [&](int32_t t, float weight) { weights[t] = weight; });
      }
    }
  });
}

// The lines of rows [begin, end) of the view: weighted sums of the crop's rows, read word by word.
template <int kBytes, class Team>
HOST_DEVICE void weigh_lines(const Team& team, float* memory, const ViewLayout& at, const Crop& crop, int32_t lead,
                             int32_t begin, int32_t end) {
  const int32_t taps = crop.down.taps, words = (lead + kChannels * crop.across.length + kBytes - 1) / kBytes;
  team.lanes([&](int lane) {
    each_cell(lane, end - begin, words, [&](int32_t row, int32_t word) {
      const float* weights = memory + at.down_weights(begin + row);
      const uint8_t* source = crop.corner - lead + crop.down.first(begin + row) * crop.stride + kBytes * word;
      float sum[kBytes] = {};
      UNROLLED
      for (int32_t t = 0; t < taps; ++t) {
        const auto read = *reinterpret_cast<const Packed<uint8_t, kBytes>*>(source + t * crop.stride);
        IN_REGISTERS
        for (int k = 0; k < kBytes; ++k) sum[k] += weights[t] * static_cast<float>(read.values[k]);
      }
      Packed<float, kBytes> packed;
      IN_REGISTERS
      for (int k = 0; k < kBytes; ++k) packed.values[k] = sum[k];
      *reinterpret_cast<Packed<float, kBytes>*>(memory + at.lines + row * at.line + kBytes * word) = packed;
    });
  });
}

// The pixels of rows [begin, end) from their lines, over which the last rows are written.
template <class Team>
HOST_DEVICE void gather_pixels(const Team& team, float* memory, const ViewLayout& at, const Crop& crop, int32_t lead,
                               int32_t begin, int32_t end) {
  const int32_t taps = crop.across.taps, cells = (end - begin) * at.size;
  const auto read = [&](int lane, float* kept) {
    IN_REGISTERS
    for (int n = 0; n < kPixelsKept; ++n) {
      const int32_t cell = lane + n * kViewTeam;
      if (cell >= cells) continue;
      const int32_t row = cell / at.size, column = cell % at.size;
      const float* weights = memory + at.across + column;
      const float* line = memory + at.lines + row * at.line + lead + kChannels * crop.across.first(column);
      float red = 0, green = 0, blue = 0;
      for (int32_t t = 0; t < taps; ++t, weights += at.size, line += kChannels) {
        red += *weights * line[0];
        green += *weights * line[1];
        blue += *weights * line[2];
      }
      kept[3 * n] = clamp_unit(red), kept[3 * n + 1] = clamp_unit(green), kept[3 * n + 2] = clamp_unit(blue);
    }
  };
  const auto write = [&](int lane, const float* kept) {
    IN_REGISTERS
    for (int n = 0; n < kPixelsKept; ++n) {
      const int32_t cell = lane + n * kViewTeam;
      if (cell >= cells) continue;
      float* pixel = memory + (begin + cell / at.size) * at.pitch + kChannels * (cell % at.size);
      pixel[0] = kept[3 * n], pixel[1] = kept[3 * n + 1], pixel[2] = kept[3 * n + 2];
    }
  };
  team.template exchange<kChannels * kPixelsKept>(read, write);
}

template <class Team>
HOST_DEVICE void crop_resize_flip(const Team& team, float* memory, const ViewLayout& at, const Crop& crop) {
  weigh_taps(team, memory, at, crop);
  const int32_t strips = (at.size + at.strip - 1) / at.strip;
  const int32_t lead = crop.lead();
  for (int32_t left = strips - 1; left >= 0; --left) {
    const int32_t end = at.size - left * at.strip, begin = end < at.strip ? 0 : end - at.strip;
    if (crop.in_words) {
      weigh_lines<4>(team, memory, at, crop, lead, begin, end);
    } else {
      weigh_lines<1>(team, memory, at, crop, lead, begin, end);
    }
    gather_pixels(team, memory, at, crop, lead, begin, end);
  }
}

}  // namespace bissl_fast::cuda
