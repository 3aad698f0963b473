#include "introspect/core/stage_clock.h"

#include "core/stages.h"

namespace introspect {

namespace {

constexpr std::array<const char*, kStages> kNames = {
    "embedding",  "norms",    "QKV",         "rotary",  "attention", "output", "MLP products",
    "activation", "residual", "unembedding", "readout", "hooks",     "other"};

}  // namespace

StageClock*& current_clock() {
  thread_local StageClock* clock = nullptr;
  return clock;
}

StageClock::StageClock() : since_(std::chrono::steady_clock::now()), before_(current_clock()) {
  for (size_t i = 0; i < kStages; ++i) costs_[i].stage = kNames[i];
  current_clock() = this;
}

StageClock::~StageClock() {
  current_clock() = before_;
}

void StageClock::charge() {
  const auto now = std::chrono::steady_clock::now();
  costs_[static_cast<size_t>(now_)].seconds += std::chrono::duration<double>(now - since_).count();
  since_ = now;
}

std::vector<StageCost> StageClock::costs() {
  charge();
  return {costs_.begin(), costs_.end()};
}

Stage StageClock::enter(Stage stage) {
  charge();
  ++costs_[static_cast<size_t>(stage)].calls;
  return std::exchange(now_, stage);
}

void StageClock::leave(Stage before) {
  charge();
  now_ = before;
}

void StageClock::count(const StageWork& work) {
  auto& sum = costs_[static_cast<size_t>(now_)].work;
  sum.flops += work.flops;
  sum.bytes += work.bytes;
}

}  // namespace introspect
