// bfloat16 for the emulator: the upper half of a float, rounded to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const std::uint32_t wide = static_cast<std::uint32_t>(x.bits) << 16;
  float y;
  std::memcpy(&y, &wide, sizeof y);
  return y;
}

inline __nv_bfloat16 __float2bfloat16(float x) {
  std::uint32_t wide;
  std::memcpy(&wide, &x, sizeof wide);
  if ((wide & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN
  return {static_cast<std::uint16_t>((wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16)};
}
