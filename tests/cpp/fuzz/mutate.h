#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace introspect::testing {

/// Damages bytes in the ways in which files are damaged and attacked: bits, bytes, integers of every width, pieces cut
/// out, doubled or taken from another file, numbers of JSON, brackets without end.
class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  /// One damage to one of `seeds`, or up to eight: with one alone the readers get farthest.
  std::string operator()(const std::vector<std::string>& seeds) {
    std::string bytes = pick(seeds);
    const int64_t n = below(2) == 0 ? 1 : below(8) + 1;
    for (int64_t i = 0; i < n; ++i) damage(bytes, pick(seeds));
    return bytes;
  }

  int64_t below(int64_t n) { return n <= 0 ? 0 : static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }

 private:
  template <typename T>
  const T& pick(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }

  size_t place(const std::string& bytes) {
    // Headers decide: half of all damages are among the first bytes.
    const auto size = static_cast<int64_t>(bytes.size());
    return static_cast<size_t>(below(below(2) == 0 ? std::min<int64_t>(size, 256) : size));
  }

  void damage(std::string& bytes, const std::string& other) {
    if (bytes.empty()) bytes = other;
    if (bytes.empty()) return;
    if (bytes.front() == '{' && below(2) == 0) return write_json(bytes);
    switch (below(8)) {
      case 0:
        bytes[place(bytes)] ^= static_cast<char>(1 << below(8));
        break;
      case 1:
        bytes[place(bytes)] = static_cast<char>(below(256));
        break;
      case 2:
        write_integer(bytes);
        break;
      case 3:
        bytes.resize(place(bytes));
        break;
      case 4: {
        const size_t first = place(bytes);
        bytes.erase(first, static_cast<size_t>(below(64)) + 1);
        break;
      }
      case 5: {
        const size_t first = place(bytes);
        bytes.insert(first, bytes.substr(place(bytes), static_cast<size_t>(below(128)) + 1));
        break;
      }
      case 6: {
        const size_t first = other.empty() ? 0 : place(other);
        bytes.replace(place(bytes), static_cast<size_t>(below(64)),
                      other.substr(first, static_cast<size_t>(below(64))));
        break;
      }
      default:
        write_json(bytes);
    }
  }

  void write_integer(std::string& bytes) {
    static const std::vector<uint64_t> values = {0,
                                                 1,
                                                 2,
                                                 127,
                                                 128,
                                                 255,
                                                 256,
                                                 65535,
                                                 1ull << 20,
                                                 (1ull << 31) - 1,
                                                 1ull << 31,
                                                 (1ull << 32) - 1,
                                                 1ull << 40,
                                                 (1ull << 62),
                                                 (1ull << 63) - 1,
                                                 1ull << 63,
                                                 ~0ull,
                                                 ~0ull - 7};
    uint64_t value = pick(values) + static_cast<uint64_t>(below(3)) - 1;
    const size_t width = size_t{1} << below(4);
    const size_t first = place(bytes);
    for (size_t i = 0; i < width && first + i < bytes.size(); ++i, value >>= 8)
      bytes[first + i] = static_cast<char>(value & 0xff);
  }

  void write_json(std::string& bytes) {
    static const std::vector<std::string> values = {"null",
                                                    "true",
                                                    "-1",
                                                    "0",
                                                    "1e400",
                                                    "2.5",
                                                    "18446744073709551616",
                                                    "\"\"",
                                                    "[]",
                                                    "{}",
                                                    "NaN",
                                                    "1e-320",
                                                    "\"\\ud800\"",
                                                    "[[[[[[[[",
                                                    "{\"a\":",
                                                    "\"",
                                                    ",",
                                                    "9223372036854775807",
                                                    "-9223372036854775808"};
    // In the place of a number or of a quoted text, where there is one.
    const size_t from = place(bytes);
    const size_t first = bytes.find_first_of("0123456789\"tfn", from);
    if (first == std::string::npos) return;
    size_t last = first + 1;
    if (bytes[first] == '"') {
      last = bytes.find('"', last);
      last = last == std::string::npos ? first + 1 : last + 1;
    } else {
      while (last < bytes.size() &&
             (std::isalnum(static_cast<unsigned char>(bytes[last])) || bytes[last] == '.'))
        ++last;
    }
    bytes.replace(first, last - first, pick(values));
  }

  std::mt19937_64 random_;
};

}  // namespace introspect::testing
