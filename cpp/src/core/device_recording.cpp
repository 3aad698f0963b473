#include "core/device_recording.h"

#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#if __has_include(<ATen/accelerator/Graph.h>)
#include <ATen/accelerator/Graph.h>
#elif defined(INTROSPECT_CUDA_GRAPHS)
// torch before 2.12, where cpp/CMakeLists.txt has found CUDA's headers and the library of torch that has its graphs.
#include <ATen/cuda/CUDAGraph.h>
#endif

#include "introspect/core/error.h"

namespace introspect {

namespace {

std::atomic<bool> has_failed = false;

/// The graphs of a torch, of those that this one may have. Only this thread's calls are watched while it records.
#if __has_include(<ATen/accelerator/Graph.h>)
using TorchGraph = at::accelerator::Graph;
constexpr auto kThisThread = at::GraphCaptureMode::ThreadLocal;
bool has_graphs(torch::Device device) {
  return at::has_graph_impl(device.type()) && at::accelerator::getAccelerator() == device.type();
}
#elif defined(INTROSPECT_CUDA_GRAPHS)
using TorchGraph = at::cuda::CUDAGraph;
constexpr auto kThisThread = cudaStreamCaptureModeThreadLocal;
bool has_graphs(torch::Device device) {
  return device.is_cuda();
}
#else
struct TorchGraph {
  void capture_begin(c10::MempoolId_t /*pool*/, int /*mode*/) {}
  void capture_end() {}
  void replay() {}
  c10::MempoolId_t pool() { return {}; }
};
constexpr int kThisThread = 0;
bool has_graphs(torch::Device /*device*/) {
  return false;
}
#endif

/// What the recordings of a device share: one at a time is made, on one stream, for which libraries keep their workspace.
/// The memory of a graph whose recording has ended serves the next one, which torch would otherwise keep beside new memory.
/// Never destroyed, as CUDA ends before it.
class Studio {
 public:
  static Studio& of(torch::Device device) {
    static std::mutex mutex;
    static auto* const all = new std::map<std::pair<c10::DeviceType, c10::DeviceIndex>, Studio>;
    const std::scoped_lock lock(mutex);
    return all->try_emplace({device.type(), device.index()}, device).first->second;
  }

  explicit Studio(torch::Device device)
      : stream(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)) {}

  void put(std::unique_ptr<TorchGraph> graph) {
    const std::scoped_lock lock(mutex_);
    spares_.push_back(std::move(graph));
  }

  std::unique_ptr<TorchGraph> take() {
    const std::scoped_lock lock(mutex_);
    if (spares_.empty()) return nullptr;
    auto out = std::move(spares_.back());
    spares_.pop_back();
    return out;
  }

  const c10::Stream stream;
  std::mutex in_use;

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<TorchGraph>> spares_;
};

void wait_for(const c10::Stream& first, const c10::Stream& then) {
  c10::Event event(first.device_type());
  event.record(first);
  event.block(then);
}

/// The first line of what `f` throws; nothing if it does not.
template <typename F>
std::optional<std::string> failure_of(const F& f) {
  try {
    f();
    return std::nullopt;
  } catch (const std::exception& error) {
    const std::string what = error.what();
    return what.substr(0, what.find('\n'));
  }
}

}  // namespace

struct DeviceRecording::Graph {
  torch::Device device;
  std::unique_ptr<TorchGraph> graph;
};

DeviceRecording::DeviceRecording(std::unique_ptr<Graph> graph, torch::Tensor result)
    : graph_(std::move(graph)), result_(std::move(result)) {}

DeviceRecording::~DeviceRecording() {
  result_.reset();
  Studio::of(graph_->device).put(std::move(graph_->graph));
}

bool DeviceRecording::is_available(torch::Device device) {
  return !has_failed && has_graphs(device);
}

std::unique_ptr<DeviceRecording> DeviceRecording::of(torch::Device device,
                                                     const std::function<torch::Tensor()>& work) {
  if (!is_available(device)) return nullptr;
  const c10::DeviceGuard on_it(device);
  auto& studio = Studio::of(device);
  const std::scoped_lock lock(studio.in_use);
  const auto current = c10::impl::VirtualGuardImpl(device.type()).getStream(device), own = studio.stream;
  wait_for(current, own);
  auto graph = std::make_unique<TorchGraph>();
  torch::Tensor result;
  std::optional<std::string> failure;
  try {
    const c10::StreamGuard on_own(own);
    work();
    const auto spare = studio.take();
    failure = failure_of([&] {
      graph->capture_begin(spare ? spare->pool() : c10::MempoolId_t{0, 0}, kThisThread);
      const auto in_work = failure_of([&] { result = work(); });
      const auto at_end = failure_of([&] { graph->capture_end(); });
      if (in_work || at_end) throw Error(*(in_work ? in_work : at_end));
    });
  } catch (...) {
    wait_for(own, current);
    throw;
  }
  wait_for(own, current);
  if (failure) {
    // torch's allocator may still ask this graph which allocations are its own: it is never destroyed.
    static_cast<void>(graph.release());
    has_failed = true;
    TORCH_WARN("introspect: work of ", device,
               " could not be recorded to be replayed; the host starts it operation by ",
               "operation, which gives the same but takes longer: ", *failure);
    return nullptr;
  }
  return std::unique_ptr<DeviceRecording>(
      new DeviceRecording(std::make_unique<Graph>(Graph{device, std::move(graph)}), std::move(result)));
}

torch::Tensor DeviceRecording::replay() {
  const c10::DeviceGuard on_it(graph_->device);
  graph_->graph->replay();
  return result_;
}

}  // namespace introspect
