#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/free_memory.h"
#include "io/temporary_folder.h"

using introspect::free_memory;
using introspect::testing::TemporaryFolder;

namespace {

namespace fs = std::filesystem;

constexpr int64_t kMiB = int64_t{1} << 20;

/// A machine of 1,000 MiB free, told by files that a test makes up.
struct Machine {
  TemporaryFolder files;
  fs::path folder = files / "";

  Machine() { write("proc/meminfo", "MemTotal:  4096000 kB\nMemFree:  1 kB\nMemAvailable:  1024000 kB\n"); }

  void write(const fs::path& path, const std::string& text) const {
    fs::create_directories((folder / path).parent_path());
    std::ofstream(folder / path, std::ios::binary) << text;
  }

  /// Control groups of version 2, `mount` being the part below `part` of them.
  void version_2(const std::string& group, const std::string& part = "/") const {
    write("proc/self/cgroup", "0::" + group + "\n");
    write("proc/self/mountinfo",
          "23 1 254:1 / / rw - ext4 /dev/vda rw\n"
          "30 23 0:26 " +
              part + " /sys/fs/cgroup rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate\n");
  }

  /// Of version 1, as a machine with both versions has them.
  void version_1(const std::string& group, const std::string& part = "/") const {
    write("proc/self/cgroup", "9:name=systemd:/other\n4:cpu,memory:" + group + "\n2:cpuset:/other\n0::/\n");
    write("proc/self/mountinfo", "35 31 0:32 " + part +
                                     " /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory,cpu\n"
                                     "40 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
                                     "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
  }

  void limit_2(const std::string& group, const std::string& most, int64_t used,
               int64_t unused_pages = 0) const {
    const auto folder = "sys/fs/cgroup" + group;
    write(folder + "/memory.max", most + "\n");
    write(folder + "/memory.current", std::to_string(used) + "\n");
    write(folder + "/memory.stat",
          "anon 5\nactive_file 999999999\ninactive_file " + std::to_string(unused_pages) + "\nslab 7\n");
  }

  void limit_1(const std::string& group, int64_t most, int64_t used, int64_t unused_pages = 0) const {
    const auto folder = "sys/fs/cgroup/memory" + group;
    write(folder + "/memory.limit_in_bytes", std::to_string(most) + "\n");
    write(folder + "/memory.usage_in_bytes", std::to_string(used) + "\n");
    write(folder + "/memory.stat", "inactive_file 3\nhierarchical_memory_limit 8\ntotal_inactive_file " +
                                       std::to_string(unused_pages) + "\n");
  }

  int64_t mebibytes() const {
    const auto bytes = free_memory(folder);
    REQUIRE(bytes.has_value());
    CHECK(*bytes % kMiB == 0);
    return *bytes / kMiB;
  }
};

constexpr int64_t kNone1 = 9223372036854771712;  // what version 1 writes where there is no limit

}  // namespace

TEST_CASE("free memory is what Linux calls available where no group bounds it") {
  const Machine machine;
  CHECK(machine.mebibytes() == 1000);
  machine.version_2("/");
  CHECK(machine.mebibytes() == 1000);
  machine.limit_2("", "max", 900 * kMiB);
  CHECK(machine.mebibytes() == 1000);
  machine.version_1("/a");
  machine.limit_1("", kNone1, 3000 * kMiB);
  machine.limit_1("/a", kNone1, 900 * kMiB);
  CHECK(machine.mebibytes() == 1000);
}

TEST_CASE("free memory is the room of the tightest control group around the process") {
  const Machine machine;
  machine.version_2("/job/step/task");
  machine.limit_2("/job", "314572800", 100 * kMiB);  // 300 MiB
  machine.limit_2("/job/step", "max", 50 * kMiB);
  CHECK(machine.mebibytes() == 200);
  machine.limit_2("/job/step/task", std::to_string(60 * kMiB), 50 * kMiB);
  CHECK(machine.mebibytes() == 10);
  machine.limit_2("/job/step/task", std::to_string(5000 * kMiB), 50 * kMiB);
  CHECK(machine.mebibytes() == 200);
  machine.limit_2("", std::to_string(700 * kMiB), 600 * kMiB);  // of a container: the root that it sees
  CHECK(machine.mebibytes() == 100);
  machine.limit_2("/job/step/task/below", std::to_string(kMiB), 0);  // not around the process
  machine.limit_2("/job/other", std::to_string(kMiB), 0);
  CHECK(machine.mebibytes() == 100);
}

TEST_CASE("a group's cached pages that make way are free, and a full group has no room") {
  const Machine machine;
  machine.version_2("/job");
  machine.limit_2("/job", std::to_string(300 * kMiB), 290 * kMiB, 250 * kMiB);
  CHECK(machine.mebibytes() == 260);
  machine.limit_2("/job", std::to_string(300 * kMiB), 100 * kMiB, 250 * kMiB);  // read a moment later
  CHECK(machine.mebibytes() == 300);
  machine.limit_2("/job", std::to_string(300 * kMiB), 310 * kMiB);
  CHECK(machine.mebibytes() == 0);
  machine.limit_2("/job", "0", 0);
  CHECK(machine.mebibytes() == 0);
}

TEST_CASE("a group that is slowed down above memory.high has room up to there") {
  const Machine machine;
  machine.version_2("/job");
  machine.limit_2("/job", "max", 100 * kMiB);
  machine.write("sys/fs/cgroup/job/memory.high", std::to_string(150 * kMiB));
  CHECK(machine.mebibytes() == 50);
}

TEST_CASE("control groups of version 1 bound memory as those of version 2 do") {
  const Machine machine;
  machine.version_1("/slurm/job_7");
  machine.limit_1("", kNone1, 3000 * kMiB);
  machine.limit_1("/slurm", 800 * kMiB, 700 * kMiB, 100 * kMiB);
  machine.limit_1("/slurm/job_7", kNone1, 600 * kMiB);
  CHECK(machine.mebibytes() == 200);
  machine.limit_1("/slurm/job_7", 640 * kMiB, 600 * kMiB);
  CHECK(machine.mebibytes() == 40);
}

TEST_CASE("a container that sees only its own part of the groups is bounded by that part") {
  const Machine machine;
  machine.version_1("/docker/ab12/inner", "/docker/ab12");
  machine.limit_1("", 500 * kMiB, 200 * kMiB);
  CHECK(machine.mebibytes() == 300);
  machine.limit_1("/inner", 250 * kMiB, 200 * kMiB);
  CHECK(machine.mebibytes() == 50);
  machine.version_1("/docker/ab12", "/docker/other");  // a neighbour's
  CHECK(machine.mebibytes() == 1000);
  machine.version_1("/../neighbour");  // the process was moved out of what it sees
  CHECK(machine.mebibytes() == 1000);
}

TEST_CASE("backslashes in the names of groups are read") {
  const Machine machine;
  machine.version_2(R"(/a\x2db/c)", R"(/a\134x2db)");  // systemd's escapes, escaped by the kernel
  machine.limit_2("/c", std::to_string(70 * kMiB), 0);
  CHECK(machine.mebibytes() == 70);
}

TEST_CASE("limits that cannot be read or make no sense are none") {
  const Machine machine;
  machine.version_2("/job");
  for (const std::string nonsense :
       {"", "\n", "-5", "12x", "1 2", "many", "99999999999999999999999", "0x10"}) {
    CAPTURE(nonsense);
    machine.limit_2("/job", nonsense, 0);
    CHECK(machine.mebibytes() == 1000);
  }
  machine.limit_2("/job", "1048576", 0);
  CHECK(machine.mebibytes() == 1);
  machine.write("sys/fs/cgroup/job/memory.current", "unknown");
  CHECK(machine.mebibytes() == 1000);
  machine.limit_2("/job", "2097152", kMiB);
  for (const std::string stat : {"", "inactive_file", "inactive_file -7\n", "\x01\xff"}) {
    machine.write("sys/fs/cgroup/job/memory.stat", stat);
    CHECK(machine.mebibytes() == 1);
  }
  fs::remove(machine.folder / "sys/fs/cgroup/job/memory.max");
  fs::create_directory(machine.folder / "sys/fs/cgroup/job/memory.max");
  CHECK(machine.mebibytes() == 1000);
  fs::remove_all(machine.folder / "proc");
  CHECK_FALSE(free_memory(machine.folder));
}

TEST_CASE("a group's room is told where the machine tells nothing") {
  const Machine machine;
  machine.version_2("/job");
  machine.limit_2("/job", std::to_string(30 * kMiB), 0);
  machine.write("proc/meminfo", "MemTotal: 1 kB\n");
  CHECK(machine.mebibytes() == 30);
}

TEST_CASE("no bytes in the files that tell of memory are an error") {
  const Machine machine;
  machine.version_1("/job");
  machine.limit_1("/job", 10 * kMiB, 0);
  const std::vector<fs::path> files = {"proc/meminfo", "proc/self/cgroup", "proc/self/mountinfo",
                                       "sys/fs/cgroup/memory/job/memory.limit_in_bytes",
                                       "sys/fs/cgroup/memory/job/memory.stat"};
  std::mt19937 random(7);  // NOLINT(cert-msc51-cpp): the same bytes in each run
  for (int i = 0; i < 400; ++i) {
    const auto& path = files[random() % files.size()];
    std::ifstream file(machine.folder / path, std::ios::binary);
    const std::string good((std::istreambuf_iterator<char>(file)), {});
    auto bad = good;
    for (int n = 0; n < 4 && !bad.empty(); ++n) {
      const auto at = random() % bad.size();
      if (random() % 3 == 0)
        bad.erase(at, random() % 8);
      else if (random() % 2)
        bad[at] = static_cast<char>(random());
      else
        bad.insert(at, ":/\\ \n-9");
    }
    machine.write(path, bad);
    CHECK_NOTHROW(free_memory(machine.folder));
    machine.write(path, good);
  }
}

TEST_CASE("this machine's own free memory is some, and no more than Linux calls available") {
  if (!fs::exists("/proc/meminfo")) return;
  const auto bytes = free_memory();
  REQUIRE(bytes);
  CHECK(*bytes >= 0);
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kibibytes = 0;
  for (std::string rest; file >> name >> kibibytes && name != "MemTotal:";) std::getline(file, rest);
  CHECK(*bytes <= kibibytes * 1024);
}
