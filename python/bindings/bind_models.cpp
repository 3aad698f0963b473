#include "bindings.h"

#include "bind_adapter.h"
#include "bind_config.h"

#include "introspect/core/check.h"
#include "introspect/models/adapter.h"
#include "introspect/models/finite.h"
#include "introspect/models/generate.h"
#include "introspect/models/model.h"
#include "introspect/models/new_model.h"
#include "introspect/models/process_weights.h"
#include "introspect/models/read_config.h"
#include "introspect/models/stacked_weights.h"
#include "introspect/models/weights_held.h"
#include "introspect/models/with_weights.h"

namespace introspect::python {

namespace {

models::LogitsAt parse_logits_at(const std::string& where) {
  if (where == "all") return models::LogitsAt::kAll;
  if (where == "last") return models::LogitsAt::kLast;
  if (where == "none") return models::LogitsAt::kNone;
  if (where == "positions") return models::LogitsAt::kPositions;
  throw std::invalid_argument("logits_at must be all, last, none or positions, got " + where);
}

/// A registry of the call's own: that of the caller may be changed by another thread while the pass runs.
std::optional<hooks::HookRegistry> own_copy(const hooks::HookRegistry* hooks) {
  return hooks ? std::optional(*hooks) : std::nullopt;
}

models::PaddingSide parse_side(const std::string& side) {
  if (side == "left") return models::PaddingSide::kLeft;
  if (side == "right") return models::PaddingSide::kRight;
  throw std::invalid_argument("padding_side must be left or right, got " + side);
}

}  // namespace

void bind_models(py::module_& m) {
  using models::ForwardOptions;
  using models::GenerateOptions;
  using models::LoadOptions;
  using models::Model;
  bind_config(m);
  bind_adapter(m);

  m.def("read_config", &models::read_config, py::arg("path"), py::call_guard<py::gil_scoped_release>(),
        "The Config of a model's folder or .gguf file, without reading a weight. Raises as Model.load.");

  py::class_<Model, std::shared_ptr<Model>>(
      m, "Model", "The native model that introspect.Model drives; its state never changes.")
      .def_static(
          "load",
          [](const std::filesystem::path& path, torch::ScalarType dtype, torch::Device device,
             std::map<int64_t, torch::Device> block_devices, std::optional<text::ChatTemplate> chat_template,
             std::optional<int64_t> n_ctx, std::optional<bool> keep_blocks,
             std::optional<int64_t> memory_budget, const std::optional<std::string>& weights,
             py::object progress) {
            LoadOptions options{
                dtype,       device,       std::move(chat_template), std::move(block_devices), n_ctx,
                keep_blocks, memory_budget};
            if (weights) options.weights = models::parse_weights_held(*weights);
            options.progress = as_progress(std::move(progress));
            const py::gil_scoped_release release;
            return std::const_pointer_cast<Model>(Model::load(path, options));
          },
          py::arg("path"), py::kw_only(), py::arg("dtype") = torch::kFloat32,
          py::arg("device") = torch::Device("cpu"),
          py::arg("block_devices") = std::map<int64_t, torch::Device>{},
          py::arg("chat_template") = py::none(), py::arg("n_ctx") = py::none(),
          py::arg("keep_blocks") = py::none(), py::arg("memory_budget") = py::none(),
          py::arg("weights") = py::none(), py::arg("progress") = py::none(), R"doc(
Reads a Hugging Face folder or a .gguf file; nothing in it is executed.

Args:
    dtype: of the weights and activations: float32, bfloat16, float16 or float64.
    device: where the weights live.
    block_devices: where single blocks live instead, with their keys and values.
    chat_template: instead of the one found beside the weights.
    n_ctx: the longest text, instead of what the files say. With rope scaling "longrope" and "dynamic" the frequencies
        are those of a text of this length; left out, those before scaling.
    keep_blocks: False reads each block from the files when it runs, and drops it after it. None: where all is on the
        CPU and the model would take more than ``memory_budget``.
    memory_budget: bytes that the model may take in memory; None: 85 % of what is free, in a container
        or a job of what it may still take.
    weights: how quantised matrices of a GGUF file are held: "dense", in ``dtype``, or "as stored", in their blocks.
    progress: called with (what, done, total).

Raises:
    IoError: a file is missing or damaged.
    ConfigError: an architecture, quantisation or option that is not supported.
    ShapeError: a tensor contradicts the config.
)doc")
      .def_static(
          "from_state_dict",
          [](const std::string& config_json, std::map<std::string, torch::Tensor> tensors,
             torch::ScalarType dtype, torch::Device device,
             const std::optional<std::filesystem::path>& tokenizer_path,
             std::optional<text::ChatTemplate> chat_template, std::optional<int64_t> n_ctx) {
            LoadOptions options;
            options.n_ctx = n_ctx;
            options.dtype = dtype;
            options.device = device;
            options.chat_template = std::move(chat_template);
            const py::gil_scoped_release release;
            return std::const_pointer_cast<Model>(
                Model::from_tensors(config_json, std::move(tensors), tokenizer_path, options));
          },
          py::arg("config_json"), py::arg("tensors"), py::kw_only(), py::arg("dtype") = torch::kFloat32,
          py::arg("device") = torch::Device("cpu"), py::arg("tokenizer_path") = py::none(),
          py::arg("chat_template") = py::none(), py::arg("n_ctx") = py::none(), R"doc(
Copies a transformers model that is in memory; no file is written.

Args:
    config_json: its ``config.to_json_string()``.
    tensors: its ``state_dict()``, of any dtype and device; tied weights may be there under both names.
    dtype: of the weights and activations: float32, bfloat16, float16 or float64.
    device: where the weights live.
    tokenizer_path: a Hugging Face folder, tokenizer file or .gguf file; None makes a model without text.
    chat_template: instead of the one found beside the tokenizer.

Raises:
    ConfigError: an architecture or option that is not supported, or a tensor that is missing.
    ShapeError: a tensor contradicts the config.
    IoError: the tokenizer's files are missing or damaged.
)doc")
      .def_property_readonly("cfg", &Model::cfg, py::return_value_policy::reference_internal)
      .def_property_readonly("dtype", &Model::dtype)
      .def_property_readonly("device", py::overload_cast<>(&Model::device, py::const_))
      .def_property_readonly("hash", &Model::hash, "Identity of the checkpoint, hex SHA-256.")
      .def_property_readonly("n_params", &Model::n_params)
      .def_property_readonly("nbytes", &Model::nbytes)
      .def_property_readonly("keeps_blocks", &Model::keeps_blocks)
      .def_property_readonly(
          "weights_held", [](const Model& model) { return models::to_string(models::weights_held(model)); },
          "\"as stored\" if any matrix is held in quantised blocks, in memory or in the files, otherwise "
          "\"dense\".")
      .def_property_readonly("precision", &models::precision_name, R"doc(
What it computes with, as results and stores tell it: "float32", "bfloat16", and in dtypes of 16 bits
"bfloat16, weights as stored", since values that are unpacked for products and readouts of few rows are not rounded to
the dtype as dense ones are. In float32 and float64 both ways multiply the same values: not told apart.
)doc")
      .def("bytes_read", &Model::bytes_read, py::arg("layer"),
           "Bytes of the files that a block is read from, each time that it runs; 0 where blocks are in "
           "memory.")
      .def_property_readonly("n_block_reads", &Model::n_block_reads,
                             "How many blocks have been read from the files to be run.")
      .def_property_readonly("tokenizer", &Model::tokenizer, py::return_value_policy::reference_internal)
      .def_property_readonly("chat_template", &Model::chat_template,
                             py::return_value_policy::reference_internal)
      .def_property_readonly("has_tokenizer", &Model::has_tokenizer)
      .def_property_readonly("has_chat_template", &Model::has_chat_template)
      .def("make_cache", &Model::make_cache, py::arg("batch") = 1, py::arg("stop_at_layer") = py::none(),
           "An empty cache that fits this model, or passes that stop at a layer.")
      .def(
          "hook_names",
          [](const Model& model, bool use_attn_result, bool use_split_qkv_input, bool use_attn_in,
             bool use_hook_mlp_in) {
            return models::hook_points(model.cfg())
                .names({use_attn_result, use_split_qkv_input, use_attn_in, use_hook_mlp_in});
          },
          py::kw_only(), py::arg("use_attn_result") = false, py::arg("use_split_qkv_input") = false,
          py::arg("use_attn_in") = false, py::arg("use_hook_mlp_in") = false, R"doc(
Every hook name, in the order of the forward pass.

Args:
    use_attn_result: attn.hook_result too; like the other three it can always be hooked by its name.
    use_split_qkv_input: hook_q_input, hook_k_input and hook_v_input too.
    use_attn_in: hook_attn_in too.
    use_hook_mlp_in: hook_mlp_in too.
)doc")
      .def(
          "check_hook_name",
          [](const Model& model, const std::string& name) { models::hook_points(model.cfg()).parse(name); },
          py::arg("name"),
          "Raises HookError, naming the nearest, where this model has no hook point of this name.")
      .def("make_hooks", &Model::make_hooks, "An empty registry for this model's hook points.")
      .def("to_tokens", &Model::to_tokens, py::arg("text"), py::call_guard<py::gil_scoped_release>(),
           "int64 [1, pos], with the tokenizer's BOS in front unless the text begins with it.")
      .def(
          "forward",
          [](const Model& model, const torch::Tensor& tokens, cache::KVCache* cache,
             const hooks::HookRegistry* hooks, std::optional<torch::Tensor> attention_mask,
             const std::string& logits_at, std::optional<torch::Tensor> positions,
             std::optional<torch::Tensor> vocab_ids, std::optional<int64_t> start_at_layer,
             std::optional<int64_t> stop_at_layer, std::optional<int64_t> n_prompt,
             std::optional<torch::Tensor> history) -> std::optional<torch::Tensor> {
            const auto own_hooks = own_copy(hooks);
            ForwardOptions options;
            options.cache = cache;
            options.hooks = own_hooks ? &*own_hooks : nullptr;
            options.attention_mask = attention_mask.value_or(torch::Tensor{});
            options.logits_at = parse_logits_at(logits_at);
            options.positions = positions.value_or(torch::Tensor{});
            options.vocab_ids = vocab_ids.value_or(torch::Tensor{});
            options.start_at_layer = start_at_layer;
            options.stop_at_layer = stop_at_layer;
            options.n_prompt = n_prompt;
            options.history = history.value_or(torch::Tensor{});
            const py::gil_scoped_release release;
            const auto logits = model.forward(tokens, options);
            return logits.defined() ? std::optional(logits) : std::nullopt;
          },
          py::arg("tokens"), py::kw_only(), py::arg("cache") = py::none(), py::arg("hooks") = py::none(),
          py::arg("attention_mask") = py::none(), py::arg("logits_at") = "all",
          py::arg("positions") = py::none(), py::arg("vocab_ids") = py::none(),
          py::arg("start_at_layer") = py::none(), py::arg("stop_at_layer") = py::none(),
          py::arg("n_prompt") = py::none(), py::arg("history") = py::none(), R"doc(
Logits for int64 tokens [batch, pos], or for a residual [batch, pos, d_model] with start_at_layer.

Args:
    cache: continued and appended to.
    hooks: what to read and change on the way.
    attention_mask: bool [batch, pos], False for padding, on either side.
    logits_at: "all", "last" (the last real position of each row), "positions" or "none".
    positions: int64 [n], for logits_at="positions".
    vocab_ids: int64 [n]; only these tokens' logits.
    start_at_layer: the input is the residual before this block, in the model's dtype.
    stop_at_layer: run the blocks before this one only and return the residual [batch, pos, d_model].
    n_prompt: how many positions from the cache's start are the prompt, to interventions that ask; without a cache all.
    history: int64 [batch, length of the cache], the tokens it holds, to interventions that ask.

Returns:
    float32 (float64 for a float64 model) [batch, pos, d_vocab], None for "none", or the residual. "all" is computed in the model's dtype,
    "last" and "positions" are readouts: final norm and unembedding in float32.

Raises:
    IndexError: token ids or positions out of range.
    ShapeError: wrong shapes, or more than n_ctx positions.
    HookError: hooks that need gradients while they are switched off, or more of the text than is known.
)doc")
      .def("quantised_weights", &Model::quantised_weights,
           "The names of the weights that are held in quantised blocks, which are no tensors.")
      .def("named_weights", &Model::named_weights, py::kw_only(), py::arg("skip_quantised") = false, R"doc(
Every tensor once, by name, in the form in which the layers use it: "embed.W_E", "blocks.3.attn.W_QKV"; an adapter's too:
"blocks.3.attn.A_QKV.0" and "blocks.3.attn.B_QKV.0" are its matrices for queries.

They are the live weights: never to be written to, but ``requires_grad_()`` on one makes a pass differentiable in it.
)doc")
      .def(
          "readout",
          [](const Model& model, const torch::Tensor& resid, std::optional<torch::Tensor> vocab_ids) {
            const py::gil_scoped_release release;
            return model.readout(resid, vocab_ids.value_or(torch::Tensor{}));
          },
          py::arg("resid"), py::kw_only(), py::arg("vocab_ids") = py::none(), R"doc(
Float32 logits [..., d_vocab] of residuals [..., d_model] after the last block.

Args:
    vocab_ids: int64 [n]; only these tokens' logits, [..., n].
)doc")
      .def(
          "check_finite",
          [](const Model& model, const torch::Tensor& logits, const std::string& who,
             const cache::KVCache* cache, std::optional<torch::Tensor> tokens,
             std::optional<torch::Tensor> attention_mask, const hooks::HookRegistry* hooks) {
            check<std::invalid_argument>(cache != nullptr || tokens.has_value(),
                                         "check_finite: a cache or tokens must be given");
            const py::gil_scoped_release release;
            models::check_finite(who, model, logits, [&] {
              if (cache != nullptr) return models::first_not_finite(model, *cache);
              models::ForwardOptions options;
              options.hooks = hooks;
              if (attention_mask) options.attention_mask = *attention_mask;
              return models::first_not_finite(model, *tokens, options);
            });
          },
          py::arg("logits"), py::kw_only(), py::arg("who") = "check_finite", py::arg("cache") = py::none(),
          py::arg("tokens") = py::none(), py::arg("attention_mask") = py::none(),
          py::arg("hooks") = py::none(),
          R"doc(
Raises Error unless the largest logit of every row is a number.

``forward`` returns NaN and infinity as they are; whatever samples or keeps what it reads asks here first. Minus infinity
is a number for logits of forbidden tokens.

Args:
    logits: [..., d_vocab].
    who: begins the message.
    cache: what the pass filled: its keys and values tell the first block whose residual is not finite.
    tokens: int64 [batch, pos]; without a cache, passes over them find that block.
    attention_mask: bool [batch, pos], of the tokens.
    hooks: in effect during these passes.
)doc")
      .def(
          "generate",
          [](const Model& model, const std::vector<std::vector<int64_t>>& prompts, int64_t max_new_tokens,
             double temperature, int64_t top_k, double top_p, double repetition_penalty, uint64_t seed,
             bool stop_at_eos, const std::vector<int64_t>& stop_token_ids, const std::string& padding_side,
             const hooks::HookRegistry* hooks, std::function<bool(int64_t, int64_t)> on_token,
             const std::string& step) {
            const auto own_hooks = own_copy(hooks);
            GenerateOptions options{max_new_tokens,
                                    temperature,
                                    top_k,
                                    top_p,
                                    repetition_penalty,
                                    seed,
                                    stop_at_eos,
                                    stop_token_ids,
                                    parse_side(padding_side),
                                    own_hooks ? &*own_hooks : nullptr,
                                    {}};
            options.step = models::parse_step(step);
            options.on_token = [on_token](int64_t row, int64_t token) {
              const py::gil_scoped_acquire acquire;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
              return !on_token || on_token(row, token);
            };
            const py::gil_scoped_release release;
            return models::generate(model, prompts, options);
          },
          py::arg("prompts"), py::kw_only(), py::arg("max_new_tokens") = 20, py::arg("temperature") = 0.0,
          py::arg("top_k") = 0, py::arg("top_p") = 1.0, py::arg("repetition_penalty") = 1.0,
          py::arg("seed") = 0, py::arg("stop_at_eos") = true,
          py::arg("stop_token_ids") = std::vector<int64_t>{}, py::arg("padding_side") = "left",
          py::arg("hooks") = py::none(), py::arg("on_token") = py::none(), py::arg("step") = "plain", R"doc(
Continues each prompt (a list of token ids) and returns the new tokens of each.

Args:
    temperature: 0 is greedy.
    top_k: 0 keeps all tokens.
    top_p: the smallest set of tokens whose probability reaches it.
    repetition_penalty: over prompt and continuation (Keskar et al. 2019, arXiv:1909.05858).
    seed: each row draws from a stream of its own.
    stop_at_eos: stop a row at the tokenizer's stop tokens; the stop token is returned.
    hooks: in effect during the prompt and every step.
    on_token: called with (row, token) as soon as it is chosen; False ends the generation.
    step: "plain" computes each token in a pass of its own. "static" does the same work at the same addresses for every
        token, so that a device that can (CUDA) replays it instead of waiting for the host; it needs a model on one device,
        without experts, blocks in memory, and no hooks but interventions that act alike at every new position. "auto"
        does so where it is possible and pays; no CUDA device has run one yet. The numbers are the same within rounding.

Raises:
    ValueError: an empty prompt, or options out of range.
    ConfigError: a static step is not possible; it says why.
    ShapeError: prompt and continuation do not fit into n_ctx.
    Error: the logits are not finite, before a token is chosen; it names the first block (see check_finite).
)doc")
      .def("weight_names", &models::weight_names,
           "Names of TransformerLens's state dict of this model; keys and values of grouped attention by the "
           "group.")
      .def("weight", &models::weight, py::arg("name"), R"doc(
A weight under TransformerLens's name and in its shape: "embed.W_E" [d_vocab, d_model], "blocks.3.attn.W_Q"
[n_heads, d_model, d_head], "blocks.3.mlp.W_out" [d_mlp, d_model], "unembed.W_U" [d_model, d_vocab].

"attn.W_K" repeats a group's keys for each of its query heads, "attn._W_K" holds each group once; so for W_V, b_K and
b_V. What the model has is a view of the tensor in use: never write to it, other models may share it. Missing biases
(zeros), repeated groups, a scaled embedding (Gemma's) and weights that an adapter is added to are copies.

Raises:
    ValueError: a name that the model does not have.
)doc")
      .def("stacked_weight", &models::stacked_weight, py::arg("name"),
           py::call_guard<py::gil_scoped_release>(),
           R"doc(
A weight of every block in one new tensor: "attn.W_Q" gives [n_layers, n_heads, d_model, d_head].

Raises:
    ValueError: a name that the model's blocks do not have.
)doc")
      .def(
          "with_weights",
          [](const Model& model, const std::map<std::string, torch::Tensor>& weights) {
            return std::const_pointer_cast<Model>(models::with_weights(model, weights));
          },
          py::arg("weights"), py::call_guard<py::gil_scoped_release>(), R"doc(
A model in which some weights are others; this one stays as it is, and what is not given is shared with it.

Args:
    weights: by name, shape, dtype and device as in ``named_weights``. They are used as they are and not copied: copies
        that require gradients can be trained in place. The hash counts their bytes at this moment.

Raises:
    ValueError: a name that the model does not have.
    ShapeError: a tensor that is not as the one it replaces.
)doc")
      .def(
          "with_adapter",
          [](const Model& model, const models::Adapter& adapter, double scale) {
            return std::const_pointer_cast<Model>(model.with_adapter(adapter, scale));
          },
          py::arg("adapter"), py::kw_only(), py::arg("scale") = 1.0, py::call_guard<py::gil_scoped_release>(),
          R"doc(
This model with a LoRA adapter in effect; this one stays as it is, and all but the adapter is shared with it.

Its products are computed in float32, as in peft (float64 for a float64 model). Adapters add up. The hash is another one.

Args:
    scale: how strong, against what it was trained for; with 0 the model is as it was.

Raises:
    ConfigError: an adapter of another model (other layers or modules than its own config asks for), an architecture
        whose modules have no known names, or processed weights.
    ShapeError: matrices of other sizes than the model's.
    ValueError: a scale that is not finite.
)doc")
      .def(
          "processed",
          [](const Model& model, bool fold_ln, bool center_writing_weights, bool center_unembed,
             bool fold_value_biases, bool refactor_factored_attn_matrices) {
            return std::const_pointer_cast<Model>(
                models::processed(model, {fold_ln, center_writing_weights, center_unembed, fold_value_biases,
                                          refactor_factored_attn_matrices}));
          },
          py::kw_only(), py::arg("fold_ln") = false, py::arg("center_writing_weights") = false,
          py::arg("center_unembed") = false, py::arg("fold_value_biases") = false,
          py::arg("refactor_factored_attn_matrices") = false, py::call_guard<py::gil_scoped_release>(), R"doc(
A model whose weights are easier to read and compute the same; this one stays as it is, and what is equal is shared.

Args:
    fold_ln: the weights (and LayerNorm's biases) of norms go into the products that read their output.
    center_writing_weights: what is written to the residual stream has no mean, which LayerNorm does not see.
    center_unembed: the logits of a position have no mean: log-probabilities stay, logits do not.
    fold_value_biases: into b_O, since patterns sum to one.
    refactor_factored_attn_matrices: W_V W_O and W_Q W_K^T of each head by their singular values.

Raises:
    ConfigError: the result would be another model: center_writing_weights without LayerNorm, center_unembed with a
        soft cap on logits, refactor_factored_attn_matrices with rotary positions, q/k norms or grouped keys.
)doc");

  m.def("replays_steps", &models::replays_steps, py::arg("device"),
        "True if static steps of a generation (step=) are replayed on a torch.device, and none has failed to "
        "be.");
  m.def(
      "new_model",
      [](const models::Config& cfg, torch::ScalarType dtype, torch::Device device) {
        return std::const_pointer_cast<models::Model>(models::new_model(cfg, dtype, device));
      },
      py::arg("cfg"), py::kw_only(), py::arg("dtype") = torch::kFloat32,
      py::arg("device") = torch::Device("cpu"), py::call_guard<py::gil_scoped_release>(), R"doc(
A model that nothing has been trained into: matrices and biases are zero, the weights of norms one; without a tokenizer.

Raises:
    ConfigError: a config or dtype that no model has.
)doc");
}

}  // namespace introspect::python
