#pragma once

#include <optional>
#include <string>

namespace introspect::text {

/// How transformers (5) builds the tokenizer of a folder.
///
/// `backend` takes tokenizer.json as it is. Any other class takes its vocabulary and merges only, builds the stages
/// itself, and has names for special tokens that the files need not give.
///
/// One thing is done otherwise here: of gpt2, gpt_neox, qwen2 and gemma the stages of tokenizer.json hold, with the
/// class's add_prefix_space. They are those the class builds, or the model was trained with others: SmolLM2 names
/// GPT2Tokenizer and splits digits, which transformers 5 forgets.
enum class TokenizerClass { backend, gpt2, gpt_neox, qwen2, llama, code_llama, gemma };

/// What a folder says of the class of its tokenizer.
struct ClassHints {
  std::optional<std::string> in_tokenizer_config;  // tokenizer_class
  std::optional<std::string> in_config;            // config.json's tokenizer_class
  std::string model_type;                          // config.json's; empty if there is none
  bool has_own_code = false;                       // tokenizer_config.json's auto_map names a tokenizer
  bool is_byte_level = false;                      // "ByteLevel" stands in tokenizer.json
};

/// The class AutoTokenizer chooses. Throws ConfigError for one that builds stages this library does not have, or that
/// is the model's own Python code.
TokenizerClass choose_class(const ClassHints& hints);

}  // namespace introspect::text
