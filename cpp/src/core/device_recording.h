#pragma once

#include <functional>
#include <memory>

#include <torch/types.h>

namespace introspect {

/// Work of a device that is recorded once and then replayed by one call of the host's (on CUDA: a graph). A replay does
/// the same operations at the same addresses, so that whatever changes from one to the next stands in tensors that the work
/// reads, and that live as long as the recording.
///
/// Work that waits for the device, that copies between host and device, or whose sizes depend on numbers there cannot be
/// recorded. What the host does meanwhile is not done again.
class DeviceRecording {
 public:
  /// True if work of this device can be recorded: torch must have graphs for it (2.12 and later say so themselves, before that
  /// introspect must have been built with CUDA's headers), and no recording has failed in this process.
  static bool is_available(torch::Device device);

  /// Runs `work` once as it is, so that what is made on first use is made before, and once to record it, on a stream of its
  /// own. Null, after a warning that says why, if it cannot be recorded. Exceptions of the first run pass through.
  static std::unique_ptr<DeviceRecording> of(torch::Device device,
                                             const std::function<torch::Tensor()>& work);

  ~DeviceRecording();

  /// Does the work on the current stream, without waiting for it. The result is the same tensor each time.
  torch::Tensor replay();

 private:
  struct Graph;
  DeviceRecording(std::unique_ptr<Graph> graph, torch::Tensor result);

  std::unique_ptr<Graph> graph_;
  torch::Tensor result_;
};

}  // namespace introspect
