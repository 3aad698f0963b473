#pragma once

#include "introspect/models/model.h"
#include "models/read_ahead.h"

namespace introspect::models {

/// What Weights::read_block holds: how blocks are read from files, and how their matrices are held then.
struct FileBlocks {
  ReadBlock read;
  WeightsHeld held = WeightsHeld::kDense;

  nn::Block operator()(int64_t layer) const { return read(layer); }
};

}  // namespace introspect::models
