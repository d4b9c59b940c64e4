// Colour operations on one pixel in 0..1, torchvision's definitions; for every device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "views.h"

namespace bissl_fast {

struct Pixel {
  float red, green, blue;
};

HOST_DEVICE_INLINE float clamp_unit(float x) { return x < 0 ? 0 : (x > 1 ? 1 : x); }

HOST_DEVICE_INLINE float luma(const Pixel& x) { return kLumaRed * x.red + kLumaGreen * x.green + kLumaBlue * x.blue; }

// factor * x + (1 - factor) * other, where `rest` is the second term: brightness, contrast and saturation.
HOST_DEVICE_INLINE Pixel blend(const Pixel& x, float factor, float rest) {
  return {clamp_unit(factor * x.red + rest), clamp_unit(factor * x.green + rest), clamp_unit(factor * x.blue + rest)};
}

// A channel's share of the chroma at a hue in sixths of a turn.
HOST_DEVICE_INLINE float share_of_chroma(float hue, float centre, float slope, float offset) {
  return clamp_unit(fabsf(hue - centre) * slope + offset);
}

// Turns the hue by `sixths` of a turn. Value and chroma stay, so each channel is the smallest one plus chroma times a
// trapezoid of the hue: no branch between six sectors.
HOST_DEVICE_INLINE Pixel turn_hue(const Pixel& x, float sixths) {
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
HOST_DEVICE_INLINE float normalised(float x, float threshold, float scale, float shift) {
  return (x > threshold ? 1 - x : x) * scale - shift;
}

}  // namespace bissl_fast
