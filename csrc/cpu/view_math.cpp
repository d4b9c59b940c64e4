#include "cpu/view_math.h"

#include <algorithm>
#include <cmath>

#include "colour.h"
#include "cpu/instruction_sets.h"
#include "filters.h"

namespace bissl_fast::cpu {
namespace {

template <class Change>
INLINE void each_pixel(const Planes& x, const Change& change) {
  float *red = x.red, *green = x.green, *blue = x.blue;
#pragma omp simd
  for (int64_t k = 0; k < x.count; ++k) {
    const Pixel next = change(Pixel{red[k], green[k], blue[k]});
    red[k] = next.red;
    green[k] = next.green;
    blue[k] = next.blue;
  }
}

template <class T>
INLINE void finish_body(const Planes& x, bool solarize, const ViewRecipe& recipe, T* out) {
  const float threshold = solarize ? recipe.threshold : INFINITY;
  const auto value = [&](float v, int channel) {
    return normalised(v, threshold, recipe.scale[channel], recipe.shift[channel]);
  };
  const float *red = x.red, *green = x.green, *blue = x.blue;
#pragma omp simd
  for (int64_t k = 0; k < x.count; ++k) {
    store(value(red[k], 0), out + 3 * k);
    store(value(green[k], 1), out + 3 * k + 1);
    store(value(blue[k], 2), out + 3 * k + 2);
  }
}

// out = sum over k of kernel[k] * (at(-k) + at(k)), where at(k) points to a row of inputs.
template <class At>
INLINE void symmetric_sum(const float* kernel, int64_t radius, int64_t size, const At& at, float* out) {
  const float* middle = at(0);
#pragma omp simd
  for (int64_t j = 0; j < size; ++j) out[j] = kernel[0] * middle[j];
  for (int64_t k = 1; k <= radius; ++k) {
    const float *before = at(-k), *after = at(k);
#pragma omp simd
    for (int64_t j = 0; j < size; ++j) out[j] += kernel[k] * (before[j] + after[j]);
  }
}

}  // namespace

PER_INSTRUCTION_SET void weigh_rows(const uint8_t* pixels, int64_t stride, const float* weights, int64_t taps,
                                    int64_t count, float* row) {
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) row[k] = weights[0] * static_cast<float>(pixels[k]);
  for (int64_t t = 1; t < taps; ++t) {
    const uint8_t* line = pixels + t * stride;
    const float weight = weights[t];
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) row[k] += weight * static_cast<float>(line[k]);
  }
}

PER_INSTRUCTION_SET void gather_row(const float* row, const int32_t* first, const float* weights, int64_t taps,
                                    int64_t size, float* out) {
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) out[k] = weights[k] * row[first[k]];
  for (int64_t t = 1; t < taps; ++t) {
    const float *shifted = row + 3 * t, *weight = weights + t * size;
#pragma omp simd
    for (int64_t k = 0; k < size; ++k) out[k] += weight[k] * shifted[first[k]];
  }
#pragma omp simd
  for (int64_t k = 0; k < size; ++k) out[k] = clamp_unit(out[k]);
}

PER_INSTRUCTION_SET void brighten(const Planes& x, float factor) {
  each_pixel(x, [=](const Pixel& p) INLINE_LAMBDA { return blend(p, factor, 0); });
}

PER_INSTRUCTION_SET double luma_sum(const Planes& x) {
  constexpr int64_t kRun = 256;  // short runs in float, their sums in double
  double sum = 0;
  for (int64_t start = 0; start < x.count; start += kRun) {
    const int64_t end = std::min(start + kRun, x.count);
    float part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t k = start; k < end; ++k) part += luma({x.red[k], x.green[k], x.blue[k]});
    sum += part;
  }
  return sum;
}

PER_INSTRUCTION_SET void blend_with(const Planes& x, float factor, float rest) {
  each_pixel(x, [=](const Pixel& p) INLINE_LAMBDA { return blend(p, factor, rest); });
}

PER_INSTRUCTION_SET void saturate(const Planes& x, float factor) {
  each_pixel(x, [=](const Pixel& p) INLINE_LAMBDA { return blend(p, factor, (1 - factor) * luma(p)); });
}

PER_INSTRUCTION_SET void shift_hue(const Planes& x, float turns) {
  const float sixths = 6 * turns;
  each_pixel(x, [=](const Pixel& p) INLINE_LAMBDA { return turn_hue(p, sixths); });
}

PER_INSTRUCTION_SET void to_gray(const Planes& x) {
#pragma omp simd
  for (int64_t k = 0; k < x.count; ++k) x.red[k] = luma({x.red[k], x.green[k], x.blue[k]});
}

PER_INSTRUCTION_SET void blur(float* plane, int64_t size, const BlurAxis& axis, const float* kernel, float* scratch) {
  float* padded = scratch + size * size;  // a row and what stands beyond its edges, at most size - 1 to each side
  const auto edge = static_cast<int32_t>(size);
  const int64_t radius = axis.radius;
  for (int pass = 0; pass < axis.passes(); ++pass) {
    for (int64_t i = 0; i < size; ++i) {
      const auto row = [&](int64_t k)
                           INLINE_LAMBDA { return plane + size * axis.inside(static_cast<int32_t>(i + k), edge); };
      symmetric_sum(kernel, radius, size, row, scratch + i * size);
    }
    for (int64_t i = 0; i < size; ++i) {
      const float* row = scratch + i * size;
      for (int32_t k = 1; k <= radius; ++k) {
        padded[radius - k] = row[axis.inside(-k, edge)];
        padded[radius + size - 1 + k] = row[axis.inside(edge - 1 + k, edge)];
      }
      std::copy(row, row + size, padded + radius);
      symmetric_sum(kernel, radius, size, [&](int64_t k) INLINE_LAMBDA { return padded + radius + k; },
                    plane + i * size);
    }
  }
}

PER_INSTRUCTION_SET void finish(const Planes& x, bool solarize, const ViewRecipe& recipe, float* out) {
  finish_body(x, solarize, recipe, out);
}
PER_INSTRUCTION_SET void finish(const Planes& x, bool solarize, const ViewRecipe& recipe, BFloat16* out) {
  finish_body(x, solarize, recipe, out);
}

}  // namespace bissl_fast::cpu
