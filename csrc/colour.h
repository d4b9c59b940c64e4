// Colour operations on one pixel in 0..1, torchvision's definitions, and how a value leaves a view; for every device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "views.h"

#if defined(__GNUC__) && !defined(__CUDACC__)
#define PIXEL_FUNCTION [[gnu::always_inline]] inline
#else
#define PIXEL_FUNCTION HOST_DEVICE inline
#endif

namespace bissl_fast {

struct Pixel {
  float red, green, blue;
};

PIXEL_FUNCTION float clamp_unit(float x) { return x < 0 ? 0 : (x > 1 ? 1 : x); }

PIXEL_FUNCTION float luma(const Pixel& x) { return kLumaRed * x.red + kLumaGreen * x.green + kLumaBlue * x.blue; }

// factor * x + (1 - factor) * other, where `rest` is the second term: brightness, contrast and saturation.
PIXEL_FUNCTION Pixel blend(const Pixel& x, float factor, float rest) {
  return {clamp_unit(factor * x.red + rest), clamp_unit(factor * x.green + rest), clamp_unit(factor * x.blue + rest)};
}

// A channel's share of the chroma at a hue in sixths of a turn.
PIXEL_FUNCTION float share_of_chroma(float hue, float centre, float slope, float offset) {
  return clamp_unit(fabsf(hue - centre) * slope + offset);
}

// Turns the hue by `sixths` of a turn. Value and chroma stay, so each channel is the smallest one plus chroma times a
// trapezoid of the hue: no branch between six sectors.
PIXEL_FUNCTION Pixel turn_hue(const Pixel& x, float sixths) {
  const float warm = x.red > x.green ? x.red : x.green, cool = x.red < x.green ? x.red : x.green;
  const float high = warm > x.blue ? warm : x.blue, low = cool < x.blue ? cool : x.blue;
  const float chroma = high - low;
  // From red, towards green where green exceeds blue and towards blue elsewhere.
  const float turned = (x.green + x.blue - x.red - low) / (chroma > 1e-12f ? chroma : 1e-12f) + 1;
  float hue = copysignf(turned, x.green - x.blue) + sixths;
  hue -= 6 * floorf(hue * (1.0f / 6));
  return {share_of_chroma(hue, 3, 1, -1) * chroma + low, share_of_chroma(hue, 2, -1, 2) * chroma + low,
          share_of_chroma(hue, 4, -1, 2) * chroma + low};
}

// A value of a view: inverted above the threshold, then normalised.
PIXEL_FUNCTION float normalised(float x, float threshold, float scale, float shift) {
  return (x > threshold ? 1 - x : x) * scale - shift;
}

PIXEL_FUNCTION void store(float value, float* out) { *out = value; }

// To the nearest bfloat16, ties to even. A NaN, as a factor may be, stays one: rounded up, a GPU's own would be a zero.
PIXEL_FUNCTION void store(float value, uint16_t* out) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  *out = static_cast<uint16_t>((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC0 : rounded);
}

}  // namespace bissl_fast
