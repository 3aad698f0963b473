#include "introspect/hooks/operators.h"

#include <cmath>
#include <limits>
#include <map>
#include <mutex>

#include "core/excerpt.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

/// Half-precision activations are worked on in float32 and rounded once, at the end.
torch::ScalarType working_dtype(torch::ScalarType dtype) {
  return dtype == torch::kBFloat16 || dtype == torch::kFloat16 ? torch::kFloat32 : dtype;
}

using Input = Operator::Input;

struct Wide {
  torch::Tensor x, v;
};

Wide widen(const Input& in) {
  const auto dtype = working_dtype(in.x.scalar_type());
  return {in.x.to(dtype), in.v().to(dtype)};
}

/// The product is rounded to the activation's dtype before it is added, as a forward hook in PyTorch would.
torch::Tensor add(const Input& in) {
  return in.x + (in.v() * in.strength).to(in.x.scalar_type());
}

torch::Tensor ablate(const Input& in) {
  const auto [x_W, v_W] = widen(in);
  const auto smallest = std::numeric_limits<float>::min();
  const auto u_W = v_W * v_W.square().sum(-1, /*keepdim=*/true).clamp_min(smallest).rsqrt();
  return x_W - in.strength * (x_W * u_W).sum(-1, /*keepdim=*/true) * u_W;
}

/// The rows of a subspace, [k, W].
torch::Tensor rows_of(const torch::Tensor& v) {
  return v.dim() == 1 ? v.unsqueeze(0) : v;
}

torch::Tensor project_out(const Input& in) {
  const auto basis_Wn = std::get<0>(at::linalg_qr(rows_of(in.v()).to(torch::kFloat64).t()))
                            .to(working_dtype(in.x.scalar_type()));
  const auto x_W = in.x.to(basis_Wn.scalar_type());
  return x_W - in.strength * x_W.matmul(basis_Wn).matmul(basis_Wn.t());
}

void check_subspace(const Operands& operands, const Operator::Widths& widths) {
  const auto& v = operands.v();
  const bool fits =
      (v.dim() == 1 || v.dim() == 2) && v.numel() > 0 && v.size(-1) == widths.x.value_or(v.size(-1));
  check<ShapeError>(fits, "project_out: the subspace must be [k, ",
                    widths.x ? std::to_string(*widths.x) : std::string("keys"), "], got ", v.sizes());
  const auto rows_nW = rows_of(v);
  const auto singular = at::linalg_svdvals(rows_nW.detach().to(torch::kFloat64));
  // Rows that differ by the rounding of the dtype they are given in are equal.
  const double rounding = v.scalar_type() == torch::kFloat64 ? 1e-13 : 1e-6;
  const auto rank = singular.gt(singular.max() * rounding).sum().item<int64_t>();
  check<std::invalid_argument>(rank == rows_nW.size(0), "project_out: the ", rows_nW.size(0),
                               " rows of the subspace must be linearly independent, got rank ", rank);
}

torch::Tensor replace(const Input& in) {
  return in.v().to(in.x.scalar_type()).expand(in.x.sizes());
}

torch::Tensor interpolate(const Input& in) {
  const auto [x_W, v_W] = widen(in);
  return at::lerp(x_W, v_W, in.strength);
}

torch::Tensor scale(const Input& in) {
  return in.x * in.strength;
}

torch::Tensor zero(const Input& in) {
  return at::zeros_like(in.x);
}

torch::Tensor mean(const Input& in) {
  if (!in.operands.empty()) return replace(in);
  return in.x.to(working_dtype(in.x.scalar_type())).mean(1, /*keepdim=*/true).expand(in.x.sizes());
}

class Registry {
 public:
  static Registry& get() {
    static Registry registry;
    return registry;
  }

  void insert(std::string_view name, Operator op) {
    check<std::invalid_argument>(static_cast<bool>(op.apply), "register_operator: '", name,
                                 "' must have something to apply");
    const bool only_v = op.operands.empty() || (op.operands.size() == 1 && op.operands.contains("v"));
    check<std::invalid_argument>(only_v || op.check_operands, "register_operator: '", name,
                                 "' must check its operands, as they are not 'v' alone");
    const std::lock_guard lock(mutex_);
    const bool is_new = operators_.try_emplace(std::string(name), std::move(op)).second;
    check<std::invalid_argument>(is_new, "register_operator: '", name, "' is taken");
  }

  const Operator& find(std::string_view name) {
    const std::lock_guard lock(mutex_);
    const auto found = operators_.find(name);
    if (found != operators_.end()) return found->second;
    std::string known;
    for (const auto& [other, op] : operators_) known += (known.empty() ? "" : ", ") + other;
    throw ConfigError(concat("intervention: there is no operator ", excerpt(name), ", only ", known));
  }

  std::vector<std::string> names() {
    const std::lock_guard lock(mutex_);
    std::vector<std::string> out;
    for (const auto& [name, op] : operators_) out.push_back(name);
    return out;
  }

 private:
  using Need = Operator::Need;

  std::mutex mutex_;
  std::map<std::string, Operator, std::less<>> operators_ = {
      {"add", {.apply = add, .is_replayable = true}},
      {"ablate", {.apply = ablate, .is_replayable = true}},
      {"project_out", {.apply = project_out, .check_operands = check_subspace}},
      {"replace", {.apply = replace, .takes_strength = false, .is_replayable = true}},
      {"interpolate", {.apply = interpolate, .is_replayable = true}},
      {"scale", {.apply = scale, .operands = {}, .identity = 1, .is_replayable = true}},
      {"zero", {.apply = zero, .operands = {}, .takes_strength = false, .is_replayable = true}},
      {"mean",
       {.apply = mean,
        .operands = {{"v", Need::kOptional}},
        .takes_strength = false,
        .mixes_positions = true,
        .is_replayable = true}},
  };
};

}  // namespace

void register_operator(std::string_view name, Operator op) {
  Registry::get().insert(name, std::move(op));
}

Parameters complete_parameters(std::string_view name, const Operator& op, const Parameters& given) {
  Parameters out;
  for (const auto& [key, value] : given) {
    if (!op.parameters.contains(key)) {
      std::string known;
      for (const auto& [other, otherwise] : op.parameters) known += (known.empty() ? "" : ", ") + other;
      throw std::invalid_argument(concat("intervention: '", name, "' takes ",
                                         known.empty() ? "no parameters" : "the parameters " + known,
                                         ", got ", key));
    }
    check<std::invalid_argument>(std::isfinite(value), "intervention: ", key, " must be finite, got ", value);
    out[key] = value;
  }
  for (const auto& [key, otherwise] : op.parameters) {
    check<std::invalid_argument>(otherwise || out.contains(key), "intervention: '", name, "' needs ", key);
    if (otherwise) out.try_emplace(key, *otherwise);
  }
  return out;
}

const Operator& find_operator(std::string_view name) {
  return Registry::get().find(name);
}

std::vector<std::string> operator_names() {
  return Registry::get().names();
}

}  // namespace introspect::hooks
