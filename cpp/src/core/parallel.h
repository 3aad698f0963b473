#pragma once

#include <cstdint>
#include <exception>
#include <mutex>

#include <ATen/Parallel.h>

#if !defined(_OPENMP)
#error \
    "sources that include core/parallel.h are compiled with -fopenmp: without it at::parallel_for runs on one thread"
#endif

namespace introspect {

/// Splits [begin, end) over torch's intra-op threads (at::get_num_threads()) in pieces of at least `grain`.
///
/// `body(first, last)` runs with gradients off. Of several exceptions the one of the lowest piece reaches the caller, so
/// that which fault is named does not depend on which thread was quicker. Not a public header: the -fopenmp it needs is
/// cpp/CMakeLists.txt's.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  std::mutex mutex;
  std::exception_ptr problem;
  int64_t place = end;
  at::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (first < place) {
        place = first;
        problem = std::current_exception();
      }
    }
  });
  if (problem) std::rethrow_exception(problem);
}

}  // namespace introspect
