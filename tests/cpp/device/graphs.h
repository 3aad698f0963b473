#pragma once

#include <functional>

/// Recordings of the device's work, as graphs of CUDA are: what its operators do between the beginning and the end of one is
/// kept with the tensors that they were given and have made, and done again with these by a replay. What a host knew
/// meanwhile stays as it was then. What makes a host wait, or copies between the two, is an error in a recording.
namespace fenced {

/// True while this thread records.
bool is_recording();

/// One piece of work more of this thread's recording.
void add_to_recording(std::function<void()> work);

/// Throws if this thread records.
void check_not_recording(const char* what);

/// From now on every recording fails at its end.
void refuse_recordings();

}  // namespace fenced
