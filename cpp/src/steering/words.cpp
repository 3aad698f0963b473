#include "introspect/steering/words.h"

#include <stdexcept>
#include <utility>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/io/share.h"
#include "io/json_file.h"

#include "core/excerpt.h"

namespace introspect::steering {
namespace {

const std::string kWord = "{word}";

std::string filled(std::string text, const std::string& word) {
  for (auto at = text.find(kWord); at != std::string::npos; at = text.find(kWord, at + word.size()))
    text.replace(at, kWord.size(), word);
  return text;
}

void check_finite(const activations::Activations& activations, const std::vector<std::string>& texts) {
  const auto broken = activations.values_NLD.isfinite().all(2).logical_not().nonzero();
  if (broken.size(0) == 0) return;
  const auto row = broken[0][0].item<int64_t>(), layer_at = broken[0][1].item<int64_t>();
  throw std::invalid_argument(concat("train_words: layer ", activations.layers[static_cast<size_t>(layer_at)],
                                     ": activations must be finite, got NaN or infinity for ",
                                     excerpt(texts[static_cast<size_t>(row)])));
}

}  // namespace

std::vector<std::string> load_words(const std::string& name) {
  const auto lists = io::read_json(io::share_folder() / "words.json");
  std::string names;
  for (const auto& [known, words] : lists.items()) names += (names.empty() ? "" : ", ") + known;
  check<std::invalid_argument>(lists.contains(name), "load_words: name must be one of ", names, ", got ",
                               excerpt(name));
  return lists[name].get<std::vector<std::string>>();
}

std::vector<std::string> word_prompts(const models::Model& model, const std::string& word,
                                      const WordPrompts& prompts) {
  check<std::invalid_argument>(!word.empty(), "word_prompts: the word must not be empty");
  check<std::invalid_argument>(!prompts.templates.empty(),
                               "word_prompts: at least one template is needed, got none");
  std::vector<std::string> out;
  for (const auto& one : prompts.templates) {
    check<std::invalid_argument>(one.find(kWord) != std::string::npos,
                                 "word_prompts: a template must hold {word}, got '", one, "'");
    auto text = filled(one, word);
    if (prompts.chat) text = model.chat_template().render({{"user", text}}, {.add_generation_prompt = true});
    out.push_back(std::move(text));
  }
  return out;
}

std::vector<ControlVector> train_words(const models::Model& model, const std::vector<std::string>& words,
                                       const std::vector<std::string>& baseline_words,
                                       const WordPrompts& prompts,
                                       const activations::CollectOptions& options) {
  check<std::invalid_argument>(!words.empty(), "train_words: at least one word is needed, got none");
  check<std::invalid_argument>(!baseline_words.empty(),
                               "train_words: at least one baseline word is needed, got none");
  std::vector<std::string> texts;
  for (const auto* list : {&words, &baseline_words})
    for (const auto& word : *list)
      for (auto& prompt : word_prompts(model, word, prompts)) texts.push_back(std::move(prompt));
  const auto read = activations::collect_activations(model, texts, options);
  check_finite(read, texts);

  const auto n_prompts = static_cast<int64_t>(prompts.templates.size());
  const auto n_words = static_cast<int64_t>(words.size());
  const auto mean_LD = [&](int64_t first, int64_t n) {
    return read.values_NLD.narrow(0, first * n_prompts, n * n_prompts).mean(0, false, torch::kFloat64);
  };
  const auto baseline_LD = mean_LD(n_words, static_cast<int64_t>(baseline_words.size()));
  VectorOrigin origin;
  origin.model_name = read.model_name;
  origin.model_hash = read.model_hash;
  origin.method = concat("word minus the mean over ", baseline_words.size());
  origin.point = hooks::point_name(read.point);
  origin.read_position = to_string(read.position);
  origin.last_layer_after_norm = read.last_layer_after_norm;

  std::vector<ControlVector> vectors;
  for (int64_t w = 0; w < n_words; ++w) {
    const auto direction_LD = mean_LD(w, 1) - baseline_LD;
    ControlVector::Directions directions;
    for (size_t i = 0; i < read.layers.size(); ++i) {
      auto direction_D = direction_LD[static_cast<int64_t>(i)];
      check<std::invalid_argument>(direction_D.count_nonzero().item<int64_t>() > 0, "train_words: layer ",
                                   read.layers[i], ": '", words[static_cast<size_t>(w)],
                                   "' must differ from the mean over the baseline words: no variance");
      directions.emplace(read.layers[i], std::move(direction_D));
    }
    origin.concept_name = words[static_cast<size_t>(w)];
    vectors.emplace_back(read.model_type, directions, origin);
  }
  return vectors;
}

}  // namespace introspect::steering
