#pragma once

#include <string>

#include "introspect/ops/bfloat16_products.h"

namespace introspect {

/// One way of multiplying bfloat16, until the end of the scope.
class Way {
 public:
  explicit Way(const std::string& way) : before_(ops::use_bfloat16_products(way)) {}
  ~Way() { ops::use_bfloat16_products(before_); }
  Way(const Way&) = delete;
  Way& operator=(const Way&) = delete;

 private:
  std::string before_;
};

}  // namespace introspect
