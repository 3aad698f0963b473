#include "introspect/activations/activation_stream.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

#include "core/json.h"

namespace introspect::activations {
namespace {

constexpr auto kWho = "ActivationStream: ";
constexpr auto kFormat = "activation stream";

/// A permutation of its own for every refill, so that none depends on where training began.
torch::Tensor shuffled(int64_t n, uint64_t seed, int64_t refill) {
  auto out = at::arange(n, torch::kLong);
  std::seed_seq mixed{seed & 0xffffffffU, seed >> 32U, static_cast<uint64_t>(refill)};
  std::mt19937_64 random(mixed);
  auto* places = out.mutable_data_ptr<int64_t>();
  for (int64_t i = n - 1; i > 0; --i)
    std::swap(places[i], places[static_cast<int64_t>(random() % static_cast<uint64_t>(i + 1))]);
  return out;
}

std::string column_name(size_t i) {
  return concat("column.", i);
}

/// What a stream must have in common with the one that it goes on from.
nlohmann::json made_of(const std::vector<StreamSite>& sites, torch::ScalarType dtype,
                       const MixOptions& options) {
  auto names = nlohmann::json::array();
  for (const auto& site : sites) names.push_back({site.hook_name, site.width, site.model});
  return {{"sites", names},
          {"dtype", concat(dtype)},
          {"batch_rows", options.batch_rows},
          {"buffer_rows", options.buffer_rows},
          {"mixing", options.mixing},
          {"seed", options.seed}};
}

/// Where a stream stood, by its file. Throws IoError for that of another stream.
nlohmann::json place_in(const io::SafetensorsFile& file, const std::string& who,
                        const ActivationSource& source, const MixOptions& options) {
  const auto found = file.metadata().find("place");
  check<IoError>(found != file.metadata().end(), who, ": must be what save wrote, got another file");
  auto json = parse_json<IoError>(found->second, who);
  const JsonField<IoError> field(json, who + ": ");
  const auto here = made_of(source.sites(), source.dtype(), options);
  for (const auto& [key, value] : here.items()) {
    const auto there = field.at("of").at(key);
    there.require(there.value() == value, "must be ", value.dump(), " as now, got ", there.value().dump());
  }
  source.check_state(field.at("source").text(), who);
  return json;
}

}  // namespace

ActivationStream::ActivationStream(std::unique_ptr<ActivationSource> source, MixOptions options)
    : source_(std::move(source)), options_(options) {
  check<std::invalid_argument>(options.batch_rows >= 1, kWho, "batch_rows must be 1 or more, got ",
                               options.batch_rows);
  check<std::invalid_argument>(options.buffer_rows >= options.batch_rows, kWho,
                               "buffer_rows must hold a batch of ", options.batch_rows, ", got ",
                               options.buffer_rows);
  check<std::invalid_argument>(options.mixing >= 0 && options.mixing <= 1, kWho,
                               "mixing must be 0 to 1, got ", options.mixing);
}

bool ActivationStream::refill() {
  if (ended_) return false;
  const auto left = stored_ - served_;
  if (left > 0)
    for (auto& column : buffer_)
      column.narrow(0, 0, left).copy_(column.index_select(0, order_.narrow(0, served_, left)));
  stored_ = left;
  served_ = 0;
  while (stored_ < options_.buffer_rows) {
    const auto columns = source_->next();
    ended_ = columns.empty();
    if (ended_) break;
    const auto n = columns.front().size(0);
    buffer_.resize(columns.size());
    for (size_t i = 0; i < columns.size(); ++i) {
      auto& column = buffer_[i];
      if (!column.defined() || column.size(0) < stored_ + n) {
        auto sizes = columns[i].sizes().vec();
        sizes[0] = std::max(options_.buffer_rows, stored_) + n;
        auto larger = at::empty(sizes, columns[i].options());
        if (stored_ > 0) larger.narrow(0, 0, stored_).copy_(column.narrow(0, 0, stored_));
        column = larger;
      }
      column.narrow(0, stored_, n).copy_(columns[i]);
    }
    stored_ += n;
  }
  order_ =
      options_.mixing > 0 ? shuffled(stored_, options_.seed, refills_) : at::arange(stored_, torch::kLong);
  ++refills_;
  const auto keep =
      ended_ ? 0 : static_cast<int64_t>(static_cast<double>(options_.buffer_rows) * options_.mixing);
  to_serve_ = (stored_ - keep) / options_.batch_rows * options_.batch_rows;
  if (!ended_) to_serve_ = std::max(to_serve_, options_.batch_rows);
  return to_serve_ > 0;
}

SiteRows ActivationStream::next_batch() {
  if (served_ == to_serve_ && !refill()) return {};
  const auto places = order_.narrow(0, served_, options_.batch_rows);
  std::vector<torch::Tensor> columns;
  for (const auto& column : buffer_) columns.push_back(column.index_select(0, places));
  served_ += options_.batch_rows;
  ++batches_;
  return source_->rows(columns);
}

void ActivationStream::save(const std::filesystem::path& file) const {
  const auto left = stored_ - served_;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  std::vector<bool> whole;  // numbers, which the format's reader takes as float64
  for (size_t i = 0; i < buffer_.size(); ++i) {
    const auto column = buffer_[i].index_select(0, order_.narrow(0, served_, left));
    whole.push_back(column.scalar_type() == torch::kLong);
    tensors.emplace_back(column_name(i), whole.back() ? column.to(torch::kFloat64) : column);
  }
  const nlohmann::json place = {{"of", made_of(sites(), source_->dtype(), options_)},
                                {"whole_numbers", whole},
                                {"to_serve", to_serve_ - served_},
                                {"refills", refills_},
                                {"batches", batches_},
                                {"ended", ended_},
                                {"source", source_->state()}};
  io::save_safetensors(file, tensors, {{"format", kFormat}, {"place", place.dump()}});
}

void ActivationStream::check_state(const std::filesystem::path& path) const {
  place_in(*io::SafetensorsFile::open(path), concat(kWho, path.string()), *source_, options_);
}

void ActivationStream::restore(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  const auto who = concat(kWho, path.string());
  const auto json = place_in(*file, who, *source_, options_);
  const JsonField<IoError> field(json, who + ": ");
  source_->restore(field.at("source").text());
  buffer_.clear();
  stored_ = 0;
  const auto whole = field.at("whole_numbers");
  for (size_t i = 0; i < whole.list(); ++i) {
    const auto name = column_name(i);
    check<IoError>(file->has(name), who, ": the tensor ", name, " is missing");
    const auto shape = file->shape(name);
    check<IoError>(!shape.empty() && (i == 0 || shape[0] == stored_), who, ": the tensor ", name,
                   " must have a row for each of the buffer");
    buffer_.push_back(whole.at(i).boolean() ? file->read(name, torch::kFloat64).to(torch::kLong)
                                            : file->read(name, source_->dtype()));
    stored_ = shape[0];
  }
  served_ = 0;
  order_ = at::arange(stored_, torch::kLong);
  to_serve_ = field.at("to_serve").integer();
  refills_ = field.at("refills").integer();
  batches_ = field.at("batches").integer();
  ended_ = field.at("ended").boolean();
  field.require(to_serve_ >= 0 && to_serve_ <= stored_ && to_serve_ % options_.batch_rows == 0,
                "is damaged: ", to_serve_, " rows to serve of ", stored_);
}

}  // namespace introspect::activations
