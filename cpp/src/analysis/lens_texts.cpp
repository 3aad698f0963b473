#include "analysis/lens_texts.h"

#include <algorithm>
#include <stdexcept>

#include "introspect/core/check.h"

namespace introspect::analysis {

using hooks::Point;

std::vector<std::vector<int64_t>> pieces_of(const models::Model& model,
                                            const std::vector<std::vector<int64_t>>& texts, int64_t context,
                                            const char* who) {
  const auto& cfg = model.cfg();
  check<std::invalid_argument>(!texts.empty(), who, ": at least one text is needed, got none");
  check<std::invalid_argument>(context >= 1, who, ": context must be positive, got ", context);
  context = std::min(context, cfg.n_ctx);
  std::vector<std::vector<int64_t>> out;
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto& text = texts[i];
    check<std::invalid_argument>(!text.empty(), who, ": every text must have tokens, text ", i, " has none");
    for (const auto id : text)
      check<std::out_of_range>(id >= 0 && id < cfg.d_vocab, who, ": tokens must be 0 to ", cfg.d_vocab - 1,
                               ", got ", id, " in text ", i);
    for (size_t first = 0; first < text.size(); first += static_cast<size_t>(context)) {
      const auto size = std::min(static_cast<size_t>(context), text.size() - first);
      const auto begin = text.begin() + static_cast<ptrdiff_t>(first);
      out.emplace_back(begin, begin + static_cast<ptrdiff_t>(size));
    }
  }
  return out;
}

std::vector<std::vector<std::vector<int64_t>>> groups_of(std::vector<std::vector<int64_t>> pieces,
                                                         int64_t most) {
  std::vector<std::vector<std::vector<int64_t>>> out;
  int64_t size = most;
  for (auto& piece : pieces) {
    const auto n = static_cast<int64_t>(piece.size());
    if (out.empty() || size + n > most) {
      out.emplace_back();
      size = 0;
    }
    size += n;
    out.back().push_back(std::move(piece));
  }
  return out;
}

std::vector<torch::Tensor> residual_streams(const models::Model& model,
                                            const std::vector<std::vector<int64_t>>& pieces) {
  auto registry = model.make_hooks();
  const auto cache = std::make_shared<hooks::ActivationCache>();
  const int64_t L = model.cfg().n_layers;
  for (int64_t layer = 0; layer < L; ++layer)
    registry.record(hooks::hook_name({Point::kResidPre, layer}), cache);
  std::vector<int64_t> tokens, parents;
  for (const auto& piece : pieces)
    for (size_t i = 0; i < piece.size(); ++i) {
      parents.push_back(i == 0 ? -1 : static_cast<int64_t>(tokens.size()) - 1);
      tokens.push_back(piece[i]);
    }
  models::ForwardOptions pass;
  pass.hooks = &registry;
  pass.stop_at_layer = L;
  if (pieces.size() > 1) pass.parents = torch::tensor(parents, torch::kLong);
  const auto last = model.forward(torch::tensor(tokens, torch::kLong).unsqueeze(0), pass);
  std::vector<torch::Tensor> out;
  for (int64_t layer = 0; layer < L; ++layer)
    out.push_back(cache->at({Point::kResidPre, layer})[0].to(model.device(), lens_dtype(model)));
  out.push_back(last[0].to(lens_dtype(model)));
  return out;
}

}  // namespace introspect::analysis
