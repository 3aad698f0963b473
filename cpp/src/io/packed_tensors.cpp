#include "io/packed_tensors.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "introspect/core/check.h"
#include "introspect/io/mapped_tensors.h"

namespace introspect::io {

namespace {

using Method = Packing::Method;
using Sizes = std::vector<int64_t>;

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

class PackedTensors : public TensorSource {
 public:
  PackedTensors(std::shared_ptr<const MappedTensors> source, Packing packing)
      : source_(std::move(source)), packing_(packing) {
    for (const auto& name : source_->names())
      if (const auto dense = dense_name(name); !dense.empty()) packed_.insert(dense);
    check<ConfigError>(!packed_.empty(), "model: config.json says that weights are packed (", packing_.text(),
                       "), and its files hold none");
  }

  std::vector<std::string> names() const override {
    auto out = source_->names();
    for (auto& name : out)
      if (const auto dense = dense_name(name); !dense.empty()) name = dense;
    return out;
  }
  bool has(const std::string& name) const override { return is_packed(name) || source_->has(name); }

  Sizes shape(const std::string& name) const override {
    if (!is_packed(name)) return source_->shape(name);
    const auto stored = source_->shape(first_part(name));
    if (packing_.method == Method::mxfp4)
      return stored.size() == 4 ? Sizes{stored[0], stored[2] * kMxBlock, stored[1]} : stored;
    if (stored.size() != 2) return stored;
    return packing_.method == Method::awq ? Sizes{stored[1] * kNibbles, stored[0]}
                                          : Sizes{stored[1], stored[0] * per_word()};
  }

  std::string dtype(const std::string& name) const override {
    return is_packed(name) ? packing_.text() : source_->dtype(name);
  }

  void check_readable(const std::string& name) const override {
    if (!is_packed(name)) return source_->check_readable(name);
    if (packing_.method == Method::mxfp4) {
      const auto blocks = source_->shape(first_part(name));
      check<ConfigError>(blocks.size() == 4 && blocks[3] == kMxBlock / 2, "model: '", first_part(name),
                         "' must be [E, n, m, 16], got ", at::IntArrayRef(blocks));
      check_part(first_part(name), blocks, {"U8"});
      check_part(name + "_scales", {blocks[0], blocks[1], blocks[2]}, {"U8"});
      return;
    }
    const auto sizes = shape(name);
    check<ConfigError>(source_->shape(first_part(name)).size() == 2 && sizes[0] > 0 && sizes[1] > 0,
                       "model: '", first_part(name), "' must have two dimensions");
    const int64_t out = sizes[0], in = sizes[1], groups = n_groups(name, in);
    check<ConfigError>(out % per_word() == 0, "model: '", name, "' must have a multiple of ", per_word(),
                       " outputs, got ", out);
    check_part(first_part(name), source_->shape(first_part(name)), {"I32"});
    check_part(part(name, ".qzeros"), {groups, out / per_word()}, {"I32"});
    check_part(part(name, ".scales"), {groups, out}, {"F16", "BF16", "F32"});
    source_->check_readable(part(name, ".scales"));
    if (has_order(name)) check_part(part(name, ".g_idx"), {in}, {"I32", "I64"});
  }

  void read_into(const std::string& name, torch::Tensor& out) const override {
    if (!is_packed(name)) return source_->read_into(name, out);
    check_readable(name);
    const auto sizes = shape(name);
    check<ShapeError>(out.defined() && out.sizes() == at::IntArrayRef(sizes), "model: '", name,
                      "' has the shape ", at::IntArrayRef(sizes), ", got a destination of ",
                      out.defined() ? out.sizes() : at::IntArrayRef{});
    const at::NoGradGuard no_grad;
    switch (packing_.method) {
      case Method::gptq:
        out.copy_(gptq(name, sizes[1]));
        return;
      case Method::awq:
        out.copy_(awq(name, sizes[1]));
        return;
      case Method::mxfp4:
        out.copy_(mxfp4(name));
    }
  }

  std::string fingerprint() const override { return source_->fingerprint(); }

 private:
  int64_t per_word() const { return kWordBits / packing_.bits; }
  bool is_packed(const std::string& name) const { return packed_.contains(name); }
  bool has_order(const std::string& name) const {
    return packing_.method == Method::gptq && source_->has(part(name, ".g_idx"));
  }

  /// The name that a packed tensor's first part stands for; "" for anything else's.
  std::string dense_name(const std::string& name) const {
    const auto end = packing_.method == Method::mxfp4 ? kBlocks : kQweight;
    if (!name.ends_with(end)) return {};
    const auto stem = name.substr(0, name.size() - end.size());
    return packing_.method == Method::mxfp4 ? stem : stem + std::string(kWeight);
  }
  static std::string part(const std::string& name, std::string_view end) {
    return name.substr(0, name.size() - kWeight.size()) + std::string(end);
  }
  std::string first_part(const std::string& name) const {
    return packing_.method == Method::mxfp4 ? name + std::string(kBlocks) : part(name, kQweight);
  }

  int64_t group_size(int64_t in) const { return packing_.group_size > 0 ? packing_.group_size : in; }

  int64_t n_groups(const std::string& name, int64_t in) const {
    const int64_t size = group_size(in);
    check<ConfigError>(has_order(name) || in % size == 0, "model: '", name, "' has ", in,
                       " inputs, which is no multiple of group_size ", size);
    return (in + size - 1) / size;
  }

  void check_part(const std::string& name, const Sizes& wanted,
                  std::initializer_list<std::string_view> dtypes) const {
    check<ConfigError>(source_->has(name), "model: the tensor '", name, "' of a packed matrix (",
                       packing_.text(), ") is missing");
    const auto found = source_->shape(name);
    check<ConfigError>(found == wanted, "model: '", name, "' must be ", at::IntArrayRef(wanted),
                       " by the packing (", packing_.text(), "), got ", at::IntArrayRef(found));
    const auto dtype = source_->dtype(name);
    check<ConfigError>(std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end(), "model: '", name,
                       "' cannot be part of a packed matrix (", packing_.text(), "): it is stored as ",
                       dtype);
  }

  torch::Tensor whole_numbers(const std::string& name) const {
    const auto stored = source_->dtype(name);
    auto out = at::empty(source_->shape(name), stored == "U8"    ? torch::kUInt8
                                               : stored == "I64" ? torch::kLong
                                                                 : torch::kInt);
    const auto bytes = source_->bytes(name);
    check<IoError>(bytes.size() == out.nbytes(), "model: '", name, "' must have ", out.nbytes(),
                   " bytes, got ", bytes.size());
    if (!bytes.empty()) std::memcpy(out.mutable_data_ptr(), bytes.data(), bytes.size());
    return out;
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
    const auto scales = source_->read(part(name, ".scales"), torch::kFloat32);
    const auto group = groups(name, q.size(0));
    const auto difference = (q - zeros.index_select(0, group)).to(torch::kFloat32);
    return difference.mul_(scales.index_select(0, group)).t();
  }

  torch::Tensor gptq(const std::string& name, int64_t in) const {
    const auto words = whole_numbers(first_part(name));
    const auto q = fields(words, packing_.bits).transpose(1, 2).reshape({in, words.size(1)});
    const auto zeros = fields(whole_numbers(part(name, ".qzeros")), packing_.bits).flatten(1);
    return scaled(name, q, zeros + packing_.zero_offset);
  }

  torch::Tensor awq(const std::string& name, int64_t) const {
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

  std::shared_ptr<const MappedTensors> source_;
  Packing packing_;
  std::unordered_set<std::string> packed_;
};

}  // namespace

std::string Packing::text() const {
  if (method == Method::mxfp4) return "mxfp4";
  return method == Method::awq ? concat("awq 4 ", group_size)
                               : concat("gptq ", bits, " ", group_size, " ", zero_offset);
}

std::shared_ptr<const TensorSource> unpacked(std::shared_ptr<const TensorSource> source,
                                             const Packing& packing) {
  auto mapped = std::dynamic_pointer_cast<const MappedTensors>(std::move(source));
  check<ConfigError>(mapped != nullptr, "model: packed weights (", packing.text(),
                     ") are read from files only");
  return std::make_shared<const PackedTensors>(std::move(mapped), packing);
}

}  // namespace introspect::io
