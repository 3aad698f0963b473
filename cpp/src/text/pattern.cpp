#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pattern.h"

#include <pcre2.h>

#include <algorithm>

#include "introspect/core/check.h"

namespace introspect::text {
namespace {

constexpr std::string_view kWhiteSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
// Letters and numbers of Unicode 15.0 to 16.0, which PCRE2 before 10.45 does not know.
constexpr std::string_view kNewLetters =
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}\\x{10d4a}-\\x{10d65}"
    "\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}\\x{11380}-\\x{11389}\\x{1138b}"
    "\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}\\x{11bc0}-\\x{11be0}\\x{11f02}"
    "\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}"
    "\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}"
    "\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}"
    "\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
constexpr std::string_view kNewNumbers =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}";

/// The pattern as PCRE2 should read it.
std::string for_pcre2(const std::string& source, const std::string& who) {
  const auto unsupported = [&](const char* what) {
    throw ConfigError(concat(who, " is not supported: it has ", what));
  };
  std::string out;
  bool in_class = false;
  const auto put_class = [&](std::string_view escape, std::string_view ranges) {
    if (!in_class) out += '[';
    out.append(escape).append(ranges);
    if (!in_class) out += ']';
  };
  for (size_t i = 0; i < source.size(); ++i) {
    const std::string_view rest = std::string_view(source).substr(i);
    if (rest.starts_with("\\p{L}")) {
      put_class("\\p{L}", kNewLetters), i += 4;
    } else if (rest.starts_with("\\p{N}")) {
      put_class("\\p{N}", kNewNumbers), i += 4;
    } else if (rest.starts_with("\\s")) {
      put_class("", kWhiteSpace), i += 1;
    } else if (rest.starts_with("\\S") && !in_class) {
      out.append("[^").append(kWhiteSpace).append("]"), i += 1;
    } else if (rest[0] == '\\') {
      if (rest.size() > 1 && std::string_view("hHRXSKkgQEN").find(rest[1]) != std::string_view::npos)
        unsupported("an escape that regular-expression engines read differently");
      out += rest.substr(0, 2), i += 1;
    } else if (in_class) {
      if (rest[0] == '[' || rest.starts_with("&&")) unsupported("a nested character class");
      in_class = rest[0] != ']';
      out += rest[0];
    } else if (rest[0] == '[') {
      in_class = true;
      const size_t opening = rest.starts_with("[^") ? 2 : 1;
      out += rest.substr(0, opening), i += opening - 1;
      if (i + 1 < source.size() && source[i + 1] == ']') unsupported("an empty character class");
    } else {
      if (rest.starts_with("(?") &&
          rest.substr(2, rest.find_first_not_of("imsx-", 2) - 2).find('m') != std::string::npos)
        unsupported("the flag m");
      if (rest.starts_with("(*")) unsupported("a verb");
      out += rest[0];
    }
  }
  return out;
}

std::string message_of(int error) {
  PCRE2_UCHAR text[256];
  return pcre2_get_error_message(error, text, sizeof text) > 0 ? reinterpret_cast<const char*>(text)
                                                               : "unknown error";
}

template <auto release>
struct Releaser {
  template <typename T>
  void operator()(T* object) const {
    release(object);
  }
};
using MatchData = std::unique_ptr<pcre2_match_data, Releaser<pcre2_match_data_free>>;
using MatchContext = std::unique_ptr<pcre2_match_context, Releaser<pcre2_match_context_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Releaser<pcre2_compile_context_free>>;

constexpr size_t kMaxPatternBytes = size_t{64} << 10;  // real ones have a few hundred
constexpr uint32_t kMaxDepth = 20'000;  // of recursion, which costs its square; real patterns have none
constexpr uint32_t kMaxHeapKib = uint32_t{64} << 10;  // of one match; real patterns need none

std::string exceeded(int status) {
  switch (status) {
    case PCRE2_ERROR_MATCHLIMIT:
      return "it exceeds the match limit: it backtracks without end on this text";
    case PCRE2_ERROR_HEAPLIMIT:
      return concat("it exceeds the memory limit of ", kMaxHeapKib / 1024, " MiB on this text");
    case PCRE2_ERROR_DEPTHLIMIT:
      return "it exceeds the depth limit on this text";
    default:
      return message_of(status);
  }
}

/// The first bytes of a pattern, whole characters.
std::string shortened(const std::string& source) {
  constexpr size_t kShown = 120;
  if (source.size() <= kShown) return source;
  size_t end = kShown;
  while ((static_cast<unsigned char>(source[end]) & 0xC0) == 0x80) --end;
  return source.substr(0, end) + "...";
}

}  // namespace

Pattern::Pattern(const std::string& source, std::string file)
    : source_(source), who_(concat(file, ": the split pattern ", shortened(source))) {
  check<ConfigError>(source.size() <= kMaxPatternBytes, who_, " must have at most ", kMaxPatternBytes,
                     " bytes, got ", source.size());
  const std::string converted = for_pcre2(source, who_);
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) throw std::bad_alloc();
  int error = 0;
  PCRE2_SIZE offset = 0;
  // As in Oniguruma's Ruby syntax: ^ and $ stand at every line.
  auto* code = pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(converted.data()), converted.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_USE_OFFSET_LIMIT, &error,
      &offset, context.get());
  check<ConfigError>(code != nullptr, who_, " does not compile: ", message_of(error));
  code_ = std::shared_ptr<const void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where there is no JIT the interpreter runs
}

Pattern Pattern::literal(const std::string& text) {
  check<ConfigError>(!text.empty(), "tokenizer: a split pattern must not be empty");
  Pattern pattern;
  pattern.source_ = text;
  return pattern;
}

std::vector<Pattern::Span> Pattern::matches(std::string_view text, TextBudget& budget) const {
  std::vector<Span> found;
  if (!code_) {
    for (size_t at = 0; (at = text.find(source_, at)) != std::string_view::npos; at += source_.size())
      found.emplace_back(at, at + source_.size());
    return found;
  }
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const MatchData data(pcre2_match_data_create(1, nullptr));  // the whole match only
  const MatchContext context(pcre2_match_context_create(nullptr));
  if (!data || !context) throw std::bad_alloc();
  // Enough for one walk back over the whole text, far too little for an exponential one.
  constexpr size_t kMaxLimit = 2'000'000'000;
  pcre2_set_match_limit(context.get(),
                        static_cast<uint32_t>(std::min(kMaxLimit, 1'000'000 + 16 * text.size())));
  pcre2_set_heap_limit(context.get(), kMaxHeapKib);
  pcre2_set_depth_limit(context.get(), kMaxDepth);

  // One call tries no more than `reach` places, and the budget is looked at after `interval` calls: both small until
  // the pattern has shown that it is quick.
  constexpr size_t kLeastReach = 16, kMostReach = size_t{64} << 10;
  constexpr int kMostCalls = 64;
  size_t reach = 64;
  int interval = 1, calls_left = interval;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto to_next_character = [&](size_t& at) {
    do ++at;
    while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  };
  for (size_t at = 0; at < text.size();) {
    size_t limit = at + reach;
    pcre2_set_offset_limit(context.get(), limit);
    int status = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, data.get(), context.get());
    if (status == PCRE2_ERROR_JIT_STACKLIMIT) {
      limit = at;  // one place at a time: the interpreter may take long for each
      pcre2_set_offset_limit(context.get(), limit);
      status = pcre2_match(code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data.get(),
                           context.get());
    }
    check<ConfigError>(status >= 0 || status == PCRE2_ERROR_NOMATCH, who_, " fails: ", exceeded(status));
    if (--calls_left == 0 || status == PCRE2_ERROR_NOMATCH) {
      const bool quick = budget.look(who_);
      interval = quick ? std::min(2 * interval, kMostCalls) : 1;
      reach = quick ? std::min(2 * reach, kMostReach) : std::max(reach / 4, kLeastReach);
      calls_left = interval;
    }
    if (status == PCRE2_ERROR_NOMATCH) {
      at = limit;
      to_next_character(at);
      continue;
    }
    const auto* ends = pcre2_get_ovector_pointer(data.get());
    if (ends[1] > ends[0]) found.emplace_back(ends[0], ends[1]);
    at = ends[1];
    if (ends[1] <= ends[0]) to_next_character(at);  // empty: go on after the next character
  }
  return found;
}

}  // namespace introspect::text
