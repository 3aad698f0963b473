#include "graphs.h"

#include <atomic>
#include <utility>
#include <vector>

#include <c10/util/Exception.h>

#if __has_include(<ATen/core/GraphImplInterface.h>)
#include <ATen/core/GraphImplInterface.h>
#endif

#include "memory.h"

namespace fenced {
namespace {

using Work = std::vector<std::function<void()>>;

thread_local Work* current = nullptr;
std::atomic<bool> are_refused = false;

#if __has_include(<ATen/core/GraphImplInterface.h>)
class Graph final : public at::GraphImplInterface {
 public:
  explicit Graph(const at::GraphImplArgs& /*args*/) {}

  void capture_begin(at::MempoolId_t /*pool*/, at::GraphCaptureMode /*mode*/) override {
    TORCH_CHECK(current == nullptr && work_.empty(), "fenced: one recording at a time");
    current = &work_;
  }
  void capture_end() override {
    current = nullptr;
    TORCH_CHECK(!are_refused, "fenced: recordings are refused");
  }
  void instantiate() override {}
  void replay() override {
    record("replay");
    for (const auto& again : work_) again();
  }
  void reset() override { work_.clear(); }
  at::MempoolId_t pool() const override { return {0, 0}; }
  void enable_debug_mode() override {}
  void debug_dump(const std::string& /*path*/) override {}

 private:
  Work work_;
};

#endif

}  // namespace

void refuse_recordings() {
  are_refused = true;
}

bool is_recording() {
  return current != nullptr;
}

void add_to_recording(std::function<void()> work) {
  current->push_back(std::move(work));
}

void check_not_recording(const char* what) {
  TORCH_CHECK(!is_recording(), "fenced: '", what, "' cannot be recorded");
}

}  // namespace fenced

#if __has_include(<ATen/core/GraphImplInterface.h>)
namespace at {
REGISTER_GRAPH_IMPL(FENCED, fenced::Graph)
}
#endif
