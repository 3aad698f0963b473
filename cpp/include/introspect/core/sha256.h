#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "introspect/export.h"

namespace introspect {

/// SHA-256 of bytes that come in pieces. Uses the CPU's SHA instructions where it has them.
///
/// Source: FIPS 180-4.
class INTROSPECT_EXPORT Sha256 {
 public:
  Sha256();

  /// Appends bytes to the message.
  Sha256& update(std::string_view bytes);
  Sha256& update(const void* bytes, size_t size);

  /// The digest of everything so far as 64 lowercase hexadecimal digits; more may be appended afterwards.
  std::string hex() const;

 private:
  std::array<uint32_t, 8> state_;
  std::array<uint8_t, 64> pending_{};  // the bytes after the last whole block
  uint64_t size_ = 0;                  // bytes so far
};

/// The SHA-256 of `bytes` as 64 lowercase hexadecimal digits.
INTROSPECT_EXPORT std::string sha256_hex(std::string_view bytes);

}  // namespace introspect
