#include "models/read_ahead.h"

#include <unistd.h>

#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <utility>

#include <omp.h>

#include <ATen/Parallel.h>

namespace introspect::models {

namespace {

class Reader {
 public:
  Reader(ReadBlock read, int64_t n_layers) : read_(std::move(read)), n_layers_(n_layers) {}
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;
  ~Reader() {
    const auto* ahead = ahead_.load();
    if (ahead->process == ::getpid()) delete ahead;
  }

  nn::Block block(int64_t layer) {
    auto& now = ahead();
    const std::lock_guard lock(now.mutex);
    auto read = std::exchange(now.read, {});
    if (std::exchange(now.next, -1) != layer) read = {};  // not wanted: waited for and dropped
    auto out = read.valid() ? read.get() : read_(layer);
    if (layer == 0 || layer == now.last + 1) begin(now, (layer + 1) % n_layers_);
    now.last = layer;
    return out;
  }

 private:
  struct Ahead {
    const pid_t process = ::getpid();
    std::mutex mutex;
    int64_t next = -1, last = -1;  // the block that is read ahead, and the one asked for last
    std::future<nn::Block> read;   // its end is waited for before this goes
  };

  /// This process's own. A forked process never touches what it got, nor frees it: the thread that reads and whoever
  /// holds the mutex are not in it, and would be waited for without end.
  Ahead& ahead() {
    auto* found = ahead_.load();
    if (found->process == ::getpid()) return *found;
    auto own = std::make_unique<Ahead>();
    return ahead_.compare_exchange_strong(found, own.get()) ? *own.release() : *found;
  }

  void begin(Ahead& now, int64_t layer) {
    now.read = std::async(std::launch::async, [this, layer] {
      at::get_num_threads();   // sets a new thread's number,
      omp_set_num_threads(1);  // which would be that of the products: they have the cores
      return read_(layer);
    });
    now.next = layer;
  }

  ReadBlock read_;
  int64_t n_layers_;
  std::atomic<Ahead*> ahead_ = new Ahead;
};

}  // namespace

ReadBlock read_ahead(ReadBlock read, int64_t n_layers) {
  return [reader = std::make_shared<Reader>(std::move(read), n_layers)](int64_t layer) {
    return reader->block(layer);
  };
}

}  // namespace introspect::models
