#pragma once

#include <cstdint>
#include <string>

#include "introspect/hooks/hook_registry.h"
#include "introspect/models/model.h"

namespace introspect::models {

/// The positions that a generation adds to a text, one a step.
struct NewPositions {
  int64_t first = 0, n = 0;  // in the cache
  int64_t first_real = 0;    // the least number of real tokens before them in any row
};

/// What interventions do in every step of a generation, if it is the same in all of them.
struct DecodeHooks {
  hooks::HookRegistry
      registry;  // of interventions that name no positions and no text, operands on their layers' devices
  std::string unfit;  // why not; empty: it is the same
};

/// Throws as HookRegistry::add does.
DecodeHooks decode_hooks(const Model& model, const hooks::HookRegistry* hooks, const NewPositions& positions);

}  // namespace introspect::models
