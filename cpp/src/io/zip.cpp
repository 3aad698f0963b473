#include "io/zip.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>

#include "introspect/core/check.h"

#include "core/excerpt.h"

namespace introspect::io {
namespace {

// Signatures and sizes of the format's records: APPNOTE.TXT of PKWARE, sections 4.3.7 to 4.3.16.
constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50, kEnd64 = 0x06064b50,
                   kLocator64 = 0x07064b50;
constexpr size_t kLocalSize = 30, kCentralSize = 46, kEndSize = 22, kEnd64Size = 56, kLocatorSize = 20;
constexpr size_t kLongestComment = 0xffff, kMostEntries = size_t{1} << 20;
constexpr uint64_t kInExtra = 0xffffffff;  // the number stands in the extra field, in 64 bits
constexpr size_t kAlignment = 64;

/// Numbers of a file, little-endian, which never reads past its end.
class Bytes {
 public:
  Bytes(std::span<const std::byte> all, std::string who) : all_(all), who_(std::move(who)) {}

  size_t size() const { return all_.size(); }
  std::span<const std::byte> part(uint64_t offset, uint64_t size, const char* what) const {
    check<IoError>(offset <= all_.size() && size <= all_.size() - offset, who_, ": ", what,
                   " lies outside the file, at ", offset, " of ", all_.size(), " bytes");
    return all_.subspan(offset, size);
  }
  template <typename T>
  T number(uint64_t offset, const char* what) const {
    T out = 0;
    std::memcpy(&out, part(offset, sizeof(T), what).data(), sizeof(T));
    return out;
  }

 private:
  std::span<const std::byte> all_;
  std::string who_;
};

uint64_t find_end(const Bytes& bytes, const std::string& who, const std::string& writer) {
  check<IoError>(bytes.size() >= kEndSize, who, ": is no zip file, as ", writer, " writes");
  const size_t first = bytes.size() - kEndSize;
  const size_t last = first - std::min(first, kLongestComment);
  for (size_t at = first + 1; at-- > last;)
    if (bytes.number<uint32_t>(at, "the end record") == kEnd) return at;
  throw IoError(who + ": is no whole zip file, as " + writer + " writes: it has no directory at its end");
}

struct Directory {
  uint64_t offset, size, count;
};

Directory directory_of(const Bytes& bytes, const std::string& who, const std::string& writer) {
  const auto end = find_end(bytes, who, writer);
  Directory out{bytes.number<uint32_t>(end + 16, "the end record"),
                bytes.number<uint32_t>(end + 12, "the end record"),
                bytes.number<uint16_t>(end + 10, "the end record")};
  if (end >= kLocatorSize && bytes.number<uint32_t>(end - kLocatorSize, "the locator") == kLocator64) {
    const auto end64 = bytes.number<uint64_t>(end - kLocatorSize + 8, "the locator");
    bytes.part(end64, kEnd64Size, "the 64-bit end record");
    check<IoError>(bytes.number<uint32_t>(end64, "the 64-bit end record") == kEnd64, who,
                   ": its 64-bit end record is not where it should be");
    out = {bytes.number<uint64_t>(end64 + 48, ""), bytes.number<uint64_t>(end64 + 40, ""),
           bytes.number<uint64_t>(end64 + 32, "")};
  }
  bytes.part(out.offset, out.size, "the directory");
  check<IoError>(out.count <= kMostEntries && out.count * kCentralSize <= out.size, who,
                 ": its directory does not hold the ", out.count, " entries that it counts");
  return out;
}

/// The 64-bit numbers of an entry, of those that are only there where they are needed, in their order.
void widen(const Bytes& bytes, uint64_t extra, uint64_t extra_size, const std::vector<uint64_t*>& numbers,
           const std::string& who) {
  for (uint64_t at = extra; at + 4 <= extra + extra_size;) {
    const auto id = bytes.number<uint16_t>(at, "an extra field"),
               size = bytes.number<uint16_t>(at + 2, "an extra field");
    if (id == 1) {
      uint64_t place = at + 4;
      for (auto* number : numbers)
        if (*number == kInExtra && place + 8 <= at + 4 + size) {
          *number = bytes.number<uint64_t>(place, "an extra field");
          place += 8;
        }
      return;
    }
    at += uint64_t{4} + size;
  }
  check<IoError>(std::ranges::none_of(numbers, [](const auto* n) { return *n == kInExtra; }), who,
                 ": the size of an entry is missing");
}

uint32_t crc32(const void* bytes, size_t size) {
  static const auto kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t c = i;
      for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xedb88320U ^ (c >> 1) : c >> 1;
      table[i] = c;
    }
    return table;
  }();
  uint32_t crc = 0xffffffff;
  const auto* at = static_cast<const unsigned char*>(bytes);
  for (size_t i = 0; i < size; ++i) crc = kTable[(crc ^ at[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

void put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) out.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

}  // namespace

ZipArchive::ZipArchive(std::shared_ptr<const MappedFile> file, const std::string& writer)
    : file_(std::move(file)) {
  const auto who = path();
  const Bytes bytes(file_->bytes(), who);
  const auto directory = directory_of(bytes, who, writer);
  std::vector<std::pair<uint64_t, uint64_t>> used{{directory.offset, bytes.size()}};
  uint64_t at = directory.offset;
  for (uint64_t i = 0; i < directory.count; ++i) {
    bytes.part(at, kCentralSize, "the directory");
    check<IoError>(bytes.number<uint32_t>(at, "the directory") == kCentral, who, ": entry ", i,
                   " of its directory does not begin as one");
    const auto method = bytes.number<uint16_t>(at + 10, "");
    const auto flags = bytes.number<uint16_t>(at + 8, "");
    uint64_t packed = bytes.number<uint32_t>(at + 20, ""), size = bytes.number<uint32_t>(at + 24, "");
    const uint64_t name_size = bytes.number<uint16_t>(at + 28, ""),
                   extra_size = bytes.number<uint16_t>(at + 30, "");
    const uint64_t comment_size = bytes.number<uint16_t>(at + 32, "");
    uint64_t header = bytes.number<uint32_t>(at + 42, "");
    const auto name_bytes = bytes.part(at + kCentralSize, name_size, "the name of an entry");
    const std::string name(reinterpret_cast<const char*>(name_bytes.data()), name_bytes.size());
    bytes.part(at + kCentralSize + name_size, extra_size + comment_size, "the directory");
    widen(bytes, at + kCentralSize + name_size, extra_size, {&size, &packed, &header}, who);
    at += kCentralSize + name_size + extra_size + comment_size;
    check<IoError>(method == 0 && packed == size && (flags & 1) == 0, who, ": entry ", excerpt(name),
                   " is compressed or encrypted; ", writer, " stores entries as they are");
    bytes.part(header, kLocalSize, "an entry");
    check<IoError>(bytes.number<uint32_t>(header, "an entry") == kLocal, who, ": entry ", excerpt(name),
                   " does not begin as one");
    const uint64_t data = header + kLocalSize + bytes.number<uint16_t>(header + 26, "") +
                          bytes.number<uint16_t>(header + 28, "");
    const auto contents = bytes.part(data, size, "an entry");
    used.emplace_back(header, data + size);
    check<IoError>(entries_.emplace(name, contents).second, who, ": entry ", excerpt(name),
                   " is there twice");
  }
  std::ranges::sort(used);
  for (size_t i = 1; i < used.size(); ++i)
    check<IoError>(used[i - 1].second <= used[i].first, who, ": two of its entries overlap, at byte ",
                   used[i].first);
}

std::vector<std::string> ZipArchive::names() const {
  std::vector<std::string> out;
  for (const auto& [name, bytes] : entries_) out.push_back(name);
  return out;
}

std::span<const std::byte> ZipArchive::at(const std::string& name) const {
  const auto found = entries_.find(name);
  check<IoError>(found != entries_.end(), path(), ": entry ", excerpt(name), " is missing");
  return found->second;
}

void ZipWriter::write(const std::string& bytes) {
  file_.write(bytes.data(), bytes.size());
  position_ += bytes.size();
}

void ZipWriter::add(const std::string& name, const void* bytes, size_t size) {
  const uint64_t header = kLocalSize + name.size() + 4;
  const uint64_t padding = (kAlignment - (position_ + header) % kAlignment) % kAlignment;
  check<std::invalid_argument>(position_ + header + padding + size < kInExtra && entries_.size() < 0xffff,
                               "save_torch_zip: a file must have less than 4 GiB and 65,535 tensors; "
                               "save_safetensors writes larger ones");
  const Entry entry{name, crc32(bytes, size), static_cast<uint32_t>(size), static_cast<uint32_t>(position_)};
  std::string out;
  put(out, kLocal, 4);
  put(out, 0, 8);     // version, flags, method, time
  put(out, 0x21, 2);  // the first date there is: 1 January 1980
  put(out, entry.crc, 4);
  put(out, size, 4);
  put(out, size, 4);
  put(out, name.size(), 2);
  put(out, 4 + padding, 2);
  out += name;
  put(out, 0x4246, 2);  // an extra field of torch's, "FB", that fills up to the alignment
  put(out, padding, 2);
  out.append(padding, 'Z');
  write(out);
  file_.write(bytes, size);
  position_ += size;
  entries_.push_back(entry);
}

void ZipWriter::finish() {
  const auto begin = position_;
  for (const auto& entry : entries_) {
    std::string out;
    put(out, kCentral, 4);
    put(out, 0, 8);  // versions, flags, method
    put(out, 0, 2);
    put(out, 0x21, 2);
    put(out, entry.crc, 4);
    put(out, entry.size, 4);
    put(out, entry.size, 4);
    put(out, entry.name.size(), 2);
    put(out, 0, 8);  // extra field, comment, disk, internal attributes
    put(out, 0, 4);
    put(out, entry.offset, 4);
    write(out + entry.name);
  }
  std::string out;
  const auto size = position_ - begin;
  put(out, kEnd, 4);
  put(out, 0, 4);
  put(out, entries_.size(), 2);
  put(out, entries_.size(), 2);
  put(out, size, 4);
  put(out, begin, 4);
  put(out, 0, 2);
  write(out);
  file_.commit();
}

}  // namespace introspect::io
