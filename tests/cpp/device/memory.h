#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include <c10/core/Allocator.h>

/// A device for tests, "fenced": its memory is the machine's own, and a fault to whoever touches it.
///
/// Pages of a tensor are closed to reading and writing except while an operator runs on them, so that code of the host that
/// uses a pointer into them ends the process, as it would read nonsense or end it on a real accelerator. Devices are
/// fenced:0 and fenced:1.
namespace fenced {

inline constexpr c10::DeviceIndex kDevices = 2;

/// Gives closed pages on the current device.
c10::Allocator* allocator();

c10::DeviceIndex current_device();

/// Opens the pages of blocks while it lives; others may hold the same open.
class Open {
 public:
  Open() = default;
  Open(const Open&) = delete;
  Open& operator=(const Open&) = delete;
  ~Open();
  void add(const void* block);  ///< what `allocator` gave, or null

 private:
  std::vector<const void*> blocks_;
};

/// What happened that costs a real device time, by name, since the last call of take_events: "to device", "to host",
/// "between devices" for copies, and the operators for which the host must wait.
void record(const char* event);
std::vector<std::string> take_events();

}  // namespace fenced
