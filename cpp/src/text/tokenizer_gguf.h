#pragma once

#include <memory>

#include "text/tokenizer_engine.h"

namespace introspect::io {
class GgufFile;
}

namespace introspect::text {

/// The engine of a GGUF file's vocabulary. Throws ConfigError for a model or pre-tokenizer this library does not know.
std::shared_ptr<const TokenizerEngine> read_tokenizer_gguf(const io::GgufFile& file);

}  // namespace introspect::text
