#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "introspect/io/tensor_source.h"

namespace introspect::io {

/// How a safetensors checkpoint packs its matrices into whole numbers: config.json's quantization_config.
struct Packing {
  enum class Method : uint8_t {
    /// X.qweight int32 [in * bits / 32, out], the lowest bits first; X.qzeros [groups, out * bits / 32], X.scales
    /// [groups, out] and, where the order of activations was used, X.g_idx [in], the group of each input.
    /// W[o, i] = scale (q - (zero + zero_offset)). Source: AutoGPTQ, auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py.
    gptq,
    /// X.qweight int32 [in, out / 8] of 4 bits, whose columns stand in the order 0, 2, 4, 6, 1, 3, 5, 7; X.qzeros
    /// [groups, out / 8], likewise, and X.scales [groups, out]. W[o, i] = (q - zero) scale. Source: AutoAWQ,
    /// awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
    awq,
    /// X_blocks uint8 [E, out, in / 32, 16], two 4-bit floats a byte, the low one first, and X_scales uint8
    /// [E, out, in / 32], powers of two less 127; read as [E, in, out]. Source: OCP Microscaling Formats 1.0 and
    /// openai/gpt-oss, gpt_oss/torch/weights.py.
    mxfp4,
    /// NF4, FP4 and int8 rows, each tensor with its own description: see io/bitsandbytes.h.
    bitsandbytes,
  };
  Method method = Method::gptq;
  int64_t bits = 4;         // gptq: 2, 4 or 8
  int64_t group_size = -1;  // inputs of one scale; -1: all
  int64_t zero_offset = 1;  // gptq: files of its first version hold zeros less one

  /// What a model's identity has of it: "gptq 4 128 1".
  std::string text() const;
};

/// The tensors of `source` with its packed matrices as dense ones: X.weight [out, in] instead of X.qweight and its kin.
///
/// Values are computed in float32 and rounded once. check_readable throws ConfigError for parts that are missing or of
/// other shapes than the packing's, and reading one for a group that there is not. `source` is that of a safetensors file
/// or folder; ConfigError for another.
std::shared_ptr<const TensorSource> unpacked(std::shared_ptr<const TensorSource> source,
                                             const Packing& packing);

}  // namespace introspect::io
