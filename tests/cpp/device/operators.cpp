// The operators of "fenced": each is the CPU's on the same memory, opened for as long as it runs.

#include <algorithm>
#include <array>
#include <string_view>
#include <unordered_map>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "graphs.h"
#include "memory.h"

namespace fenced {
namespace {

const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

bool is_here(const at::Tensor& t) {
  return t.defined() && t.device().is_privateuseone();
}

/// Tensors of the device as the CPU sees them while this lives: the same memory, opened.
class Lent {
 public:
  at::Tensor lend(const at::Tensor& t) {
    const auto* const own = t.storage().unsafeGetStorageImpl();
    auto found = aliases_.find(own);
    if (found == aliases_.end()) {
      const auto& data = t.storage().data_ptr();
      open_.add(data.get_context());
      c10::Storage alias(c10::Storage::use_byte_size_t{}, t.storage().nbytes(),
                         at::DataPtr(data.get(), at::kCPU), nullptr, /*resizable=*/false);
      owners_.emplace(alias.unsafeGetStorageImpl(), t.storage());
      found = aliases_.emplace(own, std::move(alias)).first;
    }
    return with_storage(found->second, c10::DispatchKeySet(c10::DispatchKey::CPU), t);
  }

  /// The tensor of the device of which t, made by an operator on lent ones, is a view; undefined if it is none.
  at::Tensor owner(const at::Tensor& t) const {
    const auto found = owners_.find(t.storage().unsafeGetStorageImpl());
    return found == owners_.end() ? at::Tensor{} : with_storage(found->second, kKeys, t);
  }

 private:
  static at::Tensor with_storage(const c10::Storage& storage, c10::DispatchKeySet keys,
                                 const at::Tensor& like) {
    auto out = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), keys, like.dtype());
    out.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return out;
  }

  Open open_;
  std::unordered_map<const c10::StorageImpl*, c10::Storage> aliases_, owners_;
};

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout> /*layout*/, std::optional<at::Device> device,
                         std::optional<bool> /*pin_memory*/) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, allocator(), kKeys, c10::dtype_or_default(dtype));
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> /*layout*/, std::optional<at::Device> device,
                 std::optional<bool> /*pin_memory*/, std::optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, allocator(), kKeys, c10::dtype_or_default(dtype), format);
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size,
                          std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!format || *format == at::MemoryFormat::Contiguous, "fenced: resize_ to memory format ",
              *format);
  auto* const impl = self.unsafeGetTensorImpl();
  const auto nbytes =
      at::detail::computeStorageNbytesContiguous(size, self.element_size(), self.storage_offset());
  auto* const storage = self.storage().unsafeGetStorageImpl();
  if (nbytes > storage->nbytes()) {
    const c10::DeviceGuard guard(self.device());
    auto grown = allocator()->allocate(nbytes);
    if (storage->nbytes() > 0) allocator()->copy_data(grown.get(), storage->data(), storage->nbytes());
    storage->set_data_ptr_noswap(std::move(grown));
    storage->set_nbytes(nbytes);
  }
  impl->set_sizes_contiguous(size);
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& to, bool non_blocking) {
  const bool from_here = is_here(self), to_here = is_here(to);
  if (!to_here || !from_here) check_not_recording("a copy between host and device");
  if (!to_here) {
    TORCH_CHECK(!non_blocking, "fenced: a copy to the host that nobody waits for");
    record("to host");
  } else if (!from_here) {
    record(non_blocking ? "to device" : "to device, waiting");
  } else if (self.device() != to.device()) {
    record("between devices");
  }
  Lent lent;
  const auto target = to_here ? lent.lend(to) : to;
  target.copy_(from_here ? lent.lend(self) : self);
  if (is_recording()) add_to_recording([self, to, non_blocking] { copy_from(self, to, non_blocking); });
  return to;
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  check_not_recording("item");
  record("item");
  return Lent().lend(self).item();
}

/// A result of the CPU's as a tensor of the device.
at::Tensor moved(const at::Tensor& t, at::Device device) {
  const auto dense = t.is_non_overlapping_and_dense() ? t : t.contiguous();
  auto out = empty_strided(dense.sizes(), dense.strides(), dense.scalar_type(), {}, device, {});
  Lent().lend(out).copy_(dense);
  return out;
}

/// Operators whose result's shape or type the host must know: a real device is waited for.
bool is_waited_for(std::string_view name) {
  static constexpr std::array names = {"aten::nonzero",      "aten::masked_select", "aten::_unique2",
                                       "aten::unique_dim",   "aten::equal",         "aten::bincount",
                                       "aten::is_nonzero",   "aten::multinomial",   "aten::repeat_interleave",
                                       "aten::_linalg_eigh", "aten::_linalg_svd",   "aten::linalg_eig"};
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// One call of an operator that has no kernel of its own here.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack* stack) : schema_(op.schema()), stack_(*stack) {
    const auto n = schema_.arguments().size();
    given_ = torch::jit::last(stack_, n).vec();
    for (const auto& value : given_) find_device(value);
    TORCH_INTERNAL_ASSERT(device_, "fenced: no tensor of the device in ", schema_.operator_name());
    std::vector<c10::IValue> lent;
    for (size_t i = 0; i < n; ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      lent.push_back(on_host(given_[i], alias != nullptr && alias->isWrite()));
    }
    torch::jit::drop(stack_, n);
    for (auto& value : lent) stack_.push_back(std::move(value));
  }

  /// Takes the results from the stack and leaves those of the device.
  void finish() {
    for (const auto& [own, written] : resized_) {
      if (own.sizes() != written.sizes()) resize_(own, written.sizes(), {});
      if (own.numel() > 0) lent_.lend(own).copy_(written);
    }
    const auto n = schema_.returns().size();
    auto results = torch::jit::pop(stack_, n);
    for (size_t i = 0; i < n; ++i) {
      const auto* alias = schema_.returns()[i].alias_info();
      stack_.push_back(alias != nullptr && alias->isWrite() ? argument(*alias) : on_device(results[i]));
    }
  }

 private:
  void find_device(const c10::IValue& value) {
    const bool in_indices =
        value.isOptionalTensorList();  // of index and index_put, which bring them to the device
    const auto see = [&](const at::Tensor& t) {
      if (!t.defined()) return;
      TORCH_CHECK(is_here(t) || t.dim() == 0 || in_indices, schema_.operator_name(),
                  ": expected all tensors to be on the same device, got ", t.sizes(), " on ", t.device());
      if (!is_here(t) && t.dim() > 0) record("to device, waiting");
      if (!is_here(t)) return;
      TORCH_CHECK(!device_ || *device_ == t.device(), schema_.operator_name(),
                  ": expected all tensors to be on the same device, got ", *device_, " and ", t.device());
      device_ = t.device();
    };
    if (value.isTensor()) see(value.toTensor());
    if (value.isTensorList())
      for (const auto& t : value.toTensorVector()) see(t);
    if (value.isOptionalTensorList())
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        if (t) see(*t);
    if (value.isDevice() && value.toDevice().is_privateuseone() && !device_) device_ = value.toDevice();
  }

  at::Tensor on_host(const at::Tensor& t, bool is_written) {
    if (!is_here(t)) return t;
    if (!is_written || t.numel() > 0) return lent_.lend(t);
    resized_.emplace_back(t, at::empty(t.sizes(), at::dtype(t.dtype())));  // the operator may make it larger
    return resized_.back().second;
  }

  c10::IValue on_host(const c10::IValue& value, bool is_written) {
    if (value.isTensor()) return on_host(value.toTensor(), is_written);
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const auto& t : value.toTensorVector()) out.push_back(on_host(t, is_written));
      return out;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> out;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector())
        out.push_back(t ? std::optional(on_host(*t, is_written)) : std::nullopt);
      return out;
    }
    if (value.isDevice() && value.toDevice().is_privateuseone()) return at::Device(at::kCPU);
    return value;
  }

  at::Tensor on_device(const at::Tensor& t) const {
    if (!t.defined()) return t;
    const auto owner = lent_.owner(t);
    return owner.defined() ? owner : moved(t, *device_);
  }

  c10::IValue on_device(const c10::IValue& value) const {
    if (value.isTensor()) return on_device(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> out;
      for (const auto& t : value.toTensorVector()) out.push_back(on_device(t));
      return out;
    }
    return value;
  }

  /// The argument that a result is, by the alias annotation of both.
  const c10::IValue& argument(const c10::AliasInfo& result) const {
    for (size_t i = 0; i < given_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      if (alias != nullptr && alias->isWrite() && alias->beforeSets() == result.beforeSets())
        return given_[i];
    }
    TORCH_CHECK(false, "fenced: ", schema_.operator_name(), " returns something it was not given");
  }

  const c10::FunctionSchema& schema_;
  torch::jit::Stack& stack_;
  std::vector<c10::IValue> given_;
  std::vector<std::pair<at::Tensor, at::Tensor>> resized_;
  Lent lent_;
  std::optional<at::Device> device_;
};

std::vector<at::Tensor> tensors_of(c10::ArrayRef<c10::IValue> values) {
  std::vector<at::Tensor> out;
  for (const auto& value : values) {
    if (value.isTensor() && value.toTensor().defined()) out.push_back(value.toTensor());
    if (!value.isTensorList()) continue;
    const auto list = value.toTensorVector();
    out.insert(out.end(), list.begin(), list.end());
  }
  return out;
}

void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  if (is_waited_for(op.schema().name())) {
    check_not_recording(op.schema().name().c_str());
    record(op.schema().name().c_str());
  }
  torch::jit::Stack given;
  if (is_recording()) given = torch::jit::last(*stack, op.schema().arguments().size()).vec();
  Call call(op, stack);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  call.finish();
  if (!is_recording()) return;
  auto made = tensors_of(torch::jit::last(*stack, op.schema().returns().size()));
  add_to_recording([op, given = std::move(given), made = std::move(made)] {
    auto again = given;
    run_on_host(op, &again);
    const auto results = tensors_of(again);
    for (size_t i = 0; i < made.size(); ++i)  // at the addresses of the first time, unless it was given them
      if (!results[i].is_alias_of(made[i])) copy_from(results[i], made[i], true);
  });
}

/// A deliberate fault: what code does that takes a tensor of the device for one of the CPU.
int64_t touch(const at::Tensor& t) {
  return *static_cast<const volatile unsigned char*>(t.const_data_ptr());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_copy_from", &copy_from);
  m.impl("_local_scalar_dense", &local_scalar_dense);
}

TORCH_LIBRARY(fenced, m) {
  m.def("take_events() -> str[]", &take_events);
  m.def("touch(Tensor t) -> int", &touch);
  m.def("refuse_recordings() -> ()", &refuse_recordings);
}

}  // namespace
}  // namespace fenced
