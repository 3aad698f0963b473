#include "io/encodings.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/parallel.h"

namespace introspect::io {
namespace {

// The float dtypes of safetensors and GGUF, which share their words.
constexpr std::pair<std::string_view, torch::ScalarType> kFloats[] = {
    {"F32", torch::kFloat32},
    {"F16", torch::kFloat16},
    {"BF16", torch::kBFloat16},
    {"F64", torch::kFloat64},
    {"F8_E4M3", torch::kFloat8_e4m3fn},
    {"F8_E5M2", torch::kFloat8_e5m2},
    {"F8_E4M3FNUZ", torch::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", torch::kFloat8_e5m2fnuz}};

constexpr int64_t kChunk = 2048;  // values between two roundings: 8 KiB of floats, inside the first cache
constexpr int64_t kGrain = 32 * kChunk;  // values that are worth a thread

/// Calls body(first, last) for ranges that start at multiples of kChunk and cover [0, n) on all threads.
template <typename Body>
void for_chunks(int64_t n, const Body& body) {
  parallel_for(0, (n + kChunk - 1) / kChunk, kGrain / kChunk,
               [&](int64_t first, int64_t last) { body(first * kChunk, std::min(last * kChunk, n)); });
}

void dequantise_into(const Quantisation& quantisation, const uint8_t* blocks, torch::Tensor& out) {
  const auto [block_elements, block_bytes] = quantisation.layout;
  const auto dequantise = [&, elements = block_elements, bytes = block_bytes](int64_t first, int64_t n,
                                                                              float* to) {
    quantisation.dequantise(blocks + first / elements * bytes, n / elements, to);
  };
  const auto through_floats = [&](auto* to, const auto& round) {
    for_chunks(out.numel(), [&](int64_t begin, int64_t end) {
      float floats[kChunk];
      for (int64_t first = begin; first < end; first += kChunk) {
        const int64_t n = std::min(kChunk, end - first);
        dequantise(first, n, floats);
        round(floats, n, to + first);
      }
    });
  };
  switch (out.scalar_type()) {
    case torch::kFloat32: {
      auto* to = out.mutable_data_ptr<float>();
      for_chunks(out.numel(),
                 [&](int64_t begin, int64_t end) { dequantise(begin, end - begin, to + begin); });
      break;
    }
    case torch::kBFloat16:
      through_floats(static_cast<uint16_t*>(out.mutable_data_ptr()), round_to_bfloat16);
      break;
    case torch::kFloat16:
      through_floats(static_cast<uint16_t*>(out.mutable_data_ptr()), round_to_float16);
      break;
    default:
      through_floats(out.mutable_data_ptr<double>(),
                     [](const float* values, int64_t n, double* to) { std::copy_n(values, n, to); });
  }
}

/// ATen's conversion, which is parallel and vectorised but wants its input aligned; safetensors promises no alignment.
void convert_into(torch::ScalarType dtype, const std::byte* bytes, torch::Tensor& out) {
  const auto element_size = static_cast<int64_t>(c10::elementSize(dtype));
  auto flat = out.view(-1);
  if (reinterpret_cast<uintptr_t>(bytes) % element_size == 0) {
    // from_blob takes a mutable pointer; the tensor is only read.
    flat.copy_(torch::from_blob(const_cast<std::byte*>(bytes), {out.numel()}, dtype));
    return;
  }
  for (int64_t first = 0; first < out.numel(); first += kGrain) {
    const int64_t n = std::min(kGrain, out.numel() - first);
    auto aligned = torch::empty({n}, dtype);
    std::memcpy(aligned.mutable_data_ptr(), bytes + first * element_size, n * element_size);
    flat.narrow(0, first, n).copy_(aligned);
  }
}

}  // namespace

std::optional<int64_t> count_elements(const std::vector<int64_t>& shape) {
  constexpr int64_t kLargestElement = 16;
  int64_t n_bytes = kLargestElement;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(n_bytes, std::max<int64_t>(size, 1), &n_bytes))
      return std::nullopt;
  }
  return std::ranges::count(shape, 0) > 0 ? 0 : n_bytes / kLargestElement;
}

std::optional<torch::ScalarType> float_dtype(std::string_view encoding) {
  for (const auto& [name, dtype] : kFloats) {
    if (name == encoding) return dtype;
  }
  return std::nullopt;
}

std::optional<BlockLayout> readable_layout(std::string_view encoding) {
  if (const auto dtype = float_dtype(encoding))
    return BlockLayout{1, static_cast<int64_t>(c10::elementSize(*dtype))};
  if (const auto* quantisation = find_quantisation(encoding)) return quantisation->layout;
  return std::nullopt;
}

void decode(std::string_view encoding, const std::byte* bytes, torch::Tensor& out) {
  if (const auto dtype = float_dtype(encoding)) return convert_into(*dtype, bytes, out);
  dequantise_into(*find_quantisation(encoding), reinterpret_cast<const uint8_t*>(bytes), out);
}

}  // namespace introspect::io
