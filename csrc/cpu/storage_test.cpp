// Numbers of 16 bits against PyTorch's own conversions: every one of them, and floats at and around every border.
#include "storage.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdio>

namespace {

int failures = 0;

void expect(bool condition, const char* claim, uint32_t bits) {
  if (condition) return;
  if (++failures < 20) std::printf("FAILED: %s at %08x\n", claim, bits);
}

// `Theirs` is PyTorch's type of the same numbers.
template <class T, class Theirs>
void check_store(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  T stored;
  bissl_fast::store(value, &stored);
  if (std::isnan(value)) {
    expect(std::isnan(bissl_fast::load(stored)), "a NaN stays one", bits);
  } else {
    expect(static_cast<uint16_t>(stored) == Theirs(value).x, "the nearest number is stored, ties to even", bits);
  }
}

template <class T, class Theirs>
void check_all() {
  for (uint32_t bits = 0; bits <= UINT16_MAX; ++bits) {
    const float value = bissl_fast::load(static_cast<T>(bits));
    const float theirs = Theirs(static_cast<uint16_t>(bits), Theirs::from_bits());
    const float next = bissl_fast::load(static_cast<T>(bits + 1)), border = value / 2 + next / 2;
    expect(std::isnan(value) ? std::isnan(theirs) : std::bit_cast<uint32_t>(value) == std::bit_cast<uint32_t>(theirs),
           "a stored number is loaded exactly", bits);
    for (const float near : {value, border, std::nextafter(border, -INFINITY), std::nextafter(border, INFINITY)}) {
      check_store<T, Theirs>(near);
    }
  }
  for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 4093) {
    check_store<T, Theirs>(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  // A GPU's own NaN has all bits set but the sign: rounding up would carry into the sign, and leave a zero.
  for (const uint32_t bits : {0x7FC00000u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7F800001u}) {
    check_store<T, Theirs>(std::bit_cast<float>(bits));
  }
}

}  // namespace

int main() {
  check_all<bissl_fast::BFloat16, c10::BFloat16>();
  check_all<bissl_fast::Half, c10::Half>();
  std::printf(failures == 0 ? "all claims hold\n" : "%d claims failed\n", failures);
  return failures == 0 ? 0 : 1;
}
