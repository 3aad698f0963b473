#pragma once

#include <cstddef>
#include <filesystem>

namespace introspect::io {

/// A file that appears under its name whole or not at all: written beside it, flushed, then renamed.
///
/// A file that was there keeps its permissions and, where the process may give it away, its owner. Through a symbolic
/// link the file that it leads to is replaced and the link stays. The temporary file has a random name of its own, which
/// is never one that exists, and is locked while it is written, so that what a killed process left behind is told apart
/// and removed by the next that writes under the same name.
class AtomicFile {
 public:
  /// Throws IoError if a file cannot be created in the folder of `path`, or if `path` is a folder or a device.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();  // without commit, removes what was written
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Throws IoError, on a full disk for example.
  void write(const void* bytes, size_t size);
  void write_zeros(size_t size);

  /// Flushes to the disk and renames over `path`. Throws IoError.
  void commit();

 private:
  void take_over_permissions();

  std::filesystem::path path_;    // as given, for messages
  std::filesystem::path target_;  // where links lead
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace introspect::io
