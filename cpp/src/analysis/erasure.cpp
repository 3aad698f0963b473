#include "introspect/analysis/erasure.h"

#include <cmath>
#include <limits>
#include <mutex>
#include <stdexcept>

#include <torch/types.h>

#include "introspect/core/check.h"
#include "introspect/hooks/operators.h"
#include "introspect/io/safetensors.h"

namespace introspect::analysis {
namespace {

using torch::Tensor;

constexpr auto kFormat = "leace";

Tensor erased(const Tensor& x, const Tensor& left_Dk, const Tensor& right_kD, const Tensor& bias_D,
              double strength) {
  const auto delta = bias_D.defined() ? x - bias_D : x;
  return x - strength * delta.matmul(right_kD.t()).matmul(left_Dk.t());
}

Tensor leace(const hooks::Operator::Input& in) {
  const auto dtype = in.x.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  const auto operand = [&](const char* name) {
    const auto& tensor = in.operands.get(name);
    return tensor.defined() ? tensor.to(dtype) : tensor;
  };
  return erased(in.x.to(dtype), operand("proj_left"), operand("proj_right"), operand("bias"), in.strength);
}

void check_operands(const hooks::Operands& operands, const hooks::Operator::Widths& widths) {
  const auto &left = operands.get("proj_left"), &right = operands.get("proj_right"),
             &bias = operands.get("bias");
  check<ShapeError>(left.dim() == 2 && right.dim() == 2 && left.size(1) == right.size(0) &&
                        left.size(0) == right.size(1) && (!widths.x || left.size(0) == *widths.x),
                    "leace: proj_left must be [", widths.x.value_or(left.size(0)), ", k] and proj_right [k, ",
                    widths.x.value_or(left.size(0)), "], got ", left.sizes(), " and ", right.sizes());
  check<ShapeError>(!bias.defined() || (bias.dim() == 1 && bias.size(0) == left.size(0)),
                    "leace: bias must be [", left.size(0), "]");
}

/// Towards a multiple of one of equal trace, by as much as is best for many rows and columns.
Tensor shrunken(const Tensor& covariance_DD, double n) {
  const double D = static_cast<double>(covariance_DD.size(0));
  const double trace = covariance_DD.trace().item<double>();
  const double size = covariance_DD.square().sum().item<double>();
  const double target = trace / D;  // on the diagonal of what it is drawn to, whose squares sum to D target^2
  const double alpha = 1 - (trace * trace * target * target * D / n) /
                               (size * target * target * D - std::pow(target * trace, 2));
  auto out = alpha * covariance_DD;
  out.diagonal().add_((1 - alpha) * target);
  return out;
}

/// An orthonormal basis of the columns of A, without those of singular values up to a tolerance.
Tensor column_basis(const Tensor& A, double tolerance) {
  const auto [U, S, V] = at::linalg_svd(A, /*full_matrices=*/false);
  return U.index_select(1, (S > tolerance).nonzero().flatten());
}

[[maybe_unused]] const bool kRegistered = (register_erasure(), true);

}  // namespace

Tensor LeaceEraser::erase(const Tensor& x) const {
  check<ShapeError>(x.dim() >= 1 && x.size(-1) == proj_left.size(0) && x.is_floating_point(),
                    "LeaceEraser: activations must be [..., ", proj_left.size(0), "] of a float dtype, got ",
                    x.sizes());
  const auto place = x.device();
  const auto wide = x.to(torch::kFloat64);
  return erased(wide, proj_left.to(place), proj_right.to(place), bias.defined() ? bias.to(place) : bias, 1.0)
      .to(x.scalar_type());
}

hooks::Intervention LeaceEraser::as_intervention(int64_t layer, hooks::Point point) const {
  hooks::Intervention out;
  out.op = "leace";
  out.point = point;
  out.values[layer] =
      hooks::Operands::Tensors{{"proj_left", proj_left}, {"proj_right", proj_right}, {"bias", bias}};
  return out;
}

void LeaceEraser::save(const std::filesystem::path& path) const {
  std::vector<std::pair<std::string, Tensor>> tensors = {{"proj_left", proj_left},
                                                         {"proj_right", proj_right}};
  if (bias.defined()) tensors.emplace_back("bias", bias);
  io::save_safetensors(path, tensors, {{"format", kFormat}});
}

LeaceEraser LeaceEraser::load(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  check<IoError>(file->has("proj_left") && file->has("proj_right"), "LeaceEraser::load: ", path.string(),
                 ": the tensors proj_left and proj_right must be there");
  LeaceEraser out{file->read("proj_left", torch::kFloat64), file->read("proj_right", torch::kFloat64), {}};
  if (file->has("bias")) out.bias = file->read("bias", torch::kFloat64);
  try {
    check_operands(
        hooks::Operands::Tensors{
            {"proj_left", out.proj_left}, {"proj_right", out.proj_right}, {"bias", out.bias}},
        {});
  } catch (const ShapeError& error) {
    throw IoError(concat("LeaceEraser::load: ", path.string(), ": ", error.what()));
  }
  return out;
}

LeaceFitter::LeaceFitter(int64_t x_dim, int64_t z_dim, LeaceOptions options) : options_(options) {
  check<std::invalid_argument>(x_dim >= 1 && z_dim >= 1, "LeaceFitter: sizes must be 1 or more, got ", x_dim,
                               " and ", z_dim);
  check<std::invalid_argument>(options.svd_tol > 0, "LeaceFitter: svd_tol must be above 0, got ",
                               options.svd_tol);
  mean_x_ = torch::zeros({x_dim}, torch::kFloat64);
  mean_z_ = torch::zeros({z_dim}, torch::kFloat64);
  if (!options.orth) sum_xx_ = torch::zeros({x_dim, x_dim}, torch::kFloat64);
  sum_xz_ = torch::zeros({x_dim, z_dim}, torch::kFloat64);
}

void LeaceFitter::update(const Tensor& x, const Tensor& z) {
  const torch::NoGradGuard no_grad;
  const int64_t D = mean_x_.size(0), k = mean_z_.size(0);
  check<ShapeError>(x.dim() >= 1 && x.size(-1) == D, "LeaceFitter::update: x must be [..., ", D, "], got ",
                    x.sizes());
  const auto wide = torch::TensorOptions(torch::kCPU).dtype(torch::kFloat64);
  const auto x_ND = x.to(wide).reshape({-1, D});
  check<ShapeError>(z.numel() == x_ND.size(0) * k, "LeaceFitter::update: z must be [..., ", k, "] for ",
                    x_ND.size(0), " rows of x, got ", z.sizes());
  if (x_ND.size(0) == 0) return;
  const auto z_Nk = z.to(wide).reshape({-1, k});
  check<std::invalid_argument>(x_ND.isfinite().all().item<bool>() && z_Nk.isfinite().all().item<bool>(),
                               "LeaceFitter::update: x and z must be finite");
  n_ += x_ND.size(0);
  // Welford's update, which needs no difference of large sums.
  const auto before_x = x_ND - mean_x_, before_z = z_Nk - mean_z_;
  mean_x_ = mean_x_ + before_x.sum(0) / static_cast<double>(n_);
  mean_z_ = mean_z_ + before_z.sum(0) / static_cast<double>(n_);
  if (sum_xx_.defined()) sum_xx_ += before_x.t().mm(x_ND - mean_x_);
  sum_xz_ += before_x.t().mm(z_Nk - mean_z_);
}

Tensor LeaceFitter::covariance_x() const {
  if (!sum_xx_.defined()) return {};
  const auto sum = (sum_xx_ + sum_xx_.t()) / 2;
  const double n = static_cast<double>(n_);
  return options_.shrinkage ? shrunken(sum / n, n) : sum / (n - 1);
}

Tensor LeaceFitter::covariance_xz() const {
  return sum_xz_ / static_cast<double>(n_ - 1);
}

LeaceEraser LeaceFitter::eraser() const {
  const torch::NoGradGuard no_grad;
  check<std::invalid_argument>(n_ >= 2, "LeaceFitter::eraser: two rows or more must be seen first, got ", n_);
  const auto cross_Dk = covariance_xz();
  check<std::invalid_argument>(
      (cross_Dk != 0).any().item<bool>(),
      "LeaceFitter::eraser: the concept must vary with the activations, and does not: is it "
      "of one class?");
  const auto bias = options_.affine ? mean_x_ : Tensor();
  if (options_.orth) {
    const auto u_Dk = column_basis(cross_Dk, options_.svd_tol);
    return {u_Dk, u_Dk.t().contiguous(), bias};
  }
  const auto covariance_DD = covariance_x();
  const auto [values_D, vectors_DD] = at::linalg_eigh(covariance_DD);
  const double least = values_D[-1].item<double>() * static_cast<double>(values_D.size(0)) *
                       std::numeric_limits<double>::epsilon();
  const auto kept_D = values_D > least;
  const auto root_D = at::where(kept_D, values_D.clamp_min(0).sqrt(), 0.0);
  const auto inverse_D = at::where(kept_D, values_D.clamp_min(0).rsqrt(), 0.0);
  const auto W_DD = (vectors_DD * inverse_D).mm(vectors_DD.t());
  const auto u_Dk = column_basis(W_DD.mm(cross_Dk), options_.svd_tol);
  const auto left_Dk = (vectors_DD * root_D).mm(vectors_DD.t().mm(u_Dk));
  const auto right_kD = u_Dk.t().mm(W_DD);
  return {left_Dk, right_kD, bias};
}

void register_erasure() {
  static std::once_flag once;
  std::call_once(once, [] {
    using Need = hooks::Operator::Need;
    hooks::register_operator("leace", {.apply = leace,
                                       .operands = {{"proj_left", Need::kRequired},
                                                    {"proj_right", Need::kRequired},
                                                    {"bias", Need::kOptional}},
                                       .check_operands = check_operands});
  });
}

}  // namespace introspect::analysis
