#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "text/tokenizer_config.h"
#include "text/tokenizer_engine.h"

namespace introspect::text {

/// The engine of a tokenizer.json (the format of the Hugging Face tokenizers library) whose model is BPE.
///
/// `file` stands in messages. Throws IoError for JSON that is broken, ConfigError for a stage this library does not have.
std::shared_ptr<const TokenizerEngine> read_tokenizer_json(const std::string& json,
                                                           const TokenizerConfig& config,
                                                           const std::filesystem::path& file);

}  // namespace introspect::text
