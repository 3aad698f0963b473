#include "introspect/cache/kv_cache.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::cache {

namespace {

constexpr int64_t kBlock = 64;  // capacities are rounded up to this many positions

int64_t round_up(int64_t n) {
  return (n + kBlock - 1) / kBlock * kBlock;
}

}  // namespace

/// One layer's memory and how much of it each cache that shares it can see.
struct KVCache::Storage {
  torch::Tensor k_BGCK, v_BGCK;  // C: capacity
  std::mutex mutex;
  std::vector<int64_t> lengths;  // one entry per holder

  explicit Storage(const torch::Tensor& k, const torch::Tensor& v) : k_BGCK(k), v_BGCK(v) {}

  void enter(int64_t length) {
    const std::scoped_lock lock(mutex);
    lengths.push_back(length);
  }
  void leave(int64_t length) {
    const std::scoped_lock lock(mutex);
    lengths.erase(std::find(lengths.begin(), lengths.end(), length));
  }
  /// Lets the holder of `from` positions hold `to` of them, if nobody else sees those in between.
  bool extend(int64_t from, int64_t to) {
    const std::scoped_lock lock(mutex);
    if (to > k_BGCK.size(2)) return false;
    auto mine = std::find(lengths.begin(), lengths.end(), from);
    *mine = to;
    for (auto it = lengths.begin(); it != lengths.end(); ++it) {
      if (it == mine || *it <= from) continue;
      *mine = from;
      return false;
    }
    return true;
  }
};

KVCache::KVCache(Shape shape, torch::ScalarType dtype, torch::Device device)
    : shape_(shape), dtype_(dtype), device_(device), layers_(static_cast<size_t>(shape.n_layers)) {
  check<ShapeError>(shape.n_layers > 0 && shape.batch > 0 && shape.n_key_value_heads > 0 && shape.d_head > 0,
                    "KVCache: layers, batch, heads and d_head must be positive, got ", shape.n_layers, ", ",
                    shape.batch, ", ", shape.n_key_value_heads, ", ", shape.d_head);
}

KVCache::~KVCache() {
  for (auto& layer : layers_)
    if (layer.storage) layer.storage->leave(layer.length);
}

KVCache::KVCache(const KVCache& other)
    : shape_(other.shape_),
      dtype_(other.dtype_),
      device_(other.device_),
      length_(other.length_),
      mask_(other.mask_),
      layers_(other.layers_) {
  for (auto& layer : layers_)
    if (layer.storage) layer.storage->enter(layer.length);
}

KVCache& KVCache::operator=(const KVCache& other) {
  return *this = KVCache(other);
}

KVCache::KVCache(KVCache&& other) noexcept
    : shape_(other.shape_),
      dtype_(other.dtype_),
      device_(other.device_),
      length_(other.length_),
      mask_(std::move(other.mask_)),
      layers_(std::exchange(other.layers_, {})) {}

KVCache& KVCache::operator=(KVCache&& other) noexcept {
  std::swap(shape_, other.shape_);
  std::swap(dtype_, other.dtype_);
  std::swap(device_, other.device_);
  std::swap(length_, other.length_);
  std::swap(mask_, other.mask_);
  std::swap(layers_, other.layers_);
  return *this;
}

torch::Tensor KVCache::keys(int64_t layer) const {
  const Layer& l = layers_.at(static_cast<size_t>(layer));
  if (!l.storage)
    return at::empty({shape_.batch, shape_.n_key_value_heads, 0, shape_.d_head},
                     at::device(device_).dtype(dtype_));
  return l.storage->k_BGCK.narrow(2, 0, l.length);
}

torch::Tensor KVCache::values(int64_t layer) const {
  const Layer& l = layers_.at(static_cast<size_t>(layer));
  return l.storage ? l.storage->v_BGCK.narrow(2, 0, l.length) : keys(layer);
}

void KVCache::resize_layer(Layer& layer, int64_t capacity) {
  const std::vector<int64_t> sizes = {shape_.batch, shape_.n_key_value_heads, capacity, shape_.d_head};
  const auto options = at::device(device_).dtype(dtype_);
  auto storage = std::make_shared<Storage>(at::empty(sizes, options), at::empty(sizes, options));
  if (layer.storage) {
    storage->k_BGCK.narrow(2, 0, layer.length).copy_(layer.storage->k_BGCK.narrow(2, 0, layer.length));
    storage->v_BGCK.narrow(2, 0, layer.length).copy_(layer.storage->v_BGCK.narrow(2, 0, layer.length));
    layer.storage->leave(layer.length);
  }
  storage->enter(layer.length);
  layer.storage = std::move(storage);
}

void KVCache::set_length(Layer& layer, int64_t length) {
  if (!layer.storage || layer.length == length) return;
  layer.storage->leave(layer.length);
  layer.storage->enter(length);
  layer.length = length;
}

void KVCache::truncate(int64_t length) {
  check<std::out_of_range>(length >= 0 && length <= length_, "KVCache::truncate: 0 to ", length_,
                           " positions can be kept, got ", length);
  for (auto& layer : layers_) set_length(layer, length);
  if (mask_.defined()) mask_ = mask_.narrow(1, 0, length);
  length_ = length;
}

void KVCache::reserve(int64_t length) {
  for (auto& layer : layers_)
    if (!layer.storage || layer.storage->k_BGCK.size(2) < length) resize_layer(layer, round_up(length));
}

KVCache KVCache::select_rows(const std::vector<int64_t>& rows) const {
  for (const int64_t row : rows)
    check<std::out_of_range>(row >= 0 && row < shape_.batch, "KVCache::select_rows: rows are 0 to ",
                             shape_.batch - 1, ", got ", row);
  Shape shape = shape_;
  shape.batch = static_cast<int64_t>(rows.size());
  KVCache out(shape, dtype_, device_);
  const auto index = torch::tensor(rows, torch::kLong).to(device_);
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (!layers_[l].storage) continue;
    out.append(static_cast<int64_t>(l), keys(static_cast<int64_t>(l)).index_select(0, index),
               values(static_cast<int64_t>(l)).index_select(0, index));
  }
  out.length_ = length_;
  if (mask_.defined()) out.mask_ = mask_.index_select(0, index);
  return out;
}

KVCache KVCache::select_positions(const std::vector<int64_t>& positions) const {
  for (const int64_t position : positions)
    check<std::out_of_range>(position >= 0 && position < length_,
                             "KVCache::select_positions: positions are 0 to ", length_ - 1, ", got ",
                             position);
  KVCache out(shape_, dtype_, device_);
  if (positions.empty()) return out;
  const auto index = torch::tensor(positions, torch::kLong).to(device_);
  for (int64_t layer = 0; layer < shape_.n_layers; ++layer)
    out.append(layer, keys(layer).index_select(2, index), values(layer).index_select(2, index));
  out.length_ = static_cast<int64_t>(positions.size());
  if (mask_.defined()) out.mask_ = mask_.index_select(1, index);
  return out;
}

int64_t KVCache::nbytes() const {
  int64_t bytes = 0;
  for (const auto& layer : layers_)
    if (layer.storage)
      bytes += static_cast<int64_t>(layer.storage->k_BGCK.nbytes() + layer.storage->v_BGCK.nbytes());
  return bytes;
}

std::pair<torch::Tensor, torch::Tensor> KVCache::append(int64_t layer, const torch::Tensor& k_BGTK,
                                                        const torch::Tensor& v_BGTK) {
  Layer& l = layers_.at(static_cast<size_t>(layer));
  const int64_t T = k_BGTK.dim() == 4 ? k_BGTK.size(2) : 0;
  const std::vector<int64_t> sizes = {shape_.batch, shape_.n_key_value_heads, T, shape_.d_head};
  check<ShapeError>(k_BGTK.sizes() == at::IntArrayRef(sizes) && v_BGTK.sizes() == at::IntArrayRef(sizes),
                    "KVCache::append: keys and values must be ", at::IntArrayRef(sizes), ", got ",
                    k_BGTK.sizes(), " and ", v_BGTK.sizes());
  check<ShapeError>(k_BGTK.scalar_type() == dtype_ && k_BGTK.device() == device_,
                    "KVCache::append: keys must be ", dtype_, " on ", device_, ", got ", k_BGTK.scalar_type(),
                    " on ", k_BGTK.device());
  const int64_t end = l.length + T;
  // Room for a quarter more, so that decoding token by token copies seldom.
  if (!l.storage) resize_layer(l, round_up(end));
  if (!l.storage->extend(l.length, end)) {
    resize_layer(l, round_up(end + end / 4));
    l.storage->extend(l.length, end);
  }
  l.storage->k_BGCK.narrow(2, l.length, T).copy_(k_BGTK);
  l.storage->v_BGCK.narrow(2, l.length, T).copy_(v_BGTK);
  l.length = end;
  return {keys(layer), values(layer)};
}

void KVCache::commit(int64_t n, const torch::Tensor& mask_BT) {
  for (const auto& layer : layers_)
    check<Error>(layer.length == length_ + n, "KVCache::commit: every layer must hold ", length_ + n,
                 " positions, got ", layer.length);
  if (mask_BT.defined() || mask_.defined()) {
    const auto ones = [&](int64_t t) {
      return at::ones({shape_.batch, t}, at::device(device_).dtype(torch::kBool));
    };
    mask_ = at::cat({mask_.defined() ? mask_ : ones(length_), mask_BT.defined() ? mask_BT : ones(n)}, 1);
  }
  length_ += n;
}

void KVCache::rollback() {
  for (auto& layer : layers_) set_length(layer, std::min(layer.length, length_));
}

}  // namespace introspect::cache
