#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "introspect/export.h"

namespace introspect {

/// Bytes of memory that this process can still have: what Linux calls available, and no more than there is room for in
/// any control group around the process (of a container, of a job that SLURM or systemd started). None where nothing
/// is told.
///
/// A group's room is its limit less what is used; cached pages of files that were not used lately are no use, since
/// they make way. A limit that is not there, cannot be read or makes no sense is none.
///
/// root: where /proc and the groups' folders are found, for tests.
/// Source: the kernel's admin-guide, cgroup-v2 (memory.max, memory.high, memory.current, memory.stat) and
/// cgroup-v1/memory (memory.limit_in_bytes, memory.usage_in_bytes, memory.stat); proc(5) for /proc/self.
INTROSPECT_EXPORT std::optional<int64_t> free_memory(const std::filesystem::path& root = "/");

}  // namespace introspect
