#include "experiments/plan.h"

#include <cmath>
#include <stdexcept>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

namespace introspect::experiments {
namespace {

uint64_t rotation_seed(uint64_t seed, const std::string& concept_name, int64_t null_index) {
  return std::stoull(sha256_hex(concat(seed, "/", concept_name, "/", null_index)).substr(0, 16), nullptr, 16);
}

void check_options(const models::Model& model, const NamedVectors& vectors,
                   const ExperimentOptions& options) {
  check<std::invalid_argument>(!vectors.empty(), "run_experiment: at least one vector is needed, got none");
  check<std::invalid_argument>(!options.strengths.empty() && !options.layers.empty(),
                               "run_experiment: at least one strength and one layer range are needed");
  for (const auto strength : options.strengths)
    check<std::invalid_argument>(std::isfinite(strength), "run_experiment: strengths must be finite, got ",
                                 strength);
  check<std::invalid_argument>(options.nulls >= 0, "run_experiment: nulls must be 0 or more, got ",
                               options.nulls);
  for (const auto& [name, vector] : vectors)
    check<ShapeError>(vector.d_model() == model.cfg().d_model, "run_experiment: vector '", name,
                      "' must be as wide as the model (", model.cfg().d_model, "), got ", vector.d_model());
}

/// Puts the question into the scene it shares its beginning with, or into one of its own.
void add_ask(const models::Model& model, const Conversation& conversation, Ask ask, Plan& plan) {
  auto tokens = tokenize(conversation, model.tokenizer(), model.chat_template());
  ask.after = std::move(tokens.after);
  for (auto& scene : plan.scenes)
    if (scene.before == tokens.before && scene.injected == tokens.injected) {
      scene.asks.push_back(std::move(ask));
      return;
    }
  plan.scenes.push_back({std::move(tokens.before), std::move(tokens.injected), {std::move(ask)}});
}

void plan_scenes(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                 const ExperimentOptions& options, Plan& plan) {
  const auto& tokenizer = model.tokenizer();
  plan.yes_id = single_token(tokenizer, protocol.yes_token);
  plan.no_id = single_token(tokenizer, protocol.no_token);
  Ask own{protocol.own_question(),
          "introspection",
          {},
          protocol.steer_generation,
          protocol.read == Read::sample,
          {}};
  if (protocol.read == Read::content)
    for (const auto& [name, vector] : vectors) {
      const auto word = protocol.report_tokens.count(name) ? protocol.report_tokens.at(name) : name;
      own.report_ids.push_back(first_token(tokenizer, word));
      own.report_ids.push_back(first_token(tokenizer, " " + word));
    }
  add_ask(model, protocol.conversation, own, plan);
  for (const auto& question : options.questions.value_or(protocol.control_questions))
    add_ask(model, protocol.ask(question), {question, "control", {}, false, false, {}}, plan);

  for (const auto& scene : plan.scenes)
    check<ShapeError>(scene.longest(protocol.sampling.max_new_tokens) <= model.cfg().n_ctx,
                      "run_experiment: protocol '", protocol.name, "' must fit into the model's ",
                      model.cfg().n_ctx, " positions, got ", scene.longest(protocol.sampling.max_new_tokens));
}

void plan_injections(const models::Model& model, const NamedVectors& vectors,
                     const ExperimentOptions& options, Plan& plan) {
  for (const auto& [name, vector] : vectors) {
    const auto& origin = vector.origin();
    if (!origin.model_hash.empty() && origin.model_hash != model.hash())
      plan.warnings.push_back(concat("vector '", name, "' was trained on other weights (", origin.model_name,
                                     ") than this model's (", model.cfg().model_name, ")"));
    std::vector<steering::ControlVector> versions{vector};
    for (int64_t null_index = 0; null_index < options.nulls; ++null_index)
      versions.push_back(steering::random_rotation(vector, rotation_seed(options.seed, name, null_index)));
    for (const auto strength : options.strengths)
      for (const auto& range : options.layers) {
        const auto [first, last] = range.resolve(model.cfg().n_layers);
        for (size_t version = 0; version < versions.size(); ++version) {
          auto inside =
              steering::as_intervention(versions[version], model.cfg().n_layers, first, last).values;
          plan.injections.push_back(
              {name, strength, first, last, static_cast<int64_t>(version) - 1, std::move(inside)});
        }
        const auto n_inside = static_cast<int64_t>(plan.injections.back().directions.size());
        if (n_inside < last - first + 1 && strength == options.strengths.front())
          plan.warnings.push_back(concat("vector '", name, "' has directions for ", n_inside, " of the ",
                                         last - first + 1, " layers ", first, " to ", last));
      }
  }
}

}  // namespace

Plan make_plan(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
               const ExperimentOptions& options) {
  Plan plan;
  check_options(model, vectors, options);
  plan_scenes(model, protocol, vectors, options, plan);
  plan_injections(model, vectors, options, plan);
  return plan;
}

}  // namespace introspect::experiments
