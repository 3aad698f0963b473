#include "core/reused_memory.h"

#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>

namespace introspect {

namespace {

constexpr size_t kLeast = size_t{1} << 15;
constexpr size_t kMostKept = size_t{1} << 26;
constexpr std::align_val_t kLine{64};

struct Block {
  void* data;
  size_t bytes;
};

class Memory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    auto block = take(n);
    if (!block.data) block = {::operator new(n, kLine), n};
    return {block.data, new Block(block), &give_back, at::Device(at::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  static Memory& instance() {
    static auto& memory = *new Memory;  // outlives every tensor
    return memory;
  }

 private:
  /// The block given back last that holds n bytes and not many more; none, or another thread is at them: null.
  Block take(size_t n) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {nullptr, 0};
    for (size_t i = kept_.size(); i-- > 0;) {
      const auto block = kept_[i];
      if (block.bytes < n || block.bytes > n + n / 4) continue;
      kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
      bytes_ -= block.bytes;
      return block;
    }
    return {nullptr, 0};
  }

  static void give_back(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    instance().keep(*block);
  }

  void keep(Block block) {
    if (block.bytes > kMostKept) return ::operator delete(block.data, kLine);
    std::vector<Block> dropped;
    {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (!lock) return ::operator delete(block.data, kLine);
      kept_.push_back(block);
      bytes_ += block.bytes;
      size_t n = 0;
      for (; bytes_ > kMostKept; ++n) bytes_ -= kept_[n].bytes;
      dropped.assign(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(n));
      kept_.erase(kept_.begin(), kept_.begin() + static_cast<std::ptrdiff_t>(n));
    }
    for (const auto& old : dropped) ::operator delete(old.data, kLine);
  }

  // Tried, never waited for: a fork copies it as it is, held by a thread that the new process does not have.
  std::mutex mutex_;
  std::vector<Block> kept_;  // in the order in which they were given back
  size_t bytes_ = 0;
};

}  // namespace

torch::Tensor reused_empty(at::IntArrayRef sizes, const torch::TensorOptions& options) {
  const auto bytes = static_cast<size_t>(c10::multiply_integers(sizes)) * options.dtype().itemsize();
  if (options.device() != at::kCPU || bytes < kLeast) return at::empty(sizes, options);
  return at::detail::empty_generic(sizes, &Memory::instance(), c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

}  // namespace introspect
