#pragma once

#include <string>

namespace introspect::activations {

/// Compares what the rows of two sources are made of: the field "of" of their states (ActivationSource::state).
///
/// `kept` is the state that a file holds, `now` that of the source that is to go on. Throws IoError, beginning with `who`,
/// the file's name, if they differ, naming a difference, and if `kept` has no such field: earlier versions wrote none.
/// If `now` has none nothing is compared.
void check_same_rows(const std::string& who, const std::string& kept, const std::string& now);

/// True if a state has that field.
bool tells_rows(const std::string& state);

}  // namespace introspect::activations
