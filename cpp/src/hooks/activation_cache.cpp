#include "introspect/hooks/activation_cache.h"

#include <unordered_set>

#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

std::string key(Site site, bool gradient) {
  return gradient ? hook_name(site) + "_grad" : hook_name(site);
}

}  // namespace

void ActivationCache::set(Site site, torch::Tensor value, bool gradient) {
  const auto use = enter("ActivationCache::set");
  auto name = key(site, gradient);
  const auto [place, is_new] = places_.try_emplace(name, items_.size());
  if (is_new)
    items_.emplace_back(std::move(name), std::move(value));
  else
    items_[place->second].second = std::move(value);
}

torch::Tensor ActivationCache::at(std::string_view name) const {
  const auto use = enter("ActivationCache::at");
  const auto place = places_.find(std::string(name));
  if (place != places_.end()) return items_[place->second].second;
  throw std::out_of_range(items_.empty()
                              ? concat("ActivationCache: '", name, "' was not recorded; nothing was")
                              : concat("ActivationCache: '", name, "' was not recorded, ", items_.size(),
                                       " others were, from '", items_.front().first, "' to '",
                                       items_.back().first, "'"));
}

torch::Tensor ActivationCache::at(Site site, bool gradient) const {
  return at(key(site, gradient));
}

bool ActivationCache::contains(std::string_view name) const {
  const auto use = enter("ActivationCache::contains");
  return places_.count(std::string(name)) > 0;
}

size_t ActivationCache::size() const {
  const auto use = enter("ActivationCache::size");
  return items_.size();
}

std::vector<std::pair<std::string, torch::Tensor>> ActivationCache::items() const {
  const auto use = enter("ActivationCache::items");
  return items_;
}

std::vector<std::string> ActivationCache::names() const {
  const auto use = enter("ActivationCache::names");
  std::vector<std::string> out;
  out.reserve(items_.size());
  for (const auto& [name, value] : items_) out.push_back(name);
  return out;
}

int64_t ActivationCache::nbytes() const {
  const auto use = enter("ActivationCache::nbytes");
  std::unordered_set<const void*> seen;
  int64_t n = 0;
  for (const auto& [name, value] : items_)
    if (seen.insert(value.storage().unsafeGetStorageImpl()).second)
      n += static_cast<int64_t>(value.storage().nbytes());
  return n;
}

ActivationCache ActivationCache::to(std::optional<torch::Device> device,
                                    std::optional<torch::ScalarType> dtype) const {
  const auto use = enter("ActivationCache::to");
  ActivationCache out = *this;
  for (auto& [name, value] : out.items_)
    value = value.to(device.value_or(value.device()),
                     value.is_floating_point() ? dtype.value_or(value.scalar_type()) : value.scalar_type());
  return out;
}

}  // namespace introspect::hooks
