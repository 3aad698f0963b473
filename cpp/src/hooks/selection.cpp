#include "hooks/selection.h"

#include <algorithm>
#include <numeric>

#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::hooks {

namespace {

torch::Tensor index_tensor(const std::vector<int64_t>& list, int64_t start, int64_t size,
                           torch::Device device) {
  return list.empty() ? at::arange(start, start + size, at::device(device).dtype(torch::kLong))
                      : on_device(list, device);
}

/// All `n`, or those that are listed.
std::vector<int64_t> indices_or_all(const std::vector<int64_t>& listed, int64_t n, const char* what) {
  if (listed.empty()) {
    std::vector<int64_t> all(static_cast<size_t>(n));
    std::iota(all.begin(), all.end(), int64_t{0});
    return all;
  }
  for (const int64_t i : listed)
    check<std::out_of_range>(i >= 0 && i < n, "intervention: ", what, " must be 0 to ", n - 1, ", got ", i);
  return listed;
}

bool is_head_major(Point point) {
  return position_axis(point) == 2;
}

}  // namespace

Selection::Axis Selection::Axis::of(std::vector<int64_t> indices) {
  Axis out{indices.empty() ? 0 : indices.front(), static_cast<int64_t>(indices.size()), {}};
  for (size_t i = 1; i < indices.size(); ++i)
    if (indices[i] != indices[i - 1] + 1) {
      out.list = std::move(indices);
      break;
    }
  return out;
}

std::optional<Selection> Selection::of(const Intervention& i, const torch::Tensor& x, int64_t offset) {
  Selection out;
  out.point_ = i.point;
  out.offset_ = offset;
  const int64_t T = x.size(position_axis(i.point));
  if (i.positions.empty()) {
    const int64_t first = std::max<int64_t>(i.first_position - offset, 0);
    const int64_t last = std::min(i.last_position - offset, T);
    if (first >= last) return std::nullopt;
    out.positions_ = {first, last - first, {}};
    out.begins_here_ = i.first_position >= offset;
  } else {
    std::vector<int64_t> here;
    for (const int64_t position : i.positions)
      if (position >= offset && position < offset + T) here.push_back(position - offset);
    if (here.empty()) return std::nullopt;
    out.positions_ = Axis::of(std::move(here));
    out.begins_here_ = *std::min_element(i.positions.begin(), i.positions.end()) >= offset;
  }
  out.rows_ = Axis::of(selected_rows(i, x.size(0)));
  out.choose_heads(i, x);
  return out;
}

Selection Selection::at(const Intervention& i, const torch::Tensor& x, int64_t offset,
                        std::vector<int64_t> rows, std::vector<int64_t> positions) {
  Selection out;
  out.point_ = i.point;
  out.offset_ = offset;
  out.begins_here_ = offset == 0;
  out.rows_ = Axis::of(std::move(rows));
  out.positions_ = Axis::of(std::move(positions));
  out.choose_heads(i, x);
  return out;
}

void Selection::choose_heads(const Intervention& i, const torch::Tensor& x) {
  const auto axis = head_axis(i.point);
  if (axis) heads_ = Axis::of(indices_or_all(i.heads, x.size(*axis), "heads"));
  const auto covers = [&](const Axis& a, int64_t n) { return a.list.empty() && a.size == n; };
  whole_ = covers(rows_, x.size(0)) && covers(positions_, x.size(position_axis(i.point))) &&
           (!axis || covers(*heads_, x.size(*axis)));
}

torch::Tensor Selection::take_axis(const torch::Tensor& x, int64_t axis, const Axis& indices) const {
  if (!indices.list.empty()) return x.index_select(axis, index_tensor(indices.list, 0, 0, x.device()));
  return indices.size == x.size(axis) ? x : x.narrow(axis, indices.start, indices.size);
}

torch::Tensor Selection::take(const torch::Tensor& x) const {
  auto out = take_axis(x, 0, rows_);
  if (is_head_major(point_)) out = out.transpose(1, 2);
  out = take_axis(out, 1, positions_);
  return heads_ ? take_axis(out, 2, *heads_) : out;
}

torch::Tensor Selection::take_source(const torch::Tensor& source) const {
  return take_axis(take_axis(source, 0, rows_), 1, positions_);
}

torch::Tensor Selection::take_absolute(const torch::Tensor& stored, int64_t axis) const {
  const int64_t last = positions_.list.empty()
                           ? positions_.start + positions_.size - 1
                           : *std::max_element(positions_.list.begin(), positions_.list.end());
  check<ShapeError>(offset_ + last < stored.size(axis), "intervention: position ", offset_ + last,
                    " of the sequence is to be changed, but the stored activation has only ",
                    stored.size(axis), " positions");
  auto absolute = positions_;
  absolute.start += offset_;
  for (int64_t& position : absolute.list) position += offset_;
  return take_axis(stored, axis, absolute);
}

torch::Tensor Selection::put(const torch::Tensor& x, const torch::Tensor& values) const {
  const auto rounded = values.to(x.scalar_type());
  if (whole_) return (is_head_major(point_) ? rounded.transpose(1, 2) : rounded).contiguous();
  auto out = x.clone(at::MemoryFormat::Contiguous);
  write(out, rounded);
  return out;
}

void Selection::write(torch::Tensor& x, const torch::Tensor& values) const {
  const auto rounded = values.to(x.scalar_type());
  auto canonical = is_head_major(point_) ? x.transpose(1, 2) : x;
  if (rows_.list.empty() && positions_.list.empty() && (!heads_ || heads_->list.empty())) {
    take(x).copy_(rounded);
    return;
  }
  const auto index = [&](const Axis& a) { return index_tensor(a.list, a.start, a.size, x.device()); };
  c10::List<std::optional<torch::Tensor>> indices;
  if (heads_) {
    indices.push_back(index(rows_).view({-1, 1, 1}));
    indices.push_back(index(positions_).view({1, -1, 1}));
    indices.push_back(index(*heads_).view({1, 1, -1}));
  } else {
    indices.push_back(index(rows_).view({-1, 1}));
    indices.push_back(index(positions_).view({1, -1}));
  }
  canonical.index_put_(indices, rounded);
}

std::vector<int64_t> selected_rows(const Intervention& i, int64_t B) {
  return indices_or_all(i.rows, B, "rows of the batch");
}

}  // namespace introspect::hooks
