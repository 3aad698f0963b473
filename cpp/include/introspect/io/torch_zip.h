#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include <torch/types.h>

#include "introspect/export.h"

namespace introspect::io {

/// What torch.save writes of plain data: None, truths, numbers, text, tensors, and lists, tuples and dictionaries of them.
///
/// Keys of dictionaries are None, truths, numbers or text. Of two entries with one key the last holds, as in Python.
struct INTROSPECT_EXPORT TorchValue {
  using List = std::vector<TorchValue>;
  using Dict = std::vector<std::pair<TorchValue, TorchValue>>;
  struct Tuple {
    List items;
  };
  /// Containers are shared: one that a file names twice is in memory once.
  using Held =
      std::variant<std::monostate, bool, int64_t, double, std::string, torch::Tensor,
                   std::shared_ptr<const List>, std::shared_ptr<const Tuple>, std::shared_ptr<const Dict>>;
  Held held;

  template <typename T>
  const T* get_if() const {
    return std::get_if<T>(&held);
  }
  const Dict* dict() const;
  /// The value of a key of a dictionary; null where this is none or has no such key.
  const TorchValue* find(const std::string& key) const;

  static TorchValue list(List items);
  static TorchValue dict(Dict entries);
};

/// What becomes of objects of classes that are neither tensors nor plain containers.
enum class UnknownObjects : uint8_t {
  refused,  ///< by name
  as_data,  ///< a dictionary of class (its name), arguments and state; nothing of the class is looked up or run
};

/// Reads a file of torch.save (the zip format, of torch 1.6 and later). Nothing in it is executed.
///
/// A pickle is a program. This reads the few instructions and the few names that tensors, parameters and plain
/// containers need, and refuses every other one by its name. Dense tensors on any device come as CPU tensors of their
/// dtype; those that share a storage share it here.
/// Throws IoError for a file that is missing, truncated or corrupt, whose entries are compressed or overlap, for a
/// tensor that does not lie within its storage, for values that contain themselves or are nested deeper than 100, and for
/// every instruction and, unless objects are wanted as data, every name that is not known.
INTROSPECT_EXPORT TorchValue read_torch_zip(const std::filesystem::path& path,
                                            UnknownObjects unknown = UnknownObjects::refused);

/// Writes a file that torch.load(path, weights_only=True) reads, atomically (see write_atomically).
///
/// Tensors of any device and strides are stored densely. Throws ShapeError for a tensor whose dtype torch has no storage
/// class for, std::invalid_argument for a file of 4 GiB or more (save_safetensors has no limit) and IoError.
INTROSPECT_EXPORT void save_torch_zip(const std::filesystem::path& path, const TorchValue& value);

}  // namespace introspect::io
