#include "experiments/write_ahead_log.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "introspect/core/check.h"

namespace introspect::experiments {
namespace {

constexpr size_t kHeader = 32, kFrameHeader = 24;

uint32_t big_endian(const unsigned char* at) {
  return uint32_t{at[0]} << 24 | uint32_t{at[1]} << 16 | uint32_t{at[2]} << 8 | uint32_t{at[3]};
}

uint32_t little_endian(const unsigned char* at) {
  return uint32_t{at[3]} << 24 | uint32_t{at[2]} << 16 | uint32_t{at[1]} << 8 | uint32_t{at[0]};
}

/// The log's running checksum.
struct Checksum {
  bool is_big_endian = false;
  uint32_t first = 0, second = 0;

  void add(const unsigned char* bytes, size_t n) {
    const auto word = is_big_endian ? big_endian : little_endian;
    for (size_t i = 0; i + 8 <= n; i += 8) {
      first += word(bytes + i) + second;
      second += word(bytes + i + 4) + first;
    }
  }
  bool is(const unsigned char* bytes) const {
    return big_endian(bytes) == first && big_endian(bytes + 4) == second;
  }
};

/// The first frame that is not whole, if that is damage; 0: the header is.
std::optional<std::pair<int64_t, int64_t>> find_damage(const std::filesystem::path& log) {
  std::ifstream file(log, std::ios::binary);
  std::array<unsigned char, kHeader> header{};
  const auto read = [&](unsigned char* to, size_t n) {
    file.read(reinterpret_cast<char*>(to), static_cast<std::streamsize>(n));
    return file.gcount() == static_cast<std::streamsize>(n);
  };
  if (!file || !read(header.data(), kHeader))
    return std::nullopt;  // none, or nothing was ever committed to it
  const uint32_t magic = big_endian(header.data()), page = big_endian(header.data() + 8);
  Checksum sum{(magic & 1) != 0};
  sum.add(header.data(), kHeader - 8);
  const bool is_header = (magic & ~uint32_t{1}) == 0x377f0682 && sum.is(header.data() + kHeader - 8) &&
                         page >= 512 && page <= 65536;
  std::vector<unsigned char> frame(kFrameHeader + (is_header ? page : 0));
  if (!is_header) {
    const bool has_frames = read(frame.data(), kFrameHeader);
    return has_frames ? std::optional(std::pair<int64_t, int64_t>(0, 0)) : std::nullopt;
  }
  // Each frame bears the log's salts, of which the first grows by one when a log is begun anew over an old one.
  const auto generation = [&](const unsigned char* salts) {
    return big_endian(header.data() + 16) - big_endian(salts);
  };
  int64_t number = 0, first_bad = 0, last_of_log = 0;
  bool is_torn = false, has_commit = false;
  while (read(frame.data(), frame.size())) {
    ++number;
    const auto* const salts = frame.data() + 8;
    const bool is_of_log = std::equal(header.data() + 16, header.data() + 24, salts);
    if (is_of_log) last_of_log = number;
    if (first_bad > 0) continue;
    auto next = sum;
    next.add(frame.data(), 8);
    next.add(frame.data() + kFrameHeader, page);
    if (is_of_log && next.is(frame.data() + 16)) {
      sum = next;
      has_commit = has_commit || big_endian(frame.data() + 4) != 0;
      continue;
    }
    first_bad = number;
    // A writer that was killed leaves one frame without its page, before what an older log left.
    const bool is_older = generation(salts) > 0 && generation(salts) < (1U << 20);
    is_torn = is_older || (is_of_log && has_commit);
  }
  if (first_bad == 0 || (is_torn && last_of_log <= first_bad)) return std::nullopt;
  return std::pair(first_bad, number);
}

}  // namespace

std::filesystem::path log_of(const std::filesystem::path& database) {
  auto out = database;
  out += "-wal";
  return out;
}

std::string damage_of_log(const std::filesystem::path& log) {
  // While another process writes, a log may look damaged for a moment.
  auto found = find_damage(log);
  for (int again = 0; again < 3 && found; ++again) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const auto now = find_damage(log);
    if (now != found) found = std::nullopt;
  }
  if (!found) return "";
  const auto& [frame, n_frames] = *found;
  if (frame == 0)
    return concat(log.string(), ": the write-ahead log's header is damaged, so nothing of it can be read");
  return concat(log.string(), ": the write-ahead log is damaged from frame ", frame, " of ", n_frames,
                " on, so what was written last is lost");
}

}  // namespace introspect::experiments
