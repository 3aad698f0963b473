#include "core/library_folder.h"

#include <dlfcn.h>

#include "introspect/core/check.h"

namespace introspect {

std::filesystem::path library_folder() {
  Dl_info info{};
  check<IoError>(dladdr(reinterpret_cast<const void*>(&library_folder), &info) != 0 && info.dli_fname,
                 "libintrospect: the system does not say where this library lies");
  return std::filesystem::canonical(info.dli_fname).parent_path();
}

}  // namespace introspect
