#pragma once

#include <array>
#include <cstdint>

#include "ops/vector.h"

#if INTROSPECT_X86_KERNELS && defined(__linux__)
#define INTROSPECT_AMX_KERNELS 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define INTROSPECT_AMX_KERNELS 0
#endif

// AVX512-BF16 and AMX's tiles.
#define INTROSPECT_AMX __attribute__((target("arch=x86-64-v4,avx512bf16,amx-tile,amx-bf16")))

namespace introspect::ops {

#if !INTROSPECT_X86_KERNELS
inline bool has_avx512_bfloat16() {
  return false;
}
#endif

/// True if this processor has AMX's tiles of bfloat16 and the system lets this process use them: Linux keeps their 8 KiB
/// of registers for a thread only after the process has asked.
inline bool has_amx_bfloat16() {
#if INTROSPECT_AMX_KERNELS
  static const bool has = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    uint32_t a = 0, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    constexpr uint32_t kBfloat16 = 1u << 22, kTiles = 1u << 24;
    return has_avx512_bfloat16() && (d & kBfloat16) && (d & kTiles) &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

#if INTROSPECT_AMX_KERNELS

/// This thread's eight tiles as 16 rows of 64 bytes, until the end of the scope, which leaves the configuration as it
/// was found: oneDNN, which ATen uses, has its own. What the tiles hold is lost either way.
class WholeTiles {
 public:
  INTROSPECT_AMX WholeTiles() {
    Configuration whole;
    whole.palette = 1;
    for (size_t i = 0; i < 8; ++i) whole.row_bytes[i] = 64, whole.rows[i] = 16;
    // GCC 12's functions for these tell the compiler of 8 of the 64 bytes.
    __asm__ volatile("sttilecfg %0" : "=m"(before_));
    __asm__ volatile("ldtilecfg %0" ::"m"(whole));
  }
  INTROSPECT_AMX ~WholeTiles() { __asm__ volatile("ldtilecfg %0" ::"m"(before_)); }
  WholeTiles(const WholeTiles&) = delete;
  WholeTiles& operator=(const WholeTiles&) = delete;

 private:
  struct alignas(64) Configuration {
    uint8_t palette = 0, start_row = 0;
    std::array<uint8_t, 14> reserved{};
    std::array<uint16_t, 16> row_bytes{};
    std::array<uint8_t, 16> rows{};
  };
  Configuration before_;
};

#endif

}  // namespace introspect::ops
