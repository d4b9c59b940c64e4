// exp without branches, calls or conversions, so that a loop over it becomes vector code on any instruction set.
#pragma once

#include <bit>
#include <cstdint>

namespace bissl_fast::cpu {

// exp(x) = 2^n p(r), n = round(x / ln 2), |r| <= ln(2) / 2. Adding `kMagic` rounds x / ln 2 and leaves n in the low bits
// of the sum, from where a shift moves it into the exponent. Relative error: 1.5 ulp in float, 2 ulp in double.
// Arguments below kSmallest give exp(kSmallest); arguments above 80 do not occur. NaN stays NaN.
[[gnu::always_inline]] inline float exp(float x) {
  constexpr float kSmallest = -86.0F, kMagic = 0x1.8p23F, kInvLn2 = 0x1.715476p0F;
  constexpr float kLn2High = 0x1.63p-1F, kLn2Low = -0x1.bd0106p-13F;
  x = x < kSmallest ? kSmallest : x;
  const float shifted = x * kInvLn2 + kMagic;
  const float n = shifted - kMagic;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float p = 1.0F / 5040;
  p = p * r + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (std::bit_cast<uint32_t>(shifted) << 23));
}

[[gnu::always_inline]] inline double exp(double x) {
  constexpr double kSmallest = -707.0, kMagic = 0x1.8p52, kInvLn2 = 0x1.71547652b82fep0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  x = x < kSmallest ? kSmallest : x;
  const double shifted = x * kInvLn2 + kMagic;
  const double n = shifted - kMagic;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return std::bit_cast<double>(std::bit_cast<uint64_t>(p) + (std::bit_cast<uint64_t>(shifted) << 52));
}

}  // namespace bissl_fast::cpu
