#include "sae/context_pass.h"

#include <algorithm>
#include <optional>
#include <stdexcept>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

namespace introspect::sae {

std::vector<ContextBatch> batches(const char* who, const models::Config& cfg, const Contexts& contexts,
                                  int64_t batch_tokens) {
  const auto& given = contexts.tokens_NT;
  check<ShapeError>(
      given.defined() && given.dim() == 2 && given.scalar_type() == torch::kInt64 && given.numel() > 0, who,
      ": tokens must be int64 [contexts, tokens] and some",
      given.defined() ? concat(", got ", given.scalar_type(), " ", given.sizes()) : std::string());
  check<std::invalid_argument>(batch_tokens > 0, who, ": batch_tokens must be above 0, got ", batch_tokens);
  const auto tokens_NT = given.to(torch::kCPU);
  const int64_t N = tokens_NT.size(0), T = tokens_NT.size(1);
  const auto lengths_N = contexts.lengths_N.defined() ? contexts.lengths_N.to(torch::kCPU, torch::kInt64)
                                                      : at::full({N}, T, tokens_NT.options());
  check<ShapeError>(lengths_N.dim() == 1 && lengths_N.size(0) == N && lengths_N.min().item<int64_t>() >= 1 &&
                        lengths_N.max().item<int64_t>() <= T,
                    who, ": lengths must be [", N, "], each from 1 to ", T);
  const int64_t longest = lengths_N.max().item<int64_t>();
  check<ShapeError>(longest <= cfg.n_ctx, who, ": contexts must be at most n_ctx = ", cfg.n_ctx,
                    " tokens long, got ", longest);
  const auto real_NT = at::arange(T, tokens_NT.options()) < lengths_N.unsqueeze(1);
  const auto vocabulary = tokens_NT.masked_select(real_NT);
  check<std::out_of_range>(
      vocabulary.min().item<int64_t>() >= 0 && vocabulary.max().item<int64_t>() < cfg.d_vocab, who,
      ": token ids must be 0 to ", cfg.d_vocab - 1);
  auto read_NT = real_NT;
  for (const int64_t id : contexts.special_tokens) read_NT = read_NT & (tokens_NT != id);
  check<std::invalid_argument>(read_NT.any().item<bool>(), who,
                               ": at least one token that is not special is needed, got none");

  const auto order = std::get<1>(lengths_N.sort(/*stable=*/true, 0, /*descending=*/true));
  std::vector<ContextBatch> out;
  for (int64_t first = 0; first < N;) {
    const int64_t longest_here = lengths_N[order[first].item<int64_t>()].item<int64_t>();
    const int64_t n = std::min(std::max<int64_t>(batch_tokens / longest_here, 1), N - first);
    const auto rows_B = order.narrow(0, first, n);
    const auto cut = [&](const torch::Tensor& x_NT) {
      return x_NT.index_select(0, rows_B).narrow(1, 0, longest_here).contiguous();
    };
    const auto real_BT = cut(real_NT);
    out.push_back({rows_B, cut(tokens_NT).masked_fill(real_BT.logical_not(), 0), real_BT, cut(read_NT)});
    first += n;
  }
  return out;
}

Contexts without_masked(const models::Model& model, const Dictionary& dictionary, const Contexts& contexts) {
  auto out = contexts;
  if (dictionary.origin().masks_bos && model.has_tokenizer())
    if (const auto bos = model.tokenizer().bos_token_id()) out.special_tokens.push_back(*bos);
  return out;
}

Sites::Sites(const char* who, const models::Model& model, const std::vector<DictionarySite>& sites)
    : sites_(sites) {
  check<ConfigError>(!sites.empty() && std::all_of(sites.begin(), sites.end(),
                                                   [](const auto& s) { return !s.hook_name.empty(); }),
                     who, ": the dictionary must say at which hook point it stands, and its file does not");
  const auto points = models::hook_points(model.cfg());
  for (const auto& site : sites)
    check<ConfigError>(site.model == 0, who, ": the dictionary reads two models, and one is given");
  for (const auto& site : sites) {
    const auto place = points.parse(site.hook_name);
    const auto width = points.width(place.point);
    const int64_t there = width.value_or(0) * points.heads(place.point).value_or(1);
    check<ShapeError>(width && (there == site.width || site.width == 0), who, ": ", site.hook_name,
                      " must be ", site.width, " wide for this dictionary, got ", there, " in this model");
    check<ConfigError>(
        place.layer >= 0 || place.point == hooks::Point::kEmbed || place.point == hooks::Point::kPosEmbed,
        who, ": the site must lie before the end of the last block, got ", site.hook_name);
    places_.push_back(place);
  }
}

Sites Sites::inputs(const char* who, const models::Model& model, const Dictionary& dictionary) {
  return {who, model, dictionary.origin().inputs};
}

Sites Sites::outputs(const char* who, const models::Model& model, const Dictionary& dictionary) {
  const auto& origin = dictionary.origin();
  return {who, model, origin.outputs.empty() ? origin.inputs : origin.outputs};
}

int64_t Sites::first_layer() const {
  return std::min_element(places_.begin(), places_.end(), [](auto a, auto b) { return a.layer < b.layer; })
      ->layer;
}

int64_t Sites::last_layer() const {
  return std::max_element(places_.begin(), places_.end(), [](auto a, auto b) { return a.layer < b.layer; })
      ->layer;
}

void Sites::record(hooks::HookRegistry& hooks, const std::shared_ptr<hooks::ActivationCache>& cache) const {
  for (const auto& site : sites_) hooks.record(site.hook_name, cache);
}

torch::Tensor Sites::joined(const hooks::ActivationCache& cache) const {
  std::vector<torch::Tensor> parts;
  for (const auto& site : sites_) parts.push_back(cache.at(site.hook_name).flatten(2));
  return parts.size() == 1 ? parts.front() : at::cat(parts, -1);
}

void Sites::replace(hooks::HookRegistry& hooks, const torch::Tensor& y_BTD) const {
  int64_t first = 0;
  for (const auto& site : sites_) {
    const int64_t width = sites_.size() == 1 ? y_BTD.size(-1) : site.width;
    const auto part = y_BTD.narrow(-1, first, width);
    hooks.add(site.hook_name,
              [part](const torch::Tensor& value, hooks::Site) -> std::optional<torch::Tensor> {
                return part.reshape(value.sizes()).to(value.options());
              });
    first += width;
  }
}

torch::Tensor read_contexts(const models::Model& model, const std::vector<std::string>& hook_names,
                            const Contexts& contexts, int64_t batch_tokens, const Progress& progress) {
  constexpr auto who = "read_contexts";
  const at::NoGradGuard no_grad;
  std::vector<DictionarySite> named;
  for (const auto& name : hook_names) named.push_back({name});
  const Sites sites(who, model, named);
  const auto all = batches(who, model.cfg(), contexts, batch_tokens);
  torch::Tensor out;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& batch = all[i];
    report(progress, "reading activations", static_cast<int64_t>(i), static_cast<int64_t>(all.size()));
    const auto cache = std::make_shared<hooks::ActivationCache>();
    auto hooks = model.make_hooks();
    sites.record(hooks, cache);
    models::ForwardOptions pass;
    pass.hooks = &hooks;
    pass.stop_at_layer = sites.last_layer() + 1;
    model.forward(batch.tokens_BT, pass);
    const auto x_BTD = sites.joined(*cache).to(torch::kCPU);
    const int64_t N = contexts.tokens_NT.size(0), T = contexts.tokens_NT.size(1);
    if (!out.defined()) out = at::zeros({N, T, x_BTD.size(2)}, x_BTD.options());
    out.narrow(1, 0, x_BTD.size(1))
        .index_copy_(0, batch.rows_B, x_BTD * batch.real_BT.unsqueeze(-1).to(x_BTD.scalar_type()));
  }
  report(progress, "reading activations", static_cast<int64_t>(all.size()), static_cast<int64_t>(all.size()));
  return out;
}

}  // namespace introspect::sae
