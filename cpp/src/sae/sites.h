#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <torch/types.h>

#include "introspect/hooks/hook_point.h"
#include "introspect/sae/dictionary.h"
#include "introspect/sae/splice.h"

namespace introspect::sae {

/// The site of a full hook name, whatever model it is of. Throws HookError for one that no model has.
hooks::Site parse_site(std::string_view name);

/// The full names of the one point that a dictionary reads and the one that it writes: those that are given, or its own.
/// Throws ConfigError if it has several, or none is known; `who` asks.
std::pair<std::string, std::string> named_sites(const char* who, const Dictionary& dictionary,
                                                const SpliceSites& sites);

/// What features of a dictionary that ranks by decoder norm are divided by before they are decoded: the norms, and 1 for
/// rows of zeros, which write nothing.
torch::Tensor decoder_divisors(const Dictionary& dictionary, torch::ScalarType dtype);

/// x [.., heads, K] at a point with heads as [.., heads K], `width`; without heads x itself. Throws ShapeError.
torch::Tensor side_by_side(const torch::Tensor& x, int64_t width, const char* does);

}  // namespace introspect::sae
