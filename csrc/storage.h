// Numbers as tensors store them: those of 16 bits are computed with as float, and rounded once when they are stored.
#pragma once

#include <bit>
#include <cstdint>

#include "host_device.h"

namespace bissl_fast {

// Bits alone, since loops over PyTorch's own types are not vectorised for every instruction set.
enum class BFloat16 : uint16_t {};
enum class Half : uint16_t {};

template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};

// What a T is computed with.
template <class T>
using Wide = typename WideOf<T>::type;

HOST_DEVICE_INLINE double load(double stored) { return stored; }
HOST_DEVICE_INLINE float load(float stored) { return stored; }
HOST_DEVICE_INLINE float load(BFloat16 stored) { return std::bit_cast<float>(static_cast<uint32_t>(stored) << 16); }

// No subnormal float arises, so that a processor that flushes those to zero reads the same numbers.
HOST_DEVICE_INLINE float load(Half stored) {
  const uint32_t bits = static_cast<uint32_t>(stored), size = (bits & 0x7FFF) << 13, exponent = size & 0x0F800000;
  const float subnormal = std::bit_cast<float>(size + 0x38800000) - std::bit_cast<float>(0x38800000);  // 2^-14
  const uint32_t normal = size + (exponent == 0x0F800000 ? 0x70000000 : 0x38000000);  // infinities and NaNs stay ones
  return std::bit_cast<float>((exponent == 0 ? std::bit_cast<uint32_t>(subnormal) : normal) | (bits & 0x8000) << 16);
}

HOST_DEVICE_INLINE void store(double value, double* out) { *out = value; }
HOST_DEVICE_INLINE void store(float value, float* out) { *out = value; }

// To the nearest bfloat16, ties to even. A NaN stays one: rounded up, one whose bits are all set would be a zero.
HOST_DEVICE_INLINE void store(float value, BFloat16* out) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  *out = static_cast<BFloat16>(((bits & 0x7FFFFFFF) > 0x7F800000 ? 0x7FC00000 : rounded) >> 16);
}

// To the nearest float16, ties to even. A NaN stays one; what is too large becomes infinite.
HOST_DEVICE_INLINE void store(float value, Half* out) {
  const auto bits = std::bit_cast<uint32_t>(value);
  const uint32_t size = bits & 0x7FFFFFFF;
  const uint32_t normal = (size - 0x38000000 + 0x0FFF + ((size >> 13) & 1)) >> 13;
  // The sum's last bit is worth 2^-24, as is a subnormal's: the addition rounds.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3F000000;
  const uint32_t beyond = size > 0x7F800000 ? 0x7E00 : 0x7C00;
  const uint32_t magnitude = size >= 0x47800000 ? beyond : (size < 0x38800000 ? subnormal : normal);
  *out = static_cast<Half>(magnitude | (bits >> 16 & 0x8000));
}

}  // namespace bissl_fast
