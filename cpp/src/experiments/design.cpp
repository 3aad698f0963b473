#include "experiments/design.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "introspect/core/check.h"

#include "experiments/injections.h"
#include "experiments/placeholders.h"
#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

void check_options(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                   const ExperimentOptions& options) {
  check<std::invalid_argument>(!takes_vectors(protocol) || !vectors.empty(),
                               "run_experiment: at least one vector is needed, got none");
  check<std::invalid_argument>(
      !options.strengths->empty() && !options.layers.empty() && !options.parts.empty(),
      "run_experiment: at least one strength, one layer range and one part are needed");
  for (const auto strength : *options.strengths)
    check<std::invalid_argument>(std::isfinite(strength), "run_experiment: strengths must be finite, got ",
                                 strength);
  for (const auto& [first, last] : options.parts)
    check<std::invalid_argument>(first >= 0 && first < last && last <= 1,
                                 "run_experiment: parts must be fractions in order and from 0 to 1, got ",
                                 first, " to ", last);
  check<std::invalid_argument>(options.nulls >= 0, "run_experiment: nulls must be 0 or more, got ",
                               options.nulls);
  for (const auto& [name, parameter] : options.readouts) {
    const auto problem = problem_of_parameter(name, parameter);
    check<std::invalid_argument>(problem.empty(), "run_experiment: ", name, " ", problem);
  }
  check<std::invalid_argument>(!options.control_filter || !std::isnan(*options.control_filter),
                               "run_experiment: control_filter must be a number, got nan");
  const auto check_width = [&](const std::string& name, const steering::ControlVector& vector) {
    check<ShapeError>(vector.d_model() == model.cfg().d_model, "run_experiment: vector '", name,
                      "' must be as wide as the model (", model.cfg().d_model, "), got ", vector.d_model());
  };
  for (const auto& [name, vector] : vectors) check_width(name, vector);
  for (const auto& [name, vector] : options.directions) {
    check_width(name, vector);
    check<std::out_of_range>(vector.layers().back() < model.cfg().n_layers, "run_experiment: direction '",
                             name, "' must be of layers below ", model.cfg().n_layers, ", got ",
                             vector.layers().back());
  }
  for (const auto& [name, nulls] : options.null_vectors) {
    const bool known = std::any_of(vectors.begin(), vectors.end(),
                                   [&name = name](const auto& vector) { return vector.first == name; });
    check<std::invalid_argument>(known, "run_experiment: null_vectors must be of the vectors' names, got '",
                                 name, "'");
    for (const auto& vector : nulls) check_width(name, vector);
  }
  for (const auto& own : options.own_strengths) {
    check<std::invalid_argument>(own.strengths.size() == options.strengths->size(),
                                 "run_experiment: own_strengths of '", own.concept_name,
                                 "' must be as many as ", "strengths (", options.strengths->size(), "), got ",
                                 own.strengths.size());
    for (const auto strength : own.strengths)
      check<std::invalid_argument>(std::isfinite(strength), "run_experiment: own_strengths of '",
                                   own.concept_name, "' must be finite, got ", strength);
  }
  for (const auto& [name, factors] : options.null_factors) {
    const bool known = std::any_of(vectors.begin(), vectors.end(),
                                   [&name = name](const auto& vector) { return vector.first == name; });
    check<std::invalid_argument>(known, "run_experiment: null_factors must be of the vectors' names, got '",
                                 name, "'");
    const auto wanted = n_nulls(protocol, name, options);
    check<std::invalid_argument>(static_cast<int64_t>(factors.size()) == wanted,
                                 "run_experiment: null_factors['", name,
                                 "'] must be one for each of its nulls (", wanted, "), got ", factors.size());
    for (const auto factor : factors)
      check<std::invalid_argument>(std::isfinite(factor), "run_experiment: null_factors['", name,
                                   "'] must be finite, got ", factor);
  }
}

/// Puts the question into the scene it shares its beginning with, or into one of its own.
Scene& add_ask(const models::Model& model, const Conversation& conversation, Ask ask, Design& design) {
  auto tokens = tokenize(conversation, model.tokenizer(), model.chat_template());
  ask.after = std::move(tokens.after);
  for (auto& scene : design.scenes)
    if (scene.before == tokens.before && scene.injected == tokens.injected && scene.spans == tokens.spans) {
      scene.asks.push_back(std::move(ask));
      return scene;
    }
  design.scenes.push_back(
      {std::move(tokens.before), std::move(tokens.injected), std::move(tokens.spans), {std::move(ask)}, {}});
  return design.scenes.back();
}

Ids variants(const text::Tokenizer& tokenizer, int64_t first, const std::vector<std::string>& texts,
             Design& design) {
  Ids out{first};
  for (const auto& text : texts) {
    const auto ids = tokenizer.encode(text, /*add_special_tokens=*/false);
    if (ids.size() != 1)
      design.warnings.push_back(
          concat("'", text, "' is ", ids.size(), " tokens of this model, so the lens does not count it"));
    else if (std::find(out.begin(), out.end(), ids[0]) == out.end())
      out.push_back(ids[0]);
  }
  return out;
}

/// What is read at questions of one kind. Needs of the question itself come before those of tokens after it.
Reads reads_of(const models::Model& model, const Design& design, bool is_own) {
  Reads out;
  out.needs.add(Need::last_residual(model.cfg()));  // of the log-odds
  for (const auto& one : design.readouts) {
    const auto& prepared = one->prepared;
    if (prepared.own_question_only && !is_own) continue;
    out.active.push_back(one.get());
    auto& sources = out.sources.emplace_back();
    for (const auto& need : prepared.needs) sources.push_back(out.needs.add(need));
    out.compares |= prepared.compares;
    out.samples |= prepared.reads_text;
  }
  if (out.compares) {
    auto need = Need::last_residual(model.cfg());
    need.is_unsteered = true;
    out.unsteered_resid = out.needs.add(need);
    out.needs.finish(out.unsteered_resid);
  }
  for (auto& sources : out.sources)
    for (auto& source : sources) out.needs.finish(source);
  return out;
}

void add_readouts(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                  const ExperimentOptions& options, Design& design) {
  const auto& tokenizer = model.tokenizer();
  design.yes_id = single_token(tokenizer, protocol.yes_token);
  design.no_id = single_token(tokenizer, protocol.no_token);
  design.yes_variants = variants(tokenizer, design.yes_id, protocol.yes_variants, design);
  design.no_variants = variants(tokenizer, design.no_id, protocol.no_variants, design);
  const auto asked = asked_for(protocol.readouts, options.readouts);
  const auto words = concepts(vectors, options);
  for (const auto& readout : readouts()) {
    const auto found = asked.find(readout->name);
    const auto* const parameter = found == asked.end() ? nullptr : &found->second;
    auto prepared = readout->prepare(
        {model, protocol, options, words, design.yes_variants, design.no_variants, parameter});
    if (!prepared) continue;
    check<std::invalid_argument>(static_cast<bool>(prepared->read), "run_experiment: readout '",
                                 readout->name, "' must have a function read");
    for (const auto& need : prepared->needs) {
      using What = graph::Read::What;
      const bool is_one = need.read.what != What::attention || need.read.positions.size() == 1;
      check<std::invalid_argument>(need.read.what != What::cache && is_one, "run_experiment: readout '",
                                   readout->name,
                                   "' may need activations, and the attention of one position; it needs ",
                                   need.read.what == What::cache ? "a cache" : "that of several");
    }
    design.warnings.insert(design.warnings.end(), prepared->warnings.begin(), prepared->warnings.end());
    design.readouts.push_back(std::make_unique<const ActiveReadout>(
        ActiveReadout{readout, parameter ? *parameter : Value(false), std::move(*prepared)}));
  }
  design.of_own = reads_of(model, design, /*is_own=*/true);
  design.of_controls = reads_of(model, design, /*is_own=*/false);
}

/// What stands in the injected messages' place in the other conversation.
void add_others(const models::Model& model, const Protocol& protocol, const std::vector<std::string>& words,
                Design& design) {
  const auto& own = design.scenes.front();
  for (const auto& word : words) {
    const auto other = tokenize(protocol.other(word), model.tokenizer(), model.chat_template());
    check<ConfigError>(other.before == own.before && other.after == own.asks.front().after, "protocol '",
                       protocol.name, "': inject.turns with '", word,
                       "' must leave the tokens around the injected messages as they are");
    check<ConfigError>(protocol.inject != Inject::patch || other.injected.size() == own.injected.size(),
                       "protocol '", protocol.name, "': inject.turns with '", word,
                       "' must have as many tokens as ", "the turns (", own.injected.size(),
                       ") where activations are patched, got ", other.injected.size());
    design.scenes.front().others[word] = other.injected;
  }
  check<ConfigError>(design.scenes.size() == 1, "protocol '", protocol.name,
                     "': its controls must share the injected messages, or be left out, where it injects by ",
                     to_string(protocol.inject));
}

/// As many tokens of the text that is swapped in as are injected.
void add_swapped(const models::Model& model, const Protocol& protocol, const std::vector<std::string>& words,
                 Design& design) {
  for (const auto& word : words) {
    const auto ids = model.tokenizer().encode(protocol.swapped(word), /*add_special_tokens=*/false);
    check<ConfigError>(!ids.empty(), "protocol '", protocol.name,
                       "': inject.text must have tokens of this model, got none of '", protocol.swapped(word),
                       "'");
    for (auto& scene : design.scenes) {
      auto& other = scene.others[swapped_name(protocol, word)];
      other.resize(scene.injected.size());
      for (size_t i = 0; i < other.size(); ++i) other[i] = ids[i % ids.size()];
    }
  }
}

/// The last user message, and the paraphrases of it; one that says the same is not asked twice.
void add_own_questions(const models::Model& model, const Protocol& protocol, Ask own, Design& design) {
  const auto repeats_it = [&](const Paraphrase& paraphrase) {
    const auto put = protocol.put(paraphrase).turns;
    return std::equal(put.begin(), put.end(), protocol.conversation.turns.begin(),
                      [](const auto& a, const auto& b) { return a.content == b.content; });
  };
  const auto& paraphrases = protocol.paraphrases;
  if (!paraphrases.empty()) own.paraphrase = kOwnQuestion;
  if (protocol.asks_own_question && std::none_of(paraphrases.begin(), paraphrases.end(), repeats_it))
    add_ask(model, protocol.conversation, own, design);
  for (const auto& paraphrase : paraphrases) {
    own.question = paraphrase.question;
    own.paraphrase = paraphrase.label();
    add_ask(model, protocol.put(paraphrase), own, design);
  }
}

/// The name of the conversation that control questions are asked in.
std::string controls_of(const Protocol& protocol, const ExperimentOptions& options, Design& design) {
  const auto chosen = options.controls ? options.controls : protocol.controls_in;
  const auto where = chosen.value_or(kOwnConversation);
  check<ConfigError>(where == kOwnConversation || (protocol.control && where == protocol.control_name),
                     "run_experiment: controls of protocol '", protocol.name, "' can be asked in ",
                     conversation_names(protocol), ", got '", where, "'");
  if (where != kOwnConversation) return protocol.is_own(where) ? kOwnConversation : where;
  const bool asks = !options.questions.value_or(protocol.control_questions).empty() ||
                    !options.groups.value_or(protocol.control_groups).empty();
  const bool has_unnamed_turns = protocol.control && protocol.control_name == Protocol{}.control_name;
  if (asks && !chosen && has_unnamed_turns && !protocol.is_own(protocol.control_name))
    design.warnings.push_back(
        concat("protocol '", protocol.name,
               "' gives its controls turns of another conversation than its own; they are asked ",
               "in its own, and in those only with controls='", protocol.control_name,
               "' or its controls.asked_in"));
  return kOwnConversation;
}

void add_scenes(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                const ExperimentOptions& options, Design& design) {
  add_readouts(model, protocol, vectors, options, design);
  const auto words = concepts(vectors, options);
  Ask own;
  own.question = protocol.own_question();
  own.question_kind = "introspection";
  own.keeps_steering = protocol.steer_generation;
  own.samples = design.of_own.samples;
  add_own_questions(model, protocol, own, design);
  design.controls = controls_of(protocol, options, design);
  bool asks_controls = false;
  const auto add_control = [&](const std::string& question, const std::string& group) {
    asks_controls = true;
    Ask ask;
    ask.question = question;
    ask.question_kind = "control";
    ask.group = group;
    ask.samples = design.of_controls.samples;
    ask.asked_in = design.controls;
    if (!protocol.paraphrases.empty()) ask.paraphrase = ask.question_kind;
    const auto& scene = add_ask(model, protocol.ask(question, design.controls), ask, design);
    check<ConfigError>(protocol.answers.empty() || scene.spans.size() == protocol.answers.size(),
                       "protocol '", protocol.name, "': its controls must have its passages");
  };
  for (const auto& question : options.questions.value_or(protocol.control_questions))
    add_control(question, "");
  for (const auto& [group, questions] : options.groups.value_or(protocol.control_groups)) {
    check<std::invalid_argument>(!group.empty(), "run_experiment: groups must have names, got ''");
    for (const auto& question : questions) add_control(question, group);
  }
  if (asks_controls && protocol.steer_generation)
    design.warnings.push_back(concat(
        "protocol '", protocol.name, "' keeps the injection on while its own question is asked, and control ",
        "questions are asked without it: a shift less theirs compares unlike things"));
  if (!protocol.other_turns.empty()) add_others(model, protocol, words, design);
  if (protocol.inject == Inject::swap) add_swapped(model, protocol, words, design);

  for (const auto& scene : design.scenes)
    for (const auto& ask : scene.asks)
      for (const auto& need : design.reads(ask).needs.steered())
        check<ShapeError>(scene.span_end() + static_cast<int64_t>(ask.after.size() + need.after.size()) <=
                              model.cfg().n_ctx,
                          "run_experiment: a continuation of ", need.after.size() + 1,
                          " tokens must fit into the model's ", model.cfg().n_ctx,
                          " positions after question '", ask.question, "'");
  for (const auto& scene : design.scenes)
    check<ShapeError>(scene.longest(protocol.sampling.max_new_tokens) <= model.cfg().n_ctx,
                      "run_experiment: protocol '", protocol.name, "' must fit into the model's ",
                      model.cfg().n_ctx, " positions, got ", scene.longest(protocol.sampling.max_new_tokens));
}

}  // namespace

Setting setting_of(const Ask& ask, const Injection* injection) {
  Setting out;
  static_cast<Asked&>(out) = ask;
  out.kind = "base";
  if (!injection) return out;
  static_cast<Injected&>(out) = *injection;
  out.kind = injection->null_index < 0 ? ask.question_kind : "random";
  return out;
}

Ranges reached(const Scene& scene, const Injection& injection) {
  const auto spans =
      injection.place < 0 ? scene.spans : Ranges{scene.spans.at(static_cast<size_t>(injection.place))};
  int64_t n = 0;
  for (const auto& [first, last] : spans) n += last - first;
  const auto from = static_cast<int64_t>(std::floor(injection.part_first * static_cast<double>(n) + 1e-9));
  const auto to = static_cast<int64_t>(std::ceil(injection.part_last * static_cast<double>(n) - 1e-9));
  Ranges out;
  int64_t passed = 0;  // tokens of the spans before
  for (const auto& [first, last] : spans) {
    const auto begin = std::max(first, first + from - passed), end = std::min(last, first + to - passed);
    if (begin < end) out.emplace_back(begin, end);
    passed += last - first;
  }
  return out;
}

ExperimentOptions with_defaults(ExperimentOptions options) {
  if (!options.strengths) {
    check<std::invalid_argument>(
        options.strength_unit != StrengthUnit::absolute,
        "run_experiment: strength_unit absolute needs strengths, got none: the default one (",
        kDefaultStrength, ") is a fraction of the residual norm");
    options.strengths = {kDefaultStrength};
    options.strength_unit = StrengthUnit::residual;
  }
  if (!options.strength_unit) options.strength_unit = StrengthUnit::absolute;
  return options;
}

double count_readings(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                      const ExperimentOptions& options) {
  check_options(model, protocol, vectors, options);
  double versions = 0;
  for (const auto& [name, vector] : vectors)
    versions += 1.0 + static_cast<double>(n_nulls(protocol, name, options));
  if (!takes_vectors(protocol))
    versions =
        protocol.inject == Inject::model ? 1.0 : static_cast<double>(concepts(vectors, options).size());
  const auto n_steered = protocol.inject == Inject::dropout
                             ? 1
                             : std::count_if(options.strengths->begin(), options.strengths->end(),
                                             [](double strength) { return strength != 0; });
  if (protocol.inject != Inject::model && protocol.inject != Inject::tokens)
    versions *= static_cast<double>(n_steered) * static_cast<double>(options.layers.size());
  if (protocol.inject != Inject::tokens)
    versions *= static_cast<double>(options.parts.size()) *
                static_cast<double>(std::max<size_t>(1, protocol.answers.size()));
  Design design;
  add_scenes(model, protocol, vectors, options, design);
  double asks = 0;
  for (const auto& scene : design.scenes) asks += static_cast<double>(scene.asks.size());
  return asks * (1.0 + versions);
}

Design make_design(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                   const ExperimentOptions& options) {
  Design design;
  check_options(model, protocol, vectors, options);
  add_scenes(model, protocol, vectors, options, design);
  add_injections(model, protocol, vectors, options, design);
  return design;
}

}  // namespace introspect::experiments
