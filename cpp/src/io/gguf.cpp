#include "introspect/io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string_view>
#include <utility>

#include "introspect/core/check.h"
#include "io/encodings.h"
#include "io/gguf_types.h"
#include "io/utf8.h"

namespace introspect::io {
namespace {

/// A position in the file that never passes its end. Everything it reads is checked before anything is allocated.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file, size_t position = 0) : file_(file), position_(position) {}

  size_t position() const { return position_; }
  size_t left() const { return file_.bytes().size() - position_; }

  template <typename... What>
  void require(bool ok, const What&... what) const {
    check<IoError>(ok, file_.path().string(), ": at byte ", position_, ": ", what...);
  }

  /// Steps over `n` bytes and returns where they were.
  const std::byte* skip(uint64_t n, const char* what) {
    require(n <= left(), what, " of ", n, " bytes goes beyond the end of the file, ", left(), " are left");
    const auto* bytes = file_.bytes().data() + position_;
    position_ += n;
    return bytes;
  }

  template <typename T>
  T number(const char* what) {
    T value;
    std::memcpy(&value, skip(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string_view text(const char* what) {
    const auto size = number<uint64_t>(what);
    return {reinterpret_cast<const char*>(skip(size, what)), size};
  }

  /// A count of things that take at least `smallest` bytes each, so that it cannot ask for more memory than the file has.
  uint64_t count(size_t smallest, const char* what) {
    const auto n = number<uint64_t>(what);
    require(n <= left() / smallest, "count of ", what, " must fit in the ", left(), " bytes left, claims ",
            n);
    return n;
  }

  /// A key or a tensor's name.
  std::string name(const char* what) {
    const auto bytes = text(what);
    require(!bytes.empty() && is_utf8(bytes), what, " must be UTF-8 and not empty");
    return std::string(bytes);
  }

 private:
  const MappedFile& file_;
  size_t position_;
};

GgufField read_field(Cursor& cursor) {
  GgufField field{.key = cursor.name("metadata key")};
  field.type = cursor.number<uint32_t>("metadata type");
  field.is_array = static_cast<GgufType>(field.type) == GgufType::kArray;
  if (field.is_array) field.type = cursor.number<uint32_t>("metadata type");
  const auto type = static_cast<GgufType>(field.type);
  cursor.require(type != GgufType::kArray, "'", field.key, "' is an array of arrays, which is not supported");
  const auto size = scalar_size(type);
  cursor.require(size || type == GgufType::kString, "'", field.key, "' has the unknown metadata type ",
                 field.type);
  // A string takes at least the eight bytes of its length.
  if (field.is_array) field.count = cursor.count(size.value_or(8), "array elements");
  field.offset = cursor.position();
  if (size) {
    cursor.skip(field.count * *size, "metadata value");
  } else {
    for (uint64_t i = 0; i < field.count; ++i) cursor.text("metadata string");
  }
  return field;
}

/// A tensor's entry, its offset still counted from the start of the data.
StoredTensor read_entry(Cursor& cursor, const std::shared_ptr<const MappedFile>& file) {
  StoredTensor tensor{.name = cursor.name("tensor name"), .shape = {}, .dtype = {}, .file = file};
  const auto n_dims = cursor.number<uint32_t>("number of dimensions");
  cursor.require(n_dims <= kGgufMaxDims, "'", tensor.name, "' must have at most 4 dimensions, claims ",
                 n_dims);
  for (uint32_t i = 0; i < n_dims; ++i) {
    tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(cursor.number<uint64_t>("dimension")));
  }
  const auto n_elements = count_elements(tensor.shape);
  cursor.require(n_elements.has_value(), "'", tensor.name,
                 "' has dimensions whose product does not fit in 64 bits");
  const auto encoding = ggml_encoding(cursor.number<uint32_t>("tensor type"));
  tensor.dtype = encoding.name;
  tensor.offset = cursor.number<uint64_t>("tensor offset");
  if (encoding.layout) {
    const auto [block_elements, block_bytes] = *encoding.layout;
    const int64_t row = tensor.shape.empty() ? 1 : tensor.shape.back();
    cursor.require(row % block_elements == 0, "'", tensor.name, "' is ", tensor.dtype,
                   ": rows must be a multiple of ", block_elements, ", got ", row);
    int64_t size = 0;
    cursor.require(!__builtin_mul_overflow(*n_elements / block_elements, block_bytes, &size), "'",
                   tensor.name, "' must have fewer than 2^63 bytes");
    tensor.size = static_cast<size_t>(size);
  }
  return tensor;
}

/// Turns offsets into positions in the file and checks that each tensor lies inside it and on no other.
void place(std::vector<StoredTensor>& tensors, const MappedFile& file, size_t header_end, size_t alignment) {
  const size_t file_size = file.bytes().size();
  const size_t data_start = (header_end + alignment - 1) / alignment * alignment;
  check<IoError>(tensors.empty() || data_start <= file_size, file.path().string(), ": ends at byte ",
                 file_size, ", before the tensors' data begin at ", data_start);
  std::vector<const StoredTensor*> by_offset;
  for (auto& tensor : tensors) {
    const auto require = [&](bool ok, const auto&... what) {
      check<IoError>(ok, file.path().string(), ": '", tensor.name, "' ", what...);
    };
    require(tensor.offset % alignment == 0, "must begin at a multiple of ", alignment, ", begins at ",
            tensor.offset);
    const size_t data_size = file_size - data_start;
    require(tensor.offset <= data_size && tensor.size <= data_size - tensor.offset, "of ", tensor.size,
            " bytes at offset ", tensor.offset, " goes beyond the end of the file's data, ", data_size,
            " bytes");
    tensor.offset += data_start;
    if (tensor.size > 0) by_offset.push_back(&tensor);
  }
  std::ranges::sort(by_offset, {}, &StoredTensor::offset);
  for (size_t i = 1; i < by_offset.size(); ++i) {
    const auto &before = *by_offset[i - 1], &after = *by_offset[i];
    check<IoError>(before.offset + before.size <= after.offset, file.path().string(), ": '", before.name,
                   "' and '", after.name, "' overlap");
  }
}

size_t alignment_of(const MappedFile& file, const std::vector<GgufField>& fields) {
  const auto found = std::ranges::find(fields, "general.alignment", &GgufField::key);
  if (found == fields.end()) return kGgufDefaultAlignment;
  const bool is_u32 = static_cast<GgufType>(found->type) == GgufType::kUint32 && !found->is_array;
  check<IoError>(is_u32, file.path().string(), ": general.alignment must be a uint32");
  const auto alignment = Cursor(file, found->offset).number<uint32_t>("alignment");
  check<IoError>(std::has_single_bit(alignment), file.path().string(),
                 ": general.alignment must be a power of two, got ", alignment);
  return alignment;
}

template <typename Stored, typename Value>
GgufValue numbers(Cursor& cursor, const GgufField& field) {
  if (!field.is_array) return static_cast<Value>(cursor.number<Stored>("value"));
  std::vector<Value> values(field.count);
  for (uint64_t i = 0; i < field.count; ++i) values[i] = static_cast<Value>(cursor.number<Stored>("value"));
  return values;
}

GgufValue unsigned_numbers(Cursor& cursor, const GgufField& field) {
  if (!field.is_array) {
    const auto value = cursor.number<uint64_t>("value");
    return std::in_range<int64_t>(value) ? GgufValue(static_cast<int64_t>(value)) : GgufValue(value);
  }
  std::vector<int64_t> values(field.count);
  for (auto& value : values) {
    const auto stored = cursor.number<uint64_t>("value");
    cursor.require(std::in_range<int64_t>(stored), "'", field.key, "' must hold integers below 2^63");
    value = static_cast<int64_t>(stored);
  }
  return values;
}

std::vector<std::string_view> text_views(const MappedFile& file, const GgufField& field) {
  Cursor cursor(file, field.offset);
  std::vector<std::string_view> values;
  values.reserve(field.count);
  for (uint64_t i = 0; i < field.count; ++i) {
    values.push_back(cursor.text("string"));
    cursor.require(is_utf8(values.back()), "'", field.key, "' must be UTF-8");
  }
  return values;
}

GgufValue texts(const MappedFile& file, const GgufField& field) {
  const auto views = text_views(file, field);
  if (!field.is_array) return std::string(views.front());
  return std::vector<std::string>(views.begin(), views.end());
}

GgufValue booleans(Cursor& cursor, const GgufField& field) {
  if (!field.is_array) return cursor.number<uint8_t>("value") != 0;
  std::vector<bool> values(field.count);
  for (uint64_t i = 0; i < field.count; ++i) values[i] = cursor.number<uint8_t>("value") != 0;
  return values;
}

GgufValue decode_field(const MappedFile& file, const GgufField& field) {
  Cursor cursor(file, field.offset);
  switch (static_cast<GgufType>(field.type)) {
    case GgufType::kUint8:
      return numbers<uint8_t, int64_t>(cursor, field);
    case GgufType::kInt8:
      return numbers<int8_t, int64_t>(cursor, field);
    case GgufType::kUint16:
      return numbers<uint16_t, int64_t>(cursor, field);
    case GgufType::kInt16:
      return numbers<int16_t, int64_t>(cursor, field);
    case GgufType::kUint32:
      return numbers<uint32_t, int64_t>(cursor, field);
    case GgufType::kInt32:
      return numbers<int32_t, int64_t>(cursor, field);
    case GgufType::kUint64:
      return unsigned_numbers(cursor, field);
    case GgufType::kInt64:
      return numbers<int64_t, int64_t>(cursor, field);
    case GgufType::kFloat32:
      return numbers<float, double>(cursor, field);
    case GgufType::kFloat64:
      return numbers<double, double>(cursor, field);
    case GgufType::kBool:
      return booleans(cursor, field);
    default:
      return texts(file, field);
  }
}

template <typename T>
std::optional<T> take(GgufValue&& value) {
  auto* held = std::get_if<T>(&value);
  return held == nullptr ? std::nullopt : std::optional<T>(std::move(*held));
}

}  // namespace

std::shared_ptr<const GgufFile> GgufFile::open(const std::filesystem::path& path) {
  auto file = MappedFile::open(path);
  Cursor cursor(*file);
  cursor.require(cursor.left() >= 4 && cursor.number<uint32_t>("magic") == kGgufMagic,
                 "a GGUF file begins with 'GGUF'");
  const auto version = cursor.number<uint32_t>("version");
  check<ConfigError>(version == 2 || version == 3, path.string(),
                     ": GGUF version must be 2 or 3, little-endian, got ", version);
  const auto n_tensors = cursor.number<uint64_t>("number of tensors");
  // The smallest metadata entry: length of the key, one letter, type, one byte of value.
  const auto n_fields = cursor.count(8 + 1 + 4 + 1, "metadata entries");
  std::vector<GgufField> fields;
  for (uint64_t i = 0; i < n_fields; ++i) fields.push_back(read_field(cursor));

  // The smallest tensor entry: length of the name, one letter, number of dimensions, type, offset.
  cursor.require(n_tensors <= cursor.left() / (8 + 1 + 4 + 4 + 8), "count of tensors must fit in the ",
                 cursor.left(), " bytes left, claims ", n_tensors);
  std::vector<StoredTensor> tensors;
  for (uint64_t i = 0; i < n_tensors; ++i) tensors.push_back(read_entry(cursor, file));
  place(tensors, *file, cursor.position(), alignment_of(*file, fields));
  return std::shared_ptr<const GgufFile>(
      new GgufFile(std::move(file), version, std::move(fields), std::move(tensors), cursor.position()));
}

GgufFile::GgufFile(std::shared_ptr<const MappedFile> file, uint32_t version, std::vector<GgufField> fields,
                   std::vector<StoredTensor> tensors, size_t header_bytes)
    : MappedTensors(file->path(), std::move(tensors)),
      file_(std::move(file)),
      version_(version),
      fields_(std::move(fields)),
      header_bytes_(header_bytes) {
  for (size_t i = 0; i < fields_.size(); ++i) {
    check<IoError>(field_index_.emplace(fields_[i].key, i).second, path().string(), ": holds the key '",
                   fields_[i].key, "' twice");
  }
}

std::vector<std::string> GgufFile::keys() const {
  std::vector<std::string> keys;
  keys.reserve(fields_.size());
  for (const auto& field : fields_) keys.push_back(field.key);
  return keys;
}

bool GgufFile::has_key(const std::string& key) const {
  return field_index_.contains(key);
}

const GgufField& GgufFile::field(const std::string& key) const {
  const auto found = field_index_.find(key);
  check<ConfigError>(found != field_index_.end(), path().string(), ": has no metadata key '", key, "'");
  return fields_[found->second];
}

GgufValue GgufFile::value(const std::string& key) const {
  return decode_field(*file_, field(key));
}

std::map<std::string, GgufValue> GgufFile::metadata() const {
  std::map<std::string, GgufValue> metadata;
  for (const auto& field : fields_) metadata.emplace(field.key, decode_field(*file_, field));
  return metadata;
}

ConfigError GgufFile::wrong_type(const std::string& key, const char* wanted) const {
  const auto& found = field(key);
  return ConfigError(concat(path().string(), ": metadata '", key, "' must be ", wanted, ", is ",
                            found.is_array ? "an array of " : "a value of ", "GGUF type ", found.type));
}

std::string GgufFile::get_string(const std::string& key) const {
  if (auto text = take<std::string>(value(key))) return *std::move(text);
  throw wrong_type(key, "a string");
}

int64_t GgufFile::get_int(const std::string& key) const {
  if (const auto number = take<int64_t>(value(key))) return *number;
  throw wrong_type(key, "an integer below 2^63");
}

double GgufFile::get_float(const std::string& key) const {
  const auto held = value(key);
  if (const auto* number = std::get_if<double>(&held)) return *number;
  if (const auto* number = std::get_if<int64_t>(&held)) return static_cast<double>(*number);
  throw wrong_type(key, "a number");
}

bool GgufFile::get_bool(const std::string& key) const {
  if (const auto truth = take<bool>(value(key))) return *truth;
  throw wrong_type(key, "a boolean");
}

std::vector<std::string> GgufFile::get_strings(const std::string& key) const {
  if (auto texts = take<std::vector<std::string>>(value(key))) return *std::move(texts);
  throw wrong_type(key, "an array of strings");
}

std::vector<std::string_view> GgufFile::get_texts(const std::string& key) const {
  const auto& found = field(key);
  if (!found.is_array || static_cast<GgufType>(found.type) != GgufType::kString)
    throw wrong_type(key, "an array of strings");
  return text_views(*file_, found);
}

std::vector<int64_t> GgufFile::get_ints(const std::string& key) const {
  auto held = value(key);
  if (auto* integers = std::get_if<std::vector<int64_t>>(&held)) return std::move(*integers);
  if (const auto* truths = std::get_if<std::vector<bool>>(&held)) return {truths->begin(), truths->end()};
  throw wrong_type(key, "an array of integers");
}

std::vector<double> GgufFile::get_floats(const std::string& key) const {
  auto held = value(key);
  if (auto* floats = std::get_if<std::vector<double>>(&held)) return std::move(*floats);
  if (const auto* integers = std::get_if<std::vector<int64_t>>(&held))
    return {integers->begin(), integers->end()};
  throw wrong_type(key, "an array of numbers");
}

void GgufFile::let_go_metadata() const {
  file_->let_go(0, header_bytes_);
}

std::string GgufFile::get_string_or(const std::string& key, std::string otherwise) const {
  return has_key(key) ? get_string(key) : std::move(otherwise);
}

int64_t GgufFile::get_int_or(const std::string& key, int64_t otherwise) const {
  return has_key(key) ? get_int(key) : otherwise;
}

double GgufFile::get_float_or(const std::string& key, double otherwise) const {
  return has_key(key) ? get_float(key) : otherwise;
}

bool GgufFile::get_bool_or(const std::string& key, bool otherwise) const {
  return has_key(key) ? get_bool(key) : otherwise;
}

}  // namespace introspect::io
