#include "core/dequantise.h"

#include <array>
#include <bit>
#include <cstring>

// One source, three machine codes, chosen when the library is loaded (which is before ThreadSanitizer can watch): the
// loops below are written for the auto-vectoriser. Products and sums are rounded one by one (-ffp-contract=off in
// cpp/CMakeLists.txt), so that every CPU gives the bits that the formats' reference code gives.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__)
#define INTROSPECT_VECTORISED __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define INTROSPECT_VECTORISED
#endif
#define INTROSPECT_INLINE __attribute__((always_inline)) inline

namespace introspect {
namespace {

// The layouts below are those of ggml's ggml-common.h; `d` is a block's float16 scale, `m` or `dmin` that of its offset.

/// The float16 at `p`, exactly.
INTROSPECT_INLINE float load_half(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, sizeof(half));
  const uint32_t sign = uint32_t{half} >> 15 << 31;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (uint32_t{127 - 15} << 23);
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | (magnitude << 13) | 0x7f800000u);  // inf, NaN
  if (magnitude >= 0x0400) return std::bit_cast<float>(sign | normal);
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(subnormal));
}

INTROSPECT_INLINE uint32_t load_u32(const uint8_t* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// Legacy formats: 32 values; value j < 16 is the low half of byte j, value j + 16 its high half.

constexpr int kBlock = 32;

INTROSPECT_VECTORISED void dequantise_q4_0(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 18, y += kBlock) {
    const float d = load_half(b);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * static_cast<float>((b[2 + j] & 15) - 8);
      y[j + 16] = d * static_cast<float>((b[2 + j] >> 4) - 8);
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q4_1(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 20, y += kBlock) {
    const float d = load_half(b), m = load_half(b + 2);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * static_cast<float>(b[4 + j] & 15) + m;
      y[j + 16] = d * static_cast<float>(b[4 + j] >> 4) + m;
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q5_0(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 22, y += kBlock) {
    const float d = load_half(b);
    const uint32_t fifth_bits = load_u32(b + 2);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * static_cast<float>(static_cast<int>((b[6 + j] & 15) | (fifth_bits >> j & 1) << 4) - 16);
      y[j + 16] =
          d * static_cast<float>(static_cast<int>((b[6 + j] >> 4) | (fifth_bits >> (j + 16) & 1) << 4) - 16);
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q5_1(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 24, y += kBlock) {
    const float d = load_half(b), m = load_half(b + 2);
    const uint32_t fifth_bits = load_u32(b + 4);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * static_cast<float>(static_cast<int>((b[8 + j] & 15) | (fifth_bits >> j & 1) << 4)) + m;
      y[j + 16] =
          d * static_cast<float>(static_cast<int>((b[8 + j] >> 4) | (fifth_bits >> (j + 16) & 1) << 4)) + m;
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q8_0(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 34, y += kBlock) {
    const float d = load_half(b);
    for (int j = 0; j < kBlock; ++j) y[j] = static_cast<float>(static_cast<int8_t>(b[2 + j])) * d;
  }
}

/// 4-bit floats, twice their value, and a scale that is a power of two, here half of it.
INTROSPECT_VECTORISED void dequantise_mxfp4(const uint8_t* b, int64_t n, float* __restrict y) {
  constexpr float kValues[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  for (; n > 0; --n, b += 17, y += kBlock) {
    const uint32_t exponent = b[0];
    const float d =
        std::bit_cast<float>(exponent < 2 ? uint32_t{0x00200000} << exponent : (exponent - 1) << 23);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * kValues[b[1 + j] & 15];
      y[j + 16] = d * kValues[b[1 + j] >> 4];
    }
  }
}

// K formats: 256 values in groups of 16 or 32 with scales of their own, which are quantised themselves.

constexpr int kSuperBlock = 256;

INTROSPECT_VECTORISED void dequantise_q2_k(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 84, y += kSuperBlock) {
    const uint8_t* scales = b;    // 16 groups: scale in the low half, offset in the high half
    const uint8_t* low = b + 16;  // two bits a value: byte 32 h + l holds values 128 h + 32 s + l, s = 0 to 3
    const float d = load_half(b + 80), dmin = load_half(b + 82);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(scales[group] & 15);
      const float offset = dmin * static_cast<float>(scales[group] >> 4);
      const uint8_t* q = low + group / 8 * 32 + group % 2 * 16;
      const int shift = group % 8 / 2 * 2;
      for (int l = 0; l < 16; ++l) y[16 * group + l] = scale * static_cast<float>(q[l] >> shift & 3) - offset;
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q3_k(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 110, y += kSuperBlock) {
    const uint8_t* high = b;  // third bits: bit k of byte l is value 32 k + l's; set means no offset of -4
    const uint8_t* low = b + 32;  // two bits a value, as in Q2_K
    const uint8_t* packed =
        b + 96;  // 16 scales of 6 bits: 4 low ones in bytes 0 to 7, 2 high ones in 8 to 11
    const float d = load_half(b + 108);
    for (int group = 0; group < 16; ++group) {
      const int scale_low = packed[group % 8] >> (group / 8 * 4) & 15;
      const int scale_high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
      const float scale = d * static_cast<float>((scale_low | scale_high << 4) - 32);
      const uint8_t* q = low + group / 8 * 32 + group % 2 * 16;
      const uint8_t* h = high + group % 2 * 16;
      const int shift = group % 8 / 2 * 2, bit = group / 2;
      for (int l = 0; l < 16; ++l) {
        y[16 * group + l] = scale * static_cast<float>((q[l] >> shift & 3) + (h[l] >> bit & 1) * 4 - 4);
      }
    }
  }
}

/// The 6-bit scale and offset of group 0 to 7 of a Q4_K or Q5_K block: groups 4 to 7 keep their two high bits in the top of
/// the bytes of groups 0 to 3.
INTROSPECT_INLINE std::array<int, 2> scale_and_offset(const uint8_t* packed, int group) {
  if (group < 4) return {packed[group] & 63, packed[group + 4] & 63};
  return {(packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4,
          (packed[group + 4] >> 4) | (packed[group] >> 6) << 4};
}

INTROSPECT_VECTORISED void dequantise_q4_k(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 144, y += kSuperBlock) {
    const float d = load_half(b), dmin = load_half(b + 2);
    const uint8_t* low = b + 16;  // byte 32 p + l holds values 64 p + l and 64 p + 32 + l
    for (int group = 0; group < 8; ++group) {
      const auto [scale_bits, offset_bits] = scale_and_offset(b + 4, group);
      const float scale = d * static_cast<float>(scale_bits), offset = dmin * static_cast<float>(offset_bits);
      const uint8_t* q = low + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int l = 0; l < 32; ++l)
        y[32 * group + l] = scale * static_cast<float>(q[l] >> shift & 15) - offset;
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q5_k(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 176, y += kSuperBlock) {
    const float d = load_half(b), dmin = load_half(b + 2);
    const uint8_t* high = b + 16;  // fifth bits: bit k of byte l is value 32 k + l's
    const uint8_t* low = b + 48;   // as in Q4_K
    for (int group = 0; group < 8; ++group) {
      const auto [scale_bits, offset_bits] = scale_and_offset(b + 4, group);
      const float scale = d * static_cast<float>(scale_bits), offset = dmin * static_cast<float>(offset_bits);
      const uint8_t* q = low + group / 2 * 32;
      const int shift = group % 2 * 4;
      for (int l = 0; l < 32; ++l) {
        y[32 * group + l] =
            scale * static_cast<float>((q[l] >> shift & 15) + (high[l] >> group & 1) * 16) - offset;
      }
    }
  }
}

INTROSPECT_VECTORISED void dequantise_q6_k(const uint8_t* b, int64_t n, float* __restrict y) {
  for (; n > 0; --n, b += 210, y += kSuperBlock) {
    const uint8_t* low = b;  // low halves: byte 64 h + i holds values 128 h + i and 128 h + 64 + i
    const uint8_t* high =
        b + 128;  // two bits a value: byte 32 h + l holds values 128 h + 32 s + l, s = 0 to 3
    const auto* scales = reinterpret_cast<const int8_t*>(b + 192);
    const float d = load_half(b + 208);
    for (int group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(scales[group]);
      const int half = group / 8, quarter = group % 8 / 2, first = group % 2 * 16;
      const uint8_t* q = low + 64 * half + quarter % 2 * 32 + first;
      const uint8_t* h = high + 32 * half + first;
      const int low_shift = quarter / 2 * 4, high_shift = quarter * 2;
      for (int l = 0; l < 16; ++l) {
        const int value = (q[l] >> low_shift & 15) | (h[l] >> high_shift & 3) << 4;
        y[16 * group + l] = scale * static_cast<float>(value - 32);
      }
    }
  }
}

INTROSPECT_VECTORISED void widen_f16(const uint8_t* b, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] = load_half(b + 2 * i);
}

INTROSPECT_VECTORISED void widen_bf16(const uint8_t* b, int64_t n, float* __restrict y) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t upper;
    std::memcpy(&upper, b + 2 * i, sizeof(upper));
    y[i] = std::bit_cast<float>(uint32_t{upper} << 16);
  }
}

void copy_f32(const uint8_t* b, int64_t n, float* __restrict y) {
  std::memcpy(y, b, static_cast<size_t>(n) * sizeof(float));
}

constexpr Quantisation kQuantisations[] = {
    {"Q4_0", {kBlock, 18}, dequantise_q4_0},       {"Q4_1", {kBlock, 20}, dequantise_q4_1},
    {"Q5_0", {kBlock, 22}, dequantise_q5_0},       {"Q5_1", {kBlock, 24}, dequantise_q5_1},
    {"MXFP4", {kBlock, 17}, dequantise_mxfp4},     {"Q8_0", {kBlock, 34}, dequantise_q8_0},
    {"Q2_K", {kSuperBlock, 84}, dequantise_q2_k},  {"Q3_K", {kSuperBlock, 110}, dequantise_q3_k},
    {"Q4_K", {kSuperBlock, 144}, dequantise_q4_k}, {"Q5_K", {kSuperBlock, 176}, dequantise_q5_k},
    {"Q6_K", {kSuperBlock, 210}, dequantise_q6_k}};

constexpr Quantisation kFloats[] = {
    {"F32", {1, 4}, copy_f32}, {"F16", {1, 2}, widen_f16}, {"BF16", {1, 2}, widen_bf16}};

}  // namespace

const Quantisation* find_quantisation(std::string_view name) {
  for (const auto& quantisation : kQuantisations) {
    if (quantisation.name == name) return &quantisation;
  }
  return nullptr;
}

const Quantisation* find_block_format(std::string_view name) {
  for (const auto& format : kFloats) {
    if (format.name == name) return &format;
  }
  return find_quantisation(name);
}

INTROSPECT_VECTORISED void round_to_bfloat16(const float* values, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
    out[i] = static_cast<uint16_t>(is_nan ? 0x7fc0 : rounded);
  }
}

INTROSPECT_VECTORISED void round_to_float16(const float* values, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const auto bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t sign = bits >> 16 & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    // Rebias the exponent and drop 13 bits; rounding up may carry into the exponent, up to infinity, as it must.
    const uint32_t normal = (magnitude - (uint32_t{127 - 15} << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
    // 0.5f has the spacing of float16's subnormals, so the addition rounds to them.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5f);
    uint32_t rounded = magnitude < 0x38800000 ? subnormal : normal;
    rounded = magnitude >= 0x47800000 ? 0x7c00 : rounded;
    rounded = magnitude > 0x7f800000 ? 0x7e00 : rounded;
    out[i] = static_cast<uint16_t>(sign | rounded);
  }
}

}  // namespace introspect
