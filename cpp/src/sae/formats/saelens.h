#pragma once

namespace introspect::sae::formats {

/// Where our own fields stand in a cfg.json's metadata, and the name of the top-k that SAELens lacks.
inline constexpr auto kOwn = "introspect", kSignedTopk = "signed_topk";

}  // namespace introspect::sae::formats
