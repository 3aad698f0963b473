#include "io/bitsandbytes.h"

#include <limits>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "core/json.h"
#include "core/parallel.h"
#include "introspect/core/check.h"
#include "io/packed_source.h"

namespace introspect::io {

namespace {

using Field = JsonField<ConfigError>;

constexpr std::string_view kState = ".quant_state.bitsandbytes__", kScales = ".SCB";
constexpr auto kFormat = ".weight_format";
constexpr int64_t kGrain = 1 << 16;  // values of a thread's piece
constexpr float kPerScale = 1 / 127.F;

/// What a matrix of 4 bits says of itself.
struct State {
  std::vector<int64_t> shape;
  int64_t n = 0;  // values
  int64_t block = 0, nested_block = 0;
  float nested_offset = 0;

  bool nested() const { return nested_block > 0; }
  int64_t blocks() const { return (n + block - 1) / block; }
  int64_t nested_blocks() const { return (blocks() + nested_block - 1) / nested_block; }
};

int64_t positive(const Field& field) {
  const auto value = field.integer();
  field.require(value > 0, "must be positive, got ", value);
  return value;
}

State state_of(std::string_view text, const std::string& name) {
  const auto who = "model: '" + name + "'";
  const auto json = parse_json<ConfigError>(text, who);
  const Field state(json, who + ": ");
  State out;
  const auto shape = state.at("shape");
  out.shape = shape.integers();
  shape.require(!out.shape.empty(), "must not be empty");
  out.n = 1;
  for (const auto size : out.shape) {
    shape.require(size > 0 && size <= std::numeric_limits<int64_t>::max() / out.n,
                  "must be positive sizes of a matrix, got ", at::IntArrayRef(out.shape));
    out.n *= size;
  }
  out.block = positive(state.at("blocksize"));
  if (state.has("nested_blocksize")) {
    out.nested_block = positive(state.at("nested_blocksize"));
    out.nested_offset = static_cast<float>(state.at("nested_offset").number());
  }
  return out;
}

class BitsAndBytes : public PackedSource {
 public:
  BitsAndBytes(std::shared_ptr<const MappedTensors> files, const Packing& how)
      : PackedSource(std::move(files), how) {
    for (const auto& name : source().names()) {
      if (const auto end = name.find(kState); end != std::string::npos) {
        const auto matrix = name.substr(0, end);
        const auto bytes = source().bytes(name);
        states_[matrix] = state_of({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, name);
        add(matrix, matrix);
      } else if (name.ends_with(kScales)) {
        const auto matrix = name.substr(0, name.size() - kScales.size()) + ".weight";
        add(matrix, matrix);
      }
    }
    check_some_packed();
  }

 protected:
  Sizes packed_shape(const std::string& name) const override {
    const auto state = states_.find(name);
    return state != states_.end() ? state->second.shape : source().shape(name);
  }

  std::vector<std::string> parts(const std::string& name) const override {
    const auto state = states_.find(name);
    std::vector<std::string> out = {name};
    if (state == states_.end()) {
      out.push_back(stem_of(name) + std::string(kScales));
      if (source().has(stem_of(name) + kFormat)) out.push_back(stem_of(name) + kFormat);
      return out;
    }
    out.insert(out.end(), {name + ".quant_map", name + ".absmax"});
    if (state->second.nested()) out.insert(out.end(), {name + ".nested_absmax", name + ".nested_quant_map"});
    return out;
  }

  void check_parts(const std::string& name) const override {
    const auto state = states_.find(name);
    return state != states_.end() ? check_codes(name, state->second) : check_rows(name);
  }

  torch::Tensor unpack(const std::string& name) const override {
    const auto state = states_.find(name);
    return state != states_.end() ? codes(name, state->second) : rows(name);
  }

 private:
  void check_codes(const std::string& name, const State& state) const {
    check_part(name, {state.n / 2 + state.n % 2, 1}, {"U8"});
    check_part(name + ".quant_map", {16}, {"F32"});
    if (!state.nested()) return check_part(name + ".absmax", {state.blocks()}, {"F32"});
    check_part(name + ".absmax", {state.blocks()}, {"U8"});
    check_part(name + ".nested_absmax", {state.nested_blocks()}, {"F32"});
    check_part(name + ".nested_quant_map", {256}, {"F32"});
  }

  void check_rows(const std::string& name) const {
    const auto stem = stem_of(name);
    check<ConfigError>(source().has(name), "model: the tensor '", name, "' of a packed matrix (",
                       packing().text(), ") is missing");
    const auto sizes = source().shape(name);
    check<ConfigError>(sizes.size() == 2, "model: '", name, "' must have two dimensions, got ",
                       at::IntArrayRef(sizes));
    check_part(name, sizes, {"I8"});
    check_part(stem + std::string(kScales), {sizes[0]}, {"F32"});
    const auto format = stem + kFormat;
    check<ConfigError>(!source().has(format) || at::all(whole_numbers(format).eq(0)).item<bool>(), "model: '",
                       format, "' must be 0, rows as they are, and says that '", name,
                       "' stands in another order");
  }

  static std::string stem_of(const std::string& name) { return name.substr(0, name.rfind('.')); }

  /// [blocks]
  torch::Tensor scales(const std::string& name, const State& state) const {
    if (!state.nested()) return source().read(name + ".absmax", torch::kFloat32);
    const auto map = source().read(name + ".nested_quant_map", torch::kFloat32);
    const auto per = source().read(name + ".nested_absmax", torch::kFloat32);
    const auto block = at::arange(state.blocks(), torch::kLong).div(state.nested_block, "floor");
    const auto values = map.index_select(0, whole_numbers(name + ".absmax").to(torch::kLong));
    return values.mul(per.index_select(0, block)).add(state.nested_offset);
  }

  torch::Tensor codes(const std::string& name, const State& state) const {
    const auto packed = source().read_bytes(name);
    const auto map = source().read(name + ".quant_map", torch::kFloat32);
    const auto of_blocks = scales(name, state);
    auto out = at::empty(state.shape, torch::kFloat32);
    const auto* const bytes = packed.const_data_ptr<uint8_t>();
    const auto *const value = map.const_data_ptr<float>(), *const scale = of_blocks.const_data_ptr<float>();
    auto* const to = out.mutable_data_ptr<float>();
    parallel_for(0, state.n, kGrain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i)
        to[i] = value[i % 2 == 0 ? bytes[i / 2] >> 4 : bytes[i / 2] & 15] * scale[i / state.block];
    });
    return out;
  }

  torch::Tensor rows(const std::string& name) const {
    const auto scale = source().read(stem_of(name) + std::string(kScales), torch::kFloat32);
    return whole_numbers(name).to(torch::kFloat32).mul_(scale.unsqueeze(1)).mul_(kPerScale);
  }

  std::unordered_map<std::string, State> states_;  // of the matrices of 4 bits
};

}  // namespace

std::shared_ptr<const TensorSource> bitsandbytes(std::shared_ptr<const MappedTensors> files,
                                                 const Packing& packing) {
  return std::make_shared<const BitsAndBytes>(std::move(files), packing);
}

}  // namespace introspect::io
