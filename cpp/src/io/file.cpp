#include "introspect/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "introspect/core/check.h"
#include "io/atomic_file.h"

namespace introspect::io {
namespace {

std::string last_error() {
  return std::generic_category().message(errno);
}

int64_t modified(const struct stat& status) {
#ifdef __APPLE__
  const auto& time = status.st_mtimespec;
#else
  const auto& time = status.st_mtim;
#endif
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/// An open descriptor of a regular file and the file's size.
struct Opened {
  explicit Opened(const std::filesystem::path& path) {
    // Without O_NONBLOCK, opening a named pipe waits for a writer.
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    check<IoError>(descriptor >= 0, path.string(), ": cannot be opened: ", last_error());
    struct stat status{};
    const bool known = ::fstat(descriptor, &status) == 0;
    if (!known || !S_ISREG(status.st_mode)) {
      ::close(descriptor);
      check<IoError>(known, path.string(), ": cannot be examined: ", last_error());
      throw IoError(concat(path.string(), ": must be a file, is ",
                           S_ISDIR(status.st_mode) ? "a folder" : "something else"));
    }
    size = static_cast<size_t>(status.st_size);
    time = modified(status);
  }
  ~Opened() {
    if (descriptor >= 0) ::close(descriptor);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  int descriptor = -1;
  size_t size = 0;
  int64_t time = 0;
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  Opened opened(path);
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  file->modified_ = opened.time;
  if (opened.size == 0) return file;  // mmap refuses to map nothing
  void* data = ::mmap(nullptr, opened.size, PROT_READ, MAP_SHARED, opened.descriptor, 0);
  check<IoError>(data != MAP_FAILED, path.string(), ": cannot be mapped: ", last_error());
  file->data_ = static_cast<const std::byte*>(data);
  file->size_ = opened.size;
  file->descriptor_ = std::exchange(opened.descriptor, -1);
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  if (descriptor_ >= 0) ::close(descriptor_);
}

void MappedFile::will_need(size_t offset, size_t size) const {
  ::posix_fadvise(descriptor_, static_cast<off_t>(offset), static_cast<off_t>(size), POSIX_FADV_WILLNEED);
}

void MappedFile::bring(size_t offset, size_t size) const {
#ifdef MADV_POPULATE_READ
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = offset / page * page, last = std::min(size_, (offset + size + page - 1) / page * page);
  ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_POPULATE_READ);
#endif
}

void MappedFile::let_go(size_t offset, size_t size) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = (offset + page - 1) / page * page, last = (offset + size) / page * page;
  if (first < last) ::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

void MappedFile::read(size_t offset, std::span<std::byte> out) const {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(descriptor_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    check<IoError>(got > 0, path_.string(), ": ", out.size(), " bytes at ", offset,
                   " cannot be read: ", got < 0 ? last_error() : std::string("the file ends before"));
    done += static_cast<size_t>(got);
  }
}

void MappedFile::check_unchanged() const {
  if (descriptor_ < 0) return;
  struct stat status{};
  check<IoError>(::fstat(descriptor_, &status) == 0, path_.string(), ": cannot be examined: ", last_error());
  check<IoError>(static_cast<size_t>(status.st_size) == size_ && modified(status) == modified_,
                 path_.string(), ": was changed while it was in use (", size_,
                 " bytes when it was opened, now ", status.st_size, ")");
}

std::string read_text(const std::filesystem::path& path, size_t max_bytes) {
  const Opened opened(path);
  check<IoError>(opened.size <= max_bytes, path.string(), ": must be a text of at most ", max_bytes,
                 " bytes, has ", opened.size);
  std::string text(opened.size, '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t got = ::read(opened.descriptor, text.data() + done, text.size() - done);
    if (got < 0 && errno == EINTR) continue;
    check<IoError>(got >= 0, path.string(), ": cannot be read: ", last_error());
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  text.resize(done);
  return text;
}

void write_atomically(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes.data(), bytes.size());
  file.commit();
}

}  // namespace introspect::io
