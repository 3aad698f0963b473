#pragma once

#include <cstdint>
#include <optional>

namespace introspect {

/// Bytes of memory that the host has for programs now; none where it does not tell.
std::optional<int64_t> free_memory();

}  // namespace introspect
