#include "fuzz/readers.h"

#include <array>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <set>

#include <torch/types.h>

#include "introspect/introspect.h"

#include "tiny_model.h"

namespace introspect::testing {

namespace {

namespace fs = std::filesystem;

std::string bytes_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

/// Every tensor that can be read, as numbers.
void read_all(const io::TensorSource& source) {
  for (const auto& name : source.names()) {
    source.shape(name);
    source.dtype(name);
    try {
      source.check_readable(name);
    } catch (const ConfigError&) {
      continue;
    }
    source.read(name, torch::kFloat32);
  }
  source.fingerprint();
}

const std::string kVocabulary =
    R"({"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "bc": 5, "Ġab": 6, "Ã": 7, "©": 8})";

const std::string kByteLevel = R"({"version": "1.0", "truncation": null, "padding": null,
  "added_tokens": [{"id": 9, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": true,
                    "normalized": false, "special": true}],
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+"},
     "behavior": "Isolated", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
  "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
  "model": {"type": "BPE", "dropout": null, "unk_token": null, "byte_fallback": false, "ignore_merges": false,
            "vocab": )" + kVocabulary +
                               R"(, "merges": ["a b", "b c", "Ġ ab"]}})";

const std::string kSentencePieceLike = R"({"added_tokens": [{"id": 0, "content": "<unk>", "special": true}],
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<unk>", "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
    "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}},
  "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "<0x61>": 1, "▁": 2, "b": 3, "▁b": 4}, "merges": [["▁", "b"]]}})";

const std::string kTokenizerConfig =
    R"({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": true, "legacy": false,
  "bos_token": {"content": "<end>", "lstrip": false}, "eos_token": "<end>", "pad_token": null, "add_prefix_space": false,
  "added_tokens_decoder": {"9": {"content": "<end>", "special": true, "rstrip": true}, "10": {"content": "<two>"}},
  "additional_special_tokens": ["<two>"], "chat_template": "{{ messages }}"})";

const std::string kConfig =
    R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 16,
  "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "vocab_size": 40, "rope_theta": 1e6,
  "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
  "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16}, "use_sliding_window": true, "sliding_window": 5, "num_hidden_layers": 2,
  "layer_types": ["full_attention", "sliding_attention"], "eos_token_id": [1, 2], "torch_dtype": "bfloat16"})";

const std::string kProtocol = R"({"name": "mine", "turns": [{"role": "system", "content": ""},
  {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "{ }"}, {"role": "user", "content": "Well?"},
  {"role": "assistant", "content": "It is"}], "injected": [1, 2], "read": "yes_no", "yes_token": " yes",
  "paraphrases": ["Is it so?", "And now?"], "readouts": {"lens": true},
  "controls": {"turns": [{"role": "user", "content": "Hm. $QUESTION"}], "injected": [0], "questions": ["Is it?"]}})";

const std::string kReading =
    R"({"log_odds": -1.5, "p_yes": 0.1, "p_no": 0.45, "tokens": [{"token": " cat", "id": 3,
  "log_prob": -7.25, "rank": 120}], "text": "a thought", "lens": {"log_odds": [0.1, 0.2], "p_yes": [0.1, 0.2],
  "p_no": [0.1, 0.2], "log_probs": [[-1.0, -2.0]]}, "attention": [[0.1, 0.2]], "entropy": 1.5, "kl": 0.1,
  "projections": {"cat": {"1": 0.5}}, "continuations": [-3.5]})";

/// The tensors of a two-layer Qwen2, for kConfig.
std::vector<std::pair<std::string, torch::Tensor>> weights() {
  std::vector<std::pair<std::string, torch::Tensor>> out;
  uint64_t seed = 0;
  const auto add = [&](const std::string& name, at::IntArrayRef sizes) {
    out.emplace_back(name, random_tensor(sizes, seed++).to(torch::kFloat32));
  };
  add("model.embed_tokens.weight", {40, 16});
  add("lm_head.weight", {40, 16});
  add("model.norm.weight", {16});
  for (const std::string block : {"model.layers.0.", "model.layers.1."}) {
    add(block + "input_layernorm.weight", {16});
    add(block + "post_attention_layernorm.weight", {16});
    for (const auto& [name, rows] : {std::pair{"q", 16}, {"k", 8}, {"v", 8}}) {
      add(block + "self_attn." + name + "_proj.weight", {rows, 16});
      add(block + "self_attn." + name + "_proj.bias", {rows});
    }
    add(block + "self_attn.o_proj.weight", {16, 16});
    add(block + "mlp.gate_proj.weight", {24, 16});
    add(block + "mlp.up_proj.weight", {24, 16});
    add(block + "mlp.down_proj.weight", {16, 24});
  }
  return out;
}

/// A one-layer Llama with a byte-level vocabulary.
io::GgufWriter gguf_model() {
  io::GgufWriter writer("llama");
  writer.set("general.name", std::string("tiny"));
  for (const auto& [key, value] : {std::pair{"context_length", 32u},
                                   {"embedding_length", 16u},
                                   {"block_count", 1u},
                                   {"feed_forward_length", 24u},
                                   {"attention.head_count", 4u},
                                   {"attention.head_count_kv", 2u},
                                   {"rope.dimension_count", 4u}})
    writer.set(std::string("llama.") + key, static_cast<uint32_t>(value));
  writer.set("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  writer.set("llama.rope.freq_base", 10000.0f);
  writer.set("tokenizer.ggml.model", std::string("gpt2"));
  writer.set("tokenizer.ggml.pre", std::string("qwen2"));
  writer.set("tokenizer.ggml.tokens",
             std::vector<std::string>{"a", "b", "c", "Ġ", "ab", "bc", "Ġab", "Ã", "©", "<end>"});
  writer.set("tokenizer.ggml.token_type", std::vector<int32_t>{1, 1, 1, 1, 1, 1, 1, 1, 1, 3});
  writer.set("tokenizer.ggml.merges", std::vector<std::string>{"a b", "b c", "Ġ ab"});
  writer.set("tokenizer.ggml.eos_token_id", uint32_t{9});
  uint64_t seed = 0;
  const auto add = [&](const std::string& name, at::IntArrayRef sizes) {
    writer.add(name, random_tensor(sizes, seed++));
  };
  add("token_embd.weight", {10, 16});
  add("output_norm.weight", {16});
  for (const char* norm : {"attn_norm", "ffn_norm"}) add(std::string("blk.0.") + norm + ".weight", {16});
  for (const auto& [name, rows] : {std::pair{"attn_q", 16},
                                   {"attn_k", 8},
                                   {"attn_v", 8},
                                   {"attn_output", 16},
                                   {"ffn_gate", 24},
                                   {"ffn_up", 24}})
    add(std::string("blk.0.") + name + ".weight", {rows, 16});
  add("blk.0.ffn_down.weight", {16, 24});
  return writer;
}

io::GgufWriter gguf_sentencepiece() {
  io::GgufWriter writer("llama");
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  std::vector<float> scores = {0, 0, 0};
  std::vector<int32_t> types = {2, 3, 3};
  for (const char* piece : {"▁", "b", "▁b", "c"}) {
    tokens.emplace_back(piece);
    scores.push_back(-static_cast<float>(tokens.size()));
    types.push_back(1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    std::array<char, 8> piece{};
    std::snprintf(piece.data(), piece.size(), "<0x%02X>", byte);
    tokens.emplace_back(piece.data());
    scores.push_back(0);
    types.push_back(6);
  }
  writer.set("tokenizer.ggml.model", std::string("llama"));
  writer.set("tokenizer.ggml.tokens", tokens);
  writer.set("tokenizer.ggml.scores", scores);
  writer.set("tokenizer.ggml.token_type", types);
  writer.set("tokenizer.ggml.unknown_token_id", uint32_t{0});
  writer.set("tokenizer.ggml.bos_token_id", uint32_t{1});
  return writer;
}

void use(const text::Tokenizer& tokenizer) {
  for (const char* text : {"", "ab bc", "a<end>  b\n\xC3\xA9 12 'S", "▁b <two> <s>"}) {
    const auto ids = tokenizer.encode(text);
    tokenizer.decode(ids);
    tokenizer.decode(ids, true);
  }
  tokenizer.stop_token_ids();
  tokenizer.chat_template();
}

void use(const models::Model& model) {
  const auto tokens = torch::zeros({1, 3}, torch::kLong);
  auto cache = model.make_cache(1);
  model.forward(tokens, {.cache = &cache});
  if (model.has_tokenizer()) use(model.tokenizer());
}

}  // namespace

std::vector<Reader> readers(const fs::path& work, const fs::path& data) {
  const auto made = [&](const std::string& name, const auto& save) {
    save(work / name);
    return bytes_of(work / name);
  };
  // A folder in which one file is damaged; `name` is that file.
  const auto beside = [work](const std::string& folder,
                             const std::vector<std::pair<std::string, std::string>>& files) {
    const auto path = work / ("beside-" + folder);  // a reader's own folder has its name, and is emptied
    fs::create_directories(path);
    for (const auto& [name, bytes] : files) write(path / name, bytes);
    return path;
  };
  const auto placed = [](const fs::path& damaged, const fs::path& folder, const std::string& name) {
    fs::copy_file(damaged, folder / name, fs::copy_options::overwrite_existing);
    return folder;
  };

  const auto model_file =
      made("model.safetensors", [](const fs::path& path) { io::save_safetensors(path, weights()); });
  const auto gguf_file = made("model.gguf", [](const fs::path& path) { gguf_model().write(path); });
  const auto spm_file = made("spm.gguf", [](const fs::path& path) { gguf_sentencepiece().write(path); });
  const steering::ControlVector vector("qwen2", {{1, random_tensor({16}, 1)}, {2, random_tensor({16}, 2)}},
                                       {.model_name = "tiny", .model_hash = "ab", .method = "pca_center"});
  const auto tiny = tiny_model(0, torch::kFloat32);
  hooks::TensorTable table;
  const auto intervention = hooks::to_json(
      {.op = "add", .values = {{1, random_tensor({16}, 3)}}, .strength = 2.0, .positions = {1, 2}}, table);
  const auto config_folder = beside("config", {{"model.safetensors", model_file}});
  const auto index_folder = beside("index", {{"config.json", kConfig}, {"model.safetensors", model_file}});
  const auto tokenizer_folder = beside("tokenizer", {{"tokenizer.json", kByteLevel}});

  std::string index = R"({"metadata": {"total_size": 1}, "weight_map": {)";
  for (const auto& [name, tensor] : weights())
    index += (index.back() == '{' ? "\"" : ", \"") + name + R"(": "model.safetensors")";
  index += "}}";

  std::vector<Reader> out;
  out.push_back({"safetensors", "x.safetensors", {model_file}, [](const fs::path& path) {
                   const auto file = io::SafetensorsFile::open(path);
                   file->metadata();
                   read_all(*file);
                 }});
  out.push_back({"gguf", "x.gguf", {gguf_file, spm_file}, [](const fs::path& path) {
                   const auto file = io::GgufFile::open(path);
                   file->metadata();
                   read_all(*file);
                 }});
  out.push_back(
      {"gguf-model", "x.gguf", {gguf_file}, [](const fs::path& path) { use(*models::Model::load(path)); }});
  out.push_back({"gguf-tokenizer", "x.gguf", {gguf_file, spm_file}, [](const fs::path& path) {
                   use(text::Tokenizer::load(path));
                 }});
  out.push_back(
      {"tokenizer-json", "tokenizer.json", {kByteLevel, kSentencePieceLike}, [](const fs::path& path) {
         use(text::Tokenizer::load(path));
       }});
  out.push_back(
      {"tokenizer-model",
       "tokenizer.model",
       {bytes_of(data / "fuzz" / "seeds" / "bpe.model"), bytes_of(data / "fuzz" / "seeds" / "unigram.model")},
       [](const fs::path& path) { use(text::Tokenizer::load(path)); }});
  out.push_back({"tokenizer-config", "tokenizer_config.json", {kTokenizerConfig}, [=](const fs::path& path) {
                   use(text::Tokenizer::load(placed(path, tokenizer_folder, "tokenizer_config.json")));
                 }});
  out.push_back({"config", "config.json", {kConfig}, [=](const fs::path& path) {
                   use(*models::Model::load(placed(path, config_folder, "config.json")));
                 }});
  out.push_back({"index", "model.safetensors.index.json", {index}, [=](const fs::path& path) {
                   read_all(*io::open_tensors(placed(path, index_folder, "model.safetensors.index.json") /
                                              "model.safetensors.index.json"));
                 }});
  out.push_back({"chat",
                 "chat_template.jinja",
                 {bytes_of(data / "chat_templates" / "chatml.jinja"),
                  bytes_of(data / "chat_templates" / "llama-3.jinja")},
                 [](const fs::path& path) {
                   const auto chat = text::ChatTemplate::from_jinja(bytes_of(path), "<s>", "</s>");
                   chat.render({{"user", "Hi!"}}, {.add_generation_prompt = true});
                 }});
  out.push_back({"protocol", "protocol.json", {kProtocol}, [](const fs::path& path) {
                   const auto protocol = experiments::Protocol::load(path);
                   experiments::Protocol::parse(protocol.to_json()).hash();
                 }});
  out.push_back({"intervention", "intervention.json", {intervention}, [table](const fs::path& path) {
                   hooks::TensorTable again;
                   hooks::to_json(hooks::from_json(bytes_of(path), table), again);
                 }});
  out.push_back({"vector-gguf",
                 "x.gguf",
                 {made("vector.gguf", [&](const fs::path& path) { vector.export_gguf(path); })},
                 [](const fs::path& path) { steering::ControlVector::load(path).norms(); }});
  out.push_back({"vector-safetensors",
                 "x.safetensors",
                 {made("vector.safetensors", [&](const fs::path& path) { vector.save_safetensors(path); })},
                 [](const fs::path& path) { steering::ControlVector::load(path).norms(); }});
  out.push_back({"cache",
                 "x.safetensors",
                 {made("cache.safetensors",
                       [&](const fs::path& path) {
                         auto cache = tiny->make_cache(2);
                         const auto mask = torch::tensor({{1, 1, 1}, {0, 1, 1}}).to(torch::kBool);
                         tiny->forward(torch::zeros({2, 3}, torch::kLong),
                                       {.cache = &cache, .attention_mask = mask});
                         models::save_cache(cache, path, "ab");
                       })},
                 [](const fs::path& path) { models::load_cache(path).fork().truncate(0); }});
  out.push_back({"activations",
                 "x.safetensors",
                 {made("activations.safetensors",
                       [&](const fs::path& path) {
                         auto activations = activations::without_values(*tiny, {});
                         activations.values_NLD =
                             torch::ones({4, static_cast<int64_t>(activations.layers.size()), 16});
                         activations.texts_hash = "cd";
                         activations.save(path);
                       })},
                 [](const fs::path& path) { activations::Activations::load(path); }});
  out.push_back({"reading", "reading.json", {kReading}, [](const fs::path& path) {
                   experiments::Reading::from_json(experiments::Reading::from_json(bytes_of(path)).to_json());
                 }});
  out.push_back(
      {"torch-zip",
       "x.pt",
       {made("x.pt",
             [](const fs::path& path) {
               using io::TorchValue;
               const auto list = TorchValue::list({{int64_t{3}}, {2.5}, {std::monostate()}, {true}});
               io::save_torch_zip(path, TorchValue::dict({{{std::string("a")}, {random_tensor({3, 4}, 1)}},
                                                          {{int64_t{7}}, list}}));
             })},
       [](const fs::path& path) { io::read_torch_zip(path); }});
  out.push_back({"lens",
                 "lens.pt",
                 {made("lens.pt",
                       [](const fs::path& path) {
                         analysis::Lens(
                             analysis::LensKind::jacobian, {"tiny", "ab", "", 3, 4},
                             {{0, {random_tensor({4, 4}, 1), {}}}, {1, {random_tensor({4, 4}, 2), {}}}})
                             .save(path);
                       })},
                 [](const fs::path& path) { analysis::Lens::load(path); }});
  out.push_back({"store",
                 "cells.sqlite",
                 {made("cells.sqlite",
                       [](const fs::path& path) {
                         const auto store = experiments::Store::open(path);
                         for (const char* key : {"k1", "k2", "k3"})
                           store->put({key, kReading}, {"tiny", "ab", "float32", "cpu", "mine", "cd", 0,
                                                        "absolute", "0.1.0", "2.13.0"});
                       })},
                 [](const fs::path& path) {
                   const auto store = experiments::Store::open(path);
                   store->size();
                   for (const auto& row : store->rows()) experiments::Reading::from_json(row.cell.value);
                   store->runs();
                   store->get("k2");
                   store->problems();
                 }});
  return out;
}

}  // namespace introspect::testing
