#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "core/excerpt.h"
#include "core/nearest.h"
#include "introspect/core/check.h"
#include "introspect/experiments/readouts.h"

#include "experiments/readouts/library.h"

namespace introspect::experiments {
namespace {

using Registered = std::shared_ptr<const Readout>;

struct Registry {
  std::mutex mutex;
  std::map<std::string, std::pair<Registered, bool>> by_name;  // and whether it is the library's
};

Registry& registry() {
  static Registry all;
  return all;
}

void add(Readout readout, bool is_library) {
  check<ConfigError>(!readout.name.empty(), "register_readout: a readout must have a name, got an empty one");
  check<std::invalid_argument>(static_cast<bool>(readout.prepare), "register_readout: readout ",
                               excerpt(readout.name), " must have a function prepare");
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  static const std::vector<std::string> kOfEveryReading = {"log_odds", "p_yes", "p_no", "mass"};
  for (const auto& field : readout.fields) {
    bool is_taken = std::count(kOfEveryReading.begin(), kOfEveryReading.end(), field) > 0;
    for (const auto& [name, other] : all.by_name)
      is_taken |= name != readout.name &&
                  std::count(other.first->fields.begin(), other.first->fields.end(), field) > 0;
    check<ConfigError>(!is_taken, "register_readout: readout ", excerpt(readout.name),
                       " must fill fields that no other one does, got ", excerpt(field));
  }
  const auto found = all.by_name.find(readout.name);
  check<ConfigError>(found == all.by_name.end() || !found->second.second,
                     "register_readout: the library has a readout ", excerpt(readout.name),
                     "; take another name");
  if (!readout.check_parameter)
    readout.check_parameter = [](const Value& value) {
      return value.get_if<bool>() ? "" : concat("must be true or false, got ", value.to_json());
    };
  auto name = readout.name;
  all.by_name[std::move(name)] = {std::make_shared<const Readout>(std::move(readout)), is_library};
}

}  // namespace

bool register_library_readout(Readout readout) {
  add(std::move(readout), true);
  return true;
}

void register_readout(Readout readout) {
  add(std::move(readout), false);
}

std::vector<Registered> readouts() {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  std::vector<Registered> out;
  for (const auto& [name, readout] : all.by_name) out.push_back(readout.first);
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a->order < b->order; });
  return out;
}

Registered find_readout(const std::string& name) {
  std::vector<std::string> names;
  for (const auto& readout : readouts()) {
    if (readout->name == name) return readout;
    names.push_back(readout->name);
  }
  std::string all;
  for (const auto& one : names) all += (all.empty() ? "" : ", ") + one;
  throw ConfigError(concat("there is no readout ", excerpt(name), "; the nearest names are ",
                           nearest_names(name, names), ". There are: ", all));
}

bool is_library_readout(const std::string& name) {
  auto& all = registry();
  const std::lock_guard lock(all.mutex);
  const auto found = all.by_name.find(name);
  return found != all.by_name.end() && found->second.second;
}

Readouts asked_for(const Readouts& of_protocol, const Readouts& of_run) {
  auto out = of_protocol;
  for (const auto& [name, parameter] : of_run) {
    const auto found = out.find(name);
    const bool is_larger = found != out.end() && found->second.is_number() && parameter.is_number() &&
                           found->second.number() > parameter.number();
    if (!is_larger && !is_off(parameter)) out[name] = parameter;
  }
  return out;
}

bool is_off(const Value& parameter) {
  return parameter == Value(false) || parameter == Value(0) || parameter == Value(Value::List{}) ||
         parameter == Value(Value::Numbers{});
}

std::string problem_of_parameter(const std::string& name, const Value& parameter) {
  const auto readout = find_readout(name);
  if (!readout->by_name)
    return concat("is not asked for by name: readout ", excerpt(name),
                  " follows from the protocol's other fields or the run's options");
  return readout->check_parameter(parameter);
}

}  // namespace introspect::experiments
