#include "io/unpickle.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <optional>
#include <unordered_map>

#include "introspect/core/check.h"

#include "core/excerpt.h"
#include "io/utf8.h"

namespace introspect::io {
namespace {

constexpr int kMostDepth = 100;
constexpr size_t kMostText = size_t{64} << 20;
constexpr int64_t kMostExpanded = int64_t{1} << 32;  // elements of a tensor that repeats those of its storage

struct StorageClass {
  const char* name;
  torch::ScalarType dtype;
};
constexpr StorageClass kStorages[] = {
    {"FloatStorage", torch::kFloat32},
    {"DoubleStorage", torch::kFloat64},
    {"HalfStorage", torch::kFloat16},
    {"BFloat16Storage", torch::kBFloat16},
    {"LongStorage", torch::kInt64},
    {"IntStorage", torch::kInt32},
    {"ShortStorage", torch::kInt16},
    {"CharStorage", torch::kInt8},
    {"ByteStorage", torch::kUInt8},
    {"BoolStorage", torch::kBool},
    {"ComplexFloatStorage", torch::kComplexFloat},
    {"ComplexDoubleStorage", torch::kComplexDouble},
};

// What the machine works on. Values refer to one another by their place in an arena, so that a file that names one value
// a thousand times has it once, and so that nothing is freed recursively.
using Ref = size_t;
enum class Name { ordered_dict, rebuild_tensor, rebuild_parameter, size };
struct List {
  std::vector<Ref> items;
};
struct Tuple {
  std::vector<Ref> items;
};
struct Dict {
  std::vector<std::pair<Ref, Ref>> entries;
};
struct Class {
  torch::ScalarType dtype;
};
struct Mark {};
/// A class or function that is not known, and something that would be made by one.
struct Unknown {
  std::string name;
};
struct Object {
  Ref made_by, arguments;
  std::optional<Ref> state;
};
using Node = std::variant<std::monostate, bool, int64_t, double, std::string, torch::Tensor, List, Tuple,
                          Dict, Name, Class, Mark, Unknown, Object>;

const char* kind_of(const Node& node) {
  constexpr const char* kKinds[] = {"None",     "a truth", "a whole number", "a number",     "text",
                                    "a tensor", "a list",  "a tuple",        "a dictionary", "a function",
                                    "a class",  "a mark",  "a class",        "an object"};
  return kKinds[node.index()];
}

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const ReadStorage& storage, const std::string& who,
          UnknownObjects unknown)
      : bytes_(bytes), storage_(storage), who_(who), unknown_(unknown) {}

  TorchValue run() {
    while (true) {
      const auto code = number<uint8_t>();
      if (code == '.') break;
      step(code);
    }
    require(stack_.size() == 1, "must leave one value, leaves ", stack_.size());
    return value(stack_.back(), 0);
  }

 private:
  template <typename... Parts>
  void require(bool ok, const Parts&... parts) const {
    check<IoError>(ok, who_, ": its pickle ", parts...);
  }

  // ---- reading ----

  std::span<const std::byte> take(uint64_t size) {
    require(size <= bytes_.size() - at_, "ends within an instruction, at byte ", at_);
    const auto out = bytes_.subspan(at_, size);
    at_ += size;
    return out;
  }
  template <typename T>
  T number() {
    T out;
    std::memcpy(&out, take(sizeof(T)).data(), sizeof(T));
    return out;
  }
  std::string text(uint64_t size) {
    const auto part = take(size);
    std::string out(reinterpret_cast<const char*>(part.data()), part.size());
    require(is_utf8(out), "holds text that is not UTF-8, ", excerpt(out));
    return out;
  }
  std::string line() {
    const auto begin = at_;
    while (number<uint8_t>() != '\n') {
    }
    const auto size = at_ - begin - 1;
    at_ = begin;
    auto out = text(size);
    take(1);
    return out;
  }
  int64_t long_of(uint64_t size) {
    require(size <= 8, "holds a whole number of more than 64 bits");
    const auto part = take(size);
    uint64_t out = 0;
    for (uint64_t i = 0; i < size; ++i) out |= static_cast<uint64_t>(part[i]) << (8 * i);
    const bool is_negative = size > 0 && (static_cast<uint8_t>(part[size - 1]) & 0x80) != 0;
    if (is_negative && size < 8) out |= ~uint64_t{0} << (8 * size);
    return static_cast<int64_t>(out);
  }
  /// A double stands with its highest byte first.
  double big_endian_double() {
    const auto part = take(8);
    uint64_t bits = 0;
    for (const auto byte : part) bits = bits << 8 | static_cast<uint64_t>(byte);
    double out;
    std::memcpy(&out, &bits, sizeof(out));
    return out;
  }

  // ---- the stack and the memo ----

  void push(Node node) {
    arena_.push_back(std::move(node));
    stack_.push_back(arena_.size() - 1);
  }
  Ref pop() {
    require(!stack_.empty() && !std::holds_alternative<Mark>(arena_[stack_.back()]),
            "takes a value where there is none, at byte ", at_);
    const auto out = stack_.back();
    stack_.pop_back();
    return out;
  }
  std::vector<Ref> pop_to_mark() {
    auto mark = stack_.size();
    while (mark > 0 && !std::holds_alternative<Mark>(arena_[stack_[mark - 1]])) --mark;
    require(mark > 0, "takes values down to a mark where there is none, at byte ", at_);
    std::vector<Ref> out(stack_.begin() + static_cast<ptrdiff_t>(mark), stack_.end());
    stack_.resize(mark - 1);
    return out;
  }
  template <typename T>
  T& as(Ref ref, const char* what) {
    auto* const out = std::get_if<T>(&arena_[ref]);
    require(out != nullptr, "must have ", what, ", has ", kind_of(arena_[ref]), ", at byte ", at_);
    return *out;
  }
  Ref top() {
    const auto out = pop();
    stack_.push_back(out);
    return out;
  }
  void remember(uint64_t place) { memo_[place] = top(); }
  void recall(uint64_t place) {
    const auto found = memo_.find(place);
    require(found != memo_.end(), "recalls value ", place, ", which it has not kept");
    stack_.push_back(found->second);
  }

  // ---- instructions ----

  void step(uint8_t code) {
    if (code == 0x81 && unknown_ == UnknownObjects::as_data) {  // NEWOBJ
      const auto arguments = pop(), made_by = pop();
      as<Unknown>(made_by, "a class");
      return push(Object{made_by, arguments, std::nullopt});
    }
    switch (code) {
      case 0x80: {  // PROTO
        const auto protocol = number<uint8_t>();
        return require(protocol >= 2 && protocol <= 5, "must be of protocol 2 to 5, is of ", int{protocol});
      }
      case 0x95: {  // FRAME
        take(8);
        return;
      }
      case 'N':
        return push(std::monostate());
      case 0x88:
        return push(true);
      case 0x89:
        return push(false);
      case 'J':
        return push(int64_t{number<int32_t>()});
      case 'K':
        return push(int64_t{number<uint8_t>()});
      case 'M':
        return push(int64_t{number<uint16_t>()});
      case 0x8a:
        return push(long_of(number<uint8_t>()));
      case 'G':
        return push(big_endian_double());
      case 'X':
        return push(text(number<uint32_t>()));
      case 0x8c:
        return push(text(number<uint8_t>()));
      case 0x8d:
        return push(text(number<uint64_t>()));
      case '(':
        return push(Mark());
      case ']':
        return push(List());
      case ')':
        return push(Tuple());
      case '}':
        return push(Dict());
      case 'l':
        return push(List{pop_to_mark()});
      case 't':
        return push(Tuple{pop_to_mark()});
      case 0x85:
        return tuple(1);
      case 0x86:
        return tuple(2);
      case 0x87:
        return tuple(3);
      case 'a': {  // APPEND
        const auto item = pop();
        as<List>(top(), "a list to append to").items.push_back(item);
        return;
      }
      case 'e': {  // APPENDS
        const auto items = pop_to_mark();
        auto& list = as<List>(top(), "a list to append to").items;
        list.insert(list.end(), items.begin(), items.end());
        return;
      }
      case 's': {  // SETITEM
        const auto held = pop(), key = pop();
        return set(top(), key, held);
      }
      case 'u': {  // SETITEMS
        const auto items = pop_to_mark();
        require(items.size() % 2 == 0, "sets a key without a value, at byte ", at_);
        for (size_t i = 0; i < items.size(); i += 2) set(top(), items[i], items[i + 1]);
        return;
      }
      case 'q':
        return remember(number<uint8_t>());
      case 'r':
        return remember(number<uint32_t>());
      case 0x94:
        return remember(memo_.size());
      case 'h':
        return recall(number<uint8_t>());
      case 'j':
        return recall(number<uint32_t>());
      case 'c': {  // GLOBAL
        const auto module = line(), name = line();
        return push(named(module, name));
      }
      case 0x93: {  // STACK_GLOBAL
        const auto name = pop(), module = pop();
        return push(named(as<std::string>(module, "a module's name"), as<std::string>(name, "a name")));
      }
      case 'Q':
        return push(persistent(pop()));
      case 'R': {  // REDUCE
        const auto arguments = pop(), function = pop();
        if (std::holds_alternative<Unknown>(arena_[function]))
          return push(Object{function, arguments, std::nullopt});
        const auto items = as<Tuple>(arguments, "arguments").items;
        return push(call(as<Name>(function, "a function"), items));
      }
      case 'b': {  // BUILD: the attributes of a state dict's OrderedDict, its version, say
        const auto attributes = pop();
        if (auto* const object = std::get_if<Object>(&arena_[top()])) {
          object->state = attributes;
          return;
        }
        as<Dict>(attributes, "attributes in a dictionary");
        as<Dict>(top(), "a dictionary whose attributes are set");
        return;
      }
      default: {
        const bool is_letter = code >= 0x21 && code < 0x7f;
        require(false, "has the instruction ",
                is_letter ? std::string(1, static_cast<char>(code)) : concat(int{code}), " at byte ", at_ - 1,
                ", which is not one of those that tensors and plain values need");
      }
    }
  }

  void tuple(size_t n) {
    std::vector<Ref> items(n);
    for (size_t i = n; i-- > 0;) items[i] = pop();
    push(Tuple{std::move(items)});
  }

  void set(Ref dict, Ref key, Ref held) {
    const auto& node = arena_[key];
    require(node.index() <= 4, "has ", kind_of(node),
            " as a key, which must be None, a truth, a number or text");
    as<Dict>(dict, "a dictionary to set a value in").entries.emplace_back(key, held);
  }

  Node named(const std::string& module, const std::string& name) const {
    if (module == "collections" && name == "OrderedDict") return Name::ordered_dict;
    if (module == "torch._utils" && name == "_rebuild_tensor_v2") return Name::rebuild_tensor;
    if (module == "torch._utils" && name == "_rebuild_parameter") return Name::rebuild_parameter;
    if (module == "torch" && name == "Size") return Name::size;
    if (module == "torch")
      for (const auto& storage : kStorages)
        if (name == storage.name) return Class{storage.dtype};
    if (unknown_ == UnknownObjects::as_data) return Unknown{module + "." + name};
    throw IoError(
        concat(who_, ": its pickle names ", excerpt(module + "." + name),
               ", which is neither a tensor nor a plain container; nothing else is made from a file"));
  }

  /// ("storage", class, record, device, elements)
  torch::Tensor persistent(Ref ref) {
    const auto& items = as<Tuple>(ref, "a storage's identity in a tuple").items;
    require(items.size() == 5 && as<std::string>(items[0], "a kind of record") == "storage",
            "refers to something outside that is no storage");
    const auto dtype = as<Class>(items[1], "a class of storages").dtype;
    const auto& key = as<std::string>(items[2], "a storage's record");
    as<std::string>(items[3], "a storage's device");
    const auto size = as<int64_t>(items[4], "a storage's size");
    const auto [known, is_new] = storages_.try_emplace(key);
    if (is_new) known->second = storage_(key, dtype, size);
    require(known->second.scalar_type() == dtype && known->second.numel() == size, "has storage ",
            excerpt(key), " twice and not alike");
    return known->second;
  }

  std::vector<int64_t> integers(Ref ref, const char* what) {
    std::vector<int64_t> out;
    for (const auto item : as<Tuple>(ref, what).items) out.push_back(as<int64_t>(item, what));
    return out;
  }

  Node call(Name function, const std::vector<Ref>& arguments) {
    switch (function) {
      case Name::ordered_dict: {
        require(arguments.empty(), "makes an OrderedDict of something");
        return Dict();
      }
      case Name::size: {
        require(arguments.size() == 1, "makes a torch.Size of ", arguments.size(), " things");
        return Tuple(as<Tuple>(arguments[0], "sizes"));
      }
      case Name::rebuild_parameter: {  // data, requires_grad, hooks
        require(arguments.size() == 3, "makes a parameter of ", arguments.size(), " things");
        return as<torch::Tensor>(arguments[0], "a parameter's tensor");
      }
      case Name::rebuild_tensor: {  // storage, offset, size, stride, requires_grad, hooks, metadata
        require(arguments.size() == 6 || arguments.size() == 7, "makes a tensor of ", arguments.size(),
                " things");
        return tensor(as<torch::Tensor>(arguments[0], "a storage"), as<int64_t>(arguments[1], "an offset"),
                      integers(arguments[2], "sizes"), integers(arguments[3], "strides"));
      }
    }
    throw IoError(who_ + ": its pickle calls an unknown function");
  }

  torch::Tensor tensor(const torch::Tensor& storage, int64_t offset, const std::vector<int64_t>& sizes,
                       const std::vector<int64_t>& strides) const {
    require(sizes.size() == strides.size() && sizes.size() <= 64, "has a tensor of ", sizes.size(),
            " sizes and ", strides.size(), " strides");
    int64_t last = offset, numel = 1;  // of the last element, as far as it is within the storage
    for (size_t i = 0; i < sizes.size(); ++i) {
      require(sizes[i] >= 0 && strides[i] >= 0, "has a tensor of size ", sizes[i], " and stride ",
              strides[i]);
      require(
          sizes[i] == 0 || numel <= std::max(kMostExpanded, storage.numel()) / std::max<int64_t>(sizes[i], 1),
          "has a tensor of more elements than can be");
      numel *= sizes[i];
    }
    for (size_t i = 0; numel > 0 && i < sizes.size(); ++i) {
      const auto steps = sizes[i] - 1, room = storage.numel() - last;
      require(steps == 0 || strides[i] <= std::max<int64_t>(room, 0) / steps,
              "has a tensor that does not lie within its storage");
      last += steps * strides[i];
    }
    require(offset >= 0 && (numel == 0 ? offset <= storage.numel() : last < storage.numel()),
            "has a tensor that does not lie within its storage");
    return storage.as_strided(sizes, strides, offset);
  }

  // ---- the value ----

  /// Text is copied wherever it stands, unlike containers.
  void count_text(size_t size) {
    text_ += size;
    require(text_ <= kMostText + bytes_.size(), "repeats more than ", kMostText, " bytes of text");
  }

  TorchValue value(Ref ref, int depth) {
    if (const auto done = done_.find(ref); done != done_.end()) {
      require(done->second.has_value(), "has a value that contains itself");
      if (const auto* const text = done->second->get_if<std::string>()) count_text(text->size());
      return *done->second;
    }
    require(depth <= kMostDepth, "is nested more than ", kMostDepth, " deep");
    done_[ref] = std::nullopt;
    auto out = std::visit(
        [&](const auto& node) -> TorchValue {
          using T = std::decay_t<decltype(node)>;
          const auto all = [&](const std::vector<Ref>& items) {
            TorchValue::List values;
            for (const auto item : items) values.push_back(value(item, depth + 1));
            return values;
          };
          if constexpr (std::is_same_v<T, List>) {
            return TorchValue::list(all(node.items));
          } else if constexpr (std::is_same_v<T, Tuple>) {
            return {std::make_shared<const TorchValue::Tuple>(TorchValue::Tuple{all(node.items)})};
          } else if constexpr (std::is_same_v<T, Dict>) {
            TorchValue::Dict entries;
            for (const auto& [key, held] : node.entries)
              entries.emplace_back(value(key, depth + 1), value(held, depth + 1));
            return TorchValue::dict(std::move(entries));
          } else if constexpr (std::is_same_v<T, Unknown>) {
            count_text(node.name.size());
            return {node.name};
          } else if constexpr (std::is_same_v<T, Object>) {
            return TorchValue::dict(
                {{{std::string("class")}, value(node.made_by, depth + 1)},
                 {{std::string("arguments")}, value(node.arguments, depth + 1)},
                 {{std::string("state")}, node.state ? value(*node.state, depth + 1) : TorchValue()}});
          } else if constexpr (std::is_same_v<T, Name> || std::is_same_v<T, Class> ||
                               std::is_same_v<T, Mark>) {
            require(false, "leaves ", kind_of(arena_[ref]), " as a value");
            return {};
          } else {
            return {node};
          }
        },
        arena_[ref]);
    done_[ref] = out;
    return out;
  }

  std::span<const std::byte> bytes_;
  const ReadStorage& storage_;
  const std::string& who_;
  UnknownObjects unknown_;
  size_t at_ = 0, text_ = 0;
  std::deque<Node> arena_;
  std::vector<Ref> stack_;
  std::unordered_map<uint64_t, Ref> memo_;
  std::map<std::string, torch::Tensor> storages_;
  std::unordered_map<Ref, std::optional<TorchValue>> done_;
};

}  // namespace

const char* storage_class(torch::ScalarType dtype) {
  const auto* found = std::ranges::find(kStorages, dtype, &StorageClass::dtype);
  return found == std::end(kStorages) ? nullptr : found->name;
}

TorchValue unpickle(std::span<const std::byte> bytes, const ReadStorage& storage, const std::string& who,
                    UnknownObjects unknown) {
  return Machine(bytes, storage, who, unknown).run();
}

}  // namespace introspect::io
