// The table of view parameters as kernels read it, and what all of its rows share. bissl_fast/data/views.py draws it.
#pragma once

#include <cstdint>

namespace bissl_fast {

enum Colour : int32_t { kBrightness, kContrast, kSaturation, kHue };

inline constexpr int kColours = 4, kChannels = 3;
inline constexpr float kNeutral[kColours] = {1, 1, 1, 0};     // factors that change no pixel
inline constexpr float kLuma[kChannels] = {0.299f, 0.587f, 0.114f};  // ITU-R 601
inline constexpr float kBlurRadius = 4;  // standard deviations; what lies beyond weighs less than a level of 255

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

struct ViewRecipe {
  int64_t size;                             // side of a view
  bool cubic;                               // Keys' cubic, or else the triangle
  float threshold;                          // values above it, in 0..1, are inverted by solarize
  float scale[kChannels], shift[kChannels];  // view = value * scale - shift
};

}  // namespace bissl_fast
