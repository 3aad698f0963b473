#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <thread>

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include "introspect/ops/norm.h"
#include "models/read_ahead.h"

#include "tiny_model.h"

using namespace introspect;

namespace {

/// True if `work` ends in a forked process within five seconds, and is true.
template <typename Work>
bool in_a_child(const Work& work) {
  const auto child = ::fork();
  if (child == 0) {
    ::alarm(5);  // ends a child that waits for a thread that it lacks
    ::_exit(work() ? 0 : 1);
  }
  int status = -1;
  return ::waitpid(child, &status, 0) == child && status == 0;
}

}  // namespace

TEST_CASE("a process forked while a block is read reads blocks of its own", "[process][models]") {
  const int64_t in_flight = GENERATE(0, 1);  // read by whoever asks, and ahead
  const auto model = testing::tiny_model();
  const auto parent = ::getpid();
  std::promise<void> begun, wanted;
  auto may_end = wanted.get_future().share();
  auto blocks = models::read_ahead(
      [&, may_end](int64_t layer) {
        if (layer == in_flight && ::getpid() == parent) {
          begun.set_value();
          may_end.wait();
        }
        return *model->block(layer);
      },
      model->cfg().n_layers);
  std::thread asks([&] { blocks(0); });
  begun.get_future().wait();
  const auto pass = [&] {
    for (int64_t layer = in_flight; layer < model->cfg().n_layers; ++layer) blocks(layer);
    return true;
  };
  CHECK(in_a_child(pass));
  CHECK(in_a_child([&] { return pass() && in_a_child(pass); }));
  CHECK(in_a_child([&] {
    blocks = nullptr;  // and a process that reads none ends
    return true;
  }));
  wanted.set_value();
  asks.join();
  if (in_flight == 1) blocks(1);
}

TEST_CASE("a process forked while other threads take and give back memory has memory", "[process]") {
  const auto x = at::ones({1, 8192}), weight = at::ones({8192});
  const auto expected = ops::rms_norm(x, weight, 1e-6);
  std::atomic<bool> stops = false;
  const auto work = [&] {
    while (!stops) ops::rms_norm(x, weight, 1e-6);
  };
  std::thread first(work), second(work);
  bool ends = true;
  for (int i = 0; ends && i < 200; ++i)  // some find the memory's mutex held
    ends = in_a_child([&] { return at::equal(ops::rms_norm(x, weight, 1e-6), expected); });
  stops = true;
  first.join();
  second.join();
  CHECK(ends);
}
