#include "introspect/sae/dictionary.h"

#include <array>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "core/dense.h"

namespace introspect::sae {
namespace {

constexpr std::array<std::pair<Architecture, const char*>, 8> kArchitectures{{
    {Architecture::standard, "standard"},
    {Architecture::gated, "gated"},
    {Architecture::topk, "topk"},
    {Architecture::abstopk, "abstopk"},
    {Architecture::batchtopk, "batchtopk"},
    {Architecture::jumprelu, "jumprelu"},
    {Architecture::matching_pursuit, "matching_pursuit"},
    {Architecture::groupmax, "groupmax"},
}};

/// A weight that a dictionary has, must have or may not have.
struct Part {
  const char* name;
  torch::Tensor DictionaryWeights::* tensor;
};
constexpr std::array<Part, 9> kParts{{
    {"W_enc", &DictionaryWeights::W_enc_FD},
    {"b_enc", &DictionaryWeights::b_enc_F},
    {"W_dec", &DictionaryWeights::W_dec_FD},
    {"b_dec", &DictionaryWeights::b_dec_D},
    {"threshold", &DictionaryWeights::threshold_F},
    {"b_gate", &DictionaryWeights::b_gate_F},
    {"b_mag", &DictionaryWeights::b_mag_F},
    {"r_mag", &DictionaryWeights::r_mag_F},
    {"W_skip", &DictionaryWeights::W_skip_DD},
}};

bool chooses(Architecture a) {
  return a == Architecture::topk || a == Architecture::abstopk || a == Architecture::batchtopk ||
         a == Architecture::groupmax || a == Architecture::matching_pursuit;
}

void check_weights(const DictionaryConfig& config, const DictionaryWeights& w) {
  const auto name = to_string(config.architecture);
  check_dense<ShapeError>(w.W_dec_FD, "Dictionary: W_dec");
  check<ShapeError>(w.W_dec_FD.dim() == 2 && w.W_dec_FD.numel() > 0,
                    "Dictionary: W_dec must be [d_sae, d_out], got ", w.W_dec_FD.sizes());
  const int64_t F = w.W_dec_FD.size(0), d_out = w.W_dec_FD.size(1);
  const bool pursues = config.architecture == Architecture::matching_pursuit;
  const auto wants = [&](const torch::Tensor& tensor, const char* part, bool wanted) {
    check<ConfigError>(tensor.defined() == wanted, "Dictionary: one of architecture ", name,
                       wanted ? " must have " : " must not have ", part);
  };
  wants(w.W_enc_FD, "W_enc", !pursues);
  wants(w.threshold_F, "threshold", config.architecture == Architecture::jumprelu);
  for (const auto& [part, tensor] :
       {std::pair{"b_gate", w.b_gate_F}, {"b_mag", w.b_mag_F}, {"r_mag", w.r_mag_F}})
    wants(tensor, part, config.architecture == Architecture::gated);
  if (pursues || config.architecture == Architecture::gated) wants(w.b_enc_F, "b_enc", false);

  const int64_t d_in =
      pursues ? d_out : (check_dense<ShapeError>(w.W_enc_FD, "Dictionary: W_enc"), w.W_enc_FD.size(-1));
  for (const auto& [part, tensor] : kParts) {
    const auto& t = w.*tensor;
    if (!t.defined()) continue;
    check_dense<ShapeError>(t, "Dictionary: ", part);
    const std::string what = part;
    const std::vector<int64_t> shape = what == "W_enc"    ? std::vector{F, d_in}
                                       : what == "W_dec"  ? std::vector{F, d_out}
                                       : what == "b_dec"  ? std::vector{d_out}
                                       : what == "W_skip" ? std::vector{d_out, d_in}
                                                          : std::vector{F};
    check<ShapeError>(t.sizes() == shape, "Dictionary: ", part, " must be ", at::IntArrayRef(shape), ", got ",
                      t.sizes());
    check<ShapeError>(at::isFloatingType(t.scalar_type()) && t.scalar_type() == w.W_dec_FD.scalar_type() &&
                          t.device() == w.W_dec_FD.device(),
                      "Dictionary: ", part, " must be of W_dec's floating dtype and device, ",
                      w.W_dec_FD.scalar_type(), " on ", w.W_dec_FD.device(), ", got ", t.scalar_type(),
                      " on ", t.device());
    check<std::invalid_argument>(at::isfinite(t).all().item<bool>(), "Dictionary: ", part, " must be finite");
  }
  check<ShapeError>(!config.subtract_b_dec || d_in == d_out, "Dictionary: b_dec [", d_out,
                    "] can be taken off inputs of its width only, got inputs of ", d_in);
  if (chooses(config.architecture)) {
    const bool batch = config.architecture == Architecture::batchtopk;
    check<std::invalid_argument>(
        config.k > 0 && config.k <= static_cast<double>(F) &&
            (batch || config.k == static_cast<double>(static_cast<int64_t>(config.k))),
        "Dictionary: k must be ", batch ? "above 0" : "a whole number from 1", " and at most d_sae, ", F,
        ", got ", config.k);
    check<std::invalid_argument>(
        config.architecture != Architecture::groupmax || F % static_cast<int64_t>(config.k) == 0,
        "Dictionary: d_sae must be a multiple of groupmax's k, got ", F, " and ", config.k);
  }
  if (w.threshold_F.defined())
    check<std::invalid_argument>((w.threshold_F >= 0).all().item<bool>(),
                                 "Dictionary: thresholds must be at least 0 (are these their logarithms?)");
  check<std::invalid_argument>(config.input_scale > 0 && std::isfinite(config.input_scale),
                               "Dictionary: the input scale must be above 0 and finite, got ",
                               config.input_scale);
}

/// What is not among the k largest of `rank` in the last dimension becomes 0; of equal ones the first are kept.
torch::Tensor keep_largest(const torch::Tensor& f, const torch::Tensor& rank, int64_t k) {
  if (k >= f.size(-1)) return f;
  const auto chosen =
      std::get<1>(rank.detach().sort(/*stable=*/true, -1, /*descending=*/true)).narrow(-1, 0, k);
  return f * at::zeros_like(rank).scatter(-1, chosen, 1);
}

}  // namespace

std::string to_string(Architecture architecture) {
  for (const auto& [value, name] : kArchitectures)
    if (value == architecture) return name;
  throw std::logic_error("sae: an architecture without a name");
}

Architecture parse_architecture(const std::string& name) {
  std::string names;
  for (const auto& [value, known] : kArchitectures) {
    if (name == known) return value;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw ConfigError("a dictionary's architecture must be one of " + names + ", got " + name);
}

std::string to_string(InputNorm norm) {
  switch (norm) {
    case InputNorm::none:
      return "none";
    case InputNorm::scale:
      return "expected_average_only_in";
    case InputNorm::constant_norm:
      return "constant_norm_rescale";
    case InputNorm::layer_norm:
      return "layer_norm";
  }
  throw std::logic_error("sae: an input norm without a name");
}

hooks::Operands DictionaryWeights::operands() const {
  hooks::Operands::Tensors tensors;
  for (const auto& [name, tensor] : kParts)
    if ((this->*tensor).defined()) tensors[name] = this->*tensor;
  return tensors;
}

DictionaryWeights DictionaryWeights::from_operands(const hooks::Operands& operands) {
  DictionaryWeights out;
  for (const auto& [name, tensor] : kParts) out.*tensor = operands.get(name);
  return out;
}

torch::Tensor SparseFeatures::dense() const {
  auto f_NF = at::zeros({rows(), d_sae}, values.options());
  const auto counts = offsets.slice(0, 1) - offsets.slice(0, 0, -1);
  const auto row = at::repeat_interleave(at::arange(rows(), counts.options()), counts);
  return f_NF.index_put_({row, indices}, values);
}

SparseFeatures SparseFeatures::of(const torch::Tensor& f_NF) {
  const auto at_NF = f_NF.nonzero();
  const auto row = at_NF.select(1, 0), column = at_NF.select(1, 1);
  const auto counts = at::bincount(row, {}, f_NF.size(0));
  return {at::cat({at::zeros({1}, counts.options()), counts.cumsum(0)}), column.contiguous(),
          f_NF.index({row, column}), f_NF.size(1)};
}

Dictionary::Dictionary(DictionaryConfig config, DictionaryWeights weights, DictionaryOrigin origin)
    : config_(std::move(config)), weights_(std::move(weights)), origin_(std::move(origin)) {
  check_weights(config_, weights_);
  decoder_norms_F_ = weights_.W_dec_FD.norm(2, -1);
}

Dictionary Dictionary::of_checked(DictionaryConfig config, DictionaryWeights weights) {
  Dictionary out;
  out.config_ = std::move(config);
  out.weights_ = std::move(weights);
  if (out.config_.rank_by_decoder_norm) out.decoder_norms_F_ = out.weights_.W_dec_FD.norm(2, -1);
  return out;
}

int64_t Dictionary::d_in() const {
  return config_.architecture == Architecture::matching_pursuit ? d_out() : weights_.W_enc_FD.size(1);
}

Dictionary::Input Dictionary::input(const torch::Tensor& x) const {
  check_dense<ShapeError>(x, "Dictionary: an input");
  check<ShapeError>(x.dim() > 0 && x.size(-1) == d_in() && x.is_floating_point(),
                    "Dictionary: inputs must be of a floating dtype and [.., ", d_in(), "], got ",
                    x.scalar_type(), " ", x.sizes());
  Input in{x.to(weights_.W_dec_FD.options()), {}, {}};
  switch (config_.input_norm) {
    case InputNorm::none:
      break;
    case InputNorm::scale:
      in.x = in.x * config_.input_scale;
      in.scale = at::scalar_tensor(1 / config_.input_scale, in.x.options());
      break;
    case InputNorm::constant_norm: {
      in.scale = in.x.norm(2, -1, /*keepdim=*/true) / std::sqrt(static_cast<double>(d_in()));
      in.x = in.x / in.scale;
      break;
    }
    case InputNorm::layer_norm: {
      in.shift = in.x.mean(-1, /*keepdim=*/true);
      in.scale = in.x.std(-1, /*unbiased=*/true, /*keepdim=*/true);
      in.x = (in.x - in.shift) / (in.scale + config_.layer_norm_eps);
      break;
    }
  }
  if (config_.subtract_b_dec && weights_.b_dec_D.defined()) in.x = in.x - weights_.b_dec_D;
  return in;
}

torch::Tensor Dictionary::pre_activations(const torch::Tensor& x) const {
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: matching pursuit has no pre-activations");
  return at::linear(input(x).x, weights_.W_enc_FD, weights_.b_enc_F);
}

torch::Tensor activate(const DictionaryConfig& config, const DictionaryWeights& w, const torch::Tensor& p) {
  const auto k = static_cast<int64_t>(config.k);
  const auto ranked = config.rank_by_decoder_norm ? p * w.W_dec_FD.norm(2, -1) : p;
  switch (config.architecture) {
    case Architecture::standard:
      return at::relu(ranked);
    case Architecture::gated: {
      const auto open = (p + w.b_gate_F > 0).to(p.scalar_type());
      const auto f = open * at::relu(p * w.r_mag_F.exp() + w.b_mag_F);
      return config.rank_by_decoder_norm ? f * w.W_dec_FD.norm(2, -1) : f;
    }
    case Architecture::topk: {
      const auto f = config.relu ? at::relu(ranked) : ranked;
      return keep_largest(f, f, k);
    }
    case Architecture::abstopk:
      return keep_largest(ranked, ranked.abs(), k);
    case Architecture::batchtopk: {
      const auto f = at::relu(ranked).reshape({-1});
      const auto n = static_cast<int64_t>(config.k * static_cast<double>(f.numel() / p.size(-1)));
      return keep_largest(f, f, n).reshape(p.sizes());
    }
    case Architecture::jumprelu:
      return ranked * (ranked > w.threshold_F).to(p.scalar_type());
    case Architecture::groupmax: {
      const auto f = at::relu(ranked).unflatten(-1, {k, p.size(-1) / k});
      return keep_largest(f, f, 1).flatten(-2);
    }
    case Architecture::matching_pursuit:
      break;
  }
  throw ConfigError("activate: matching pursuit has no pre-activations");
}

namespace {

/// f of rows: the feature that fits the rest best, as far as it does, until the rest is short, a row repeats a feature or
/// took k of them.
torch::Tensor pursue(const torch::Tensor& x_ND, const torch::Tensor& W_FD, int64_t k,
                     double residual_threshold) {
  auto rest_ND = x_ND;
  auto f_NF = at::zeros({x_ND.size(0), W_FD.size(0)}, x_ND.options());
  auto goes_on_N = at::ones({x_ND.size(0)}, x_ND.options().dtype(torch::kBool));
  for (int64_t step = 0; step < k; ++step) {
    goes_on_N = goes_on_N & (rest_ND.norm(2, -1) >= residual_threshold);
    const auto [best_N, i_N] = at::relu(at::matmul(rest_ND, W_FD.t())).max(-1);
    const auto was_N = f_NF.detach().gather(1, i_N.unsqueeze(1)).squeeze(1);
    goes_on_N = goes_on_N & (best_N > 0) & (was_N == 0);
    if (!goes_on_N.any().item<bool>()) break;
    const auto v_N1 = (best_N * goes_on_N.to(best_N.scalar_type())).unsqueeze(1);
    f_NF = f_NF.scatter_add(1, i_N.unsqueeze(1), v_N1);
    rest_ND = rest_ND - v_N1 * W_FD.index_select(0, i_N);
  }
  return f_NF;
}

}  // namespace

torch::Tensor Dictionary::encode(const torch::Tensor& x) const {
  if (config_.architecture != Architecture::matching_pursuit)
    return activate(config_, weights_, pre_activations(x));
  const auto in = input(x).x;
  const auto f_NF = pursue(in.reshape({-1, d_in()}), weights_.W_dec_FD, static_cast<int64_t>(config_.k),
                           config_.residual_threshold);
  auto shape = in.sizes().vec();
  shape.back() = d_sae();
  return f_NF.reshape(shape);
}

torch::Tensor Dictionary::encode(const torch::Tensor& x, const torch::Tensor& ids) const {
  return encode(x).index_select(-1, ids.to(device()));
}

SparseFeatures Dictionary::encode_sparse(const torch::Tensor& x_ND) const {
  check<ShapeError>(x_ND.defined() && x_ND.dim() == 2, "Dictionary: encode_sparse wants rows [N, d_in]");
  const at::NoGradGuard no_grad;
  return SparseFeatures::of(encode(x_ND));
}

torch::Tensor Dictionary::decode(const torch::Tensor& f, const torch::Tensor& x) const {
  check_dense<ShapeError>(f, "Dictionary: features");
  check<ShapeError>(f.dim() > 0 && f.size(-1) == d_sae(), "Dictionary: features must be [.., ", d_sae(),
                    "], got ", f.sizes());
  check<std::invalid_argument>(!needs_input() || x.defined(),
                               "Dictionary: decode needs the input x, which its input norm or skip is of");
  auto f_scaled = f.to(weights_.W_dec_FD.options());
  if (config_.rank_by_decoder_norm) f_scaled = f_scaled / decoder_norms_F_;
  auto y = at::matmul(f_scaled, weights_.W_dec_FD);
  if (weights_.b_dec_D.defined()) y = y + weights_.b_dec_D;
  if (config_.input_norm == InputNorm::scale) y = y / config_.input_scale;
  if (!needs_input()) return y;
  const auto in = input(x);
  if (config_.input_norm != InputNorm::scale && in.scale.defined()) y = y * in.scale;
  if (in.shift.defined()) y = y + in.shift;
  if (weights_.W_skip_DD.defined()) y = y + at::linear(x.to(y.options()), weights_.W_skip_DD);
  return y;
}

torch::Tensor Dictionary::decode(const SparseFeatures& f, const torch::Tensor& x_ND) const {
  return decode(f.dense(), x_ND);
}

torch::Tensor Dictionary::forward(const torch::Tensor& x) const {
  return decode(encode(x), x);
}

Dictionary Dictionary::to(torch::ScalarType dtype) const {
  auto tensors = weights_.operands();
  hooks::Operands::Tensors out;
  for (const auto& [name, tensor] : tensors) out[name] = tensor.to(dtype);
  return {config_, DictionaryWeights::from_operands(out), origin_};
}

Dictionary Dictionary::to(torch::Device device) const {
  return {config_, DictionaryWeights::from_operands(weights_.operands().to(device)), origin_};
}

Dictionary Dictionary::fold_decoder_norm() const {
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: the rows of matching pursuit are of length 1 and encode too");
  const auto n_F = decoder_norms_F_.clamp_min(1e-12);
  auto w = weights_;
  w.W_dec_FD = w.W_dec_FD / n_F.unsqueeze(1);
  w.W_enc_FD = w.W_enc_FD * n_F.unsqueeze(1);
  for (auto part : {&DictionaryWeights::b_enc_F, &DictionaryWeights::b_gate_F, &DictionaryWeights::b_mag_F})
    if ((w.*part).defined()) w.*part = w.*part * n_F;
  if (w.threshold_F.defined() && !config_.rank_by_decoder_norm) w.threshold_F = w.threshold_F * n_F;
  auto config = config_;
  config.rank_by_decoder_norm = false;
  return {config, w, origin_};
}

Dictionary Dictionary::fold_input_scale() const {
  check<ConfigError>(config_.input_norm == InputNorm::none || config_.input_norm == InputNorm::scale,
                     "Dictionary: an input norm of each row cannot be folded into weights, got ",
                     to_string(config_.input_norm));
  auto w = weights_;
  auto config = config_;
  config.input_norm = InputNorm::none;
  config.input_scale = 1;
  if (config_.input_norm == InputNorm::none) return *this;
  check<ConfigError>(config_.architecture != Architecture::matching_pursuit,
                     "Dictionary: the rows of matching pursuit are of length 1 and encode too");
  // s (x - b / s) = s x - b, and (f W_dec + b) / s
  w.W_enc_FD = w.W_enc_FD * config_.input_scale;
  w.W_dec_FD = w.W_dec_FD / config_.input_scale;
  if (w.b_dec_D.defined()) w.b_dec_D = w.b_dec_D / config_.input_scale;
  if (config.rank_by_decoder_norm) {
    // |W_dec_i| / s ranks alike, and the features' unit changes with it: f' = f / s of thresholds too
    if (w.threshold_F.defined()) w.threshold_F = w.threshold_F / config_.input_scale;
  }
  return {config, w, origin_};
}

Dictionary Dictionary::with_origin(DictionaryOrigin origin) const {
  auto out = *this;
  out.origin_ = std::move(origin);
  return out;
}

const std::string& Dictionary::hash() const {
  if (!hash_.empty()) return hash_;
  Sha256 hash;
  hash.update(concat(to_string(config_.architecture), ";", config_.k, ";", config_.relu,
                     config_.subtract_b_dec, config_.rank_by_decoder_norm, ";", to_string(config_.input_norm),
                     ";", config_.input_scale, ";", config_.layer_norm_eps, ";", config_.residual_threshold,
                     ";", at::toString(dtype())));
  for (const auto& [name, tensor] : weights_.operands()) {
    const auto dense = tensor.to(torch::kCPU).contiguous();
    hash.update(concat(";", name, dense.sizes(), ":")).update(dense.const_data_ptr(), dense.nbytes());
  }
  return hash_ = hash.hex();
}

}  // namespace introspect::sae
