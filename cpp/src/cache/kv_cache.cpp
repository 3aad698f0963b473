#include "introspect/cache/kv_cache.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "cache/storage.h"
#include "core/on_device.h"
#include "introspect/core/check.h"

namespace introspect::cache {

namespace {

constexpr int64_t kBlock = 64;  // capacities are rounded up to this many positions

int64_t round_up(int64_t n) {
  return (n + kBlock - 1) / kBlock * kBlock;
}

}  // namespace

KVCache::KVCache(Shape shape, torch::ScalarType dtype, torch::Device device,
                 const std::vector<torch::Device>& layer_devices)
    : shape_(shape),
      dtype_(dtype),
      device_(device),
      layers_(static_cast<size_t>(std::max<int64_t>(0, shape.n_layers)), {nullptr, 0, device}) {
  check<ShapeError>(shape.n_layers > 0 && shape.batch > 0 && shape.n_key_value_heads > 0 && shape.d_head > 0,
                    "KVCache: layers, batch, heads and d_head must be positive, got ", shape.n_layers, ", ",
                    shape.batch, ", ", shape.n_key_value_heads, ", ", shape.d_head);
  if (layer_devices.empty()) return;
  check<ShapeError>(layer_devices.size() == layers_.size(), "KVCache: one device for each of ",
                    shape.n_layers, " layers is required, got ", layer_devices.size());
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].device = layer_devices[i];
}

/// A cache without positions, whose layers live where this one's do.
KVCache KVCache::empty(Shape shape) const {
  KVCache out(shape, dtype_, device_);
  for (size_t i = 0; i < layers_.size(); ++i) out.layers_[i].device = layers_[i].device;
  return out;
}

KVCache::~KVCache() {
  for (auto& layer : layers_)
    if (layer.storage) layer.storage->leave(layer.length);
}

KVCache::KVCache(const KVCache& other) : shape_(other.shape_), dtype_(other.dtype_), device_(other.device_) {
  const auto use = other.enter("KVCache::fork");
  length_ = other.length_;
  mask_ = other.mask_;
  layers_ = other.layers_;
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
      layers_(std::exchange(other.layers_, {})),
      pinned_(std::exchange(other.pinned_, {})) {}

KVCache& KVCache::operator=(KVCache&& other) noexcept {
  std::swap(shape_, other.shape_);
  std::swap(dtype_, other.dtype_);
  std::swap(device_, other.device_);
  std::swap(length_, other.length_);
  std::swap(mask_, other.mask_);
  std::swap(layers_, other.layers_);
  std::swap(pinned_, other.pinned_);
  return *this;
}

void KVCache::check_layer(const char* who, int64_t layer) const {
  check<std::out_of_range>(layer >= 0 && layer < shape_.n_layers, who, ": layers are 0 to ",
                           shape_.n_layers - 1, ", got ", layer);
}

void KVCache::check_span(const char* who, int64_t first, int64_t last) const {
  check<std::out_of_range>(first >= 0 && first <= last && last <= length_, who,
                           ": a span lies within the positions 0 to ", length_, ", got [", first, ", ", last,
                           ")");
}

torch::Tensor KVCache::keys(int64_t layer) const {
  const auto use = enter("KVCache::keys");
  check_layer("KVCache::keys", layer);
  const Layer& l = layers_[static_cast<size_t>(layer)];
  if (!l.storage)
    return at::empty({shape_.batch, shape_.n_key_value_heads, 0, shape_.d_head},
                     at::device(l.device).dtype(dtype_));
  return l.storage->k_BGCK.narrow(2, 0, l.length);
}

torch::Tensor KVCache::values(int64_t layer) const {
  const auto use = enter("KVCache::values");
  check_layer("KVCache::values", layer);
  const Layer& l = layers_[static_cast<size_t>(layer)];
  return l.storage ? l.storage->v_BGCK.narrow(2, 0, l.length) : keys(layer);
}

/// The mask of positions [first, last), bool [B, last - first], true where there is no padding at all.
torch::Tensor KVCache::mask_of(int64_t first, int64_t last) const {
  if (mask_.defined()) return mask_.narrow(1, first, last - first);
  return at::ones({shape_.batch, last - first}, at::device(device_).dtype(torch::kBool));
}

void KVCache::resize_layer(Layer& layer, int64_t capacity) {
  check<Error>(!pinned_.place.defined(), "KVCache: the memory of a pinned cache stays where it is");
  const std::vector<int64_t> sizes = {shape_.batch, shape_.n_key_value_heads, capacity, shape_.d_head};
  const auto options = at::device(layer.device).dtype(dtype_);
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
  const auto use = enter("KVCache::truncate");
  check<std::out_of_range>(length >= 0 && length <= length_, "KVCache::truncate: 0 to ", length_,
                           " positions can be kept, got ", length);
  for (auto& layer : layers_) set_length(layer, length);
  if (mask_.defined()) mask_ = mask_.narrow(1, 0, length);
  length_ = length;
}

void KVCache::reserve(int64_t length, std::optional<int64_t> layer) {
  const auto use = enter("KVCache::reserve");
  check<std::invalid_argument>(length >= 0, "KVCache::reserve: length must not be negative, got ", length);
  if (layer) check_layer("KVCache::reserve", *layer);
  const int64_t first = layer.value_or(0), last = layer.value_or(shape_.n_layers - 1);
  for (int64_t i = first; i <= last; ++i) {
    Layer& l = layers_[static_cast<size_t>(i)];
    if (length <= l.length) continue;
    if (!l.storage || l.storage->k_BGCK.size(2) < length || !l.storage->is_free_behind(l.length))
      resize_layer(l, length);
  }
}

KVCache KVCache::slice(int64_t first, int64_t last) const {
  const auto use = enter("KVCache::slice");
  check_span("KVCache::slice", first, last);
  if (first == 0) {
    KVCache out = fork();
    out.truncate(last);
    return out;
  }
  KVCache out = empty(shape_);
  if (first == last) return out;
  for (int64_t layer = 0; layer < shape_.n_layers; ++layer)
    out.append(layer, keys(layer).narrow(2, first, last - first),
               values(layer).narrow(2, first, last - first));
  out.commit(last - first, mask_.defined() ? mask_of(first, last).clone() : torch::Tensor{});
  return out;
}

KVCache KVCache::splice(int64_t first, int64_t last, const KVCache& other) const {
  const auto use = enter("KVCache::splice"), theirs_too = other.enter("KVCache::splice (of the other cache)");
  const Shape& theirs = other.shape_;
  check<ShapeError>(theirs.n_layers == shape_.n_layers && theirs.d_head == shape_.d_head &&
                        theirs.n_key_value_heads == shape_.n_key_value_heads &&
                        (theirs.batch == shape_.batch || theirs.batch == 1),
                    "KVCache::splice: the other cache must be for ", shape_.n_layers, " layers, batch ",
                    shape_.batch, " or 1, ", shape_.n_key_value_heads, " heads of ", shape_.d_head, "; got ",
                    theirs.n_layers, " layers, batch ", theirs.batch, ", ", theirs.n_key_value_heads,
                    " heads of ", theirs.d_head);
  check<std::out_of_range>(first >= 0 && first <= length_,
                           "KVCache::splice: a span begins at one of the positions 0 to ", length_, ", got ",
                           first);
  other.check_span("KVCache::splice (of the other cache)", first, last);
  const int64_t length = std::max(length_, last), tail = length - last;
  KVCache out = empty(shape_);
  for (int64_t i = 0; i < shape_.n_layers; ++i) {
    const Layer& mine = layers_[static_cast<size_t>(i)];
    Layer& l = out.layers_[static_cast<size_t>(i)];
    if (mine.storage && mine.storage == other.layers_[static_cast<size_t>(i)].storage) {
      // What one storage holds at a position is the same for all who see it.
      mine.storage->enter(length);
      l.storage = mine.storage, l.length = length;
      continue;
    }
    out.reserve(round_up(length), i);
    const auto append_rows = [&](const KVCache& from, int64_t begin, int64_t n) {
      if (n == 0) return;
      const auto converted = [&](const torch::Tensor& x) {
        return x.narrow(2, begin, n).to(l.device, dtype_).expand({shape_.batch, -1, -1, -1});
      };
      out.append(i, converted(from.keys(i)), converted(from.values(i)));
    };
    append_rows(*this, 0, first);
    append_rows(other, first, last - first);
    append_rows(*this, last, tail);
  }
  torch::Tensor mask;
  if (mask_.defined() || other.mask_.defined()) {
    const auto theirs_BT = other.mask_of(first, last).to(device_).expand({shape_.batch, -1});
    mask = at::cat({mask_of(0, first), theirs_BT, mask_of(length_ - tail, length_)}, 1);
  }
  out.commit(length, mask);
  return out;
}

KVCache KVCache::concat_rows(const std::vector<KVCache>& caches) {
  check<std::invalid_argument>(!caches.empty(),
                               "KVCache::concat_rows: at least one cache is required, got none");
  const KVCache& front = caches.front();
  Shape shape = front.shape_;
  shape.batch = 0;
  bool masked = false;
  std::vector<SoleUser::Use> uses;
  for (const auto& cache : caches) {
    uses.push_back(cache.enter("KVCache::concat_rows"));
    Shape one_row_each = cache.shape_;
    one_row_each.batch = front.shape_.batch;
    check<ShapeError>(one_row_each == front.shape_ && cache.dtype_ == front.dtype_ &&
                          cache.device_ == front.device_ && cache.length_ == front.length_,
                      "KVCache::concat_rows: every cache must hold ", front.length_, " positions of ",
                      shape.n_layers, " layers, ", shape.n_key_value_heads, " heads of ", shape.d_head, ", ",
                      front.dtype_, " on ", front.device_, "; got ", cache.length_, " positions of ",
                      cache.shape_.n_layers, " layers, ", cache.shape_.n_key_value_heads, " heads of ",
                      cache.shape_.d_head, ", ", cache.dtype_, " on ", cache.device_);
    shape.batch += cache.shape_.batch;
    masked = masked || cache.mask_.defined();
  }
  const int64_t length = front.length_;
  KVCache out = front.empty(shape);
  if (length == 0) return out;
  for (int64_t layer = 0; layer < shape.n_layers; ++layer) {
    Layer& l = out.layers_[static_cast<size_t>(layer)];
    out.resize_layer(l, round_up(length));
    out.set_length(l, length);
    int64_t row = 0;
    for (const auto& cache : caches) {
      const auto copy = [&](const torch::Tensor& to_BGSK, const torch::Tensor& from_BGSK) {
        to_BGSK.narrow(0, row, cache.shape_.batch).copy_(from_BGSK.narrow(2, 0, length));
      };
      copy(out.keys(layer), cache.keys(layer));
      copy(out.values(layer), cache.values(layer));
      row += cache.shape_.batch;
    }
  }
  std::vector<torch::Tensor> masks;
  if (masked)
    for (const auto& cache : caches) masks.push_back(cache.mask_of(0, length));
  out.commit(length, masked ? at::cat(masks, 0) : torch::Tensor{});
  return out;
}

KVCache KVCache::select_rows(const std::vector<int64_t>& rows) const {
  const auto use = enter("KVCache::select_rows");
  for (const int64_t row : rows)
    check<std::out_of_range>(row >= 0 && row < shape_.batch, "KVCache::select_rows: rows are 0 to ",
                             shape_.batch - 1, ", got ", row);
  Shape shape = shape_;
  shape.batch = static_cast<int64_t>(rows.size());
  KVCache out = empty(shape);
  const auto index = torch::tensor(rows, torch::kLong);
  for (int64_t layer = 0; layer < shape_.n_layers; ++layer) {
    const Layer& l = layers_[static_cast<size_t>(layer)];
    if (!l.storage) continue;
    const auto here = on_device(index, l.device);
    out.append(layer, keys(layer).index_select(0, here), values(layer).index_select(0, here));
  }
  out.length_ = length_;
  if (mask_.defined()) out.mask_ = mask_.index_select(0, on_device(index, device_));
  return out;
}

KVCache KVCache::select_positions(const std::vector<int64_t>& positions) const {
  const auto use = enter("KVCache::select_positions");
  for (const int64_t position : positions)
    check<std::out_of_range>(position >= 0 && position < length_,
                             "KVCache::select_positions: positions are 0 to ", length_ - 1, ", got ",
                             position);
  KVCache out = empty(shape_);
  if (positions.empty()) return out;
  const auto index = torch::tensor(positions, torch::kLong);
  for (int64_t layer = 0; layer < shape_.n_layers; ++layer) {
    const auto here = on_device(index, device(layer));
    out.append(layer, keys(layer).index_select(2, here), values(layer).index_select(2, here));
  }
  out.length_ = static_cast<int64_t>(positions.size());
  if (mask_.defined()) out.mask_ = mask_.index_select(1, on_device(index, device_));
  return out;
}

int64_t KVCache::nbytes() const {
  const auto use = enter("KVCache::nbytes");
  int64_t bytes = 0;
  for (const auto& layer : layers_)
    if (layer.storage) bytes += layer.storage->nbytes();
  return bytes;
}

int64_t KVCache::nbytes_own() const {
  const auto use = enter("KVCache::nbytes_own");
  int64_t bytes = 0;
  for (const auto& layer : layers_)
    if (layer.storage && !layer.storage->is_shared()) bytes += layer.storage->nbytes();
  return bytes;
}

int64_t KVCache::total_nbytes(const std::vector<KVCache>& caches) {
  std::unordered_set<const Storage*> counted;
  int64_t bytes = 0;
  for (const auto& cache : caches) {
    const auto use = cache.enter("KVCache::total_nbytes");
    for (const auto& layer : cache.layers_)
      if (layer.storage && counted.insert(layer.storage.get()).second) bytes += layer.storage->nbytes();
  }
  return bytes;
}

std::pair<torch::Tensor, torch::Tensor> KVCache::append(int64_t layer, const torch::Tensor& k_BGTK,
                                                        const torch::Tensor& v_BGTK) {
  const auto use = enter("KVCache::append");
  check_layer("KVCache::append", layer);
  Layer& l = layers_[static_cast<size_t>(layer)];
  const int64_t T = k_BGTK.dim() == 4 ? k_BGTK.size(2) : 0;
  const std::vector<int64_t> sizes = {shape_.batch, shape_.n_key_value_heads, T, shape_.d_head};
  check<ShapeError>(k_BGTK.sizes() == at::IntArrayRef(sizes) && v_BGTK.sizes() == at::IntArrayRef(sizes),
                    "KVCache::append: keys and values must be ", at::IntArrayRef(sizes), ", got ",
                    k_BGTK.sizes(), " and ", v_BGTK.sizes());
  check<ShapeError>(k_BGTK.scalar_type() == dtype_ && k_BGTK.device() == l.device,
                    "KVCache::append: keys must be ", dtype_, " on ", l.device, ", got ",
                    k_BGTK.scalar_type(), " on ", k_BGTK.device());
  if (pinned_.place.defined()) return put(l, k_BGTK, v_BGTK);
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
  const auto use = enter("KVCache::commit");
  for (const auto& layer : layers_)
    check<Error>(layer.length == length_ + n, "KVCache::commit: every layer must hold ", length_ + n,
                 " positions, got ", layer.length);
  check<ShapeError>(!mask_BT.defined() || mask_BT.sizes() == at::IntArrayRef({shape_.batch, n}),
                    "KVCache::commit: the mask must be [", shape_.batch, ", ", n, "], got ",
                    mask_BT.defined() ? mask_BT.sizes() : at::IntArrayRef{});
  if (mask_BT.defined() || mask_.defined()) {
    const auto options = at::device(device_).dtype(torch::kBool);
    const auto added = mask_BT.defined() ? on_device(mask_BT, device_).to(torch::kBool)
                                         : at::ones({shape_.batch, n}, options);
    mask_ = at::cat({mask_of(0, length_), added}, 1);
  }
  length_ += n;
}

void KVCache::rollback() {
  const auto use = enter("KVCache::rollback");
  for (auto& layer : layers_) set_length(layer, std::min(layer.length, length_));
}

}  // namespace introspect::cache
