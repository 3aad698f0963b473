#include "introspect/text/chat.h"

#include <array>
#include <ctime>
#include <string_view>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"
#include "text/utf8.h"

namespace introspect::text {
namespace {

using Messages = std::vector<Message>;

/// What str.strip of Python, and so Jinja's trim, takes away.
bool is_python_space(char32_t c) {
  return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

std::string_view rstrip(std::string_view text) {
  while (!text.empty()) {
    size_t last = text.size() - 1;
    while (last > 0 && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!is_python_space(utf8_step(text.substr(last)).code_point)) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string strip(std::string_view text) {
  while (!text.empty()) {
    const auto step = utf8_step(text);
    if (!is_python_space(step.code_point)) break;
    text.remove_prefix(step.size);
  }
  return std::string(rstrip(text));
}

/// The system message and what follows it.
std::pair<const Message*, Messages> without_system(const Messages& messages) {
  if (messages.front().role != "system") return {nullptr, messages};
  return {&messages.front(), Messages(messages.begin() + 1, messages.end())};
}

void require_alternation(const Messages& messages, const char* format) {
  for (size_t i = 0; i < messages.size(); ++i)
    check<ConfigError>(messages[i].role == (i % 2 == 0 ? "user" : "assistant"), "ChatTemplate ", format,
                       ": after the system message roles must alternate user, assistant, user, ..., turn ", i,
                       " has role ", messages[i].role);
}

struct Tokens {
  std::string bos, eos;
};

// Each format writes what its Jinja source writes; `options.continue_final_message` is dealt with outside.

std::string chatml(const Messages& messages, const ChatOptions& options, const char* default_system) {
  std::string text;
  const auto turn = [&](const std::string& role, const std::string& content) {
    text += "<|im_start|>" + role + "\n" + content + "<|im_end|>\n";
  };
  if (default_system && messages.front().role != "system") turn("system", default_system);
  for (const auto& [role, content] : messages) turn(role, content);
  if (options.add_generation_prompt) text += "<|im_start|>assistant\n";
  return text;
}

std::string plain_chatml(const Messages& messages, const ChatOptions& options, const Tokens&) {
  return chatml(messages, options, nullptr);
}

std::string qwen2_5(const Messages& messages, const ChatOptions& options, const Tokens&) {
  return chatml(messages, options, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
}

std::string smollm2(const Messages& messages, const ChatOptions& options, const Tokens&) {
  return chatml(messages, options, "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
}

/// Has no header for the assistant's turn: the model goes on after [/INST].
std::string llama2(const Messages& messages, const ChatOptions&, const Tokens& tokens) {
  const auto [system, turns] = without_system(messages);
  require_alternation(turns, "llama-2");
  std::string text;
  for (size_t i = 0; i < turns.size(); ++i) {
    std::string content = turns[i].content;
    if (i == 0 && system) content = "<<SYS>>\n" + system->content + "\n<</SYS>>\n\n" + content;
    text += turns[i].role == "user" ? concat(tokens.bos, "[INST] ", strip(content), " [/INST]")
                                    : concat(" ", strip(content), " ", tokens.eos);
  }
  return text;
}

std::string llama3_turns(const Messages& messages, const ChatOptions& options) {
  const auto header = [](const std::string& role) {
    return "<|start_header_id|>" + role + "<|end_header_id|>\n\n";
  };
  std::string text;
  for (const auto& [role, content] : messages) text += header(role) + strip(content) + "<|eot_id|>";
  if (options.add_generation_prompt) text += header("assistant");
  return text;
}

std::string llama3(const Messages& messages, const ChatOptions& options, const Tokens& tokens) {
  return tokens.bos + llama3_turns(messages, options);
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  char text[64];
  return std::string(text, std::strftime(text, sizeof text, "%d %b %Y", &local));
}

std::string llama3_2(const Messages& messages, const ChatOptions& options, const Tokens& tokens) {
  const auto [system, turns] = without_system(messages);
  return tokens.bos +
         "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: " +
         (options.date_string.empty() ? today() : options.date_string) + "\n\n" +
         (system ? strip(system->content) : "") + "<|eot_id|>" + llama3_turns(turns, options);
}

std::string gemma_turns(const Messages& turns, const std::string& before_first, const ChatOptions& options,
                        const Tokens& tokens) {
  std::string text = tokens.bos;
  for (size_t i = 0; i < turns.size(); ++i)
    text += "<start_of_turn>" + (turns[i].role == "assistant" ? std::string("model") : turns[i].role) + "\n" +
            (i == 0 ? before_first : "") + strip(turns[i].content) + "<end_of_turn>\n";
  if (options.add_generation_prompt) text += "<start_of_turn>model\n";
  return text;
}

std::string gemma(const Messages& messages, const ChatOptions& options, const Tokens& tokens) {
  const auto [system, turns] = without_system(messages);
  check<ConfigError>(
      !system || system->content.empty(),
      "ChatTemplate gemma: this format has no system turn; put the text into the first user message");
  require_alternation(turns, "gemma");
  return gemma_turns(turns, "", options, tokens);
}

std::string gemma3(const Messages& messages, const ChatOptions& options, const Tokens& tokens) {
  const auto [system, turns] = without_system(messages);
  require_alternation(turns, "gemma-3");
  return gemma_turns(turns, system ? system->content + "\n\n" : "", options, tokens);
}

struct Format {
  const char* name;
  std::string (*write)(const Messages&, const ChatOptions&, const Tokens&);
  Tokens usual;  // bos and eos of the format's own family
};

const std::array<Format, 8>& formats() {
  static const std::array<Format, 8> kFormats = {
      {{"chatml", plain_chatml, {}},
       {"qwen2.5", qwen2_5, {}},
       {"smollm2", smollm2, {}},
       {"llama-2", llama2, {"<s>", "</s>"}},
       {"llama-3", llama3, {"<|begin_of_text|>", "<|eot_id|>"}},
       {"llama-3.2", llama3_2, {"<|begin_of_text|>", "<|eot_id|>"}},
       {"gemma", gemma, {"<bos>", "<eos>"}},
       {"gemma-3", gemma3, {"<bos>", "<eos>"}}}};
  return kFormats;
}

const Format& format_named(const std::string& name) {
  std::string known;
  for (const auto& format : formats()) {
    if (format.name == name) return format;
    known.append(known.empty() ? "" : ", ").append(format.name);
  }
  throw ConfigError(concat("ChatTemplate: the format must be one of ", known, ", got \"", name, "\""));
}

/// SHA-256 of Jinja sources without a newline at the end (Jinja drops one), and the format that writes the same.
/// tests/python/parity/test_chat.py renders every one of them with transformers.
constexpr std::pair<std::string_view, const char*> kKnownSources[] = {
    {"153280e3ff55d19da1398bdb3914ee2a51b80429bfaedde11d7d216c39db80f3", "chatml"},
    {"ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6", "gemma"},
    {"8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29", "gemma-3"},
    {"e8d5b5a546d3f19df16a5320c614fab05bdc4edd50e850f1afd947b503ea41cf", "llama-2"},
    {"ba03a121d097859c7b5b9cd03af99aafe95275210d2876f642ad9929a150f122", "llama-3"},
    {"d82792f95932f1c9cef5c4bd992f171225e3bf8c7b609b4557c9e1ec96be819f", "llama-3.2"},
    {"55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a", "qwen2.5"},
    {"4e9918361c284a93880606d182d64da6a9fe97cdc1f5c5a78c1c8840444246fc", "qwen2.5"},
    {"872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788", "smollm2"},
};

ChatTemplate native(const Format& format, Tokens tokens) {
  return {format.name,
          [&format, tokens = std::move(tokens)](const Messages& messages, const ChatOptions& options) {
            for (const auto& [role, content] : messages)
              check<ConfigError>(role == "system" || role == "user" || role == "assistant", "ChatTemplate ",
                                 format.name, ": the role must be system, user or assistant, got ", role);
            return format.write(messages, options, tokens);
          }};
}

/// The text up to the end of the last message, as transformers finds it: a mark is put there, and the text cut at it. A
/// format that trims what it writes trims the mark's space, and then the text before it too.
std::string cut_after_final_message(const ChatTemplate::Renderer& renderer, Messages messages,
                                    const ChatOptions& options) {
  static const std::string kMark = "CONTINUE_FINAL_MESSAGE_TAG", kMarkAndSpace = kMark + " ";
  const std::string final_message = messages.back().content;
  messages.back().content += kMarkAndSpace;
  const std::string text = renderer(messages, options);
  const size_t end = text.rfind(kMark);
  check<ConfigError>(end != std::string::npos && text.find(strip(final_message)) != std::string::npos,
                     "ChatTemplate: continue_final_message needs a format that writes the last message, this "
                     "one leaves it out");
  const auto before = std::string_view(text).substr(0, end);
  return std::string(text.compare(end, kMarkAndSpace.size(), kMarkAndSpace) == 0 ? before : rstrip(before));
}

}  // namespace

ChatTemplate::ChatTemplate(std::string name, Renderer renderer)
    : name_(std::move(name)), renderer_(std::move(renderer)) {
  check<std::invalid_argument>(renderer_ != nullptr, "ChatTemplate: the renderer must be callable");
}

ChatTemplate ChatTemplate::from_jinja(const std::string& source, const std::string& bos,
                                      const std::string& eos) {
  std::string_view trimmed = source;
  if (trimmed.ends_with('\n')) trimmed.remove_suffix(1);
  const std::string hash = sha256_hex(trimmed);
  for (const auto& [known, name] : kKnownSources)
    if (hash == known) return native(format_named(name), {bos, eos});
  throw ConfigError(
      concat("ChatTemplate: this Jinja template is not one of those the library has natively (",
             source.size(), " bytes, SHA-256 ", hash,
             "). Use it from Python, where any template is rendered, or name a format that writes "
             "the same text with ChatTemplate::named."));
}

ChatTemplate ChatTemplate::named(const std::string& format) {
  const auto& found = format_named(format);
  return native(found, found.usual);
}

std::vector<std::string> ChatTemplate::names() {
  std::vector<std::string> names;
  for (const auto& format : formats()) names.emplace_back(format.name);
  return names;
}

std::string ChatTemplate::name() const {
  return name_;
}

std::string ChatTemplate::render(const std::vector<Message>& messages, const ChatOptions& options) const {
  check<ConfigError>(!messages.empty(), "ChatTemplate.render: a conversation must have at least one message");
  check<ConfigError>(
      !(options.add_generation_prompt && options.continue_final_message),
      "ChatTemplate.render: add_generation_prompt and continue_final_message exclude each other");
  for (const auto& message : messages) require_utf8(message.content, "ChatTemplate.render");
  return options.continue_final_message ? cut_after_final_message(renderer_, messages, options)
                                        : renderer_(messages, options);
}

}  // namespace introspect::text
