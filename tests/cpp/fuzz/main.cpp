// Feeds damaged bytes to every reader of the library, under AddressSanitizer where it is built so (tests/run.sh sanitize).
//
//   introspect_fuzz DATA [--count N] [--seed S] [--reader NAME]
//
// First the files of DATA/fuzz/<reader>, each of which once broke something, then N damaged copies of sound ones. An input
// that makes a reader crash, throw what it should not or take longer than ten seconds lies in the working folder under
// the name that is printed. Exits 0 if there was none.

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <new>
#include <optional>
#include <string>

#include "introspect/core/error.h"

#include "fuzz/mutate.h"
#include "fuzz/readers.h"

namespace fs = std::filesystem;
using introspect::testing::Reader;

namespace {

/// The words in which a reader refuses a file, or nothing. What the library does not say that its readers throw goes on:
/// it is a fault.
std::optional<std::string> refusal(const Reader& reader, const fs::path& path) {
  try {
    reader.read(path);
    return {};
  } catch (const introspect::Error& error) {
    return error.what();
  } catch (const std::out_of_range& error) {
    return error.what();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

struct Count {
  int64_t inputs = 0, accepted = 0, faults = 0;
  double slowest = 0;
  std::string reason;  // of the last refusal
};

void run_one(const Reader& reader, const fs::path& path, Count& count) {
  const auto start = std::chrono::steady_clock::now();
  ++count.inputs;
  alarm(60);  // a reader that hangs is ended by the signal, and the input stays where it is
  try {
    const auto reason = refusal(reader, path);
    count.accepted += !reason;
    if (reason) count.reason = *reason;
  } catch (const std::exception& error) {
    ++count.faults;
    const auto kept = path.parent_path() / (reader.name + "-fault-" + std::to_string(count.faults));
    fs::copy_file(path, kept, fs::copy_options::overwrite_existing);
    std::cout << reader.name << ": " << error.what() << "\n  input: " << kept.string() << std::endl;
  }
  alarm(0);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  count.slowest = std::max(count.slowest, took.count());
  if (took.count() > 10) {
    ++count.faults;
    const auto kept = path.parent_path() / (reader.name + "-slow-" + std::to_string(count.faults));
    fs::copy_file(path, kept, fs::copy_options::overwrite_existing);
    std::cout << reader.name << ": took " << took.count() << " s\n  input: " << kept.string() << std::endl;
  }
}

}  // namespace

int main(int argc, char** argv) {
  int64_t count = 2000;
  uint64_t seed = 0;
  std::string only;
  if (argc < 2) {
    std::cerr << "usage: introspect_fuzz DATA [--count N] [--seed S] [--reader NAME]\n";
    return 2;
  }
  const fs::path data = argv[1];
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--count") count = std::stoll(argv[i + 1]);
    if (option == "--seed") seed = std::stoull(argv[i + 1]);
    if (option == "--reader") only = argv[i + 1];
  }
  const auto work = fs::temp_directory_path() / ("introspect-fuzz-" + std::to_string(getpid()));
  fs::create_directories(work);
  int64_t inputs = 0, faults = 0;
  for (const auto& reader : introspect::testing::readers(work, data)) {
    if (!only.empty() && reader.name != only) continue;
    Count counted;
    const auto folder = work / reader.name;
    fs::create_directories(folder);
    const auto path = folder / reader.file_name;
    std::cout << reader.name << ": input " << path.string() << std::flush;
    const auto one = [&](const std::string& bytes) {
      for (const auto& left : fs::directory_iterator(folder))  // a store leaves files beside its own
        if (left.path().filename().string().rfind(reader.name, 0) != 0) fs::remove_all(left.path());
      std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
      run_one(reader, path, counted);
    };
    for (const auto& bytes : reader.seeds) {
      const auto before = counted.accepted;
      one(bytes);
      if (counted.accepted == before) {
        ++counted.faults;
        std::cout << "\n" << reader.name << ": a sound file is refused: " << counted.reason << std::endl;
      }
    }
    if (const auto known = data / "fuzz" / reader.name; fs::is_directory(known))
      for (const auto& entry : fs::directory_iterator(known)) {
        std::ifstream file(entry.path(), std::ios::binary);
        one({std::istreambuf_iterator<char>(file), {}});
      }
    introspect::testing::Mutator mutate(seed * 1000003 + std::hash<std::string>{}(reader.name));
    for (int64_t i = 0; i < count; ++i) one(mutate(reader.seeds));
    std::cout << "\r" << reader.name << ": " << counted.inputs << " inputs, " << counted.accepted
              << " accepted, " << counted.faults << " faults, slowest " << counted.slowest << " s"
              << std::string(40, ' ') << std::endl;
    inputs += counted.inputs;
    faults += counted.faults;
  }
  std::cout << inputs << " inputs, " << faults << " faults\n";
  if (faults == 0) fs::remove_all(work);
  return faults == 0 ? 0 : 1;
}
