#include "introspect/sae/train.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <system_error>
#include <typeinfo>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

#include "introspect/core/check.h"
#include "introspect/io/file.h"

#include "core/json.h"

namespace introspect::sae {
namespace {

namespace fs = std::filesystem;
using activations::ActivationStream;
using activations::SiteRows;

constexpr auto kWho = "train_dictionaries: ";
constexpr auto kStream = "stream.safetensors";
constexpr auto kRun = "run.json";
constexpr std::string_view kStep = "step-", kPartial = ".partial";
constexpr int64_t kRowsAtATime = 2048;  // of an evaluation

std::string dictionary_folder(size_t i) {
  return concat("dictionary-", i);
}

/// Which of the stream's sites a dictionary reads, and which it writes; no outputs: the same.
struct Sites {
  std::vector<size_t> inputs, outputs;

  static torch::Tensor of(const SiteRows& rows, const std::vector<size_t>& which) {
    if (which.empty()) return {};
    if (which.size() == 1) return rows[which.front()];
    std::vector<torch::Tensor> parts;
    for (const auto i : which) parts.push_back(rows[i]);
    return at::cat(parts, 1);
  }
  torch::Tensor x(const SiteRows& rows) const { return of(rows, inputs); }
  torch::Tensor y(const SiteRows& rows) const { return of(rows, outputs); }
};

/// The place of a site among the stream's.
size_t place_of(const std::string& hook_name, int64_t model, const ActivationStream& stream) {
  const auto& sites = stream.sites();
  const auto found = std::find_if(sites.begin(), sites.end(), [&](const auto& site) {
    return site.hook_name == hook_name && site.model == model;
  });
  check<ConfigError>(found != sites.end(), kWho, "the stream must have the dictionary's site ", hook_name,
                     " of model ", model);
  return static_cast<size_t>(found - sites.begin());
}

Sites sites_of(const Trainer& trainer, const ActivationStream& stream) {
  const auto find = [&](const DictionarySite& wanted) {
    const auto place = place_of(wanted.hook_name, wanted.model, stream);
    const auto* found = &stream.sites()[place];
    check<ConfigError>(found->width == wanted.width, kWho, "the dictionary's site ", wanted.hook_name,
                       " must be ", found->width, " wide, got ", wanted.width);
    return place;
  };
  const auto& origin = trainer.origin();
  check<ConfigError>(!origin.inputs.empty(), kWho, "a dictionary's origin must say the sites that it reads");
  Sites out;
  for (const auto& site : origin.inputs) out.inputs.push_back(find(site));
  const auto& outputs = origin.outputs.empty() ? origin.inputs : origin.outputs;
  if (trainer.options().transcodes || outputs != origin.inputs)
    for (const auto& site : outputs) out.outputs.push_back(find(site));
  return out;
}

nlohmann::json to_json(const TrainingRecord& record) {
  auto trained = nlohmann::json::array();
  for (const auto& m : record.trained)
    trained.push_back({m.step, m.rows, m.loss, m.mse, m.sparsity_loss, m.aux_loss, m.l0, m.explained_variance,
                       m.dead_share, m.gradient_norm, m.lr, m.coefficient, m.threshold});
  // NaN is no JSON number: it is left out, and read as one.
  auto held_out = nlohmann::json::array();
  for (const auto& figures : record.held_out) {
    auto finite = nlohmann::json::object();
    for (const auto& [name, value] : figures)
      if (std::isfinite(value)) finite[name] = value;
    held_out.push_back(std::move(finite));
  }
  return {{"step", record.step}, {"rows", record.rows}, {"trained", trained}, {"held_out", held_out}};
}

TrainingRecord record_from(const JsonField<IoError>& field) {
  TrainingRecord out{field.at("step").integer(), field.at("rows").integer(), {}, {}};
  const auto trained = field.at("trained");
  for (size_t i = 0; i < trained.list(); ++i) {
    const auto row = trained.at(i);
    row.require(row.list() == 13, "must hold 13 numbers");
    const auto number = [&](size_t k) { return row.at(k).is_null() ? std::nan("") : row.at(k).number(); };
    out.trained.push_back({row.at(0).integer(), row.at(1).integer(), number(2), number(3), number(4),
                           number(5), number(6), number(7), number(8), number(9), number(10), number(11),
                           number(12)});
  }
  const auto held_out = field.at("held_out");
  for (size_t i = 0; i < held_out.list(); ++i) {
    auto& figures = out.held_out.emplace_back();
    held_out.at(i).for_each_field(
        [&](const std::string& name, const auto& value) { figures[name] = value.number(); });
  }
  return out;
}

/// The checkpoint of the most steps in a folder.
std::optional<std::pair<int64_t, fs::path>> latest(const fs::path& folder) {
  std::optional<std::pair<int64_t, fs::path>> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none)) {
    const auto name = entry.path().filename().string();
    if (!name.starts_with(kStep) || name.ends_with(kPartial)) continue;
    const auto step = parse_key<IoError>(name.substr(kStep.size()), kWho, "a checkpoint's step");
    if (!out || step > out->first) out = {step, entry.path()};
  }
  return out;
}

class Run {
 public:
  Run(ActivationStream& stream, std::vector<Trainer> trainers, const TrainOptions& options)
      : stream_(stream), options_(options) {
    check<std::invalid_argument>(!trainers.empty(), kWho, "at least one dictionary is needed, got none");
    check<std::invalid_argument>(options.steps >= 0 && options.held_out_rows >= 0 &&
                                     options.evaluate_every >= 0 && options.record_every >= 1 &&
                                     options.checkpoint_every >= 1,
                                 kWho,
                                 "steps, held_out_rows and evaluate_every must be 0 or more, "
                                 "record_every and checkpoint_every 1 or more, got ",
                                 options.steps, ", ", options.held_out_rows, ", ", options.evaluate_every,
                                 ", ", options.record_every, " and ", options.checkpoint_every);
    for (const auto& trainer : trainers) sites_.push_back(sites_of(trainer, stream));
    run_.trainers = std::move(trainers);
  }

  TrainingRun run() {
    const auto found = options_.folder.empty() ? std::nullopt : latest(options_.folder);
    check<IoError>(!found || options_.resume, kWho, options_.folder.string(),
                   ": holds a checkpoint; resume goes on from it");
    if (found) load(found->second);
    report(options_.progress, "reading what is held out", 0, 0);
    held_out_ = stream_.hold_out(options_.held_out_rows);
    if (found)
      stream_.restore(found->second / kStream);
    else
      begin();
    while (step_ < options_.steps) {
      interruptible([&] { report(options_.progress, "training", step_, options_.steps); });
      step();
      if (!options_.folder.empty() && (step_ % options_.checkpoint_every == 0 || step_ == options_.steps))
        save();
    }
    report(options_.progress, "training", step_, options_.steps);
    return std::move(run_);
  }

 private:
  void begin() {
    for (size_t i = 0; i < run_.trainers.size() && !held_out_.empty(); ++i)
      if (run_.trainers[i].steps() == 0)
        run_.trainers[i].measure(sites_[i].x(held_out_), sites_[i].y(held_out_));
    if (held_out_.empty()) return;
    TrainingRecord record;
    evaluate(record);
    keep(std::move(record));
  }

  void step() {
    const auto batch = stream_.next_batch();
    check<std::invalid_argument>(!batch.empty(), kWho, "the stream must have ", options_.steps,
                                 " batches, and ended after ", step_,
                                 "; a stream that repeats its texts does not end");
    TrainingRecord record;
    good([&] {
      for (size_t i = 0; i < run_.trainers.size(); ++i)
        record.trained.push_back(run_.trainers[i].step(sites_[i].x(batch), sites_[i].y(batch)));
    });
    record.step = ++step_;
    record.rows = rows_ += batch.front().size(0);
    const bool last = step_ == options_.steps;
    const bool evaluates =
        !held_out_.empty() && (last || (options_.evaluate_every > 0 && step_ % options_.evaluate_every == 0));
    if (evaluates) interruptible([&] { good([&] { evaluate(record); }); });
    if (evaluates || last || step_ % options_.record_every == 0) keep(std::move(record));
  }

  void evaluate(TrainingRecord& record) const {
    for (size_t i = 0; i < run_.trainers.size(); ++i) {
      const auto dictionary = run_.trainers[i].dictionary();
      const auto x = sites_[i].x(held_out_), y = sites_[i].y(held_out_);
      ReconstructionStatistics statistics(dictionary.d_sae(), dictionary.d_out());
      for (int64_t row = 0; row < x.size(0); row += kRowsAtATime) {
        const auto n = std::min(kRowsAtATime, x.size(0) - row);
        report(options_.progress, "evaluating", row, x.size(0));
        statistics.add(dictionary, x.narrow(0, row, n).to(dictionary.dtype()),
                       y.defined() ? y.narrow(0, row, n).to(dictionary.dtype()) : torch::Tensor{});
      }
      const auto figures = statistics.figures();
      auto& out =
          record.held_out.emplace_back(HeldOutFigures{{"mse", figures.mse},
                                                      {"explained_variance", figures.explained_variance},
                                                      {"l0", figures.l0},
                                                      {"dead_share", figures.dead_share}});
      if (options_.evaluate) out.merge(options_.evaluate(i, dictionary));
    }
  }

  void keep(TrainingRecord record) {
    run_.records.push_back(std::move(record));
    if (options_.on_record) interruptible([&] { options_.on_record(run_.records.back()); });
  }

  /// What fails where training has gone wrong: a loss that is not finite, or weights that are not (std::invalid_argument of
  /// Dictionary).
  template <typename Work>
  void good(const Work& work) const {
    try {
      work();
    } catch (const std::exception& error) {
      if (typeid(error) != typeid(Error) && typeid(error) != typeid(std::invalid_argument)) throw;
      const auto found = options_.folder.empty() ? std::nullopt : latest(options_.folder);
      throw Error(concat(kWho, "step ", step_, ": ", error.what(), "; ",
                         found ? "the last good checkpoint is " + found->second.string()
                               : std::string("no checkpoint was kept")));
    }
  }

  bool is_sound() const {
    try {
      for (const auto& trainer : run_.trainers) trainer.dictionary();
    } catch (const std::exception&) {
      return false;
    }
    return true;
  }

  /// What may be interrupted from outside: what was trained so far is kept then.
  template <typename Work>
  void interruptible(const Work& work) {
    try {
      work();
    } catch (...) {
      if (!options_.folder.empty() && step_ > 0 && is_sound()) save();
      throw;
    }
  }

  void save() const {
    good([&] { run_.dictionaries(); });
    const auto target = options_.folder / concat(kStep, step_);
    const fs::path partial = target.string() + std::string(kPartial);
    try {
      if (!fs::exists(target)) write_checkpoint(target, partial);
    } catch (
        const std::exception& error) {  // a full disk keeps the checkpoint before, and no half of this one
      std::error_code none;
      fs::remove_all(partial, none);
      if (dynamic_cast<const fs::filesystem_error*>(&error) == nullptr) throw;
      throw IoError(concat(kWho, error.what()));
    }
  }

  void write_checkpoint(const fs::path& target, const fs::path& partial) const {
    fs::remove_all(partial);
    fs::create_directories(partial);
    for (size_t i = 0; i < run_.trainers.size(); ++i) run_.trainers[i].save(partial / dictionary_folder(i));
    stream_.save(partial / kStream);
    nlohmann::json json = {{"step", step_}, {"rows", rows_}, {"dictionaries", run_.trainers.size()}};
    for (const auto& record : run_.records) json["records"].push_back(to_json(record));
    io::write_atomically(partial / kRun, json.dump());
    fs::rename(partial, target);
    for (const auto& entry : fs::directory_iterator(options_.folder))
      if (entry.path() != target && entry.path().filename().string().starts_with(kStep))
        fs::remove_all(entry.path());
  }

  /// All but the stream, which is restored when what is held out was read.
  void load(const fs::path& checkpoint) {
    stream_.check_state(checkpoint / kStream);
    const auto who = concat(kWho, (checkpoint / kRun).string());
    const auto text = io::read_text(checkpoint / kRun);
    const auto json = parse_json<IoError>(text, who);
    const JsonField<IoError> field(json, who + ": ");
    check<ConfigError>(field.at("dictionaries").integer() == static_cast<int64_t>(run_.trainers.size()), kWho,
                       checkpoint.string(), ": must be of ", run_.trainers.size(), " dictionaries, is of ",
                       field.at("dictionaries").integer());
    for (size_t i = 0; i < run_.trainers.size(); ++i) {
      auto& trainer = run_.trainers[i];
      auto loaded = Trainer::load(checkpoint / dictionary_folder(i));
      check<ConfigError>(loaded.options() == trainer.options() &&
                             loaded.origin().inputs == trainer.origin().inputs &&
                             loaded.origin().outputs == trainer.origin().outputs,
                         kWho, checkpoint.string(), ": dictionary ", i,
                         " must have the options and sites that it was trained with; those are ",
                         loaded.options().to_json());
      trainer = std::move(loaded);
    }
    step_ = field.at("step").integer();
    rows_ = field.at("rows").integer();
    const auto records = field.at("records");
    for (size_t i = 0; i < records.list(); ++i) run_.records.push_back(record_from(records.at(i)));
  }

  ActivationStream& stream_;
  const TrainOptions& options_;
  TrainingRun run_;
  std::vector<Sites> sites_;
  SiteRows held_out_;
  int64_t step_ = 0, rows_ = 0;
};

}  // namespace

std::vector<Dictionary> TrainingRun::dictionaries() const {
  std::vector<Dictionary> out;
  for (const auto& trainer : trainers) out.push_back(trainer.dictionary());
  return out;
}

Trainer make_trainer(const ActivationStream& stream, const TrainerOptions& options,
                     const std::vector<activations::StreamSite>& inputs,
                     const std::vector<activations::StreamSite>& outputs, DictionaryOrigin origin) {
  const auto with_widths = [&](const std::vector<activations::StreamSite>& sites, int64_t& width) {
    std::vector<DictionarySite> out;
    for (const auto& site : sites) {
      const auto& found = stream.sites()[place_of(site.hook_name, site.model, stream)];
      out.push_back({found.hook_name, found.width, found.model});
      width += found.width;
    }
    return out;
  };
  int64_t d_in = 0, d_out = 0;
  origin.inputs = with_widths(inputs, d_in);
  origin.outputs = with_widths(outputs.empty() ? inputs : outputs, d_out);
  return {options, std::move(origin), d_in, d_out};
}

TrainingRun train_dictionaries(ActivationStream& stream, std::vector<Trainer> trainers,
                               const TrainOptions& options) {
  return Run(stream, std::move(trainers), options).run();
}

}  // namespace introspect::sae
