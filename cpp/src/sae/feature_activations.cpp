#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"
#include "introspect/sae/feature_statistics.h"

#include "core/json.h"
#include "core/on_device.h"
#include "sae/context_pass.h"

namespace introspect::sae {
namespace {

constexpr auto kFormat = "feature activations";
constexpr int64_t kEntry = 12;  // bytes

/// Collects entries row by row and sorts them by feature.
class Collector {
 public:
  Collector(const char* who, const Dictionary& dictionary, const FeatureActivationOptions& options,
            int64_t to_read)
      : who_(who), dictionary_(dictionary), options_(options), to_read_(to_read) {
    out_.d_sae = dictionary.d_sae();
    out_.dictionary_hash = dictionary.hash();
    if (!options.ids.defined()) {
      out_.ids_n = at::arange(out_.d_sae, torch::kInt64);
      return;
    }
    check<ShapeError>(
        options.ids.dim() == 1 && options.ids.scalar_type() == torch::kInt64 && options.ids.numel() > 0, who,
        ": ids must be int64 [n] and some");
    out_.ids_n = std::get<0>(at::_unique(options.ids.to(torch::kCPU), /*sorted=*/true));
    check<std::out_of_range>(
        out_.ids_n[0].item<int64_t>() >= 0 && out_.ids_n[-1].item<int64_t>() < out_.d_sae, who,
        ": feature ids must be 0 to ", out_.d_sae - 1);
  }

  /// x [N, d_in], the inputs at places [N].
  void add(const torch::Tensor& x_ND, const torch::Tensor& places_N) {
    auto f = options_.ids.defined() ? SparseFeatures::of(dictionary_.encode(x_ND, out_.ids_n))
                                    : dictionary_.encode_sparse(x_ND);
    const auto offsets = f.offsets.to(torch::kCPU);
    const auto counts = offsets.slice(0, 1) - offsets.slice(0, 0, -1);
    const bool narrow = f.values.scalar_type() != torch::kFloat64;
    features_.push_back(f.indices.to(torch::kCPU));
    places_.push_back(at::repeat_interleave(places_N, counts));
    values_.push_back(f.values.to(torch::kCPU, narrow ? torch::kFloat32 : torch::kFloat64));
    entries_ += features_.back().size(0);
    out_.read_tokens += places_N.size(0);
    const double expected =
        static_cast<double>(entries_) / static_cast<double>(out_.read_tokens) * static_cast<double>(to_read_);
    check<std::length_error>(expected * 2 * kEntry <= static_cast<double>(options_.memory_budget), who_, ": ",
                             to_read_, " tokens with ", entries_ / std::max<int64_t>(out_.read_tokens, 1),
                             " active features each need ", static_cast<int64_t>(expected * 2 * kEntry) >> 20,
                             " MiB, and the memory budget is ", options_.memory_budget >> 20,
                             " MiB: give fewer contexts, ids of some features, or a larger budget");
  }

  FeatureActivations finish(const Contexts& contexts) {
    const int64_t n = out_.ids_n.size(0);
    out_.contexts = {contexts.tokens_NT.to(torch::kCPU).contiguous(),
                     contexts.lengths_N.defined()
                         ? contexts.lengths_N.to(torch::kCPU).contiguous()
                         : at::full({contexts.tokens_NT.size(0)}, contexts.tokens_NT.size(1), torch::kInt64),
                     contexts.special_tokens};
    const auto feature = at::cat(features_), place = at::cat(places_);
    // Two stable sorts: by place, then by feature.
    const auto by_place = std::get<1>(place.sort(/*stable=*/true, 0, /*descending=*/false));
    const auto by_feature =
        std::get<1>(feature.index_select(0, by_place).sort(/*stable=*/true, 0, /*descending=*/false));
    const auto order = by_place.index_select(0, by_feature);
    out_.places = place.index_select(0, order);
    out_.values = at::cat(values_).index_select(0, order);
    out_.offsets = at::cat({at::zeros({1}, torch::kInt64), at::bincount(feature, {}, n).cumsum(0)});
    return std::move(out_);
  }

 private:
  const char* who_;
  const Dictionary& dictionary_;
  const FeatureActivationOptions& options_;
  FeatureActivations out_;
  int64_t to_read_, entries_ = 0;
  std::vector<torch::Tensor> features_, places_, values_;
};

/// Files of tensors are read as floats: whole numbers below 2^53 are exact in float64.
torch::Tensor as_stored(const torch::Tensor& integers) {
  return integers.to(torch::kFloat64);
}

/// Throws IoError unless what a file held fits together.
void check_loaded(const FeatureActivations& a, const std::string& who) {
  const auto& tokens = a.contexts.tokens_NT;
  const auto ascends = [](const torch::Tensor& x) {
    return (x.slice(0, 1) > x.slice(0, 0, -1)).all().item<bool>();
  };
  const auto within = [](const torch::Tensor& x, int64_t end) {
    return x.numel() == 0 || (x.min().item<int64_t>() >= 0 && x.max().item<int64_t>() < end);
  };
  const int64_t entries = a.places.numel();
  bool fits = tokens.dim() == 2 && tokens.numel() > 0 &&
              a.contexts.lengths_N.sizes() == at::IntArrayRef{tokens.size(0)} && a.ids_n.dim() == 1 &&
              a.ids_n.numel() > 0 && a.offsets.sizes() == at::IntArrayRef{a.ids_n.numel() + 1} &&
              a.places.dim() == 1 && a.values.sizes() == a.places.sizes();
  fits = fits && within(a.contexts.lengths_N, tokens.size(1) + 1) && within(a.ids_n, a.d_sae) &&
         ascends(a.ids_n) && within(a.places, tokens.numel()) && a.offsets[0].item<int64_t>() == 0 &&
         a.offsets[-1].item<int64_t>() == entries &&
         (a.offsets.slice(0, 1) >= a.offsets.slice(0, 0, -1)).all().item<bool>() && a.read_tokens > 0;
  check<IoError>(fits, who, "its tensors do not fit together");
}

/// Where in the [N, T] contexts the tokens of a batch stand that are read.
torch::Tensor places_read(const ContextBatch& batch, int64_t T) {
  const auto place_BT = batch.rows_B.unsqueeze(1) * T + at::arange(batch.tokens_BT.size(1), torch::kInt64);
  return place_BT.masked_select(batch.read_BT);
}

int64_t tokens_read(const std::vector<ContextBatch>& all) {
  return std::accumulate(all.begin(), all.end(), int64_t{0}, [](int64_t sum, const ContextBatch& batch) {
    return sum + batch.read_BT.sum().item<int64_t>();
  });
}

}  // namespace

FeatureActivations feature_activations(const models::Model& model, const Dictionary& dictionary,
                                       const Contexts& contexts, const FeatureActivationOptions& options) {
  constexpr auto who = "feature_activations";
  const at::NoGradGuard no_grad;
  const auto inputs = Sites::inputs(who, model, dictionary);
  const auto all =
      batches(who, model.cfg(), without_masked(model, dictionary, contexts), options.batch_tokens);
  Collector collector(who, dictionary, options, tokens_read(all));
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& batch = all[i];
    report(options.progress, "reading features", static_cast<int64_t>(i), static_cast<int64_t>(all.size()));
    const auto cache = std::make_shared<hooks::ActivationCache>();
    auto hooks = model.make_hooks();
    inputs.record(hooks, cache);
    models::ForwardOptions pass;
    pass.hooks = &hooks;
    pass.stop_at_layer = inputs.last_layer() + 1;
    model.forward(batch.tokens_BT, pass);
    const auto x_BTD = inputs.joined(*cache);
    collector.add(x_BTD.index({on_device(batch.read_BT, x_BTD.device())}),
                  places_read(batch, contexts.tokens_NT.size(1)));
  }
  report(options.progress, "reading features", static_cast<int64_t>(all.size()),
         static_cast<int64_t>(all.size()));
  auto out = collector.finish(contexts);
  out.model_name = model.cfg().model_name;
  out.model_hash = model.hash();
  return out;
}

FeatureActivations feature_activations(const Dictionary& dictionary, const Contexts& contexts,
                                       const torch::Tensor& x_NTD, const FeatureActivationOptions& options) {
  constexpr auto who = "feature_activations";
  const at::NoGradGuard no_grad;
  models::Config any;
  any.n_ctx = any.d_vocab = std::numeric_limits<int64_t>::max();
  const auto all = batches(who, any, contexts, options.batch_tokens);
  const auto& tokens = contexts.tokens_NT;
  check<ShapeError>(x_NTD.dim() == 3 && x_NTD.size(0) == tokens.size(0) && x_NTD.size(1) == tokens.size(1) &&
                        x_NTD.size(2) == dictionary.d_in(),
                    who, ": inputs must be [", tokens.size(0), ", ", tokens.size(1), ", ", dictionary.d_in(),
                    "], got ", x_NTD.sizes());
  Collector collector(who, dictionary, options, tokens_read(all));
  const auto x_ND = x_NTD.flatten(0, 1);
  for (const auto& batch : all) {
    const auto places = places_read(batch, tokens.size(1));
    collector.add(x_ND.index_select(0, on_device(places, x_ND.device())), places);
  }
  return collector.finish(contexts);
}

int64_t FeatureActivations::index(int64_t feature) const {
  const auto* first = ids_n.const_data_ptr<int64_t>();
  const auto* last = first + ids_n.numel();
  const auto* found = std::lower_bound(first, last, feature);
  check<std::out_of_range>(found != last && *found == feature, "FeatureActivations: feature ", feature,
                           " is not among the ", n_features(), " that were looked at");
  return found - first;
}

void FeatureActivations::save(const std::filesystem::path& path) const {
  const nlohmann::json origin = {
      {"special_tokens", contexts.special_tokens}, {"read_tokens", read_tokens}, {"d_sae", d_sae},
      {"dictionary_hash", dictionary_hash},        {"model_name", model_name},   {"model_hash", model_hash}};
  io::save_safetensors(path,
                       {{"tokens", as_stored(contexts.tokens_NT)},
                        {"lengths", as_stored(contexts.lengths_N)},
                        {"ids", as_stored(ids_n)},
                        {"offsets", as_stored(offsets)},
                        {"places", as_stored(places)},
                        {"values", values}},
                       {{"format", kFormat}, {"origin", origin.dump()}});
}

FeatureActivations FeatureActivations::load(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto value = [&](const std::string& key) {
    const auto found = file->metadata().find(key);
    return found == file->metadata().end() ? std::string() : found->second;
  };
  const auto who = concat("FeatureActivations::load: ", path.string(), ": ");
  check<IoError>(value("format") == kFormat, who, "the metadata 'format' must be '", kFormat, "', got '",
                 value("format"), "'");
  const auto json = parse_json<IoError>(value("origin"), who + "where they are from");
  const JsonField<IoError> field(json, who);
  FeatureActivations out;
  const auto integers = [&](const std::string& name) {
    return file->read(name, torch::kFloat64).to(torch::kInt64);
  };
  out.contexts.tokens_NT = integers("tokens");
  out.contexts.lengths_N = integers("lengths");
  out.contexts.special_tokens = field.at("special_tokens").integers();
  out.ids_n = integers("ids");
  out.offsets = integers("offsets");
  out.places = integers("places");
  out.values = file->read("values", file->dtype("values") == "F64" ? torch::kFloat64 : torch::kFloat32);
  out.read_tokens = field.at("read_tokens").integer();
  out.d_sae = field.at("d_sae").integer();
  out.dictionary_hash = field.at("dictionary_hash").text();
  out.model_name = field.at("model_name").text();
  out.model_hash = field.at("model_hash").text();
  check_loaded(out, who);
  return out;
}

}  // namespace introspect::sae
