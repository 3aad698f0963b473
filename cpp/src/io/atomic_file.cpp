#include "io/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "introspect/core/check.h"

namespace introspect::io {
namespace {

std::string last_error() {
  return std::generic_category().message(errno);
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  static std::atomic<unsigned> counter{0};
  temporary_ = path_;
  temporary_ += concat(".tmp-", ::getpid(), "-", counter++);
  descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  check<IoError>(descriptor_ >= 0, path_.string(), ": cannot be created: ", last_error());
}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) {
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }
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
  check<IoError>(::rename(temporary_.c_str(), path_.c_str()) == 0, path_.string(),
                 ": cannot be replaced: ", last_error());
  ::close(std::exchange(descriptor_, -1));
}

}  // namespace introspect::io
