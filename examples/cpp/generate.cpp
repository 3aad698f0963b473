// Chat with a model, token by token.
//
//     example_generate MODEL.gguf "What is a KV cache?"

#include <iostream>

#include "introspect/models/generate.h"
#include "introspect/models/model.h"
#include "introspect/text/stream_decoder.h"

using namespace introspect;

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: example_generate MODEL PROMPT\n";
    return 2;
  }
  try {
    const auto model = models::Model::load(argv[1], {.dtype = torch::kBFloat16});
    const auto text = model->chat_template().render({{"user", argv[2]}}, {.add_generation_prompt = true});
    const auto prompt = model->tokenizer().encode(text, /*add_special_tokens=*/false);

    text::StreamDecoder decoder(model->tokenizer());
    models::GenerateOptions options;
    options.max_new_tokens = 60;
    options.on_token = [&](int64_t, int64_t token) {
      std::cout << decoder.push(token) << std::flush;
      return true;
    };
    models::generate(*model, {prompt}, options);
    std::cout << decoder.finish() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "example_generate: " << error.what() << '\n';
    return 1;
  }
}
