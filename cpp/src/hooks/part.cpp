#include "introspect/hooks/part.h"

#include <algorithm>
#include <numeric>

#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

int64_t from_start(int64_t index, int64_t n, const char* what) {
  check<std::out_of_range>(index >= -n && index < n, "Part: ", what, " must be ", -n, " to ", n - 1, ", got ",
                           index);
  return index < 0 ? index + n : index;
}

std::vector<int64_t> from_start(const std::vector<int64_t>& indices, int64_t n, const char* what) {
  std::vector<int64_t> out;
  out.reserve(indices.size());
  for (const int64_t index : indices) out.push_back(from_start(index, n, what));
  return out;
}

/// A range with its ends put inside [0, n], as Python does with a slice.
struct Span {
  int64_t start, stop, step;
};

Span cut(const PositionRange& range, int64_t n) {
  check<std::invalid_argument>(range.step >= 1, "Part: the step of a range must be at least 1, got ",
                               range.step);
  const auto inside = [n](int64_t end) { return std::clamp<int64_t>(end < 0 ? end + n : end, 0, n); };
  const int64_t start = inside(range.start.value_or(0));
  return {start, std::max(start, inside(range.stop.value_or(n))), range.step};
}

torch::Tensor select(const torch::Tensor& x, int64_t axis, const std::vector<int64_t>& indices) {
  return x.index_select(axis, on_device(indices, x.device()));
}

}  // namespace

std::vector<int64_t> position_indices(const Part& part, int64_t n) {
  if (const auto* one = std::get_if<int64_t>(&part.positions)) return {from_start(*one, n, "a position")};
  if (const auto* list = std::get_if<std::vector<int64_t>>(&part.positions))
    return from_start(*list, n, "a position");
  const auto* range = std::get_if<PositionRange>(&part.positions);
  const auto [start, stop, step] = range ? cut(*range, n) : Span{0, n, 1};
  std::vector<int64_t> out;
  for (int64_t i = start; i < stop; i += step) out.push_back(i);
  return out;
}

torch::Tensor take_positions(const Part& part, const torch::Tensor& x, int64_t axis) {
  const int64_t n = x.size(axis);
  if (const auto* one = std::get_if<int64_t>(&part.positions))
    return x.narrow(axis, from_start(*one, n, "a position"), 1);
  if (const auto* range = std::get_if<PositionRange>(&part.positions)) {
    const auto [start, stop, step] = cut(*range, n);
    return x.slice(axis, start, stop, step);
  }
  if (std::holds_alternative<std::monostate>(part.positions)) return x;
  return select(x, axis, position_indices(part, n));
}

torch::Tensor take_heads(const Part& part, const torch::Tensor& x, int64_t axis) {
  if (part.heads.empty()) return x;
  const auto heads = from_start(part.heads, x.size(axis), "a head");
  return heads.size() == 1 ? x.narrow(axis, heads.front(), 1) : select(x, axis, heads);
}

torch::Tensor take(const Part& part, Point point, const torch::Tensor& x) {
  if (part.everything()) return x;
  const auto heads = head_axis(point);
  check<std::invalid_argument>(part.heads.empty() || heads.has_value(), "Part: ", point_name(point),
                               " has no heads to choose among");
  const int64_t axis = position_axis(point);
  auto out = take_positions(part, x, axis);
  if (heads) out = take_heads(part, out, *heads);
  return std::holds_alternative<int64_t>(part.positions) ? out.squeeze(axis) : out;
}

}  // namespace introspect::hooks
