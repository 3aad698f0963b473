#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>
#include <unordered_map>

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Backtrace.h>
#include <c10/util/Exception.h>

namespace fenced {
namespace {

thread_local c10::DeviceIndex current = 0;

c10::Device at_index(c10::DeviceIndex index) {
  return {c10::DeviceType::PrivateUse1, index};
}

struct Block {
  size_t nbytes = 0;
  int users = 0;
};

/// Every block and how many operators hold it open.
class Blocks {
 public:
  static Blocks& all() {
    static auto* const blocks = new Blocks;  // never destroyed: tensors of static lifetime come back later
    return *blocks;
  }

  void* make(size_t nbytes) {
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    nbytes = (nbytes + page - 1) / page * page;
    void* const at = ::mmap(nullptr, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(at != MAP_FAILED, "fenced: no memory for ", nbytes, " bytes");
    const std::lock_guard lock(mutex_);
    blocks_[at] = {nbytes, 0};
    return at;
  }

  void free(void* at) {
    const std::lock_guard lock(mutex_);
    ::munmap(at, blocks_.at(at).nbytes);
    blocks_.erase(at);
  }

  void open(const void* at) { change(at, +1); }
  void close(const void* at) { change(at, -1); }

 private:
  void change(const void* at, int by) {
    const std::lock_guard lock(mutex_);
    auto& block = blocks_.at(at);
    const bool was_open = block.users > 0;
    block.users += by;
    if (const bool is_open = block.users > 0; is_open != was_open) {
      const int failed =
          ::mprotect(const_cast<void*>(at), block.nbytes, is_open ? PROT_READ | PROT_WRITE : PROT_NONE);
      TORCH_CHECK(failed == 0, "fenced: mprotect failed");
    }
  }

  std::mutex mutex_;
  std::unordered_map<const void*, Block> blocks_;
};

void free_block(void* at) {
  Blocks::all().free(at);
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t nbytes) override {
    if (nbytes == 0) return {nullptr, at_index(current)};
    void* const at = Blocks::all().make(nbytes);
    return {at, at, &free_block, at_index(current)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, size_t n) const override {
    Open open;
    open.add(to);
    open.add(from);
    default_copy_data(to, from, n);
  }
};

/// One stream a device, on which everything has happened when a call returns.
class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  c10::DeviceType type() const override { return c10::DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    setDevice(device);
    return before;
  }
  c10::Device getDevice() const override { return at_index(current); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "fenced: devices are 0 to ", kDevices - 1, ", got ", device);
    uncheckedSetDevice(device);
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool /*priority*/) const override {
    return getStream(device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** /*event*/, const c10::Stream& /*stream*/, c10::DeviceIndex /*index*/,
              c10::EventFlag /*flag*/) const override {}
  void block(void* /*event*/, const c10::Stream& /*stream*/) const override {}
  bool queryEvent(void* /*event*/) const override { return true; }
  bool queryStream(const c10::Stream& /*stream*/) const override { return true; }
  void synchronizeStream(const c10::Stream& /*stream*/) const override { fenced::record("synchronise"); }
  void synchronizeEvent(void* /*event*/) const override { fenced::record("synchronise"); }
  void synchronizeDevice(c10::DeviceIndex /*index*/) const override { fenced::record("synchronise"); }
};

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex index) const override { Guard().setDevice(at_index(index)); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return Guard().exchangeDevice(at_index(index)).index();
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
};

std::mutex events_mutex;
std::vector<std::string> events;

Allocator the_allocator;
Hooks the_hooks;

const bool registered = [] {
  c10::register_privateuse1_backend("fenced");
  c10::SetAllocator(c10::DeviceType::PrivateUse1, &the_allocator);
  at::RegisterPrivateUse1HooksInterface(&the_hooks);
  return true;
}();

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

}  // namespace

c10::Allocator* allocator() {
  return &the_allocator;
}
c10::DeviceIndex current_device() {
  return current;
}

void Open::add(const void* block) {
  if (block == nullptr) return;
  Blocks::all().open(block);
  blocks_.push_back(block);
}

Open::~Open() {
  for (const auto* block : blocks_) Blocks::all().close(block);
}

void record(const char* event) {
  static const bool verbose = std::getenv("FENCED_BACKTRACE") != nullptr;  // who caused it
  if (verbose) std::cerr << "fenced: " << event << "\n" << c10::get_backtrace(2, 24) << "\n";
  const std::lock_guard lock(events_mutex);
  events.emplace_back(event);
}

std::vector<std::string> take_events() {
  const std::lock_guard lock(events_mutex);
  return std::exchange(events, {});
}

}  // namespace fenced
