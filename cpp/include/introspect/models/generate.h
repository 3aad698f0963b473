#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "introspect/export.h"
#include "introspect/models/model.h"

namespace introspect::models {

enum class PaddingSide { kLeft, kRight };

/// How each token after the first is computed. The numbers are the same within rounding.
enum class Step : uint8_t {
  kAuto,  // kStatic where a device replays recorded work (CUDA) and that is possible and pays, otherwise kPlain
  kPlain,   // each in a pass of its own: every operation is started by the host
  kStatic,  // all by the same work on the device, at the same addresses; where the device can replay it, it is started once
};

/// "auto", "plain" or "static". Throws std::invalid_argument for another word.
INTROSPECT_EXPORT Step parse_step(const std::string& word);

/// True if static steps are replayed on this device: torch has graphs for it, and none has failed in this process. Elsewhere
/// every operation of theirs is started by the host.
INTROSPECT_EXPORT bool replays_steps(torch::Device device);

/// How a continuation is chosen. The defaults are greedy.
struct GenerateOptions {
  int64_t max_new_tokens = 20;
  double temperature = 0.0;             // 0: the most probable token
  int64_t top_k = 0;                    // 0: all tokens
  double top_p = 1.0;                   // the smallest set of tokens whose probability reaches top_p
  double repetition_penalty = 1.0;      // Keskar et al. 2019, arXiv:1909.05858; over prompt and continuation
  uint64_t seed = 0;                    // row r draws from a stream of its own, whatever its neighbours do
  bool stop_at_eos = true;              // at the tokenizer's stop_token_ids and the config's eos_token_ids
  std::vector<int64_t> stop_token_ids;  // beside the tokenizer's own; the stop token is part of the result
  PaddingSide padding_side = PaddingSide::kLeft;
  const hooks::HookRegistry* hooks = nullptr;  // in effect during the prompt and every step

  /// Sees each new token of a row as soon as it is chosen; false ends the generation of all rows.
  std::function<bool(int64_t row, int64_t token)> on_token;

  /// One for each row instead of `seed`: a row draws the same whichever batch it is in. Empty: none.
  std::vector<uint64_t> row_seeds;

  /// A static step is possible for a model on one device, with its blocks in memory and without experts, and with nothing
  /// hooked but interventions that do the same at every new position, or nothing: by an operator that is replayable
  /// (hooks/operators.h), not on scores, after the last block, by tokens, or for scattered rows or heads.
  /// Steps were seen to be right on the CPU and on the test device, which replays them; no CUDA device has run one yet, so
  /// they are to be asked for.
  Step step = Step::kPlain;
};

/// Continues each prompt; the rows of the result hold the new tokens only.
///
/// Positions that interventions name count from the start of the padded row, unless they skip padding.
/// Throws std::invalid_argument for an empty prompt or options outside their range, ShapeError if a prompt and its
/// continuation do not fit into n_ctx, Error, before a token is chosen, if the logits are not finite (see check_finite),
/// ConfigError, which says why, if a static step is asked for and is not possible.
INTROSPECT_EXPORT std::vector<std::vector<int64_t>> generate(const Model& model,
                                                             const std::vector<std::vector<int64_t>>& prompts,
                                                             const GenerateOptions& options = {});

/// Continues a cache that holds everything but `last_logits` [B, V], the readout at its last position. What the cache
/// holds is the prompt to hooks that ask.
INTROSPECT_EXPORT std::vector<std::vector<int64_t>> generate_from(
    const Model& model, cache::KVCache& cache, const torch::Tensor& last_logits_BV,
    const std::vector<std::vector<int64_t>>& contexts, const GenerateOptions& options = {});

}  // namespace introspect::models
