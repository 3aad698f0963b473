#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::hooks {

/// The text that a pass is part of. Positions are those of the KV cache and then of the pass, padding included.
struct Text {
  torch::Tensor tokens_BS;  // int64 on the CPU, from first_token on; undefined: not known
  int64_t first_token =
      0;  // the position of the first of them: that of the pass's first if the cache's are not known
  torch::Tensor real_BS;            // bool on the CPU, false for padding; undefined: there is no padding
  std::optional<int64_t> n_prompt;  // positions before this one are the prompt; no value: not known
};

/// A part of a text that is being continued.
enum class Phase : uint8_t {
  kAll,
  kPrompt,      // every position of the prompt
  kGeneration,  // every position that a new token is predicted from: the prompt's last one, then the new tokens
};

/// Restricts an intervention to some of its positions by the text that stands there, row by row.
///
/// What a filter lets through depends on the text alone: it is the same in one pass, in chunks through a KV cache, in
/// every step of a generation, and, with skip_padding, in a padded batch. Lists of tokens are ascending.
struct TextFilter {
  Phase phase = Phase::kAll;
  std::vector<int64_t> tokens;      // only where one of these stands; empty: any
  std::vector<int64_t> not_tokens;  // nowhere where one of these stands
  std::vector<int64_t> after;       // only after the first of these; empty: from the start

  /// Padding is never changed, and positions count real tokens only: a row is changed as it would be alone.
  bool skip_padding = false;

  bool operator==(const TextFilter&) const = default;
  bool empty() const { return *this == TextFilter{}; }
};

/// "all", "prompt" and "generation". The inverse throws std::invalid_argument for any other.
INTROSPECT_EXPORT std::string_view phase_name(Phase phase);
INTROSPECT_EXPORT Phase parse_phase(std::string_view name);

/// Throws HookError, saying what is missing, if `filter` cannot be decided by what is known of a pass after `offset`
/// positions of the cache. `text` is null if nothing is known, and nothing padding.
INTROSPECT_EXPORT void check_text(const TextFilter& filter, const Text* text, int64_t offset);

}  // namespace introspect::hooks
