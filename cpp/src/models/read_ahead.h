#pragma once

#include <cstdint>
#include <functional>

#include "introspect/export.h"
#include "introspect/nn/block.h"

namespace introspect::models {

using ReadBlock = std::function<nn::Block(int64_t layer)>;

/// `read`, and where blocks are asked for one after another the next one is read by another thread meanwhile, so that the
/// disk and the unpacking of a file's blocks run beside the products: two blocks are then in memory. After the last block
/// comes the first, as another pass wants it. May be called by several threads, and by a forked process, which reads for
/// itself; what a read throws reaches whoever asks for that block.
INTROSPECT_EXPORT ReadBlock read_ahead(ReadBlock read, int64_t n_layers);

}  // namespace introspect::models
