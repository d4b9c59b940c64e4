// A row of the table of view parameters, drawn as bissl_fast/data/views/parameters.py defines it: the same words of the
// same generator, and the same roundings of the same doubles. So a row has the definition's bits, but for the last one
// of exp, which libraries differ in: it counts where a side lies within 1e-14 of half a pixel.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>

#include "views.h"

namespace bissl_fast {

// Blocks of four words before the attempts: flip, jitter, order, gray | factors | blur, sigma, solarise, unused.
inline constexpr int kDecisions = 3;
inline constexpr int kCropAttempts = 10;

// The numbers of bissl_fast/ops/draw_views/function.py, in its order.
struct DrawRecipe {
  double scale_low, scale_range, log_ratio_low, log_ratio_range, ratio_low, ratio_high, centred;
  double flip, jitter, gray, blur, solarize, sigma_low, sigma_range;
  double factor_low[kColours], factor_range[kColours];
};
inline constexpr int64_t kDrawNumbers = sizeof(DrawRecipe) / sizeof(double);

// What all rows share: key and counter of the generator but for block and item.
struct DrawCounter {
  uint64_t seed;
  uint32_t view, epoch;
};

// Philox4x32-10 (J. Salmon et al., SC 2011), each word over 2^32.
inline std::array<double, 4> uniforms(const DrawCounter& at, uint32_t block, uint32_t item) {
  uint32_t c0 = block, c1 = item, c2 = at.view, c3 = at.epoch;
  auto k0 = static_cast<uint32_t>(at.seed), k1 = static_cast<uint32_t>(at.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    const uint64_t product0 = uint64_t{0xD2511F53} * c0, product1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
  }
  return {c0 * 0x1p-32, c1 * 0x1p-32, c2 * 0x1p-32, c3 * 0x1p-32};
}

// low + u range, rounded twice as NumPy does: through memory, so that no compiler makes one operation of it.
inline double between(double low, double range, double u) {
  const volatile double product = u * range;
  return low + product;
}

// The k-th permutation of the colours, in lexicographic order.
inline void write_order(int32_t k, int32_t* order) {
  std::array<int32_t, kColours> left{kBrightness, kContrast, kSaturation, kHue};
  for (const int32_t ways : {6, 2, 1, 1}) {  // to order what is left after this place
    const int32_t chosen = k / ways;
    k %= ways;
    *order++ = left[chosen];
    std::copy(left.begin() + chosen + 1, left.end(), left.begin() + chosen);
  }
}

struct CropBox {
  int64_t top, left, height, width;
};

// An attempt of RandomResizedCrop; whether it fits.
inline bool attempt_crop(const DrawRecipe& recipe, const std::array<double, 4>& u, int64_t rows, int64_t columns,
                         CropBox& box) {
  const int64_t least = std::min(rows, columns);
  const double area = static_cast<double>(recipe.centred ? least * least : rows * columns) *
                      between(recipe.scale_low, recipe.scale_range, u[0]);
  const double ratio = std::exp(between(recipe.log_ratio_low, recipe.log_ratio_range, u[1]));
  box.width = std::llrint(std::sqrt(area * ratio));
  box.height = std::llrint(std::sqrt(area / ratio));
  if (box.width <= 0 || box.width > columns || box.height <= 0 || box.height > rows) return false;
  const int64_t down = rows - box.height, right = columns - box.width;
  box.top = recipe.centred ? down / 2 : static_cast<int64_t>(u[2] * static_cast<double>(down + 1));
  box.left = recipe.centred ? right / 2 : static_cast<int64_t>(u[3] * static_cast<double>(right + 1));
  return true;
}

// The largest central crop whose ratio is allowed, of one pixel at least.
inline CropBox central_crop(const DrawRecipe& recipe, int64_t rows, int64_t columns) {
  const double ratio = static_cast<double>(columns) / static_cast<double>(rows);
  CropBox box{0, 0, rows, columns};
  if (ratio < recipe.ratio_low) box.height = std::llrint(static_cast<double>(columns) / recipe.ratio_low);
  if (ratio > recipe.ratio_high) box.width = std::llrint(static_cast<double>(rows) * recipe.ratio_high);
  box.height = std::max<int64_t>(box.height, 1);
  box.width = std::max<int64_t>(box.width, 1);
  box.top = (rows - box.height) / 2;
  box.left = (columns - box.width) / 2;
  return box;
}

inline void draw_row(const DrawRecipe& recipe, const DrawCounter& at, uint32_t item, int64_t rows, int64_t columns,
                     ViewIntegers& integers, ViewNumbers& numbers) {
  const auto choices = uniforms(at, 0, item), factors = uniforms(at, 1, item), last = uniforms(at, 2, item);
  CropBox box{};
  int attempt = 0;
  const auto fits = [&] { return attempt_crop(recipe, uniforms(at, kDecisions + attempt, item), rows, columns, box); };
  while (attempt < kCropAttempts && !fits()) ++attempt;
  if (attempt == kCropAttempts) box = central_crop(recipe, rows, columns);
  integers = {static_cast<int32_t>(box.top), static_cast<int32_t>(box.left), static_cast<int32_t>(box.height),
              static_cast<int32_t>(box.width), choices[0] < recipe.flip, choices[3] < recipe.gray,
              last[2] < recipe.solarize, {}};
  write_order(static_cast<int32_t>(choices[2] * 24), integers.order);
  for (int32_t colour = 0; colour < kColours; ++colour) {
    const double factor = between(recipe.factor_low[colour], recipe.factor_range[colour], factors[colour]);
    numbers.factors[colour] = choices[1] < recipe.jitter ? static_cast<float>(factor) : neutral_factor(colour);
  }
  const double sigma = between(recipe.sigma_low, recipe.sigma_range, last[1]);
  numbers.sigma = last[0] < recipe.blur ? static_cast<float>(sigma) : 0;
}

}  // namespace bissl_fast
