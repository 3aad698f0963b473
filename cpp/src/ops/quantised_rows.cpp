#include "introspect/ops/quantised_rows.h"

#include <algorithm>
#include <utility>

#include <torch/autograd.h>

#include "core/dequantise.h"
#include "core/parallel.h"
#include "introspect/core/check.h"
#include "ops/check_bias.h"
#include "ops/quantised_product.h"

namespace introspect::ops {

namespace {

constexpr int64_t kPanelValues = 1 << 22;  // of rows that are numbers at a time, where no kernel unpacks them
constexpr int64_t kGrain = 1 << 16;        // values that are worth a thread

/// Values of whole rows of blocks into rows of `out` [n, K], contiguous, on all threads; ids choose rows of `bytes`.
void unpack(const Quantisation& q, const torch::Tensor& bytes, const int64_t* ids, torch::Tensor out) {
  const int64_t n = out.size(0), K = out.size(1), row_bytes = bytes.size(1);
  const auto* from = bytes.const_data_ptr<uint8_t>();
  const int64_t n_blocks = K / q.layout.block_elements;
  parallel_for(
      0, n, std::max<int64_t>(1, kGrain / std::max<int64_t>(K, 1)), [&](int64_t first, int64_t last) {
        std::vector<float> row(out.scalar_type() == torch::kFloat32 ? 0 : static_cast<size_t>(K));
        for (int64_t r = first; r < last; ++r) {
          const auto* blocks = from + (ids ? ids[r] : r) * row_bytes;
          switch (out.scalar_type()) {
            case torch::kFloat32:
              q.dequantise(blocks, n_blocks, out.mutable_data_ptr<float>() + r * K);
              break;
            case torch::kBFloat16:
              q.dequantise(blocks, n_blocks, row.data());
              round_to_bfloat16(row.data(), K, static_cast<uint16_t*>(out.mutable_data_ptr()) + r * K);
              break;
            case torch::kFloat16:
              q.dequantise(blocks, n_blocks, row.data());
              round_to_float16(row.data(), K, static_cast<uint16_t*>(out.mutable_data_ptr()) + r * K);
              break;
            default:
              q.dequantise(blocks, n_blocks, row.data());
              std::copy_n(row.data(), K, out.mutable_data_ptr<double>() + r * K);
          }
        }
      });
}

void check_dtype(torch::ScalarType dtype) {
  check<ConfigError>(dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat16 ||
                         dtype == torch::kFloat64,
                     "QuantisedRows: dtype must be float32, bfloat16, float16 or float64, got ", dtype);
}

}  // namespace

/// The product with its gradient for x, which unpacks the rows again instead of keeping them.
struct QuantisedProduct : torch::autograd::Function<QuantisedProduct> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x_ND,
                               std::shared_ptr<const QuantisedRows> rows) {
    context->saved_data["rows"] = torch::IValue::make_capsule(c10::make_intrusive<Holder>(rows));
    return rows->plain_product(x_ND, {});
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto holder = c10::static_intrusive_pointer_cast<Holder>(context->saved_data["rows"].toCapsule());
    const auto& g_NV = gradients[0];
    if (!g_NV.defined()) return {torch::Tensor(), torch::Tensor()};
    // A gradient of the gradient goes through ATen's product, whose matrix it then keeps.
    if (at::GradMode::is_enabled() && g_NV.requires_grad())
      return {at::matmul(g_NV, holder->rows->dense(g_NV.scalar_type())), torch::Tensor()};
    return {holder->rows->transposed_product(g_NV), torch::Tensor()};
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<const QuantisedRows> r) : rows(std::move(r)) {}
    std::shared_ptr<const QuantisedRows> rows;
  };
};

QuantisedRows::QuantisedRows(std::string_view encoding, torch::Tensor bytes, torch::ScalarType dtype,
                             std::function<void()> check_unchanged)
    : dtype_(dtype) {
  check_dtype(dtype);
  const auto* format = find_block_format(encoding);
  check<ConfigError>(format != nullptr, "QuantisedRows: the encoding ", encoding, " cannot be unpacked");
  check<ShapeError>(bytes.defined() && bytes.dim() == 2 && bytes.scalar_type() == torch::kByte &&
                        bytes.is_cpu() && bytes.is_contiguous(),
                    "QuantisedRows: bytes must be uint8 [rows, bytes of a row], contiguous on the CPU, got ",
                    bytes.defined() ? concat(bytes.toString(), " ", bytes.sizes()) : std::string("none"));
  const auto [elements, size] = format->layout;
  check<ShapeError>(bytes.size(1) % size == 0, "QuantisedRows: rows of ", encoding,
                    " must be a whole number of blocks of ", size, " bytes, got ", bytes.size(1));
  n_rows_ = bytes.size(0);
  n_columns_ = bytes.size(1) / size * elements;
  pieces_.push_back({format, std::move(bytes), std::move(check_unchanged)});
}

void QuantisedRows::check_bytes() const {
  for (const auto& piece : pieces_)
    if (piece.check) piece.check();
}

QuantisedRows QuantisedRows::joined(const std::vector<QuantisedRows>& parts) {
  check<ShapeError>(!parts.empty(), "QuantisedRows: nothing to join");
  QuantisedRows out;
  out.n_columns_ = parts.front().n_columns_;
  out.dtype_ = parts.front().dtype_;
  for (const auto& part : parts) {
    check<ShapeError>(part.n_columns_ == out.n_columns_ && part.dtype_ == out.dtype_,
                      "QuantisedRows: joined rows must have ", out.n_columns_, " columns in ", out.dtype_,
                      ", got ", part.n_columns_, " in ", part.dtype_);
    out.n_rows_ += part.n_rows_;
    out.pieces_.insert(out.pieces_.end(), part.pieces_.begin(), part.pieces_.end());
  }
  return out;
}

bool QuantisedRows::can_hold(std::string_view encoding) {
  return find_block_format(encoding) != nullptr;
}

int64_t QuantisedRows::nbytes() const {
  int64_t n = 0;
  for (const auto& piece : pieces_) n += piece.bytes.numel();
  return n;
}

std::vector<std::string> QuantisedRows::encodings() const {
  std::vector<std::string> out;
  for (const auto& piece : pieces_) out.emplace_back(piece.quantisation->name);
  return out;
}

template <typename F>
void QuantisedRows::for_pieces(int64_t first, int64_t n, const F& f) const {
  int64_t at = 0;
  for (const auto& piece : pieces_) {
    const int64_t rows = piece.bytes.size(0), begin = std::max(first, at),
                  end = std::min(first + n, at + rows);
    if (begin < end)
      f(begin, Piece{piece.quantisation, piece.bytes.narrow(0, begin - at, end - begin), piece.check});
    at += rows;
  }
}

QuantisedRows QuantisedRows::rows(int64_t first, int64_t n) const {
  check<std::out_of_range>(first >= 0 && n >= 0 && first + n <= n_rows_, "QuantisedRows: rows ", first,
                           " to ", first + n - 1, " were asked for, and there are ", n_rows_);
  QuantisedRows out;
  out.n_rows_ = n;
  out.n_columns_ = n_columns_;
  out.dtype_ = dtype_;
  for_pieces(first, n, [&](int64_t, Piece piece) { out.pieces_.push_back(std::move(piece)); });
  return out;
}

torch::Tensor QuantisedRows::dense(torch::ScalarType dtype) const {
  check_dtype(dtype);
  const at::NoGradGuard no_grad;
  auto out = at::empty({n_rows_, n_columns_}, dtype);
  check_bytes();
  for_pieces(0, n_rows_, [&](int64_t first, const Piece& piece) {
    unpack(*piece.quantisation, piece.bytes, nullptr, out.narrow(0, first, piece.bytes.size(0)));
  });
  check_bytes();
  return out;
}

torch::Tensor QuantisedRows::gather(const torch::Tensor& ids, torch::ScalarType dtype) const {
  check_dtype(dtype);
  const auto flat = ids.to(torch::kCPU, torch::kLong).reshape({-1}).contiguous();
  const int64_t n = flat.numel();
  if (n > 0) {
    const auto [low, high] =
        std::minmax_element(flat.const_data_ptr<int64_t>(), flat.const_data_ptr<int64_t>() + n);
    check<std::out_of_range>(*low >= 0 && *high < n_rows_, "QuantisedRows: rows must be 0 to ", n_rows_ - 1,
                             ", got ", *low, " to ", *high);
  }
  const at::NoGradGuard no_grad;
  auto sizes = ids.sizes().vec();
  sizes.push_back(n_columns_);
  auto out = at::empty({n, n_columns_}, dtype);
  check_bytes();
  if (pieces_.size() == 1) {
    unpack(*pieces_[0].quantisation, pieces_[0].bytes, flat.const_data_ptr<int64_t>(), out);
  } else {
    for (int64_t i = 0; i < n; ++i)
      for_pieces(flat.const_data_ptr<int64_t>()[i], 1, [&](int64_t, const Piece& piece) {
        unpack(*piece.quantisation, piece.bytes, nullptr, out.narrow(0, i, 1));
      });
  }
  check_bytes();
  return out.view(sizes);
}

torch::Tensor QuantisedRows::product(const torch::Tensor& x, const torch::Tensor& bias) const {
  check<ShapeError>(x.defined() && x.dim() > 0 && x.size(-1) == n_columns_ && x.is_floating_point(),
                    "QuantisedRows: x must be floating [..., ", n_columns_, "], got ",
                    x.defined() ? concat(x.toString(), " ", x.sizes()) : std::string("none"));
  check_bias("QuantisedRows: the bias", bias, n_rows_);
  check<ShapeError>(x.is_cpu(), "QuantisedRows: x must be on the CPU, as the blocks are, got ", x.device());
  auto sizes = x.sizes().vec();
  sizes.back() = n_rows_;
  const auto x_ND = x.reshape({-1, n_columns_});
  const bool grad = at::GradMode::is_enabled();
  if (!grad || (!x.requires_grad() && !(bias.defined() && bias.requires_grad())))
    return plain_product(x_ND, bias).view(sizes);
  auto y_NV = x.requires_grad() ? QuantisedProduct::apply(x_ND, std::make_shared<const QuantisedRows>(*this))
                                : plain_product(x_ND, {});
  if (bias.defined()) y_NV = (y_NV + bias).to(x.scalar_type());
  return y_NV.view(sizes);
}

torch::Tensor QuantisedRows::plain_product(const torch::Tensor& x_ND, const torch::Tensor& bias) const {
  const at::NoGradGuard no_grad;
  const auto dtype = x_ND.scalar_type();
  if (x_ND.size(0) > 0 && n_rows_ > 0 && (dtype == torch::kFloat32 || dtype == torch::kBFloat16)) {
    std::vector<BlockRows> parts;
    parts.reserve(pieces_.size());
    for (const auto& piece : pieces_)
      parts.push_back({piece.quantisation, piece.bytes.const_data_ptr<uint8_t>(), piece.bytes.size(0)});
    check_bytes();
    auto out = quantised_product(x_ND.contiguous(), parts, bias);
    check_bytes();
    return out;
  }
  auto out = at::empty({x_ND.size(0), n_rows_}, x_ND.options());
  const int64_t step = std::max<int64_t>(1, kPanelValues / std::max<int64_t>(n_columns_, 1));
  for (int64_t first = 0; first < n_rows_; first += step) {
    const int64_t n = std::min(step, n_rows_ - first);
    out.narrow(1, first, n).copy_(at::linear(x_ND, rows(first, n).dense(dtype)));
  }
  return bias.defined() ? (out + bias).to(dtype) : out;
}

torch::Tensor QuantisedRows::transposed_product(const torch::Tensor& y_NV) const {
  const at::NoGradGuard no_grad;
  const auto dtype = y_NV.scalar_type();
  const auto wide = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  auto out = at::zeros({y_NV.size(0), n_columns_}, y_NV.options().dtype(wide));
  const int64_t step = std::max<int64_t>(1, kPanelValues / std::max<int64_t>(n_columns_, 1));
  for (int64_t first = 0; first < n_rows_; first += step) {
    const int64_t n = std::min(step, n_rows_ - first);
    const auto y = y_NV.narrow(1, first, n);
    // In float32 and float64 straight into the sum; other types' panels are multiplied in them and summed in float32.
    if (dtype == wide)
      out.addmm_(y, rows(first, n).dense(dtype));
    else
      out.add_(at::mm(y, rows(first, n).dense(dtype)));
  }
  return out.to(dtype);
}

}  // namespace introspect::ops
