#include "introspect/steering/operators.h"

#include <cmath>
#include <limits>
#include <mutex>
#include <numbers>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/hooks/operators.h"

namespace introspect::steering {

namespace {

using hooks::Parameters;
using Input = hooks::Operator::Input;
using torch::Tensor;

/// Half-precision activations are worked on in float32 and rounded once, at the end.
Tensor wide(const Tensor& x) {
  const bool half = x.scalar_type() == torch::kBFloat16 || x.scalar_type() == torch::kFloat16;
  return half ? x.to(torch::kFloat32) : x;
}

Tensor product(const Tensor& a, const Tensor& b) {
  return (a * b).sum(-1, /*keepdim=*/true);
}

Tensor length(const Tensor& x) {
  return at::linalg_vector_norm(x, 2, {-1}, /*keepdim=*/true);
}

/// v / |v|, or 0 for a zero v.
Tensor unit(const Tensor& v) {
  return v / length(v).clamp_min(std::numeric_limits<float>::min());
}

double epsilon(torch::ScalarType dtype) {
  return dtype == torch::kFloat64 ? std::numeric_limits<double>::epsilon()
                                  : std::numeric_limits<float>::epsilon();
}

Tensor norm_preserving_add(const Input& in) {
  const auto before = wide(in.x);
  const auto after = before + (in.v() * in.strength).to(before.scalar_type());
  return after * (length(before) / length(after).clamp_min(std::numeric_limits<float>::min()));
}

Tensor multiply(const Input& in) {
  const auto x_W = wide(in.x);
  return at::lerp(x_W, x_W * in.v().to(x_W.scalar_type()), in.strength);
}

Tensor project_to(const Input& in) {
  const auto x_W = wide(in.x);
  const auto u_W = unit(in.v().to(x_W.scalar_type()));
  return x_W + in.strength * (in.parameters.at("target") - product(x_W, u_W)) * u_W;
}

Tensor clamp(const Input& in) {
  const auto x_W = wide(in.x);
  const auto u_W = unit(in.v().to(x_W.scalar_type()));
  const auto before = product(x_W, u_W);
  return x_W + in.strength * (before.clamp(in.parameters.at("low"), in.parameters.at("high")) - before) * u_W;
}

void check_ends(const Parameters& parameters) {
  check<std::invalid_argument>(parameters.at("low") <= parameters.at("high"),
                               "intervention: the low end of clamp must not be above the high one, got ",
                               parameters.at("low"), " and ", parameters.at("high"));
}

/// x in a plane: x = a first + b second + the rest, first and second orthonormal.
struct InPlane {
  Tensor x, a, b, first, second;

  Tensor at(const Tensor& new_a, const Tensor& new_b) const {
    return x + (new_a - a) * first + (new_b - b) * second;
  }
};

/// In the plane of an operand's two rows, or of its one row and x itself: then second is 0 for an x along the row.
InPlane in_plane(const Tensor& x, const Tensor& operand) {
  const auto x_W = wide(x);
  const auto rows_nW = (operand.dim() == 1 ? operand.unsqueeze(0) : operand).to(torch::kFloat64);
  const auto first_64 = unit(rows_nW[0]);
  const auto first = first_64.to(x_W.scalar_type());
  const auto a = product(x_W, first);
  if (rows_nW.size(0) == 1) {
    const auto rest = x_W - a * first;
    // Across the row, x that lies along it has only rounding; the second projection makes what is small perpendicular.
    const auto lies_along = length(rest) <= 16 * epsilon(x_W.scalar_type()) * length(x_W);
    const auto away = unit(rest);
    const auto second = unit(away - product(away, first) * first).masked_fill(lies_along, 0);
    return {x_W, a, length(rest), first, second};
  }
  const auto second = unit(rows_nW[1] - product(rows_nW[1], first_64) * first_64).to(x_W.scalar_type());
  return {x_W, a, product(x_W, second), first, second};
}

/// A plane that x itself makes with one row turns the other way: from x to the row.
double radians(const Tensor& operand, double degrees) {
  const bool one = operand.dim() == 1 || operand.size(0) == 1;
  return (one ? -degrees : degrees) * std::numbers::pi / 180;
}

Tensor rotate(const Input& in) {
  const auto p = in_plane(in.x, in.v());
  const double angle = radians(in.v(), in.strength * in.parameters.at("angle"));
  const double c = std::cos(angle), s = std::sin(angle);
  const auto turned = p.at(c * p.a - s * p.b, s * p.a + c * p.b);
  return at::where(p.second.abs().sum(-1, /*keepdim=*/true) > 0, turned, p.x);
}

Tensor angular(const Input& in) {
  const auto p = in_plane(in.x, in.v());
  const double angle = in.parameters.at("angle") * std::numbers::pi / 180;
  const auto radius = at::hypot(p.a, p.b);
  const auto placed = p.at(radius * std::cos(angle), radius * std::sin(angle));
  return at::where(p.second.abs().sum(-1, /*keepdim=*/true) > 0, placed, p.x);
}

Tensor adaptive_angular(const Input& in) {
  const auto x_W = wide(in.x);
  const auto first = (in.v().dim() == 1 ? in.v() : in.v()[0]).to(x_W.scalar_type());
  return at::where(product(x_W, first) > 0, angular(in), x_W);
}

void check_plane(const hooks::Operands& operands, const hooks::Operator::Widths& widths) {
  const auto& operand = operands.v();
  const auto width = widths.x;
  const bool fits = (operand.dim() == 1 || (operand.dim() == 2 && operand.size(0) <= 2)) &&
                    operand.numel() > 0 && operand.size(-1) == width.value_or(operand.size(-1));
  const std::string W = width ? std::to_string(*width) : "keys";
  check<ShapeError>(fits, "intervention: a plane must be [2, ", W, "], or [", W,
                    "] for that with the activation, got ", operand.sizes());
  const auto rows_nW = (operand.dim() == 1 ? operand.unsqueeze(0) : operand).detach().to(torch::kFloat64);
  check<std::invalid_argument>(length(rows_nW).gt(0).all().item<bool>(),
                               "intervention: a direction of a plane must not be zero");
  if (rows_nW.size(0) < 2) return;
  const auto cosine = product(unit(rows_nW[0]), unit(rows_nW[1])).abs().item<double>();
  // Rows that differ by the rounding of the dtype they are given in are parallel.
  check<std::invalid_argument>(1 - cosine > (operand.scalar_type() == torch::kFloat64 ? 1e-13 : 1e-6),
                               "intervention: the two directions of a plane must not be parallel");
}

}  // namespace

void register_operators() {
  static std::once_flag once;
  std::call_once(once, [] {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const std::map<std::string, std::optional<double>> angle = {{"angle", std::nullopt}};
    hooks::register_operator("norm_preserving_add", {.apply = norm_preserving_add, .is_replayable = true});
    hooks::register_operator("multiply", {.apply = multiply, .is_replayable = true});
    hooks::register_operator(
        "project_to", {.apply = project_to, .parameters = {{"target", std::nullopt}}, .is_replayable = true});
    hooks::register_operator("clamp", {.apply = clamp,
                                       .parameters = {{"low", -kInfinity}, {"high", kInfinity}},
                                       .check_parameters = check_ends,
                                       .is_replayable = true});
    hooks::register_operator(
        "rotate",
        {.apply = rotate, .check_operands = check_plane, .parameters = angle, .is_replayable = true});
    hooks::register_operator("angular", {.apply = angular,
                                         .takes_strength = false,
                                         .check_operands = check_plane,
                                         .parameters = angle,
                                         .is_replayable = true});
    hooks::register_operator("adaptive_angular", {.apply = adaptive_angular,
                                                  .takes_strength = false,
                                                  .check_operands = check_plane,
                                                  .parameters = angle,
                                                  .is_replayable = true});
  });
}

namespace {

[[maybe_unused]] const bool kRegistered = (register_operators(), true);

}  // namespace

}  // namespace introspect::steering
