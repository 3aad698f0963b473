#pragma once

#include <filesystem>

namespace introspect {

/// The folder that libintrospect lies in. Throws IoError where the system does not say.
std::filesystem::path library_folder();

}  // namespace introspect
