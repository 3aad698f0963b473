#include "introspect/activations/activation_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/core/sha256.h"

#include "activations/source_identity.h"
#include "core/json.h"

namespace introspect::activations {
namespace {

namespace fs = std::filesystem;

constexpr auto kWho = "ActivationFile: ";
constexpr auto kHead = "activations.json";
constexpr auto kRows = "rows.bin";
constexpr auto kFormat = "introspect activations 1";
constexpr std::chrono::seconds kLongest{60};  // between commits
constexpr size_t kEnd = size_t{1} << 20;      // bytes of each end of the rows that tell them apart
constexpr size_t kSample = size_t{64} << 10;  // and of each sample between the ends
constexpr size_t kSamples = 64;               // about as many, at equal distances
constexpr int64_t kRowsAtATime = 4096;        // that a source over a file hands out together

const std::map<std::string, torch::ScalarType> kDtypes = {
    {"bfloat16", torch::kBFloat16}, {"float32", torch::kFloat32}, {"float64", torch::kFloat64}};

std::string dtype_name(torch::ScalarType dtype) {
  for (const auto& [name, type] : kDtypes)
    if (type == dtype) return name;
  throw IoError(concat(kWho, "rows must be bfloat16, float32 or float64, got ", dtype));
}

int64_t width_of(const std::vector<StreamSite>& sites) {
  return std::accumulate(sites.begin(), sites.end(), int64_t{0},
                         [](int64_t sum, const StreamSite& site) { return sum + site.width; });
}

/// Rows committed together, and the digest of their bytes.
struct Piece {
  int64_t rows = 0;
  std::string sha256;
};

/// What activations.json says.
struct Head {
  std::vector<StreamSite> sites;
  torch::ScalarType dtype = torch::kFloat32;
  std::vector<Piece> pieces;
  bool complete = false;
  int64_t asked = -1;  // rows, 0: all; -1: earlier versions do not say
  std::string notes = "{}", source_state;

  int64_t rows() const {
    return std::accumulate(pieces.begin(), pieces.end(), int64_t{0},
                           [](int64_t sum, const Piece& piece) { return sum + piece.rows; });
  }
  int64_t row_bytes() const { return width_of(sites) * static_cast<int64_t>(c10::elementSize(dtype)); }

  void write(const fs::path& folder) const {
    nlohmann::json json = {{"format", kFormat}, {"dtype", dtype_name(dtype)},
                           {"rows", rows()},    {"complete", complete},
                           {"notes", notes},    {"source_state", source_state}};
    if (asked >= 0) json["asked"] = asked;
    for (const auto& site : sites)
      json["sites"].push_back({{"hook_name", site.hook_name}, {"width", site.width}, {"model", site.model}});
    json["pieces"] = nlohmann::json::array();
    for (const auto& piece : pieces)
      json["pieces"].push_back({{"rows", piece.rows}, {"sha256", piece.sha256}});
    io::write_atomically(folder / kHead, json.dump(1));
  }

  static Head read(const fs::path& folder) {
    const auto who = concat(kWho, (folder / kHead).string());
    const auto text = io::read_text(folder / kHead);
    const auto json = parse_json<IoError>(text, who);
    const JsonField<IoError> field(json, who + ": ");
    const auto format = field.at("format").text();
    field.at("format").require(format == kFormat, "must be '", kFormat, "', got '", format, "'");
    Head out;
    const auto dtype = kDtypes.find(field.at("dtype").text());
    field.at("dtype").require(dtype != kDtypes.end(), "must be bfloat16, float32 or float64");
    out.dtype = dtype->second;
    const auto sites = field.at("sites");
    for (size_t i = 0; i < sites.some_list(); ++i) {
      const auto site = sites.at(i);
      out.sites.push_back(
          {site.at("hook_name").text(), site.at("width").integer(), site.at("model").integer()});
      site.at("width").require(out.sites.back().width > 0 && out.sites.back().width < models::kLargestSize,
                               "must be positive");
    }
    const auto pieces = field.at("pieces");
    for (size_t i = 0; i < pieces.list(); ++i) {
      const auto piece = pieces.at(i);
      out.pieces.push_back({piece.at("rows").integer(), piece.at("sha256").text()});
      piece.at("rows").require(out.pieces.back().rows > 0 && out.pieces.back().rows < (int64_t{1} << 40),
                               "must be positive");
    }
    out.complete = field.at("complete").boolean();
    if (field.has("asked")) out.asked = field.at("asked").integer();
    out.notes = field.at("notes").text();
    out.source_state = field.at("source_state").text();
    field.at("rows").require(field.at("rows").integer() == out.rows(), "must be those of the pieces, ",
                             out.rows());
    return out;
  }
};

/// For complete rows of earlier versions, whose source's state does not tell what they are made of: compares what the
/// notes tell.
void check_same_notes(const std::string& who, const Head& head, const WriteActivationsOptions& options) {
  const auto kept = parse_json<IoError>(head.notes, who);
  const auto now = parse_json<IoError>(options.notes, who);
  check<IoError>(
      kept.is_object() && now.is_object() && kept.contains("model_hash") && now.contains("model_hash"), who,
      ": does not say of which model its rows are, as an earlier version wrote it: open it, or write to "
      "another folder");
  for (const auto* key : {"model_hash", "context_size", "prepend_bos"})
    if (kept.contains(key) && now.contains(key))
      check<IoError>(kept.at(key) == now.at(key), who, ": is of other rows, with the ", key, " ",
                     describe(kept.at(key)), ", and ", describe(now.at(key)),
                     " came: write to another folder");
  check<IoError>(options.rows == 0 || head.rows() == options.rows, who, ": holds ", head.rows(),
                 " rows, not the ", options.rows, " asked for: open it, or write to another folder");
}

/// Whether a source and options may go on with what a folder holds. Throws IoError.
void check_goes_on(const std::string& who, const Head& head, const std::vector<StreamSite>& sites,
                   torch::ScalarType dtype, const std::string& source_state,
                   const WriteActivationsOptions& options) {
  check<IoError>(head.sites == sites && head.dtype == dtype, who,
                 ": holds activations of other sites or another dtype");
  if (head.complete && tells_rows(source_state)) {
    const auto kept = parse_json<IoError>(head.source_state, who);
    if (kept.is_object() && !kept.contains("of")) return check_same_notes(who, head, options);
  }
  check_same_rows(who, head.source_state, source_state);
  const auto held = head.rows();
  check<IoError>(options.rows == 0 || held <= options.rows, who, ": holds ", held, " rows, more than the ",
                 options.rows, " asked for: open it, or write to another folder");
  // What came after them in their pass is lost.
  check<IoError>(head.asked <= 0 || held < head.asked || options.rows == head.asked, who, ": holds the ",
                 held, " rows that it was begun with, and ",
                 options.rows == 0 ? "all" : std::to_string(options.rows),
                 " are asked for: write to another folder");
}

/// rows.bin, to which rows are appended.
class RowsFile {
 public:
  RowsFile(const fs::path& path, int64_t bytes) : path_(path) {
    descriptor_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    require(descriptor_ >= 0 && ::ftruncate(descriptor_, bytes) == 0 &&
                ::lseek(descriptor_, bytes, SEEK_SET) == bytes,
            "opened");
  }
  ~RowsFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  RowsFile(const RowsFile&) = delete;
  RowsFile& operator=(const RowsFile&) = delete;

  void write(const torch::Tensor& x) {
    const auto* bytes = static_cast<const char*>(x.const_data_ptr());
    size_t left = x.nbytes();
    while (left > 0) {
      const auto n = ::write(descriptor_, bytes, left);
      if (n < 0 && errno == EINTR) continue;
      require(n > 0, "written");
      bytes += n, left -= static_cast<size_t>(n);
    }
  }
  void flush() { require(::fdatasync(descriptor_) == 0, "flushed"); }

 private:
  void require(bool ok, const char* what) const {
    check<IoError>(ok, kWho, path_.string(), ": cannot be ", what, ": ",
                   std::generic_category().message(errno));
  }

  fs::path path_;
  int descriptor_ = -1;
};

/// What tells the rows of a file from others: SHA-256 of what they are of the ends of their bytes, and of
/// samples between them: of up to kSamples * kSample bytes there, of all.
std::string content(const ActivationFile& file) {
  Sha256 hash;
  hash.update(dtype_name(file.dtype()));
  for (const auto& site : file.sites())
    hash.update(concat(" ", site.hook_name, " ", site.width, " ", site.model));
  const auto mapped = io::MappedFile::open(file.path() / kRows);
  const auto row_bytes = width_of(file.sites()) * static_cast<int64_t>(c10::elementSize(file.dtype()));
  const auto rows = mapped->bytes().first(static_cast<size_t>(file.rows() * row_bytes));
  const auto n = std::min(kEnd, rows.size());
  hash.update(rows.data(), n).update(rows.data() + (rows.size() - n), n);
  if (rows.size() <= 2 * kEnd) return hash.hex();
  const auto last = rows.size() - kEnd;
  const auto step = std::max(kSample, (last - kEnd) / kSamples);
  for (auto at = kEnd; at < last; at += step) hash.update(rows.data() + at, std::min(kSample, last - at));
  return hash.hex();
}

class FileActivations final : public ActivationSource {
 public:
  FileActivations(ActivationFile file, bool repeat) : file_(std::move(file)), repeat_(repeat) {
    check<IoError>(file_.rows() > 0, kWho, file_.path().string(), ": must hold a row, got none");
    of_ = {{"rows", file_.rows()}, {"content", content(file_)}};
  }

  const std::vector<StreamSite>& sites() const override { return file_.sites(); }
  torch::ScalarType dtype() const override { return file_.dtype(); }

  SiteRows hold_out(int64_t n) override {
    check<std::invalid_argument>(n >= 0 && n < file_.rows(), kWho, file_.path().string(),
                                 ": must have more than the ", n, " rows that are held out, has ",
                                 file_.rows());
    first_ = at_ = n;
    SiteRows out;
    if (n > 0)
      for (size_t site = 0; site < sites().size(); ++site) out.push_back(file_.read(site, 0, n).clone());
    return out;
  }

  std::vector<torch::Tensor> next() override {
    if (at_ == file_.rows()) {
      if (!repeat_) return {};
      at_ = first_;
    }
    const auto last = std::min(at_ + kRowsAtATime, file_.rows());
    return {at::arange(std::exchange(at_, last), last, torch::kLong)};
  }

  SiteRows rows(const std::vector<torch::Tensor>& columns) const override {
    return file_.read(columns.at(0));
  }

  std::string state() const override {
    return nlohmann::json{{"of", of_}, {"row", at_}, {"held_out", first_}}.dump();
  }
  void check_state(const std::string& state, const std::string& who) const override {
    check_same_rows(who, state, this->state());
  }
  void restore(const std::string& state) override {
    const auto who = concat(kWho, "the state to go on from");
    check_state(state, who);
    const auto json = parse_json<IoError>(state, who);
    const JsonField<IoError> field(json, who + ": ");
    const auto held_out = field.at("held_out").integer();
    field.at("held_out")
        .require(held_out == first_, "must be the ", first_, " rows that are now, got ", held_out);
    const auto row = field.at("row").integer();
    field.at("row").require(row >= first_ && row <= file_.rows(), "must be ", first_, " to ", file_.rows(),
                            ", got ", row);
    at_ = row;
  }

 private:
  ActivationFile file_;
  nlohmann::json of_;
  bool repeat_;
  int64_t first_ = 0, at_ = 0;
};

}  // namespace

ActivationFile ActivationFile::open(const fs::path& folder, bool verify) {
  auto head = Head::read(folder);
  ActivationFile out;
  out.path_ = folder;
  out.dtype_ = head.dtype;
  out.rows_ = head.rows();
  out.complete_ = head.complete;
  out.notes_ = std::move(head.notes);
  out.file_ = io::MappedFile::open(folder / kRows);
  const auto bytes = out.file_->bytes();
  const auto row_bytes = head.row_bytes();
  check<IoError>(static_cast<int64_t>(bytes.size()) / row_bytes >= out.rows_, kWho, (folder / kRows).string(),
                 ": must have ", out.rows_, " rows of ", row_bytes, " bytes, has ", bytes.size(), " bytes");
  size_t at = 0;
  for (const auto& piece : head.pieces) {
    if (!verify) break;
    const auto n = static_cast<size_t>(piece.rows * row_bytes);
    const auto digest = sha256_hex({reinterpret_cast<const char*>(bytes.data()) + at, n});
    check<IoError>(digest == piece.sha256, kWho, (folder / kRows).string(), ": bytes ", at, " to ", at + n,
                   " are not those that were written");
    at += n;
  }
  out.sites_ = std::move(head.sites);
  if (out.rows_ > 0)
    out.all_NW_ = at::from_blob(const_cast<std::byte*>(bytes.data()), {out.rows_, width_of(out.sites_)},
                                at::TensorOptions(head.dtype));
  return out;
}

torch::Tensor ActivationFile::read(size_t site, int64_t first, int64_t last) const {
  check<std::out_of_range>(site < sites_.size() && first >= 0 && first <= last && last <= rows_, kWho,
                           path_.string(), ": has ", sites_.size(), " sites and ", rows_,
                           " rows, asked for rows ", first, " to ", last, " of site ", site);
  if (rows_ == 0) return at::empty({0, sites_[site].width}, dtype_);
  file_->check_unchanged();
  const auto column = width_of({sites_.begin(), sites_.begin() + static_cast<std::ptrdiff_t>(site)});
  return all_NW_.narrow(0, first, last - first).narrow(1, column, sites_[site].width);
}

SiteRows ActivationFile::read(const torch::Tensor& rows_N) const {
  check<std::out_of_range>(rows_ > 0, kWho, path_.string(), ": has no rows");
  file_->check_unchanged();
  const auto whole = all_NW_.index_select(0, rows_N);
  if (sites_.size() == 1) return {whole};
  SiteRows out;
  int64_t column = 0;
  for (const auto& site : sites_) {
    out.push_back(whole.narrow(1, column, site.width).contiguous());
    column += site.width;
  }
  return out;
}

struct ActivationWriter::State {
  using Clock = std::chrono::steady_clock;

  fs::path folder;
  int64_t most_rows = 0, commit_rows = 0;
  Head head;
  std::string source_state;  // of what is written, and not yet committed
  std::optional<RowsFile> file;
  int64_t written = 0, pending = 0;
  Sha256 hash;
  Clock::time_point last = Clock::now();
};

ActivationWriter::ActivationWriter(fs::path folder, const std::vector<StreamSite>& sites,
                                   torch::ScalarType dtype, const std::string& source_state,
                                   const WriteActivationsOptions& options)
    : state_(std::make_unique<State>()) {
  check<std::invalid_argument>(options.rows >= 0 && options.commit_rows > 0,
                               "write_activations: rows must be 0 or more and commit_rows positive, got ",
                               options.rows, " and ", options.commit_rows);
  auto& s = *state_;
  s.folder = std::move(folder);
  s.most_rows = options.rows;
  s.commit_rows = options.commit_rows;
  if (fs::exists(s.folder / kHead)) {
    check<IoError>(options.resume, "write_activations: ", s.folder.string(),
                   ": holds activations already; resume goes on with a broken-off run");
    s.head = Head::read(s.folder);
    check_goes_on("write_activations: " + s.folder.string(), s.head, sites, dtype, source_state, options);
  } else {
    std::error_code error;
    fs::create_directories(s.folder, error);
    check<IoError>(!error, "write_activations: ", s.folder.string(), ": cannot be made: ", error.message());
    s.head.sites = sites;
    s.head.dtype = dtype;
    s.head.notes = options.notes;
    s.head.source_state = source_state;
    s.head.asked = options.rows;
    s.head.write(s.folder);
  }
  if (!s.head.complete) s.head.asked = options.rows;
  s.source_state = s.head.source_state;
  s.written = s.head.rows();
  if (!s.head.complete) s.file.emplace(s.folder / kRows, s.written * s.head.row_bytes());
}

ActivationWriter::~ActivationWriter() = default;

int64_t ActivationWriter::rows() const {
  return state_->written;
}

bool ActivationWriter::is_complete() const {
  return state_->head.complete;
}

bool ActivationWriter::is_full() const {
  return is_complete() || (state_->most_rows > 0 && state_->written >= state_->most_rows);
}

const std::string& ActivationWriter::source_state() const {
  return state_->source_state;
}

void ActivationWriter::write(const SiteRows& of_sites, const std::string& source_state) {
  auto& s = *state_;
  bool fits = of_sites.size() == s.head.sites.size();
  for (size_t i = 0; fits && i < of_sites.size(); ++i)
    fits = of_sites[i].dim() == 2 && of_sites[i].size(1) == s.head.sites[i].width &&
           of_sites[i].scalar_type() == s.head.dtype && of_sites[i].size(0) == of_sites[0].size(0);
  check<ShapeError>(
      fits, kWho, s.folder.string(), ": rows must be ", dtype_name(s.head.dtype), ", ",
      width_of(s.head.sites), " numbers at ", s.head.sites.size(), " sites, got ",
      of_sites.empty() ? std::string("none") : concat(of_sites[0].toString(), " ", of_sites[0].sizes()));
  if (is_full()) return;
  auto rows = at::cat(of_sites, 1);
  if (s.most_rows > 0) rows = rows.narrow(0, 0, std::min(rows.size(0), s.most_rows - s.written));
  rows = rows.contiguous();
  s.file->write(rows);
  s.hash.update(rows.const_data_ptr(), rows.nbytes());
  s.written += rows.size(0);
  s.pending += rows.size(0);
  s.source_state = source_state;
  if (s.pending >= s.commit_rows || State::Clock::now() - s.last > kLongest) commit();
}

void ActivationWriter::commit() {
  auto& s = *state_;
  if (!s.file || (s.pending == 0 && !s.head.complete)) return;
  s.file->flush();
  if (s.pending > 0) s.head.pieces.push_back({s.pending, s.hash.hex()});
  s.head.source_state = s.source_state;
  s.head.write(s.folder);
  s.hash = Sha256();
  s.pending = 0;
  s.last = State::Clock::now();
}

ActivationFile ActivationWriter::finish() {
  auto& s = *state_;
  const bool is_new = !s.head.complete;
  s.head.complete = true;
  commit();
  s.file.reset();
  return ActivationFile::open(s.folder, /*verify=*/!is_new);
}

ActivationFile write_activations(ActivationSource& source, const fs::path& folder,
                                 const WriteActivationsOptions& options) {
  ActivationWriter writer(folder, source.sites(), source.dtype(), source.state(), options);
  if (writer.is_complete()) return writer.finish();
  if (writer.source_state() != source.state()) source.restore(writer.source_state());
  while (!writer.is_full()) {
    try {
      report(options.progress, "activations", writer.rows(), options.rows);
    } catch (...) {
      writer.commit();
      throw;
    }
    const auto columns = source.next();
    if (columns.empty()) break;
    writer.write(source.rows(columns), source.state());
  }
  auto out = writer.finish();
  report(options.progress, "activations", writer.rows(), writer.rows());
  return out;
}

std::unique_ptr<ActivationSource> file_activations(ActivationFile file, bool repeat) {
  return std::make_unique<FileActivations>(std::move(file), repeat);
}

}  // namespace introspect::activations
