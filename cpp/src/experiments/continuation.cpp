#include "experiments/continuation.h"

#include <algorithm>
#include <limits>
#include <map>

#include <ATen/ATen.h>

#include "introspect/models/generate.h"

namespace introspect::experiments {
namespace {

/// The prompts' caches as one batch, padded on the left to the longest, with room for what is to come.
cache::KVCache side_by_side(const models::Model& model, const std::vector<Prompt*>& prompts,
                            int64_t new_tokens) {
  int64_t longest = 0, shortest = std::numeric_limits<int64_t>::max();
  for (const auto* prompt : prompts) {
    longest = std::max(longest, prompt->cache.length());
    shortest = std::min(shortest, prompt->cache.length());
  }
  const auto padded = [&](const torch::Tensor& x_1GSK) {
    return at::constant_pad_nd(x_1GSK, {0, 0, longest - x_1GSK.size(2), 0});
  };
  auto out = model.make_cache(static_cast<int64_t>(prompts.size()));
  out.reserve(longest + new_tokens);
  for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer) {
    std::vector<torch::Tensor> keys, values;
    for (const auto* prompt : prompts) {
      keys.push_back(padded(prompt->cache.keys(layer)));
      values.push_back(padded(prompt->cache.values(layer)));
    }
    out.append(layer, at::cat(keys), at::cat(values));
  }
  torch::Tensor is_real_BS;
  if (shortest < longest) {
    is_real_BS = at::ones({static_cast<int64_t>(prompts.size()), longest}, torch::kBool);
    for (size_t row = 0; row < prompts.size(); ++row)
      is_real_BS[static_cast<int64_t>(row)].narrow(0, 0, longest - prompts[row]->cache.length()).fill_(false);
    is_real_BS = is_real_BS.to(model.device());
  }
  out.commit(longest, is_real_BS);
  return out;
}

hooks::Intervention added(const models::Model& model, const std::vector<Prompt*>& prompts) {
  std::map<int64_t, torch::Tensor> by_layer;
  for (size_t row = 0; row < prompts.size(); ++row)
    for (const auto& [layer, direction] : prompts[row]->added) {
      auto& all = by_layer[layer];
      if (!all.defined()) all = at::zeros({static_cast<int64_t>(prompts.size()), model.cfg().d_model});
      all[static_cast<int64_t>(row)] = direction;
    }
  hooks::Intervention out;
  for (const auto& [layer, directions] : by_layer) out.values[layer] = directions.to(model.device());
  return out;
}

}  // namespace

std::vector<Ids> continue_batch(const models::Model& model, const std::vector<Prompt*>& prompts,
                                const Sampling& sampling) {
  models::GenerateOptions how;
  how.max_new_tokens = sampling.max_new_tokens;
  how.temperature = sampling.temperature;
  how.top_p = sampling.top_p;
  how.top_k = sampling.top_k;
  auto registry = model.make_hooks();
  const auto steering = added(model, prompts);
  if (!steering.values.empty()) registry.add(steering);
  how.hooks = &registry;
  std::vector<torch::Tensor> resids;
  std::vector<Ids> contexts;
  for (const auto* prompt : prompts) {
    resids.push_back(prompt->resid_D);
    contexts.push_back(prompt->tokens);
    how.row_seeds.push_back(prompt->seed);
  }
  auto cache = side_by_side(model, prompts, sampling.max_new_tokens);
  return models::generate_from(model, cache, model.readout(at::stack(resids)), contexts, how);
}

void continue_all(const models::Model& model, std::vector<Prompt> prompts, const Sampling& sampling,
                  int64_t memory_budget, const OnTexts& on_texts) {
  std::map<int64_t, std::vector<size_t>> by_length;
  for (size_t i = 0; i < prompts.size(); ++i) by_length[prompts[i].cache.length()].push_back(i);
  const auto& cfg = model.cfg();
  const int64_t position_bytes = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head *
                                 static_cast<int64_t>(c10::elementSize(model.dtype()));
  for (const auto& [length, places] : by_length) {
    const int64_t row_bytes = (length + sampling.max_new_tokens) * position_bytes;
    const auto n_at_once = static_cast<size_t>(std::clamp<int64_t>(memory_budget / row_bytes, 1, kMostRows));
    for (size_t first = 0; first < places.size(); first += n_at_once) {
      std::vector<Prompt*> batch;
      std::vector<size_t> of_batch;
      for (size_t i = first; i < std::min(first + n_at_once, places.size()); ++i) {
        of_batch.push_back(places[i]);
        batch.push_back(&prompts[places[i]]);
      }
      std::vector<std::string> texts;
      for (const auto& ids : continue_batch(model, batch, sampling))
        texts.push_back(model.tokenizer().decode(ids, /*skip_special_tokens=*/true));
      on_texts(of_batch, std::move(texts));
    }
  }
}

}  // namespace introspect::experiments
