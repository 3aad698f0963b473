#include "experiments/injections.h"

#include <stdexcept>
#include <utility>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "experiments/placeholders.h"

namespace introspect::experiments {
namespace {

/// Of a concept's random direction of that number; -1: of what is drawn in the vector's place.
uint64_t seed_of(uint64_t seed, const std::string& concept_name, int64_t null_index) {
  return std::stoull(sha256_hex(concat(seed, "/", concept_name, "/", null_index)).substr(0, 16), nullptr, 16);
}

/// How many random rotations of each vector are run.
int64_t rotations(const Protocol& protocol, const ExperimentOptions& options) {
  return adds_vectors(protocol.inject) ? options.nulls : 0;
}

/// The strengths of a vector over a range.
const std::vector<double>& strengths_of(const ExperimentOptions& options, const std::string& concept_name,
                                        std::pair<int64_t, int64_t> range) {
  for (const auto& own : options.own_strengths)
    if (own.concept_name == concept_name && std::pair(own.first_layer, own.last_layer) == range)
      return own.strengths;
  return *options.strengths;
}

/// The same injection at every place that the protocol injects alone.
void add_injection(const Protocol& protocol, Injection injection, Design& design) {
  const auto n_places = static_cast<int64_t>(protocol.answers.size());
  if (n_places == 0) design.injections.push_back(injection);
  for (injection.place = 0; injection.place < n_places; ++injection.place)
    design.injections.push_back(injection);
}

void add_vectors(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                 const ExperimentOptions& options, Design& design) {
  for (const auto& [name, vector] : vectors) {
    const auto& origin = vector.origin();
    if (!origin.model_hash.empty() && origin.model_hash != model.hash())
      design.warnings.push_back(concat("vector '", name, "' was trained on other weights (",
                                       origin.model_name, ") than this model's (", model.cfg().model_name,
                                       ")"));
    std::vector<steering::ControlVector> versions{
        protocol.inject == Inject::random
            ? steering::random_directions(vector, seed_of(options.seed, name, -1))
            : vector};
    for (int64_t null_index = 0; null_index < rotations(protocol, options); ++null_index)
      versions.push_back(steering::random_rotation(vector, seed_of(options.seed, name, null_index)));
    if (const auto more = options.null_vectors.find(name);
        adds_vectors(protocol.inject) && more != options.null_vectors.end())
      versions.insert(versions.end(), more->second.begin(), more->second.end());
    const auto factors = options.null_factors.find(name);
    for (size_t place = 0; place < options.strengths->size(); ++place)
      for (const auto& range : options.layers) {
        const auto [first, last] = range.resolve(model.cfg().n_layers);
        const auto strength = strengths_of(options, name, {first, last})[place];
        size_t n_inside = 0;
        for (size_t version = 0; version < versions.size(); ++version) {
          const auto inside = steering::directions_in(versions[version], model.cfg().n_layers, first, last);
          if (version == 0) n_inside = inside.size();
          for (const auto& part : options.parts) {
            const Injected injected{name,
                                    strength * protocol.relative_strength,
                                    first,
                                    last,
                                    static_cast<int64_t>(version) - 1,
                                    -1,
                                    part.first,
                                    part.last};
            Injection injection{injected, inside};
            if (version > 0 && factors != options.null_factors.end())
              injection.factor = factors->second.at(version - 1);
            injection.seed = seed_of(options.seed, name, -1);
            add_injection(protocol, injection, design);
          }
        }
        if (static_cast<int64_t>(n_inside) < last - first + 1 && place == 0)
          design.warnings.push_back(concat("vector '", name, "' has directions for ", n_inside, " of the ",
                                           last - first + 1, " layers ", first, " to ", last));
      }
  }
}

}  // namespace

bool takes_vectors(const Protocol& protocol) {
  return adds_vectors(protocol.inject) || protocol.inject == Inject::noise;
}

int64_t n_nulls(const Protocol& protocol, const std::string& concept_name, const ExperimentOptions& options) {
  if (!adds_vectors(protocol.inject)) return 0;
  const auto more = options.null_vectors.find(concept_name);
  return options.nulls + (more == options.null_vectors.end() ? 0 : static_cast<int64_t>(more->second.size()));
}

std::vector<std::string> concepts(const NamedVectors& vectors, const ExperimentOptions& options) {
  auto out = options.concepts;
  if (out.empty())
    for (const auto& [name, vector] : vectors) out.push_back(name);
  return out;
}

std::string swapped_name(const Protocol& protocol, const std::string& word) {
  return protocol.swap_text.find(kConcept) == std::string::npos ? std::string() : word;
}

void add_injections(const models::Model& model, const Protocol& protocol, const NamedVectors& vectors,
                    const ExperimentOptions& options, Design& design) {
  if (takes_vectors(protocol)) return add_vectors(model, protocol, vectors, options, design);
  const int64_t last_layer = model.cfg().n_layers - 1;
  if (protocol.inject == Inject::model) {
    const auto found = options.models.find(protocol.prefill_model);
    check<std::invalid_argument>(found != options.models.end() && found->second, "run_experiment: protocol '",
                                 protocol.name, "' needs a model named '", protocol.prefill_model, "'");
    design.prefill_model = found->second;
    for (const auto& part : options.parts)
      add_injection(protocol,
                    {{protocol.prefill_model, 1.0, 0, last_layer, -1, -1, part.first, part.last}, {}},
                    design);
    return;
  }
  const auto words = concepts(vectors, options);
  check<std::invalid_argument>(!words.empty(), "run_experiment: protocol '", protocol.name,
                               "' needs concepts (or vectors of their names), got none");
  check<std::invalid_argument>(options.parts == std::vector<Part>{{}} || protocol.inject != Inject::tokens,
                               "run_experiment: protocol '", protocol.name,
                               "' replaces whole messages: parts of them mean nothing there");
  const bool is_dropout = protocol.inject == Inject::dropout;
  const auto strengths = is_dropout ? std::vector<double>{protocol.dropout_rate} : *options.strengths;
  const double relative = is_dropout ? 1.0 : protocol.relative_strength;
  for (const auto& word : words) {
    if (protocol.inject == Inject::tokens) {
      design.injections.push_back({{word, 1.0, 0, last_layer}, {}, 1.0, word});
      continue;
    }
    const auto other = protocol.inject == Inject::swap ? swapped_name(protocol, word) : word;
    for (const auto strength : strengths)
      for (const auto& range : options.layers) {
        const auto [first, last] = range.resolve(model.cfg().n_layers);
        for (const auto& part : options.parts)
          add_injection(protocol,
                        {{word, strength * relative, first, last, -1, -1, part.first, part.last},
                         {},
                         1.0,
                         other,
                         seed_of(options.seed, word, -1)},
                        design);
      }
  }
}

}  // namespace introspect::experiments
