#include "experiments/reading_check.h"

#include <cmath>
#include <vector>

#include "core/json.h"
#include "introspect/core/check.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

constexpr auto kNorms = "the residual norms of a scene";

std::map<int64_t, double> norms_of(const std::string& value) {
  const auto json = parse_json<IoError>(value, kNorms);
  const JsonField<IoError> list(json, concat(kNorms, ": "));
  std::map<int64_t, double> out;
  for (size_t i = 0; i < list.list(); ++i) {
    const auto layer = list.at(i).at(0).integer();
    const auto norm = list.at(i).at(1).number();
    list.require(layer >= 0 && norm >= 0, "must be 0 or more and of blocks, got ", norm, " of block ", layer);
    out[layer] = norm;
  }
  list.require(!out.empty(), "must be of some block, got none");
  return out;
}

/// Of a list of objects whose numbers are what doses can be.
void check_doses(const std::string& value) {
  const auto json = parse_json<IoError>(value, "doses");
  const JsonField<IoError> list(json, "doses: ");
  for (size_t i = 0; i < list.list(); ++i)
    for (const auto* name : {"kl", "kl_later", "kl_read"})
      if (const auto one = list.at(i); one.has(name) && !one.at(name).is_null())
        one.at(name).require(one.at(name).number() > -1e-6, "must be 0 or more, got ", one.at(name).number());
}

template <typename Work>
auto named(const Store& store, const std::string& key, const Work& work) {
  try {
    return work();
  } catch (const IoError& error) {
    throw IoError(concat("Store: ", store.path().string(), ": cell ", key.substr(0, 12), ": ", error.what(),
                         ". Sound cells can be taken into a new store: introspect store merge NEW ",
                         store.path().string()));
  }
}

}  // namespace

std::string problem_of(const Reading& reading) {
  for (const auto& [name, p] : {std::pair("p_yes", reading.p_yes), std::pair("p_no", reading.p_no)})
    if (!is_probability(p)) return concat(name, " must be from 0 to 1, got ", p);
  return "";
}

std::string problem_of_reading(const std::string& json) {
  try {
    return problem_of(Reading::from_json(json));
  } catch (const IoError& error) {
    return error.what();
  }
}

std::string problem_of(const Cell& cell) {
  if (cell.kind != "norms" && cell.kind != "dose") return problem_of_reading(cell.value);
  try {
    if (cell.kind == "norms")
      norms_of(cell.value);
    else
      check_doses(cell.value);
    return "";
  } catch (const IoError& error) {
    return error.what();
  }
}

Reading stored_reading(const Store& store, const std::string& key, const std::string& value,
                       const Design& design, const Ask& ask) {
  return named(store, key, [&] {
    auto reading = Reading::from_json(value);
    const auto problem = problem_of(reading);
    check<IoError>(problem.empty(), problem);
    for (const auto* one : design.reads(ask).active) {
      // Nothing is sampled from numbers that are not finite.
      if (one->prepared.reads_text && !reading.is_finite()) continue;
      for (const auto& [field, size] : one->prepared.fields) {
        const auto found = reading.values.find(field);
        check<IoError>(found != reading.values.end(), "a reading must hold ", field);
        check<IoError>(size < 0 || found->second.size() == size, "a reading must hold ", size, " ", field,
                       ", got ", found->second.size());
      }
    }
    return reading;
  });
}

std::map<int64_t, double> stored_norms(const Store& store, const std::string& key, const std::string& value,
                                       int64_t n_layers) {
  return named(store, key, [&] {
    auto norms = norms_of(value);
    for (int64_t layer = 0; layer < n_layers; ++layer)
      check<IoError>(norms.count(layer) > 0, kNorms, ": layer ", layer, " is missing");
    return norms;
  });
}

}  // namespace introspect::experiments
