#pragma once

#include <string>

namespace introspect::activations {

/// Whether a source may go on where another stood: the field "of" of a source's state says what its rows are made of.
///
/// Throws IoError, beginning with `who`, which holds the state `held`, if its rows are others than those of the source
/// whose state is `came`, naming a difference; and for a state of earlier versions, which does not say. A source without
/// such a field is not checked.
void check_same_rows(const std::string& who, const std::string& held, const std::string& came);

}  // namespace introspect::activations
