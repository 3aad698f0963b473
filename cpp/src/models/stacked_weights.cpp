#include "introspect/models/stacked_weights.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "introspect/core/check.h"
#include "introspect/models/whole_weights.h"

namespace introspect::models {

namespace {

using Parts = nn::BlockParts;

torch::Tensor bias_or_zeros(const nn::Linear& linear, at::IntArrayRef sizes) {
  const auto& bias = linear.bias();
  return bias.defined() ? bias.view(sizes)
                        : at::zeros(sizes, at::device(linear.device()).dtype(linear.dtype()));
}
torch::Tensor bias_or_zeros(const nn::Linear& linear) {
  return bias_or_zeros(linear, {linear.n_out()});
}

enum class Projection { kQ, kK, kV };

/// One of the three projections of the fused product, by query head or by group: W [n, D, K], b [n, K].
struct Heads {
  Heads(const nn::Attention& attn, Projection which) : K(attn.options().d_head) {
    const int64_t H = attn.options().n_heads, G = attn.options().n_key_value_heads;
    const int64_t first = which == Projection::kQ ? 0 : which == Projection::kK ? H : H + G;
    n = which == Projection::kQ ? H : G;
    repeats = H / n;
    linear = attn.weights().QKV.rows(first * K, n * K);
  }
  torch::Tensor W_nDK() const { return linear.dense().view({n, K, -1}).transpose(1, 2); }
  torch::Tensor b_nK() const { return bias_or_zeros(linear, {n, K}); }
  torch::Tensor repeated(const torch::Tensor& x) const {
    return repeats == 1 ? x : x.repeat_interleave(repeats, 0);
  }

  nn::Linear linear;
  int64_t K, n, repeats;
};

bool grouped(const Parts& p) {
  return p.attn.options().n_heads != p.attn.options().n_key_value_heads;
}

/// The gate's rows of the fused product, and the input's, which stand last.
nn::Linear gate_of(const Parts& p) {
  return p.mlp.weights().in.rows(0, p.mlp.d_mlp());
}
nn::Linear input_of(const Parts& p) {
  const int64_t M = p.mlp.d_mlp();
  return p.mlp.weights().in.rows(p.mlp.gated() ? M : 0, M);
}

/// A weight of a block; `get` may be called where `has` is true.
struct BlockWeight {
  std::string_view name;
  bool (*has)(const Parts&);
  torch::Tensor (*get)(const Parts&);
  bool (*listed)(const Parts&) = nullptr;  // in TransformerLens's state dict; null: wherever it is
};

template <Projection which, bool repeat>
torch::Tensor head_weight(const Parts& p) {
  const Heads heads(p.attn, which);
  return repeat ? heads.repeated(heads.W_nDK()) : heads.W_nDK();
}
template <Projection which, bool repeat>
torch::Tensor head_bias(const Parts& p) {
  const Heads heads(p.attn, which);
  return repeat ? heads.repeated(heads.b_nK()) : heads.b_nK();
}

bool always(const Parts&) {
  return true;
}
bool ungrouped(const Parts& p) {
  return !grouped(p);
}
bool plain_mlp(const Parts& p) {
  return !p.mlp.is_mixture();
}
bool normed_input(const Parts& p) {
  return !p.ln1.is_none();
}
bool gated(const Parts& p) {
  return plain_mlp(p) && p.mlp.gated();
}
bool gate_has_bias(const Parts& p) {
  return gated(p) && p.mlp.weights().in.bias().defined();
}

constexpr auto kQ = Projection::kQ, kK = Projection::kK, kV = Projection::kV;

const BlockWeight kBlockWeights[] = {
    {"ln1.w", normed_input, [](const Parts& p) { return p.ln1.weight; }},
    {"ln1.b", [](const Parts& p) { return p.ln1.bias.defined(); }, [](const Parts& p) { return p.ln1.bias; }},
    {"attn.W_Q", always, head_weight<kQ, false>},
    {"attn.W_K", always, head_weight<kK, true>, ungrouped},
    {"attn._W_K", always, head_weight<kK, false>, grouped},
    {"attn.W_V", always, head_weight<kV, true>, ungrouped},
    {"attn._W_V", always, head_weight<kV, false>, grouped},
    {"attn.b_Q", always, head_bias<kQ, false>},
    {"attn.b_K", always, head_bias<kK, true>, ungrouped},
    {"attn._b_K", always, head_bias<kK, false>, grouped},
    {"attn.b_V", always, head_bias<kV, true>, ungrouped},
    {"attn._b_V", always, head_bias<kV, false>, grouped},
    {"attn.q_norm.w", [](const Parts& p) { return p.attn.weights().q_norm.has_value(); },
     [](const Parts& p) { return p.attn.weights().q_norm->weight; }},
    {"attn.k_norm.w", [](const Parts& p) { return p.attn.weights().k_norm.has_value(); },
     [](const Parts& p) { return p.attn.weights().k_norm->weight; }},
    {"attn.W_O", always,
     [](const Parts& p) {
       const auto W_O = p.attn.weights().O.dense();
       return W_O.view({W_O.size(0), p.attn.options().n_heads, -1}).permute({1, 2, 0});
     }},
    {"attn.b_O", always, [](const Parts& p) { return bias_or_zeros(p.attn.weights().O); }},
    {"ln1_post.w", [](const Parts& p) { return p.ln1_post.has_value(); },
     [](const Parts& p) { return p.ln1_post->weight; }},
    {"ln2.w", normed_input, [](const Parts& p) { return p.ln2.weight; }},
    {"ln2.b", [](const Parts& p) { return p.ln2.bias.defined(); }, [](const Parts& p) { return p.ln2.bias; }},
    {"mlp.W_gate", gated, [](const Parts& p) { return gate_of(p).dense().t(); }},
    {"mlp.b_gate", gate_has_bias, [](const Parts& p) { return gate_of(p).bias(); }},
    {"mlp.W_in", plain_mlp, [](const Parts& p) { return input_of(p).dense().t(); }},
    {"mlp.b_in", plain_mlp, [](const Parts& p) { return bias_or_zeros(input_of(p)); }},
    {"mlp.W_out", plain_mlp, [](const Parts& p) { return p.mlp.weights().out.dense().t(); }},
    {"mlp.b_out", plain_mlp, [](const Parts& p) { return bias_or_zeros(p.mlp.weights().out); }},
    {"ln2_post.w", [](const Parts& p) { return p.ln2_post.has_value(); },
     [](const Parts& p) { return p.ln2_post->weight; }},
};

const BlockWeight* find_block_weight(const Parts& parts, std::string_view name) {
  const auto* found = std::find_if(std::begin(kBlockWeights), std::end(kBlockWeights),
                                   [&](const BlockWeight& w) { return w.name == name; });
  return found != std::end(kBlockWeights) && found->has(parts) ? found : nullptr;
}

/// A weight of a router or an expert, matrices as [out, in]; undefined if the block has none of that name.
torch::Tensor mixture_weight(const Parts& p, std::string_view name) {
  if (!p.mlp.is_mixture()) return {};
  const auto& [router, experts] = p.mlp.mixture();
  const auto of = [](const nn::Linear& linear, std::string_view kind) {
    return kind == "weight" ? linear.dense() : kind == "bias" ? linear.bias() : torch::Tensor{};
  };
  constexpr std::string_view kRouter = "mlp.W_gate.", kExperts = "mlp.experts.";
  if (name.starts_with(kRouter)) return of(router, name.substr(kRouter.size()));
  if (!name.starts_with(kExperts)) return {};
  name.remove_prefix(kExperts.size());
  size_t expert = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), expert);
  name.remove_prefix(static_cast<size_t>(end - name.data()));
  const auto dot = name.rfind('.');
  if (error != std::errc() || expert >= experts.size() || dot == std::string_view::npos) return {};
  const auto matrix = name.substr(0, dot), kind = name.substr(dot + 1);
  const auto& [in, out] = experts[expert];
  const int64_t M = p.mlp.d_mlp();
  if (matrix == ".W_gate" && p.mlp.gated()) return of(in.rows(0, M), kind);
  if (matrix == ".W_in") return of(in.rows(p.mlp.gated() ? M : 0, M), kind);
  return matrix == ".W_out" ? of(out, kind) : torch::Tensor{};
}

/// The names of those that there are.
std::vector<std::string> mixture_names(const Parts& p) {
  std::vector<std::string> out;
  const auto add = [&](const std::string& matrix) {
    for (const char* kind : {".weight", ".bias"})
      if (mixture_weight(p, matrix + kind).defined()) out.push_back(matrix + kind);
  };
  if (!p.mlp.is_mixture()) return out;
  for (size_t e = 0; e < p.mlp.mixture().experts.size(); ++e)
    for (const char* matrix : {"W_gate", "W_in", "W_out"}) add(concat("mlp.experts.", e, ".", matrix));
  add("mlp.W_gate");
  return out;
}

/// A weight that stands once in the model; undefined if it has none of that name.
torch::Tensor model_weight(const Model& model, std::string_view name) {
  const auto& w = model.weights();
  if (name == "embed.W_E") {
    const double scale = model.cfg().embed_scale;
    const auto W_E = w.W_E.dense();
    return scale == 1 ? W_E : W_E * at::full({}, scale, W_E.options());  // rounded as Model::forward does
  }
  if (name == "pos_embed.W_pos") return w.W_pos;
  if (name == "ln_final.w") return w.ln_final.weight;
  if (name == "ln_final.b") return w.ln_final.bias;
  if (name == "unembed.W_U") return w.W_U.dense().t();
  if (name == "unembed.b_U") return bias_or_zeros(w.W_U.with_bias(w.b_U));
  return {};
}

/// "blocks.3.attn.W_Q" -> 3 and "attn.W_Q", for a block that there is.
std::optional<std::pair<size_t, std::string_view>> split(std::string_view name, size_t n_layers) {
  constexpr std::string_view kBlocks = "blocks.";
  if (!name.starts_with(kBlocks)) return std::nullopt;
  name.remove_prefix(kBlocks.size());
  size_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  const auto digits = static_cast<size_t>(end - name.data());
  if (error != std::errc() || layer >= n_layers || digits >= name.size() || name[digits] != '.')
    return std::nullopt;
  return std::pair(layer, name.substr(digits + 1));
}

}  // namespace

torch::Tensor weight(const Model& model, std::string_view name) {
  if (const auto in_block = split(name, static_cast<size_t>(model.cfg().n_layers))) {
    const auto& blocks = whole_weights(model, concat("weight '", name, "'")).blocks;
    const auto& parts = blocks[in_block->first].parts();
    if (const auto* found = find_block_weight(parts, in_block->second)) return found->get(parts);
    if (auto found = mixture_weight(parts, in_block->second); found.defined()) return found;
  } else if (auto found = model_weight(model, name); found.defined()) {
    return found;
  }
  throw std::invalid_argument(
      concat("weight: this model has no '", name, "'; weight_names lists those it has"));
}

std::vector<std::string> weight_names(const Model& model) {
  std::vector<std::string> names = {"embed.W_E"};
  if (model.weights().W_pos.defined()) names.emplace_back("pos_embed.W_pos");
  const auto& blocks = whole_weights(model, "weight_names").blocks;
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    const auto& parts = blocks[layer].parts();
    for (const auto& w : kBlockWeights)
      if (w.has(parts) && (!w.listed || w.listed(parts)))
        names.push_back(concat("blocks.", layer, ".", w.name));
    for (const auto& name : mixture_names(parts)) names.push_back(concat("blocks.", layer, ".", name));
  }
  names.emplace_back("ln_final.w");
  if (model.weights().ln_final.bias.defined()) names.emplace_back("ln_final.b");
  names.emplace_back("unembed.W_U");
  names.emplace_back("unembed.b_U");
  return names;
}

torch::Tensor stacked_weight(const Model& model, std::string_view name) {
  std::vector<torch::Tensor> layers;
  for (const auto& block : whole_weights(model, concat("stacked_weight '", name, "'")).blocks) {
    const auto* found = find_block_weight(block.parts(), name);
    auto weight = found != nullptr ? found->get(block.parts()) : mixture_weight(block.parts(), name);
    check<std::invalid_argument>(
        weight.defined(), "stacked_weight: this model's blocks have no '", name,
        "'; names are as in 'attn.W_Q'",
        block.parts().mlp.is_mixture() ? ", and an expert's as in 'mlp.experts.0.W_in.weight'" : "");
    layers.push_back(std::move(weight));
  }
  return at::stack(layers);
}

}  // namespace introspect::models
