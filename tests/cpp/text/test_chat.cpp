#include <catch2/catch.hpp>

#include "introspect/core/error.h"
#include "introspect/text/chat.h"

using introspect::ConfigError;
using introspect::text::ChatTemplate;
using introspect::text::Message;
using Messages = std::vector<Message>;

// Expected texts: the formats as their models' cards give them. tests/python/parity compares with transformers.

TEST_CASE("ChatML writes its turns, Qwen2.5 a system message of its own where there is none", "[text]") {
  const Messages hello = {{"user", "hello"}};
  CHECK(ChatTemplate::named("chatml").render(hello, {.add_generation_prompt = true}) ==
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n");
  CHECK(ChatTemplate::named("qwen2.5").render(hello) ==
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nhello<|im_end|>\n");
  CHECK(ChatTemplate::named("qwen2.5").render({{"system", ""}, {"user", "hello"}}) ==
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n");
}

TEST_CASE("Llama-3.2 writes the date it is given", "[text]") {
  CHECK(
      ChatTemplate::named("llama-3.2").render({{"user", " hi "}}, {.date_string = "26 Jul 2024"}) ==
      "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
      "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>");
}

TEST_CASE("continue_final_message leaves the last message open", "[text]") {
  const Messages turns = {{"user", "q"}, {"assistant", "Ok "}};
  CHECK(ChatTemplate::named("chatml").render(turns, {.continue_final_message = true}) ==
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nOk ");
  CHECK(ChatTemplate::named("gemma").render(turns, {.continue_final_message = true}) ==
        "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\nOk");
}

TEST_CASE("Gemma leaves an empty system message out and refuses any other", "[text]") {
  const auto gemma = ChatTemplate::named("gemma");
  CHECK(gemma.render({{"system", ""}, {"user", "q"}}) == gemma.render({{"user", "q"}}));
  CHECK_THROWS_AS(gemma.render({{"system", "s"}, {"user", "q"}}), ConfigError);
}

TEST_CASE("what a format cannot write is a ConfigError", "[text]") {
  const auto chatml = ChatTemplate::named("chatml");
  CHECK_THROWS_AS(chatml.render({}), ConfigError);
  CHECK_THROWS_AS(chatml.render({{"tool", "x"}}), ConfigError);
  CHECK_THROWS_AS(chatml.render({{"user", "\xFF"}}), ConfigError);
  CHECK_THROWS_AS(
      chatml.render({{"user", "x"}}, {.add_generation_prompt = true, .continue_final_message = true}),
      ConfigError);
  CHECK_THROWS_AS(ChatTemplate::named("llama-2").render({{"user", "a"}, {"user", "b"}}), ConfigError);
  CHECK_THROWS_AS(ChatTemplate::named("no such format"), ConfigError);
  CHECK_THROWS_WITH(ChatTemplate::from_jinja("{{ messages }}", "", ""), Catch::Contains("Python"));
}

TEST_CASE("a renderer of one's own gets the messages and the options", "[text]") {
  const ChatTemplate mine("mine", [](const Messages& messages, const auto& options) {
    return messages.back().content + (options.add_generation_prompt ? "|" : ".");
  });
  CHECK(mine.render({{"user", "x"}}) == "x.");
  CHECK(mine.render({{"user", "x"}}, {.add_generation_prompt = true}) == "x|");
  CHECK(mine.render({{"user", "x"}}, {.continue_final_message = true}) == "x");
  CHECK(mine.name() == "mine");
}
