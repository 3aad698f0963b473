// np.array_str(W_U, precision=1) of a large matrix: the three first and last rows and columns, and dots between them.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "introspect/analysis/lens.h"
#include "introspect/core/sha256.h"

namespace introspect::analysis {
namespace {

constexpr int64_t kEdge = 3, kLeastSummarised = 1001;

/// A number as numpy's shortest form with at most one digit after the point: "0.3", "-0.", "1.e-03".
std::string shortest(double x, bool scientific) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), scientific ? "%.1e" : "%.1f", x);
  std::string out = text.data();
  const auto point = out.find('.');
  if (out[point + 1] == '0') out.erase(point + 1, 1);
  return out;
}

/// The corners' numbers in numpy's common format: exponents where the sizes differ much, and equally wide.
std::vector<std::string> formatted(const std::vector<float>& values) {
  float largest = 0, smallest = INFINITY;
  for (const float v : values)
    if (v != 0) {
      largest = std::max(largest, std::abs(v));
      smallest = std::min(smallest, std::abs(v));
    }
  const bool scientific =
      largest > 0 && (largest >= 1e6F || smallest < 0.0001F || largest / smallest > 1000.0F);
  std::vector<std::string> out;
  size_t left = 0, right = 0;  // of the point
  for (const float v : values) {
    out.push_back(shortest(v, scientific));
    const auto point = out.back().find('.');
    const auto end = std::min(out.back().find('e'), out.back().size());
    left = std::max(left, point);
    right = std::max(right, end - point - 1);
  }
  for (auto& text : out) {
    const auto point = text.find('.');
    const auto end = std::min(text.find('e'), text.size());
    text.insert(end, right - (end - point - 1), scientific ? '0' : ' ');
    text.insert(0, left - point, ' ');
  }
  return out;
}

}  // namespace

std::string unembedding_hash(const models::Model& model) {
  const auto& W_U = model.weights().W_U;
  const int64_t V = W_U.n_out(), D = W_U.n_in();
  if (V * D < kLeastSummarised || V <= 2 * kEdge || D <= 2 * kEdge) return "";
  const auto ends = [&](int64_t n) {
    return torch::tensor({int64_t{0}, int64_t{1}, int64_t{2}, n - 3, n - 2, n - 1},
                         at::device(W_U.device()).dtype(torch::kLong));
  };
  const auto corners =
      W_U.gather(ends(V)).detach().index_select(1, ends(D)).to(torch::kCPU, torch::kFloat32).contiguous();
  const auto* first = corners.const_data_ptr<float>();
  const auto numbers = formatted({first, first + corners.numel()});
  std::string text = "[";
  for (size_t row = 0; row < 2 * kEdge; ++row) {
    if (row == kEdge) text += " ...\n";
    text += row == 0 ? "[" : " [";
    for (size_t column = 0; column < 2 * kEdge; ++column) {
      if (column == kEdge) text += "... ";
      text += numbers[row * 2 * kEdge + column];
      text += column + 1 < 2 * kEdge ? " " : "";
    }
    text += row + 1 < 2 * kEdge ? "]\n" : "]]";
  }
  return sha256_hex(text);
}

}  // namespace introspect::analysis
