#include "ops/tree_attention.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "core/on_device.h"
#include "core/parallel.h"
#include "core/reused_memory.h"
#include "ops/exponential.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

template <typename T>
struct Strided {
  const T* data;
  int64_t head, position;  // strides; the elements of a head are dense
  const T* at(int64_t h, int64_t s) const { return data + h * head + s * position; }
};

template <typename T>
struct Operands {
  Strided<T> q, k, v;
  T* out;  // [T, H, K]
  const int32_t* parents;
  const T* sinks;          // [H]: a score more of each head; null: none
  const int32_t* queries;  // the key that is each query's own; null: the last ones
  int64_t n_queries, n_keys, H, G, K, window;
  double scale, soft_cap;

  int32_t own_key(int64_t t) const {
    return queries ? queries[t] : static_cast<int32_t>(n_keys - n_queries + t);
  }
};

/// What sums are kept in.
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename V, typename T>
INTROSPECT_INLINE Wide<T> dot(const T* a, const T* b, int64_t K) {
  Wide<T> total = 0;
  int64_t i = 0;
  if constexpr (!std::is_same_v<T, double>) {
    typename V::Floats acc = {};
    for (; i + V::width <= K; i += V::width) acc += V::load(a + i) * V::load(b + i);
    total = V::sum(acc);
  }
  for (; i < K; ++i) total += static_cast<Wide<T>>(a[i]) * static_cast<Wide<T>>(b[i]);
  return total;
}

/// to += factor * x.
template <typename V, typename T>
INTROSPECT_INLINE void add_scaled(Wide<T>* to, Wide<T> factor, const T* x, int64_t K) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<T, double>)
    for (; i + V::width <= K; i += V::width) V::store(to + i, V::load(to + i) + V::load(x + i) * factor);
  for (; i < K; ++i) to[i] += factor * static_cast<Wide<T>>(x[i]);
}

using BFloat16 = c10::BFloat16;

/// Query t of R neighbouring heads that share keys and values, each of which is loaded once for them; heads of C registers.
/// `scores` is space to work in.
template <typename V, int R, int C>
INTROSPECT_INLINE void attend_heads(const Operands<BFloat16>& o, int64_t t, int64_t h,
                                    const std::vector<int32_t>& chain, std::vector<float>& scores) {
  const int64_t g = h / (o.H / o.G), n = static_cast<int64_t>(chain.size());
  const int64_t padded = (n + V::width - 1) / V::width * V::width;
  const auto scale = static_cast<float>(o.scale), soft_cap = static_cast<float>(o.soft_cap);
  scores.resize(static_cast<size_t>(R * padded));
  typename V::Floats q[R][C], z[R][C] = {};
  float largest[R], total[R];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < C; ++c) q[r][c] = V::load(o.q.at(h + r, t) + c * V::width);
    total[r] = o.sinks ? static_cast<float>(o.sinks[h + r]) : -std::numeric_limits<float>::infinity();
    largest[r] = total[r];
  }
  for (int64_t i = 0; i < n; ++i) {
    const BFloat16* key = o.k.at(g, chain[static_cast<size_t>(i)]);
    typename V::Floats acc[R] = {};
    for (int c = 0; c < C; ++c) {
      const auto k = V::load(key + c * V::width);
      for (int r = 0; r < R; ++r) acc[r] += q[r][c] * k;
    }
    for (int r = 0; r < R; ++r) {
      float score = V::sum(acc[r]) * scale;
      if (soft_cap > 0) score = soft_cap * std::tanh(score / soft_cap);
      scores[static_cast<size_t>(r * padded + i)] = score;
      largest[r] = std::max(largest[r], score);
    }
  }
  for (int r = 0; r < R; ++r) {
    float* row = scores.data() + r * padded;
    std::fill(row + n, row + padded, largest[r]);
    for (int64_t i = 0; i < padded; i += V::width)
      V::store(row + i, exponential<V>(V::load(row + i) - largest[r]));
    std::fill(row + n, row + padded, 0.0f);
    typename V::Floats sum = {};
    for (int64_t i = 0; i < padded; i += V::width) sum += V::load(row + i);
    total[r] = std::exp(total[r] - largest[r]) + V::sum(sum);
  }
  for (int64_t i = 0; i < n; ++i) {
    const BFloat16* value = o.v.at(g, chain[static_cast<size_t>(i)]);
    for (int c = 0; c < C; ++c) {
      const auto v = V::load(value + c * V::width);
      for (int r = 0; r < R; ++r) z[r][c] += v * scores[static_cast<size_t>(r * padded + i)];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) V::store(o.out + (t * o.H + h + r) * o.K + c * V::width, z[r][c] / total[r]);
}

/// Query t of every head, of K numbers each.
template <typename V, int K>
INTROSPECT_INLINE void attend_all_heads(const Operands<BFloat16>& o, int64_t t,
                                        const std::vector<int32_t>& chain, std::vector<float>& scores) {
  constexpr int C = K / V::width;
  const int64_t shared = o.H / o.G;
  if (shared % 3 == 0)
    for (int64_t h = 0; h < o.H; h += 3) attend_heads<V, 3, C>(o, t, h, chain, scores);
  else if (shared % 2 == 0)
    for (int64_t h = 0; h < o.H; h += 2) attend_heads<V, 2, C>(o, t, h, chain, scores);
  else
    for (int64_t h = 0; h < o.H; ++h) attend_heads<V, 1, C>(o, t, h, chain, scores);
}

/// The queries [first, last): softmax over the chain of ancestors, and their values' mean under it.
template <typename V, typename T>
INTROSPECT_INLINE void attend_rows(const Operands<T>& o, int64_t first, int64_t last) {
  std::vector<int32_t> chain;
  std::vector<Wide<T>> weights, z(static_cast<size_t>(o.K));
  const auto scale = static_cast<Wide<T>>(o.scale), soft_cap = static_cast<Wide<T>>(o.soft_cap);
  for (int64_t t = first; t < last; ++t) {
    chain.clear();
    for (auto s = o.own_key(t); s >= 0; s = o.parents[s]) {
      chain.push_back(s);
      if (o.window > 0 && static_cast<int64_t>(chain.size()) == o.window) break;
    }
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (o.K == 64 || o.K == 128) {
        if (o.K == 64)
          attend_all_heads<V, 64>(o, t, chain, weights);
        else
          attend_all_heads<V, 128>(o, t, chain, weights);
        continue;
      }
    }
    weights.resize(chain.size());
    for (int64_t h = 0; h < o.H; ++h) {
      const int64_t g = h / (o.H / o.G);
      const T* query = o.q.at(h, t);
      const auto sink =
          o.sinks ? static_cast<Wide<T>>(o.sinks[h]) : -std::numeric_limits<Wide<T>>::infinity();
      auto largest = sink;
      for (size_t i = 0; i < chain.size(); ++i) {
        auto score = dot<V>(query, o.k.at(g, chain[i]), o.K) * scale;
        if (soft_cap > 0) score = soft_cap * std::tanh(score / soft_cap);
        weights[i] = score;
        largest = std::max(largest, score);
      }
      Wide<T> total = std::exp(sink - largest);
      std::fill(z.begin(), z.end(), Wide<T>{0});
      for (size_t i = 0; i < chain.size(); ++i) {
        const auto weight = std::exp(weights[i] - largest);
        total += weight;
        add_scaled<V>(z.data(), weight, o.v.at(g, chain[i]), o.K);
      }
      T* to = o.out + (t * o.H + h) * o.K;
      for (int64_t i = 0; i < o.K; ++i) to[i] = static_cast<T>(z[static_cast<size_t>(i)] / total);
    }
  }
}

template <typename T>
torch::Tensor run(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                  const TokenTree& tree, double scale, double soft_cap, const torch::Tensor& sinks_H) {
  const int64_t n_queries = q.size(1), H = q.size(2), K = q.size(3), G = k.size(1), n_keys = k.size(2);
  auto out = reused_empty({1, n_queries, H, K}, q.options());
  const Operands<T> o = {{q.const_data_ptr<T>(), q.stride(2), q.stride(1)},
                         {k.const_data_ptr<T>(), k.stride(1), k.stride(2)},
                         {v.const_data_ptr<T>(), v.stride(1), v.stride(2)},
                         out.template mutable_data_ptr<T>(),
                         tree.parents_S.const_data_ptr<int32_t>(),
                         sinks_H.defined() ? sinks_H.const_data_ptr<T>() : nullptr,
                         tree.queries_T.defined() ? tree.queries_T.const_data_ptr<int32_t>() : nullptr,
                         n_queries,
                         n_keys,
                         H,
                         G,
                         K,
                         tree.window,
                         scale,
                         soft_cap};
  parallel_for(0, n_queries, 8, [&](int64_t first, int64_t last) {
    with_rounding_lanes([&](auto lanes) INTROSPECT_INLINED { attend_rows<decltype(lanes)>(o, first, last); });
  });
  return out;
}

torch::Tensor with_dense_heads(const torch::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.contiguous();
}

}  // namespace

bool has_tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                        const torch::Tensor& v_BGSK) {
  const auto dtype = q_BTHK.scalar_type();
  const bool graph = at::GradMode::is_enabled() &&
                     (q_BTHK.requires_grad() || k_BGSK.requires_grad() || v_BGSK.requires_grad());
  return q_BTHK.is_cpu() && !graph &&
         (dtype == torch::kFloat32 || dtype == torch::kBFloat16 || dtype == torch::kFloat64);
}

torch::Tensor tree_attention(const torch::Tensor& q_BTHK, const torch::Tensor& k_BGSK,
                             const torch::Tensor& v_BGSK, const TokenTree& tree, double scale,
                             double soft_cap, const torch::Tensor& sinks_H) {
  const auto sinks = sinks_H.defined() ? sinks_H.to(q_BTHK.scalar_type()).contiguous() : sinks_H;
  const auto q = with_dense_heads(q_BTHK), k = with_dense_heads(k_BGSK), v = with_dense_heads(v_BGSK);
  switch (q.scalar_type()) {
    case torch::kFloat32:
      return run<float>(q, k, v, tree, scale, soft_cap, sinks);
    case torch::kFloat64:
      return run<double>(q, k, v, tree, scale, soft_cap, sinks);
    default:
      return run<c10::BFloat16>(q, k, v, tree, scale, soft_cap, sinks);
  }
}

torch::Tensor tree_mask(const TokenTree& tree, int64_t n_queries, const torch::TensorOptions& options) {
  // A walk that goes down before it goes on enters a node's subtree from `enter` to `leave`: a comparison on the device
  // then tells whether a key is an ancestor, and only these numbers go there.
  const int64_t S = tree.parents_S.size(0), T = n_queries;
  const int32_t* parents = tree.parents_S.const_data_ptr<int32_t>();
  const auto numbers = at::zeros({3 * S + 2 * T}, torch::kLong);
  auto* const enter = numbers.mutable_data_ptr<int64_t>();
  auto *const leave = enter + S, *const depth = leave + S, *const own_enter = depth + S,
              *const own_depth = own_enter + T;
  std::vector<int64_t> size(static_cast<size_t>(S), 1), next(static_cast<size_t>(S));
  for (int64_t s = S; s-- > 0;)
    if (parents[s] >= 0) size[static_cast<size_t>(parents[s])] += size[static_cast<size_t>(s)];
  int64_t next_root = 0;
  for (int64_t s = 0; s < S; ++s) {
    const auto at = static_cast<size_t>(s);
    auto& place = parents[s] < 0 ? next_root : next[static_cast<size_t>(parents[s])];
    enter[s] = place;
    leave[s] = place += size[at];
    next[at] = enter[s] + 1;
    depth[s] = parents[s] < 0 ? 0 : depth[parents[s]] + 1;
  }
  for (int64_t t = 0; t < T; ++t) {
    const int64_t own = tree.queries_T.defined() ? tree.queries_T.const_data_ptr<int32_t>()[t] : S - T + t;
    own_enter[t] = enter[own];
    own_depth[t] = depth[own];
  }
  const auto parts = on_device(numbers, options.device()).split_with_sizes({S, S, S, T, T});
  const auto place_T1 = parts[3].unsqueeze(1);
  auto seen_TS = (parts[0] <= place_T1).logical_and_(place_T1 < parts[1]);
  if (tree.window > 0) seen_TS.logical_and_(parts[4].unsqueeze(1) - parts[2] < tree.window);
  return at::zeros({T, S}, options)
      .masked_fill_(seen_TS.logical_not_(), -std::numeric_limits<double>::infinity())
      .view({1, 1, T, S});
}

}  // namespace introspect::ops
