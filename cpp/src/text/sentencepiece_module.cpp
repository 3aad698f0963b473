// The module that holds sentencepiece: nothing else of introspect is in it, and nothing of it is seen from outside but
// the one function at the end.

#include <sentencepiece_processor.h>

#include <memory>
#include <vector>

#include "text/sentencepiece_library.h"

namespace {

using introspect::text::SentencePieceFunctions;
using Processor = sentencepiece::SentencePieceProcessor;

void say(const sentencepiece::util::Status& status, SentencePieceFunctions::Say error, void* listener) {
  const std::string message = status.ToString();
  error(listener, message.data(), message.size());
}

void* load(const char* bytes, size_t n, SentencePieceFunctions::Say error, void* listener) {
  auto processor = std::make_unique<Processor>();
  const auto status = processor->LoadFromSerializedProto({bytes, n});
  if (status.ok()) return processor.release();
  say(status, error, listener);
  return nullptr;
}

void destroy(void* processor) {
  delete static_cast<Processor*>(processor);
}

int piece_size(const void* processor) {
  return static_cast<const Processor*>(processor)->GetPieceSize();
}

bool encode(const void* processor, const char* text, size_t n, SentencePieceFunctions::Take take,
            SentencePieceFunctions::Say error, void* listener) {
  std::vector<int> ids;
  const auto status = static_cast<const Processor*>(processor)->Encode({text, n}, &ids);
  if (status.ok())
    take(listener, ids.data(), ids.size());
  else
    say(status, error, listener);
  return status.ok();
}

constexpr SentencePieceFunctions kFunctions{load, destroy, piece_size, encode};

}  // namespace

extern "C" __attribute__((visibility("default"))) const SentencePieceFunctions* introspect_sentencepiece() {
  return &kFunctions;
}
