#include <array>
#include <cmath>
#include <stdexcept>
#include <utility>

#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/sae/trainer.h"

#include "core/json.h"
#include "core/nearest.h"

namespace introspect::sae {
namespace {

using Json = nlohmann::ordered_json;

template <typename Enum, size_t n>
using Names = std::array<std::pair<Enum, const char*>, n>;

constexpr Names<Objective, 9> kObjectives{{{Objective::standard, "standard"},
                                           {Objective::gated, "gated"},
                                           {Objective::topk, "topk"},
                                           {Objective::abstopk, "abstopk"},
                                           {Objective::batchtopk, "batchtopk"},
                                           {Objective::matryoshka, "matryoshka_batchtopk"},
                                           {Objective::jumprelu, "jumprelu"},
                                           {Objective::p_anneal, "p_anneal"},
                                           {Objective::matching_pursuit, "matching_pursuit"}}};
constexpr Names<SparsityLoss, 3> kSparsityLosses{
    {{SparsityLoss::step, "step"}, {SparsityLoss::tanh, "tanh"}, {SparsityLoss::quadratic, "quadratic"}}};
constexpr Names<AuxLoss, 3> kAuxLosses{
    {{AuxLoss::none, "none"}, {AuxLoss::residual, "residual"}, {AuxLoss::normalised, "normalised"}}};
constexpr Names<BiasStart, 3> kBiasStarts{{{BiasStart::zero, "zero"},
                                           {BiasStart::mean, "mean"},
                                           {BiasStart::geometric_median, "geometric_median"}}};
constexpr Names<LearningRateSchedule, 2> kSchedules{
    {{LearningRateSchedule::constant, "constant"}, {LearningRateSchedule::cosine, "cosineannealing"}}};
constexpr Names<InputNorm, 5> kInputNorms{{{InputNorm::none, "none"},
                                           {InputNorm::scale, "expected_average_only_in"},
                                           {InputNorm::constant_norm, "constant_norm_rescale"},
                                           {InputNorm::layer_norm, "layer_norm"},
                                           {InputNorm::whitening, "covariance_whitening"}}};

constexpr const auto& names_of(Objective) {
  return kObjectives;
}
constexpr const auto& names_of(SparsityLoss) {
  return kSparsityLosses;
}
constexpr const auto& names_of(AuxLoss) {
  return kAuxLosses;
}
constexpr const auto& names_of(BiasStart) {
  return kBiasStarts;
}
constexpr const auto& names_of(LearningRateSchedule) {
  return kSchedules;
}
constexpr const auto& names_of(InputNorm) {
  return kInputNorms;
}

/// visit(name, field) for every option, in the order of the header.
template <typename Options, typename Visit>
void for_each_option(Options& o, const Visit& visit) {
  visit("objective", o.objective);
  visit("d_sae", o.d_sae);
  visit("float64", o.float64);
  visit("seed", o.seed);
  visit("k", o.k);
  visit("rank_by_decoder_norm", o.rank_by_decoder_norm);
  visit("threshold_lr", o.threshold_lr);
  visit("matryoshka_widths", o.matryoshka_widths);
  visit("matryoshka_aux", o.matryoshka_aux);
  visit("residual_threshold", o.residual_threshold);
  visit("l1_coefficient", o.l1_coefficient);
  visit("l1_by_decoder_norm", o.l1_by_decoder_norm);
  visit("lp", o.lp);
  visit("l0_coefficient", o.l0_coefficient);
  visit("sparsity_warm_up_steps", o.sparsity_warm_up_steps);
  visit("sparsity_loss", o.sparsity_loss);
  visit("bandwidth", o.bandwidth);
  visit("init_threshold", o.init_threshold);
  visit("ste_to_input", o.ste_to_input);
  visit("tanh_scale", o.tanh_scale);
  visit("target_l0", o.target_l0);
  visit("pre_act_coefficient", o.pre_act_coefficient);
  visit("pre_act_of_all", o.pre_act_of_all);
  visit("gated_detach", o.gated_detach);
  visit("p_end", o.p_end);
  visit("anneal_start", o.anneal_start);
  visit("anneal_end", o.anneal_end);
  visit("anneal_updates", o.anneal_updates);
  visit("anneal_power", o.anneal_power);
  visit("aux", o.aux);
  visit("aux_coefficient", o.aux_coefficient);
  visit("k_aux", o.k_aux);
  visit("dead_window", o.dead_window);
  visit("resample_every", o.resample_every);
  visit("input_norm", o.input_norm);
  visit("subtract_b_dec", o.subtract_b_dec);
  visit("transcodes", o.transcodes);
  visit("skip", o.skip);
  visit("b_dec_start", o.b_dec_start);
  visit("b_enc_rate", o.b_enc_rate);
  visit("decoder_norm", o.decoder_norm);
  visit("encoder_scale", o.encoder_scale);
  visit("unit_decoder", o.unit_decoder);
  visit("project_gradient", o.project_gradient);
  visit("lr", o.lr);
  visit("beta1", o.beta1);
  visit("beta2", o.beta2);
  visit("eps", o.eps);
  visit("clip", o.clip);
  visit("schedule", o.schedule);
  visit("warm_up_steps", o.warm_up_steps);
  visit("decay_steps", o.decay_steps);
  visit("lr_end", o.lr_end);
  visit("total_steps", o.total_steps);
}

template <typename T>
Json written(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    for (const auto& [known, name] : names_of(value))
      if (known == value) return name;
    throw std::logic_error("TrainerOptions: a value without a name");
  } else {
    return value;
  }
}

template <typename T>
T read(const JsonField<ConfigError>& field) {
  if constexpr (std::is_enum_v<T>) {
    const auto text = field.text();
    std::string known;
    for (const auto& [value, name] : names_of(T{})) {
      if (text == name) return value;
      known += (known.empty() ? "" : ", ") + std::string(name);
    }
    field.require(false, "must be one of ", known, ", got ", text);
    return {};
  } else if constexpr (std::is_same_v<T, bool>) {
    return field.boolean();
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    field.require(field.integer() >= 0, "must not be negative, got ", field.integer());
    return static_cast<uint64_t>(field.integer());
  } else if constexpr (std::is_integral_v<T>) {
    return field.integer();
  } else if constexpr (std::is_floating_point_v<T>) {
    return field.number();
  } else {
    return field.integers();
  }
}

}  // namespace

std::string TrainerOptions::to_json() const {
  auto out = Json::object();
  for_each_option(*this, [&](const char* name, const auto& value) { out[name] = written(value); });
  return out.dump();
}

TrainerOptions TrainerOptions::from_json(const std::string& text) {
  TrainerOptions out;
  const auto json = parse_json<ConfigError>(text, "TrainerOptions");
  const JsonField<ConfigError> object(json, "TrainerOptions: ");
  std::vector<std::string> known;
  for_each_option(out, [&](const char* name, auto& value) {
    known.emplace_back(name);
    if (object.has(name)) value = read<std::decay_t<decltype(value)>>(object.at(name));
  });
  object.for_each_field([&](const std::string& name, const auto&) {
    introspect::check<ConfigError>(std::find(known.begin(), known.end(), name) != known.end(),
                                   "TrainerOptions: there is no ", name, "; the nearest are ",
                                   nearest_names(name, known));
  });
  return out;
}

void TrainerOptions::check(int64_t d_in, int64_t d_out) const {
  using introspect::check;
  const auto in_range = [](const char* name, auto value, auto least, auto most) {
    check<std::invalid_argument>(std::isfinite(static_cast<double>(value)) && value >= least && value <= most,
                                 "Trainer: ", name, " must be from ", least, " to ", most, ", got ", value);
  };
  const auto at_least = [](const char* name, auto value, auto least) {
    check<std::invalid_argument>(std::isfinite(static_cast<double>(value)) && value >= least,
                                 "Trainer: ", name, " must be at least ", least, ", got ", value);
  };
  const auto positive = [](const char* name, double value) {
    check<std::invalid_argument>(std::isfinite(value) && value > 0, "Trainer: ", name,
                                 " must be above 0, got ", value);
  };
  at_least("d_in", d_in, int64_t{1});
  at_least("d_out", d_out, int64_t{1});
  at_least("d_sae", d_sae, int64_t{1});

  const bool of_batch = objective == Objective::batchtopk || objective == Objective::matryoshka;
  const bool chooses = of_batch || objective == Objective::topk || objective == Objective::abstopk;
  const bool pursues = objective == Objective::matching_pursuit;
  if (chooses || pursues) {
    check<std::invalid_argument>(std::isfinite(k) && k > 0 && k <= static_cast<double>(d_sae),
                                 "Trainer: k must be above 0 and at most d_sae, ", d_sae, ", got ", k);
    check<std::invalid_argument>(of_batch || k == std::floor(k), "Trainer: k must be whole for ",
                                 written(objective), ", got ", k);
  }
  if (objective == Objective::matryoshka) {
    check<std::invalid_argument>(!matryoshka_widths.empty(), "Trainer: matryoshka_widths must not be empty");
    int64_t last = 0;
    for (const auto width : matryoshka_widths) {
      check<std::invalid_argument>(width > last && width <= d_sae,
                                   "Trainer: matryoshka_widths must ascend from 1 to at most d_sae, ", d_sae,
                                   ", got ", width, " after ", last);
      last = width;
    }
  }
  in_range("threshold_lr", threshold_lr, 0.0, 1.0);
  at_least("residual_threshold", residual_threshold, 0.0);
  at_least("l1_coefficient", l1_coefficient, 0.0);
  at_least("l0_coefficient", l0_coefficient, 0.0);
  positive("lp", lp);
  at_least("sparsity_warm_up_steps", sparsity_warm_up_steps, int64_t{0});
  positive("bandwidth", bandwidth);
  at_least("init_threshold", init_threshold, 0.0);
  positive("tanh_scale", tanh_scale);
  at_least("pre_act_coefficient", pre_act_coefficient, 0.0);
  if (objective == Objective::jumprelu && sparsity_loss == SparsityLoss::quadratic)
    check<std::invalid_argument>(
        target_l0 > 0 && target_l0 <= static_cast<double>(d_sae),
        "Trainer: target_l0 of the quadratic loss must be above 0 and at most d_sae, ", d_sae, ", got ",
        target_l0);
  if (objective == Objective::p_anneal) {
    in_range("p_end", p_end, 0.0, 1.0);
    check<std::invalid_argument>(anneal_power || p_end > 0, "Trainer: the p-th root has no limit at p_end 0");
    at_least("anneal_updates", anneal_updates, int64_t{2});
    check<std::invalid_argument>(
        anneal_start >= 0 && anneal_start < (anneal_end > 0 ? anneal_end : total_steps),
        "Trainer: p_anneal's anneal_start, ", anneal_start,
        ", must be before its end: anneal_end or else total_steps");
  }
  at_least("aux_coefficient", aux_coefficient, 0.0);
  at_least("k_aux", k_aux, int64_t{0});
  at_least("dead_window", dead_window, int64_t{1});
  at_least("resample_every", resample_every, int64_t{0});
  check<ConfigError>(resample_every == 0 || !pursues, "Trainer: matching pursuit has no encoder to resample");

  check<ConfigError>(!(subtract_b_dec && transcodes),
                     "Trainer: b_dec is of what a transcoder writes: set subtract_b_dec to false");
  check<ShapeError>(transcodes || d_in == d_out, "Trainer: d_in, ", d_in, ", and d_out, ", d_out,
                    ", differ: one that transcodes is given y");
  check<ConfigError>(
      !pursues || (!transcodes && subtract_b_dec && !skip),
      "Trainer: matching pursuit encodes with its decoder: it does not transcode, has no skip and takes "
      "b_dec off its inputs");
  check<ConfigError>(!skip || input_norm == InputNorm::none || input_norm == InputNorm::scale,
                     "Trainer: a skip needs an input norm that is one for all rows");
  check<ConfigError>(!transcodes || input_norm == InputNorm::none || input_norm == InputNorm::scale,
                     "Trainer: a transcoder needs an input norm that is one for all rows");
  check<ConfigError>(
      input_norm != InputNorm::whitening || (!transcodes && !pursues),
      "Trainer: covariance_whitening is of inputs that are written too, and not of matching pursuit, "
      "whose rows must stay of length 1 when it is folded in");
  in_range("b_enc_rate", b_enc_rate, 0.0, 1.0);
  check<ConfigError>(b_enc_rate == 0 || (objective != Objective::gated && !pursues),
                     "Trainer: ", written(objective), " has no b_enc for b_enc_rate to set");
  at_least("decoder_norm", decoder_norm, 0.0);
  check<ConfigError>(
      decoder_norm > 0 || (transcodes && !rank_by_decoder_norm && !unit_decoder),
      "Trainer: a decoder of zeros is a transcoder's start alone, and without rank_by_decoder_norm");
  positive("encoder_scale", encoder_scale);
  positive("lr", lr);
  check<std::invalid_argument>(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1,
                               "Trainer: beta1 and beta2 must be 0 or more and less than 1, got ", beta1,
                               " and ", beta2);
  positive("eps", eps);
  at_least("clip", clip, 0.0);
  at_least("warm_up_steps", warm_up_steps, int64_t{0});
  at_least("decay_steps", decay_steps, int64_t{0});
  in_range("lr_end", lr_end, 0.0, lr);
  at_least("total_steps", total_steps, int64_t{0});
  check<std::invalid_argument>(
      (decay_steps == 0 && schedule == LearningRateSchedule::constant) ||
          warm_up_steps + decay_steps < total_steps,
      "Trainer: cosine and decay_steps need total_steps above warm_up_steps and decay_steps together, got ",
      total_steps);
}

TrainerOptions anthropic_jumprelu(int64_t d_in, int64_t d_sae, int64_t total_steps) {
  TrainerOptions o;
  o.objective = Objective::jumprelu;
  o.d_sae = d_sae;
  o.sparsity_loss = SparsityLoss::tanh;
  o.bandwidth = 2;
  o.init_threshold = 0.1;
  o.ste_to_input = true;
  o.tanh_scale = 4;
  o.pre_act_coefficient = 3e-6;
  o.pre_act_of_all = true;
  o.sparsity_warm_up_steps = total_steps;
  o.decay_steps = total_steps / 5;
  o.total_steps = total_steps;
  o.input_norm = InputNorm::scale;
  o.decoder_norm = 1 / std::sqrt(3.0);  // of uniform entries of at most 1 / sqrt(d_in)
  o.encoder_scale = static_cast<double>(d_in) / static_cast<double>(d_sae);
  o.b_enc_rate = std::min(0.5, 10000.0 / static_cast<double>(d_sae));
  return o;
}

}  // namespace introspect::sae
