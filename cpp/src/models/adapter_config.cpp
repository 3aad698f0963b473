#include "models/adapter_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <set>

#include <nlohmann/json.hpp>

#include "core/json.h"
#include "introspect/core/check.h"
#include "io/json_file.h"
#include "text/text_budget.h"

namespace introspect::models {

namespace {

using Field = JsonField<ConfigError>;

bool matches_all(const text::Pattern& pattern, const std::string& name) {
  text::TextBudget budget(name.size());
  return !pattern.matches(name, budget).empty();
}

/// Python's re.fullmatch.
text::Pattern whole(const std::string& source, const std::string& who) {
  return text::Pattern("\\A(?:" + source + ")\\z", who);
}

/// A list of ends of names, or a text that is a pattern.
ModuleChoice read_choice(const Field& field, const std::string& who) {
  ModuleChoice out;
  if (field.is_null()) return out;
  if (field.value().is_string()) {
    auto word = field.text();
    std::ranges::transform(word, word.begin(), [](unsigned char c) { return std::tolower(c); });
    out.all = word == "all-linear";
    if (!out.all) out.patterns.push_back(whole(field.text(), who));
    return out;
  }
  for (size_t i = 0; i < field.list(); ++i) out.ends.push_back(field.at(i).text());
  return out;
}

/// What a table of patterns gives a module: the value of the first that matches; `otherwise` if none does.
template <typename T>
T value_of(const std::vector<std::pair<text::Pattern, T>>& table, const std::string& module, T otherwise) {
  std::set<T> found;
  for (const auto& [pattern, value] : table)
    if (matches_all(pattern, module)) found.insert(value);
  check<ConfigError>(found.size() < 2, "adapter: rank_pattern or alpha_pattern has several values for '",
                     module, "'");
  return found.empty() ? otherwise : *found.begin();
}

bool is_off(const nlohmann::json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty());
}

/// Throws ConfigError unless every field of the file is one that is read here, changes nothing, or is off.
void check_fields(const Field& config) {
  // What is read below, then what only training, saving or other kinds of models depend on.
  static const std::set<std::string> known = {"peft_type",
                                              "r",
                                              "lora_alpha",
                                              "use_rslora",
                                              "target_modules",
                                              "exclude_modules",
                                              "rank_pattern",
                                              "alpha_pattern",
                                              "layers_to_transform",
                                              "bias",
                                              "base_model_name_or_path",
                                              "init_lora_weights",
                                              "layers_pattern",
                                              "fan_in_fan_out",
                                              "task_type",
                                              "peft_version",
                                              "auto_mapping",
                                              "revision",
                                              "inference_mode",
                                              "lora_dropout",
                                              "loftq_config",
                                              "eva_config",
                                              "corda_config",
                                              "lora_ga_config",
                                              "megatron_core",
                                              "qalora_group_size",
                                              "runtime_config",
                                              "ensure_weight_tying"};
  config.for_each_field([&](const std::string& name, const Field& field) {
    field.require(known.contains(name) || is_off(field.value()), "is not supported: only plain LoRA is, got ",
                  describe(field.value()));
  });
  config.at("peft_type")
      .require(config.at("peft_type").text() == "LORA", "must be LORA, got ",
               describe(config.at("peft_type").value()));
  if (config.has("bias") && !config.at("bias").is_null())
    config.at("bias").require(config.at("bias").text() == "none", "must be none, got ",
                              describe(config.at("bias").value()));
  if (!config.has("init_lora_weights") || config.at("init_lora_weights").value().is_boolean()) return;
  const auto start = config.at("init_lora_weights");
  static const std::set<std::string> harmless = {"gaussian", "eva", "orthogonal"};
  start.require(start.is_null() || harmless.contains(start.text()),
                "is not supported: peft changes the base model "
                "for it, got ",
                describe(start.value()));
}

}  // namespace

bool ModuleChoice::has(const std::string& module) const {
  const auto is_end = [&](const std::string& end) { return module == end || module.ends_with("." + end); };
  return all || std::ranges::any_of(ends, is_end) ||
         std::ranges::any_of(patterns,
                             [&](const text::Pattern& pattern) { return matches_all(pattern, module); });
}

bool AdapterConfig::is_target(const std::string& module, int64_t layer) const {
  if (excluded.has(module) || !targets.has(module)) return false;
  return layers.empty() || std::ranges::find(layers, layer) != layers.end();
}

int64_t AdapterConfig::rank_of(const std::string& module) const {
  return value_of(ranks, module, rank);
}

double AdapterConfig::scaling_of(const std::string& module) const {
  const auto r = static_cast<double>(rank_of(module));
  return value_of(alphas, module, alpha) / (rank_stabilised ? std::sqrt(r) : r);
}

AdapterConfig parse_adapter_config(const nlohmann::json& json, const std::string& who) {
  const Field config(json, who);
  check_fields(config);
  const auto given = [&](const char* name) { return config.has(name) && !config.at(name).is_null(); };

  AdapterConfig out;
  out.text = json.dump(2);
  out.rank = config.at("r").integer();
  out.alpha = config.at("lora_alpha").number();
  out.rank_stabilised = given("use_rslora") && config.at("use_rslora").boolean();
  out.targets = read_choice(config.at("target_modules"), who + "target_modules");
  if (given("exclude_modules"))
    out.excluded = read_choice(config.at("exclude_modules"), who + "exclude_modules");
  if (given("layers_to_transform")) {
    const auto layers = config.at("layers_to_transform");
    out.layers = layers.value().is_array() ? layers.integers() : std::vector{layers.integer()};
  }
  // peft matches these keys as (.*\.)?(key)$ from the start of a name.
  const auto for_each_pattern = [&](const char* name, const auto& add) {
    if (!given(name)) return;
    config.at(name).for_each_field([&](const std::string& key, const Field& field) {
      add(whole("(?:.*\\.)?(?:" + key + ")", who + name), field);
    });
  };
  for_each_pattern("rank_pattern", [&](text::Pattern pattern, const Field& rank) {
    out.ranks.emplace_back(std::move(pattern), rank.integer());
  });
  for_each_pattern("alpha_pattern", [&](text::Pattern pattern, const Field& alpha) {
    out.alphas.emplace_back(std::move(pattern), alpha.number());
  });
  if (given("base_model_name_or_path")) out.base_model = config.at("base_model_name_or_path").text();
  config.at("r").require(out.rank > 0, "must be positive, got ", out.rank);
  return out;
}

AdapterConfig read_adapter_config(const std::filesystem::path& path) {
  return parse_adapter_config(io::read_json_object(path), path.string() + ": ");
}

}  // namespace introspect::models
