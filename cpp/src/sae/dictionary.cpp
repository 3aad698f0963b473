#include "introspect/sae/dictionary.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <stdexcept>
#include <utility>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "core/dense.h"
#include "sae/arithmetic.h"

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

  if (!pursues) {
    check_dense<ShapeError>(w.W_enc_FD, "Dictionary: W_enc");
    check<ShapeError>(w.W_enc_FD.dim() == 2, "Dictionary: W_enc must be [d_sae, d_in], got ",
                      w.W_enc_FD.sizes());
  }
  const int64_t d_in = pursues ? d_out : w.W_enc_FD.size(1);
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
    // Of matching pursuit k bounds the steps, and SAELens's bound is d_in, which may be more than there are features.
    const auto most = static_cast<double>(pursues ? std::max(F, d_in) : F);
    check<std::invalid_argument>(
        config.k > 0 && config.k <= most && (batch || config.k == std::floor(config.k)),
        "Dictionary: k must be ", batch ? "above 0" : "a whole number from 1",
        pursues ? " to the larger of d_in and d_sae, " : " and at most d_sae, ", most, ", got ", config.k);
    check<std::invalid_argument>(
        config.architecture != Architecture::groupmax || F % static_cast<int64_t>(config.k) == 0,
        "Dictionary: d_sae must be a multiple of groupmax's k, got ", F, " and ", config.k);
  }
  if (pursues) {
    const auto longest = w.W_dec_FD.to(arithmetic(w.W_dec_FD.scalar_type())).norm(2, -1).max().item<double>();
    check<std::invalid_argument>(
        longest * longest < 2,
        "Dictionary: rows of matching pursuit's W_dec must be of length 1, got one of ", longest,
        ", with which each step would lengthen what is left");
  }
  if (w.threshold_F.defined())
    check<std::invalid_argument>((w.threshold_F >= 0).all().item<bool>(),
                                 "Dictionary: thresholds must be at least 0 (are these their logarithms?)");
  check<std::invalid_argument>(config.layer_norm_eps >= 0 && config.residual_threshold >= 0,
                               "Dictionary: layer_norm_eps and residual_threshold must be at least 0, got ",
                               config.layer_norm_eps, " and ", config.residual_threshold);
  check<ConfigError>(
      config.input_norm != InputNorm::whitening,
      "Dictionary: covariance_whitening folds into the weights: fold_whitening makes a dictionary "
      "of whitened rows one of the rows themselves");
  check<std::invalid_argument>(config.input_scale > 0 && std::isfinite(config.input_scale),
                               "Dictionary: the input scale must be above 0 and finite, got ",
                               config.input_scale);
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
    case InputNorm::whitening:
      return "covariance_whitening";
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

Dictionary::Dictionary(DictionaryConfig config, DictionaryWeights weights, DictionaryOrigin origin)
    : config_(std::move(config)), weights_(std::move(weights)), origin_(std::move(origin)) {
  check_weights(config_, weights_);
  for (const auto& [name, part] : kParts)
    if ((weights_.*part).defined()) weights_.*part = (weights_.*part).contiguous();
}

Dictionary Dictionary::of_checked(DictionaryConfig config, DictionaryWeights weights) {
  Dictionary out;
  out.config_ = std::move(config);
  out.weights_ = std::move(weights);
  return out;
}

int64_t Dictionary::d_in() const {
  return config_.architecture == Architecture::matching_pursuit ? d_out() : weights_.W_enc_FD.size(1);
}

torch::Tensor Dictionary::decoder_norms() const {
  return weights_.W_dec_FD.to(arithmetic(dtype())).norm(2, -1);
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

Dictionary Dictionary::with_origin(DictionaryOrigin origin) const {
  auto out = *this;
  out.origin_ = std::move(origin);
  return out;
}

const std::string& Dictionary::hash() const {
  static std::mutex mutex;  // held for an instant: a process forked meanwhile would wait for it for ever
  {
    const std::lock_guard lock(mutex);
    if (!hash_.empty()) return hash_;
  }
  Sha256 hash;
  hash.update(concat(to_string(config_.architecture), ";", config_.k, ";", config_.relu,
                     config_.subtract_b_dec, config_.rank_by_decoder_norm, ";", to_string(config_.input_norm),
                     ";", config_.input_scale, ";", config_.layer_norm_eps, ";", config_.residual_threshold,
                     ";", at::toString(dtype())));
  for (const auto& [name, tensor] : weights_.operands()) {
    const auto dense = tensor.to(torch::kCPU).contiguous();
    hash.update(concat(";", name, dense.sizes(), ":")).update(dense.const_data_ptr(), dense.nbytes());
  }
  auto hex = hash.hex();
  const std::lock_guard lock(mutex);
  if (hash_.empty()) hash_ = std::move(hex);  // what another thread has returned stays where it is
  return hash_;
}

}  // namespace introspect::sae
