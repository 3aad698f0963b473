#include "introspect/hooks/text_filter.h"

#include <algorithm>

#include "core/excerpt.h"
#include "hooks/selection.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

bool contains(const std::vector<int64_t>& ascending, int64_t token) {
  return std::binary_search(ascending.begin(), ascending.end(), token);
}

bool reads_tokens(const TextFilter& filter) {
  return !filter.tokens.empty() || !filter.not_tokens.empty() || !filter.after.empty();
}

/// One row of a text.
class Row {
 public:
  Row(const Text* text, int64_t row, bool with_tokens) {
    if (text == nullptr) return;
    if (text->real_BS.defined()) real_ = text->real_BS[row].contiguous();
    if (with_tokens) tokens_ = text->tokens_BS[row].contiguous();
    first_token_ = text->first_token;
  }

  bool is_padded() const { return real_.defined(); }
  bool is_real(int64_t p) const { return !real_.defined() || real_.const_data_ptr<bool>()[p]; }
  int64_t token(int64_t p) const { return tokens_.const_data_ptr<int64_t>()[p - first_token_]; }

 private:
  torch::Tensor real_, tokens_;
  int64_t first_token_ = 0;
};

/// The last real position of the prompt. Of one that goes on after the `end` of this pass nothing is known there: it is
/// taken to end with a token.
int64_t last_of_prompt(const Row& row, int64_t n_prompt, int64_t end) {
  if (n_prompt > end) return n_prompt - 1;
  int64_t p = n_prompt - 1;
  while (p >= 0 && !row.is_real(p)) --p;
  return p;
}

std::vector<int64_t> positions_in_row(const Intervention& i, const Text* text, int64_t r, int64_t offset,
                                      int64_t T) {
  const auto& filter = i.text;
  const Row row(text, r, reads_tokens(filter));
  const int64_t n_prompt = text && text->n_prompt ? *text->n_prompt : 0;
  const int64_t last_prompted =
      filter.phase == Phase::kGeneration ? last_of_prompt(row, n_prompt, offset + T) : -1;
  const auto in_phase = [&](int64_t p) {
    if (filter.phase == Phase::kPrompt) return p < n_prompt;
    return filter.phase == Phase::kAll || p >= n_prompt || p == last_prompted;
  };
  const auto named = [&](int64_t number) {
    if (i.positions.empty()) return number >= i.first_position && number < i.last_position;
    return std::find(i.positions.begin(), i.positions.end(), number) != i.positions.end();
  };
  const auto passes = [&](int64_t p) {
    return (filter.tokens.empty() || contains(filter.tokens, row.token(p))) &&
           (filter.not_tokens.empty() || !contains(filter.not_tokens, row.token(p)));
  };
  const bool skips = filter.skip_padding && row.is_padded();
  bool open = filter.after.empty();
  // What comes before the pass matters only for what is counted from the start of the row.
  const int64_t start = skips || !open ? 0 : offset;
  std::vector<int64_t> out;
  int64_t number = start;
  for (int64_t p = start; p < offset + T; ++p) {
    if (skips && !row.is_real(p)) continue;
    if (p >= offset && open && named(number) && in_phase(p) && passes(p)) out.push_back(p - offset);
    open = open || (row.is_real(p) && contains(filter.after, row.token(p)));
    ++number;
  }
  return out;
}

}  // namespace

std::string_view phase_name(Phase phase) {
  return phase == Phase::kAll ? "all" : phase == Phase::kPrompt ? "prompt" : "generation";
}

Phase parse_phase(std::string_view name) {
  for (const auto phase : {Phase::kAll, Phase::kPrompt, Phase::kGeneration})
    if (name == phase_name(phase)) return phase;
  throw std::invalid_argument(
      concat("intervention: the phase must be 'all', 'prompt' or 'generation', got ", excerpt(name)));
}

void check_text(const TextFilter& filter, const Text* text, int64_t offset) {
  check<HookError>(
      filter.phase == Phase::kAll || (text && text->n_prompt), "intervention: it is for the ",
      phase_name(filter.phase),
      ", and where the prompt ends is not known to a pass with a cache, or of a token tree, unless it is "
      "told (n_prompt)");
  check<HookError>(
      !reads_tokens(filter) || (text && text->tokens_BS.defined()),
      "intervention: it is for the places of certain tokens, and this pass, of residuals or of a token "
      "tree, does not know the tokens");
  check<HookError>(filter.after.empty() || offset == 0 || text->first_token == 0,
                   "intervention: it is for what comes after a token, and the ", offset,
                   " tokens in the cache are not known unless the pass is told (history)");
}

bool lets_all_through(const TextFilter& filter, const Text* text) {
  if (filter.empty()) return true;
  TextFilter only;
  only.skip_padding = true;
  return filter == only && (text == nullptr || !text->real_BS.defined());
}

std::vector<std::vector<int64_t>> filtered_positions(const Intervention& i, const std::vector<int64_t>& rows,
                                                     const Text* text, int64_t offset, int64_t T) {
  check_text(i.text, text, offset);
  std::vector<std::vector<int64_t>> out;
  out.reserve(rows.size());
  for (const int64_t row : rows) out.push_back(positions_in_row(i, text, row, offset, T));
  return out;
}

}  // namespace introspect::hooks
