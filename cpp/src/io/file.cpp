#include "introspect/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "introspect/core/check.h"
#include "io/atomic_file.h"

namespace introspect::io {
namespace {

std::string last_error() {
  return std::generic_category().message(errno);
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
  }
  ~Opened() { ::close(descriptor); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  int descriptor = -1;
  size_t size = 0;
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const Opened opened(path);
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  if (opened.size == 0) return file;  // mmap refuses to map nothing
  void* data = ::mmap(nullptr, opened.size, PROT_READ, MAP_SHARED, opened.descriptor, 0);
  check<IoError>(data != MAP_FAILED, path.string(), ": cannot be mapped: ", last_error());
  file->data_ = static_cast<const std::byte*>(data);
  file->size_ = opened.size;
  return file;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
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
