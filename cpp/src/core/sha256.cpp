#include "introspect/core/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define INTROSPECT_SHA_NI 1
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace introspect {
namespace {

constexpr std::array<uint32_t, 8> kInitialState = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

alignas(16) constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t load_big_endian(const uint8_t* p) {
  return uint32_t{p[0]} << 24 | uint32_t{p[1]} << 16 | uint32_t{p[2]} << 8 | uint32_t{p[3]};
}

/// The compression function of FIPS 180-4, section 6.2.2, over consecutive blocks of 64 bytes.
void compress_portable(std::array<uint32_t, 8>& state, const uint8_t* bytes, size_t n_blocks) {
  for (; n_blocks > 0; --n_blocks, bytes += 64) {
    uint32_t w[64];
    for (int t = 0; t < 16; ++t) w[t] = load_big_endian(bytes + 4 * t);
    for (int t = 16; t < 64; ++t) {
      const uint32_t s0 = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
      const uint32_t s1 = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
      w[t] = w[t - 16] + s0 + w[t - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int t = 0; t < 64; ++t) {
      const uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRounds[t] + w[t];
      const uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const uint32_t mixed[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += mixed[i];
  }
}

#ifdef INTROSPECT_SHA_NI
bool cpu_has_sha() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}

/// The same with the SHA extensions, which keep the state as the two vectors ABEF and CDGH and do two rounds at once.
__attribute__((target("sha,sse4.1"))) void compress_sha_ni(std::array<uint32_t, 8>& state,
                                                           const uint8_t* bytes, size_t n_blocks) {
  auto [a, b, c, d, e, f, g, h] = state;
  __m128i abef = _mm_set_epi32(a, b, e, f);
  __m128i cdgh = _mm_set_epi32(c, d, g, h);
  const __m128i swap_bytes = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  for (; n_blocks > 0; --n_blocks, bytes += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];  // the sixteen words of the schedule that the next rounds need
    for (int i = 0; i < 4; ++i) {
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i), swap_bytes);
    }
#pragma GCC unroll 16
    for (int t = 0; t < 16; ++t) {
      const __m128i now = w[t % 4];
      const __m128i sum = _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(kRounds) + t));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
      const __m128i w7 = _mm_alignr_epi8(w[(t + 3) % 4], w[(t + 2) % 4], 4);  // w[t - 7] of the next four
      w[t % 4] =
          _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, w[(t + 1) % 4]), w7), w[(t + 3) % 4]);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  alignas(16) uint32_t lanes[8];
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes), abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(lanes) + 1, cdgh);
  state = {lanes[3], lanes[2], lanes[7], lanes[6], lanes[1], lanes[0], lanes[5], lanes[4]};
}
#endif

void compress(std::array<uint32_t, 8>& state, const uint8_t* bytes, size_t n_blocks) {
#ifdef INTROSPECT_SHA_NI
  static const bool has_sha = cpu_has_sha();
  if (has_sha) return compress_sha_ni(state, bytes, n_blocks);
#endif
  compress_portable(state, bytes, n_blocks);
}

}  // namespace

Sha256::Sha256() : state_(kInitialState) {}

Sha256& Sha256::update(const void* bytes, size_t size) {
  if (size == 0) return *this;
  const auto* next = static_cast<const uint8_t*>(bytes);
  const size_t held = size_ % 64;
  size_ += size;
  if (held > 0) {
    const size_t taken = std::min(size, 64 - held);
    std::memcpy(pending_.data() + held, next, taken);
    next += taken;
    size -= taken;
    if (held + taken < 64) return *this;
    compress(state_, pending_.data(), 1);
  }
  compress(state_, next, size / 64);
  std::memcpy(pending_.data(), next + size / 64 * 64, size % 64);
  return *this;
}

Sha256& Sha256::update(std::string_view bytes) {
  return update(bytes.data(), bytes.size());
}

std::string Sha256::hex() const {
  std::array<uint8_t, 128> tail{};
  const size_t held = size_ % 64;
  const size_t n_blocks = held < 56 ? 1 : 2;
  std::memcpy(tail.data(), pending_.data(), held);
  tail[held] = 0x80;
  for (int i = 0; i < 8; ++i) tail[64 * n_blocks - 1 - i] = static_cast<uint8_t>(size_ * 8 >> (8 * i));
  auto state = state_;
  compress(state, tail.data(), n_blocks);
  std::string digits(64, '0');
  for (size_t i = 0; i < 64; ++i) digits[i] = "0123456789abcdef"[state[i / 8] >> (28 - 4 * (i % 8)) & 15];
  return digits;
}

std::string sha256_hex(std::string_view bytes) {
  return Sha256().update(bytes).hex();
}

}  // namespace introspect
