#include "circuits/row_log.h"

#include <cstdio>
#include <stdexcept>
#include <system_error>

#include <ATen/ATen.h>

#include "introspect/core/check.h"
#include "introspect/io/safetensors.h"

namespace introspect::circuits {

namespace {

constexpr const char* kKey = "introspect.attribution_rows";

template <typename Of>
torch::Tensor stacked(const std::vector<KeptRow>& rows, const Of& of) {
  std::vector<torch::Tensor> out;
  for (const auto& row : rows) out.push_back(of(row).cpu());
  return at::stack(out);
}

}  // namespace

RowLog::RowLog(std::filesystem::path folder, std::string key)
    : folder_(std::move(folder)), key_(std::move(key)) {
  if (folder_.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  check<IoError>(!error && std::filesystem::is_directory(folder_), "attribute: the folder ", folder_.string(),
                 " for rows cannot be made: ", error.message());
}

std::filesystem::path RowLog::path_of(int64_t batch) const {
  char name[32];
  std::snprintf(name, sizeof name, "rows_%06lld.safetensors", static_cast<long long>(batch));
  return folder_ / name;
}

std::optional<std::vector<KeptRow>> RowLog::read(int64_t batch, const std::vector<int64_t>& columns) const {
  if (folder_.empty() || !std::filesystem::exists(path_of(batch))) return std::nullopt;
  const auto path = path_of(batch);
  const auto file = io::SafetensorsFile::open(path);
  const auto found = file->metadata().find(kKey);
  check<IoError>(found != file->metadata().end() && found->second == key_, "attribute: ", path.string(),
                 " holds rows of another graph: of another model, prompt, set of dictionaries or other "
                 "options; give another "
                 "folder, or delete it");
  const auto floats = [&](const char* name) {
    return file->read(name, file->dtype(name) == "F64" ? torch::kFloat64 : torch::kFloat32).contiguous();
  };
  const auto whole = [&](const char* name) { return floats(name).to(torch::kLong).contiguous(); };
  const auto of = whole("columns"), bounds = whole("bounds"), entries = whole("entries");
  const auto weights = floats("weights"), by_cell = floats("by_cell"), errors = floats("errors"),
             tokens = floats("tokens"), biases = floats("biases"), injections = floats("injections"),
             abs_sums = floats("abs_sums");
  const auto n = static_cast<int64_t>(columns.size());
  bool fits = of.dim() == 1 && of.size(0) == n && bounds.dim() == 1 && bounds.size(0) == n + 1 &&
              entries.dim() == 1 && weights.sizes() == entries.sizes() && abs_sums.size(0) == n &&
              at::equal(of, at::tensor(columns, at::kLong));
  for (const auto& part : {by_cell, errors, tokens, biases, injections})
    fits = fits && part.dim() == 2 && part.size(0) == n;
  const auto* b = bounds.const_data_ptr<int64_t>();
  for (int64_t i = 0; fits && i < n; ++i) fits = b[i] >= 0 && b[i] <= b[i + 1] && b[i + 1] <= entries.size(0);
  check<IoError>(fits, "attribute: ", path.string(),
                 " does not hold the rows that come next; delete its folder");
  std::vector<KeptRow> out;
  for (int64_t i = 0; i < n; ++i)
    out.push_back({entries.slice(0, b[i], b[i + 1]).to(torch::kInt), weights.slice(0, b[i], b[i + 1]).clone(),
                   by_cell[i].clone(), errors[i].clone(), tokens[i].clone(), biases[i].clone(),
                   injections[i].clone(), abs_sums[i].item<double>()});
  return out;
}

void RowLog::write(int64_t batch, const std::vector<int64_t>& columns,
                   const std::vector<KeptRow>& rows) const {
  if (folder_.empty() || rows.empty()) return;
  std::vector<int64_t> bounds{0};
  std::vector<torch::Tensor> entries, weights;
  std::vector<double> abs_sums;
  for (const auto& row : rows) {
    bounds.push_back(bounds.back() + row.columns.size(0));
    entries.push_back(row.columns.cpu());
    weights.push_back(row.weights.cpu());
    abs_sums.push_back(row.abs_sum);
  }
  // Whole numbers stand as float64, which holds them exactly: io reads floating tensors only.
  const auto whole = [](const torch::Tensor& x) { return x.to(torch::kFloat64); };
  io::save_safetensors(path_of(batch),
                       {{"columns", whole(at::tensor(columns, at::kLong))},
                        {"bounds", whole(at::tensor(bounds, at::kLong))},
                        {"entries", whole(at::cat(entries))},
                        {"weights", at::cat(weights)},
                        {"by_cell", stacked(rows, [](const KeptRow& row) { return row.by_cell_E; })},
                        {"errors", stacked(rows, [](const KeptRow& row) { return row.errors_E; })},
                        {"tokens", stacked(rows, [](const KeptRow& row) { return row.tokens_T; })},
                        {"biases", stacked(rows, [](const KeptRow& row) { return row.biases_B; })},
                        {"injections", stacked(rows, [](const KeptRow& row) { return row.injections_L; })},
                        {"abs_sums", at::tensor(abs_sums, at::kDouble)}},
                       {{kKey, key_}});
}

}  // namespace introspect::circuits
