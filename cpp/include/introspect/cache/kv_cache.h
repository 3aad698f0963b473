#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include <torch/types.h>

#include "introspect/core/sole_user.h"
#include "introspect/export.h"

namespace introspect::cache {

/// The keys and values of every layer for the positions seen so far: a value, copied (forked) in O(1).
///
/// A copy shares the memory of its original. Appending to one of them goes in place where no other copy can see
/// those positions, and copies that layer first where one can, so nothing that is done to a fork is ever visible
/// in its parent. Memory is shared by whole layers: attention reads each layer as one strided tensor, and a layer in
/// several pieces would have to be gathered at every pass.
///
/// Keys are stored after RoPE, at absolute positions, and stay as they are wherever they are put: `slice` from the
/// middle and `select_positions` do not rotate them again. What is appended next counts from `length`.
///
/// Operations on positions see what was committed. One thread at a time may use a cache, and a forward pass uses it
/// from its beginning to its end: a second thread gets an Error. Different forks may be used from different threads.
class INTROSPECT_EXPORT KVCache {
 public:
  /// What a cache is made for: tensors are [batch, n_key_value_heads, position, d_head].
  struct Shape {
    int64_t n_layers = 0, batch = 0, n_key_value_heads = 0, d_head = 0;
    bool operator==(const Shape&) const = default;
  };

  /// An empty cache; memory is taken when the first keys come.
  ///
  /// layer_devices: where each layer's keys and values live, for a model on several devices; empty: on `device`, where
  /// the mask is. Throws ShapeError for sizes that are not positive, or another number of devices than of layers.
  KVCache(Shape shape, torch::ScalarType dtype, torch::Device device,
          const std::vector<torch::Device>& layer_devices = {});
  ~KVCache();
  KVCache(const KVCache&);
  KVCache& operator=(const KVCache&);
  KVCache(KVCache&&) noexcept;
  KVCache& operator=(KVCache&&) noexcept;

  const Shape& shape() const { return shape_; }
  torch::ScalarType dtype() const { return dtype_; }
  torch::Device device() const { return device_; }
  torch::Device device(int64_t layer) const { return layers_.at(static_cast<size_t>(layer)).device; }

  /// Positions held, the same in every layer between forward passes.
  int64_t length() const {
    const auto use = enter("KVCache::length");
    return length_;
  }

  /// Positions of one layer: more than `length` while a forward pass is under way.
  int64_t length(int64_t layer) const {
    const auto use = enter("KVCache::length");
    return layers_.at(static_cast<size_t>(layer)).length;
  }

  /// Keys and values of one layer [B, G, length, K]; views, not to be written to.
  torch::Tensor keys(int64_t layer) const;
  torch::Tensor values(int64_t layer) const;

  /// Which positions are real tokens: bool [B, length], or undefined if all are (no padding).
  torch::Tensor mask() const {
    const auto use = enter("KVCache::mask");
    return mask_;
  }

  /// The same cache, sharing memory; in O(1).
  KVCache fork() const { return *this; }

  /// Forgets all positions from `length` on. Throws std::out_of_range if fewer are held.
  void truncate(int64_t length);

  /// Takes memory for exactly `length` positions, of one layer or of all, so that appends up to there copy nothing
  /// unless a fork has taken those places first. Throws std::out_of_range for a layer that is not there.
  void reserve(int64_t length, std::optional<int64_t> layer = {});

  /// Positions [first, last). A prefix shares memory, in O(1); any other span is a copy.
  ///
  /// Throws std::out_of_range unless 0 <= first <= last <= length.
  KVCache slice(int64_t first, int64_t last) const;

  /// This cache with positions [first, last) taken from the same places of `other`, of this or of another model.
  ///
  /// With last beyond this cache's end it grows: slice(0, p).splice(p, n, other) is this prefix with the other's tail.
  /// The layers, heads and d_head must be equal, and rows too unless `other` has one, which then serves every row;
  /// another dtype or device is converted to this one's, layer by layer. Layers in which both share memory stay shared (below the first
  /// changed layer, say); the others are copies.
  /// Throws ShapeError for other shapes, std::out_of_range for a span that begins after this cache's end or ends
  /// after the other's.
  KVCache splice(int64_t first, int64_t last, const KVCache& other) const;

  /// The caches one under another, as one batch in their order (a copy).
  ///
  /// Throws std::invalid_argument for none, ShapeError unless all have one length, layers, heads, d_head, dtype and
  /// device.
  static KVCache concat_rows(const std::vector<KVCache>& caches);

  /// The cache of a batch in which each row r is row rows[r] of this one (a copy).
  ///
  /// Throws std::out_of_range for a row that is not there.
  KVCache select_rows(const std::vector<int64_t>& rows) const;

  /// The cache of the positions listed, in that order (a copy): the path from the root of a token tree to a node, say.
  ///
  /// Throws std::out_of_range for a position that is not there.
  KVCache select_positions(const std::vector<int64_t>& positions) const;

  /// Bytes of memory that the keys and values hold: what lies ready for appends counts, and what other caches share.
  int64_t nbytes() const;

  /// Of these, what no other cache shares: what would be freed with this one.
  int64_t nbytes_own() const;

  /// Of these, what other caches share.
  int64_t nbytes_shared() const { return nbytes() - nbytes_own(); }

  /// Bytes that several caches hold together, what they share counted once.
  static int64_t total_nbytes(const std::vector<KVCache>& caches);

  /// Adds keys and values [B, G, T, K] at one layer and returns all of that layer, as views [B, G, S, K].
  ///
  /// A forward pass appends to each layer in turn and then calls `commit`. Throws ShapeError for other shapes. Of a pinned
  /// cache see `pin`.
  std::pair<torch::Tensor, torch::Tensor> append(int64_t layer, const torch::Tensor& k_BGTK,
                                                 const torch::Tensor& v_BGTK);

  /// Makes the last `n` appended positions of every layer part of the cache; `mask` is bool [B, n] or undefined.
  void commit(int64_t n, const torch::Tensor& mask_BT);

  /// Drops what was appended since the last commit, after a forward pass that failed.
  void rollback();

  /// For passes of one token whose work is recorded and replayed: from now on `append` takes one position, writes it where
  /// `place`, int64 [1] on the layers' device, says, and returns the first `n` positions of the layer, zero where nothing has
  /// been written yet. Memory of `n` positions is taken, which no earlier fork shares, and keeps its address until `unpin`.
  ///
  ///     cache.pin(place, 256);
  ///     cache.extend();                // by the position at which `place` must stand
  ///     model.block(0)->forward(...);  // or a replay of it
  ///     cache.commit(1, {});
  ///
  /// Forks are not pinned. Throws std::invalid_argument for fewer positions than are held, Error for layers on several devices.
  void pin(const torch::Tensor& place, int64_t n);
  void unpin();

  /// Makes every layer of a pinned cache longer by one, as `append` otherwise does. False, and nothing is done, if the memory
  /// pinned is full or a fork has taken that place: then it must be pinned anew.
  bool extend();

  /// Keeps other threads out for as long as the result lives, over several calls that belong together.
  /// Throws Error if another thread is using the cache; `who` is what this one wanted to do.
  [[nodiscard]] SoleUser::Use enter(const char* who) const { return user_.enter(who); }

 private:
  struct Storage;
  struct Layer {
    std::shared_ptr<Storage> storage;
    int64_t length = 0;
    torch::Device device = torch::kCPU;
  };
  /// Where a pinned cache writes, and how many positions it shows; an undefined place: it is not pinned.
  struct Pinned {
    torch::Tensor place;
    int64_t n = 0;
  };
  KVCache empty(Shape shape) const;
  std::pair<torch::Tensor, torch::Tensor> put(const Layer& layer, const torch::Tensor& k_BGTK,
                                              const torch::Tensor& v_BGTK) const;
  void resize_layer(Layer& layer, int64_t capacity);
  void check_layer(const char* who, int64_t layer) const;
  void check_span(const char* who, int64_t first, int64_t last) const;
  torch::Tensor mask_of(int64_t first, int64_t last) const;
  void set_length(Layer& layer, int64_t length);

  Shape shape_;
  torch::ScalarType dtype_;
  torch::Device device_;
  int64_t length_ = 0;
  torch::Tensor mask_;
  std::vector<Layer> layers_;
  Pinned pinned_;
  SoleUser user_;
};

}  // namespace introspect::cache
