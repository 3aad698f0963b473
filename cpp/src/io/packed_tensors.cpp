#include "io/packed_tensors.h"

#include <string_view>
#include <utility>

#include "introspect/core/check.h"
#include "io/bitsandbytes.h"
#include "io/packed_source.h"

namespace introspect::io {

namespace {

using Method = Packing::Method;

constexpr std::string_view kWeight = ".weight", kQweight = ".qweight", kBlocks = "_blocks";
constexpr int64_t kWordBits = 32, kNibbles = 8, kMxBlock = 32;

/// Of eight neighbouring columns, the nibble that holds each.
constexpr int64_t kAwqNibbles[kNibbles] = {0, 4, 1, 5, 2, 6, 3, 7};

/// The 4-bit floats of one sign bit, two of exponent and one of mantissa.
constexpr float kFp4[16] = {0, .5F, 1, 1.5F, 2, 3, 4, 6, -0.F, -.5F, -1, -1.5F, -2, -3, -4, -6};

/// Fields of `bits` bits of words [n, m], the lowest first: [n, m, 32 / bits].
torch::Tensor fields(const torch::Tensor& words, int64_t bits) {
  const auto shifts = at::arange(0, kWordBits, bits, words.options());
  return at::bitwise_and(at::bitwise_right_shift(words.unsqueeze(-1), shifts), (int64_t{1} << bits) - 1);
}

/// GPTQ, AWQ and MXFP4: one tensor of codes, whose name tells what it stands for.
class PackedCodes : public PackedSource {
 public:
  PackedCodes(std::shared_ptr<const MappedTensors> files, const Packing& how)
      : PackedSource(std::move(files), how) {
    const auto end = method() == Method::mxfp4 ? kBlocks : kQweight;
    for (const auto& name : source().names())
      if (name.ends_with(end)) {
        const auto stem = name.substr(0, name.size() - end.size());
        add(name, method() == Method::mxfp4 ? stem : stem + std::string(kWeight));
      }
    check_some_packed();
  }

 protected:
  Sizes packed_shape(const std::string& name) const override {
    const auto stored = source().shape(first_part(name));
    if (method() == Method::mxfp4)
      return stored.size() == 4 ? Sizes{stored[0], stored[2] * kMxBlock, stored[1]} : stored;
    if (stored.size() != 2) return stored;
    return method() == Method::awq ? Sizes{stored[1] * kNibbles, stored[0]}
                                   : Sizes{stored[1], stored[0] * per_word()};
  }

  std::vector<std::string> parts(const std::string& name) const override {
    if (method() == Method::mxfp4) return {first_part(name), name + "_scales"};
    std::vector<std::string> out = {first_part(name), part(name, ".qzeros"), part(name, ".scales")};
    if (has_order(name)) out.push_back(part(name, ".g_idx"));
    return out;
  }

  void check_parts(const std::string& name) const override {
    const auto codes = source().shape(first_part(name));
    if (method() == Method::mxfp4) {
      check<ConfigError>(codes.size() == 4 && codes[3] == kMxBlock / 2, "model: '", first_part(name),
                         "' must be [E, n, m, 16], got ", at::IntArrayRef(codes));
      check_part(first_part(name), codes, {"U8"});
      check_part(name + "_scales", {codes[0], codes[1], codes[2]}, {"U8"});
      return;
    }
    const auto sizes = packed_shape(name);
    check<ConfigError>(codes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, "model: '", first_part(name),
                       "' must have two dimensions");
    const int64_t out = sizes[0], in = sizes[1], groups = n_groups(name, in);
    check<ConfigError>(out % per_word() == 0, "model: '", name, "' must have a multiple of ", per_word(),
                       " outputs, got ", out);
    check_part(first_part(name), codes, {"I32"});
    check_part(part(name, ".qzeros"), {groups, out / per_word()}, {"I32"});
    check_part(part(name, ".scales"), {groups, out}, {"F16", "BF16", "F32"});
    if (has_order(name)) check_part(part(name, ".g_idx"), {in}, {"I32", "I64"});
  }

  torch::Tensor unpack(const std::string& name) const override {
    if (method() == Method::mxfp4) return mxfp4(name);
    const int64_t in = packed_shape(name)[1];
    return method() == Method::awq ? awq(name) : gptq(name, in);
  }

 private:
  int64_t per_word() const { return kWordBits / packing().bits; }
  Method method() const { return packing().method; }
  bool has_order(const std::string& name) const {
    return packing().method == Method::gptq && source().has(part(name, ".g_idx"));
  }

  static std::string part(const std::string& name, std::string_view end) {
    return name.substr(0, name.size() - kWeight.size()) + std::string(end);
  }
  int64_t group_size(int64_t in) const { return packing().group_size > 0 ? packing().group_size : in; }

  int64_t n_groups(const std::string& name, int64_t in) const {
    const int64_t size = group_size(in);
    check<ConfigError>(has_order(name) || in % size == 0, "model: '", name, "' has ", in,
                       " inputs, which is no multiple of group_size ", size);
    return (in + size - 1) / size;
  }

  /// The group of each input.
  torch::Tensor groups(const std::string& name, int64_t in) const {
    if (!has_order(name)) return at::arange(in, torch::kLong).div(group_size(in), "floor");
    const auto out = whole_numbers(part(name, ".g_idx")).to(torch::kLong);
    const int64_t n = n_groups(name, in), low = out.min().item<int64_t>(), high = out.max().item<int64_t>();
    check<ConfigError>(low >= 0 && high < n, "model: '", part(name, ".g_idx"),
                       "' must hold groups from 0 to ", n - 1, ", got ", low, " to ", high);
    return out;
  }

  /// scale (q - zero) of q [in, out] and of zeros [groups, out], as [out, in].
  torch::Tensor scaled(const std::string& name, const torch::Tensor& q, const torch::Tensor& zeros) const {
    const auto scales = source().read(part(name, ".scales"), torch::kFloat32);
    const auto group = groups(name, q.size(0));
    const auto difference = (q - zeros.index_select(0, group)).to(torch::kFloat32);
    return difference.mul_(scales.index_select(0, group)).t();
  }

  torch::Tensor gptq(const std::string& name, int64_t in) const {
    const auto words = whole_numbers(first_part(name));
    const auto q = fields(words, packing().bits).transpose(1, 2).reshape({in, words.size(1)});
    const auto zeros = fields(whole_numbers(part(name, ".qzeros")), packing().bits).flatten(1);
    return scaled(name, q, zeros + packing().zero_offset);
  }

  torch::Tensor awq(const std::string& name) const {
    const auto nibbles = at::tensor(at::ArrayRef<int64_t>(kAwqNibbles), torch::kLong);
    const auto columns = [&](const std::string& from) {
      return fields(whole_numbers(from), 4).index_select(2, nibbles).flatten(1);
    };
    return scaled(name, columns(first_part(name)), columns(part(name, ".qzeros")));
  }

  torch::Tensor mxfp4(const std::string& name) const {
    const auto blocks = whole_numbers(first_part(name));  // [E, out, m, 16]
    const auto scales = whole_numbers(name + "_scales").to(torch::kInt) - 127;
    const auto table = at::tensor(at::ArrayRef<float>(kFp4), torch::kFloat32);
    const auto codes =
        at::stack({at::bitwise_and(blocks, 15), at::bitwise_right_shift(blocks, 4)}, -1).flatten(3);
    auto values = table.index_select(0, codes.flatten().to(torch::kLong)).view(codes.sizes());
    values = at::ldexp(values, scales.unsqueeze(-1));
    return values.flatten(2).transpose(1, 2);
  }
};

}  // namespace

std::string Packing::text() const {
  switch (method) {
    case Method::mxfp4:
      return "mxfp4";
    case Method::bitsandbytes:
      return "bitsandbytes";
    case Method::awq:
      return concat("awq 4 ", group_size);
    case Method::gptq:
      return concat("gptq ", bits, " ", group_size, " ", zero_offset);
  }
  throw ConfigError("Packing: a method that there is not");
}

std::shared_ptr<const TensorSource> unpacked(std::shared_ptr<const TensorSource> source,
                                             const Packing& packing) {
  auto mapped = std::dynamic_pointer_cast<const MappedTensors>(std::move(source));
  check<ConfigError>(mapped != nullptr, "model: packed weights (", packing.text(),
                     ") are read from files only");
  if (packing.method == Method::bitsandbytes) return bitsandbytes(std::move(mapped), packing);
  return std::make_shared<const PackedCodes>(std::move(mapped), packing);
}

}  // namespace introspect::io
