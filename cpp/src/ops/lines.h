#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>

namespace introspect::ops {

/// Numbers that begin at a cache line, so that a register's or a tile's load need not cross one. A thread keeps the memory
/// of its last ones for the next: pages that the system has to bring anew cost more than a product of a few rows.
template <typename T>
class Lines {
 public:
  explicit Lines(int64_t n) : bytes_(static_cast<size_t>(n) * sizeof(T)) {
    auto& kept = this->kept();
    if (kept.bytes >= bytes_) {
      bytes_ = std::exchange(kept.bytes, 0);
      data_ = std::move(kept.data);
    } else {
      data_.reset(static_cast<T*>(::operator new(bytes_, kLine)));
    }
  }
  ~Lines() {
    auto& kept = this->kept();
    if (bytes_ <= kMostKept && bytes_ > kept.bytes) kept = {std::move(data_), bytes_};
  }
  Lines(const Lines&) = delete;
  Lines& operator=(const Lines&) = delete;

  T* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  static constexpr size_t kMostKept = size_t{1} << 24;
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  struct Kept {
    std::unique_ptr<T, Free> data;
    size_t bytes = 0;
  };
  static Kept& kept() {
    thread_local Kept kept;
    return kept;
  }

  std::unique_ptr<T, Free> data_;
  size_t bytes_;
};

}  // namespace introspect::ops
