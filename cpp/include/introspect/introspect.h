#pragma once

// Every public header of the library, module by module in the order in which they build on one another; but for
// core/parallel.h, which is for sources that are compiled with -fopenmp.

#include "introspect/core/check.h"
#include "introspect/core/error.h"
#include "introspect/core/progress.h"
#include "introspect/core/sha256.h"
#include "introspect/core/shapes.h"

#include "introspect/io/file.h"
#include "introspect/io/gguf.h"
#include "introspect/io/gguf_writer.h"
#include "introspect/io/hf_folder.h"
#include "introspect/io/mapped_tensors.h"
#include "introspect/io/memory_tensors.h"
#include "introspect/io/safetensors.h"
#include "introspect/io/tensor_source.h"

#include "introspect/text/chat.h"
#include "introspect/text/stream_decoder.h"
#include "introspect/text/tokenizer.h"

#include "introspect/ops/activation.h"
#include "introspect/ops/attention.h"
#include "introspect/ops/linear.h"
#include "introspect/ops/norm.h"
#include "introspect/ops/pca.h"
#include "introspect/ops/rotary.h"

#include "introspect/hooks/activation_cache.h"
#include "introspect/hooks/hook_point.h"
#include "introspect/hooks/hook_registry.h"
#include "introspect/hooks/intervention.h"
#include "introspect/hooks/intervention_json.h"
#include "introspect/hooks/operators.h"
#include "introspect/hooks/part.h"
#include "introspect/hooks/text_filter.h"

#include "introspect/cache/kv_cache.h"

#include "introspect/nn/attention.h"
#include "introspect/nn/block.h"
#include "introspect/nn/context.h"
#include "introspect/nn/mlp.h"
#include "introspect/nn/norm.h"

#include "introspect/models/cache_file.h"
#include "introspect/models/config.h"
#include "introspect/models/generate.h"
#include "introspect/models/model.h"
#include "introspect/models/process_weights.h"
#include "introspect/models/stacked_weights.h"
#include "introspect/models/with_weights.h"

#include "introspect/engine/plan.h"
#include "introspect/engine/run_plan.h"
#include "introspect/engine/run_trie.h"
#include "introspect/engine/token_trie.h"

#include "introspect/steering/activations.h"
#include "introspect/steering/apply.h"
#include "introspect/steering/condition.h"
#include "introspect/steering/control_vector.h"
#include "introspect/steering/diagnostics.h"
#include "introspect/steering/directions.h"
#include "introspect/steering/operators.h"
#include "introspect/steering/train.h"
#include "introspect/steering/words.h"

#include "introspect/graph/graph.h"
#include "introspect/graph/readouts.h"

#include "introspect/analysis/composition.h"
#include "introspect/analysis/residual_stream.h"

#include "introspect/experiments/bootstrap.h"
#include "introspect/experiments/confusion.h"
#include "introspect/experiments/detection.h"
#include "introspect/experiments/estimate.h"
#include "introspect/experiments/multiple_comparisons.h"
#include "introspect/experiments/null_band.h"
#include "introspect/experiments/protocol.h"
#include "introspect/experiments/rank_agreement.h"
#include "introspect/experiments/result.h"
#include "introspect/experiments/run.h"
#include "introspect/experiments/shift_table.h"
#include "introspect/experiments/statistics.h"
#include "introspect/experiments/store.h"

#include "introspect/version.h"
