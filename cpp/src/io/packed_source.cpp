#include "io/packed_source.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::io {

PackedSource::PackedSource(std::shared_ptr<const MappedTensors> source, Packing packing)
    : source_(std::move(source)), packing_(packing) {}

void PackedSource::add(const std::string& first_part, const std::string& name) {
  first_parts_[name] = first_part;
  stands_for_[first_part] = name;
}

void PackedSource::check_some_packed() const {
  check<ConfigError>(!first_parts_.empty(), "model: config.json says that weights are packed (",
                     packing_.text(), "), and its files hold none");
}

std::vector<std::string> PackedSource::names() const {
  auto out = source_->names();
  for (auto& name : out)
    if (const auto found = stands_for_.find(name); found != stands_for_.end()) name = found->second;
  return out;
}

bool PackedSource::has(const std::string& name) const {
  return is_packed(name) || source_->has(name);
}

std::vector<int64_t> PackedSource::shape(const std::string& name) const {
  return is_packed(name) ? packed_shape(name) : source_->shape(name);
}

std::string PackedSource::dtype(const std::string& name) const {
  return is_packed(name) ? packing_.text() : source_->dtype(name);
}

int64_t PackedSource::stored_bytes(const std::string& name) const {
  if (!is_packed(name)) return source_->stored_bytes(name);
  int64_t n = 0;
  for (const auto& part : parts(name)) n += source_->stored_bytes(part);
  return n;
}

void PackedSource::check_readable(const std::string& name) const {
  is_packed(name) ? check_parts(name) : source_->check_readable(name);
}

void PackedSource::read_into(const std::string& name, torch::Tensor& out) const {
  if (!is_packed(name)) return source_->read_into(name, out);
  check_parts(name);
  const auto sizes = packed_shape(name);
  check<ShapeError>(out.defined() && out.sizes() == at::IntArrayRef(sizes), "model: '", name,
                    "' has the shape ", at::IntArrayRef(sizes), ", got a destination of ",
                    out.defined() ? out.sizes() : at::IntArrayRef{});
  const at::NoGradGuard no_grad;
  out.copy_(unpack(name));
}

std::string PackedSource::fingerprint() const {
  return source_->fingerprint();
}

void PackedSource::check_part(const std::string& name, const Sizes& wanted,
                              std::initializer_list<std::string_view> dtypes) const {
  check<ConfigError>(source_->has(name), "model: the tensor '", name, "' of a packed matrix (",
                     packing_.text(), ") is missing");
  const auto found = source_->shape(name);
  check<ConfigError>(found == wanted, "model: '", name, "' must be ", at::IntArrayRef(wanted),
                     " by the packing (", packing_.text(), "), got ", at::IntArrayRef(found));
  const auto dtype = source_->dtype(name);
  check<ConfigError>(std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end(), "model: '", name,
                     "' cannot be part of a packed matrix (", packing_.text(), "): it is stored as ", dtype);
}

torch::Tensor PackedSource::whole_numbers(const std::string& name) const {
  const auto stored = source_->dtype(name);
  auto out = at::empty(source_->shape(name), stored == "U8"    ? torch::kUInt8
                                             : stored == "I8"  ? torch::kInt8
                                             : stored == "I64" ? torch::kLong
                                                               : torch::kInt);
  const auto bytes = source_->bytes(name);
  check<IoError>(bytes.size() == out.nbytes(), "model: '", name, "' must have ", out.nbytes(), " bytes, got ",
                 bytes.size());
  if (!bytes.empty()) std::memcpy(out.mutable_data_ptr(), bytes.data(), bytes.size());
  return out;
}

}  // namespace introspect::io
