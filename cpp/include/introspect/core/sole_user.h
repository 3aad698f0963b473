#pragma once

#include <atomic>
#include <thread>
#include <utility>

#include "introspect/core/check.h"

namespace introspect {

/// Lets one thread at a time use an object that its own code cannot share: a member of that object.
///
///     void KVCache::truncate(int64_t length) {
///       const auto use = user_.enter("KVCache::truncate");
///
/// A second thread gets an Error at once instead of waiting, since two threads that meet in one cache are a mistake of
/// their program: whoever came first would decide what is in it. A copy of the object has users of its own.
class SoleUser {
 public:
  SoleUser() = default;
  SoleUser(const SoleUser&) noexcept {}
  SoleUser& operator=(const SoleUser&) noexcept { return *this; }

  /// The right to use the object, until it is destroyed. The same thread may hold several.
  class Use {
   public:
    explicit Use(const SoleUser& of) : of_(&of) {}
    Use(Use&& other) noexcept : of_(std::exchange(other.of_, nullptr)) {}
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (of_) of_->leave();
    }

   private:
    const SoleUser* of_;
  };

  /// Throws Error if another thread uses the object; `who` is what this one wanted to do.
  [[nodiscard]] Use enter(const char* who) const {
    const auto me = std::this_thread::get_id();
    auto owner = owner_.load(std::memory_order_acquire);
    if (owner != me) {
      owner = {};
      check<Error>(owner_.compare_exchange_strong(owner, me, std::memory_order_acquire), who,
                   ": another thread is using it; give each thread one of its own");
    }
    ++uses_;
    return Use(*this);
  }

 private:
  void leave() const {
    if (--uses_ == 0) owner_.store({}, std::memory_order_release);
  }

  mutable std::atomic<std::thread::id> owner_{};
  mutable int uses_ = 0;  // of the owner, which alone counts
};

}  // namespace introspect
