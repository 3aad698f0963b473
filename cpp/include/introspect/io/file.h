#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "introspect/export.h"

namespace introspect::io {

/// The bytes of a file, mapped read-only. Nothing is read until it is touched.
///
/// The mapping lives as long as the last shared_ptr. Replace model files, do not rewrite them: check_unchanged finds
/// what was rewritten or cut before it is asked, but a file that is cut while its bytes are read ends the process with
/// SIGBUS when the lost pages are touched, as with every mapped file.
class INTROSPECT_EXPORT MappedFile {
 public:
  /// Throws IoError if `path` is not a regular file that can be read.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// Copies out.size() bytes from `offset` on, past the mapping: their pages take no memory, and a file that was cut is an
  /// IoError.
  void read(size_t offset, std::span<std::byte> out) const;

  /// Asks the system to read `size` bytes from `offset` on into its memory, and returns at once.
  void will_need(size_t offset, size_t size) const;

  /// Waits until they are there, where the system knows how, so that touching them costs nothing.
  void bring(size_t offset, size_t size) const;

  /// Takes whole pages of them out of this process's memory. The system keeps them as long as it has room, and bytes that
  /// are touched again are there again.
  void let_go(size_t offset, size_t size) const;

  /// Throws IoError if the file's size or time of modification is another than when it was opened.
  void check_unchanged() const;

 private:
  MappedFile() = default;

  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int descriptor_ = -1;
  int64_t modified_ = 0;  // nanoseconds
};

/// The whole of a file. Throws IoError if it is not a regular file that can be read, or is larger than `max_bytes`.
INTROSPECT_EXPORT std::string read_text(const std::filesystem::path& path,
                                        size_t max_bytes = size_t{1} << 30);

/// Writes `bytes` beside `path`, flushes them to the disk and renames the result over `path`: after any failure, a full
/// disk included, `path` is what it was. A file that was there keeps its permissions; of a symbolic link, the file that it
/// leads to is replaced and the link stays. Throws IoError.
INTROSPECT_EXPORT void write_atomically(const std::filesystem::path& path, std::string_view bytes);

}  // namespace introspect::io
