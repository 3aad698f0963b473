#include "introspect/io/torch_zip.h"

#include <algorithm>
#include <cstring>

#include "introspect/core/check.h"

#include "core/dense.h"
#include "core/excerpt.h"
#include "io/unpickle.h"
#include "io/utf8.h"
#include "io/zip.h"

namespace introspect::io {
namespace {

constexpr std::string_view kPickle = "data.pkl";

/// The folder that everything lies in: "archive/".
std::string root_of(const ZipArchive& zip) {
  for (const auto& name : zip.names())
    if (name == kPickle || name.ends_with(concat("/", kPickle)))
      return name.substr(0, name.size() - kPickle.size());
  throw IoError(zip.path() + ": holds no data.pkl: it is a zip file, and none of torch.save");
}

std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A pickle of protocol 2 of plain values, and the tensors that it refers to.
class Pickler {
 public:
  Pickler() { bytes_ = "\x80\x02"; }

  void add(const TorchValue& value) {
    std::visit([&](const auto& held) { write(held); }, value.held);
  }
  std::string finish() { return bytes_ + "."; }
  const std::vector<torch::Tensor>& storages() const { return storages_; }

 private:
  template <typename T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void global(const std::string& module, const std::string& name) {
    bytes_ += "c" + module + "\n" + name + "\n";
  }

  void write(std::monostate) { bytes_ += "N"; }
  void write(bool value) { bytes_ += value ? "\x88" : "\x89"; }
  void write(int64_t value) {
    if (value == static_cast<int32_t>(value)) {
      bytes_ += "J";
      number(static_cast<int32_t>(value));
    } else {
      bytes_ += "\x8a\x08";
      number(value);
    }
  }
  void write(double value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    bytes_ += "G";
    for (int shift = 56; shift >= 0; shift -= 8) bytes_.push_back(static_cast<char>(bits >> shift & 0xff));
  }
  void write(const std::string& value) {
    check<std::invalid_argument>(is_utf8(value), "save_torch_zip: text must be UTF-8, got ", excerpt(value));
    bytes_ += "X";
    number(static_cast<uint32_t>(value.size()));
    bytes_ += value;
  }
  void write(const std::shared_ptr<const TorchValue::List>& list) {
    bytes_ += "](";
    for (const auto& item : *list) add(item);
    bytes_ += "e";
  }
  void write(const std::shared_ptr<const TorchValue::Tuple>& tuple) {
    bytes_ += "(";
    for (const auto& item : tuple->items) add(item);
    bytes_ += "t";
  }
  void write(const std::shared_ptr<const TorchValue::Dict>& dict) {
    bytes_ += "}(";
    for (const auto& [key, value] : *dict) {
      add(key);
      add(value);
    }
    bytes_ += "u";
  }
  void write(const torch::Tensor& tensor) {
    check_dense<ShapeError>(tensor, "save_torch_zip: a tensor");
    const auto* const name = storage_class(tensor.scalar_type());
    check<ShapeError>(name != nullptr,
                      "save_torch_zip: a tensor must have a dtype with a class of storages, got ",
                      tensor.scalar_type());
    storages_.push_back(tensor.detach().to(torch::kCPU).contiguous().resolve_conj().resolve_neg());
    const auto& stored = storages_.back();
    global("torch._utils", "_rebuild_tensor_v2");
    bytes_ += "((";
    write(std::string("storage"));
    global("torch", name);
    write(std::to_string(storages_.size() - 1));
    write(std::string("cpu"));
    write(stored.numel());
    bytes_ += "tQ";
    write(int64_t{0});
    for (const auto numbers : {stored.sizes(), stored.strides()}) {
      bytes_ += "(";
      for (const auto one : numbers) write(one);
      bytes_ += "t";
    }
    bytes_ += "\x89";
    global("collections", "OrderedDict");
    bytes_ += ")RtR";
  }

  std::string bytes_;
  std::vector<torch::Tensor> storages_;
};

}  // namespace

const TorchValue::Dict* TorchValue::dict() const {
  const auto* const found = get_if<std::shared_ptr<const Dict>>();
  return found ? found->get() : nullptr;
}

const TorchValue* TorchValue::find(const std::string& key) const {
  const TorchValue* out = nullptr;
  if (const auto* const entries = dict())
    for (const auto& [name, value] : *entries)
      if (const auto* const text = name.get_if<std::string>(); text && *text == key) out = &value;
  return out;
}

TorchValue TorchValue::list(List items) {
  return {std::make_shared<const List>(std::move(items))};
}

TorchValue TorchValue::dict(Dict entries) {
  return {std::make_shared<const Dict>(std::move(entries))};
}

TorchValue read_torch_zip(const std::filesystem::path& path, UnknownObjects unknown) {
  const ZipArchive zip(MappedFile::open(path), "torch.save of torch 1.6 and later");
  const auto root = root_of(zip), who = path.string();
  if (const auto order = root + "byteorder"; zip.has(order))
    check<IoError>(text_of(zip.at(order)) == "little", who, ": its byte order must be little, got ",
                   excerpt(text_of(zip.at(order))));
  const ReadStorage storage = [&](const std::string& key, torch::ScalarType dtype, int64_t size) {
    const auto bytes = zip.at(root + "data/" + key);
    const auto element = static_cast<int64_t>(c10::elementSize(dtype));
    check<IoError>(size >= 0 && size <= static_cast<int64_t>(bytes.size()) / element &&
                       size * element == static_cast<int64_t>(bytes.size()),
                   who, ": storage ", excerpt(key), " must hold ", size, " elements of ", dtype, ", has ",
                   bytes.size(), " bytes");
    auto out = at::empty({size}, dtype);
    if (!bytes.empty()) std::memcpy(out.mutable_data_ptr(), bytes.data(), bytes.size());
    if (dtype == torch::kBool)  // a byte that is neither 0 nor 1 is no truth that a compiler may meet
      out = out.view(torch::kUInt8).ne(0);
    return out;
  };
  return unpickle(zip.at(root + std::string(kPickle)), storage, who, unknown);
}

void save_torch_zip(const std::filesystem::path& path, const TorchValue& value) {
  Pickler pickler;
  pickler.add(value);
  const auto pickle = pickler.finish();
  ZipWriter zip(path);
  const auto add = [&](const std::string& name, const std::string& bytes) {
    zip.add("archive/" + name, bytes.data(), bytes.size());
  };
  add(std::string(kPickle), pickle);
  add("byteorder", "little");
  for (size_t i = 0; i < pickler.storages().size(); ++i) {
    const auto& stored = pickler.storages()[i];
    zip.add(concat("archive/data/", i), stored.const_data_ptr(), stored.nbytes());
  }
  add("version", "3\n");
  zip.finish();
}

}  // namespace introspect::io
