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
  auto name = key(site, gradient);
  const auto [place, is_new] = places_.try_emplace(name, items_.size());
  if (is_new)
    items_.emplace_back(std::move(name), std::move(value));
  else
    items_[place->second].second = std::move(value);
}

const torch::Tensor& ActivationCache::at(std::string_view name) const {
  const auto place = places_.find(std::string(name));
  if (place != places_.end()) return items_[place->second].second;
  throw std::out_of_range(items_.empty()
                              ? concat("ActivationCache: '", name, "' was not recorded; nothing was")
                              : concat("ActivationCache: '", name, "' was not recorded, ", items_.size(),
                                       " others were, from '", items_.front().first, "' to '",
                                       items_.back().first, "'"));
}

const torch::Tensor& ActivationCache::at(Site site, bool gradient) const {
  return at(key(site, gradient));
}

std::vector<std::string> ActivationCache::names() const {
  std::vector<std::string> out;
  out.reserve(items_.size());
  for (const auto& [name, value] : items_) out.push_back(name);
  return out;
}

int64_t ActivationCache::nbytes() const {
  std::unordered_set<const void*> seen;
  int64_t n = 0;
  for (const auto& [name, value] : items_)
    if (seen.insert(value.storage().unsafeGetStorageImpl()).second)
      n += static_cast<int64_t>(value.storage().nbytes());
  return n;
}

ActivationCache ActivationCache::to(std::optional<torch::Device> device,
                                    std::optional<torch::ScalarType> dtype) const {
  ActivationCache out = *this;
  for (auto& [name, value] : out.items_)
    value = value.to(device.value_or(value.device()),
                     value.is_floating_point() ? dtype.value_or(value.scalar_type()) : value.scalar_type());
  return out;
}

}  // namespace introspect::hooks
