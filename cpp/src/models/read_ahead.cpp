#include "models/read_ahead.h"

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

  nn::Block block(int64_t layer) {
    const std::lock_guard lock(mutex_);
    auto ahead = std::exchange(ahead_, {});
    if (std::exchange(next_, -1) != layer) ahead = {};  // not wanted: waited for and dropped
    auto out = ahead.valid() ? ahead.get() : read_(layer);
    if (layer == 0 || layer == last_ + 1) begin((layer + 1) % n_layers_);
    last_ = layer;
    return out;
  }

 private:
  void begin(int64_t layer) {
    ahead_ = std::async(std::launch::async, [this, layer] {
      at::get_num_threads();   // sets a new thread's number,
      omp_set_num_threads(1);  // which would be that of the products: they have the cores
      return read_(layer);
    });
    next_ = layer;
  }

  ReadBlock read_;
  int64_t n_layers_;
  std::mutex mutex_;
  int64_t next_ = -1, last_ = -1;  // the block that is read ahead, and the one asked for last
  std::future<nn::Block> ahead_;   // the last member: its end is waited for before the others go
};

}  // namespace

ReadBlock read_ahead(ReadBlock read, int64_t n_layers) {
  return [reader = std::make_shared<Reader>(std::move(read), n_layers)](int64_t layer) {
    return reader->block(layer);
  };
}

}  // namespace introspect::models
