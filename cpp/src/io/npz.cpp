#include "introspect/io/npz.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include <ATen/ATen.h>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "io/encodings.h"
#include "io/fingerprint.h"
#include "io/safetensors_dtype.h"
#include "io/zip.h"

namespace introspect::io {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY", kSuffix = ".npy", kUnnamed = "arr_0";
constexpr size_t kLongestHeader = 1 << 16;

/// What the header of a .npy file says, a literal of a Python dictionary:
/// {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class Header {
 public:
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;

  Header(std::string_view text, std::string who) : rest_(text), who_(std::move(who)) {
    expect('{');
    int found = 0;
    while (!take('}')) {
      const auto key = text_value();
      expect(':');
      if (key == "descr") {
        check<IoError>(!peek('['), who_, " is a structured array; only arrays of numbers are read");
        descr = text_value();
      } else if (key == "fortran_order") {
        fortran_order = truth();
      } else if (key == "shape") {
        sizes();
      } else {
        fail();
      }
      ++found;
      if (!take(',')) {
        expect('}');
        break;
      }
    }
    spaces();
    if (found != 3 || descr.empty() || !rest_.empty()) fail();
  }

 private:
  [[noreturn]] void fail() const { throw IoError(who_ + " has no header that numpy writes"); }
  void spaces() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n')) rest_.remove_prefix(1);
  }
  bool peek(char c) {
    spaces();
    return !rest_.empty() && rest_[0] == c;
  }
  bool take(char c) {
    if (!peek(c)) return false;
    rest_.remove_prefix(1);
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail();
  }
  std::string text_value() {
    spaces();
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) fail();
    const auto end = rest_.find(rest_[0], 1);
    if (end == std::string_view::npos) fail();
    const std::string out(rest_.substr(1, end - 1));
    rest_.remove_prefix(end + 1);
    return out;
  }
  bool truth() {
    spaces();
    for (const auto& [word, value] : {std::pair<std::string_view, bool>{"True", true}, {"False", false}})
      if (rest_.starts_with(word)) {
        rest_.remove_prefix(word.size());
        return value;
      }
    fail();
  }
  void sizes() {
    expect('(');
    while (!take(')')) {
      spaces();
      int64_t size = 0;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
      if (error != std::errc() || size < 0 || shape.size() == 64) fail();
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      shape.push_back(size);
      if (!take(',')) {
        expect(')');
        break;
      }
    }
  }

  std::string_view rest_;
  std::string who_;
};

std::optional<torch::ScalarType> number_type(std::string_view kind) {
  for (const auto& [name, dtype] : {std::pair<std::string_view, torch::ScalarType>{"f2", torch::kFloat16},
                                    {"f4", torch::kFloat32},
                                    {"f8", torch::kFloat64},
                                    {"i1", torch::kInt8},
                                    {"i2", torch::kInt16},
                                    {"i4", torch::kInt32},
                                    {"i8", torch::kInt64},
                                    {"u1", torch::kUInt8},
                                    {"u2", torch::kUInt16},
                                    {"u4", torch::kUInt32},
                                    {"u8", torch::kUInt64},
                                    {"b1", torch::kBool}})
    if (kind == name) return dtype;
  return std::nullopt;
}

const char* what_is(char kind) {
  switch (kind) {
    case 'O':
      return "Python objects, which are pickles and are never read";
    case 'V':
      return "raw bytes or structures (NumPy saves bfloat16 so): save them as float32";
    case 'S':
    case 'a':
    case 'U':
      return "text";
    case 'M':
    case 'm':
      return "dates or times";
    default:
      return "values that are neither real numbers nor truths";
  }
}

}  // namespace

void NpzFile::add(const std::string& name, std::span<const std::byte> file) {
  const auto who = concat(file_->path().string(), ": the array ", excerpt(name));
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  check<IoError>(bytes.size() >= 10 && bytes.starts_with(kMagic), who, " does not begin as numpy's do");
  const auto major = static_cast<unsigned char>(bytes[6]);
  check<IoError>(major >= 1 && major <= 3, who, " must be of version 1 to 3 of the format, got ", int{major});
  const size_t count = major == 1 ? 2 : 4;
  check<IoError>(bytes.size() >= 8 + count, who, " is truncated");
  uint32_t size = 0;
  std::memcpy(&size, bytes.data() + 8, count);  // little-endian, as this machine
  check<IoError>(size <= kLongestHeader && size <= bytes.size() - 8 - count, who, " is truncated");
  const Header header(bytes.substr(8 + count, size), who);
  const auto& d = header.descr;
  const bool has_order = d[0] == '<' || d[0] == '>' || d[0] == '|' || d[0] == '=';
  const auto kind = std::string_view(d).substr(has_order ? 1 : 0);
  const auto dtype = number_type(kind);
  check<IoError>(dtype.has_value(), who, " holds ", excerpt(d), ": ", what_is(kind.empty() ? ' ' : kind[0]));
  const auto elements = count_elements(header.shape);
  const auto element = c10::elementSize(*dtype);
  const auto data = file.subspan(8 + count + size);
  check<IoError>(elements && static_cast<uint64_t>(*elements) <= data.size() / element &&
                     static_cast<uint64_t>(*elements) * element == data.size(),
                 who, " must hold the values of ", at::IntArrayRef(header.shape), " in ", element,
                 " bytes each, has ", data.size(), " bytes");
  arrays_[name] = {*dtype, d[0] == '>' && element > 1, header.fortran_order, header.shape, data};
}

std::shared_ptr<const NpzFile> NpzFile::open(const std::filesystem::path& path) {
  std::shared_ptr<NpzFile> out(new NpzFile);
  out->file_ = MappedFile::open(path);
  const auto bytes = out->file_->bytes();
  if (std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()).starts_with(kMagic)) {
    out->add(std::string(kUnnamed), bytes);
    return out;
  }
  const ZipArchive zip(out->file_, "numpy.savez");
  for (const auto& name : zip.names()) {
    check<IoError>(name.ends_with(kSuffix), path.string(), ": the entry ", excerpt(name), " is no array");
    out->add(name.substr(0, name.size() - kSuffix.size()), zip.at(name));
  }
  return out;
}

const NpzFile::Array& NpzFile::at(const std::string& name) const {
  const auto found = arrays_.find(name);
  check<IoError>(found != arrays_.end(), file_->path().string(), ": has no array '", name, "' among its ",
                 arrays_.size());
  return found->second;
}

torch::Tensor NpzFile::array(const std::string& name) const {
  const auto& array = at(name);
  file_->check_unchanged();
  auto stored = array.shape;
  if (array.is_fortran) std::ranges::reverse(stored);
  auto out = at::empty(stored, array.dtype);
  if (!array.bytes.empty()) std::memcpy(out.mutable_data_ptr(), array.bytes.data(), array.bytes.size());
  if (array.is_swapped && out.numel() > 0) {
    const auto size = static_cast<int64_t>(c10::elementSize(array.dtype));
    out = out.view({-1}).view(torch::kUInt8).view({-1, size}).flip(1).contiguous();
    out = out.view({-1}).view(array.dtype).view(stored);
  }
  if (array.dtype == torch::kBool)  // a byte that is neither 0 nor 1 is no truth that a compiler may meet
    out = out.view(torch::kUInt8).ne(0);
  if (!array.is_fortran) return out;
  std::vector<int64_t> order(stored.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(order.size() - 1 - i);
  return out.permute(order).contiguous();
}

std::vector<std::string> NpzFile::names() const {
  std::vector<std::string> out;
  for (const auto& [name, array] : arrays_) out.push_back(name);
  return out;
}

bool NpzFile::has(const std::string& name) const {
  return arrays_.contains(name);
}

std::vector<int64_t> NpzFile::shape(const std::string& name) const {
  return at(name).shape;
}

int64_t NpzFile::stored_bytes(const std::string& name) const {
  return static_cast<int64_t>(at(name).bytes.size());
}

std::string NpzFile::dtype(const std::string& name) const {
  const auto dtype = at(name).dtype;
  const auto word = safetensors_word(dtype);
  return word ? std::string(*word) : std::string(c10::toString(dtype));
}

void NpzFile::check_readable(const std::string& name) const {
  check<ConfigError>(c10::isFloatingType(at(name).dtype), file_->path().string(), ": '", name,
                     "' must hold floats, got ", dtype(name));
}

void NpzFile::read_into(const std::string& name, torch::Tensor& out) const {
  check_readable(name);
  check<ShapeError>(out.defined() && out.device().is_cpu() && out.is_contiguous() &&
                        out.is_floating_point() && out.sizes() == at::IntArrayRef(at(name).shape),
                    file_->path().string(), ": '", name, "' is read into a contiguous CPU tensor of floats ",
                    at::IntArrayRef(at(name).shape), ", got ", out.defined() ? out.toString() : "none");
  const at::NoGradGuard no_grad;
  out.copy_(array(name));
}

std::string NpzFile::fingerprint() const {
  std::vector<std::string> words;
  words.reserve(arrays_.size());
  std::vector<TensorSample> samples;
  for (const auto& [name, array] : arrays_) {
    const auto n = std::min(array.bytes.size(), kSampledBytes);
    words.push_back(dtype(name));
    samples.push_back(
        {name, words.back(), array.shape, array.bytes.size(), array.bytes.first(n), array.bytes.last(n)});
  }
  return fingerprint_of(samples);
}

}  // namespace introspect::io
