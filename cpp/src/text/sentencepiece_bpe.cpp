#include "text/sentencepiece_bpe.h"

#include <algorithm>
#include <numeric>

#include "introspect/core/check.h"
#include "text/bpe_engine.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

// Source: transformers 5.24, convert_slow_tokenizer.py (build_tokenizer_from_spm_proto), tokenization_utils_base.py
// (generate_merges), models/llama and models/gemma.

const std::string kSpace = "\xE2\x96\x81";  // ▁

/// Every way to join two tokens of `parts` to one of `wholes`, in the order of `wholes` and then of the left one's size.
std::vector<Bpe::Merge> merges_of(const std::vector<std::string_view>& wholes, const TokenIds& parts) {
  std::vector<Bpe::Merge> merges;
  for (const auto whole : wholes) {
    for (size_t cut = utf8_step(whole).size; cut < whole.size(); cut += utf8_step(whole.substr(cut)).size) {
      const auto left = whole.substr(0, cut), right = whole.substr(cut);
      if (parts.contains(left) && parts.contains(right)) merges.emplace_back(left, right);
    }
  }
  return merges;
}

/// Normal pieces, best score first.
std::vector<size_t> ranked_by_score(const SentencePieceModel& model) {
  std::vector<size_t> order;
  for (size_t id = 0; id < model.pieces.size(); ++id)
    if (model.pieces[id].type == SentencePieceModel::normal) order.push_back(id);
  std::ranges::stable_sort(order,
                           [&](size_t a, size_t b) { return model.pieces[a].score > model.pieces[b].score; });
  return order;
}

}  // namespace

bool becomes_bpe(const SentencePieceModel& model, TokenizerClass tokenizer_class) {
  return tokenizer_class != TokenizerClass::backend ||
         (model.kind != SentencePieceModel::unigram && model.normalization.empty());
}

std::shared_ptr<const TokenizerEngine> bpe_of_sentencepiece(const SentencePieceModel& model,
                                                            const TokenizerConfig& config,
                                                            Vocabulary vocabulary,
                                                            std::vector<AddedToken> found) {
  const auto n_pieces = model.pieces.size();
  TokenIds own(vocabulary.tokens);
  for (size_t id = n_pieces; id-- > 0;) own.add(id);  // of equal ones the last
  std::vector<std::string_view> wholes;
  for (size_t id = 0; id < n_pieces; ++id) wholes.push_back(vocabulary.tokens[id]);
  BpeOptions options{.byte_fallback = true, .fuse_unknown = true};
  const auto unknown_is = [&](const std::string& token) {
    if (const auto id = own.find(token)) options.unknown_id = id;
  };
  BpeStages stages{.added = std::move(found)};
  stages.spelling = {.replace = {{kSpace, " "}}, .byte_fallback = true};
  JoinRule join{.invalid = JoinRule::Invalid::whole_run};
  auto parts = own;
  const auto prefix_scheme = [](bool always) {
    return always ? Metaspace::Prepend::always : Metaspace::Prepend::first;
  };
  switch (config.tokenizer_class) {
    case TokenizerClass::backend: {
      const bool legacy = config.legacy.value_or(true);
      wholes.clear();
      parts = TokenIds(vocabulary.tokens);
      for (const size_t id : ranked_by_score(model)) {
        wholes.push_back(vocabulary.tokens[id]);
        parts.add(id);
      }
      options.byte_fallback = stages.spelling.byte_fallback = model.byte_fallback;
      unknown_is(model.unknown_piece);
      if (model.remove_extra_whitespaces) stages.normalizer.emplace_back(SqueezeSpaces{});
      if (model.escape_whitespaces) stages.normalizer.emplace_back(Replace{" ", kSpace});
      if (model.add_dummy_prefix) {
        if (legacy) stages.normalizer.emplace_back(RepeatAtStart{kSpace});
        stages.pre_tokenizer.emplace_back(Metaspace{.prepend = prefix_scheme(legacy), .split = false});
        join.strip_left = 1;
      }
      std::vector<AddedToken> user_defined;
      for (size_t id = 0; id < n_pieces; ++id)
        if (model.pieces[id].type == SentencePieceModel::user_defined)
          user_defined.push_back(
              {.content = std::string(vocabulary.tokens[id]), .id = static_cast<int64_t>(id)});
      options.ignore_merges = !user_defined.empty();
      if (!user_defined.empty()) stages.pre_tokenizer.emplace_back(Isolate{AddedTokenMatcher(user_defined)});
      break;
    }
    case TokenizerClass::llama:
    case TokenizerClass::code_llama: {
      const bool code = config.tokenizer_class == TokenizerClass::code_llama;
      const bool prefix = config.add_prefix_space.value_or(true);
      auto scheme = prefix_scheme(!code && config.legacy.value_or(false));
      if (!prefix) scheme = Metaspace::Prepend::never;
      stages.pre_tokenizer.emplace_back(Metaspace{.prepend = scheme, .split = false});
      join.strip_left = prefix || code ? 1 : 0;
      if (const auto name = vocabulary.special_tokens.find("unk_token");
          code && name != vocabulary.special_tokens.end())
        unknown_is(name->second);
      break;
    }
    case TokenizerClass::gemma:
      stages.normalizer.emplace_back(Replace{" ", kSpace});
      if (const auto name = vocabulary.special_tokens.find("unk_token");
          name != vocabulary.special_tokens.end())
        unknown_is(name->second);
      break;
    default:
      throw ConfigError(
          "tokenizer_config.json: 'tokenizer_class' must be LlamaTokenizer, GemmaTokenizer or "
          "PreTrainedTokenizerFast beside a tokenizer.model");
  }
  stages.bpe = Bpe(own, merges_of(wholes, parts), options);
  vocabulary.kind = "SentencePiece BPE";
  return std::make_shared<BpeEngine>(std::move(vocabulary), std::move(join), std::move(stages));
}

}  // namespace introspect::text
