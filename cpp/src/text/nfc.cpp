#include "text/nfc.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text/utf8.h"

namespace introspect::text {
namespace {

struct Decomposition {
  char32_t whole, first, second;
  bool recomposes;
};
struct CombiningRange {
  char32_t first, last;
  uint8_t value;
};
#include "text/nfc_tables.inc"

// Hangul syllables, by arithmetic: The Unicode Standard, section 3.12.
constexpr char32_t kS = 0xAC00, kL = 0x1100, kV = 0x1161, kT = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28, kNCount = kVCount * kTCount,
                   kSCount = kLCount * kNCount;

struct Tables {
  std::unordered_map<char32_t, const Decomposition*> decomposition;
  std::unordered_map<uint64_t, char32_t> composition;
  std::unordered_map<char32_t, uint8_t> combining_class;
  std::unordered_set<char32_t> second_parts;

  Tables() {
    for (const auto& entry : kDecompositions) {
      decomposition.emplace(entry.whole, &entry);
      if (!entry.recomposes) continue;
      composition.emplace(uint64_t{entry.first} << 32 | entry.second, entry.whole);
      second_parts.insert(entry.second);
    }
    for (const auto& range : kCombiningRanges)
      for (char32_t c = range.first; c <= range.last; ++c) combining_class.emplace(c, range.value);
  }

  uint8_t class_of(char32_t c) const {
    if (c < 0x300) return 0;
    const auto found = combining_class.find(c);
    return found == combining_class.end() ? 0 : found->second;
  }

  /// Whether a text of such characters only is its own NFC: no marks, nothing that decomposes or joins to the left.
  bool is_inert(char32_t c) const {
    if (c < 0x300) return true;
    if (c >= kV && c < kV + kVCount) return false;
    if (c > kT && c < kT + kTCount) return false;
    if (second_parts.contains(c) || combining_class.contains(c)) return false;
    const auto found = decomposition.find(c);
    return found == decomposition.end() || found->second->recomposes;
  }

  void decompose(char32_t c, std::u32string& out) const {
    if (c >= kS && c < kS + kSCount) {
      const char32_t s = c - kS;
      out += {kL + s / kNCount, kV + s % kNCount / kTCount};
      if (s % kTCount) out += kT + s % kTCount;
      return;
    }
    const auto found = decomposition.find(c);
    if (found == decomposition.end()) {
      out += c;
      return;
    }
    decompose(found->second->first, out);
    if (found->second->second) decompose(found->second->second, out);
  }

  /// 0 if the two do not compose.
  char32_t compose(char32_t a, char32_t b) const {
    if (a >= kL && a < kL + kLCount && b >= kV && b < kV + kVCount)
      return kS + ((a - kL) * kVCount + (b - kV)) * kTCount;
    if (a >= kS && a < kS + kSCount && (a - kS) % kTCount == 0 && b > kT && b < kT + kTCount)
      return a + (b - kT);
    const auto found = composition.find(uint64_t{a} << 32 | b);
    return found == composition.end() ? 0 : found->second;
  }
};

void put_marks_in_order(std::u32string& text, const Tables& tables) {
  for (auto from = text.begin(); from != text.end();) {
    if (tables.class_of(*from) == 0) {
      ++from;
      continue;
    }
    const auto to = std::find_if(from, text.end(), [&](char32_t c) { return tables.class_of(c) == 0; });
    std::stable_sort(from, to,
                     [&](char32_t a, char32_t b) { return tables.class_of(a) < tables.class_of(b); });
    from = to;
  }
}

/// Each mark joins the last starter unless an equal or higher class stands between them.
std::u32string composed(const std::u32string& text, const Tables& tables) {
  constexpr size_t kNone = -1;
  std::u32string out;
  size_t starter = kNone;
  int last_class = -1;  // of what stands after the starter; -1: nothing does
  for (const char32_t c : text) {
    const int own_class = tables.class_of(c);
    if (starter != kNone && last_class < own_class) {
      if (const char32_t joined = tables.compose(out[starter], c)) {
        out[starter] = joined;
        continue;
      }
    }
    out += c;
    if (own_class == 0) {
      starter = out.size() - 1;
      last_class = -1;
    } else {
      last_class = own_class;
    }
  }
  return out;
}

}  // namespace

std::string nfc(std::string_view text) {
  static const Tables tables;
  bool inert = true;
  for (size_t i = 0; i < text.size() && inert;) {
    const auto step = utf8_step(text.substr(i));
    inert = tables.is_inert(step.code_point);
    i += step.size;
  }
  if (inert) return std::string(text);

  std::u32string decomposed;
  for (size_t i = 0; i < text.size();) {
    const auto step = utf8_step(text.substr(i));
    tables.decompose(step.code_point, decomposed);
    i += step.size;
  }
  put_marks_in_order(decomposed, tables);
  std::string out;
  for (const char32_t c : composed(decomposed, tables)) append_utf8(out, c);
  return out;
}

}  // namespace introspect::text
