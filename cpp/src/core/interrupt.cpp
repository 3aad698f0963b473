#include "introspect/core/interrupt.h"

#include <atomic>

namespace introspect {
namespace {

std::atomic<void (*)()> current{nullptr};

}  // namespace

void set_interrupt_check(void (*check)()) {
  current = check;
}

void check_interrupt() {
  if (const auto check = current.load(std::memory_order_acquire)) check();
}

}  // namespace introspect
