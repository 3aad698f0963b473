#include "introspect/hooks/hook_registry.h"

#include <algorithm>
#include <unordered_set>
#include <variant>

#include <ATen/core/grad_mode.h>

#include "core/dense.h"
#include "core/stages.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

/// Something that reads a part of the activation or gradient.
struct Reader {
  Part part;
  Observer see;
};

/// `t` in memory that nothing else uses: a view into larger storage is made compact.
torch::Tensor compact(const torch::Tensor& t) {
  const bool only_tenant = t.storage().nbytes() <= static_cast<size_t>(t.nbytes());
  return only_tenant ? t : t.clone(at::MemoryFormat::Contiguous);
}

/// `t`, or a copy if someone else holds it or its memory, and so might write into it later.
torch::Tensor unshared(torch::Tensor t) {
  return t.use_count() == 1 && t.storage().use_count() == 1 ? t : t.clone();
}

torch::Tensor run_callback(const Callback& callback, Site site, const torch::Tensor& value) {
  auto given = value.clone();
  const bool counted = !given.is_inference();
  const auto version = counted ? given._version() : 0;
  if (auto replacement = callback(given, site)) {
    check_replacement(hook_name(site), value, *replacement);
    if (replacement->is_same(given)) given.reset();
    return unshared(std::move(*replacement));
  }
  // A hook may have kept the tensor to ask for its gradient: then it must stand in the graph. Writes that autograd does
  // not see, through numpy or .data, leave the version as it was.
  const bool goes_on = (at::GradMode::is_enabled() && given.requires_grad()) ||
                       (counted && given._version() != version) || !at::equal(given, value);
  if (!goes_on) return value;
  check_replacement(hook_name(site), value, given);
  return unshared(std::move(given));
}

Observer recorder(std::shared_ptr<ActivationCache> cache, const RecordOptions& options) {
  return [cache = std::move(cache), options](const torch::Tensor& taken, Site site) {
    auto value = options.detach ? taken.detach() : taken;
    value = value.to(options.device.value_or(value.device()), options.dtype.value_or(value.scalar_type()));
    const bool in_graph = !options.detach && options.part.everything();
    cache->set(site, in_graph ? value : compact(value), options.gradient);
  };
}

bool requires_grad(const Intervention& intervention) {
  return std::any_of(intervention.values.begin(), intervention.values.end(),
                     [](const auto& at_layer) { return at_layer.second.requires_grad(); });
}

}  // namespace

struct HookRegistry::Action {
  HookId id;
  Direction direction;
  std::variant<Intervention, Callback, Reader> what;

  bool is_intervention() const { return std::holds_alternative<Intervention>(what); }

  uint8_t uses() const {
    if (direction == Direction::kBackward) return kUses | kChanges | kBackward;
    return std::holds_alternative<Reader>(what) ? kUses : kUses | kChanges;
  }
};

const Intervention* HookRegistry::Entry::intervention() const {
  return places.empty() ? nullptr : std::get_if<Intervention>(&action->what);
}

bool HookRegistry::Entry::reads_text() const {
  return intervention() != nullptr && !intervention()->text.empty();
}

void check_replacement(std::string_view name, const torch::Tensor& value, const torch::Tensor& replacement) {
  if (const char* what = not_dense(replacement))
    throw HookError(concat("hook at '", name, "' must return a dense tensor or nothing, got ", what));
  check<HookError>(replacement.sizes() == value.sizes() && replacement.scalar_type() == value.scalar_type() &&
                       replacement.device() == value.device(),
                   "hook at '", name, "' must return ", value.sizes(), " ", value.scalar_type(), " on ",
                   value.device(), ", got ", replacement.sizes(), " ", replacement.scalar_type(), " on ",
                   replacement.device());
}

HookRegistry::HookRegistry(HookPoints points)
    : points_(points),
      table_(points_.n_sites()),
      uses_(points_.n_sites(), 0),
      n_readers_(points_.n_sites(), 0) {}

HookId HookRegistry::add(std::string_view name, Callback callback, HookOptions options) {
  const Site site = points_.parse(name);
  check<std::invalid_argument>(static_cast<bool>(callback),
                               "HookRegistry::add: there must be something to call at '", name, "'");
  return insert({site}, std::make_shared<Action>(Action{next_id_, options.direction, std::move(callback)}),
                options);
}

HookId HookRegistry::add(const Intervention& intervention, HookOptions options) {
  check<std::invalid_argument>(options.direction == Direction::kForward,
                               "HookRegistry::add: an intervention changes the forward pass");
  validate(intervention, points_);
  std::vector<Site> sites;
  if (!is_identity(intervention))
    for (const auto& [layer, operands] : intervention.values) sites.push_back({intervention.point, layer});
  return insert(sites, std::make_shared<Action>(Action{next_id_, options.direction, intervention}), options);
}

HookId HookRegistry::observe(std::string_view name, Observer observer, HookOptions options) {
  const Site site = points_.parse(name);
  check<std::invalid_argument>(static_cast<bool>(observer),
                               "HookRegistry::observe: there must be something to call at '", name, "'");
  Reader reader{{}, std::move(observer)};
  return insert({site}, std::make_shared<Action>(Action{next_id_, options.direction, std::move(reader)}),
                options);
}

HookId HookRegistry::record(std::string_view name, std::shared_ptr<ActivationCache> cache,
                            RecordOptions options) {
  const Site site = points_.parse(name);
  check<std::invalid_argument>(cache != nullptr, "HookRegistry::record: there must be a cache to record '",
                               name, "' in");
  const auto* range = std::get_if<PositionRange>(&options.part.positions);
  check<std::invalid_argument>(!range || range->step >= 1,
                               "HookRegistry::record: the step of a range must be at least 1");
  const auto n_heads = points_.heads(site.point);
  check<std::invalid_argument>(options.part.heads.empty() || n_heads.has_value(), "HookRegistry::record: '",
                               name, "' has no heads to choose among");
  for (const int64_t head : options.part.heads)
    check<std::out_of_range>(head >= -*n_heads && head < *n_heads, "HookRegistry::record: heads of '", name,
                             "' must be 0 to ", *n_heads - 1, ", got ", head);
  const auto direction = options.gradient ? Direction::kBackward : Direction::kForward;
  Reader reader{options.part, recorder(cache, options)};
  return insert({site}, std::make_shared<Action>(Action{next_id_, direction, std::move(reader)}),
                {direction, false, options.permanent, options.level}, std::move(cache));
}

HookId HookRegistry::insert(const std::vector<Site>& sites, ActionPtr action, HookOptions options,
                            std::shared_ptr<ActivationCache> cache) {
  const auto* intervention = std::get_if<Intervention>(&action->what);
  Entry entry{options, options.direction == Direction::kBackward, {}, {}, action, std::move(cache)};
  if (intervention) entry.needs_grad = !sites.empty() && requires_grad(*intervention);
  for (const Site site : sites) {
    auto& actions = table_[points_.index(site)];
    const auto middle = std::find_if_not(actions.begin(), actions.end(),
                                         [](const ActionPtr& a) { return a->is_intervention(); });
    const auto first = intervention ? actions.begin() : middle;
    const auto last = intervention ? middle : actions.end();
    actions.insert(options.prepend ? first : last, action);
    entry.places.push_back(points_.index(site));
    if (intervention && intervention->source)
      entry.sources.push_back(points_.index(source_site(*intervention, site.layer)));
  }
  for (const size_t place : entry.sources) ++n_readers_[place];
  for (const auto* places : {&entry.places, &entry.sources})
    for (const size_t place : *places) update_uses(place);
  n_actions_ += static_cast<int64_t>(sites.size());
  n_needing_grad_ += entry.needs_grad;
  n_backward_ += entry.is_backward();
  n_reading_text_ += entry.reads_text();
  n_with_source_ += !entry.sources.empty();
  const HookId id = next_id_++;
  entries_.emplace(id, std::move(entry));
  return id;
}

void HookRegistry::update_uses(size_t place) {
  uses_[place] = n_readers_[place] > 0 ? kUses | kStashed : 0;
  for (const auto& action : table_[place]) uses_[place] |= action->uses();
}

void HookRegistry::erase(HookId id, const Entry& entry) {
  for (const size_t place : entry.places)
    std::erase_if(table_[place], [id](const ActionPtr& a) { return a->id == id; });
  for (const size_t place : entry.sources) --n_readers_[place];
  for (const auto* places : {&entry.places, &entry.sources})
    for (const size_t place : *places) update_uses(place);
  n_actions_ -= static_cast<int64_t>(entry.places.size());
  n_needing_grad_ -= entry.needs_grad;
  n_backward_ -= entry.is_backward();
  n_reading_text_ -= entry.reads_text();
  n_with_source_ -= !entry.sources.empty();
}

void HookRegistry::remove(HookId id) {
  const auto found = entries_.find(id);
  check<HookError>(found != entries_.end(), "HookRegistry::remove: there is no hook ", id);
  erase(id, found->second);
  entries_.erase(found);
}

void HookRegistry::reset(std::optional<Direction> direction, bool including_permanent,
                         std::optional<int64_t> level) {
  std::erase_if(entries_, [&](const auto& item) {
    const auto& [id, entry] = item;
    const bool meant = (!direction || entry.options.direction == *direction) &&
                       (including_permanent || !entry.options.permanent) &&
                       (!level || entry.options.level == *level);
    if (meant) erase(id, entry);
    return meant;
  });
}

std::optional<std::vector<Intervention>> HookRegistry::interventions_alone() const {
  std::vector<Intervention> out;
  for (const auto& [id, entry] : entries_) {
    if (entry.places.empty()) continue;
    const auto* intervention = entry.intervention();
    if (intervention == nullptr) return std::nullopt;
    out.insert(entry.options.prepend ? out.begin() : out.end(), *intervention);
  }
  return out;
}

std::vector<SoleUser::Use> HookRegistry::enter_pass(int64_t batch, int64_t offset, const Text* text) const {
  std::vector<SoleUser::Use> uses;
  std::unordered_set<const ActivationCache*> entered;
  for (const auto& [id, entry] : entries_) {
    if (entry.cache && entered.insert(entry.cache.get()).second)
      uses.push_back(entry.cache->enter("ActivationCache: a pass that records into it"));
    const auto* intervention = entry.intervention();
    if (intervention == nullptr) continue;
    for (const int64_t row : intervention->rows)
      check<std::out_of_range>(row < batch, "intervention: rows of the batch must be 0 to ", batch - 1,
                               ", got ", row);
    check_text(intervention->text, text, offset);
  }
  return uses;
}

torch::Tensor HookRegistry::run(Site site, const torch::Tensor& x, int64_t offset, const Text* text,
                                Stash* stash) const {
  const size_t place = points_.index(site);
  if (uses_[place] == 0) return x;
  const InStage stage(Stage::kHooks);
  torch::Tensor current = x;
  for (const auto& action : table_[place]) {
    if (action->direction != Direction::kForward) continue;
    if (const auto* intervention = std::get_if<Intervention>(&action->what))
      current = apply(*intervention, site.layer, current, offset, text, stash);
    else if (const auto* callback = std::get_if<Callback>(&action->what))
      current = run_callback(*callback, site, current);
    else if (const auto* reader = std::get_if<Reader>(&action->what))
      reader->see(take(reader->part, site.point, current), site);
  }
  if ((uses_[place] & kBackward) != 0) current = watch_gradient(site, current);
  if ((uses_[place] & kStashed) != 0 && stash != nullptr) stash->put(site, current);
  return current;
}

torch::Tensor HookRegistry::watch_gradient(Site site, const torch::Tensor& x) const {
  if (!at::GradMode::is_enabled() || !x.is_floating_point()) return x;
  std::vector<ActionPtr> actions;
  for (const auto& action : table_[points_.index(site)]) {
    if (action->direction != Direction::kBackward) continue;
    if (const auto* reader = std::get_if<Reader>(&action->what))
      position_indices(reader->part,
                       x.size(position_axis(site.point)));  // its errors come now, not within autograd
    actions.push_back(action);
  }
  // An alias that only this site hands on: the hook sees no other uses of the tensor, and ends with it.
  auto alias = x.requires_grad() ? x.view_as(x) : x.detach().requires_grad_(true);
  alias.register_hook([actions = std::move(actions), site](const torch::Tensor& gradient) {
    torch::Tensor current = gradient;
    if (!current.defined()) return current;
    for (const auto& action : actions) {
      if (const auto* callback = std::get_if<Callback>(&action->what))
        current = run_callback(*callback, site, current);
      else if (const auto* reader = std::get_if<Reader>(&action->what))
        reader->see(take(reader->part, site.point, current), site);
    }
    return current;
  });
  return alias;
}

Part HookRegistry::asked(Site site) const {
  std::optional<Part> common;
  for (const auto& action : table_[points_.index(site)]) {
    const auto* reader = std::get_if<Reader>(&action->what);
    if (!reader || (common && *common != reader->part)) return {};
    common = reader->part;
  }
  return common.value_or(Part{});
}

void HookRegistry::record(Site site, const torch::Tensor& x, const Part& have) const {
  for (const auto& action : table_[points_.index(site)]) {
    const auto* reader = std::get_if<Reader>(&action->what);
    if (!reader || action->direction != Direction::kForward) continue;
    if (have.everything()) {
      reader->see(take(reader->part, site.point, x), site);
    } else {
      check<HookError>(reader->part == have, "HookRegistry::record: '", hook_name(site),
                       "' was asked for another part than is there");
      const bool one = std::holds_alternative<int64_t>(have.positions);
      reader->see(one ? x.squeeze(position_axis(site.point)) : x, site);
    }
  }
}

}  // namespace introspect::hooks
