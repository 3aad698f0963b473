#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include <ATen/ATen.h>

#include "introspect/ops/sparse_rows.h"

#include "core/dense.h"
#include "ops/linear_tiles.h"

namespace introspect::ops {

namespace {

/// One p that may be kept.
template <typename T>
struct Candidate {
  T value;
  int64_t column;
};

/// What p is ranked by: NaN above all, so that it shows.
template <Rank rank, typename T>
T key(T p) {
  if (std::isnan(p)) return std::numeric_limits<T>::infinity();
  return rank == Rank::magnitude ? std::abs(p) : p;
}

template <Rank rank, typename T>
bool is_before(const Candidate<T>& a, const Candidate<T>& b) {
  const T x = key<rank>(a.value), y = key<rank>(b.value);
  return x > y || (x == y && a.column < b.column);
}

template <typename T>
bool has_lower_column(const Candidate<T>& a, const Candidate<T>& b) {
  return a.column < b.column;
}

template <typename T>
bool is_zero(const Candidate<T>& candidate) {
  return candidate.value == 0;
}

/// What was chosen, row after row.
template <typename T>
class Chosen {
 public:
  explicit Chosen(int64_t N) : offsets_{0} { offsets_.reserve(N + 1); }

  /// `row` by ascending column.
  void add(const std::vector<Candidate<T>>& row) {
    for (const auto& [value, column] : row) {
      columns_.push_back(column);
      values_.push_back(value);
    }
    offsets_.push_back(static_cast<int64_t>(columns_.size()));
  }

  SparseRows rows() const { return {as_tensor(offsets_), as_tensor(columns_), as_tensor(values_)}; }

 private:
  template <typename E>
  static torch::Tensor as_tensor(const std::vector<E>& from) {
    auto out = at::empty({static_cast<int64_t>(from.size())},
                         at::TensorOptions().dtype(c10::CppTypeToScalarType<E>::value));
    if (!from.empty()) std::memcpy(out.mutable_data_ptr(), from.data(), from.size() * sizeof(E));
    return out;
  }

  std::vector<int64_t> offsets_, columns_;
  std::vector<T> values_;
};

/// The k of a row that are before the others, of columns that come in order.
template <Rank rank, typename T>
class TopRow {
 public:
  void begin(int64_t k) {
    k_ = k;
    candidates_.clear();
    limit_ = rank == Rank::value ? -std::numeric_limits<T>::infinity() : 0;
  }

  template <typename V>
  INTROSPECT_INLINE void look_at(const T* p, int64_t first, int64_t columns) {
    scan<rank, V>(p, columns, OneLimit<T>{limit_}, [&](int64_t c, T value) { take({value, first + c}); });
  }

  void end() {
    cut();
    std::erase_if(candidates_, is_zero<T>);
    std::sort(candidates_.begin(), candidates_.end(), has_lower_column<T>);
  }

  const std::vector<Candidate<T>>& chosen() const { return candidates_; }

 private:
  [[gnu::noinline]] void take(Candidate<T> candidate) {
    candidates_.push_back(candidate);
    if (static_cast<int64_t>(candidates_.size()) >= 2 * k_ + 64) cut();
  }

  /// A later one that is equal to the last of k has a higher column and is not among them: the limit itself is out.
  void cut() {
    if (static_cast<int64_t>(candidates_.size()) <= k_) return;
    const auto last = candidates_.begin() + (k_ - 1);
    std::nth_element(candidates_.begin(), last, candidates_.end(), is_before<rank, T>);
    limit_ = key<rank>(last->value);
    candidates_.resize(static_cast<size_t>(k_));
  }

  std::vector<Candidate<T>> candidates_;
  int64_t k_ = 0;
  T limit_ = 0;
};

template <Rank rank, typename T>
SparseRows topk(const torch::Tensor& x_ND, const LinearRows& linear, int64_t k) {
  Tiles<T> tiles(x_ND, linear);
  Chosen<T> chosen(tiles.N());
  std::vector<TopRow<rank, T>> rows(static_cast<size_t>(tiles.rows()));
  for (int64_t n = 0; n < tiles.N(); n += tiles.rows()) {
    const int64_t count = std::min(tiles.rows(), tiles.N() - n);
    for (int64_t r = 0; r < count; ++r) rows[r].begin(k);
    tiles.of_rows(
        n, count,
        [&](int64_t r, const T* p, int64_t first, int64_t columns) {
          with_lanes([&](auto lanes) INTROSPECT_INLINED {
            rows[r].template look_at<decltype(lanes)>(p, first, columns);
          });
        },
        [] {});
    parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) rows[r].end();
    });
    for (int64_t r = 0; r < count; ++r) chosen.add(rows[r].chosen());
  }
  return chosen.rows();
}

template <typename T, typename Limit>
SparseRows above(const torch::Tensor& x_ND, const LinearRows& linear, const Limit& limit_from) {
  Tiles<T> tiles(x_ND, linear);
  Chosen<T> chosen(tiles.N());
  std::vector<std::vector<Candidate<T>>> rows(static_cast<size_t>(tiles.rows()));
  for (int64_t n = 0; n < tiles.N(); n += tiles.rows()) {
    const int64_t count = std::min(tiles.rows(), tiles.N() - n);
    for (auto& row : rows) row.clear();
    tiles.of_rows(
        n, count,
        [&](int64_t r, const T* p, int64_t first, int64_t columns) {
          with_lanes([&](auto lanes) INTROSPECT_INLINED {
            scan<Rank::value, decltype(lanes)>(p, columns, limit_from(first), [&](int64_t c, T value) {
              rows[r].push_back({value, first + c});
            });
          });
        },
        [] {});
    for (int64_t r = 0; r < count; ++r) chosen.add(rows[r]);
  }
  return chosen.rows();
}

template <typename T>
SparseRows topk_of_all(const torch::Tensor& x_ND, const LinearRows& linear, int64_t total) {
  Tiles<T> tiles(x_ND, linear);
  const int64_t N = tiles.N(), F = tiles.F();
  std::vector<std::vector<Candidate<T>>> rows(static_cast<size_t>(tiles.rows()));
  std::vector<Candidate<T>> pool;  // `column` counts over all rows: row F + column
  T limit = 0;
  const auto cut = [&] {
    if (static_cast<int64_t>(pool.size()) <= total) return;
    const auto last = pool.begin() + (total - 1);
    std::nth_element(pool.begin(), last, pool.end(), is_before<Rank::value, T>);
    // One that is equal may yet come in an earlier row of the next block of columns: it is looked at.
    limit = std::nextafter(key<Rank::value>(last->value), T{0});
    pool.resize(static_cast<size_t>(total));
  };
  for (int64_t n = 0; total > 0 && n < N; n += tiles.rows()) {
    const int64_t count = std::min(tiles.rows(), N - n);
    tiles.of_rows(
        n, count,
        [&](int64_t r, const T* p, int64_t first, int64_t columns) {
          with_lanes([&](auto lanes) INTROSPECT_INLINED {
            scan<Rank::value, decltype(lanes)>(p, columns, OneLimit<T>{limit}, [&](int64_t c, T value) {
              rows[r].push_back({value, (n + r) * F + first + c});
            });
          });
        },
        [&] {
          for (int64_t r = 0; r < count; ++r) {
            pool.insert(pool.end(), rows[r].begin(), rows[r].end());
            rows[r].clear();
          }
          if (static_cast<int64_t>(pool.size()) > 2 * total) cut();
        });
  }
  cut();
  std::sort(pool.begin(), pool.end(), has_lower_column<T>);
  Chosen<T> chosen(N);
  std::vector<Candidate<T>> row;
  auto next = pool.begin();
  for (int64_t n = 0; n < N; ++n) {
    row.clear();
    for (; next != pool.end() && next->column < (n + 1) * F; ++next)
      row.push_back({next->value, next->column - n * F});
    chosen.add(row);
  }
  return chosen.rows();
}

template <typename T>
SparseRows group_max(const torch::Tensor& x_ND, const LinearRows& linear, int64_t groups) {
  Tiles<T> tiles(x_ND, linear);
  Chosen<T> chosen(tiles.N());
  const int64_t width = tiles.F() / groups;
  std::vector<std::vector<Candidate<T>>> rows(static_cast<size_t>(tiles.rows()));
  for (int64_t n = 0; n < tiles.N(); n += tiles.rows()) {
    const int64_t count = std::min(tiles.rows(), tiles.N() - n);
    for (auto& row : rows) row.assign(static_cast<size_t>(groups), {0, 0});
    tiles.of_rows(
        n, count,
        [&](int64_t r, const T* p, int64_t first, int64_t columns) {
          for (int64_t c = 0; c < columns; ++c) {
            auto& best = rows[r][(first + c) / width];
            if (key<Rank::value>(p[c]) > key<Rank::value>(best.value)) best = {p[c], first + c};
          }
        },
        [] {});
    for (int64_t r = 0; r < count; ++r) {
      std::erase_if(rows[r], is_zero<T>);  // groups with none above 0
      chosen.add(rows[r]);
    }
  }
  return chosen.rows();
}

/// Throws unless x [N, D], W [F, D], b [F] and scale [F] fit one another.
void check_operands(const char* who, const torch::Tensor& x_ND, const LinearRows& linear) {
  for (const auto& [t, what] : {std::pair{x_ND, "x"}, {linear.W_FD, "W"}}) {
    check_dense<ShapeError>(t, who, ": ", what);
    check<ShapeError>(t.dim() == 2 && t.is_cpu() && t.is_floating_point(), who, ": ", what,
                      " must be a matrix of floating dtype on the CPU, got ", t.scalar_type(), " ", t.sizes(),
                      " on ", t.device());
  }
  const int64_t F = linear.W_FD.size(0);
  check<ShapeError>(x_ND.size(1) == linear.W_FD.size(1), who, ": x must be [N, ", linear.W_FD.size(1),
                    "], got ", x_ND.sizes());
  for (const auto& [t, what] : {std::pair{linear.b_F, "b"}, {linear.scale_F, "scale"}})
    check<ShapeError>(!t.defined() || (t.dim() == 1 && t.size(0) == F && t.is_cpu()), who, ": ", what,
                      " must be [", F, "] on the CPU");
}

bool is_double(const LinearRows& linear) {
  return linear.W_FD.scalar_type() == torch::kFloat64;
}

template <typename T>
SparseRows topk_by(const torch::Tensor& x_ND, const LinearRows& linear, int64_t k, Rank rank) {
  switch (rank) {
    case Rank::positive:
      return topk<Rank::positive, T>(x_ND, linear, k);
    case Rank::value:
      return topk<Rank::value, T>(x_ND, linear, k);
    case Rank::magnitude:
      return topk<Rank::magnitude, T>(x_ND, linear, k);
  }
  throw std::logic_error("topk_rows: unknown rank");
}

}  // namespace

SparseRows rows_above(const torch::Tensor& x_ND, const LinearRows& linear, const torch::Tensor& threshold_F) {
  check_operands("rows_above", x_ND, linear);
  check<ShapeError>(
      !threshold_F.defined() || (threshold_F.dim() == 1 && threshold_F.size(0) == linear.W_FD.size(0)),
      "rows_above: threshold must be [", linear.W_FD.size(0), "]");
  const at::NoGradGuard no_grad;
  const auto in = [&]<typename T>(T zero) {
    if (!threshold_F.defined()) return above<T>(x_ND, linear, [&](int64_t) { return OneLimit<T>{zero}; });
    const auto limits = threshold_F.to(c10::CppTypeToScalarType<T>::value).contiguous();
    const T* begin = limits.template const_data_ptr<T>();
    return above<T>(x_ND, linear, [&](int64_t first) { return OwnLimits<T>{begin + first}; });
  };
  return is_double(linear) ? in(0.0) : in(0.0f);
}

SparseRows topk_rows(const torch::Tensor& x_ND, const LinearRows& linear, int64_t k, Rank rank) {
  check_operands("topk_rows", x_ND, linear);
  check<std::invalid_argument>(k > 0 && k <= linear.W_FD.size(0), "topk_rows: k must be from 1 to ",
                               linear.W_FD.size(0), ", got ", k);
  const at::NoGradGuard no_grad;
  return is_double(linear) ? topk_by<double>(x_ND, linear, k, rank) : topk_by<float>(x_ND, linear, k, rank);
}

SparseRows topk_of_all_rows(const torch::Tensor& x_ND, const LinearRows& linear, int64_t total) {
  check_operands("topk_of_all_rows", x_ND, linear);
  check<std::invalid_argument>(total >= 0 && total <= x_ND.size(0) * linear.W_FD.size(0),
                               "topk_of_all_rows: total must be from 0 to ",
                               x_ND.size(0) * linear.W_FD.size(0), ", got ", total);
  const at::NoGradGuard no_grad;
  return is_double(linear) ? topk_of_all<double>(x_ND, linear, total)
                           : topk_of_all<float>(x_ND, linear, total);
}

SparseRows group_max_rows(const torch::Tensor& x_ND, const LinearRows& linear, int64_t groups) {
  check_operands("group_max_rows", x_ND, linear);
  const int64_t F = linear.W_FD.size(0);
  check<std::invalid_argument>(groups > 0 && groups <= F && F % groups == 0,
                               "group_max_rows: groups must divide ", F, ", got ", groups);
  const at::NoGradGuard no_grad;
  return is_double(linear) ? group_max<double>(x_ND, linear, groups) : group_max<float>(x_ND, linear, groups);
}

}  // namespace introspect::ops
