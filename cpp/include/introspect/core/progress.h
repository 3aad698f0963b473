#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace introspect {

/// Called between the steps of long work with what is done, out of how much, in the work's own unit.
///
/// It runs on the calling thread, without locks held. An exception thrown from it stops the work and reaches the
/// caller; whatever was finished before stays finished. This is how Ctrl-C works from Python.
using Progress = std::function<void(const std::string& what, int64_t done, int64_t total)>;

/// Calls `progress` if there is one.
inline void report(const Progress& progress, const std::string& what, int64_t done, int64_t total) {
  if (progress) progress(what, done, total);
}

}  // namespace introspect
