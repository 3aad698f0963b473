#include "core/free_memory.h"

#include <fstream>
#include <string>

namespace introspect {

std::optional<int64_t> free_memory() {
  std::ifstream file("/proc/meminfo");  // of Linux: "MemAvailable:   18423456 kB"
  std::string name, unit;
  for (int64_t n = 0; file >> name >> n; std::getline(file, unit))
    if (name == "MemAvailable:") return n << 10;
  return std::nullopt;
}

}  // namespace introspect
