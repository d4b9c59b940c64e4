// Views of uint8 images in one kernel, a team for each view: crop, resize, flip, colours, blur, solarise, normalise.
// augment.cu runs this on a GPU, augment_test.cpp in loops on the host. Every value has one writer and every sum one
// order, so a view has the same bits in any batch.
//
// A team offers, for kViewTeam lanes that run at the same time and in any order:
//   lanes(work)                  work(lane); everybody waits for all
//   exchange<K>(read, write)     read(lane, kept), everybody waits, write(lane, kept); `kept` are K floats of the lane
//
// The floor, for 112-pixel images, 96-pixel views and a crop of three quarters of the area: 28 KB of bytes in, 55 KB of
// bfloat16 out (110 KB of float32). At 3.3 TB/s that is 40 (24) million views a second; in place from pinned host memory
// the bus is the floor, 2 million at 55 GB/s. Between the two nothing leaves shared memory, whose traffic is what takes
// the time. Per view, in thousands of words: lines 28; their columns 249 (6 taps of 3 values and a weight, 3 out);
// colours 111 (two passes in and out, however many operations); blur 290, where there is one (a lane reads a run of 8 and
// 16 values around it once, not 17 for each output); 28 to go out. 0.7 million words are 22 thousand cycles at 32 words a
// cycle: 132 multiprocessors at 1.7 GHz cannot pass 10 million blurred or 18 million plain views a second.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "colour.h"
#include "cuda/view_blur.h"
#include "cuda/view_layout.h"
#include "cuda/view_resize.h"
#include "storage.h"
#include "views.h"

namespace bissl_fast::cuda {

// The colour operations of a view in their order; -1 stands for one that changes nothing.
struct ColourSteps {
  int32_t colour[kColours];
  float factor[kColours];

  HOST_DEVICE ColourSteps(const ViewIntegers& row, const ViewNumbers& numbers) {
    IN_REGISTERS
    for (int k = 0; k < kColours; ++k) {
      factor[k] = numbers.factors[row.order[k]];
      colour[k] = factor[k] == neutral_factor(row.order[k]) ? -1 : row.order[k];
    }
  }

  HOST_DEVICE bool any() const { return (colour[0] & colour[1] & colour[2] & colour[3]) != -1; }

  HOST_DEVICE int place_of_contrast() const {
    int place = kColours;
    IN_REGISTERS
    for (int k = 0; k < kColours; ++k) {
      if (colour[k] == kContrast) place = k;
    }
    return place;
  }

  // The steps [begin, end) on one pixel; `mean` is the luma that contrast blends with.
  HOST_DEVICE Pixel apply(Pixel x, int begin, int end, float mean) const {
    IN_REGISTERS
    for (int k = 0; k < kColours; ++k) {
      if (k >= begin && k < end) x = adjusted(x, colour[k], factor[k], mean);
    }
    return x;
  }

  HOST_DEVICE static Pixel adjusted(const Pixel& x, int32_t colour, float factor, float mean) {
    switch (colour) {
      case kBrightness:
        return blend(x, factor, 0);
      case kContrast:
        return blend(x, factor, (1 - factor) * mean);
      case kSaturation:
        return blend(x, factor, (1 - factor) * luma(x));
      case kHue:
        return turn_hue(x, 6 * factor);
      default:
        return x;
    }
  }
};

// Calls change(pixel), three floats, for each of a lane's pixels.
template <class Change>
HOST_DEVICE void each_pixel(int lane, float* memory, const ViewLayout& at, const Change& change) {
  each_cell(lane, at.size, at.size, [&](int32_t row, int32_t column) {
    change(memory + row * at.pitch + kChannels * column);
  });
}

// The mean luma of the view after the first `steps` colour operations, which are done in the same pass.
template <class Team>
HOST_DEVICE float mean_luma(const Team& team, float* memory, const ViewLayout& at, const ColourSteps& colours,
                            int steps) {
  auto* sums = reinterpret_cast<double*>(memory + at.sums);
  team.lanes([&](int lane) {
    double sum = 0;
    each_pixel(lane, memory, at, [&](float* pixel) {
      const Pixel x = colours.apply({pixel[0], pixel[1], pixel[2]}, 0, steps, 0);
      pixel[0] = x.red, pixel[1] = x.green, pixel[2] = x.blue;
      sum += static_cast<double>(luma(x));
    });
    sums[lane] = sum;
  });
  for (int half = kViewTeam / 2; half > 0; half /= 2) {
    team.lanes([&](int lane) {
      if (lane < half) sums[lane] += sums[lane + half];
    });
  }
  return static_cast<float>(sums[0] / (static_cast<double>(at.size) * at.size));
}

// All colour operations, and gray, which leaves only the first channel. A lane has the same pixels in both passes.
template <class Team>
HOST_DEVICE void change_colours(const Team& team, float* memory, const ViewLayout& at, const ColourSteps& colours,
                                bool gray) {
  const int contrast = colours.place_of_contrast();
  const int done = contrast < kColours ? contrast : 0;
  const float mean = contrast < kColours ? mean_luma(team, memory, at, colours, done) : 0;
  if (!gray && !colours.any()) return;
  team.lanes([&](int lane) {
    each_pixel(lane, memory, at, [&](float* pixel) {
      const Pixel x = colours.apply({pixel[0], pixel[1], pixel[2]}, done, kColours, mean);
      pixel[0] = gray ? luma(x) : x.red;
      pixel[1] = x.green, pixel[2] = x.blue;
    });
  });
}

// value_at(row, column) of S rows of 3 S values, interleaved, to the view in memory.
template <int kCount, class T, class Team, class ValueAt>
HOST_DEVICE void write_values(const Team& team, int32_t size, T* out, const ValueAt& value_at) {
  const int32_t packs = kChannels * size / kCount;
  team.lanes([&](int lane) {
    each_cell(lane, size, packs, [&](int32_t row, int32_t pack) {
      Packed<T, kCount> packed;
      IN_REGISTERS
      for (int k = 0; k < kCount; ++k) store(value_at(row, kCount * pack + k), packed.values + k);
      reinterpret_cast<Packed<T, kCount>*>(out)[row * packs + pack] = packed;
    });
  });
}

template <class T, class Team, class ValueAt>
HOST_DEVICE void write_view(const Team& team, int32_t size, T* out, const ValueAt& value_at) {
  constexpr int kPack = std::is_same_v<T, float> ? 1 : 2;  // a word, where each view begins at one
  if (size % kPack == 0) {
    write_values<kPack>(team, size, out, value_at);
  } else {
    write_values<1>(team, size, out, value_at);
  }
}

// T is float or BFloat16.
template <class T>
struct ViewJob {
  ImageArray images;
  const int64_t* samples;
  const ViewIntegers* integers;
  const ViewNumbers* numbers;
  int64_t n;
  ViewRecipe recipe;
  ViewLayout layout;
  T* out;  // (n, S, S, 3)

  // Renders view k in a memory of layout.floats. A row that fits no image gives NaN: nobody can ask the host here.
  template <class Team>
  HOST_DEVICE void operator()(const Team& team, float* memory, int64_t k) const {
    const ViewIntegers& row = integers[k];
    const int64_t sample = samples[k];
    const float sigma = numbers[k].sigma;
    const int32_t size = layout.size;
    T* view = out + k * kChannels * size * size;
    if (!is_sample(images, sample) || !is_within(images, row) || !is_order(row) || !is_sigma(sigma)) {
      return write_view(team, size, view, [](int32_t, int32_t) { return NAN; });
    }
    const bool gray = row.gray != 0;
    crop_resize_flip(team, memory, layout, crop_of(sample, row));
    change_colours(team, memory, layout, ColourSteps(row, numbers[k]), gray);
    if (sigma > 0) blur_view(team, memory, layout, {sigma, size, recipe.box_blur}, gray ? 1 : kChannels);
    const float threshold = row.solarize ? recipe.threshold : INFINITY;
    write_view(team, size, view, [&](int32_t line, int32_t place) {
      const int32_t pixel = place / kChannels, channel = place - kChannels * pixel;
      const float value = memory[line * layout.pitch + (gray ? kChannels * pixel : place)];
      return normalised(value, threshold, of_channel(recipe.scale, channel), of_channel(recipe.shift, channel));
    });
  }

  HOST_DEVICE Crop crop_of(int64_t sample, const ViewIntegers& row) const {
    const int64_t stride = kChannels * images.width;
    const ResizeAxis down{row.height, layout.size, recipe.cubic, false};
    const ResizeAxis across{row.width, layout.size, recipe.cubic, row.flip != 0};
    const uint8_t* image = images.pixels + sample * images.height * stride;
    const bool in_words = stride % 4 == 0 && reinterpret_cast<uintptr_t>(images.pixels) % 4 == 0;
    return {image + row.top * stride + kChannels * row.left, stride, in_words, down, across};
  }

  // Chosen, not indexed: lanes of a warp ask for different channels.
  HOST_DEVICE static float of_channel(const float* values, int32_t channel) {
    return channel == 0 ? values[0] : (channel == 1 ? values[1] : values[2]);
  }
};

}  // namespace bissl_fast::cuda
