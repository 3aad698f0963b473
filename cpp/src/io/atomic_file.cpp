#include "io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>
#include <string>
#include <system_error>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::io {
namespace {

namespace fs = std::filesystem;

constexpr auto kEnding = ".part";
constexpr size_t kDigits = 16;
constexpr size_t kLongestStem = 200;  // names end at 255 bytes

std::string last_error() {
  return std::generic_category().message(errno);
}

/// Where the links lead that `path` begins with; it need not exist.
fs::path resolved(fs::path path) {
  std::error_code problem;
  for (int links = 0; links < 40 && fs::is_symlink(fs::symlink_status(path, problem)); ++links) {
    const auto next = fs::read_symlink(path, problem);
    if (problem) break;
    path = next.is_absolute() ? next : path.parent_path() / next;
  }
  return path;
}

/// What all temporary files for one target begin with.
std::string stem_of(const fs::path& target) {
  return "." + target.filename().string().substr(0, kLongestStem) + ".";
}

bool is_temporary(const std::string& name, const std::string& stem) {
  return name.size() == stem.size() + kDigits + std::string_view(kEnding).size() && name.starts_with(stem) &&
         name.ends_with(kEnding) &&
         name.find_first_not_of("0123456789abcdef", stem.size()) == stem.size() + kDigits;
}

/// Removes temporary files of processes that ended before they could: nobody holds their lock.
void remove_stale(const fs::path& target) {
  const auto stem = stem_of(target);
  const auto folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  std::error_code problem;
  for (fs::directory_iterator entry(folder, problem), end; !problem && entry != end;
       entry.increment(problem)) {
    if (!is_temporary(entry->path().filename().string(), stem)) continue;
    const int descriptor = ::open(entry->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0) continue;
    struct stat status{};
    if (::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) &&
        ::flock(descriptor, LOCK_EX | LOCK_NB) == 0)
      ::unlink(entry->path().c_str());
    ::close(descriptor);
  }
}

/// Locks a file that was just made. False if another process took it for a stale one in between and removed it.
bool lock(int descriptor) {
  while (::flock(descriptor, LOCK_EX) != 0 && errno == EINTR) {
  }  // where a file system has no locks, stale files stay
  struct stat status{};
  return ::fstat(descriptor, &status) != 0 || status.st_nlink > 0;
}

std::string random_digits() {
  std::random_device device;
  std::string out;
  for (size_t i = 0; i < kDigits; ++i) out += "0123456789abcdef"[device() % 16];
  return out;
}

}  // namespace

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)), target_(resolved(path_)) {
  std::error_code problem;
  check<IoError>(!fs::is_symlink(fs::symlink_status(target_, problem)), path_.string(),
                 ": cannot be created: its symbolic links lead nowhere");
  const auto status = fs::status(target_, problem);
  check<IoError>(!fs::exists(status) || fs::is_regular_file(status), path_.string(), ": must be a file, is ",
                 fs::is_directory(status) ? "a folder" : "something else");
  remove_stale(target_);
  for (int tries = 0; descriptor_ < 0 && tries < 100; ++tries) {
    temporary_ = target_.parent_path() / (stem_of(target_) + random_digits() + kEnding);
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) break;
    if (descriptor_ >= 0 && !lock(descriptor_)) ::close(std::exchange(descriptor_, -1));
  }
  check<IoError>(descriptor_ >= 0, path_.string(), ": cannot be created: ", last_error());
  take_over_permissions();
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::unlink(temporary_.c_str());
    ::close(descriptor_);
  }
}

/// Before a byte is written: nobody may read in between what only the owner may.
void AtomicFile::take_over_permissions() {
  struct stat before{}, now{};
  if (::stat(target_.c_str(), &before) != 0 || ::fstat(descriptor_, &now) != 0) return;
  if (before.st_uid != now.st_uid || before.st_gid != now.st_gid)
    if (::fchown(descriptor_, before.st_uid, before.st_gid) != 0) errno = 0;  // only root may give files away
  ::fchmod(descriptor_, before.st_mode & 07777);
}

void AtomicFile::write(const void* bytes, size_t size) {
  const auto* next = static_cast<const char*>(bytes);
  while (size > 0) {
    const ssize_t written = ::write(descriptor_, next, size);
    if (written < 0 && errno == EINTR) continue;
    check<IoError>(written > 0, path_.string(), ": cannot be written: ", last_error());
    next += written;
    size -= static_cast<size_t>(written);
  }
}

void AtomicFile::write_zeros(size_t size) {
  static constexpr char kZeros[64] = {};
  for (; size > 0; size -= std::min(size, sizeof(kZeros))) write(kZeros, std::min(size, sizeof(kZeros)));
}

void AtomicFile::commit() {
  check<IoError>(::fsync(descriptor_) == 0, path_.string(), ": cannot be written: ", last_error());
  check<IoError>(::rename(temporary_.c_str(), target_.c_str()) == 0, path_.string(),
                 ": cannot be replaced: ", last_error());
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace introspect::io
