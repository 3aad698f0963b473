#include "experiments/finite.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/models/finite.h"
#include "introspect/models/weights_held.h"

namespace introspect::experiments {
void throw_not_finite(const models::Model& model, const std::string& who, const Protocol& protocol,
                      const Scene& scene, const Ask& ask) {
  auto ids = scene.before;
  ids.insert(ids.end(), scene.injected.begin(), scene.injected.end());
  ids.insert(ids.end(), ask.after.begin(), ask.after.end());
  const auto block = models::first_not_finite(model, torch::tensor(ids, torch::kInt64).unsqueeze(0));
  const auto where = block < 0 ? std::string("the embedding") : concat("block ", block);
  const auto remedy =
      model.dtype() == torch::kFloat16
          ? "float16 ends at 65,504: load the model with dtype bfloat16 or float32"
          : "look for weights that are not finite or too large, or load the model with dtype float32";
  throw Error(concat(who, ": protocol '", protocol.name, "', question '", ask.question,
                     "': without any injection the numbers are not finite after ", where, " (",
                     models::precision_name(model), "). ", remedy));
}

void warn_of_broken_settings(Result& result) {
  constexpr size_t kNamed = 4;  // settings in a warning
  const auto warn = [&](const auto& is_broken, const std::string& what) {
    std::map<std::string, std::pair<int64_t, int64_t>> by_setting;  // broken readings, and all
    std::vector<std::string> broken;                                // in the order of the rows
    for (const auto& row : result.rows) {
      if (row.kind == "random") continue;
      const auto name = concat("'", row.concept_name, "' at strength ", row.strength, " in blocks ",
                               row.first_layer, " to ", row.last_layer);
      auto& [n_broken, n] = by_setting[name];
      ++n;
      if (is_broken(row) && ++n_broken == 1) broken.push_back(name);
    }
    if (broken.empty()) return;
    std::string text;
    for (size_t i = 0; i < std::min(broken.size(), kNamed); ++i) {
      const auto& [n_broken, n] = by_setting.at(broken[i]);
      text += concat(i ? "; " : "", broken[i], " (", n_broken, " of ", n, " readings)");
    }
    if (broken.size() > kNamed) text += concat("; and ", broken.size() - kNamed, " settings more");
    result.warnings.push_back(concat("protocol '", result.protocol.name, "': ", text, " ", what));
  };
  warn([](const Record& row) { return !row.base.is_finite() || !row.injected.is_finite(); },
       "gave no finite numbers: they are kept as failed and averaged nowhere. The injection is too strong "
       "for the model's dtype");
  warn([](const Record& row) { return row.leaves_format; },
       "left the format of the answer: the probability of the answers fell below half of what it is without "
       "the injection, or nearly to nothing, so log-odds there are no sign of an effect. Take a smaller "
       "strength");
}

}  // namespace introspect::experiments
