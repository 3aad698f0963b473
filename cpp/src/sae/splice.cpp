#include "introspect/sae/splice.h"

#include <array>
#include <cmath>
#include <mutex>
#include <set>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/hooks/operators.h"

#include "core/on_device.h"
#include "sae/arithmetic.h"
#include "sae/sites.h"

namespace introspect::sae {
namespace {

using hooks::Operands;
using hooks::Parameters;
using torch::Tensor;
using Input = hooks::Operator::Input;
using Widths = hooks::Operator::Widths;

constexpr std::array kSpliced{
    Architecture::standard, Architecture::gated,    Architecture::topk,
    Architecture::abstopk,  Architecture::jumprelu, Architecture::matching_pursuit,
    Architecture::groupmax,
};

bool chooses(Architecture a) {
  return a == Architecture::topk || a == Architecture::abstopk || a == Architecture::groupmax ||
         a == Architecture::matching_pursuit;
}

/// A field of DictionaryConfig as a parameter of an operator.
std::map<std::string, std::optional<double>> parameters_of(Architecture a) {
  const DictionaryConfig as_is;
  std::map<std::string, std::optional<double>> out = {
      {"keeps", static_cast<double>(Keeps::error)},
      {"subtract_b_dec", as_is.subtract_b_dec},
      {"rank_by_decoder_norm", as_is.rank_by_decoder_norm},
      {"input_norm", static_cast<double>(as_is.input_norm)},
      {"input_scale", as_is.input_scale},
      {"layer_norm_eps", as_is.layer_norm_eps},
  };
  if (chooses(a)) out["k"] = std::nullopt;
  if (a == Architecture::topk) out["relu"] = as_is.relu;
  if (a == Architecture::matching_pursuit) out["residual_threshold"] = as_is.residual_threshold;
  return out;
}

Parameters parameters_of(const DictionaryConfig& config, Keeps keeps) {
  const Parameters all = {
      {"keeps", static_cast<double>(keeps)},
      {"k", config.k},
      {"relu", config.relu},
      {"subtract_b_dec", config.subtract_b_dec},
      {"rank_by_decoder_norm", config.rank_by_decoder_norm},
      {"input_norm", static_cast<double>(config.input_norm)},
      {"input_scale", config.input_scale},
      {"layer_norm_eps", config.layer_norm_eps},
      {"residual_threshold", config.residual_threshold},
  };
  Parameters out;
  for (const auto& [name, usual] : parameters_of(config.architecture))
    if (const double value = all.at(name); usual != value) out[name] = value;
  return out;
}

DictionaryConfig config_of(Architecture architecture, const Parameters& parameters) {
  const DictionaryConfig as_is;
  const auto get = [&](const char* name, double otherwise) {
    const auto found = parameters.find(name);
    return found == parameters.end() ? otherwise : found->second;
  };
  return {.architecture = architecture,
          .k = get("k", 0),
          .relu = get("relu", as_is.relu) != 0,
          .subtract_b_dec = parameters.at("subtract_b_dec") != 0,
          .rank_by_decoder_norm = parameters.at("rank_by_decoder_norm") != 0,
          .input_norm = static_cast<InputNorm>(static_cast<int>(parameters.at("input_norm"))),
          .input_scale = parameters.at("input_scale"),
          .layer_norm_eps = parameters.at("layer_norm_eps"),
          .residual_threshold = get("residual_threshold", as_is.residual_threshold)};
}

void check_parameters(const Parameters& parameters) {
  const auto whole = [&](const char* name, double first, double last) {
    const auto found = parameters.find(name);
    if (found == parameters.end()) return;
    const double value = found->second;
    check<std::invalid_argument>(value == std::floor(value) && value >= first && value <= last,
                                 "intervention: ", name, " of a dictionary must be a whole number ", first,
                                 " to ", last, ", got ", value);
  };
  whole("keeps", 0, static_cast<double>(Keeps::everything));
  whole("k", 1, 1e9);
  for (const char* name : {"relu", "subtract_b_dec", "rank_by_decoder_norm"}) whole(name, 0, 1);
  whole("input_norm", 0, static_cast<double>(InputNorm::layer_norm));
  check<std::invalid_argument>(parameters.at("input_scale") > 0,
                               "intervention: the input scale of a dictionary must be above 0, got ",
                               parameters.at("input_scale"));
}

/// The operands of an architecture by name.
std::map<std::string, hooks::Operator::Need> operands_of(Architecture a) {
  using enum hooks::Operator::Need;
  std::map<std::string, hooks::Operator::Need> out = {{"W_dec", kRequired},  {"b_dec", kOptional},
                                                      {"W_skip", kOptional}, {"features", kOptional},
                                                      {"gains", kOptional},  {"values", kOptional}};
  if (a != Architecture::matching_pursuit) out["W_enc"] = kRequired;
  if (a == Architecture::jumprelu) out["threshold"] = kRequired;
  if (a == Architecture::gated)
    for (const char* name : {"b_gate", "b_mag", "r_mag"}) out[name] = kRequired;
  else if (a != Architecture::matching_pursuit)
    out["b_enc"] = kOptional;
  return out;
}

void check_edits(const Operands& operands, int64_t F) {
  const auto &ids = operands.get("features"), &gains = operands.get("gains"),
             &values = operands.get("values");
  const bool all = ids.defined() && gains.defined() && values.defined();
  check<std::invalid_argument>(all || (!ids.defined() && !gains.defined() && !values.defined()),
                               "intervention: edits of features are the operands features, gains and values "
                               "together");
  if (!all) return;
  check<ShapeError>(ids.scalar_type() == torch::kLong && ids.dim() == 1 && gains.sizes() == ids.sizes() &&
                        values.sizes() == ids.sizes(),
                    "intervention: features must be int64 [n], gains and values [n], got ", ids.scalar_type(),
                    " ", ids.sizes(), ", ", gains.sizes(), " and ", values.sizes());
  const auto listed = ids.to(torch::kCPU).contiguous();
  std::set<int64_t> seen;
  for (int64_t i = 0; i < listed.numel(); ++i) {
    const auto id = listed.const_data_ptr<int64_t>()[i];
    check<std::out_of_range>(id >= 0 && id < F, "intervention: features must be 0 to ", F - 1, ", got ", id);
    check<std::invalid_argument>(seen.insert(id).second, "intervention: features must differ, got ", id,
                                 " twice");
  }
}

/// Of points with heads the widths are those of one head, and a dictionary has all of them side by side.
void check_operands(const Operands& operands, const Widths& widths) {
  const auto &W_enc = operands.get("W_enc"), &W_dec = operands.get("W_dec");
  check<ShapeError>(W_dec.dim() == 2 && W_dec.numel() > 0, "intervention: W_dec must be [d_sae, d_out], got ",
                    W_dec.sizes());
  const int64_t F = W_dec.size(0), d_out = W_dec.size(1);
  const int64_t d_in = W_enc.defined() ? W_enc.size(-1) : d_out;
  for (const auto& [name, tensor] : operands) {
    if (name == "features" || name == "gains" || name == "values") continue;
    const std::vector<int64_t> shape = name == "W_enc"    ? std::vector{F, d_in}
                                       : name == "W_dec"  ? std::vector{F, d_out}
                                       : name == "b_dec"  ? std::vector{d_out}
                                       : name == "W_skip" ? std::vector{d_out, d_in}
                                                          : std::vector{F};
    check<ShapeError>(tensor.sizes() == shape && tensor.scalar_type() == W_dec.scalar_type(),
                      "intervention: ", name, " of a dictionary must be ", at::IntArrayRef(shape), " ",
                      W_dec.scalar_type(), ", got ", tensor.sizes(), " ", tensor.scalar_type());
  }
  check_edits(operands, F);
  const auto fits = [](int64_t d, const std::optional<int64_t>& width) {
    return !width || (*width > 0 && d % *width == 0);
  };
  check<ShapeError>(fits(d_out, widths.x), "intervention: the dictionary writes ", d_out,
                    " wide, and the point is ", widths.x.value_or(0), " wide");
  check<ShapeError>(fits(d_in, widths.source ? widths.source : widths.x),
                    "intervention: the dictionary reads ", d_in, " wide, and the point is ",
                    (widths.source ? widths.source : widths.x).value_or(0), " wide");
}

/// What the edits add to the decoded: sum_i (f'_i - f_i) W_dec_i, of x in its own units.
Tensor edited_part(const Dictionary& d, const Tensor& f_n, const Input& in, const Tensor& read) {
  const auto type = arithmetic(d.dtype());
  const auto ids = in.operands.get("features");
  auto change_n = f_n.to(type) * (in.operands.get("gains").to(type) - 1) + in.operands.get("values").to(type);
  if (d.config().rank_by_decoder_norm) change_n = change_n / decoder_divisors(d, type).index_select(0, ids);
  auto out = at::matmul(change_n, d.weights().W_dec_FD.index_select(0, ids).to(type));
  if (d.config().input_norm != InputNorm::none) out = out * d.input(read).scale;
  return out;
}

Tensor apply(Architecture architecture, bool transcodes, const Input& in) {
  const auto d = Dictionary::of_checked(config_of(architecture, in.parameters),
                                        DictionaryWeights::from_operands(in.operands));
  const auto keeps = static_cast<Keeps>(static_cast<int>(in.parameters.at("keeps")));
  const auto& ids = in.operands.get("features");
  const bool edits = ids.defined() && ids.numel() > 0;
  if (keeps == Keeps::error && !edits) return in.x;
  const auto x = side_by_side(in.x, d.d_out(), "writes");
  const auto read = transcodes ? side_by_side(in.source, d.d_in(), "reads") : x;
  const auto back = [&](const Tensor& out) { return out.reshape(in.x.sizes()); };
  if (keeps == Keeps::error) return back(x + in.strength * edited_part(d, d.encode(read, ids), in, read));
  Tensor y;
  if (edits) {
    const auto f = d.encode(read);
    y = d.decode(f, read) + edited_part(d, f.index_select(-1, ids), in, read);
  } else {
    y = d.forward(read);
  }
  if (keeps == Keeps::everything) return back(x + in.strength * y);
  return back(in.strength == 1 ? y : x + in.strength * (y - x));
}

std::string operator_name(Architecture architecture, bool transcodes) {
  return (transcodes ? "transcoder_" : "sae_") + to_string(architecture);
}

}  // namespace

void register_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    for (const auto architecture : kSpliced)
      for (const bool transcodes : {false, true})
        hooks::register_operator(
            operator_name(architecture, transcodes),
            {.apply = [=](const Input& in) { return apply(architecture, transcodes, in); },
             .operands = operands_of(architecture),
             .reads_source = transcodes,
             .check_operands = check_operands,
             .parameters = parameters_of(architecture),
             .check_parameters = check_parameters});
  });
}

namespace {

[[maybe_unused]] const bool kRegistered = (register_operators(), true);

}  // namespace

hooks::Intervention splice(const Dictionary& dictionary, const std::vector<FeatureEdit>& edits, Keeps keeps,
                           double strength, const SpliceSites& sites) {
  const auto [input_name, output_name] = named_sites("splice", dictionary, sites);
  check<ConfigError>(
      dictionary.config().architecture != Architecture::batchtopk,
      "splice: a batchtopk dictionary ranks the rows of a batch together, so that a row hangs on "
      "its neighbours; make a jumprelu of it with its threshold");
  const auto input = parse_site(input_name), output = parse_site(output_name);
  const bool transcodes = !(input == output);
  check<ShapeError>(transcodes || dictionary.d_in() == dictionary.d_out(), "splice: a dictionary that reads ",
                    dictionary.d_in(), " and writes ", dictionary.d_out(), " cannot do both at ", input_name,
                    ": give the hook it writes to");
  hooks::Intervention out;
  out.op = operator_name(dictionary.config().architecture, transcodes);
  out.point = output.point;
  out.strength = strength;
  out.parameters = parameters_of(dictionary.config(), keeps);
  if (transcodes) {
    out.source = input.point;
    if (input.layer >= 0 && input.layer != output.layer) out.source_layer = input.layer;
  }
  const auto weights = dictionary.weights().operands();
  Operands::Tensors operands(weights.begin(), weights.end());
  if (!edits.empty()) {
    std::vector<int64_t> ids;
    std::vector<double> gains, values;
    for (const auto& edit : edits) {
      check<std::invalid_argument>(std::isfinite(edit.gain) && std::isfinite(edit.value),
                                   "splice: edits must be finite, got ", edit.gain, " f + ", edit.value,
                                   " of feature ", edit.feature);
      ids.push_back(edit.feature);
      gains.push_back(edit.gain);
      values.push_back(edit.value);
    }
    const auto options = dictionary.weights().W_dec_FD.options().requires_grad(false);
    operands["features"] = on_device(ids, options.device());
    operands["gains"] = torch::tensor(gains, torch::kFloat64).to(options);
    operands["values"] = torch::tensor(values, torch::kFloat64).to(options);
  }
  out.values[output.layer] = std::move(operands);
  check_edits(out.values.at(output.layer), dictionary.d_sae());
  return out;
}

}  // namespace introspect::sae
