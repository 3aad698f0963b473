#pragma once

#include <string>
#include <string_view>

namespace introspect::models {

/// What a model is that no family of this library runs, told by the names its files give: "a mixture of experts, ...".
/// Empty for a name that says nothing.
///
/// `architecture` is a class of transformers or general.architecture of a GGUF file, `model_type` config.json's.
std::string what_is(std::string_view architecture, std::string_view model_type = {});

}  // namespace introspect::models
