#pragma once

#include <ATen/Parallel.h>

#if !defined(_OPENMP)
#error \
    "sources that include core/parallel.h are compiled with -fopenmp: without it at::parallel_for runs on one thread"
#endif

namespace introspect {

/// Splits [begin, end) over torch's intra-op threads (at::get_num_threads()) in pieces of at least `grain`.
///
/// `body(first, last)` runs with gradients off and must not throw across threads what it cannot rethrow: the first
/// exception reaches the caller. Private header of the library's sources: the -fopenmp it needs is cpp/CMakeLists.txt's.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  at::parallel_for(begin, end, grain, body);
}

}  // namespace introspect
