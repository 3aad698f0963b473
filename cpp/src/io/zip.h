#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "introspect/io/file.h"

#include "io/atomic_file.h"

namespace introspect::io {

/// The entries of a zip archive that is stored uncompressed, as torch.save and numpy.savez write it, by name.
///
/// Every offset and length is checked, no two entries share a byte. Checksums are not: torch can be told not to write them.
class ZipArchive {
 public:
  /// `writer` is what writes such files, for messages. Throws IoError for a file that is not such an archive.
  explicit ZipArchive(std::shared_ptr<const MappedFile> file, const std::string& writer = "torch.save");

  std::vector<std::string> names() const;
  bool has(const std::string& name) const { return entries_.contains(name); }
  /// Throws IoError for a name that is not there.
  std::span<const std::byte> at(const std::string& name) const;
  const std::string path() const { return file_->path().string(); }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, std::span<const std::byte>> entries_;
};

/// An uncompressed archive in the making, each entry at a multiple of 64 bytes, as torch wants them.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : file_(path) {}

  /// Throws std::invalid_argument if the archive reaches 4 GiB, and IoError.
  void add(const std::string& name, const void* bytes, size_t size);
  void finish();

 private:
  struct Entry {
    std::string name;
    uint32_t crc, size, offset;
  };
  void write(const std::string& bytes);

  AtomicFile file_;
  uint64_t position_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace introspect::io
