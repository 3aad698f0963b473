#pragma once

#include <cstddef>
#include <filesystem>

namespace introspect::io {

/// A file that appears under its name whole or not at all: written beside it, flushed, then renamed.
class AtomicFile {
 public:
  /// Throws IoError if a file cannot be created in the folder of `path`.
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
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

}  // namespace introspect::io
