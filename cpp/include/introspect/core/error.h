#pragma once

#include <stdexcept>

#include "introspect/export.h"

namespace introspect {

/// Base of every exception this library throws itself. ATen's own errors stay `c10::Error`; mistakes in an
/// index or an argument are `std::out_of_range` and `std::invalid_argument` (IndexError, ValueError in Python).
class INTROSPECT_EXPORT Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~Error() override;  // out of line: one typeinfo, in libintrospect, for C++ and Python alike
};

/// A tensor has the wrong rank, size, dtype or device.
class INTROSPECT_EXPORT ShapeError : public Error {
 public:
  using Error::Error;
  ~ShapeError() override;
};

/// A model, tokenizer, protocol or option asks for something this library does not have or cannot be true.
class INTROSPECT_EXPORT ConfigError : public Error {
 public:
  using Error::Error;
  ~ConfigError() override;
};

/// A file is missing, truncated, corrupt or cannot be written.
class INTROSPECT_EXPORT IoError : public Error {
 public:
  using Error::Error;
  ~IoError() override;
};

/// A hook name does not exist, or a hook returned what cannot stand at its point.
class INTROSPECT_EXPORT HookError : public Error {
 public:
  using Error::Error;
  ~HookError() override;
};

}  // namespace introspect
