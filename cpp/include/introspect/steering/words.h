#pragma once

#include <string>
#include <vector>

#include "introspect/activations/collect.h"
#include "introspect/export.h"
#include "introspect/models/model.h"
#include "introspect/steering/control_vector.h"

namespace introspect::steering {

/// A list of words that comes with the library: "concepts" (50), "baseline" (100), "more_concepts" (450) or
/// "concepts_lindsey" (50). Source: see cpp/share/SOURCES.md.
///
/// Throws std::invalid_argument for another name, listing them, and IoError as io::share_folder does.
INTROSPECT_EXPORT std::vector<std::string> load_words(const std::string& name);

/// What a word is put into before it is read.
struct WordPrompts {
  std::vector<std::string> templates = {"Tell me about {word}."};  ///< each with {word} in it
  bool chat = true;  ///< as the user's message, with the head of the answer after it; false: plain text
};

/// The prompts of one word, one a template.
///
/// Throws std::invalid_argument for an empty word, no templates or one without {word}, ConfigError for a chat with a
/// model without chat template.
INTROSPECT_EXPORT std::vector<std::string> word_prompts(const models::Model& model, const std::string& word,
                                                        const WordPrompts& prompts = {});

/// Concept vectors from single words: the mean activation over a word's prompts minus the mean over the baseline words'
/// prompts, at its own length; all prompts are one token trie.
///
/// Returns the vectors in the order of the words. Throws as word_prompts and collect_activations do, and
/// std::invalid_argument for no words, no baseline words, activations that are not finite, naming layer and prompt, and
/// a word that does not differ from the baseline, naming the layer.
/// Source: Lindsey 2025, "Emergent Introspective Awareness in Large Language Models"; Macar et al. 2026.
INTROSPECT_EXPORT std::vector<ControlVector> train_words(const models::Model& model,
                                                         const std::vector<std::string>& words,
                                                         const std::vector<std::string>& baseline_words,
                                                         const WordPrompts& prompts = {},
                                                         const activations::CollectOptions& options = {});

}  // namespace introspect::steering
