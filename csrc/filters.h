// The weights of antialiased resizing and of blur along one axis, for every device.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "views.h"

namespace bissl_fast {

// A product that is never fused with a sum: whoever asks for a tap's pixel must get the same one.
HOST_DEVICE inline float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// A crop of `length` pixels resized to `size`, as PIL does it: when it shrinks, the kernel is stretched by the scale, and
// pixels outside the crop have no weight.
struct ResizeAxis {
  int32_t length, size;
  bool cubic, flip;
  float scale, stretch, radius;
  int32_t taps;  // pixels that any output may need; a window of so many covers the kernel's support within the crop

  HOST_DEVICE ResizeAxis(int32_t crop_length, int32_t view_size, bool is_cubic, bool is_flipped)
      : length(crop_length), size(view_size), cubic(is_cubic), flip(is_flipped) {
    scale = static_cast<float>(length) / static_cast<float>(size);
    stretch = scale > 1 ? scale : 1.0f;
    radius = stretch * (cubic ? 2.0f : 1.0f);
    const auto most = static_cast<int32_t>(ceilf(2 * radius)) + 1;
    taps = most < length ? most : length;
  }

  // Of an output: its place in the crop, and the pixel of its first tap.
  HOST_DEVICE float centre(int32_t out) const {
    return rounded_product(static_cast<float>(flip ? size - 1 - out : out) + 0.5f, scale);
  }
  HOST_DEVICE int32_t first(int32_t out) const {
    const auto wanted = static_cast<int32_t>(floorf(centre(out) - radius + 0.5f));
    const int32_t last = length - taps;
    return wanted < 0 ? 0 : (wanted > last ? last : wanted);
  }
};

// Distance in stretched pixels.
HOST_DEVICE inline float resize_kernel(bool cubic, float distance) {
  if (!cubic) return distance < 1 ? 1 - distance : 0.0f;
  if (distance < 1) return (1.5f * distance - 2.5f) * distance * distance + 1;  // Keys, a = -0.5
  if (distance < 2) return ((2.5f - 0.5f * distance) * distance - 4) * distance + 2;
  return 0;
}

// Calls store(t, weight) for the taps of an output, which sum to `total`, and gives the first tap's pixel in the crop.
template <class Store>
HOST_DEVICE int32_t resize_taps(const ResizeAxis& axis, int32_t out, float total, const Store& store) {
  const int32_t taps = axis.taps, first = axis.first(out);
  const float centre = axis.centre(out);
  const auto weight = [&](int32_t t) {
    return resize_kernel(axis.cubic, fabsf(static_cast<float>(first + t) + 0.5f - centre) / axis.stretch);
  };
  float sum = 0;
  for (int32_t t = 0; t < taps; ++t) sum += weight(t);
  for (int32_t t = 0; t < taps; ++t) store(t, weight(t) * (total / sum));
  return first;
}

// Blur along an axis: once by a sampled Gaussian whose edges are reflected, or kBoxes times by a box whose edges repeat.
struct BlurAxis {
  float sigma;
  bool box;
  float reach;     // of the box, to each side of its middle: whole pixels, and a share of the next
  int32_t radius;  // pixels to each side that have a weight, at most to the opposite edge

  HOST_DEVICE BlurAxis(float standard_deviation, int64_t size, bool is_box) : sigma(standard_deviation), box(is_box), reach(0) {
    auto wanted = static_cast<int64_t>(ceilf(kBlurRadius * sigma));
    if (box) {  // kBoxes of it have the variance of the Gaussian
      const float variance = sigma * sigma / kBoxes, whole = floorf((sqrtf(12 * variance + 1) - 1) / 2), next = whole + 1;
      reach = whole + (2 * whole + 1) * (whole * next - 3 * variance) / (6 * (variance - next * next));
      wanted = static_cast<int64_t>(floorf(reach)) + 1;
    }
    radius = static_cast<int32_t>(wanted < size - 1 ? wanted : size - 1);
  }

  HOST_DEVICE int passes() const { return box ? kBoxes : 1; }

  // The pixel that stands for one beyond the edge, no further away than the axis is long.
  HOST_DEVICE int32_t inside(int32_t k, int32_t size) const {
    if (box) return k < 0 ? 0 : (k >= size ? size - 1 : k);
    return k < 0 ? -k : (k >= size ? 2 * size - 2 - k : k);
  }

  HOST_DEVICE float weight(int32_t k) const {
    const auto distance = static_cast<float>(k);
    if (!box) return expf(-0.5f * (distance / sigma) * (distance / sigma));
    return distance <= reach ? 1.0f : reach - floorf(reach);
  }
};

// Calls store(k, weight) for k = 0 ... radius; the kernel is symmetric and sums to 1.
template <class Store>
HOST_DEVICE void blur_taps(const BlurAxis& axis, const Store& store) {
  float sum = 1;
  for (int32_t k = 1; k <= axis.radius; ++k) sum += 2 * axis.weight(k);
  for (int32_t k = 0; k <= axis.radius; ++k) store(k, axis.weight(k) / sum);
}

}  // namespace bissl_fast
