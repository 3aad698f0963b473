// A readout that only this file knows, all the way: protocol, run, result, store, and found there again.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "introspect/core/error.h"
#include "introspect/experiments/readouts.h"
#include "introspect/experiments/run.h"

#include "tiny_model.h"

using namespace introspect;
using experiments::Need;
using experiments::PreparedReadout;
using experiments::Protocol;
using experiments::Readout;
using experiments::ReadoutInputs;
using experiments::ReadoutRequest;
using experiments::Value;
using Json = nlohmann::json;
namespace fs = std::filesystem;

namespace {

constexpr int64_t kLayers = 3, kWidth = 16;

struct Folder {
  fs::path path = fs::temp_directory_path() / ("introspect-readouts-" + std::to_string(getpid()));
  Folder() { fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
};

void append_utf8(std::string& text, int code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else {
    text += static_cast<char>(0xC0 | (code >> 6));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

/// GPT-2's byte-level vocabulary with " yes" and " no" as tokens, and the marks of ChatML.
Json tokenizer_json() {
  Json vocab = Json::object(), merges = Json::array(), added = Json::array();
  int next = 256;
  std::map<int, std::string> letters;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    append_utf8(letters[byte], is_printable ? byte : next++);
    vocab[letters[byte]] = byte;
  }
  for (const std::string word : {" yes", " no"}) {
    std::string so_far = letters[static_cast<unsigned char>(word[0])];
    for (size_t i = 1; i < word.size(); ++i) {
      const auto letter = letters[static_cast<unsigned char>(word[i])];
      if (!vocab.contains(so_far + letter)) {
        vocab[so_far + letter] = vocab.size();
        merges.push_back({so_far, letter});
      }
      so_far += letter;
    }
  }
  const int64_t n_vocab = static_cast<int64_t>(vocab.size());
  int64_t id = n_vocab;
  for (const auto* mark : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"})
    added.push_back({{"id", id++},
                     {"content", mark},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  const Json byte_level{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"pre_tokenizer", byte_level},
          {"decoder", byte_level},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", merges}, {"byte_fallback", false}}}};
}

/// Three blocks as Llama's, of random weights in float64, that can chat.
std::shared_ptr<const models::Model> chat_model(const Folder& folder) {
  constexpr int64_t D = kWidth, M = 24, V = 268;
  std::map<std::string, torch::Tensor> tensors;
  uint64_t seed = 0;
  const auto weight = [&](const std::string& name, at::IntArrayRef sizes) {
    tensors[name] = 0.4 * testing::random_tensor(sizes, seed++);
  };
  weight("model.embed_tokens.weight", {V, D});
  weight("lm_head.weight", {V, D});
  tensors["model.norm.weight"] = at::ones({D}, torch::kFloat64);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto block = "model.layers." + std::to_string(layer) + ".";
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
      tensors[block + norm] = 1 + 0.1 * testing::random_tensor({D}, seed++);
    for (const char* name : {"q", "k", "v", "o"})
      weight(block + "self_attn." + name + "_proj.weight", {D, D});
    weight(block + "mlp.gate_proj.weight", {M, D});
    weight(block + "mlp.up_proj.weight", {M, D});
    weight(block + "mlp.down_proj.weight", {D, M});
  }
  const auto config = Json{{"architectures", {"LlamaForCausalLM"}},
                           {"model_type", "llama"},
                           {"hidden_size", D},
                           {"num_attention_heads", 4},
                           {"num_key_value_heads", 4},
                           {"intermediate_size", M},
                           {"vocab_size", V},
                           {"max_position_embeddings", 512},
                           {"hidden_act", "silu"},
                           {"rms_norm_eps", 1e-6},
                           {"tie_word_embeddings", false},
                           {"num_hidden_layers", kLayers}};
  std::ofstream(folder.path / "tokenizer.json") << tokenizer_json().dump();
  models::LoadOptions options;
  options.dtype = torch::kFloat64;
  options.chat_template = text::ChatTemplate::named("chatml");
  return models::Model::from_tensors(config.dump(), std::move(tensors), folder.path / "tokenizer.json",
                                     options);
}

/// The norm of the residual stream after every block, and the cosine of the last one with the unsteered run's.
std::optional<PreparedReadout> prepare(const ReadoutRequest& request) {
  if (!request.parameter) return std::nullopt;
  PreparedReadout out;
  auto unsteered = Need::last_residual(request.model.cfg());
  unsteered.is_unsteered = true;
  out.needs = {Need::residuals(), unsteered};
  out.fields = {{"resid_norm", request.model.cfg().n_layers}};
  out.read = [](const ReadoutInputs& inputs) {
    const auto& resid_LD = inputs.needed[0][0];
    Value::Fields fields{{"resid_norm", experiments::numbers(resid_LD.norm(2, {1}))}};
    if (inputs.needed[1].defined())
      fields.emplace_back("resid_cosine",
                          at::cosine_similarity(resid_LD[-1], inputs.needed[1][0][0], 0).item<double>());
    return fields;
  };
  return out;
}

Readout resid_norm() {
  Readout out;
  out.name = "resid_norm";
  out.prepare = prepare;
  out.fields = {"resid_norm", "resid_cosine"};
  out.check = [](const std::string& field, const Value& value) -> std::string {
    const auto* const norms = value.get_if<Value::Numbers>();
    const bool fits = field != "resid_norm" || (norms && std::all_of(norms->begin(), norms->end(),
                                                                     [](double norm) { return norm >= 0; }));
    return fits ? "" : "resid_norm must be of norms";
  };
  return out;
}

Json protocol_json() {
  return Json::parse(R"({
    "name": "mine",
    "turns": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "{ }"},
              {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "It is"}],
    "injected": [1],
    "readouts": {"resid_norm": true}
  })");
}

const Value::Numbers& norms(const experiments::Reading& reading) {
  return *reading.values.at("resid_norm").get_if<Value::Numbers>();
}

}  // namespace

TEST_CASE("a readout of one file goes from the protocol to the store and back", "[experiments][readouts]") {
  experiments::register_readout(resid_norm());
  const Folder folder;
  const auto model = chat_model(folder);
  const auto protocol = Protocol::parse(protocol_json().dump());
  const bool is_same =
      Protocol::parse(protocol.to_json()).readouts == protocol.readouts;  // maps cannot be shown
  CHECK(is_same);

  const auto direction = testing::random_tensor({kWidth}, 77).to(torch::kFloat32);
  const steering::ControlVector vector("llama", {{1, direction}});
  experiments::ExperimentOptions options;
  options.strengths = {2.0};
  options.layers = {experiments::LayerRange::blocks(1, 1)};
  options.questions = std::vector<std::string>{};
  options.nulls = 0;
  options.store = experiments::Store::open(folder.path / "cells.sqlite");
  const auto result = experiments::run_experiment(model, protocol, {{"cat", vector}}, options);
  REQUIRE(result.rows.size() == 1);

  const auto tokens =
      experiments::tokenize(protocol.conversation, model->tokenizer(), model->chat_template());
  auto ids = tokens.before;
  ids.insert(ids.end(), tokens.injected.begin(), tokens.injected.end());
  ids.insert(ids.end(), tokens.after.begin(), tokens.after.end());
  hooks::Intervention added;
  added.values[1] = direction;
  added.strength = 2.0;
  added.first_position = static_cast<int64_t>(tokens.before.size());
  added.last_position = static_cast<int64_t>(tokens.before.size() + tokens.injected.size());
  const auto last = static_cast<int64_t>(ids.size()) - 1;
  const auto resid_LD = [&](const std::vector<hooks::Intervention>& interventions) {
    return testing::run_alone(*model, ids, interventions).at(hooks::Point::kResidPost, {0, 1, 2}, {last})[0];
  };
  const auto base = resid_LD({}), injected = resid_LD({added});
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const auto i = static_cast<size_t>(layer);
    CHECK(norms(result.rows[0].base)[i] == Approx(base[layer].norm().item<double>()).epsilon(1e-9));
    CHECK(norms(result.rows[0].injected)[i] == Approx(injected[layer].norm().item<double>()).epsilon(1e-9));
  }
  CHECK(norms(result.rows[0].base) != norms(result.rows[0].injected));
  const auto cosine = at::cosine_similarity(base[2], injected[2], 0).item<double>();
  CHECK(result.rows[0].injected.values.at("resid_cosine").number() == Approx(cosine).epsilon(1e-9));
  CHECK(result.rows[0].base.values.count("resid_cosine") == 0);

  const auto json = Json::parse(result.to_json());
  CHECK(json["rows"][0]["injected"]["resid_norm"].size() == kLayers);

  // What is in the store is found by another run, which then runs nothing, and not by one that reads something else.
  options.store = experiments::Store::open(folder.path / "cells.sqlite");
  const auto plan = experiments::plan_experiments(model, {protocol}, {{"cat", vector}}, options);
  CHECK(plan.found == plan.readings);
  CHECK(plan.readings == 2);
  const auto again = experiments::run_experiment(model, protocol, {{"cat", vector}}, options);
  CHECK(again.to_json() == result.to_json());
  auto without = protocol;
  without.readouts.clear();
  CHECK(experiments::plan_experiments(model, {without}, {{"cat", vector}}, options).found == 0);

  // A new version of a readout does not take the numbers of the old one for its own.
  auto newer = resid_norm();
  newer.version = 2;
  experiments::register_readout(newer);
  CHECK(experiments::plan_experiments(model, {protocol}, {{"cat", vector}}, options).found == 0);
}

TEST_CASE("a reading whose field cannot be its readout's is refused", "[experiments][readouts]") {
  experiments::register_readout(resid_norm());
  const std::string start = R"({"log_odds": 1.5, "p_yes": 0.5, "p_no": 0.1, )";
  CHECK(experiments::problem_of_reading(start + R"("resid_norm": [1.0, 2.0]})").empty());
  CHECK_FALSE(experiments::problem_of_reading(start + R"("resid_norm": [-1.0, 2.0]})").empty());
  CHECK_FALSE(experiments::problem_of_reading(start + R"("attention": [1.0]})").empty());
  CHECK(experiments::problem_of_reading(start + R"("of_another_program": [1.0]})").empty());
}

TEST_CASE("an unknown readout is named with the nearest and all names", "[experiments][readouts]") {
  auto json = protocol_json();
  json["readouts"] = {{"lenz", true}};
  CHECK_THROWS_AS(Protocol::parse(json.dump()), ConfigError);
  CHECK_THROWS_WITH(Protocol::parse(json.dump()), Catch::Contains("lenz") &&
                                                      Catch::Contains("nearest names are lens") &&
                                                      Catch::Contains("continuations"));
  json["readouts"] = {{"lens", 3}};
  CHECK_THROWS_WITH(Protocol::parse(json.dump()),
                    Catch::Contains("readouts.lens must be true, false or the path of a lens, got 3"));
  json["readouts"] = {{"top_k", -1}};
  CHECK_THROWS_WITH(Protocol::parse(json.dump()),
                    Catch::Contains("readouts.top_k must be 0 or more, got -1"));
  json["readouts"] = {{"text", true}};
  CHECK_THROWS_WITH(Protocol::parse(json.dump()), Catch::Contains("not asked for by name"));
}

TEST_CASE("a readout of the library keeps its name and its fields", "[experiments][readouts]") {
  auto taken = resid_norm();
  taken.name = "lens";
  CHECK_THROWS_AS(experiments::register_readout(taken), ConfigError);
  taken.name = "other";
  taken.fields = {"kl"};
  CHECK_THROWS_AS(experiments::register_readout(taken), ConfigError);
  CHECK_THROWS_AS(experiments::register_readout(Readout{}), ConfigError);
  taken.fields = {};
  taken.prepare = {};
  CHECK_THROWS_AS(experiments::register_readout(taken), std::invalid_argument);
}

TEST_CASE("values survive their JSON to the last bit, in their order", "[experiments][readouts]") {
  const std::string text =
      R"({"z":[1.0,null,-0.3333333333333333],"a":{"b":[1,2.5],"c":[]},"t":"x","f":true,"n":7})";
  CHECK(Value::from_json(text).to_json() == text);
  CHECK_THROWS_AS(Value::from_json("{"), IoError);
}
