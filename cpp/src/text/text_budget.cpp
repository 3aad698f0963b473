#include "text/text_budget.h"

#include <ctime>

#include "introspect/core/check.h"
#include "introspect/core/interrupt.h"

namespace introspect::text {
namespace {

double seconds(std::chrono::steady_clock::duration span) {
  return std::chrono::duration<double>(span).count();
}

/// Of this thread, so that a busy or sleeping machine refuses nothing.
double processor_seconds() {
  std::timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

TextBudget::TextBudget(size_t text_bytes)
    : start_(Clock::now()),
      last_(start_),
      last_interrupt_(start_),
      start_cpu_(processor_seconds()),
      allowed_(3 + 10e-6 * static_cast<double>(text_bytes)) {}

bool TextBudget::look(const std::string& who) {
  const auto now = Clock::now();
  const bool quick = seconds(now - last_) < 2e-3;
  last_ = now;
  if (seconds(now - last_interrupt_) > 0.05) {
    last_interrupt_ = now;
    check_interrupt();
    check<ConfigError>(processor_seconds() - start_cpu_ < allowed_, who, ": it exceeds the limit of ",
                       allowed_, " s of processor time on this text");
  }
  return quick;
}

}  // namespace introspect::text
