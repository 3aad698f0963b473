#include "introspect/io/share.h"

#include <cstdlib>

#include "core/library_folder.h"
#include "introspect/core/check.h"

namespace introspect::io {

std::filesystem::path share_folder() {
  const char* const named = std::getenv("INTROSPECT_SHARE");
  if (named && *named) {
    check<IoError>(std::filesystem::exists(std::filesystem::path(named) / "SOURCES.md"),
                   "share_folder: INTROSPECT_SHARE names ", named,
                   ", which does not hold the library's data");
    return named;
  }
  // From the library to the data: as installed, and as in the build tree.
  const auto library = library_folder();
  const auto installed = (library / INTROSPECT_SHARE_FROM_LIBRARY).lexically_normal();
  const auto built = (library / "../share/introspect").lexically_normal();
  for (const auto& folder : {installed, built})
    if (std::filesystem::exists(folder / "SOURCES.md")) return folder;
  throw IoError(concat("share_folder: the data that comes with the library is neither in ",
                       installed.string(), " nor in ", built.string(),
                       "; INTROSPECT_SHARE can name its folder"));
}

}  // namespace introspect::io
