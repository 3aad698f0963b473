#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "introspect/activations/activation_stream.h"
#include "introspect/core/progress.h"
#include "introspect/export.h"
#include "introspect/sae/dictionary.h"
#include "introspect/sae/evaluation.h"
#include "introspect/sae/trainer.h"

namespace introspect::sae {

/// Figures of one dictionary on the rows that are held out, by name: "explained_variance", "l0", "mse", "dead_share", and
/// what TrainOptions::evaluate adds.
using HeldOutFigures = std::map<std::string, double>;

/// What is known of all dictionaries after a step.
struct TrainingRecord {
  int64_t step = 0;  ///< steps done
  int64_t rows = 0;
  std::vector<TrainerMetrics> trained;   ///< of the step's own batch
  std::vector<HeldOutFigures> held_out;  ///< empty between evaluations
};

struct TrainOptions {
  int64_t steps = 0;               ///< of all; a resumed run counts those before
  int64_t held_out_rows = 8192;    ///< taken from the stream's beginning; 0: none, and no evaluation
  int64_t evaluate_every = 500;    ///< steps; also before the first step and after the last. 0: only then
  int64_t record_every = 10;       ///< steps; and where there is an evaluation
  std::filesystem::path folder;    ///< of checkpoints; empty: none are kept
  int64_t checkpoint_every = 500;  ///< steps; also after the last and when training is interrupted
  bool resume = false;  ///< goes on from the folder's checkpoint; from the beginning if it has none
  std::function<void(const TrainingRecord&)> on_record;
  /// More figures of a dictionary as it stands, such as the loss of the model with it spliced in.
  std::function<HeldOutFigures(size_t which, const Dictionary& dictionary)> evaluate;
  Progress progress;
};

struct TrainingRun {
  std::vector<Trainer> trainers;
  std::vector<TrainingRecord> records;  ///< of a resumed run also those before

  INTROSPECT_EXPORT std::vector<Dictionary> dictionaries() const;
};

/// A trainer of a dictionary that reads `inputs` of a stream, side by side, and writes `outputs`; none: the same. Widths are
/// the stream's, `origin` has the rest. Throws ConfigError for a site that the stream does not have, and as Trainer does.
INTROSPECT_EXPORT Trainer make_trainer(const activations::ActivationStream& stream,
                                       const TrainerOptions& options,
                                       const std::vector<activations::StreamSite>& inputs,
                                       const std::vector<activations::StreamSite>& outputs = {},
                                       DictionaryOrigin origin = {});

/// Trains several dictionaries on one stream: each reads the sites of its origin's inputs, side by side, and a transcoder is
/// given those of its outputs.
///
/// A checkpoint is a folder step-N under options.folder: the trainers, the stream with its buffer, the records. It appears
/// whole or not at all and the one before goes when it is there, so that a killed process leaves one to go on from, with the
/// same numbers bit for bit on as many threads.
/// Throws before the first step std::invalid_argument for no trainers and options out of range, ConfigError for sites that
/// the stream does not have and a checkpoint of other dictionaries, IoError for a checkpoint that is damaged, and for a folder
/// with one unless `resume`. Throws Error if a loss or gradient is not finite or all features are dead, naming the last good
/// checkpoint, and std::invalid_argument if the stream ends before the last step.
INTROSPECT_EXPORT TrainingRun train_dictionaries(activations::ActivationStream& stream,
                                                 std::vector<Trainer> trainers,
                                                 const TrainOptions& options = {});

}  // namespace introspect::sae
