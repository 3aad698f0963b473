#include "introspect/core/error.h"

namespace introspect {

Error::~Error() = default;
ShapeError::~ShapeError() = default;
ConfigError::~ConfigError() = default;
IoError::~IoError() = default;
HookError::~HookError() = default;

}  // namespace introspect
