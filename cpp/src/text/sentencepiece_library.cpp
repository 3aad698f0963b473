#include "text/sentencepiece_library.h"

#include <dlfcn.h>

#include <string>

#include "core/library_folder.h"
#include "introspect/core/check.h"

namespace introspect::text {
namespace {

const SentencePieceFunctions& open_module() {
  int mode = RTLD_NOW | RTLD_LOCAL;
#if defined(RTLD_DEEPBIND) && !defined(__SANITIZE_ADDRESS__)  // AddressSanitizer refuses such libraries
  mode |= RTLD_DEEPBIND;  // its own symbols before those of the process, LibTorch's among them
#endif
  const auto path = library_folder() / INTROSPECT_SENTENCEPIECE_MODULE;
  void* const module = dlopen(path.c_str(), mode);
  check<IoError>(module != nullptr, "SentencePiece tokenizer: the module that runs it cannot be opened: ",
                 module ? "" : dlerror());
  using Get = const SentencePieceFunctions* (*)();
  const auto get = reinterpret_cast<Get>(dlsym(module, "introspect_sentencepiece"));
  check<IoError>(get != nullptr, "SentencePiece tokenizer: ", path.string(),
                 " is of another build of introspect");
  return *get();
}

const SentencePieceFunctions& functions() {
  static const SentencePieceFunctions& opened = open_module();  // stays open until the process ends
  return opened;
}

void append(void* text, const char* message, size_t n) {
  static_cast<std::string*>(text)->append(message, n);
}

}  // namespace

SentencePieceProcessor::SentencePieceProcessor(std::string_view model_proto) {
  std::string error;
  processor_ = {functions().load(model_proto.data(), model_proto.size(), append, &error),
                functions().destroy};
  check<IoError>(processor_ != nullptr, "sentencepiece model: libsentencepiece refuses it (", error, ")");
}

int SentencePieceProcessor::piece_size() const {
  return functions().piece_size(processor_.get());
}

void SentencePieceProcessor::encode(std::string_view text, std::vector<int>& ids) const {
  struct Listener {
    std::vector<int>& ids;
    std::string error;
  } listener{ids, {}};
  const auto take = [](void* to, const int* found, size_t n) {
    static_cast<Listener*>(to)->ids.assign(found, found + n);
  };
  const auto say = [](void* to, const char* message, size_t n) {
    append(&static_cast<Listener*>(to)->error, message, n);
  };
  check<ConfigError>(functions().encode(processor_.get(), text.data(), text.size(), take, say, &listener),
                     "Tokenizer.encode: libsentencepiece refuses the text (", listener.error, ")");
}

}  // namespace introspect::text
