#pragma once

#include <cstdint>

#include "introspect/core/stage_clock.h"

namespace introspect {

/// The clock of this thread; null: nobody counts.
StageClock*& current_clock();

/// Until the end of the scope this thread's time is that of `stage`: of the innermost, where they nest.
class InStage {
 public:
  explicit InStage(Stage stage) : clock_(current_clock()) {
    if (clock_) before_ = clock_->enter(stage);
  }
  ~InStage() {
    if (clock_) clock_->leave(before_);
  }
  InStage(const InStage&) = delete;
  InStage& operator=(const InStage&) = delete;

  /// Work of this stage, where somebody counts: `work` is a function that returns a StageWork.
  template <typename F>
  void count(const F& work) const {
    if (clock_) clock_->count(work());
  }

 private:
  StageClock* clock_;
  Stage before_ = Stage::kOther;
};

}  // namespace introspect
