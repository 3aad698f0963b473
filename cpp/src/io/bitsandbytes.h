#pragma once

#include <memory>

#include "introspect/io/mapped_tensors.h"
#include "io/packed_tensors.h"

namespace introspect::io {

/// The tensors of `files` with the matrices that bitsandbytes packed as dense ones.
///
/// 4 bits: X [ceil(n / 2), 1] in bytes, two codes each, the one of the higher bits first; X.absmax [blocks], X.quant_map
/// [16], and in X.quant_state.bitsandbytes__nf4 or __fp4 a JSON text with the shape and the size of a block:
/// W[i] = quant_map[code i] absmax[i / blocksize], in the order of rows. Where absmax is packed itself, in bytes,
/// absmax[b] = nested_quant_map[byte b] nested_absmax[b / nested_blocksize] + nested_offset.
/// 8 bits: X.weight int8 [out, in] and X.SCB float32 [out]: W[o, i] = weight[o, i] SCB[o] / 127.
/// Throws ConfigError for parts that are missing or do not fit.
/// Source: bitsandbytes, functional.py (QuantState.as_dict, dequantize_4bit, int8_vectorwise_dequant).
std::shared_ptr<const TensorSource> bitsandbytes(std::shared_ptr<const MappedTensors> files,
                                                 const Packing& packing);

}  // namespace introspect::io
