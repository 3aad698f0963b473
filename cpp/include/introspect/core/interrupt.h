#pragma once

#include "introspect/export.h"

namespace introspect {

/// Sets what long work without a Progress calls about 20 times a second; nullptr, the default: nothing.
///
/// It may throw: the exception stops the work and reaches the caller. The Python package sets a check of its signals, so
/// that Ctrl-C works. One for the whole process; set it before other threads run.
INTROSPECT_EXPORT void set_interrupt_check(void (*check)());

/// Calls the check that was set, if there is one.
INTROSPECT_EXPORT void check_interrupt();

}  // namespace introspect
