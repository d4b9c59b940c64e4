// The loops of a view, each over rows or planes of floats in 0..1, compiled for several instruction sets.
#pragma once

#include <cstdint>

#include "filters.h"
#include "storage.h"
#include "views.h"

namespace bissl_fast::cpu {

// Three planes of `count` values each.
struct Planes {
  float *red, *green, *blue;
  int64_t count;
};

// row[k] = sum over t of weights[t] * pixels[t * stride + k].
void weigh_rows(const uint8_t* pixels, int64_t stride, const float* weights, int64_t taps, int64_t count, float* row);

// out[k] = sum over t of weights[t * size + k] * row[first[k] + 3 t], clamped to 0..1: one channel of an interleaved row.
void gather_row(const float* row, const int32_t* first, const float* weights, int64_t taps, int64_t size, float* out);

void brighten(const Planes& x, float factor);
double luma_sum(const Planes& x);
void blend_with(const Planes& x, float factor, float rest);  // contrast
void saturate(const Planes& x, float factor);
void shift_hue(const Planes& x, float turns);
void to_gray(const Planes& x);  // into the red plane

// Blurs a size x size plane, all passes of both axes. The scratch holds size * (size + 3) values.
void blur(float* plane, int64_t size, const BlurAxis& axis, const float* kernel, float* scratch);

// Solarises, normalises and interleaves: out[3 k + c].
void finish(const Planes& x, bool solarize, const ViewRecipe& recipe, float* out);
void finish(const Planes& x, bool solarize, const ViewRecipe& recipe, BFloat16* out);

}  // namespace bissl_fast::cpu
