#include <thread>
#include <variant>

#include "bindings.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
#include "introspect/text/chat.h"
#include "introspect/text/stream_decoder.h"
#include "introspect/text/tokenizer.h"

namespace introspect::python {
namespace {

using text::ChatOptions;
using text::ChatSource;
using text::ChatTemplate;
using text::Message;
using text::StreamDecoder;
using text::Tokenizer;

/// The UTF-8 of a str, which may hold lone surrogates and then has none, or bytes as they are.
std::string utf8_of(const std::variant<py::str, py::bytes>& given) {
  if (const auto* bytes = std::get_if<py::bytes>(&given)) return *bytes;
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(std::get<py::str>(given).ptr(), &size);
  if (data == nullptr) {
    PyErr_Clear();
    throw ConfigError("text must be valid Unicode, it holds a lone surrogate that UTF-8 cannot write");
  }
  return {data, static_cast<size_t>(size)};
}

std::string text_at(const py::dict& message, const char* key) {
  check<ConfigError>(message.contains(key) && py::isinstance<py::str>(message[key]),
                     "ChatTemplate.render: a message must have a str \"", key, "\", got ",
                     py::str(py::handle(message)).cast<std::string>());
  return utf8_of(py::str(message[key]));
}

std::vector<Message> messages_of(const py::sequence& given) {
  std::vector<Message> messages;
  for (const auto& one : given) {
    const py::dict message(py::reinterpret_borrow<py::object>(one));
    messages.push_back({text_at(message, "role"), text_at(message, "content")});
    check<ConfigError>(message.size() == 2,
                       "ChatTemplate.render: a message must have a role and a content only, got ",
                       py::str(py::handle(message)).cast<std::string>());
  }
  return messages;
}

ChatTemplate from_callable(std::string name, py::function callable) {
  const std::shared_ptr<py::function> held(new py::function(std::move(callable)), [](py::function* function) {
    const py::gil_scoped_acquire acquire;
    delete function;
  });
  return {std::move(name), [held](const std::vector<Message>& messages, const ChatOptions& options) {
            const py::gil_scoped_acquire acquire;
            py::list list;
            for (const auto& [role, content] : messages) {
              py::dict message;
              message["role"] = role;
              message["content"] = content;
              list.append(message);
            }
            return (*held)(list, options.add_generation_prompt).cast<std::string>();
          }};
}

/// Runs Python's signal handlers, so that Ctrl-C reaches long work that has no callback. Python does this on its main
/// thread only; others, whose GIL may be held by a thread that waits for them, do not ask.
void check_signals() {
  static const auto main_thread = std::this_thread::get_id();
  if (std::this_thread::get_id() != main_thread) return;
  const py::gil_scoped_acquire acquire;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace

void bind_text(py::module_& m) {
  check_signals();  // remembers the thread that imports this module
  set_interrupt_check(check_signals);
  py::class_<Tokenizer>(m, "Tokenizer", "Text to token ids and back, as the model's own tokenizer does it.")
      .def_static("load", &Tokenizer::load, py::arg("path"), py::call_guard<py::gil_scoped_release>(), R"doc(
Read a tokenizer.

Args:
    path: a tokenizer.json, a tokenizer.model, a folder with one of them (the first is preferred), or a .gguf file. What
        stands beside the first two counts as in transformers 5: tokenizer_config.json, added_tokens.json,
        special_tokens_map.json, chat_template.jinja, and eos_token_id of generation_config.json or config.json. A
        tokenizer.model with none of the first three encodes exactly as sentencepiece does, with <s> in front, and does
        not look for control tokens inside a text. A .gguf file is read as llama.cpp reads it.

Raises:
    IoError: a file is missing or broken.
    ConfigError: a kind of tokenizer, or a stage or field of it, that is not supported; the message names it.
)doc")
      .def(
          "encode",
          [](const Tokenizer& self, const std::variant<py::str, py::bytes>& text, bool add_special_tokens) {
            const std::string utf8 = utf8_of(text);
            const py::gil_scoped_release release;
            return self.encode(utf8, add_special_tokens);
          },
          py::arg("text"), py::arg("add_special_tokens") = true, R"doc(
The ids of a text, as a list.

Args:
    text: special tokens written in it ("<|im_start|>") become their own ids.
    add_special_tokens: with the tokens the model expects around a text, usually the bos token.

Raises:
    ConfigError: bytes that are not UTF-8, a str with a lone surrogate, or a text on which a pattern of the tokenizer's
        file takes more backtracking, memory or time than it may; the message names the file and the pattern.
)doc")
      .def(
          "decode",
          [](const Tokenizer& self, const std::vector<int64_t>& ids, bool skip_special_tokens) {
            const py::gil_scoped_release release;
            return self.decode(std::span<const int64_t>(ids), skip_special_tokens);
          },
          py::arg("ids"), py::arg("skip_special_tokens") = false, R"doc(
The text of ids. Bytes that are not UTF-8 become U+FFFD.

Raises:
    IndexError: an id without a token.
)doc")
      .def("id_to_token", &Tokenizer::id_to_token, py::arg("id"), R"doc(
The token as the vocabulary file spells it ("Ġcat", "▁cat", "<0x0A>").

Raises:
    IndexError: an id without a token.
)doc")
      .def("token_to_id", &Tokenizer::token_to_id, py::arg("token"), "The id of a token so spelled, or None.")
      .def("is_special", &Tokenizer::is_special, py::arg("id"),
           "Whether ``skip_special_tokens`` leaves it out.")
      .def("__len__", &Tokenizer::vocab_size)
      .def("__repr__",
           [](const Tokenizer& self) {
             return concat("Tokenizer(", self.kind(), ", ", self.vocab_size(), " tokens)");
           })
      .def_property_readonly("vocab_size", &Tokenizer::vocab_size, "One more than the highest id.")
      .def_property_readonly("bos_token_id", &Tokenizer::bos_token_id)
      .def_property_readonly("eos_token_id", &Tokenizer::eos_token_id)
      .def_property_readonly("pad_token_id", &Tokenizer::pad_token_id)
      .def_property_readonly("adds_bos", &Tokenizer::adds_bos, "Whether ``encode`` puts the bos token first.")
      .def_property_readonly("special_tokens", &Tokenizer::special_tokens,
                             "\"bos_token\", \"eos_token\" and the others the files name, spelled out.")
      .def_property_readonly("stop_token_ids", &Tokenizer::stop_token_ids,
                             "Ids that end a turn or a text; those of generation_config.json among them.")
      .def_property_readonly("kind", &Tokenizer::kind,
                             "\"byte-level BPE\", \"SentencePiece BPE\" or \"SentencePiece Unigram\".")
      .def_property_readonly("chat_template", &Tokenizer::chat_template,
                             "The Jinja source beside it, or None.");

  py::class_<StreamDecoder>(m, "StreamDecoder", R"doc(
Text from ids that arrive one at a time.

Everything ``push`` and ``finish`` return, joined, is ``decode`` of all the ids; no part ends within a character.
)doc")
      .def(py::init<Tokenizer, bool>(), py::arg("tokenizer"), py::arg("skip_special_tokens") = true)
      .def("push", &StreamDecoder::push, py::arg("id"), R"doc(
The text that is certain once ``id`` has come; possibly empty.

Raises:
    IndexError: an id without a token.
)doc")
      .def("finish", &StreamDecoder::finish, "What was still held back; the decoder then starts anew.");

  py::class_<ChatSource>(m, "ChatSource", "A chat template as a model's files hold it.")
      .def_static("find", &ChatSource::find, py::arg("path"),
                  "Of a Hugging Face folder or a .gguf file, or None.")
      .def_static("special_tokens_of", &ChatSource::special_tokens_of, py::arg("path"),
                  "The special tokens of a folder or .gguf file, whether it has a template or not.")
      .def_readonly("jinja", &ChatSource::jinja)
      .def_readonly("special_tokens", &ChatSource::special_tokens,
                    "``bos_token`` and the others the files name.");

  py::class_<ChatTemplate>(m, "ChatTemplate",
                           "How a conversation becomes the text a chat model was trained on.")
      .def(py::init(&from_callable), py::arg("name"), py::arg("renderer"), R"doc(
A template of one's own.

Args:
    renderer: called with (messages, add_generation_prompt), returns the text.
)doc")
      .def_static("from_jinja", &ChatTemplate::from_jinja, py::arg("source"), py::kw_only(), py::arg("bos"),
                  py::arg("eos"),
                  R"doc(
The native format of a Jinja source, recognised by its hash. ``introspect.chat`` renders every other source.

Args:
    bos: text of the bos token, for formats that write it.
    eos: text of the eos token.

Raises:
    ConfigError: not one of the sources the library knows.
)doc")
      .def_static("named", &ChatTemplate::named, py::arg("format"), R"doc(
A native format: one of ``names()``.

Raises:
    ConfigError: another name.
)doc")
      .def_static("names", &ChatTemplate::names)
      .def_property_readonly("name", &ChatTemplate::name)
      .def(
          "render",
          [](const ChatTemplate& self, const py::sequence& messages, bool add_generation_prompt,
             bool continue_final_message, const std::string& date_string) {
            return self.render(messages_of(messages),
                               {add_generation_prompt, continue_final_message, date_string});
          },
          py::arg("messages"), py::kw_only(), py::arg("add_generation_prompt") = false,
          py::arg("continue_final_message") = false, py::arg("date_string") = "", R"doc(
The text of a conversation, as transformers' ``apply_chat_template`` writes it.

Args:
    messages: ``{"role": ..., "content": ...}``; native formats know the roles "system", "user" and "assistant".
    add_generation_prompt: end with the header of the assistant's next turn.
    continue_final_message: end right after the last message's content.
    date_string: what Llama-3.2 prints as today's date; empty is the local date.

Raises:
    ConfigError: no messages, a role or order the format refuses, or options that exclude each other.
)doc");
}

}  // namespace introspect::python
