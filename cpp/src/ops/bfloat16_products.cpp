#include "introspect/ops/bfloat16_products.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "introspect/core/check.h"
#include "ops/amx.h"
#include "ops/gemm_bfloat16.h"
#include "ops/vector.h"

namespace introspect::ops {

namespace {

int place_of(const std::vector<std::string>& ways, const std::string& way, const char* who) {
  const auto at = std::find(ways.begin(), ways.end(), way);
  std::string all;
  for (const auto& each : ways) all += (all.empty() ? "" : ", ") + each;
  check<ConfigError>(at != ways.end(), who, ": this processor multiplies bfloat16 by ", all, "; got '", way,
                     "'");
  return static_cast<int>(at - ways.begin());
}

const std::vector<std::string>& ways_here() {
  static const auto ways = [] {
    std::vector<std::string> out;
    if (has_amx_bfloat16()) out.emplace_back("tiles");
    if (has_avx512_bfloat16()) out.emplace_back("pairs");
    out.emplace_back("widened");
    return out;
  }();
  return ways;
}

/// The place in `ways_here()` of the way in use.
std::atomic<int>& in_use() {
  static std::atomic<int> place = [] {
    const char* named = std::getenv("INTROSPECT_BFLOAT16_PRODUCTS");
    return named ? place_of(ways_here(), named, "INTROSPECT_BFLOAT16_PRODUCTS") : 0;
  }();
  return place;
}

}  // namespace

std::vector<std::string> bfloat16_products_here() {
  return ways_here();
}

std::string bfloat16_products() {
  return ways_here()[static_cast<size_t>(in_use().load())];
}

std::string use_bfloat16_products(const std::string& way) {
  return ways_here()[static_cast<size_t>(
      in_use().exchange(place_of(ways_here(), way, "use_bfloat16_products")))];
}

bool has_gemm_bfloat16() {
  return in_use().load() + 1 < static_cast<int>(ways_here().size());  // the last is "widened"
}

}  // namespace introspect::ops
