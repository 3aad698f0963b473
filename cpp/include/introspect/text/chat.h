#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "introspect/export.h"

namespace introspect::text {

/// One turn of a conversation. Roles known to every format: "system", "user", "assistant".
struct Message {
  std::string role;
  std::string content;
};

struct ChatOptions {
  /// Ends with the header of the assistant's next turn.
  bool add_generation_prompt = false;
  /// Ends right after the last message's content, for the model to go on with it. Not with add_generation_prompt.
  bool continue_final_message = false;
  /// What Llama-3.2 prints as today's date ("26 Jul 2024"); empty: the local date.
  std::string date_string = {};
};

/// A chat template as a model's files hold it, for a renderer of one's own.
struct INTROSPECT_EXPORT ChatSource {
  std::string jinja;
  /// "bos_token", "eos_token" and the others the files name, the model's own ("image_token") included, spelled out.
  std::map<std::string, std::string> special_tokens;

  /// Of an HF folder, a tokenizer file in one, or a .gguf file, without reading its vocabulary into a Tokenizer; nullopt if it has no template.
  static std::optional<ChatSource> find(const std::filesystem::path& path);
  /// The special tokens alone, for a template that came from elsewhere.
  static std::map<std::string, std::string> special_tokens_of(const std::filesystem::path& path);
};

/// How a conversation becomes the text a chat model was trained on.
///
/// The known formats are native and give the text of transformers' `apply_chat_template` on their Jinja sources. Any
/// other template needs a renderer; the Python package supplies one that runs Jinja in a sandbox.
class INTROSPECT_EXPORT ChatTemplate {
 public:
  using Renderer = std::function<std::string(const std::vector<Message>&, const ChatOptions&)>;

  /// The native format of a Jinja source, which is recognised by its hash: a near miss would be silently wrong text.
  ///
  /// `bos` and `eos` are the texts of these tokens. Throws ConfigError for a source that is not one of the known ones.
  static ChatTemplate from_jinja(const std::string& source, const std::string& bos, const std::string& eos);

  /// A native format by name: "chatml", "qwen2.5", "smollm2", "llama-2", "llama-3", "llama-3.2", "gemma" (1 and 2),
  /// "gemma-3", with the bos and eos tokens of its family. Throws ConfigError that lists the names.
  static ChatTemplate named(const std::string& format);
  static std::vector<std::string> names();

  ChatTemplate(std::string name, Renderer renderer);

  std::string name() const;

  /// The text of a conversation.
  ///
  /// Gemma's format refuses system turns: an empty one is left out, any other is a ConfigError. Throws ConfigError for
  /// an empty conversation, a role the format does not have, roles that do not alternate where the format wants it,
  /// and options that exclude each other.
  std::string render(const std::vector<Message>& messages, const ChatOptions& options = {}) const;

 private:
  std::string name_;
  Renderer renderer_;
};

}  // namespace introspect::text
