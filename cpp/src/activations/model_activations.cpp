#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <nlohmann/json.hpp>

#include "introspect/activations/activation_source.h"
#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"
#include "introspect/hooks/part.h"

#include "activations/source_identity.h"
#include "core/json.h"
#include "core/on_device.h"
#include "engine/memory.h"
#include "models/numerics.h"

namespace introspect::activations {
namespace {

using Models = std::vector<std::shared_ptr<const models::Model>>;

constexpr auto kWho = "model_activations: ";

/// The width of a site's rows, heads one after another.
int64_t width_at(const models::Model& model, const std::string& hook_name) {
  const auto points = models::hook_points(model.cfg());
  const auto point = points.parse(hook_name).point;
  const auto width = points.width(point);
  check<std::invalid_argument>(width && point != hooks::Point::kUnembedOut, kWho,
                               "a site must have one vector a position, got ", hook_name);
  return *width * points.heads(point).value_or(1);
}

/// How many blocks a pass runs for a site.
int64_t blocks_for(const models::Model& model, const std::string& hook_name) {
  const auto site = models::hook_points(model.cfg()).parse(hook_name);
  if (site.layer >= 0) return site.layer + 1;
  return site.point < hooks::Point::kLnFinalScale ? 0 : model.cfg().n_layers;
}

class ModelActivations final : public ActivationSource {
 public:
  ModelActivations(Models models, TokenStream tokens, std::vector<StreamSite> sites,
                   const ModelActivationsOptions& options)
      : models_(std::move(models)), tokens_(std::move(tokens)), sites_(std::move(sites)), options_(options) {
    check_options();
    const int64_t context = tokens_.options().context;
    positions_ = hooks::position_indices(
        {hooks::PositionRange{options.first_position, options.end_position, options.position_step}, {}},
        context);
    check<std::invalid_argument>(!positions_.empty(), kWho, "the positions read must not be none of ",
                                 context);
    for (auto& site : sites_)
      site.width = width_at(*models_[static_cast<size_t>(site.model)], site.hook_name);
    if (options.contexts_per_pass > 0) {
      contexts_per_pass_ = options.contexts_per_pass;
    } else {
      int64_t bytes = 0;
      for (const auto& model : models_)
        bytes = std::max(bytes, engine::TokenBytes(model->cfg(), model->dtype()).in_block);
      for (const auto& site : sites_) bytes += 2 * 4 * site.width;
      const auto most = std::min(engine::kMaxRowsPerProduct, options.memory_budget / bytes);
      contexts_per_pass_ = std::max<int64_t>(1, most / context);
    }
    of_ = made_of();
  }

  const std::vector<StreamSite>& sites() const override { return sites_; }
  torch::ScalarType dtype() const override { return options_.dtype; }

  SiteRows hold_out(int64_t n) override {
    std::vector<SiteRows> parts;
    int64_t rows = 0;
    const auto before = tokens_.contexts();
    while (rows < n) {
      // No more contexts than are needed, which of a text that repeats would be those of its next pass.
      const auto positions = static_cast<int64_t>(positions_.size());
      auto part = next(std::min(contexts_per_pass_, (n - rows + positions - 1) / positions));
      check<std::invalid_argument>(!part.empty() && tokens_.passes() == 0, kWho,
                                   "the texts must have more than the ", n, " tokens that are held out, got ",
                                   rows);
      rows += part.front().size(0);
      parts.push_back(std::move(part));
    }
    tokens_.set_aside(tokens_.contexts() - before);
    SiteRows out;
    for (size_t i = 0; i < sites_.size() && !parts.empty(); ++i) {
      std::vector<torch::Tensor> of_site;
      for (const auto& part : parts) of_site.push_back(part[i]);
      out.push_back(at::cat(of_site));
    }
    return out;
  }

  SiteRows next() override { return next(contexts_per_pass_); }

  SiteRows next(int64_t contexts) {
    const at::NoGradGuard no_grad;
    while (true) {
      check_interrupt();
      const auto tokens_BT = tokens_.next(contexts);
      if (tokens_BT.size(0) == 0) return {};
      SiteRows rows(sites_.size());
      for (size_t m = 0; m < models_.size(); ++m) read(m, tokens_BT, rows);
      rows = kept(std::move(rows), tokens_BT);
      if (rows.front().size(0) > 0) return rows;
    }
  }

  SiteRows rows(const std::vector<torch::Tensor>& columns) const override { return columns; }

  std::string state() const override {
    return nlohmann::json{{"of", of_}, {"tokens", tokens_.state()}, {"contexts_per_pass", contexts_per_pass_}}
        .dump();
  }
  void check_state(const std::string& state, const std::string& who) const override {
    check_same_rows(who, state, this->state());
  }
  void restore(const std::string& state) override {
    const auto who = concat(kWho, "the state to go on from");
    check_state(state, who);
    const auto json = parse_json<IoError>(state, who);
    const JsonField<IoError> field(json, who + ": ");
    const auto contexts = field.at("contexts_per_pass").integer();
    field.at("contexts_per_pass").require(contexts >= 1, "must be 1 or more, got ", contexts);
    tokens_.restore(field.at("tokens").text());
    contexts_per_pass_ = contexts;  // products of other sizes round otherwise
  }

 private:
  /// What rows are made of: positions as they are read, ids sorted.
  nlohmann::json made_of() const {
    auto out = nlohmann::json::parse(tokens_.state()).at("of");
    for (size_t m = 0; m < models_.size(); ++m) {
      const auto of = models_.size() == 1 ? std::string() : concat(" of model ", m);
      const auto& model = *models_[m];
      out["model" + of] = model.hash();
      for (const auto& [name, value] : models::numerics_of(model)) out[name + of] = value;
    }
    const auto step = positions_.size() > 1 ? positions_[1] - positions_[0] : 1;
    out["positions"] = concat(positions_.front(), " to ", positions_.back(), " by ", step);
    out["exclude_tokens"] =
        nlohmann::json(std::set<int64_t>(options_.exclude_tokens.begin(), options_.exclude_tokens.end()))
            .dump();
    out["max_norm_multiple"] = options_.max_norm_multiple;
    return out;
  }

  void check_options() const {
    const auto among = [](torch::ScalarType dtype) {
      return dtype == torch::kBFloat16 || dtype == torch::kFloat32 || dtype == torch::kFloat64;
    };
    check<std::invalid_argument>(!models_.empty(), kWho, "at least one model is needed, got none");
    check<std::invalid_argument>(!sites_.empty(), kWho, "at least one site is needed, got none");
    check<std::invalid_argument>(among(options_.dtype), kWho,
                                 "rows must be bfloat16, float32 or float64, got ", options_.dtype);
    check<std::invalid_argument>(options_.max_norm_multiple >= 0, kWho,
                                 "max_norm_multiple must be 0 or more, got ", options_.max_norm_multiple);
    check<std::invalid_argument>(options_.memory_budget > 0 && options_.contexts_per_pass >= 0, kWho,
                                 "memory_budget must be positive and contexts_per_pass 0 or more, got ",
                                 options_.memory_budget, " and ", options_.contexts_per_pass);
    const auto& first = models_.front()->cfg();
    for (const auto& model : models_) {
      const auto& cfg = model->cfg();
      check<ShapeError>(tokens_.options().context <= cfg.n_ctx, kWho,
                        "contexts must fit into the model's n_ctx = ", cfg.n_ctx, ", got ",
                        tokens_.options().context, " tokens");
      check<ConfigError>(cfg.d_vocab == first.d_vocab, kWho, "models must have one vocabulary, got ",
                         first.d_vocab, " and ", cfg.d_vocab, " tokens");
    }
    for (const auto& site : sites_)
      check<std::out_of_range>(site.model >= 0 && site.model < static_cast<int64_t>(models_.size()), kWho,
                               "a site's model must be 0 to ", models_.size() - 1, ", got ", site.model);
  }

  /// One pass of one model: its sites' rows of the positions that are read.
  void read(size_t m, const torch::Tensor& tokens_BT, SiteRows& rows) const {
    const auto& model = *models_[m];
    auto hooks = model.make_hooks();
    int64_t stop = -1;
    const auto positions = on_device(positions_, model.device());
    const bool everywhere = static_cast<int64_t>(positions_.size()) == tokens_BT.size(1);
    for (size_t i = 0; i < sites_.size(); ++i) {
      const auto& site = sites_[i];
      if (site.model != static_cast<int64_t>(m)) continue;
      stop = std::max(stop, blocks_for(model, site.hook_name));
      hooks.observe(site.hook_name, [&, i](const torch::Tensor& x, hooks::Site) {
        const auto read = everywhere ? x : x.index_select(1, positions.to(x.device()));
        // The activation may be a view or be used again: rows are memory of their own.
        rows[i] = read.flatten(2).flatten(0, 1).to(at::TensorOptions(torch::kCPU).dtype(options_.dtype),
                                                   /*non_blocking=*/false, /*copy=*/true);
      });
    }
    if (stop < 0) return;
    models::ForwardOptions forward;
    forward.hooks = &hooks;
    forward.logits_at = models::LogitsAt::kNone;
    const bool runs_final_norm = std::any_of(sites_.begin(), sites_.end(), [&](const StreamSite& site) {
      return site.model == static_cast<int64_t>(m) &&
             models::hook_points(model.cfg()).parse(site.hook_name).point >= hooks::Point::kLnFinalScale;
    });
    if (runs_final_norm) {
      forward.logits_at = models::LogitsAt::kAll;
      forward.vocab_ids = torch::zeros({1}, torch::kLong);
    } else {
      forward.stop_at_layer = stop;
    }
    model.forward(tokens_BT, forward);
  }

  SiteRows kept(SiteRows rows, const torch::Tensor& tokens_BT) const {
    torch::Tensor keep;
    const auto also = [&](const torch::Tensor& mask) { keep = keep.defined() ? keep & mask : mask; };
    if (!options_.exclude_tokens.empty())
      also(at::isin(tokens_BT.index_select(1, torch::tensor(positions_, torch::kLong)).flatten(),
                    torch::tensor(options_.exclude_tokens, torch::kLong), /*assume_unique=*/false,
                    /*invert=*/true));
    if (options_.max_norm_multiple > 0) {
      for (const auto& x : rows) {
        const auto norms = x.to(torch::kFloat32).norm(2, -1);
        // The median of what the other rule keeps: few tokens or many, it is that of ordinary rows.
        const auto median = (keep.defined() ? norms.masked_select(keep) : norms);
        if (median.numel() == 0) break;
        also(norms <= median.median() * options_.max_norm_multiple);
      }
    }
    if (!keep.defined()) return rows;
    const auto places = keep.nonzero().flatten();
    if (places.numel() == keep.numel()) return rows;
    for (auto& x : rows) x = x.index_select(0, places);
    return rows;
  }

  Models models_;
  TokenStream tokens_;
  std::vector<StreamSite> sites_;
  ModelActivationsOptions options_;
  std::vector<int64_t> positions_;
  int64_t contexts_per_pass_ = 1;
  nlohmann::json of_;
};

}  // namespace

std::unique_ptr<ActivationSource> model_activations(Models models, TokenStream tokens,
                                                    std::vector<StreamSite> sites,
                                                    const ModelActivationsOptions& options) {
  return std::make_unique<ModelActivations>(std::move(models), std::move(tokens), std::move(sites), options);
}

}  // namespace introspect::activations
