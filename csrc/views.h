// The table of view parameters as kernels read it, and what all of its rows share. bissl_fast/data/views/parameters.py draws it.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace bissl_fast {

enum Colour : int32_t { kBrightness, kContrast, kSaturation, kHue };

inline constexpr int kColours = 4, kChannels = 3;
inline constexpr float kLumaRed = 0.299f, kLumaGreen = 0.587f, kLumaBlue = 0.114f;  // ITU-R 601
inline constexpr int kBoxes = 3;         // passes of a box that stand for a Gaussian
inline constexpr float kBlurRadius = 4;  // standard deviations; what lies beyond weighs less than a level of 255

// The factor that changes no pixel.
HOST_DEVICE constexpr float neutral_factor(int32_t colour) { return colour == kHue ? 0 : 1; }

// A row of the table: its integers and its numbers, as they lie in two tensors.
struct ViewIntegers {
  int32_t top, left, height, width;  // of the crop, in pixels of the image
  int32_t flip, gray, solarize;
  int32_t order[kColours];  // the Colour done first, second, ...
};
struct ViewNumbers {
  float factors[kColours];  // by Colour
  float sigma;              // of the blur in pixels of the view; 0 is no blur
};

inline constexpr int64_t kViewIntegers = sizeof(ViewIntegers) / sizeof(int32_t);
inline constexpr int64_t kViewNumbers = sizeof(ViewNumbers) / sizeof(float);

// (count, height, width, 3) interleaved.
struct ImageArray {
  const uint8_t* pixels;
  int64_t count, height, width;
};

// What must hold of a row before a kernel takes it at its word.
HOST_DEVICE inline bool is_sample(const ImageArray& images, int64_t sample) { return sample >= 0 && sample < images.count; }

HOST_DEVICE inline bool is_within(const ImageArray& images, const ViewIntegers& row) {
  return row.top >= 0 && row.left >= 0 && row.height > 0 && row.width > 0 &&
         int64_t{row.top} + row.height <= images.height && int64_t{row.left} + row.width <= images.width;
}

HOST_DEVICE inline bool is_order(const ViewIntegers& row) {
  int seen = 0;
  for (const int32_t colour : row.order) seen |= colour >= 0 && colour < kColours ? 1 << colour : 0;
  return seen == (1 << kColours) - 1;
}

HOST_DEVICE inline bool is_sigma(float sigma) { return sigma >= 0 && sigma < 1e6f; }

struct ViewRecipe {
  int64_t size;                             // side of a view
  bool cubic;                               // Keys' cubic, or else the triangle
  float threshold;                          // values above it, in 0..1, are inverted by solarize
  float scale[kChannels], shift[kChannels];  // view = value * scale - shift
  bool box_blur = false;                     // blur by three boxes, as Pillow does, or else by a sampled Gaussian
};

}  // namespace bissl_fast
