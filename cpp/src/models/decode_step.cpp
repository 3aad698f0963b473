#include "models/decode_step.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

#include "core/on_device.h"
#include "core/stages.h"
#include "introspect/core/check.h"

namespace introspect::models {

namespace {

constexpr int64_t kFewSteps = 8;     // fewer cost less than to record them
constexpr int64_t kLeastRead = 256;  // positions: reading so many costs next to nothing

/// Why no step of the model is the same work; null: it is.
const char* unfit(const Model& model) {
  if (!model.keeps_blocks()) return "its blocks stay in their files";
  if (model.cfg().is_mixture()) return "its experts are chosen by the host";
  for (int64_t layer = 0; layer < model.cfg().n_layers; ++layer)
    if (model.device(layer) != model.device()) return "it lives on several devices";
  return nullptr;
}

/// Real tokens of the row that has the fewest.
int64_t least_real(const cache::KVCache& cache) {
  if (!cache.mask().defined()) return cache.length();
  return cache.mask().sum({1}).min().item<int64_t>();
}

bool skips_padding(const hooks::HookRegistry* hooks) {
  if (hooks == nullptr) return false;
  const auto all = hooks->interventions_alone();
  return all && std::ranges::any_of(*all, [](const auto& i) { return i.text.skip_padding; });
}

}  // namespace

std::unique_ptr<DecodeStep> DecodeStep::of(const Model& model, cache::KVCache& cache,
                                           const hooks::HookRegistry* hooks, int64_t n, Step how) {
  if (how == Step::kPlain || n < 1) return nullptr;
  const bool must = how == Step::kStatic;
  // A clock counts stages of passes, which a replay has none of.
  if (!must &&
      (n < kFewSteps || current_clock() != nullptr || !DeviceRecording::is_available(model.device())))
    return nullptr;
  const char* why = unfit(model);
  check<ConfigError>(!must || why == nullptr,
                     "generate: the model cannot have a static step: ", why ? why : "");
  if (why != nullptr) return nullptr;
  const NewPositions positions = {cache.length(), n,
                                  skips_padding(hooks) ? least_real(cache) : cache.length()};
  auto own = decode_hooks(model, hooks, positions);
  check<ConfigError>(!must || own.unfit.empty(), "generate: there is no static step: ", own.unfit);
  if (!own.unfit.empty()) return nullptr;
  return std::unique_ptr<DecodeStep>(new DecodeStep(model, cache, std::move(own), positions));
}

DecodeStep::DecodeStep(const Model& model, cache::KVCache& cache, DecodeHooks hooks, NewPositions positions)
    : model_(model),
      cache_(cache),
      hooks_(std::move(hooks.registry)),
      last_(capacity(positions.first + positions.n)) {
  const auto device = model.device();
  const auto integers = at::device(device).dtype(torch::kLong);
  const auto floats = at::device(device).dtype(model.dtype());
  tokens_B1_ = at::zeros({cache.shape().batch, 1}, integers);
  place_ = at::zeros({1}, integers);
  columns_S_ = at::arange(last_, integers);
  seen_ = at::zeros({}, floats);
  hidden_ = at::full({}, -std::numeric_limits<double>::infinity(), floats);
  if (const auto mask = cache.mask(); mask.defined()) {
    const auto later = at::ones({mask.size(0), last_ - mask.size(1)}, mask.options());
    real_BS_ = at::cat({mask, later}, 1);
    numbers_BS_ = real_BS_.to(torch::kLong).cumsum(1);
  } else {
    numbers_BS_ = (columns_S_ + 1).unsqueeze(0);
  }
}

DecodeStep::~DecodeStep() {
  recording_.reset();
  cache_.unpin();
}

/// From the position `place` on, as many are read as make recordings few and reading them cheap.
void DecodeStep::begin(int64_t place) {
  recording_.reset();
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(place + 1)));
  n_read_ = std::min(last_, std::max(kLeastRead, power));
  cache_.pin(place_, n_read_);
}

torch::Tensor DecodeStep::forward(const torch::Tensor& tokens_B1) {
  const auto use = cache_.enter("generate: the KVCache");
  const int64_t place = cache_.length();
  check<std::out_of_range>(place < last_, "DecodeStep: there are places for ", last_, " positions");
  if (n_read_ == 0 || !cache_.extend()) {
    begin(place);
    check<Error>(cache_.extend(), "generate: another fork of the KVCache takes its places");
  }
  try {
    tokens_B1_.copy_(tokens_B1, /*non_blocking=*/!tokens_B1.is_pinned());
    place_.fill_(place);
    if (!recording_ && current_clock() == nullptr)
      recording_ = DeviceRecording::of(model_.device(), [this] { return work(); });
    auto logits_BV = recording_ ? recording_->replay() : work();
    cache_.commit(1, {});
    return logits_BV;
  } catch (...) {
    cache_.rollback();
    throw;
  }
}

torch::Tensor DecodeStep::work() const {
  nn::Context ctx;
  hooks::Stash stash;
  ctx.hooks = hooks_.empty() ? nullptr : &hooks_;
  ctx.stash = &stash;
  ctx.cache = &cache_;
  ctx.offset = cache_.length();
  const auto number_B1 = numbers_BS_.index_select(1, place_);
  ctx.global = positions(number_B1, /*local=*/false);
  if (!model_.cfg().attn_types.empty()) ctx.local = positions(number_B1, /*local=*/true);
  auto x_BTD = model_.embed(tokens_B1_, number_B1 - 1, ctx);
  for (ctx.layer = 0; ctx.layer < model_.cfg().n_layers; ++ctx.layer)
    x_BTD = model_.block(ctx.layer)->forward(x_BTD, ctx);
  return model_.readout(x_BTD).squeeze(1);
}

/// The new positions' angles, and which of the positions read they see: ops::additive_mask of one query, whose place is a
/// number on the device.
nn::Positions DecodeStep::positions(const torch::Tensor& number_B1, bool local) const {
  nn::Positions out;
  std::tie(out.cos, out.sin) = model_.rotary_angles(number_B1 - 1, local);
  auto visible_BS = (columns_S_.narrow(0, 0, n_read_) <= place_).unsqueeze(0);
  if (real_BS_.defined()) visible_BS = visible_BS.logical_and(real_BS_.narrow(1, 0, n_read_));
  const int64_t window = local ? model_.cfg().window_size : 0;
  if (window > 0 && window < n_read_)
    visible_BS = visible_BS.logical_and(number_B1 - numbers_BS_.narrow(1, 0, n_read_) < window);
  out.mask.additive = at::where(visible_BS, seen_, hidden_).unsqueeze(1).unsqueeze(1);
  return out;
}

}  // namespace introspect::models
