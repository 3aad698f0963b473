"""
The native part of introspect: see the package's own modules for the public names.
"""

from __future__ import annotations
import collections.abc
import os
import pathlib
import torch
import typing

__all__: list[str] = [
    "ActivationCache",
    "ActivationFile",
    "ActivationStream",
    "ActivationWriter",
    "Activations",
    "Adapter",
    "Attribution",
    "AttributionAtPoint",
    "AttributionGraph",
    "AttributionPatching",
    "AttributionPlan",
    "ChatSource",
    "ChatTemplate",
    "Circuit",
    "CircuitComparison",
    "ClusteredMean",
    "Coherence",
    "CoherentWindow",
    "Condition",
    "Config",
    "ConfigError",
    "Confusion",
    "ContextGroup",
    "ControlVector",
    "CrossLayerTrainer",
    "CrossLayerTranscoder",
    "Dictionary",
    "DictionaryEvaluation",
    "DictionaryOrigin",
    "DictionarySite",
    "DirectionScores",
    "DoseSearch",
    "EdgeAttribution",
    "EqualDose",
    "Equivalence",
    "Error",
    "Estimate",
    "Factor",
    "Faithfulness",
    "FeatureActivations",
    "FeatureTable",
    "GgufFile",
    "GgufWriter",
    "Graph",
    "GraphNode",
    "GraphTarget",
    "HeadLoadings",
    "HfFolder",
    "HookError",
    "HookRegistry",
    "Injection",
    "Interval",
    "Intervention",
    "IoError",
    "KVCache",
    "LayerDiagnostics",
    "LayerEstimate",
    "LeaceEraser",
    "LeaceFitter",
    "Lens",
    "LensReading",
    "LoraCost",
    "LoraExample",
    "LoraStep",
    "LoraTrainer",
    "MatchedRate",
    "MaxNullBand",
    "MetaAnalysis",
    "Metric",
    "MetricTerm",
    "Model",
    "MonitorReport",
    "NativeDose",
    "Neighbours",
    "NullBand",
    "PatchAxes",
    "PatchGrid",
    "PatchPair",
    "PathReceiver",
    "PathSender",
    "PlanSummary",
    "Prediction",
    "Probe",
    "ProbeScores",
    "ProbeStudy",
    "Proportion",
    "Protocol",
    "QkAttribution",
    "QkPart",
    "QuantisedRows",
    "ReconstructionFigures",
    "ReconstructionStatistics",
    "RunPlan",
    "SafetensorsFile",
    "Sensitivity",
    "ShapeError",
    "ShiftRow",
    "ShiftTable",
    "SolvedDose",
    "SparseFeatures",
    "SpliceFigures",
    "Store",
    "StoreConflict",
    "StoreMerged",
    "StreamDecoder",
    "TensorSource",
    "TextFilter",
    "TokenStream",
    "TokenTrie",
    "Tokenizer",
    "Trainer",
    "TrainerMetrics",
    "TrainingRecord",
    "TriePlan",
    "ablation_everywhere",
    "accumulated_bias",
    "accumulated_resid",
    "acdc",
    "activation_source",
    "activations_at",
    "adjusted_p",
    "answer_shares",
    "anthropic_jumprelu",
    "apply_norm",
    "as_interventions",
    "attribute",
    "attribution_patching",
    "attribution_points",
    "auc",
    "behaviour_score",
    "bfloat16_products",
    "bfloat16_products_here",
    "binomial_p",
    "blocks_of_fractions",
    "bootstrap_difference",
    "bootstrap_interval",
    "bootstrap_mean",
    "built_with_torch",
    "calibration_error",
    "check_dictionary",
    "check_folds",
    "check_probe",
    "clustered_mean",
    "coactive_features",
    "coherent_windows",
    "collect_activations",
    "collect_positions",
    "composition_scores",
    "concept_pairs",
    "confusion",
    "context_groups",
    "contrast",
    "conversation_tokens",
    "copy_scores",
    "costs_by_stage",
    "debug_prediction",
    "decoder_neighbours",
    "decompose_resid",
    "default_coherence_factor",
    "default_layers",
    "default_nulls",
    "default_strength",
    "diagnose",
    "dictionary_formats",
    "dictionary_layers",
    "direct_logit_attribution",
    "direction_of_pairs",
    "edge_attribution",
    "entropy",
    "equal_doses",
    "equivalence",
    "estimate_layers",
    "evaluate_dictionary",
    "evaluate_probe",
    "faithfulness",
    "false_alarms_at",
    "feature_activations",
    "feature_activations_of_rows",
    "feature_effects",
    "feature_table",
    "feature_values",
    "fit_probe",
    "full_resid_decomposition",
    "head_loadings",
    "head_results",
    "head_scores",
    "jacobian_lens",
    "kendall_tau",
    "kept_mass",
    "kl_divergence",
    "least_mass",
    "linear",
    "load_cross_layer_transcoder",
    "load_dictionary",
    "logistic_regressions",
    "logit_attributions",
    "logit_effects",
    "match_heads",
    "match_pattern",
    "max_null_band",
    "mean_differences",
    "measure_coherence",
    "measure_doses",
    "meta_analysis",
    "monitor_report",
    "most_changed",
    "n_tokens_after_instruction",
    "neuron_results",
    "new_model",
    "null_band",
    "null_bands",
    "open_tensors",
    "operator_names",
    "orthogonalised",
    "ov_copying_scores",
    "parse_dose",
    "patch_grid",
    "patched_residuals",
    "patchscope",
    "path_patching",
    "plan_attribution",
    "plan_trie",
    "prediction_points",
    "probe_of_direction",
    "proportion",
    "qk_attribution",
    "random_directions",
    "random_rotation",
    "read_config",
    "read_contexts",
    "read_lens",
    "read_npz",
    "read_torch_zip",
    "reading_problem",
    "readouts",
    "register_feature_readout",
    "register_operator",
    "register_readout",
    "regression_lens",
    "replays_steps",
    "residual_norms",
    "rms_norm",
    "rotary_frequencies",
    "run_circuits",
    "run_experiments",
    "run_trie",
    "save_cross_layer_transcoder",
    "save_dictionary",
    "save_safetensors",
    "save_torch_zip",
    "score_directions",
    "score_examples",
    "select_direction",
    "sensitivity",
    "set_log_odds",
    "setting_fields",
    "sha256_hex",
    "shift_table",
    "solve_doses",
    "spearman",
    "splice",
    "splice_seen",
    "stack_head_results",
    "stack_neuron_results",
    "stratified_folds",
    "stratified_group_folds",
    "study_probes",
    "threshold_at",
    "top_k_overlap",
    "train_dictionaries",
    "train_tuned_lens",
    "unembedding_hash",
    "use_bfloat16_products",
    "whitening",
    "write_activations",
    "write_atomically",
]

class Error(RuntimeError):
    pass

class ShapeError(Error):
    pass

class ConfigError(Error):
    pass

class IoError(Error):
    pass

class HookError(Error):
    pass

class TensorSource:
    """
    Named tensors in files, read on demand. Safe to use from several threads.
    """
    def __contains__(self, name: str) -> bool: ...
    def check_readable(self, name: str) -> None:
        """
        Raises IoError for an absent name, ConfigError for an encoding that cannot be read as floats.
        """
    def dtype(self, name: str) -> str:
        """
        The stored encoding in the format's own word, such as 'BF16' or 'Q4_K'. Raises IoError for an absent name.
        """
    def fingerprint(self) -> str:
        """
        What makes a checkpoint this one, cheaply.

        Returns:
            The SHA-256, in hexadecimal, over every tensor's name, shape, encoding and first and last 4 KiB of stored bytes.
        """
    def names(self) -> list[str]:
        """
        The tensors' names, in the order of the file.
        """
    def read(self, name: str, *, dtype: torch.dtype = ...) -> torch.Tensor:
        """
        Read a tensor, converted or dequantised on all threads.

        Args:
            name: one of ``names()``.
            dtype: float64, float32, float16 or bfloat16. Quantised values are computed in float32 and rounded once.

        Returns:
            A CPU tensor with its own storage.

        Raises:
            IoError: no tensor has this name.
            ConfigError: it is stored as integers or in an unknown quantisation.
            ShapeError: ``dtype`` is another one.
        """
    def read_into(self, name: str, out: torch.Tensor) -> None:
        """
        Read a tensor straight into an existing one, such as rows of a fused weight.

        Args:
            name: one of ``names()``.
            out: contiguous CPU tensor of the stored shape in float64, float32, float16 or bfloat16.

        Raises:
            IoError: no tensor has this name.
            ConfigError: it is stored as integers or in an unknown quantisation.
            ShapeError: ``out`` is not such a tensor.
        """
    def shape(self, name: str) -> list[int]:
        """
        A tensor's shape in torch's order. Raises IoError for an absent name.
        """
    def stored_bytes(self, name: str) -> int:
        """
        Bytes that are stored of a tensor. Raises IoError for an absent name.
        """

class SafetensorsFile(TensorSource):
    """
    A .safetensors file, mapped and checked as a whole when it is opened.
    """
    def __init__(self, path: os.PathLike | str | bytes) -> None:
        """
        Raises IoError for a file that is missing, truncated or corrupt.
        """
    def metadata(self) -> dict[str, str]:
        """
        The header's ``__metadata__``.
        """

class GgufFile(TensorSource):
    """
    A GGUF file, version 2 or 3, mapped and checked as a whole when it is opened.
    """
    def __init__(self, path: os.PathLike | str | bytes) -> None:
        """
        Raises IoError for a file that is missing, truncated or corrupt, ConfigError for a version that is not 2 or 3.
        """
    def architecture(self) -> str:
        """
        The ``general.architecture`` key. Raises ConfigError if it is absent.
        """
    def keys(self) -> list[str]:
        """
        The metadata's keys, in the order of the file.
        """
    def metadata(self) -> dict[str, bool | int | int | float | str | list[bool] | list[int] | list[float] | list[str]]:
        """
        All metadata by key. Raises IoError for text that is not UTF-8.
        """
    def value(self, key: str) -> bool | int | int | float | str | list[bool] | list[int] | list[float] | list[str]:
        """
        One metadata value. Raises ConfigError for an absent key, IoError for text that is not UTF-8.
        """
    def version(self) -> int:
        """
        The version of the format, 2 or 3.
        """

class GgufWriter:
    """
    A GGUF file in the making: metadata and float32 tensors, as control vectors are stored.

    Args:
        architecture: the ``general.architecture`` key.
    """
    def __init__(self, architecture: str) -> None: ...
    def add(self, name: str, tensor: torch.Tensor) -> None:
        """
        Append a tensor, stored as float32.

        Args:
            name: 1 to 63 bytes.
            tensor: floating, 1 to 4 dimensions.

        Raises:
            ValueError: the name is empty, too long or repeated.
            ShapeError: the tensor is another one.
        """
    def set(
        self,
        key: str,
        value: bool
        | typing.SupportsInt
        | typing.SupportsIndex
        | typing.SupportsInt
        | typing.SupportsIndex
        | typing.SupportsInt
        | typing.SupportsIndex
        | typing.SupportsInt
        | typing.SupportsIndex
        | typing.SupportsFloat
        | typing.SupportsIndex
        | typing.SupportsFloat
        | typing.SupportsIndex
        | str
        | collections.abc.Sequence[str]
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
        | collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    ) -> None:
        """
        Set a metadata value, replacing what it was.

        Args:
            key: not empty.
            value: bool, int (stored as uint32 where it fits, else int32 or 64 bits), float (float32), str, or a list of str,
                int (int32) or float (float32).

        Raises:
            ValueError: the key is empty or ``general.alignment``, or text is not UTF-8.
        """
    def write(self, path: os.PathLike | str | bytes) -> None:
        """
        Write the file, whole or not at all.

        Args:
            path: replaced if it exists, only once everything is on the disk.

        Raises:
            IoError: the file cannot be written, on a full disk for example.
        """

class HfFolder:
    """
    A model folder as the Hugging Face hub lays it out.
    """
    def __init__(self, folder: os.PathLike | str | bytes) -> None:
        """
        Args:
            folder: holds config.json and model.safetensors or model.safetensors.index.json with its shards.

        Raises:
            IoError: one of them is missing or corrupt.
            ConfigError: the weights are there only as pickles, which are never opened because they run code.
        """
    @property
    def config_json(self) -> str:
        """
        The text of config.json.
        """
    @property
    def folder(self) -> pathlib.Path: ...
    @property
    def generation_config_json(self) -> str | None:
        """
        The text of generation_config.json, or None.
        """
    @property
    def weights(self) -> TensorSource:
        """
        The tensors.
        """

class Tokenizer:
    """
    Text to token ids and back, as the model's own tokenizer does it.
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Tokenizer:
        """
        Read a tokenizer.

        Args:
            path: a tokenizer.json, a tokenizer.model, a folder with one of them (the first is preferred), or a .gguf file. What
                stands beside the first two counts as in transformers 5: tokenizer_config.json, added_tokens.json,
                special_tokens_map.json, chat_template.jinja, and eos_token_id of generation_config.json or config.json. A
                tokenizer.model with none of the first three encodes exactly as sentencepiece does, with <s> in front, and does
                not look for control tokens inside a text. A .gguf file is read as llama.cpp reads it.

        Raises:
            IoError: a file is missing or broken.
            ConfigError: a kind of tokenizer, or a stage or field of it, that is not supported; the message names it.
        """
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def decode(
        self,
        ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        skip_special_tokens: bool = False,
    ) -> str:
        """
        The text of ids. Bytes that are not UTF-8 become U+FFFD.

        Raises:
            IndexError: an id without a token.
        """
    def encode(self, text: str | bytes, add_special_tokens: bool = True) -> list[int]:
        """
        The ids of a text, as a list.

        Args:
            text: special tokens written in it ("<|im_start|>") become their own ids.
            add_special_tokens: with the tokens the model expects around a text, usually the bos token.

        Raises:
            ConfigError: bytes that are not UTF-8, a str with a lone surrogate, or a text on which a pattern of the tokenizer's
                file takes more backtracking, memory or time than it may; the message names the file and the pattern.
        """
    def id_to_token(self, id: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        The token as the vocabulary file spells it ("Ġcat", "▁cat", "<0x0A>").

        Raises:
            IndexError: an id without a token.
        """
    def is_special(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether ``skip_special_tokens`` leaves it out.
        """
    def token_to_id(self, token: str) -> int | None:
        """
        The id of a token so spelled, or None.
        """
    @property
    def adds_bos(self) -> bool:
        """
        Whether ``encode`` puts the bos token first.
        """
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def chat_template(self) -> str | None:
        """
        The Jinja source beside it, or None.
        """
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def kind(self) -> str:
        """
        "byte-level BPE", "SentencePiece BPE" or "SentencePiece Unigram".
        """
    @property
    def pad_token_id(self) -> int | None: ...
    @property
    def special_tokens(self) -> dict[str, str]:
        """
        "bos_token", "eos_token" and the others the files name, spelled out.
        """
    @property
    def stop_token_ids(self) -> list[int]:
        """
        Ids that end a turn or a text; those of generation_config.json among them.
        """
    @property
    def vocab_size(self) -> int:
        """
        One more than the highest id.
        """

class StreamDecoder:
    """
    Text from ids that arrive one at a time.

    Everything ``push`` and ``finish`` return, joined, is ``decode`` of all the ids; no part ends within a character.
    """
    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None: ...
    def finish(self) -> str:
        """
        What was still held back; the decoder then starts anew.
        """
    def push(self, id: typing.SupportsInt | typing.SupportsIndex) -> str:
        """
        The text that is certain once ``id`` has come; possibly empty.

        Raises:
            IndexError: an id without a token.
        """

class ChatSource:
    """
    A chat template as a model's files hold it.
    """
    @staticmethod
    def find(path: os.PathLike | str | bytes) -> ChatSource | None:
        """
        Of a Hugging Face folder or a .gguf file, or None.
        """
    @staticmethod
    def special_tokens_of(path: os.PathLike | str | bytes) -> dict[str, str]:
        """
        The special tokens of a folder or .gguf file, whether it has a template or not.
        """
    @property
    def jinja(self) -> str: ...
    @property
    def special_tokens(self) -> dict[str, str]:
        """
        ``bos_token`` and the others the files name.
        """

class ChatTemplate:
    """
    How a conversation becomes the text a chat model was trained on.
    """
    @staticmethod
    def from_jinja(source: str, *, bos: str, eos: str) -> ChatTemplate:
        """
        The native format of a Jinja source, recognised by its hash. ``introspect.chat`` renders every other source.

        Args:
            bos: text of the bos token, for formats that write it.
            eos: text of the eos token.

        Raises:
            ConfigError: not one of the sources the library knows.
        """
    @staticmethod
    def named(format: str) -> ChatTemplate:
        """
        A native format: one of ``names()``.

        Raises:
            ConfigError: another name.
        """
    @staticmethod
    def names() -> list[str]: ...
    def __init__(self, name: str, renderer: collections.abc.Callable) -> None:
        """
        A template of one's own.

        Args:
            renderer: called with (messages, add_generation_prompt), returns the text.
        """
    def render(
        self,
        messages: collections.abc.Sequence,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        date_string: str = "",
    ) -> str:
        """
        The text of a conversation, as transformers' ``apply_chat_template`` writes it.

        Args:
            messages: ``{"role": ..., "content": ...}``; native formats know the roles "system", "user" and "assistant".
            add_generation_prompt: end with the header of the assistant's next turn.
            continue_final_message: end right after the last message's content.
            date_string: what Llama-3.2 prints as today's date; empty is the local date.

        Raises:
            ConfigError: no messages, a role or order the format refuses, or options that exclude each other.
        """
    @property
    def name(self) -> str: ...

class QuantisedRows:
    """
    A matrix held as a GGUF file holds it: rows of blocks, whose values products unpack on the way.

    Args:
        encoding: "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4", "F16", "BF16", "F32".
        bytes: uint8 [rows, bytes of a row], contiguous on the CPU; used as they are and not copied.
        dtype: of the model that it is a part of.

    Raises:
        ConfigError: an encoding that cannot be unpacked.
        ShapeError: rows that are not a whole number of blocks.
    """
    @staticmethod
    def joined(parts: collections.abc.Sequence[QuantisedRows]) -> QuantisedRows:
        """
        The rows of all, one after another.
        """
    def __init__(self, encoding: str, bytes: torch.Tensor, dtype: torch.dtype = ...) -> None: ...
    def dense(self, dtype: torch.dtype = ...) -> torch.Tensor:
        """
        The values [rows, columns], rounded once.
        """
    def gather(self, ids: torch.Tensor, dtype: torch.dtype = ...) -> torch.Tensor:
        """
        The values of the rows named by int64 ids.
        """
    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """
        x [..., columns] times the rows, plus bias [rows] or nothing: [..., rows] in x's dtype.

        Summed in float32, or float64 for x in float64. Gradients reach x and the bias.
        """
    def rows(
        self, first: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex
    ) -> QuantisedRows:
        """
        Some rows, which share the bytes.
        """
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class ActivationCache:
    """
    Activations by full hook name, in the order in which a pass recorded them.

    Gradients stand under the hook name with ``_grad`` after it. What is recorded again replaces what was there.
    """
    def __contains__(self, name: str) -> bool: ...
    def __getitem__(self, name: str) -> torch.Tensor: ...
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def items(self) -> list[tuple[str, torch.Tensor]]:
        """
        (name, tensor) pairs, in the order of the pass.
        """
    def names(self) -> list[str]:
        """
        Full names, in the order of the pass.
        """
    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ActivationCache:
        """
        The same activations on another device, in another floating dtype, or both.
        """
    def to_dict(self) -> dict:
        """
        {name: tensor}, in the order of the pass; the tensors are shared, not copied.
        """
    @property
    def nbytes(self) -> int:
        """
        Memory of all tensors, in bytes; memory that several share counts once.
        """

class TextFilter:
    """
    Restricts an intervention to some of its positions by the text that stands there, row by row.

    What it lets through is the same in one pass, in chunks through a KV cache, in every step of a generation, and, with
    ``skip_padding``, in a padded batch.

    Args:
        phase: "all", "prompt" (every position of the prompt) or "generation" (every position that a new token is predicted
            from: the prompt's last one, then the new tokens).
        tokens: only where one of these ids stands; None is any.
        not_tokens: nowhere where one of these stands.
        after: only after the first of these; None is from the start.
        skip_padding: padding is never changed, and positions count real tokens only: a row of a padded batch is changed as
            it would be alone.

    Raises:
        ValueError: another phase.
    """

    __hash__: typing.ClassVar[None] = None
    def __copy__(self) -> TextFilter: ...
    def __deepcopy__(self, memo: dict) -> TextFilter: ...
    def __eq__(self, other: TextFilter) -> bool: ...
    def __getstate__(self) -> tuple[str, list[int], list[int], list[int], bool]: ...
    def __init__(
        self,
        *,
        phase: str = "all",
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        not_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        after: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        skip_padding: bool = False,
    ) -> None: ...
    def __setstate__(
        self,
        arg0: tuple[
            str,
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            bool,
        ],
    ) -> None: ...
    @property
    def after(self) -> list[int]: ...
    @property
    def not_tokens(self) -> list[int]: ...
    @property
    def phase(self) -> str: ...
    @property
    def skip_padding(self) -> bool: ...
    @property
    def tokens(self) -> list[int]: ...

class Intervention:
    """
    A change to activations, as data: an operator on a selection of rows, positions and heads at one hook point.

    With x the activation, v the layer's operand and s the strength, the operators are

    - ``add``: x + s v
    - ``ablate``: x - s (x.u) u with u = v / |v|
    - ``project_out``: x - s (x Q) Q^T, Q an orthonormal basis of v's rows, which must be independent
    - ``replace``: v; s must be 1
    - ``interpolate``: (1 - s) x + s v
    - ``scale``: s x
    - ``zero``: 0; s must be 1
    - ``mean``: v, or the mean of x over the selected positions, which must all be in one pass; s must be 1

    A strength of 0 (of 1 for scale) leaves the pass as it was, bit for bit. Gradients flow to x and to the operands.
    Replacing a pattern or a norm's scale by what was recorded freezes it.

    Operators of control vectors, with u = v / |v|; the last three also take v [2, W], whose rows span a plane:

    - ``norm_preserving_add``: (x + s v) |x| / |x + s v|
    - ``multiply``: x (1 + s (v - 1)), element by element
    - ``project_to``: x + s (target - x.u) u
    - ``clamp``: x + s (min(max(x.u, low), high) - x.u) u; either end may be left out
    - ``rotate``: x turned by s ``angle`` degrees towards v, or from row 0 towards row 1
    - ``angular``: x put ``angle`` degrees from v, or its part in the plane from row 0 towards row 1; s must be 1 (Vu &
      Nguyen 2025, arXiv:2510.26243)
    - ``adaptive_angular``: the same where the product of x and row 0 is positive; s must be 1

    Args:
        values: layer -> operand, None for operators without one, {name: tensor} for those that take several; layer -1 for
            points that stand once in the model.
            With W the size of the activation's last dimension, N the number of rows or 1, h the number of heads and
            P positions counted from the start of the sequence: [W], [N, W] or [N, P, W] at points without heads; [W],
            [h, W], [N, h, W] or [N, P, h, W] at points with; at scores and patterns the last is [N, h, P, W], with W
            keys counted from the start of the sequence. [W] or [k, W] for project_out.
        op: the operator's name.
        point: a hook name without its block, such as "attn.hook_z".
        strength: finite.
        parameters: numbers by name, of operators that take some: {"angle": 30.0}.
        first_position: first position that is changed, counted from the start of the KV cache, padding included.
        last_position: the position after the last; None for every later one, generated ones too.
        positions: these instead of the range.
        heads: the heads that are changed (groups at points of keys and values); None is all.
        rows: the rows of the batch that are changed; None is all.
        text: of these positions, only those that a TextFilter lets through.
        source: of operators that read a second point, that point: "hook_mlp_in". The activation is taken as it goes on from
            there, at the same rows and positions.
        source_layer: the layer in which it is read; None is the one that is changed.

    Raises:
        HookError: there is no such point.
    """
    @staticmethod
    def from_json(json: str, table: collections.abc.Mapping[str, torch.Tensor]) -> Intervention:
        """
        The intervention that to_json described.

        Raises:
            ConfigError: not an intervention, an operator that is not known, a hash that is not in the table, or a tensor
                that does not have its hash.
            HookError: there is no such point.
        """
    def __copy__(self) -> Intervention: ...
    def __deepcopy__(self, memo: dict) -> Intervention: ...
    def __getstate__(self) -> tuple[str, dict[str, torch.Tensor]]: ...
    def __init__(
        self,
        values: collections.abc.Mapping[
            typing.SupportsInt | typing.SupportsIndex, torch.Tensor | collections.abc.Mapping[str, torch.Tensor] | None
        ],
        *,
        op: str = "add",
        point: str = "hook_resid_post",
        strength: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        first_position: typing.SupportsInt | typing.SupportsIndex = 0,
        last_position: typing.SupportsInt | typing.SupportsIndex | None = None,
        positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        parameters: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex] = {},
        text: TextFilter = ...,
        source: str | None = None,
        source_layer: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None: ...
    def __setstate__(self, arg0: tuple[str, collections.abc.Mapping[str, torch.Tensor]]) -> None: ...
    def first_change(self) -> tuple[int, int] | None:
        """
        (layer, position) of the first change it can make, layer -1 before the first block; None for no change.
        """
    def resolve(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        n_prompt: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> list[Intervention]:
        """
        The intervention on the whole of a text, without a text filter: one for each choice of positions that rows share.

        Args:
            tokens: int64 [batch, pos], on the CPU, of everything that will ever be run.
            attention_mask: bool [batch, pos], False for padding.
            n_prompt: how many of the positions are the prompt.

        Raises:
            HookError: the filter asks for the prompt, and n_prompt is not given.
        """
    def restrict_rows(
        self, rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> Intervention | None:
        """
        The same for those of its rows that are among ``rows``, with their operands; None if none is.
        """
    def to_json(self) -> tuple[str, dict[str, torch.Tensor]]:
        """
        The intervention as JSON in which tensors stand by their SHA-256, and {hash: tensor on the CPU}.
        """
    @property
    def first_position(self) -> int: ...
    @property
    def heads(self) -> list[int]: ...
    @property
    def is_identity(self) -> bool:
        """
        True if nothing is changed by it.
        """
    @property
    def last_position(self) -> int | None: ...
    @property
    def op(self) -> str: ...
    @property
    def parameters(self) -> dict[str, float]: ...
    @property
    def point(self) -> str: ...
    @property
    def positions(self) -> list[int]: ...
    @property
    def rows(self) -> list[int]: ...
    @property
    def source(self) -> str | None: ...
    @property
    def source_layer(self) -> int | None: ...
    @property
    def strength(self) -> float: ...
    @property
    def text(self) -> TextFilter: ...
    @property
    def values(self) -> dict[int, torch.Tensor | dict[str, torch.Tensor] | None]:
        """
        layer -> operand, {name: tensor}, or None.
        """

class HookRegistry:
    """
    What is read and changed during a forward pass and the backward pass after it.

    At one point interventions run first, then hooks and recorders in the order of addition. A pass never alters it.
    """
    def add(
        self,
        name: str,
        hook: collections.abc.Callable,
        *,
        direction: str = "fwd",
        prepend: bool = False,
        permanent: bool = False,
        level: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Calls ``hook(tensor, name)`` at a hook point; what it returns, unless None, replaces the activation or gradient.

        The tensor is the hook's own copy: what it writes into it in place is a replacement too, and changes nothing recorded.

        Args:
            name: full, such as "blocks.3.attn.hook_z".
            direction: "fwd" for the activation, "bwd" for the gradient of it.
            prepend: before what stands at the point, not after it.
            permanent: kept by ``reset``, unless asked for.
            level: of nesting, for ``reset``.

        Returns:
            The hook's id.

        Raises:
            HookError: the name does not exist; the message lists the nearest names.
        """
    def add_intervention(
        self,
        intervention: Intervention,
        *,
        prepend: bool = False,
        permanent: bool = False,
        level: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Applies an intervention. One that changes nothing is checked and given an id, and that is all.

        Args:
            prepend: before the other interventions.

        Raises:
            ConfigError: there is no such operator.
            HookError: the model has no such point.
            IndexError: layers, positions, heads or rows out of range.
            ShapeError: an operand that does not fit.
            ValueError: an operand that is missing, not wanted or not finite, or a strength or parameters the operator does not
                take.
        """
    def copy(self) -> HookRegistry:
        """
        A registry of the same hooks under the same ids, independent from now on.
        """
    def record(
        self,
        name: str,
        cache: ActivationCache,
        *,
        positions: typing.Any = None,
        heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        gradient: bool = False,
        detach: bool = True,
        permanent: bool = False,
        level: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> int:
        """
        Keeps an activation, or its gradient, in an ActivationCache.

        Args:
            positions: None for all, an index (its dimension is dropped), a (start, stop) or (start, stop, step) tuple, or a
                list of indices. They count within the pass; negative ones from its end.
            heads: the heads to keep; None is all.
            device: where to keep it.
            dtype: to keep it in.
            gradient: the gradient, under the name with "_grad" after it.
            detach: False keeps the graph that gradients flow back through.

        Raises:
            HookError: the name does not exist; the message lists the nearest names.
            IndexError: a head that does not exist.
            ValueError: heads at a point that has none, or a step below 1.
        """
    def remove(self, id: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Takes one hook, intervention or recorder away. Raises HookError if there is none of this id.
        """
    def reset(
        self,
        *,
        direction: str | None = None,
        including_permanent: bool = False,
        level: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None:
        """
        Takes away everything that is not permanent.

        Args:
            direction: "fwd" or "bwd" only; None is both.
            including_permanent: the permanent ones too.
            level: those of this level only.
        """
    @property
    def empty(self) -> bool:
        """
        True if nothing would be read or changed.
        """
    @property
    def needs_grad(self) -> bool:
        """
        True if a gradient is asked for, of an activation or of an intervention's tensors.
        """

class KVCache:
    """
    The keys and values of every layer for the positions seen so far: a value, forked in O(1).

    Whatever is done to a fork is never visible in its parent. Keys are stored after RoPE, at absolute positions, and stay
    as they are wherever they are put. ``Model.make_cache`` makes one that fits a model.
    """
    @staticmethod
    def concat_rows(caches: collections.abc.Sequence[KVCache]) -> KVCache:
        """
        The caches one under another, as one batch in their order (a copy).

        Raises:
            ValueError: no cache.
            ShapeError: lengths, layers, heads, widths, dtypes or devices differ.
        """
    @staticmethod
    def load(path: os.PathLike | str | bytes, model_hash: str = "", device: torch.device = ...) -> KVCache:
        """
        Reads a cache that ``save`` wrote.

        Args:
            path: the file.
            model_hash: the cache must be of this model, if the file names one.
            device: where the cache is to live.

        Raises:
            IoError: a file that is missing, broken or holds no cache.
            ConfigError: the cache is of another model.
        """
    @staticmethod
    def total_nbytes(caches: collections.abc.Sequence[KVCache]) -> int:
        """
        Bytes that several caches hold together, what they share counted once.
        """
    def __init__(
        self,
        *,
        n_layers: typing.SupportsInt | typing.SupportsIndex,
        batch: typing.SupportsInt | typing.SupportsIndex = 1,
        n_key_value_heads: typing.SupportsInt | typing.SupportsIndex,
        d_head: typing.SupportsInt | typing.SupportsIndex,
        dtype: torch.dtype = ...,
        device: torch.device = ...,
    ) -> None:
        """
        An empty cache, for keys and values of one's own: ``append`` to every layer, then ``commit``.

        Raises:
            ShapeError: a size that is not positive.
        """
    def __len__(self) -> int: ...
    def __repr__(self) -> str: ...
    def append(
        self, layer: typing.SupportsInt | typing.SupportsIndex, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Adds keys and values [batch, n_key_value_heads, n, d_head] to one layer; ``commit`` makes them part of the cache.

        Returns:
            Keys and values of the whole layer: views, not to be written to.

        Raises:
            ShapeError: another shape, dtype or device.
            IndexError: a layer that is not there.
        """
    def commit(self, n: typing.SupportsInt | typing.SupportsIndex, mask: torch.Tensor | None = None) -> None:
        """
        Makes the last ``n`` positions appended to every layer part of the cache.

        Args:
            n: positions.
            mask: which of them are real tokens, bool [batch, n]; None means all.

        Raises:
            Error: a layer to which another number was appended.
            ShapeError: a mask of another shape.
        """
    def fork(self) -> KVCache:
        """
        The same cache, sharing memory; in O(1).
        """
    def keys(self, layer: typing.SupportsInt | typing.SupportsIndex) -> torch.Tensor:
        """
        Keys of one layer, [batch, n_key_value_heads, pos, d_head]: a view, not to be written to.
        """
    def reserve(
        self,
        length: typing.SupportsInt | typing.SupportsIndex,
        layer: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> None:
        """
        Takes memory for exactly ``length`` positions, so that appends up to there copy nothing unless a fork is first.

        Args:
            length: positions.
            layer: of this layer alone; None means all.

        Raises:
            IndexError: a layer that is not there.
        """
    def rollback(self) -> None:
        """
        Drops what was appended since the last commit.
        """
    def save(self, path: os.PathLike | str | bytes, model_hash: str = "") -> None:
        """
        Writes the cache as a .safetensors file, in its own dtype; the file is complete or not there.

        Args:
            path: tensors keys.{layer}, values.{layer} and, with padding, mask; shape, length and model in the metadata.
            model_hash: ``model.native.hash`` of the model that made it.

        Raises:
            IoError: the file cannot be written.
        """
    def select_positions(
        self, positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> KVCache:
        """
        The cache of the positions listed, in that order (a copy): the path from the root of a token tree to a node, say.

        Raises:
            IndexError: a position that is not there.
        """
    def select_rows(self, rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> KVCache:
        """
        The cache of a batch in which each row r is row ``rows[r]`` of this one (a copy).

        Raises:
            IndexError: a row that is not there.
        """
    def slice(
        self, first: typing.SupportsInt | typing.SupportsIndex, last: typing.SupportsInt | typing.SupportsIndex
    ) -> KVCache:
        """
        Positions [first, last) as a cache. A prefix shares memory, in O(1); any other span is a copy.

        Keys stay rotated for the positions they had, and what is appended counts from the new length.

        Raises:
            IndexError: not 0 <= first <= last <= length.
        """
    def splice(
        self,
        first: typing.SupportsInt | typing.SupportsIndex,
        last: typing.SupportsInt | typing.SupportsIndex,
        other: KVCache,
    ) -> KVCache:
        """
        This cache with positions [first, last) taken from the same places of ``other``, of this or of another model.

        With ``last`` beyond this cache's end it grows: ``a.slice(0, p).splice(p, len(b), b)`` is a's prefix with b's tail.
        Layers in which both share memory stay shared; the others are copies. Whether the other model turns keys by the same
        angles (RoPE) cannot be seen here.

        Args:
            first: first position replaced, at most this cache's length.
            last: the position after the last one replaced, at most the other's length.
            other: of equal n_layers, n_key_value_heads and d_head, and as many rows, or one row that serves all. Another
                dtype or device is converted to this cache's.

        Raises:
            ShapeError: other shapes.
            IndexError: a span outside the caches.
        """
    def truncate(self, length: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Forgets all positions from ``length`` on.

        Raises:
            IndexError: fewer positions are held.
        """
    def values(self, layer: typing.SupportsInt | typing.SupportsIndex) -> torch.Tensor:
        """
        Values of one layer, [batch, n_key_value_heads, pos, d_head]: a view, not to be written to.
        """
    @property
    def batch(self) -> int:
        """
        Rows of the batch.
        """
    @property
    def d_head(self) -> int:
        """
        Width of a head.
        """
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def length(self) -> int:
        """
        Positions held.
        """
    @property
    def mask(self) -> torch.Tensor | None:
        """
        Which positions are real tokens: bool [batch, length], or None if all are.
        """
    @property
    def n_key_value_heads(self) -> int:
        """
        Heads of keys and values in each layer.
        """
    @property
    def n_layers(self) -> int:
        """
        Layers of the model it fits.
        """
    @property
    def nbytes(self) -> int:
        """
        Bytes that keys and values hold: what lies ready for appends counts, and what other caches share.
        """
    @property
    def nbytes_own(self) -> int:
        """
        Of these, what no other cache shares: what would be freed with this one.
        """
    @property
    def nbytes_shared(self) -> int:
        """
        Of these, what other caches share.
        """

class Config:
    """
    What a decoder is made of; the fields have TransformerLens's names.
    """
    @staticmethod
    def from_json(json: str) -> Config:
        """
        A Config from such an object; fields that it leaves out have their defaults.

        Raises:
            ConfigError: a field that Config does not have, one of another type, or sizes and options that no model has.
        """
    def __copy__(self) -> Config: ...
    def __deepcopy__(self, memo: dict) -> Config: ...
    def __getstate__(self) -> str: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, arg0: str) -> None: ...
    def to_json(self) -> str:
        """
        Every field by its name, as a JSON object.
        """
    @property
    def act_fn(self) -> str: ...
    @property
    def attn_out_bias(self) -> bool: ...
    @property
    def attn_scale(self) -> float: ...
    @property
    def attn_scores_soft_cap(self) -> float: ...
    @property
    def attn_sinks(self) -> bool: ...
    @property
    def attn_types(self) -> list[str]: ...
    @property
    def d_head(self) -> int: ...
    @property
    def d_mlp(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def embed_scale(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def experts_per_token(self) -> int: ...
    @property
    def gated_mlp(self) -> bool: ...
    @property
    def mlp_bias(self) -> bool: ...
    @property
    def model_name(self) -> str: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_key_value_heads(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def norm_rounds_last(self) -> bool: ...
    @property
    def norm_topk_prob(self) -> bool: ...
    @property
    def norm_weight_offset(self) -> bool: ...
    @property
    def normalization_type(self) -> str: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def original_architecture(self) -> str: ...
    @property
    def output_logits_soft_cap(self) -> float: ...
    @property
    def parallel_attn_mlp(self) -> bool: ...
    @property
    def positional_embedding_type(self) -> str: ...
    @property
    def qk_norm_over_heads(self) -> bool: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def rotary_base(self) -> float: ...
    @property
    def rotary_base_local(self) -> float: ...
    @property
    def rotary_dim(self) -> int: ...
    @property
    def rotary_in_float32(self) -> bool: ...
    @property
    def rotary_scaling(self) -> str: ...
    @property
    def router_bias(self) -> bool: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def use_normalization_after_only(self) -> bool: ...
    @property
    def use_normalization_before_and_after(self) -> bool: ...
    @property
    def use_qk_norm(self) -> bool: ...
    @property
    def window_size(self) -> int: ...

class Adapter:
    """
    A LoRA adapter in the form in which peft saves it (Hu et al. 2021, arXiv:2106.09685).

    ``model.adapted(adapter)`` puts it into effect inside a ``with`` block, ``model.with_adapter(adapter)`` returns a model that
    has it, and ``Graph.segment(..., adapter=adapter)`` runs one segment with it. The base model's weights are shared.
    """
    @staticmethod
    def create(
        model: Model,
        *,
        rank: typing.SupportsInt | typing.SupportsIndex = 8,
        alpha: typing.SupportsFloat | typing.SupportsIndex = 16.0,
        targets: collections.abc.Sequence[str] = [],
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> Adapter:
        """
        An adapter that changes nothing yet, as peft starts one: A uniform within 1 / sqrt(in), B zero.

        Args:
            model: the native model.
            rank, alpha: what is added is alpha / rank B A x, A [rank, in] and B [out, rank].
            targets: ends of modules' names: "q_proj", "mlp.c_proj"; empty: every product of a block.
            layers: blocks; empty: all.
            seed: of A.

        Raises:
            ValueError: a rank below 1, or an alpha that is not above 0.
            IndexError: a layer that the model does not have.
            ConfigError: a target that no module is called, with the nearest names.
        """
    @staticmethod
    def load(folder: os.PathLike | str | bytes, *, any_base: bool = False) -> Adapter:
        """
        Reads a folder with adapter_config.json and adapter_model.safetensors; nothing in it is executed.

        Args:
            any_base: an adapter that ``train_lora`` made runs on the model that it was trained on only, told by its hash; True
                lets it run on others of the same shapes. Files of peft tell no hash.

        Raises:
            IoError: a file is missing or damaged.
            ConfigError: what plain LoRA on the products of blocks is not: another method, DoRA, biases, modules_to_save,
                embeddings, start values that change the base model; or weights that are there only as a pickle.
            ShapeError: matrices whose ranks are not the config's.
        """
    def __repr__(self) -> str: ...
    def save(self, folder: os.PathLike | str | bytes) -> None:
        """
        Writes adapter_config.json and adapter_model.safetensors, which peft reads.

        Raises:
            IoError: the folder cannot be written to.
        """
    @property
    def base_hash(self) -> str:
        """
        Hash of the model that it was trained on; empty where that is not known.
        """
    @property
    def base_model(self) -> str:
        """
        As the adapter's config names it, or empty.
        """
    @property
    def hash(self) -> str:
        """
        Hex SHA-256 of every number in it.
        """
    @property
    def modules(self) -> list[str]:
        """
        The modules it has a product for, by their names in the trained model.
        """
    @property
    def n_params(self) -> int: ...

class Model:
    """
    The native model that introspect.Model drives; its state never changes.
    """
    @staticmethod
    def from_state_dict(
        config_json: str,
        tensors: collections.abc.Mapping[str, torch.Tensor],
        *,
        dtype: torch.dtype = ...,
        device: torch.device = ...,
        tokenizer_path: os.PathLike | str | bytes | None = None,
        chat_template: ChatTemplate | None = None,
        n_ctx: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> Model:
        """
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
        """
    @staticmethod
    def load(
        path: os.PathLike | str | bytes,
        *,
        dtype: torch.dtype = ...,
        device: torch.device = ...,
        block_devices: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, torch.device] = {},
        chat_template: ChatTemplate | None = None,
        n_ctx: typing.SupportsInt | typing.SupportsIndex | None = None,
        keep_blocks: bool | None = None,
        memory_budget: typing.SupportsInt | typing.SupportsIndex | None = None,
        weights: str | None = None,
        progress: typing.Any = None,
    ) -> Model:
        """
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
        """
    def bytes_read(self, layer: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Bytes of the files that a block is read from, each time that it runs; 0 where blocks are in memory.
        """
    def check_finite(
        self,
        logits: torch.Tensor,
        *,
        who: str = "check_finite",
        cache: KVCache = None,
        tokens: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        hooks: HookRegistry = None,
    ) -> None:
        """
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
        """
    def check_hook_name(self, name: str) -> None:
        """
        Raises HookError, naming the nearest, where this model has no hook point of this name.
        """
    def forward(
        self,
        tokens: torch.Tensor,
        *,
        cache: KVCache = None,
        hooks: HookRegistry = None,
        attention_mask: torch.Tensor | None = None,
        logits_at: str = "all",
        positions: torch.Tensor | None = None,
        vocab_ids: torch.Tensor | None = None,
        start_at_layer: typing.SupportsInt | typing.SupportsIndex | None = None,
        stop_at_layer: typing.SupportsInt | typing.SupportsIndex | None = None,
        n_prompt: typing.SupportsInt | typing.SupportsIndex | None = None,
        history: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """
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
        """
    def generate(
        self,
        prompts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
        *,
        max_new_tokens: typing.SupportsInt | typing.SupportsIndex = 20,
        temperature: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        top_k: typing.SupportsInt | typing.SupportsIndex = 0,
        top_p: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        repetition_penalty: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        stop_at_eos: bool = True,
        stop_token_ids: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        padding_side: str = "left",
        hooks: HookRegistry = None,
        on_token: collections.abc.Callable[
            [typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex], bool
        ] = None,
        step: str = "plain",
    ) -> list[list[int]]:
        """
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
        """
    def hook_names(
        self,
        *,
        use_attn_result: bool = False,
        use_split_qkv_input: bool = False,
        use_attn_in: bool = False,
        use_hook_mlp_in: bool = False,
    ) -> list[str]:
        """
        Every hook name, in the order of the forward pass.

        Args:
            use_attn_result: attn.hook_result too; like the other three it can always be hooked by its name.
            use_split_qkv_input: hook_q_input, hook_k_input and hook_v_input too.
            use_attn_in: hook_attn_in too.
            use_hook_mlp_in: hook_mlp_in too.
        """
    def make_cache(
        self,
        batch: typing.SupportsInt | typing.SupportsIndex = 1,
        stop_at_layer: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> KVCache:
        """
        An empty cache that fits this model, or passes that stop at a layer.
        """
    def make_hooks(self) -> HookRegistry:
        """
        An empty registry for this model's hook points.
        """
    def named_weights(self, *, skip_quantised: bool = False) -> list[tuple[str, torch.Tensor]]:
        """
        Every tensor once, by name, in the form in which the layers use it: "embed.W_E", "blocks.3.attn.W_QKV"; an adapter's too:
        "blocks.3.attn.A_QKV.0" and "blocks.3.attn.B_QKV.0" are its matrices for queries.

        They are the live weights: never to be written to, but ``requires_grad_()`` on one makes a pass differentiable in it.
        """
    def processed(
        self,
        *,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        fold_value_biases: bool = False,
        refactor_factored_attn_matrices: bool = False,
    ) -> Model:
        """
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
        """
    def quantised_weights(self) -> list[str]:
        """
        The names of the weights that are held in quantised blocks, which are no tensors.
        """
    def readout(self, resid: torch.Tensor, *, vocab_ids: torch.Tensor | None = None) -> torch.Tensor:
        """
        Float32 logits [..., d_vocab] of residuals [..., d_model] after the last block.

        Args:
            vocab_ids: int64 [n]; only these tokens' logits, [..., n].
        """
    def stacked_weight(self, name: str) -> torch.Tensor:
        """
        A weight of every block in one new tensor: "attn.W_Q" gives [n_layers, n_heads, d_model, d_head].

        Raises:
            ValueError: a name that the model's blocks do not have.
        """
    def to_tokens(self, text: str) -> torch.Tensor:
        """
        int64 [1, pos], with the tokenizer's BOS in front unless the text begins with it.
        """
    def weight(self, name: str) -> torch.Tensor:
        """
        A weight under TransformerLens's name and in its shape: "embed.W_E" [d_vocab, d_model], "blocks.3.attn.W_Q"
        [n_heads, d_model, d_head], "blocks.3.mlp.W_out" [d_mlp, d_model], "unembed.W_U" [d_model, d_vocab].

        "attn.W_K" repeats a group's keys for each of its query heads, "attn._W_K" holds each group once; so for W_V, b_K and
        b_V. What the model has is a view of the tensor in use: never write to it, other models may share it. Missing biases
        (zeros), repeated groups, a scaled embedding (Gemma's) and weights that an adapter is added to are copies.

        Raises:
            ValueError: a name that the model does not have.
        """
    def weight_names(self) -> list[str]:
        """
        Names of TransformerLens's state dict of this model; keys and values of grouped attention by the group.
        """
    def with_adapter(self, adapter: Adapter, *, scale: typing.SupportsFloat | typing.SupportsIndex = 1.0) -> Model:
        """
        This model with a LoRA adapter in effect; this one stays as it is, and all but the adapter is shared with it.

        Its products are computed in float32, as in peft (float64 for a float64 model). Adapters add up. The hash is another one.

        Args:
            scale: how strong, against what it was trained for; with 0 the model is as it was.

        Raises:
            ConfigError: an adapter of another model (other layers or modules than its own config asks for), an architecture
                whose modules have no known names, or processed weights.
            ShapeError: matrices of other sizes than the model's.
            ValueError: a scale that is not finite.
        """
    def with_weights(self, weights: collections.abc.Mapping[str, torch.Tensor]) -> Model:
        """
        A model in which some weights are others; this one stays as it is, and what is not given is shared with it.

        Args:
            weights: by name, shape, dtype and device as in ``named_weights``. They are used as they are and not copied: copies
                that require gradients can be trained in place. The hash counts their bytes at this moment.

        Raises:
            ValueError: a name that the model does not have.
            ShapeError: a tensor that is not as the one it replaces.
        """
    @property
    def cfg(self) -> Config: ...
    @property
    def chat_template(self) -> ChatTemplate: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def has_tokenizer(self) -> bool: ...
    @property
    def hash(self) -> str:
        """
        Identity of the checkpoint, hex SHA-256.
        """
    @property
    def keeps_blocks(self) -> bool: ...
    @property
    def n_block_reads(self) -> int:
        """
        How many blocks have been read from the files to be run.
        """
    @property
    def n_params(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def precision(self) -> str:
        """
        What it computes with, as results and stores tell it: "float32", "bfloat16", and in dtypes of 16 bits
        "bfloat16, weights as stored", since values that are unpacked for products and readouts of few rows are not rounded to
        the dtype as dense ones are. In float32 and float64 both ways multiply the same values: not told apart.
        """
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def weights_held(self) -> str:
        """
        "as stored" if any matrix is held in quantised blocks, in memory or in the files, otherwise "dense".
        """

class Attribution:
    """
    What each part of a model adds to logits.
    """
    @property
    def labels(self) -> list[str]: ...
    @property
    def logits(self) -> torch.Tensor:
        """
        [batch, n], what the parts sum to, before a soft cap.
        """
    @property
    def values(self) -> torch.Tensor:
        """
        [parts, batch, n].
        """

class Prediction:
    """
    Why a model prefers one token to another.
    """
    @property
    def exact(self) -> Attribution:
        """
        The Attribution of the difference by component.
        """
    @property
    def log_probs(self) -> torch.Tensor:
        """
        [streams, 2], in nats.
        """
    @property
    def logits(self) -> torch.Tensor:
        """
        [streams, 2], expected and actual through the logit lens.
        """
    @property
    def naive(self) -> torch.Tensor:
        """
        [components], each with a norm of its own.
        """
    @property
    def ranks(self) -> torch.Tensor:
        """
        int64 [streams, 2], tokens with a larger logit.
        """
    @property
    def streams(self) -> list[str]:
        """
        Labels of the residual streams.
        """
    @property
    def turn(self) -> int | None:
        """
        The last stream in which the expected token was not behind, or None.
        """

class MetricTerm:
    """
    One number of a run's logits at one position: see introspect.LogitDifference and its neighbours.

    Args:
        kind: logit_difference, log_probability, probability, probability_difference, rank, accuracy, divergence or
            js_divergence.
        right, wrong: token ids.
        position: of the prompt; a negative one counts from its end.
        reference: logits or log-probabilities [d_vocab] of the divergences; None: those of the clean run.
        weight: in the sum that a metric is.

    Raises:
        ValueError: an unknown kind.
    """
    def __init__(
        self,
        kind: str,
        right: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        wrong: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        *,
        position: typing.SupportsInt | typing.SupportsIndex = -1,
        reference: torch.Tensor | None = None,
        weight: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    ) -> None: ...
    @property
    def kind(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def right(self) -> list[int]: ...
    @property
    def weight(self) -> float: ...
    @property
    def wrong(self) -> list[int]: ...

class Metric:
    """
    A metric of one prompt's run: the weighted sum of its terms.
    """
    def __init__(self, terms: collections.abc.Sequence[MetricTerm]) -> None: ...
    def evaluate(
        self,
        logits: torch.Tensor,
        *,
        n_tokens: typing.SupportsInt | typing.SupportsIndex,
        d_vocab: typing.SupportsInt | typing.SupportsIndex,
        reference: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The metric of logits [..., P, n] at the positions and rows that ``reads`` names: [...].
        """
    def of_logits(self, logits: torch.Tensor, reference: torch.Tensor | None = None) -> torch.Tensor:
        """
        The metric of a prompt's logits [..., pos, d_vocab]; gradients flow through all kinds but rank and accuracy.

        Args:
            reference: the clean run's logits [pos, d_vocab], of divergences that have none of their own.

        Returns:
            [...], in the dtype of the logits.

        Raises:
            ValueError: no terms, tokens that are missing or not used, or a reference that is needed and not there.
            IndexError: tokens or positions that are not there.
            ShapeError: logits or references of other shapes.
        """
    def reads(
        self, n_tokens: typing.SupportsInt | typing.SupportsIndex, d_vocab: typing.SupportsInt | typing.SupportsIndex
    ) -> tuple[list[int], typing.Any, bool]:
        """
        (positions, vocab_ids, needs_reference): what is read of a run of n_tokens; vocab_ids None: the whole vocabulary.

        Raises:
            ValueError: no terms, or tokens that are missing or not used.
            IndexError: tokens or positions that are not there.
        """
    @property
    def terms(self) -> list[MetricTerm]: ...

class TokenTrie:
    """
    A set of token sequences as a tree in which equal prefixes are one path.

    Nodes are numbered depth first, so that a node's ancestors come before it.

    Raises:
        ValueError: no sequences, or an empty one.
    """
    def __init__(
        self, sequences: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]]
    ) -> None: ...
    def __len__(self) -> int: ...
    def path(self, node: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        """
        The nodes from the root to one, both included.
        """
    @property
    def depths(self) -> list[int]:
        """
        The position of each node in its sequences.
        """
    @property
    def ends(self) -> list[int]:
        """
        The node of each sequence's last token.
        """
    @property
    def parents(self) -> list[int]:
        """
        The parent of each node; -1 for a root.
        """
    @property
    def tokens(self) -> list[int]:
        """
        The token of each node.
        """

class TriePlan:
    """
    How a trie is run under a memory budget.
    """
    @property
    def n_passes(self) -> int: ...
    @property
    def nodes(self) -> int:
        """
        That are run instead.
        """
    @property
    def nodes_per_pass(self) -> int: ...
    @property
    def tokens(self) -> int:
        """
        Of all sequences, as running them one by one would take.
        """

class PlanSummary:
    """
    What a graph costs, against running every sequence that is read by itself.
    """
    @property
    def blocks_read(self) -> int:
        """
        From the files of models whose blocks stay there, pass by pass.
        """
    @property
    def bytes_read(self) -> int:
        """
        What these blocks take in the files.
        """
    @property
    def n_captures(self) -> int: ...
    @property
    def n_passes(self) -> int: ...
    @property
    def n_pieces(self) -> int: ...
    @property
    def peak_bytes(self) -> int:
        """
        Estimate for the largest pass, weights aside.
        """
    @property
    def seconds_to_plan(self) -> float: ...
    @property
    def token_layers_asked(self) -> int:
        """
        Tokens times layers of the sequences run one by one.
        """
    @property
    def token_layers_to_run(self) -> int:
        """
        That are run instead.
        """

class Graph:
    """
    The native graph of segments: see ``introspect.Graph``.
    """
    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    def hash(self, node: typing.SupportsInt | typing.SupportsIndex) -> str: ...
    def length(self, node: typing.SupportsInt | typing.SupportsIndex) -> int: ...
    def plan(
        self,
        *,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        most_rows: typing.SupportsInt | typing.SupportsIndex = 16384,
    ) -> PlanSummary: ...
    def read_activation(
        self,
        node: typing.SupportsInt | typing.SupportsIndex,
        *,
        positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [-1],
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        point: str = "hook_resid_post",
    ) -> int: ...
    def read_attention(
        self,
        node: typing.SupportsInt | typing.SupportsIndex,
        *,
        positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [-1],
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        first_key: typing.SupportsInt | typing.SupportsIndex = 0,
        last_key: typing.SupportsInt | typing.SupportsIndex | None = None,
    ) -> int: ...
    def read_cache(self, node: typing.SupportsInt | typing.SupportsIndex) -> int: ...
    def run(
        self,
        *,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        most_rows: typing.SupportsInt | typing.SupportsIndex = 16384,
        progress: typing.Any = None,
    ) -> list: ...
    def run_each(
        self,
        on_read: collections.abc.Callable,
        *,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        most_rows: typing.SupportsInt | typing.SupportsIndex = 16384,
        progress: typing.Any = None,
    ) -> None: ...
    def segment(
        self,
        model: Model,
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        parent: typing.SupportsInt | typing.SupportsIndex | None = None,
        interventions: collections.abc.Sequence[Intervention] = [],
    ) -> int: ...
    def splice(
        self,
        target: typing.SupportsInt | typing.SupportsIndex,
        first: typing.SupportsInt | typing.SupportsIndex,
        last: typing.SupportsInt | typing.SupportsIndex,
        source: typing.SupportsInt | typing.SupportsIndex,
    ) -> int: ...
    def svg(self) -> str: ...
    def tokens(self, node: typing.SupportsInt | typing.SupportsIndex) -> list[int]: ...
    @property
    def n_reads(self) -> int: ...

class Lens:
    """
    Residuals of every layer as the next token's logits: a logit, tuned or Jacobian lens, as one value.

    Layers are numbers of blocks, whose output is read; -1 is the stream before the first block. After the last block every
    lens is the model's own readout. Statistics of the final norm are those of what it is given, at every layer.
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Lens:
        """
        Read a lens: a folder of the tuned-lens package, the .pt of a Jacobian lens, or a .safetensors file of ours.

        Nothing in the files is executed.

        Raises:
            IoError: a file is missing or damaged.
            ConfigError: it holds something else.
        """
    @staticmethod
    def logit(model: typing.Any) -> Lens:
        """
        The logit lens of a model: nothing stands before its own norm and unembedding.
        """
    def __copy__(self) -> Lens: ...
    def __deepcopy__(self, memo: dict) -> Lens: ...
    def __init__(
        self,
        kind: str,
        model: typing.Any,
        translators: collections.abc.Mapping[
            typing.SupportsInt | typing.SupportsIndex, tuple[torch.Tensor, torch.Tensor | None]
        ],
    ) -> None:
        """
        Args:
            kind: tuned (h + W h + b) or jacobian (W h); ``Lens.logit(model)`` makes a logit lens.
            translators: (W [d_model, d_model], b [d_model] or None) by layer.

        Raises:
            ShapeError: other shapes.
            IndexError: a layer that has none: the last one, and -1 of a Jacobian lens.
            ValueError: values that are not finite.
        """
    def check_model(self, model: typing.Any) -> None:
        """
        Raises:
            ShapeError: a model of another width or depth.
            ConfigError: another checkpoint or, where the lens does not know its own, another unembedding.
        """
    def logits(
        self,
        model: typing.Any,
        resid: torch.Tensor,
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        *,
        vocab_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Logits of residuals.

        Args:
            resid: [..., layers, d_model].
            layers: of each of them.
            vocab_ids: int64 [n], of these tokens only.

        Returns:
            [..., layers, d_vocab], float32 (float64 of a float64 model).

        Raises:
            ConfigError: the lens is of another model.
            IndexError: a layer that the lens does not read.
        """
    def rebound(self, model: typing.Any) -> Lens:
        """
        The same lens for another model of its sizes: one that was fine-tuned, say.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        Write the lens, whole or not at all.

        Args:
            path: a name in .safetensors; in .pt, for a Jacobian lens, in float16 as published; or else a folder as the tuned-lens
                package has it (params.pt, config.json), for a tuned lens of all layers.

        Raises:
            ConfigError: the format does not hold such a lens.
            IoError: it cannot be written.
        """
    def translate(self, resid: torch.Tensor, layer: typing.SupportsInt | typing.SupportsIndex) -> torch.Tensor:
        """
        Residuals [..., d_model] of a layer as the final norm is given them, float32.
        """
    @property
    def d_model(self) -> int: ...
    @property
    def hash(self) -> str:
        """
        Hex SHA-256 of kind and translators.
        """
    @property
    def kind(self) -> str:
        """
        logit, tuned or jacobian.
        """
    @property
    def layers(self) -> list[int]:
        """
        The layers that it reads, ascending, the last block among them.
        """
    @property
    def model_hash(self) -> str:
        """
        Of the checkpoint it is of; empty where a file of another package does not say.
        """
    @property
    def model_name(self) -> str: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def notes(self) -> typing.Any:
        """
        How it was made, and what training saw.
        """
    @property
    def translators(self) -> dict:
        """
        (W, b or None) by layer.
        """
    @property
    def unembed_hash(self) -> str:
        """
        Of the unembedding, as the tuned-lens package makes it; empty if not known.
        """

class LensReading:
    """
    What a lens reads of one text: see introspect.analysis.logit_lens.
    """
    @property
    def labels(self) -> list[str]: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def measures(self) -> dict[str, torch.Tensor]: ...
    @property
    def positions(self) -> list[int]: ...
    @property
    def target_log_probs(self) -> torch.Tensor: ...
    @property
    def target_ranks(self) -> torch.Tensor: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def top_ids(self) -> torch.Tensor: ...
    @property
    def top_log_probs(self) -> torch.Tensor: ...

class PatchAxes:
    """
    The axes of a grid of patches at one point: see analysis.patch_grid.
    """
    def __init__(
        self,
        point: str,
        *,
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        heads: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        by_position: bool = True,
        by_head: bool = False,
        by_key: bool = False,
        window: typing.SupportsInt | typing.SupportsIndex = 1,
    ) -> None: ...

class PatchPair:
    """
    A patched run, the run that activations are taken of, and what is measured: see analysis.patch_grid.

    Args:
        to, from_: token ids.
        metric: of the patched run.
        to_interventions, from_interventions: under which they run.
        places: pairs of lists of positions, patched together, of ``to`` and ``from_``; none: every position.
    """
    def __init__(
        self,
        to: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        from_: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        metric: Metric,
        *,
        to_interventions: collections.abc.Sequence[Intervention] = [],
        from_interventions: collections.abc.Sequence[Intervention] = [],
        places: collections.abc.Sequence[
            tuple[
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
                collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
            ]
        ] = [],
    ) -> None: ...

class PatchGrid:
    """
    Metrics of a grid of patches, float64: see analysis.patch_grid.
    """
    @property
    def axes(self) -> list[str]: ...
    @property
    def from_(self) -> torch.Tensor: ...
    @property
    def to(self) -> torch.Tensor: ...
    @property
    def token_layers_asked(self) -> int: ...
    @property
    def token_layers_to_run(self) -> int: ...
    @property
    def values(self) -> torch.Tensor: ...

class PathSender:
    """
    What writes to the residual stream: input, head or mlp.
    """
    def __init__(
        self,
        kind: str,
        layer: typing.SupportsInt | typing.SupportsIndex = -1,
        head: typing.SupportsInt | typing.SupportsIndex = -1,
    ) -> None: ...

class PathReceiver:
    """
    What reads the residual stream: q, k, v, mlp or logits.
    """
    def __init__(
        self,
        kind: str,
        layer: typing.SupportsInt | typing.SupportsIndex = -1,
        head: typing.SupportsInt | typing.SupportsIndex = -1,
    ) -> None: ...

class AttributionAtPoint:
    """
    Estimates at one point, [pairs, axes].
    """
    @property
    def axes(self) -> list[str]: ...
    @property
    def point(self) -> str: ...
    @property
    def values(self) -> torch.Tensor: ...

class AttributionPatching:
    """
    See analysis.attribution_patch.
    """
    @property
    def from_(self) -> torch.Tensor: ...
    @property
    def points(self) -> list[AttributionAtPoint]: ...
    @property
    def to(self) -> torch.Tensor: ...

class CircuitComparison:
    """
    How two circuits of one model agree.
    """
    @property
    def jaccard(self) -> float:
        """
        edges in both, of those in either
        """
    @property
    def n_both(self) -> int: ...
    @property
    def n_first(self) -> int:
        """
        edges of the first
        """
    @property
    def n_second(self) -> int: ...
    @property
    def node_jaccard(self) -> float:
        """
        likewise of heads and MLPs
        """
    @property
    def spearman(self) -> float:
        """
        rank correlation of |scores| over all edges of the model
        """

class Circuit:
    """
    Nodes and edges of a model: see introspect.circuits.Circuit.
    """
    @staticmethod
    def from_json(text: str) -> Circuit: ...
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Circuit: ...
    @staticmethod
    def of_edges(cfg: Config, names: collections.abc.Sequence[str], *, ungrouped: bool = False) -> Circuit: ...
    @staticmethod
    def whole(cfg: Config, *, ungrouped: bool = False) -> Circuit: ...
    def __copy__(self) -> Circuit: ...
    def __deepcopy__(self, memo: dict) -> Circuit: ...
    def check_fits(self, cfg: Config) -> None: ...
    def compare(self, other: Circuit) -> CircuitComparison: ...
    def edges(self) -> list[tuple[str, str, float]]: ...
    def greedy(
        self, n: typing.SupportsInt | typing.SupportsIndex, *, absolute: bool = True, prune: bool = True
    ) -> Circuit: ...
    def outside(self, activations: collections.abc.Mapping[str, torch.Tensor] = {}) -> list[Intervention]: ...
    def parse_edge(self, name: str) -> tuple[int, int]: ...
    def pruned(self) -> Circuit: ...
    def save(self, path: os.PathLike | str | bytes) -> None: ...
    def sender_scores(self) -> torch.Tensor: ...
    def senders(self) -> list[int]: ...
    def svg(self) -> str: ...
    def to_json(self) -> str: ...
    def top(
        self, n: typing.SupportsInt | typing.SupportsIndex, *, absolute: bool = True, prune: bool = True
    ) -> Circuit: ...
    def ungrouped(self) -> Circuit: ...
    def with_scores(self, scores: torch.Tensor) -> Circuit: ...
    @property
    def in_graph(self) -> torch.Tensor: ...
    @property
    def n_edges(self) -> int: ...
    @property
    def n_groups(self) -> int: ...
    @property
    def n_possible_edges(self) -> int: ...
    @property
    def receiver_names(self) -> list[str]: ...
    @property
    def scores(self) -> torch.Tensor: ...
    @property
    def sender_names(self) -> list[str]: ...

class EdgeAttribution:
    """
    Scores of every edge, and the metric of both runs.
    """
    @property
    def by_position(self) -> torch.Tensor | None: ...
    @property
    def circuit(self) -> Circuit: ...
    @property
    def clean(self) -> torch.Tensor: ...
    @property
    def corrupted(self) -> torch.Tensor | None: ...

class Faithfulness:
    """
    How much of the metric the best edges keep.
    """
    @property
    def cmd(self) -> float: ...
    @property
    def cpr(self) -> float: ...
    @property
    def empty(self) -> float: ...
    @property
    def faithfulness(self) -> list[float]: ...
    @property
    def full(self) -> float: ...
    @property
    def metric(self) -> list[float]: ...
    @property
    def n_edges(self) -> list[int]: ...
    @property
    def shares(self) -> list[float]: ...

class LayerDiagnostics:
    """
    How well one layer's direction tells the two sides of its pairs apart.
    """
    def __copy__(self) -> LayerDiagnostics: ...
    def __deepcopy__(self, memo: dict) -> LayerDiagnostics: ...
    def __getstate__(self) -> tuple[float, float, float | None, float | None]: ...
    def __repr__(self) -> str: ...
    def __setstate__(
        self,
        arg0: tuple[
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex | None,
            typing.SupportsFloat | typing.SupportsIndex | None,
        ],
    ) -> None: ...
    @property
    def accuracy(self) -> float | None:
        """
        Share of held-out activations on their side of the training sides' middle; None if unknown.
        """
    @property
    def auc(self) -> float | None:
        """
        Probability that a held-out positive projects above a negative; None if unknown.
        """
    @property
    def explained_variance(self) -> float:
        """
        Share of the differences' second moment that lies along the direction.
        """
    @property
    def sign_agreement(self) -> float:
        """
        Share of the pairs that project in the direction's order.
        """

class ControlVector:
    """
    One direction per layer, read at the output of block l and added to the output of block l (0-based).

    A value: ``+``, ``-``, ``*``, ``/`` make new vectors, and strength is not part of it (``20 * vector`` is another vector).

    Args:
        model_type: the architecture's name as in config.json ("qwen2").
        directions: {layer: tensor [d_model]}, any float dtype; float32 copies are kept.

    Raises:
        ConfigError: no directions.
        IndexError: a negative layer.
        ShapeError: a direction that is not [d_model] of the others' width.
        ValueError: NaN or infinity.
    """

    __hash__: typing.ClassVar[None] = None
    @staticmethod
    def import_gguf(path: os.PathLike | str | bytes) -> ControlVector:
        """
        Reads a control vector from GGUF, repeng's and llama.cpp's included. Raises IoError.
        """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> ControlVector:
        """
        Reads .gguf or .safetensors, by the file's ending. Raises ValueError for any other.
        """
    @staticmethod
    def load_safetensors(path: os.PathLike | str | bytes) -> ControlVector:
        """
        Reads what save_safetensors wrote. Raises IoError.
        """
    @staticmethod
    def train(
        model: typing.Any,
        pairs: collections.abc.Sequence[tuple[str, str]],
        *,
        method: str = "pca_center",
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        read_position: typing.SupportsInt
        | typing.SupportsIndex
        | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None] = -1,
        point: str = "hook_resid_post",
        last_layer_after_norm: bool = False,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        folds: typing.SupportsInt | typing.SupportsIndex = 2,
        compute_hiddens: typing.Any = None,
        transform_hiddens: typing.Any = None,
        progress: typing.Any = None,
    ) -> ControlVector:
        """
        Trains a vector on pairs of texts that differ in what it shall stand for.

        Activations are read at ``point`` of the blocks ``layers``, at ``read_position`` of each text; what texts begin with is
        run once, and nothing above the highest layer is run. Each direction points from the negative to the positive side of
        most pairs. Every option is checked before the first forward pass.

        Args:
            model: an introspect.Model with a tokenizer.
            pairs: (positive, negative) texts, as concept_pairs makes them.
            method: see direction_of_pairs.
            layers: block numbers; None is 1 to n_layers - 1.
            read_position: a token's index, negative from the end, or (first, last) for the mean over a span, last excluded and
                None to the end. Tokens are those of ``model.to_tokens``, its BOS included.
            point: a hook point of a block that has one vector a position. At "attn.hook_z" and its like the heads stand one after
                another; norms' scales, patterns and points with d_model for every head are refused.
            last_layer_after_norm: read the last layer after the final norm, as repeng does.
            memory_budget: bytes of activations at a time; more than a pass of 2,048 tokens needs is not used.
            seed: of the random pairing of "lat"; nothing else is random.
            folds: how many parts of the pairs are judged by the direction of the others, for ``diagnostics``; 0: none.
            compute_hiddens: called in place of reading the model, with repeng's keywords model, tokenizer, train_strs (positive,
                negative, positive, ...), hidden_layers and batch_size; returns {layer: [2 * pairs, d]}.
            transform_hiddens: called with {layer: [2 * pairs, d]}, in that order of rows, and returns the same; d may change.
            progress: called with (what, done, total).

        Raises:
            ValueError: too few pairs, an empty text or span, an unknown method, a point without a direction, pairs that do not
                differ (naming the layer), activations that are not finite (naming layer and text), hiddens without a layer.
            IndexError: a layer the model does not have, or a position that a text does not have.
            HookError: a point that the model does not have.
            ShapeError: a text longer than n_ctx, or hiddens of another shape.
            ConfigError: a model without tokenizer.
        """
    @staticmethod
    def train_many(
        model: typing.Any,
        pairs: dict,
        *,
        method: str = "pca_center",
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        read_position: typing.SupportsInt
        | typing.SupportsIndex
        | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None] = -1,
        point: str = "hook_resid_post",
        last_layer_after_norm: bool = False,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        folds: typing.SupportsInt | typing.SupportsIndex = 2,
        compute_hiddens: typing.Any = None,
        transform_hiddens: typing.Any = None,
        progress: typing.Any = None,
    ) -> dict:
        """
        Trains several vectors at once: all texts are one token trie, so that a baseline they share is run once.

        Args:
            model: an introspect.Model with a tokenizer.
            pairs: {name: (positive, negative) texts}.

        The other arguments are those of ``train``; functions of the caller's are called once for each name.

        Returns:
            {name: ControlVector}, each what ``train`` gives up to rounding.

        Raises:
            As ``train``, naming the set, and ValueError without any.
        """
    @staticmethod
    def train_words(
        model: typing.Any,
        word: str,
        baseline_words: collections.abc.Sequence[str],
        *,
        template: str | collections.abc.Sequence[str] = "Tell me about {word}.",
        chat: bool = True,
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        read_position: typing.SupportsInt
        | typing.SupportsIndex
        | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None] = -1,
        point: str = "hook_resid_post",
        last_layer_after_norm: bool = False,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        progress: typing.Any = None,
    ) -> ControlVector:
        """
        A concept vector from a single word: its mean activation minus the mean over baseline words, at its own length.

        Args:
            model: an introspect.Model with a tokenizer.
            word: the concept.
            baseline_words: see introspect.load_words("baseline").
            template: what the words are put into, with "{word}" in it; several are averaged over.
            chat: the template is the user's message, and the head of the answer follows it; False: plain text.
            layers: block numbers; None is 1 to n_layers - 1.
            read_position: see ``train``.
            point: see ``train``.
            last_layer_after_norm: see ``train``.
            memory_budget: see ``train``.
            progress: called with (what, done, total).

        Raises:
            ValueError: an empty word, no baseline words, a template without "{word}", a word that does not differ from the
                baseline (naming the layer), activations that are not finite (naming layer and prompt).
            ConfigError: no tokenizer, or no chat template with ``chat``.
            IndexError, HookError, ShapeError: as ``train``.

        Source: Lindsey 2025, "Emergent Introspective Awareness in Large Language Models"; Macar et al. 2026.
        """
    @staticmethod
    def train_words_many(
        model: typing.Any,
        words: collections.abc.Sequence[str],
        baseline_words: collections.abc.Sequence[str],
        *,
        template: str | collections.abc.Sequence[str] = "Tell me about {word}.",
        chat: bool = True,
        layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
        read_position: typing.SupportsInt
        | typing.SupportsIndex
        | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None] = -1,
        point: str = "hook_resid_post",
        last_layer_after_norm: bool = False,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        progress: typing.Any = None,
    ) -> dict:
        """
        ``train_words`` for several words at once, whose prompts and the baseline's are one token trie.

        Args:
            model: an introspect.Model with a tokenizer.
            words: the concepts.

        The other arguments are those of ``train_words``.

        Returns:
            {word: ControlVector}, in the order of ``words``.
        """
    def __add__(self, other: ControlVector) -> ControlVector: ...
    def __copy__(self) -> ControlVector: ...
    def __deepcopy__(self, memo: dict) -> ControlVector: ...
    def __eq__(self, other: ControlVector) -> bool: ...
    def __getstate__(
        self,
    ) -> tuple[
        str,
        dict[int, torch.Tensor],
        str,
        str,
        str,
        int,
        dict[int, list[float]],
        int,
        dict[int, LayerDiagnostics],
        str,
        str,
        bool,
    ]: ...
    def __init__(
        self,
        model_type: str,
        directions: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, torch.Tensor],
    ) -> None: ...
    def __mul__(self, factor: typing.SupportsFloat | typing.SupportsIndex) -> ControlVector: ...
    def __neg__(self) -> ControlVector: ...
    def __repr__(self) -> str: ...
    def __rmul__(self, factor: typing.SupportsFloat | typing.SupportsIndex) -> ControlVector: ...
    def __setstate__(
        self,
        arg0: tuple[
            str,
            collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, torch.Tensor],
            str,
            str,
            str,
            typing.SupportsInt | typing.SupportsIndex,
            collections.abc.Mapping[
                typing.SupportsInt | typing.SupportsIndex,
                collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
            ],
            typing.SupportsInt | typing.SupportsIndex,
            collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, LayerDiagnostics],
            str,
            str,
            bool,
        ],
    ) -> None: ...
    def __sub__(self, other: ControlVector) -> ControlVector: ...
    def __truediv__(self, divisor: typing.SupportsFloat | typing.SupportsIndex) -> ControlVector: ...
    def cosine(self, other: ControlVector) -> dict[int, float]:
        """
        {layer: cosine} for every layer both have; NaN where one is zero. Raises ShapeError for other widths.
        """
    def export_gguf(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes the file that repeng and llama.cpp read.

        Raises:
            ConfigError: there is a direction for layer 0, which llama.cpp refuses; save_safetensors keeps it.
            IoError: the file cannot be written; none is left behind.
        """
    def intervention(
        self,
        model: typing.Any,
        *,
        layers: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
        | None = None,
        positions: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None
        ] = (0, None),
    ) -> Intervention:
        """
        The vector as something to do to a forward pass: its directions added to the outputs of a range of blocks.

        Args:
            model: the introspect.Model it is for.
            layers: first and last block, both included; None is every layer the vector has.
            positions: [first, last) positions that are steered; None is open.

        Raises:
            IndexError: a layer the model does not have.
            ConfigError: the vector has no direction in the range.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes .gguf or .safetensors, by the file's ending. Raises ValueError for any other.
        """
    def save_safetensors(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes the directions and where they came from. Raises IoError.
        """
    @property
    def concept(self) -> str:
        """
        What it stands for, as train_many and train_words were told; empty if unknown.
        """
    @property
    def d_model(self) -> int: ...
    @property
    def diagnostics(self) -> dict[int, LayerDiagnostics]:
        """
        {layer: LayerDiagnostics} of the pairs it was trained on; empty if unknown.
        """
    @property
    def directions(self) -> dict[int, torch.Tensor]:
        """
        {layer: float32 [d_model]}, copies.
        """
    @property
    def folds(self) -> int:
        """
        Parts of the pairs that ``diagnostics`` held out one by one: pair i is in part i mod folds; 0 if none.
        """
    @property
    def last_layer_after_norm(self) -> bool:
        """
        Whether the last layer was read after the final norm.
        """
    @property
    def layers(self) -> list[int]: ...
    @property
    def method(self) -> str: ...
    @property
    def model_hash(self) -> str:
        """
        Hash of the model it was trained on; empty if unknown.
        """
    @property
    def model_name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def n_pairs(self) -> int: ...
    @property
    def norms(self) -> dict[int, float]:
        """
        {layer: length of the direction}.
        """
    @property
    def point(self) -> str:
        """
        The hook point of a block where it was read; empty if unknown.
        """
    @property
    def read_position(self) -> str:
        """
        The tokens it was read at: "-1", "mean 2:5"; empty if unknown.
        """
    @property
    def spectrum(self) -> dict[int, list[float]]:
        """
        {layer: largest shares of variance, descending}; empty for other methods than PCA.
        """

class Activations:
    """
    Activations of texts in one model: what directions are made from, and all that ``contrast`` needs of the model.
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Activations:
        """
        Reads what save wrote. Raises IoError.
        """
    def __repr__(self) -> str: ...
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes a safetensors file with all of it. Raises IoError.
        """
    @property
    def last_layer_after_norm(self) -> bool: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def model_hash(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def point(self) -> str: ...
    @property
    def read_position(self) -> typing.Any:
        """
        A token's index, or (first, last) of a span.
        """
    @property
    def texts_hash(self) -> str:
        """
        Hex SHA-256 of the texts in their order.
        """
    @property
    def values(self) -> torch.Tensor:
        """
        [texts, layers, d], float32 (float64 of a float64 model), on the CPU; not to be written to.
        """

class Condition:
    """
    Decides, for each prompt, whether to steer: by how much of a direction the unsteered residual stream holds.

    Args:
        direction: [d_model], any floating dtype.
        layer: read at the output of this block.
        threshold: what the measure is compared with.
        above: it holds above the threshold; False: below it.
        measure: "cosine" of activation h and direction c; "projection", h.c / |c|; or "cast", the cosine of h and
            tanh(c (c.h) / (c.c)), which is never negative.
        over: "mean" of h over the prompt, or its "last" token's.

    Raises:
        ValueError: another measure or ``over``.

    Source: conditional activation steering (CAST), Lee et al. 2024, arXiv:2409.05907, which is "cast" over the "mean".
    """
    def __copy__(self) -> Condition: ...
    def __deepcopy__(self, memo: dict) -> Condition: ...
    def __getstate__(self) -> tuple[int, torch.Tensor, float, bool, int, bool]: ...
    def __init__(
        self,
        direction: torch.Tensor,
        *,
        layer: typing.SupportsInt | typing.SupportsIndex,
        threshold: typing.SupportsFloat | typing.SupportsIndex,
        above: bool = True,
        measure: str = "cosine",
        over: str = "mean",
    ) -> None: ...
    def __setstate__(
        self,
        arg0: tuple[
            typing.SupportsInt | typing.SupportsIndex,
            torch.Tensor,
            typing.SupportsFloat | typing.SupportsIndex,
            bool,
            typing.SupportsInt | typing.SupportsIndex,
            bool,
        ],
    ) -> None: ...
    def measure(
        self, model: typing.Any, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        How much of the direction there is in each prompt, float64 [batch]; only blocks up to the layer are run.

        Args:
            model: an introspect.Model; what is hooked into it takes no part.
            tokens: int64 [batch, pos].
            attention_mask: bool [batch, pos], False for padding at either side.

        Raises:
            IndexError: a layer the model does not have.
            ShapeError: a direction of another width.
            ValueError: a direction that is zero or not finite, or a threshold that is NaN.
        """
    def rows(self, model: typing.Any, tokens: torch.Tensor, attention_mask: torch.Tensor | None = None) -> list[int]:
        """
        The rows of the batch in which the condition holds; see ``measure``.
        """
    def validate(self, model: typing.Any) -> None:
        """
        Raises what ``measure`` raises, without running anything.
        """
    @property
    def above(self) -> bool: ...
    @property
    def direction(self) -> torch.Tensor: ...
    @property
    def layer(self) -> int: ...
    @property
    def threshold(self) -> float: ...

class Protocol:
    """
    One introspection experiment as data: turns, the injected messages, what is read, and control questions.

    A file is a JSON object. name, turns ([{role, content}]) and injected are needed; the rest may be left out.

        based_on        a file beside this one whose fields hold where this one gives none
        source          where the texts come from
        injected        indices into turns, ascending; or [{turn, text}]: passages of messages
        inject          {by: "vector"}, "random" (directions of the vector's lengths), "model" (model: a name among
                        run_experiment's models, which prefills the spans), "tokens" (turns: the same messages with $CONCEPT
                        written into the injected ones; priming), "patch" (turns, of as many tokens: their residuals
                        replace the spans'), "swap" (text: as many tokens of it stand in the spans' place, and their residuals
                        replace the spans'), "noise" (a Gaussian direction of the vector's length at every token and block),
                        "dropout" (rate: elements of the blocks' outputs set to zero) or "scale" (the outputs times
                        1 + strength). texts: {concept: what stands for $CONCEPT}
        relative_strength  factor on a run's strengths
        read            "yes_no", "content" or "sample"
        readouts        {name: parameter}: what is read besides the log-odds. lens, attention, divergence,
                        injected_kl: true; top_k: number; continuations: texts; and the names of readouts that a program
                        registers
        steer_generation   true keeps the vector on after the spans
        yes_token, no_token        one token each
        yes_variants, no_variants  spellings whose probabilities the lens sums up
        report_tokens   {concept: word}
        paraphrases     texts, or {question, prefix, name}: each is asked in the place of the last user message, and so is
                        that message itself; rows carry the name, which is the text (and prefix) where none is given
        asks_own_question  false: with paraphrases, the last user message itself is not asked
        sentences       instead of injected: $SENTENCES in a turn stands for them, and each is a passage
        answers         one token for each passage: each is injected alone, and these are read (localisation)
        sampling        {max_new_tokens, temperature, top_p, top_k}
        controls        {questions, groups, question, turns, injected, name, asked_in}, or the name of such a file beside.
                        groups: {name: questions} besides, whose rows have a group. They are
                        asked in the protocol's own conversation in the place of the last user message, in the words of
                        question (with $QUESTION). turns and injected are another conversation, called name, that a run may
                        ask them in instead (run_experiment's controls); asked_in says where unless a run does
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Protocol:
        """
        A protocol from its file. Raises IoError, and ConfigError that names the place of a mistake.
        """
    @staticmethod
    def parse(json: str) -> Protocol:
        """
        A protocol from its JSON text. Raises ConfigError that names the place of a mistake.
        """
    def __copy__(self) -> Protocol: ...
    def __deepcopy__(self, memo: dict) -> Protocol: ...
    def __getstate__(self) -> str: ...
    def __repr__(self) -> str: ...
    def __setstate__(self, arg0: str) -> None: ...
    def is_own(self, conversation: str) -> bool:
        """
        Whether that one of the control_conversations is the protocol's own but for the question.
        """
    def to_json(self) -> str:
        """
        The protocol in the file's format, with the controls inside.
        """
    def with_controls_in(self, other: Protocol) -> Protocol:
        """
        The same protocol with another one's conversation, under its name, for the control questions.

        Raises:
            ConfigError: a conversation in which no question can be asked.
        """
    @property
    def answers(self) -> list[str]: ...
    @property
    def asks_own_question(self) -> bool: ...
    @property
    def control_conversations(self) -> list[str]:
        """
        Where control questions can be asked: run_experiment's controls.
        """
    @property
    def control_groups(self) -> dict[str, list[str]]:
        """
        More control questions, by the name of their group.
        """
    @property
    def control_questions(self) -> list[str]: ...
    @property
    def controls(self) -> str:
        """
        Where they are asked unless a run says otherwise.
        """
    @property
    def hash(self) -> str:
        """
        Hex SHA-256 of to_json().
        """
    @property
    def inject(self) -> str: ...
    @property
    def injected(self) -> list[int]: ...
    @property
    def name(self) -> str: ...
    @property
    def no_token(self) -> str: ...
    @property
    def own_question(self) -> str:
        """
        The last message of the user.
        """
    @property
    def paraphrase_names(self) -> list[str]:
        """
        What rows call the paraphrases; the last user message itself is 'own'.
        """
    @property
    def paraphrases(self) -> list:
        """
        (question, prefix); an empty prefix is the turns' own.
        """
    @property
    def passages(self) -> list:
        """
        (turn, text) of what is injected where it is not whole messages.
        """
    @property
    def read(self) -> str: ...
    @property
    def relative_strength(self) -> float: ...
    @property
    def source(self) -> str: ...
    @property
    def steer_generation(self) -> bool: ...
    @property
    def turns(self) -> list: ...
    @property
    def yes_token(self) -> str: ...

class StoreConflict:
    """
    Two values that two stores have for one key.
    """
    @property
    def kept(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def other(self) -> str: ...

class StoreMerged:
    """
    What merging another store did.
    """
    @property
    def added(self) -> int: ...
    @property
    def conflicts(self) -> list[StoreConflict]: ...
    @property
    def damaged(self) -> int:
        """
        Cells that were left out: no readings.
        """
    @property
    def same(self) -> int:
        """
        Cells that were here before, with the same value.
        """

class RunPlan:
    """
    What a run takes, known before it starts: see introspect.ExperimentPlan.
    """
    @property
    def bytes_read(self) -> int: ...
    @property
    def found(self) -> int: ...
    @property
    def passes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def readings(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def token_layers_asked(self) -> int: ...
    @property
    def token_layers_to_run(self) -> int: ...

class Store:
    """
    Finished readings of experiments on disk, by the hash of what was computed.

    One SQLite file in write-ahead mode. A killed process leaves every finished reading and a sound file, and several
    processes may use one store: of two values for one key the first stays. A reading that several protocols or settings
    share is one cell, and a row of each of them.
    """
    def __init__(self, path: os.PathLike | str | bytes, *, read_only: bool = False) -> None:
        """
        Opens or creates the file; one that is there and cannot be written can be read.

        Args:
            read_only: open a file that is there, and change nothing of it.

        Raises:
            IoError: a file that is no store, has other tables or another layout, or a damaged write-ahead log.
        """
    def __len__(self) -> int: ...
    def asked(self) -> list:
        """
        What runs have asked for, as rows() has it but under each run's own name; a value that is not there yet is ''.
        """
    def damaged(self) -> list:
        """
        Cells whose values cannot be what a run has read (no reading, a probability of 7): key and what.
        """
    def get(self, key: str) -> str | None:
        """
        The value (JSON) of a key, or None.
        """
    def merge(
        self, other: os.PathLike | str | bytes, *, unless_in: os.PathLike | str | bytes | None = None
    ) -> StoreMerged:
        """
        Takes over the cells of another store's file, which is only read; where both have a key, this store's value stays.
        Cells that are ``damaged`` are left out and counted.

        Args:
            unless_in: a third store: only cells that it lacks, and nothing of what runs have asked for.

        Raises:
            IoError: no such file, or no store.
            ValueError: it is this store.
        """
    def problems(self) -> list[str]:
        """
        What is wrong with the file, by SQLite's own check, and with its log; empty when it is sound.
        """
    def put_dose(
        self,
        key: str,
        value: str,
        concept: str,
        origin: collections.abc.Mapping[str, str],
        seed: typing.SupportsInt | typing.SupportsIndex,
    ) -> bool:
        """
        Keeps the doses (a JSON list) of one vector's injections; whether they were not there before.
        """
    def rows(self) -> list:
        """
        Every cell as a dictionary, in the order of writing: setting, value (JSON) and what made it.
        """
    def runs(self) -> list:
        """
        Everything that made cells (model, protocol, seed, versions, ...), with their number and times.
        """
    def vacuum(self) -> None:
        """
        Gives unused space back to the file system.
        """
    @property
    def can_write(self) -> bool: ...
    @property
    def path(self) -> pathlib.Path: ...

class LayerEstimate:
    """
    What one injection is estimated to do to one question's log-odds.
    """
    @property
    def asked_in(self) -> str: ...
    @property
    def by_layer(self) -> list[float]: ...
    @property
    def concept(self) -> str: ...
    @property
    def log_odds_base(self) -> float: ...
    @property
    def null_index(self) -> int: ...
    @property
    def question(self) -> str: ...
    @property
    def question_kind(self) -> str: ...
    @property
    def strength(self) -> float: ...

class NativeDose:
    """
    What one injection does to the model: see introspect.dose.
    """
    @property
    def concept(self) -> str: ...
    @property
    def first_layer(self) -> int: ...
    @property
    def kl(self) -> float: ...
    @property
    def kl_later(self) -> float: ...
    @property
    def kl_read(self) -> float: ...
    @property
    def last_layer(self) -> int: ...
    @property
    def leak(self) -> float: ...
    @property
    def leak_base(self) -> float: ...
    @property
    def next(self) -> float: ...
    @property
    def next_base(self) -> float: ...
    @property
    def null_index(self) -> int: ...
    @property
    def relative(self) -> float: ...
    @property
    def sd(self) -> float: ...
    @property
    def sd_overall(self) -> float: ...
    @property
    def strength(self) -> float: ...

class SolvedDose:
    """
    The injection that reaches a target.
    """
    @property
    def dose(self) -> NativeDose: ...
    @property
    def is_monotone(self) -> bool:
        """
        Whether more strength gave more dose wherever it was measured on the way.
        """
    @property
    def n_measured(self) -> int: ...
    @property
    def target(self) -> float: ...

class EqualDose:
    """
    A null that does as much to the model as a vector.
    """
    @property
    def added(self) -> ControlVector: ...
    @property
    def solved(self) -> SolvedDose: ...
    @property
    def vector(self) -> NativeDose: ...

class Coherence:
    """
    How steered text reads beside unsteered text.
    """
    @property
    def concept(self) -> str: ...
    @property
    def first_layer(self) -> int: ...
    @property
    def is_coherent(self) -> bool: ...
    @property
    def last_layer(self) -> int: ...
    @property
    def null_index(self) -> int: ...
    @property
    def perplexity(self) -> float: ...
    @property
    def perplexity_base(self) -> float: ...
    @property
    def repetition(self) -> float: ...
    @property
    def repetition_base(self) -> float: ...
    @property
    def score(self) -> float: ...
    @property
    def strength(self) -> float: ...
    @property
    def texts(self) -> list[str]: ...
    @property
    def texts_base(self) -> list[str]: ...

class CoherentWindow:
    """
    The strengths from 0 on at which steered text is coherent.
    """
    @property
    def broken(self) -> float: ...
    @property
    def largest(self) -> Coherence: ...
    @property
    def tried(self) -> list[Coherence]: ...

class DoseSearch:
    """
    The search for the strength that gives a dose: what to measure next, and what came out.

    Where the dose does not rise with the strength throughout, what is found is the smallest strength that reaches it, as far as
    the search has seen.
    """
    def __init__(
        self,
        target: typing.SupportsFloat | typing.SupportsIndex,
        start: typing.SupportsFloat | typing.SupportsIndex,
        scale: typing.SupportsFloat | typing.SupportsIndex,
        tolerance: typing.SupportsFloat | typing.SupportsIndex,
    ) -> None:
        """
        A search that has measured nothing.

        Args:
            target: the dose.
            start: the first strength to try; 0 is a grid of ratio 2 from scale / 64 on.
            scale: a strength that does much: 1e-7 to 32 times it are tried.
            tolerance: how far off the dose may be, as a share of the target.

        Raises:
            ValueError: numbers that are not finite and above 0.
        """
    def next(self) -> list[float]:
        """
        The strengths to measure next, ascending.
        """
    def take(
        self,
        doses: collections.abc.Mapping[
            typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex
        ],
    ) -> None:
        """
        {strength: dose} of all that ``next`` has asked for. NaN is a dose that counts as none.
        """
    @property
    def doses(self) -> dict[float, float]:
        """
        {strength: dose} of everything that was measured.
        """
    @property
    def found(self) -> float:
        """
        The strength; negative before it is found.
        """
    @property
    def is_done(self) -> bool: ...
    @property
    def is_monotone(self) -> bool:
        """
        Whether more strength gave more dose wherever it was measured.
        """
    @property
    def is_unreachable(self) -> bool:
        """
        No strength has the dose.
        """
    @property
    def n_measured(self) -> int: ...
    @property
    def reached(self) -> str:
        """
        The doses that were seen, in words.
        """
    @property
    def target(self) -> float: ...

class Interval:
    """
    An interval; both ends belong to it.
    """
    def __contains__(self, x: typing.SupportsFloat | typing.SupportsIndex) -> bool: ...
    def __repr__(self) -> str: ...
    @property
    def high(self) -> float: ...
    @property
    def low(self) -> float: ...

class Estimate:
    """
    A number with its interval and its standard error.
    """
    def __repr__(self) -> str: ...
    @property
    def interval(self) -> Interval: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def value(self) -> float: ...

class Factor:
    """
    One way in which observations are alike: the question they ask, its paraphrase, the concept injected.

    Levels that are a sample of a population (questions one might have asked) are resampled; what is fixed by design is no
    factor.
    """
    def __init__(self, name: str, levels: collections.abc.Sequence[str], *, within: str = "") -> None:
        """
        Args:
            name: what errors and ``within`` call it.
            levels: of each observation.
            within: the name of a factor before it, in each of whose levels this one has levels of its own.
        """
    @property
    def levels(self) -> list[str]: ...
    @property
    def name(self) -> str: ...
    @property
    def within(self) -> str: ...

class Proportion:
    """
    Successes of independent trials, with the exact interval.
    """
    def __repr__(self) -> str: ...
    @property
    def interval(self) -> Interval: ...
    @property
    def successes(self) -> int: ...
    @property
    def trials(self) -> int: ...
    @property
    def value(self) -> float: ...

class ShiftRow:
    """
    One question: means over its readings, log-odds in nats.
    """
    @property
    def base(self) -> float: ...
    @property
    def control(self) -> bool: ...
    @property
    def injected(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def question(self) -> str: ...
    @property
    def shift(self) -> float: ...

class ShiftTable:
    """
    Introspection and control questions side by side.

    ``introspection`` and ``control`` are the mean shifts, their intervals None where there is nothing to draw from; ``effect``
    is their difference, what is left of the shift apart from a general yes-bias.
    """
    @property
    def control(self) -> float: ...
    @property
    def control_base(self) -> float: ...
    @property
    def control_injected(self) -> float: ...
    @property
    def control_interval(self) -> Estimate | None: ...
    @property
    def effect(self) -> Estimate: ...
    @property
    def introspection(self) -> float: ...
    @property
    def introspection_base(self) -> float: ...
    @property
    def introspection_injected(self) -> float: ...
    @property
    def introspection_interval(self) -> Estimate | None: ...
    @property
    def rows(self) -> list[ShiftRow]: ...

class NullBand:
    """
    A value among the same quantity of random vectors.

    ``band`` holds the nulls' quantiles; ``z`` is NaN where the nulls have no spread; ``rank`` is 1 for the highest, ties against
    it; ``p`` is (1 + #{null >= value}) / (1 + n), ``p_two_sided`` twice the smaller of it and its mirror image.
    """
    @property
    def band(self) -> Interval: ...
    @property
    def mean(self) -> float: ...
    @property
    def n(self) -> int: ...
    @property
    def p(self) -> float: ...
    @property
    def p_two_sided(self) -> float: ...
    @property
    def rank(self) -> int: ...
    @property
    def standard_deviation(self) -> float: ...
    @property
    def value(self) -> float: ...
    @property
    def z(self) -> float: ...

class MaxNullBand:
    """
    The points of a sweep against the highest point of each null's sweep.

    ``p`` is of each point, adjusted for looking at all of them; ``p_any`` of the highest; ``threshold`` is what a null's
    highest point exceeds with 1 - confidence. In its units: ``scores`` of the curve's points, their ``highest``, and
    ``null_highest`` of each null's sweep.
    """
    @property
    def highest(self) -> float: ...
    @property
    def null_highest(self) -> list[float]: ...
    @property
    def p(self) -> list[float]: ...
    @property
    def p_any(self) -> float: ...
    @property
    def scores(self) -> list[float]: ...
    @property
    def threshold(self) -> float: ...

class Sensitivity:
    """
    Yes and no with and without an injection: rates, d' and criterion.

    ``criterion`` is 0 without bias and above 0 when "no" is preferred.
    """
    @property
    def criterion(self) -> float: ...
    @property
    def d_prime(self) -> float: ...
    @property
    def false_alarms(self) -> Proportion: ...
    @property
    def hits(self) -> Proportion: ...

class MatchedRate:
    """
    A threshold on the score, and what scores at or above it.
    """
    @property
    def false_alarm_rate(self) -> float: ...
    @property
    def hit_rate(self) -> float: ...
    @property
    def threshold(self) -> float: ...

class Confusion:
    """
    What reports tell about what was injected. Information is in bits.

    ``information`` is the plug-in estimate, ``information_corrected`` the same with Miller and Madow's correction,
    ``information_by_chance`` its mean over permutations; ``p_accuracy`` and ``p_information`` are one-sided.
    """
    @property
    def accuracy(self) -> Proportion: ...
    @property
    def chance(self) -> float: ...
    @property
    def information(self) -> float: ...
    @property
    def information_by_chance(self) -> float: ...
    @property
    def information_corrected(self) -> float: ...
    @property
    def p_accuracy(self) -> float: ...
    @property
    def p_information(self) -> float: ...

class ClusteredMean:
    """
    The mean of a quantity over a sample of clusters, of which there may be few.

    ``p_greater`` and ``p_less`` are the chances of so high and so low a mean by Student's t, ``p_greater_by_flips`` and
    ``p_less_by_flips`` by flips of signs.
    """
    @property
    def clusters(self) -> int: ...
    @property
    def interval(self) -> Interval: ...
    @property
    def p_greater(self) -> float: ...
    @property
    def p_greater_by_flips(self) -> float: ...
    @property
    def p_less(self) -> float: ...
    @property
    def p_less_by_flips(self) -> float: ...
    @property
    def standard_error(self) -> float: ...
    @property
    def value(self) -> float: ...

class Equivalence:
    """
    Whether a mean is shown to lie between two bounds.

    ``p``, the larger of ``p_low`` and ``p_high``, is of the claim; ``mean`` has the interval of confidence 1 - 2 level;
    ``smallest_bound`` is the least margin, plus and minus, within which equivalence is shown.
    """
    @property
    def mean(self) -> Estimate: ...
    @property
    def p(self) -> float: ...
    @property
    def p_high(self) -> float: ...
    @property
    def p_low(self) -> float: ...
    @property
    def smallest_bound(self) -> float: ...

class MetaAnalysis:
    """
    Effects of several studies as a sample of studies.

    ``effect`` is the mean over studies, ``p`` its two-sided p; ``prediction`` is where one more study's effect would lie (NaN for
    fewer than three studies); ``i_squared`` is the share of the variance that lies between studies, 0 to 1; ``q`` and ``p_q``
    are Cochran's test that all have one effect; ``weights`` sum to 1.
    """
    @property
    def effect(self) -> Estimate: ...
    @property
    def i_squared(self) -> float: ...
    @property
    def i_squared_interval(self) -> Interval: ...
    @property
    def p(self) -> float: ...
    @property
    def p_q(self) -> float: ...
    @property
    def prediction(self) -> Interval: ...
    @property
    def q(self) -> float: ...
    @property
    def tau_squared(self) -> float: ...
    @property
    def tau_squared_interval(self) -> Interval: ...
    @property
    def weights(self) -> list[float]: ...

class Probe:
    """
    A linear readout of activations at one place of one model: scores are w.(x - mean) / scale + b.

    Two classes have one row of weights, whose score is of the second class: above 0 it is predicted. More classes have one
    row each, and the highest is predicted. ``fit_probe`` and ``probe_layers`` make them, and ``probe_of_direction``.

    Attributes:
        kind: "logistic", "mass_mean", "mass_mean_covariance", "ridge" or "direction".
        classes: names of the classes.
        name: what it reads.
        threshold: of the score, of a monitor; None: not set.
        layer, point, position: where it reads; a position is a token's index or (first, last) of a span.
        model_name, model_hash, model_type, data_hash, n_texts, C: what it was made of.
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> Probe:
        """
        Raises IoError.
        """
    def __copy__(self) -> Probe: ...
    def __deepcopy__(self, memo: dict) -> Probe: ...
    def __getstate__(self) -> dict: ...
    def __init__(self, **kwargs) -> None:
        """
        From its fields by name. Raises ShapeError, ConfigError or ValueError for fields that do not go together.
        """
    def __repr__(self) -> str: ...
    def __setstate__(self, arg0: dict) -> None: ...
    def direction(self) -> ControlVector:
        """
        The ControlVector of its layer: the weights in the units of the activations, of length 1.

        Raises:
            ConfigError: more than two classes, or another point than hook_resid_post.
        """
    def probabilities(self, x: torch.Tensor) -> torch.Tensor:
        """
        The classes' probabilities [..., classes]. Raises ConfigError for kinds whose score is no log-odds.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        One .safetensors file. Raises IoError.
        """
    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """
        Scores [...] of activations [..., d], or [..., K] for more than two classes, in float64.

        Raises:
            ShapeError: activations of another width.
            ValueError: activations that are not finite.
        """
    def with_(self, **kwargs) -> Probe:
        """
        The same probe with some fields changed: ``probe.with_(name='truth', threshold=2.0)``.
        """
    @property
    def C(self) -> float: ...
    @property
    def bias(self) -> torch.Tensor:
        """
        float64 [K].
        """
    @property
    def classes(self) -> list[str]: ...
    @property
    def data_hash(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def last_layer_after_norm(self) -> bool: ...
    @property
    def layer(self) -> int: ...
    @property
    def mean(self) -> torch.Tensor:
        """
        float64 [d], of the scaler.
        """
    @property
    def model_hash(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def model_type(self) -> str: ...
    @property
    def n_texts(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def point(self) -> str: ...
    @property
    def position(self) -> typing.Any: ...
    @property
    def scale(self) -> torch.Tensor:
        """
        float64 [d], of the scaler.
        """
    @property
    def threshold(self) -> float | None: ...
    @property
    def weights(self) -> torch.Tensor:
        """
        float64 [K, d]; not to be written to.
        """

class ProbeScores:
    """
    What held-out texts say of a probe.
    """
    def __repr__(self) -> str: ...
    @property
    def accuracy(self) -> Estimate:
        """
        Share of the texts whose class is predicted.
        """
    @property
    def auc(self) -> Estimate:
        """
        Mean over folds; of more classes the mean of one against the rest.
        """
    @property
    def log_loss(self) -> float:
        """
        Nats a text; NaN for kinds without probabilities.
        """

class ProbeStudy:
    """
    One layer's probe and how well it does: see study_probes.
    """
    @property
    def compression(self) -> float | None: ...
    @property
    def control_accuracy(self) -> float | None: ...
    @property
    def description_bits(self) -> float | None: ...
    @property
    def held_out(self) -> torch.Tensor:
        """
        float64 [n], or [n, K]: scores by the probe that has not seen the text's fold.
        """
    @property
    def null_accuracy(self) -> list[float]: ...
    @property
    def null_auc(self) -> list[float]: ...
    @property
    def probe(self) -> Probe:
        """
        Fitted on all texts.
        """
    @property
    def scores(self) -> ProbeScores: ...

class MonitorReport:
    """
    How well scores with a threshold find what they are to find.
    """
    def __repr__(self) -> str: ...
    @property
    def auc(self) -> Estimate:
        """
        Whatever the threshold, with its interval.
        """
    @property
    def false_alarms(self) -> Proportion:
        """
        The same of negatives.
        """
    @property
    def recall(self) -> Proportion:
        """
        Share of positives at or above the threshold, exact interval.
        """
    @property
    def threshold(self) -> float: ...

class LeaceEraser:
    """
    Removes a concept from activations: x - proj_left proj_right (x - bias). ``LeaceFitter`` makes one.

    After it no linear classifier of the activations it was fitted on does better than a constant one.
    """
    @staticmethod
    def fit(
        x: torch.Tensor,
        z: torch.Tensor,
        *,
        method: str = "leace",
        affine: bool = True,
        shrinkage: bool = False,
        svd_tol: typing.SupportsFloat | typing.SupportsIndex = 0.01,
    ) -> LeaceEraser:
        """
        An eraser of one batch: LeaceFitter, update and eraser in one.
        """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> LeaceEraser:
        """
        Raises IoError.
        """
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """
        Activations [..., d] without the concept, in their dtype. Raises ShapeError for another width.
        """
    def __init__(self, proj_left: torch.Tensor, proj_right: torch.Tensor, bias: torch.Tensor | None = None) -> None: ...
    def __repr__(self) -> str: ...
    def intervention(
        self, layer: typing.SupportsInt | typing.SupportsIndex, *, point: str = "hook_resid_post"
    ) -> Intervention:
        """
        The erasure at a point of one block, as operator "leace" of the planner.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        One .safetensors file. Raises IoError.
        """
    @property
    def P(self) -> torch.Tensor:
        """
        The projection [d, d] of x - bias.
        """
    @property
    def bias(self) -> torch.Tensor | None:
        """
        float64 [d], the mean of x; None unless affine.
        """
    @property
    def proj_left(self) -> torch.Tensor:
        """
        float64 [d, k].
        """
    @property
    def proj_right(self) -> torch.Tensor:
        """
        float64 [k, d].
        """

class LeaceFitter:
    """
    Least-squares concept erasure from batches of activations, of which only means and covariances are kept, in float64.

    Args:
        x_dim: width of the activations.
        z_dim: width of the concept: 1 for a number or two classes, the number of classes for one-hot labels.
        method: "leace", or "orth": the orthogonal projection off the cross-covariance.
        affine: the mean stays where it is.
        shrinkage: shrink the covariance of x; the guarantee is then not of the activations seen. concept-erasure does.
        svd_tol: singular values of the whitened cross-covariance up to it are taken for noise.

    Raises:
        ValueError: sizes below 1, an unknown method, or a tolerance that is not above 0.

    Source: Belrose et al. 2023, arXiv:2306.03819.
    """
    def __init__(
        self,
        x_dim: typing.SupportsInt | typing.SupportsIndex,
        z_dim: typing.SupportsInt | typing.SupportsIndex = 1,
        *,
        method: str = "leace",
        affine: bool = True,
        shrinkage: bool = False,
        svd_tol: typing.SupportsFloat | typing.SupportsIndex = 0.01,
    ) -> None: ...
    def update(self, x: torch.Tensor, z: torch.Tensor) -> LeaceFitter:
        """
        Takes in a batch.

        Args:
            x: [..., x_dim], any float dtype.
            z: [..., z_dim], or [...] for z_dim 1.

        Raises:
            ShapeError: other shapes.
            ValueError: values that are not finite.
        """
    @property
    def eraser(self) -> LeaceEraser:
        """
        The eraser of what was seen. Raises ValueError for fewer than two rows or a concept that does not vary.
        """
    @property
    def mean_x(self) -> torch.Tensor: ...
    @property
    def n(self) -> int:
        """
        Rows seen.
        """
    @property
    def sigma_xz(self) -> torch.Tensor:
        """
        float64 [x_dim, z_dim].
        """

class DirectionScores:
    """
    What a direction does to a behaviour, whose p is the probability that one of its tokens comes next.

    Attributes:
        layer, position: where it was read.
        bypass: mean of log p - log(1 - p) over positives with the direction ablated everywhere.
        induce: the same over negatives with it added before its layer.
        kl: nats over negatives, of the next token's distribution from that with the direction ablated.
    """
    @property
    def bypass(self) -> float: ...
    @property
    def induce(self) -> float: ...
    @property
    def kl(self) -> float: ...
    @property
    def layer(self) -> int: ...
    @property
    def position(self) -> int: ...

class DictionarySite:
    """
    Where an activation stands that a dictionary reads or writes.

    Args:
        hook_name: such as "blocks.3.hook_resid_post"; empty if not known.
        width: how many numbers a position has there; heads stand one after another.
        model: which one, of crosscoders between models.
    """

    __hash__: typing.ClassVar[None] = None
    def __copy__(self) -> DictionarySite: ...
    def __deepcopy__(self, memo: dict) -> DictionarySite: ...
    def __eq__(self, arg0: DictionarySite) -> bool: ...
    def __getstate__(self) -> tuple[str, int, int]: ...
    def __init__(
        self,
        hook_name: str,
        width: typing.SupportsInt | typing.SupportsIndex,
        model: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...
    def __repr__(self) -> str: ...
    def __setstate__(
        self, arg0: tuple[str, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    @property
    def hook_name(self) -> str: ...
    @property
    def model(self) -> int: ...
    @property
    def width(self) -> int: ...

class DictionaryOrigin:
    """
    What a dictionary was trained on, as far as is known. It is compared with a model before anything runs in it.

    Args:
        inputs: sites side by side in what it reads; several of a crosscoder, none if not known.
        outputs: sites side by side in what it writes.
        model_name: of the model.
        model_hash: of the model's weights.
        release: of SAELens's list.
        sae_id: within the release.
        context_size: tokens of a training context.
        prepend_bos: whether contexts began with BOS.
        centers_writing_weights: whether the model's weights that write to the stream were less their mean.
        masks_bos: whether features are zero at BOS (circuit-tracer).
        notes: JSON, all that its file said.
    """

    __hash__: typing.ClassVar[None] = None
    def __copy__(self) -> DictionaryOrigin: ...
    def __deepcopy__(self, memo: dict) -> DictionaryOrigin: ...
    def __eq__(self, arg0: DictionaryOrigin) -> bool: ...
    def __getstate__(
        self,
    ) -> tuple[
        list[DictionarySite], list[DictionarySite], str, str, str, str, int | None, bool | None, bool, bool, str
    ]: ...
    def __init__(
        self,
        *,
        inputs: collections.abc.Sequence[DictionarySite] = [],
        outputs: collections.abc.Sequence[DictionarySite] = [],
        model_name: str = "",
        model_hash: str = "",
        release: str = "",
        sae_id: str = "",
        context_size: typing.SupportsInt | typing.SupportsIndex | None = None,
        prepend_bos: bool | None = None,
        centers_writing_weights: bool = False,
        masks_bos: bool = False,
        notes: str = "{}",
    ) -> None: ...
    def __setstate__(
        self,
        arg0: tuple[
            collections.abc.Sequence[DictionarySite],
            collections.abc.Sequence[DictionarySite],
            str,
            str,
            str,
            str,
            typing.SupportsInt | typing.SupportsIndex | None,
            bool | None,
            bool,
            bool,
            str,
        ],
    ) -> None: ...
    @property
    def centers_writing_weights(self) -> bool: ...
    @property
    def context_size(self) -> int | None: ...
    @property
    def inputs(self) -> list[DictionarySite]: ...
    @property
    def masks_bos(self) -> bool: ...
    @property
    def model_hash(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def notes(self) -> str: ...
    @property
    def outputs(self) -> list[DictionarySite]: ...
    @property
    def prepend_bos(self) -> bool | None: ...
    @property
    def release(self) -> str: ...
    @property
    def sae_id(self) -> str: ...

class SparseFeatures:
    """
    Features that are not 0, row by row: those of row n are entries ``offsets[n]`` to ``offsets[n + 1]``.

    Args:
        offsets: int64 [N + 1].
        indices: int64 [entries], features, ascending within a row.
        values: [entries].
        d_sae: how many features there are.
    """
    @staticmethod
    def of(f: torch.Tensor) -> SparseFeatures:
        """
        Those of f [N, d_sae] that are not 0. Raises ShapeError.
        """
    def __copy__(self) -> SparseFeatures: ...
    def __deepcopy__(self, memo: dict) -> SparseFeatures: ...
    def __getstate__(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]: ...
    def __init__(
        self,
        offsets: torch.Tensor,
        indices: torch.Tensor,
        values: torch.Tensor,
        d_sae: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def __len__(self) -> int: ...
    def __setstate__(
        self, arg0: tuple[torch.Tensor, torch.Tensor, torch.Tensor, typing.SupportsInt | typing.SupportsIndex]
    ) -> None: ...
    def dense(self) -> torch.Tensor:
        """
        [N, d_sae], with zeros.
        """
    @property
    def d_sae(self) -> int: ...
    @property
    def indices(self) -> torch.Tensor: ...
    @property
    def offsets(self) -> torch.Tensor: ...
    @property
    def values(self) -> torch.Tensor: ...

class Dictionary:
    """
    A sparse autoencoder, transcoder or crosscoder. introspect.SAE is this with SAELens's names.

    Args:
        architecture: "standard", "gated", "topk", "abstopk", "batchtopk", "jumprelu", "matching_pursuit" or "groupmax".
        weights: by name, feature by feature: W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec, threshold (jumprelu),
            b_gate, b_mag and r_mag (gated), W_skip [d_out, d_in]. One floating dtype and device.
        k: features of a row (topk, abstopk, groupmax), on average (batchtopk), or at most (matching_pursuit).
        relu: topk: False keeps those of the k largest that are below 0.
        subtract_b_dec: b_dec is taken off the input.
        rank_by_decoder_norm: pre-activations are times the norms of decoder rows, and decoding divides by them.
        input_norm: "none", "expected_average_only_in" (times input_scale), "constant_norm_rescale" or "layer_norm".
        input_scale: see input_norm.
        layer_norm_eps: added to the standard deviation.
        residual_threshold: matching_pursuit: a row whose rest is shorter is done.
        origin: what it was trained on.

    Raises:
        ShapeError: tensors that do not fit one another.
        ConfigError: an unknown name; tensors that are missing, or not of this architecture.
        ValueError: weights that are not finite, negative thresholds, k out of 1 to d_sae, a scale out of range.
    """
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """
        decode(encode(x)): [.., d_out]. Raises ShapeError.
        """
    def __copy__(self) -> Dictionary: ...
    def __deepcopy__(self, memo: dict) -> Dictionary: ...
    def __eq__(self, arg0: Dictionary) -> bool: ...
    def __getstate__(
        self,
    ) -> tuple[str, dict[str, torch.Tensor], float, bool, bool, bool, str, float, float, float, DictionaryOrigin]: ...
    def __hash__(self) -> int: ...
    @typing.overload
    def __init__(self, dictionary: Dictionary) -> None:
        """
        The same dictionary; tensors are shared.
        """
    @typing.overload
    def __init__(
        self,
        architecture: str,
        weights: collections.abc.Mapping[str, torch.Tensor],
        *,
        k: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        relu: bool = True,
        subtract_b_dec: bool = True,
        rank_by_decoder_norm: bool = False,
        input_norm: str = "none",
        input_scale: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        layer_norm_eps: typing.SupportsFloat | typing.SupportsIndex = 1e-05,
        residual_threshold: typing.SupportsFloat | typing.SupportsIndex = 0.01,
        origin: DictionaryOrigin = ...,
    ) -> None: ...
    def __setstate__(
        self,
        arg0: tuple[
            str,
            collections.abc.Mapping[str, torch.Tensor],
            typing.SupportsFloat | typing.SupportsIndex,
            bool,
            bool,
            bool,
            str,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            DictionaryOrigin,
        ],
    ) -> None: ...
    @typing.overload
    def decode(self, f: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """
        What features f [.., d_sae] stand for: [.., d_out].

        Args:
            f: any floating dtype.
            x: what f is of, for dictionaries with ``needs_input``: a skip, or a norm of each input.

        Raises:
            ShapeError: f is not [.., d_sae].
            ValueError: x is needed.
        """
    @typing.overload
    def decode(self, f: SparseFeatures, x: torch.Tensor | None = None) -> torch.Tensor:
        """
        The same of SparseFeatures: [N, d_out]. No gradients.
        """
    def encode(self, x: torch.Tensor, features: torch.Tensor | None = None) -> torch.Tensor:
        """
        Features of x [.., d_in]: [.., d_sae], or [.., n] of n of them. Rows of batchtopk are ranked together.

        Args:
            x: any floating dtype.
            features: int64 [n]; standard, gated and jumprelu dictionaries compute no others.

        Raises:
            ShapeError: x is not [.., d_in].
            IndexError: a feature that is not there.
        """
    def encode_sparse(self, x: torch.Tensor) -> SparseFeatures:
        """
        Features of rows x [N, d_in] that are not 0; no [N, d_sae] is made. No gradients. Raises ShapeError.
        """
    def fold_decoder_norm(self) -> Dictionary: ...
    def fold_input_scale(self) -> Dictionary: ...
    def fold_whitening(self, mean: torch.Tensor, matrix: torch.Tensor, inverse: torch.Tensor) -> Dictionary:
        """
        Of whitened rows one of the rows themselves: see SAE.fold_activation_whitening.
        """
    def pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        """
        What the features of x [.., d_in] are made of: [.., d_sae] (of gated ones without biases).

        Raises:
            ShapeError: x is not [.., d_in].
            ConfigError: matching pursuit has none.
        """
    @typing.overload
    def to(self, dtype: torch.dtype) -> Dictionary: ...
    @typing.overload
    def to(self, device: torch.device) -> Dictionary: ...
    def weight(self, name: str) -> torch.Tensor | None:
        """
        One of `weights`; None if there is none.
        """
    def with_origin(self, origin: DictionaryOrigin) -> Dictionary: ...
    @property
    def architecture(self) -> str: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def d_sae(self) -> int: ...
    @property
    def decoder_norms(self) -> torch.Tensor:
        """
        Length of each decoder row, [d_sae].
        """
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def hash(self) -> str:
        """
        Hex SHA-256 of what it computes: of its settings and weights.
        """
    @property
    def input_norm(self) -> str: ...
    @property
    def input_scale(self) -> float: ...
    @property
    def k(self) -> float: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def needs_input(self) -> bool:
        """
        Whether decode needs the x that features are of.
        """
    @property
    def origin(self) -> DictionaryOrigin:
        """
        What it was trained on.
        """
    @property
    def rank_by_decoder_norm(self) -> bool: ...
    @property
    def relu(self) -> bool: ...
    @property
    def residual_threshold(self) -> float: ...
    @property
    def subtract_b_dec(self) -> bool: ...
    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """
        {name: tensor}, feature by feature; not copies.
        """

class CrossLayerTranscoder:
    """
    Features of each layer that write what leaves the MLPs of that layer and of those above.

    Args:
        layers: one Dictionary a layer; layer l of L writes (L - l) outputs side by side. No b_dec, skip or input norm.
        b_dec: [L, d_out]; None is zero.
        W_skip: [L, d_out, d_in]; None is none.
        origin: L sites in and out, in order, or none.

    Raises:
        ShapeError, ConfigError: what does not fit.
        ValueError: numbers that are not finite.
    """
    def W_dec(self, layer: typing.SupportsInt | typing.SupportsIndex) -> torch.Tensor:
        """
        What the features of a layer write, [d_sae, L - layer, d_out]. Raises IndexError.
        """
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """
        decode(encode(x)): [L, .., d_out]. Raises ShapeError.
        """
    def __copy__(self) -> CrossLayerTranscoder: ...
    def __deepcopy__(self, memo: dict) -> CrossLayerTranscoder: ...
    def __eq__(self, arg0: CrossLayerTranscoder) -> bool: ...
    def __getstate__(self) -> tuple[list[Dictionary], torch.Tensor | None, torch.Tensor | None, DictionaryOrigin]: ...
    def __hash__(self) -> int: ...
    @typing.overload
    def __init__(self, transcoder: CrossLayerTranscoder) -> None:
        """
        The same; tensors are shared.
        """
    @typing.overload
    def __init__(
        self,
        layers: collections.abc.Sequence[Dictionary],
        b_dec: torch.Tensor | None = None,
        W_skip: torch.Tensor | None = None,
        *,
        origin: DictionaryOrigin = ...,
    ) -> None: ...
    def __setstate__(
        self,
        arg0: tuple[collections.abc.Sequence[Dictionary], torch.Tensor | None, torch.Tensor | None, DictionaryOrigin],
    ) -> None: ...
    @typing.overload
    def decode(self, f: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """
        y [L, .., d_out] of features [L, .., d_sae].

        Args:
            f: any floating dtype.
            x: [L, .., d_in], what f is of: needed with W_skip.

        Raises:
            ShapeError: of other shapes.
            ValueError: x is needed.
        """
    @typing.overload
    def decode(self, f: collections.abc.Sequence[SparseFeatures], x: torch.Tensor | None = None) -> torch.Tensor:
        """
        The same of one SparseFeatures a layer: [L, N, d_out].
        """
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """
        Features [L, .., d_sae] of x [L, .., d_in]. Raises ShapeError.
        """
    def encode_sparse(self, x: torch.Tensor) -> list[SparseFeatures]:
        """
        Those that are not 0, one SparseFeatures a layer, of x [L, N, d_in]. No gradients. Raises ShapeError.
        """
    def fold_decoder_norm(self) -> CrossLayerTranscoder: ...
    @typing.overload
    def to(self, dtype: torch.dtype) -> CrossLayerTranscoder: ...
    @typing.overload
    def to(self, device: torch.device) -> CrossLayerTranscoder: ...
    @property
    def W_skip(self) -> torch.Tensor | None:
        """
        [L, d_out, d_in] or None.
        """
    @property
    def b_dec(self) -> torch.Tensor | None:
        """
        [L, d_out]; None is zero.
        """
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def d_sae(self) -> int:
        """
        Features of a layer.
        """
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def hash(self) -> str:
        """
        Hex SHA-256 of what it computes.
        """
    @property
    def layers(self) -> list[Dictionary]:
        """
        One Dictionary a layer.
        """
    @property
    def n_layers(self) -> int: ...
    @property
    def origin(self) -> DictionaryOrigin: ...

class GraphNode:
    """
    A node of an attribution graph.

    ``kind``: feature, error, token, bias, injection or logit; ``layer``: -1 of tokens, n_layers of targets; ``position``: -1 of biases;
    ``feature``: its number in the transcoder, the token's id of tokens and logits, -1 else; ``value``: the activation of a feature,
    the probability (or weight) of a target; ``name``: the text of tokens and targets; ``site``: of features and errors, attention
    (what it adds), mlp or residual (the stream after the block); ``depth``: edges lead to higher ones.
    """

    __hash__: typing.ClassVar[None] = None
    def __eq__(self, arg0: GraphNode) -> bool: ...
    def __init__(
        self,
        kind: str,
        layer: typing.SupportsInt | typing.SupportsIndex,
        position: typing.SupportsInt | typing.SupportsIndex = -1,
        feature: typing.SupportsInt | typing.SupportsIndex = -1,
        value: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        name: str = "",
        site: str = "mlp",
    ) -> None: ...
    def __repr__(self) -> str: ...
    @property
    def depth(self) -> int: ...
    @property
    def feature(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def site(self) -> str: ...
    @property
    def value(self) -> float: ...

class AttributionGraph:
    """
    See introspect.circuits.AttributionGraph.
    """
    @staticmethod
    def from_json(text: str) -> AttributionGraph: ...
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> AttributionGraph: ...
    def __copy__(self) -> AttributionGraph: ...
    def __deepcopy__(self, memo: dict) -> AttributionGraph: ...
    def __init__(
        self,
        nodes: collections.abc.Sequence[GraphNode],
        targets: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        offsets: torch.Tensor,
        sources: torch.Tensor,
        weights: torch.Tensor,
        *,
        model_name: str = "",
        model_hash: str = "",
        prompt: str = "",
        tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
        token_texts: collections.abc.Sequence[str] = [],
        transcoders: str = "",
        notes: typing.Any = {},
    ) -> None:
        """
        A graph of nodes and edges: row i is of node targets[i], its entries offsets[i] to offsets[i + 1] of sources and weights.

        Raises:
            ValueError: edges that do not go to a later layer and no earlier position, or nodes that stand twice.
        """
    def adjacency(self) -> torch.Tensor: ...
    def find(
        self,
        kind: str,
        layer: typing.SupportsInt | typing.SupportsIndex,
        position: typing.SupportsInt | typing.SupportsIndex = -1,
        feature: typing.SupportsInt | typing.SupportsIndex = -1,
        site: str = "mlp",
    ) -> int: ...
    def in_sums(self) -> torch.Tensor: ...
    def influence(self, *, biases: bool = False) -> torch.Tensor: ...
    def paths(
        self,
        source: typing.SupportsInt | typing.SupportsIndex,
        target: typing.SupportsInt | typing.SupportsIndex,
        n: typing.SupportsInt | typing.SupportsIndex = 10,
    ) -> list[tuple[list[int], float]]: ...
    def pruned(
        self,
        *,
        node_threshold: typing.SupportsFloat | typing.SupportsIndex = 0.8,
        edge_threshold: typing.SupportsFloat | typing.SupportsIndex = 0.98,
        biases: bool = False,
    ) -> AttributionGraph: ...
    def save(self, path: os.PathLike | str | bytes) -> None: ...
    def scores(self, *, biases: bool = False) -> tuple[float, float]: ...
    def subgraph(
        self, keep: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> AttributionGraph: ...
    def to_json(self, slug: str, scan: str, *, biases: bool = False) -> str: ...
    @property
    def columns(self) -> dict: ...
    @property
    def model_hash(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def n_edges(self) -> int: ...
    @property
    def n_nodes(self) -> int: ...
    @property
    def nodes(self) -> list[GraphNode]: ...
    @property
    def notes(self) -> typing.Any: ...
    @property
    def offsets(self) -> torch.Tensor: ...
    @property
    def prompt(self) -> str: ...
    @property
    def sources(self) -> torch.Tensor: ...
    @property
    def targets(self) -> list[int]: ...
    @property
    def token_texts(self) -> list[str]: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def transcoders(self) -> str: ...
    @property
    def weights(self) -> torch.Tensor: ...

class GraphTarget:
    """
    What a graph explains: see introspect.circuits.GraphTarget.
    """
    def __init__(
        self,
        name: str,
        direction: torch.Tensor,
        *,
        layer: typing.SupportsInt | typing.SupportsIndex | None = None,
        position: typing.SupportsInt | typing.SupportsIndex = -1,
        weight: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    ) -> None:
        """
        Args:
            name: what pages and tables call it.
            direction: [d_model]; dotted with the stream after block ``layer``, or, without one, with the stream after the final norm
                (less its bias), as a row of the unembedding is.
            position: of the prompt; negative: from its end.
            weight: its share of influence, above 0.
        """
    @property
    def direction(self) -> torch.Tensor: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def name(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def weight(self) -> float: ...

class Injection:
    """
    A vector that is added to the stream after a block at some positions, as an experiment injects a concept.
    """
    def __init__(
        self,
        layer: typing.SupportsInt | typing.SupportsIndex,
        positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        vector: torch.Tensor,
    ) -> None:
        """
        Args:
            layer: of the block after which it is added.
            positions: of the prompt, from 0.
            vector: [d_model].
        """
    @property
    def layer(self) -> int: ...
    @property
    def positions(self) -> list[int]: ...
    @property
    def vector(self) -> torch.Tensor: ...

class AttributionPlan:
    """
    What a graph takes: ``active_features``, ``rows`` of features at most, ``rows_per_batch``, ``seconds`` for them and ``bytes``
    beside model and dictionaries.
    """
    @property
    def active_features(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def rows_per_batch(self) -> int: ...
    @property
    def seconds(self) -> float: ...

class QkPart:
    """
    A part of the stream that a head reads at one position: ``kind`` (feature, error, attention, token, bias), ``layer``,
    ``feature`` and ``value`` (its activation), ``site`` (of features and errors: attention, mlp, residual).
    """
    def __repr__(self) -> str: ...
    @property
    def feature(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def site(self) -> str: ...
    @property
    def value(self) -> float: ...

class QkAttribution:
    """
    See introspect.circuits.qk_attribution.
    """
    @property
    def head(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def key_parts(self) -> list[QkPart]: ...
    @property
    def layer(self) -> int: ...
    @property
    def pattern(self) -> float: ...
    @property
    def query(self) -> int: ...
    @property
    def query_parts(self) -> list[QkPart]: ...
    @property
    def score(self) -> float: ...
    @property
    def soft_cap(self) -> float: ...
    @property
    def terms(self) -> torch.Tensor: ...

class HeadLoadings:
    """
    See introspect.circuits.head_loadings.
    """
    @property
    def edge(self) -> float: ...
    @property
    def heads(self) -> torch.Tensor: ...
    @property
    def layers(self) -> list[int]: ...
    @property
    def past_attention(self) -> torch.Tensor: ...

class TrainerMetrics:
    """
    Numbers of one training step, of its batch before the update, in units of the normalised input where there is an input norm.

    Attributes:
        step: updates before this one.
        rows: of all steps, this one too.
        loss: mse + sparsity_loss + aux_loss.
        mse: squared error of a row summed over its entries, mean over rows; of Matryoshka the sum over its levels.
        sparsity_loss, aux_loss: with their coefficients.
        l0: features that are not 0, of a row.
        explained_variance: 1 - E|x - x_hat|^2 / E|x - E x|^2 over the batch.
        dead_share: of features, not active for more than dead_window steps.
        gradient_norm: before clipping.
        lr, coefficient: of this step: learning rate, and l1 or l0 coefficient.
        threshold: BatchTopK's; of JumpReLU the mean.
    """
    def __repr__(self) -> str: ...
    def to_dict(self) -> dict:
        """
        Name to number: a row of a table.
        """
    @property
    def aux_loss(self) -> float: ...
    @property
    def coefficient(self) -> float: ...
    @property
    def dead_share(self) -> float: ...
    @property
    def explained_variance(self) -> float: ...
    @property
    def gradient_norm(self) -> float: ...
    @property
    def l0(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def mse(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def sparsity_loss(self) -> float: ...
    @property
    def step(self) -> int: ...
    @property
    def threshold(self) -> float: ...

class Trainer:
    """
    One dictionary being trained: see introspect.sae.Trainer.
    """
    @staticmethod
    def load(folder: os.PathLike | str | bytes, device: torch.device = ...) -> Trainer:
        """
        Go on with what ``save`` wrote: the same numbers, bit for bit on as many threads.

        Raises:
            IoError: the file is missing or damaged.
        """
    @typing.overload
    def __init__(
        self,
        options: str,
        d_in: typing.SupportsInt | typing.SupportsIndex,
        d_out: typing.SupportsInt | typing.SupportsIndex | None = None,
        *,
        origin: DictionaryOrigin = ...,
        start: collections.abc.Mapping[str, torch.Tensor] | None = None,
        device: torch.device = ...,
    ) -> None:
        """
        Options as JSON: see introspect.sae.Trainer.
        """
    @typing.overload
    def __init__(self, other: Trainer) -> None:
        """
        What another one was, which is not to be used any more.
        """
    def dictionary(self) -> Dictionary:
        """
        The dictionary as it stands, in the form that infers: BatchTopK as JumpReLU, input scales folded.
        """
    def firing_rates(self) -> torch.Tensor:
        """
        Share of the rows of the last 2,000 to 4,000 steps in which each feature was active, [d_sae] float64.
        """
    def gradients(
        self, x: torch.Tensor, y: torch.Tensor | None = None
    ) -> tuple[TrainerMetrics, dict[str, torch.Tensor]]:
        """
        Metrics and gradients as the next step would take them, before clipping and projection; nothing is changed.

        Returns:
            TrainerMetrics, and gradients by the names of the weights, W_enc and W_dec feature by feature.
        """
    def measure(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """
        Gather lengths of rows for input_norm "expected_average_only_in", over as many batches as it is called with.

        All before the first step; without it the first step's own batch is measured. Does nothing for other norms.

        Args:
            x: [rows, d_in].
            y: [rows, d_out], of a transcoder.
        """
    def save(self, folder: os.PathLike | str | bytes) -> None:
        """
        Write trainer.safetensors into a folder, whole or not at all: weights, moments, counters, options.

        Raises:
            IoError: it cannot be written.
        """
    def step(self, x: torch.Tensor, y: torch.Tensor | None = None) -> TrainerMetrics:
        """
        One update.

        Args:
            x: [rows, d_in], any floating dtype.
            y: [rows, d_out], what a transcoder is to write; None otherwise.

        Raises:
            ShapeError: other shapes, y missing or too much.
            Error: a loss or gradient that is not finite, or every feature dead. The trainer is then as it was before.
        """
    def steps_since_fired(self) -> torch.Tensor:
        """
        int64 [d_sae]: 0 of the features that were active in the last step.
        """
    def weights(self) -> dict[str, torch.Tensor]:
        """
        Copies of the weights that are trained, by name: what ``start`` takes.
        """
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def options(self) -> typing.Any:
        """
        All options by name.
        """
    @property
    def origin(self) -> DictionaryOrigin: ...
    @property
    def steps(self) -> int:
        """
        Updates done.
        """

class CrossLayerTrainer:
    """
    A cross-layer transcoder being trained: see introspect.sae.CrossLayerTrainer.
    """
    @staticmethod
    def load(folder: os.PathLike | str | bytes, device: torch.device = ...) -> CrossLayerTrainer:
        """
        Go on with what ``save`` wrote: the same numbers, bit for bit on as many threads.

        Raises:
            IoError: the file is missing or damaged.
        """
    @typing.overload
    def __init__(
        self,
        options: str,
        n_layers: typing.SupportsInt | typing.SupportsIndex,
        d_in: typing.SupportsInt | typing.SupportsIndex,
        d_out: typing.SupportsInt | typing.SupportsIndex,
        *,
        origin: DictionaryOrigin = ...,
        start: tuple[
            collections.abc.Sequence[collections.abc.Mapping[str, torch.Tensor]],
            torch.Tensor | None,
            torch.Tensor | None,
        ]
        | None = None,
        device: torch.device = ...,
    ) -> None:
        """
        Options as JSON, start as ``weights`` gives it: see introspect.sae.CrossLayerTrainer.
        """
    @typing.overload
    def __init__(self, other: CrossLayerTrainer) -> None:
        """
        What another one was, which is not to be used any more.
        """
    def firing_rates(self) -> torch.Tensor:
        """
        Share of the rows of the last 2,000 to 4,000 steps in which each feature was active, [n_layers, d_sae] float64.
        """
    def gradients(
        self, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[TrainerMetrics, tuple[list[dict[str, torch.Tensor]], torch.Tensor | None, torch.Tensor | None]]:
        """
        Metrics and gradients as the next step would take them, before clipping; nothing is changed.

        Returns:
            TrainerMetrics, and gradients in the form of ``weights``.
        """
    def measure(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """
        Gather lengths of rows for input_norm "expected_average_only_in", over as many batches as it is called with.

        Args:
            x: [n_layers, rows, d_in].
            y: [n_layers, rows, d_out].
        """
    def save(self, folder: os.PathLike | str | bytes) -> None:
        """
        Write cross_layer_trainer.safetensors into a folder, whole or not at all: weights, moments, counters, options.

        Raises:
            IoError: it cannot be written.
        """
    def step(self, x: torch.Tensor, y: torch.Tensor) -> TrainerMetrics:
        """
        One update.

        Args:
            x: [n_layers, rows, d_in], what the MLPs read; any floating dtype.
            y: [n_layers, rows, d_out], what they write.

        Returns:
            TrainerMetrics: losses and l0 are sums over layers.

        Raises:
            ShapeError: other shapes.
            Error: a loss or gradient that is not finite, or every feature dead. The trainer is then as it was before.
        """
    def steps_since_fired(self) -> torch.Tensor:
        """
        int64 [n_layers, d_sae].
        """
    def transcoder(self) -> CrossLayerTranscoder:
        """
        The transcoder as it stands, in the form that infers.
        """
    def weights(self) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | None, torch.Tensor | None]:
        """
        Copies of what is trained: a {name: tensor} for each layer, b_dec [n_layers, d_out], and W_skip or None.
        """
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def options(self) -> typing.Any:
        """
        All options by name.
        """
    @property
    def origin(self) -> DictionaryOrigin: ...
    @property
    def steps(self) -> int:
        """
        Updates done.
        """

class TokenStream:
    """
    Contexts of documents, packed as SAELens packs them, one after another.

    introspect.sae.token_stream makes one of texts in any form. Memory is that of one document.
    """
    @staticmethod
    def of_files(
        model: typing.Any,
        paths: collections.abc.Sequence[os.PathLike | str | bytes],
        *,
        context: typing.SupportsInt | typing.SupportsIndex = 128,
        bos: typing.SupportsInt | typing.SupportsIndex | None = None,
        separator: typing.SupportsInt | typing.SupportsIndex | None = None,
        concatenate: bool = True,
        packed: bool = False,
        repeat: bool = False,
    ) -> TokenStream:
        """
        Of files, read document by document.

        .jsonl: an object a line, with "text", "problem", "tokens" or "input_ids". Any other file is text in UTF-8: one
        document, or several with lines ``<|endoftext|>`` between them. Raises IoError.
        """
    @staticmethod
    def of_function(
        open: typing.Any,
        identity: str,
        *,
        context: typing.SupportsInt | typing.SupportsIndex = 128,
        bos: typing.SupportsInt | typing.SupportsIndex | None = None,
        separator: typing.SupportsInt | typing.SupportsIndex | None = None,
        concatenate: bool = True,
        packed: bool = False,
        repeat: bool = False,
    ) -> TokenStream:
        """
        Of ``open(n)``, which returns an iterator over lists of ids from document n on.
        """
    @staticmethod
    def of_texts(
        model: typing.Any,
        texts: collections.abc.Sequence[str],
        *,
        context: typing.SupportsInt | typing.SupportsIndex = 128,
        bos: typing.SupportsInt | typing.SupportsIndex | None = None,
        separator: typing.SupportsInt | typing.SupportsIndex | None = None,
        concatenate: bool = True,
        packed: bool = False,
        repeat: bool = False,
    ) -> TokenStream:
        """
        Of texts, tokenised one by one as they are read.
        """
    @staticmethod
    def of_tokens(
        tokens: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
        *,
        context: typing.SupportsInt | typing.SupportsIndex = 128,
        bos: typing.SupportsInt | typing.SupportsIndex | None = None,
        separator: typing.SupportsInt | typing.SupportsIndex | None = None,
        concatenate: bool = True,
        packed: bool = False,
        repeat: bool = False,
    ) -> TokenStream:
        """
        Of lists of token ids.
        """
    def next(self, n: typing.SupportsInt | typing.SupportsIndex = 1) -> torch.Tensor:
        """
        The next contexts, int64 [<= n, context]; fewer at the end.
        """
    def restore(self, state: str) -> None:
        """
        Goes on there. Raises IoError for a state of other documents or options.
        """
    def set_aside(self, n: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        The first n contexts of every pass over the documents are left out from now on.
        """
    def state(self) -> str:
        """
        Where it stands, as JSON.
        """
    @property
    def bos(self) -> int | None: ...
    @property
    def context(self) -> int: ...
    @property
    def contexts(self) -> int:
        """
        Given since the beginning.
        """
    @property
    def passes(self) -> int:
        """
        Over all documents that are finished.
        """
    @property
    def repeat(self) -> bool: ...
    @property
    def separator(self) -> int | None: ...

class ActivationFile:
    """
    Rows of activations at several sites on disk, so that many dictionaries are trained from one pass over a text.

    A folder with rows.bin, mapped as it is used, and activations.json, which says what they are.
    """
    @staticmethod
    def open(path: os.PathLike | str | bytes, verify: bool = True) -> ActivationFile:
        """
        Opens what write_activations wrote; ``verify`` reads all of it and compares its hashes.

        Raises:
            IoError: no activations, fewer bytes than the head says, or bytes that are not those written.
        """
    def __repr__(self) -> str: ...
    def read(
        self,
        site: typing.SupportsInt | typing.SupportsIndex,
        first: typing.SupportsInt | typing.SupportsIndex,
        last: typing.SupportsInt | typing.SupportsIndex,
    ) -> torch.Tensor:
        """
        Rows first to last, [n, width].
        """
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def is_complete(self) -> bool:
        """
        False: writing was broken off; the rows that there are are good.
        """
    @property
    def notes(self) -> str:
        """
        JSON: what the writer said of them.
        """
    @property
    def path(self) -> pathlib.Path: ...
    @property
    def rows(self) -> int: ...
    @property
    def sites(self) -> list[tuple[str, int]]:
        """
        (hook name, number of the model) each.
        """
    @property
    def widths(self) -> list[int]: ...

class ActivationWriter:
    """
    Writes rows that other processes have read into a folder, as write_activations does.
    """
    def __init__(
        self,
        path: os.PathLike | str | bytes,
        sites: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
        widths: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        dtype: torch.dtype,
        source_state: str,
        *,
        rows: typing.SupportsInt | typing.SupportsIndex = 0,
        resume: bool = False,
        notes: str = "{}",
    ) -> None:
        """
        Raises IoError: activations are there already (others, with ``resume``), or the disk is full.
        """
    def commit(self) -> None:
        """
        What was written is safe from now on.
        """
    def finish(self) -> ActivationFile:
        """
        The file, marked as complete.
        """
    def write(self, rows: collections.abc.Sequence[torch.Tensor], source_state: str) -> None:
        """
        Adds [N, width] at each site, and where the source stands after them.

        Raises:
            ShapeError: other widths, or another dtype.
            IoError: the disk is full.
        """
    @property
    def is_full(self) -> bool:
        """
        ``rows`` are written, or the run had ended.
        """
    @property
    def rows(self) -> int:
        """
        Written, by the run that was broken off too.
        """
    @property
    def source_state(self) -> str:
        """
        After the last rows.
        """

class ActivationStream:
    """
    Batches of activations at several sites of the same tokens, mixed over a buffer by SAELens's rule.

    Rows come in until the buffer holds ``buffer_rows``; it is shuffled; all but ``mixing`` times that are served in whole
    batches. With ``mixing`` 0 rows come in order.
    """
    @staticmethod
    def of_file(
        file: ActivationFile,
        *,
        repeat: bool = False,
        batch_rows: typing.SupportsInt | typing.SupportsIndex = 4096,
        buffer_rows: typing.SupportsInt | typing.SupportsIndex = 65536,
        mixing: typing.SupportsFloat | typing.SupportsIndex = 0.5,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> ActivationStream:
        """
        The rows of a file, mixed; with ``repeat`` the first row follows the last.
        """
    @staticmethod
    def of_model(
        models: collections.abc.Sequence[typing.Any],
        tokens: TokenStream,
        sites: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
        *,
        first_position: typing.SupportsInt | typing.SupportsIndex | None = None,
        end_position: typing.SupportsInt | typing.SupportsIndex | None = None,
        position_step: typing.SupportsInt | typing.SupportsIndex = 1,
        exclude_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = (),
        max_norm_multiple: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        dtype: torch.dtype = ...,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
        contexts_per_pass: typing.SupportsInt | typing.SupportsIndex = 0,
        batch_rows: typing.SupportsInt | typing.SupportsIndex = 4096,
        buffer_rows: typing.SupportsInt | typing.SupportsIndex = 65536,
        mixing: typing.SupportsFloat | typing.SupportsIndex = 0.5,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> ActivationStream:
        """
        Activations of models that read tokens, through the block of the highest site and no further.

        Args:
            models: introspect.Model; several that share a vocabulary read the same tokens.
            tokens: a TokenStream, which is read from where it stands; this one itself is not moved.
            sites: (hook name, number of the model) each; heads of a point stand one after another.
            first_position, end_position, position_step: of each context, as a slice; SAELens's ``seqpos_slice``.
            exclude_tokens: ids whose rows are dropped.
            max_norm_multiple: rows longer than so many times their pass's median at any site are dropped; 0: none.
            dtype: of rows: bfloat16, float32 or float64.
            memory_budget: bytes of one pass's activations.
            contexts_per_pass: 0: as many as make a pass of 2,048 tokens and fit the budget.

            batch_rows, buffer_rows, mixing, seed: of the buffer.

        Raises:
            ValueError: a point without a vector a position, or options out of range.
            HookError: a site that the model does not have.
            ShapeError: contexts longer than n_ctx.
        """
    def check_state(self, path: os.PathLike | str | bytes) -> None:
        """
        Raises IoError for a state of another stream; nothing else is done.
        """
    def hold_out(self, n: typing.SupportsInt | typing.SupportsIndex) -> list[torch.Tensor]:
        """
        The first rows, about n, [N, width] at each site, which no batch has. Before the first batch.
        """
    def next_batch(self) -> list[torch.Tensor]:
        """
        [batch_rows, width] at each site; an empty list at the end.
        """
    def restore(self, path: os.PathLike | str | bytes) -> None:
        """
        Goes on there with the same batches. Raises IoError, for a state of another stream too.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        Writes where it stands, its buffer included, as one .safetensors file. Raises IoError.
        """
    @property
    def batches(self) -> int:
        """
        Given so far.
        """
    @property
    def sites(self) -> list[tuple[str, int]]:
        """
        (hook name, number of the model) each.
        """
    @property
    def widths(self) -> list[int]: ...

class TrainingRecord:
    """
    What is known of all dictionaries after a step.
    """
    @property
    def held_out(self) -> list[dict[str, float]]:
        """
        {name: figure} on the held-out rows, a dictionary each; empty between evaluations.
        """
    @property
    def rows(self) -> int: ...
    @property
    def step(self) -> int:
        """
        Steps done.
        """
    @property
    def trained(self) -> list[TrainerMetrics]:
        """
        Of the step's own batch, a dictionary each.
        """

class ReconstructionFigures:
    """
    How well a dictionary gives back what it should, and with how many features.

    y is what it should give (what stands at a transcoder's output), y' what it gives, r = y - y', E the mean over rows.
    """
    def __repr__(self) -> str: ...
    @property
    def cosine(self) -> float:
        """
        E cos(y, y').
        """
    @property
    def dead_share(self) -> float:
        """
        Share of the features that were 0 in all rows.
        """
    @property
    def density(self) -> torch.Tensor:
        """
        float64 [d_sae]: share of the rows in which a feature is not 0.
        """
    @property
    def explained_variance(self) -> float:
        """
        1 - E|r|^2 / (E|y|^2 - |E y|^2); NaN where y does not vary.
        """
    @property
    def explained_variance_legacy(self) -> float:
        """
        E(1 - |r|^2 / |y - mean of its batch|^2): SAELens's until May 2025 and SAEBench's.
        """
    @property
    def fraction_of_variance_explained(self) -> float:
        """
        1 - Var r / Var y: dictionary_learning's, blind to a constant error.
        """
    @property
    def l0(self) -> float:
        """
        Features that are not 0, a row.
        """
    @property
    def l1(self) -> float:
        """
        Sum of |f|, a row.
        """
    @property
    def l2_norm_in(self) -> float:
        """
        E|y|.
        """
    @property
    def l2_norm_out(self) -> float:
        """
        E|y'|.
        """
    @property
    def l2_ratio(self) -> float:
        """
        E(|y'| / |y|): below 1 is shrinkage.
        """
    @property
    def max_active(self) -> torch.Tensor:
        """
        float64 [d_sae]: largest |f|.
        """
    @property
    def mean_active(self) -> torch.Tensor:
        """
        float64 [d_sae]: mean where it is not 0; 0 for dead ones.
        """
    @property
    def mse(self) -> float:
        """
        E|r|^2, summed over dimensions.
        """
    @property
    def relative_reconstruction_bias(self) -> float:
        """
        E|y'|^2 / E(y.y').
        """
    @property
    def rows(self) -> int: ...

class SpliceFigures:
    """
    The model's loss and its distance from itself with a dictionary in it: nats a token.
    """
    def __repr__(self) -> str: ...
    @property
    def ce(self) -> float:
        """
        Of the model as it is.
        """
    @property
    def ce_score(self) -> float:
        """
        (ce_zero - ce_spliced) / (ce_zero - ce).
        """
    @property
    def ce_spliced(self) -> float:
        """
        With what the dictionary gives.
        """
    @property
    def ce_zero(self) -> float:
        """
        With zeros there.
        """
    @property
    def kl_score(self) -> float:
        """
        (kl_zero - kl_spliced) / kl_zero.
        """
    @property
    def kl_spliced(self) -> float:
        """
        KL(model || with the dictionary).
        """
    @property
    def kl_zero(self) -> float:
        """
        KL(model || with zeros).
        """
    @property
    def tokens(self) -> int: ...

class DictionaryEvaluation:
    """
    What evaluate_dictionary returns.
    """
    @property
    def reconstruction(self) -> ReconstructionFigures: ...
    @property
    def splice(self) -> SpliceFigures | None:
        """
        None unless asked for.
        """

class ReconstructionStatistics:
    """
    The sums that ReconstructionFigures are made of, in float64, over rows that come in any number of batches.
    """
    def __init__(
        self, d_sae: typing.SupportsInt | typing.SupportsIndex, d_out: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def add(self, dictionary: Dictionary, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """
        Rows x [N, d_in] through the dictionary, compared with y [N, d_out]; None: with x.

        Raises:
            ShapeError: rows of other widths.
            ValueError: rows that are not finite.
        """
    def figures(self) -> ReconstructionFigures:
        """
        Raises ValueError if no rows were added.
        """

class FeatureActivations:
    """
    What single features did at every token of some contexts, feature by feature: what feature pages are made of.

    Only what is not 0 is held. It needs neither the model nor the dictionary again.
    """
    @staticmethod
    def load(path: os.PathLike | str | bytes) -> FeatureActivations:
        """
        Raises IoError.
        """
    def __copy__(self) -> FeatureActivations: ...
    def __deepcopy__(self, memo: dict) -> FeatureActivations: ...
    def __repr__(self) -> str: ...
    def index(self, feature: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        A feature's place in ids. Raises IndexError if it was not looked at.
        """
    def save(self, path: os.PathLike | str | bytes) -> None:
        """
        One .safetensors file. Raises IoError.
        """
    @property
    def d_sae(self) -> int: ...
    @property
    def dictionary_hash(self) -> str: ...
    @property
    def ids(self) -> torch.Tensor:
        """
        int64 [n]: the features that were looked at, ascending.
        """
    @property
    def lengths(self) -> torch.Tensor:
        """
        int64 [contexts].
        """
    @property
    def model_hash(self) -> str: ...
    @property
    def model_name(self) -> str: ...
    @property
    def offsets(self) -> torch.Tensor:
        """
        int64 [n + 1]: feature ids[i] has entries offsets[i] to offsets[i + 1].
        """
    @property
    def places(self) -> torch.Tensor:
        """
        int64 [entries]: context * tokens + position.
        """
    @property
    def read_tokens(self) -> int:
        """
        Neither padding nor special.
        """
    @property
    def special_tokens(self) -> list[int]: ...
    @property
    def tokens(self) -> torch.Tensor:
        """
        int64 [contexts, tokens].
        """
    @property
    def values(self) -> torch.Tensor:
        """
        float32 or float64 [entries], not 0.
        """

class FeatureTable:
    """
    One number a feature, in the order of FeatureActivations.ids.
    """
    @property
    def contexts(self) -> torch.Tensor:
        """
        int64: contexts with such a token.
        """
    @property
    def count(self) -> torch.Tensor:
        """
        int64: tokens at which it is not 0.
        """
    @property
    def density(self) -> torch.Tensor:
        """
        float64: share of the tokens read.
        """
    @property
    def max_active(self) -> torch.Tensor:
        """
        float64: the largest.
        """
    @property
    def mean_active(self) -> torch.Tensor:
        """
        float64: mean where it is not 0.
        """

class ContextGroup:
    """
    Contexts in which a feature is active, each shown at one token.
    """
    @property
    def high(self) -> float: ...
    @property
    def low(self) -> float:
        """
        Of the values there; -1 of the top group.
        """
    @property
    def positions(self) -> torch.Tensor:
        """
        int64 [n]: the token.
        """
    @property
    def rows(self) -> torch.Tensor:
        """
        int64 [n]: which context.
        """
    @property
    def share(self) -> float:
        """
        Of the tokens read with a value from low to high; -1 of the top group.
        """
    @property
    def values(self) -> torch.Tensor:
        """
        [n, tokens]: of the whole context.
        """

class Neighbours:
    """
    Features that are like one, the most alike first.
    """
    @property
    def cosine(self) -> torch.Tensor:
        """
        float64 [k].
        """
    @property
    def ids(self) -> torch.Tensor:
        """
        int64 [k].
        """
    @property
    def shared(self) -> typing.Any:
        """
        int64 [k]: tokens at which both are not 0; None of decoder rows.
        """
    @property
    def similarity(self) -> torch.Tensor:
        """
        float64 [k].
        """

class LoraExample:
    """
    Token ids that introspect.train_lora learns from: see introspect.FinetuneExample.
    """
    def __init__(
        self,
        prompt: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        target: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        *,
        added: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, torch.Tensor] = {},
        first: typing.SupportsInt | typing.SupportsIndex = 0,
        last: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> None: ...

class LoraStep:
    """
    One step of a LoraTrainer, before its update.

    Attributes:
        step: updates before this one.
        loss: mean cross-entropy of the batch's target tokens, in nats.
        gradient_norm: of all matrices together, before clipping.
        lr: of this step.
    """
    @property
    def gradient_norm(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def lr(self) -> float: ...
    @property
    def step(self) -> int: ...

class LoraCost:
    """
    What a pass over all examples of a LoraTrainer costs.

    Attributes:
        tokens: of all examples, each by itself.
        nodes: that run instead: equal beginnings with equal injections are one path.
        first_layer: the lowest block that is trained; those below have no gradient.
        n_params: trained.
        keeps_residuals: the blocks below run once for all steps.
    """
    @property
    def first_layer(self) -> int: ...
    @property
    def keeps_residuals(self) -> bool: ...
    @property
    def n_params(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def tokens(self) -> int: ...

class LoraTrainer:
    """
    What introspect.train_lora drives: a LoRA adapter being trained.
    """
    def __init__(
        self,
        model: Model,
        start: Adapter,
        examples: collections.abc.Sequence[LoraExample],
        *,
        steps: typing.SupportsInt | typing.SupportsIndex,
        batch_size: typing.SupportsInt | typing.SupportsIndex = 8,
        lr: typing.SupportsFloat | typing.SupportsIndex = 0.001,
        lr_end: typing.SupportsFloat | typing.SupportsIndex = 0.0,
        clip: typing.SupportsFloat | typing.SupportsIndex = 1.0,
        seed: typing.SupportsInt | typing.SupportsIndex = 0,
        memory_budget: typing.SupportsInt | typing.SupportsIndex = 2147483648,
    ) -> None:
        """
        Arguments and errors are those of introspect.train_lora; start: introspect.Adapter.create(...).
        """
    def adapter(self) -> Adapter:
        """
        The adapter as it stands: a copy.
        """
    def gradients(
        self, examples: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]
    ) -> tuple[float, dict[str, torch.Tensor]]:
        """
        Loss and gradients of a batch of these examples, before clipping; nothing is changed.

        Args:
            examples: their numbers.

        Returns:
            The loss, and gradients by name: "model.layers.3.self_attn.q_proj.lora_A" is [r, in].
        """
    def resume(self, file: os.PathLike | str | bytes) -> None:
        """
        Goes on from a file of ``save`` with the same numbers as without the interruption.

        Raises:
            IoError: a file that is missing or damaged.
            ConfigError: one of another training: model, its precision or kind of device, start, examples or options.
        """
    def save(self, file: os.PathLike | str | bytes) -> None:
        """
        Writes matrices, moments and the number of steps.

        Raises:
            IoError: the file cannot be written.
        """
    def step(self, progress: typing.Any = None) -> LoraStep:
        """
        One update.

        Raises:
            Error: a loss or gradient that is not finite: the adapter is then as it was before.
        """
    @property
    def cost(self) -> LoraCost: ...
    @property
    def steps(self) -> int:
        """
        Updates done.
        """

def ablation_everywhere(model: typing.Any, direction: torch.Tensor) -> list[Intervention]:
    """
    The direction [d_model] taken off all that is written to the residual stream, as three interventions.

    Raises:
        ShapeError, ValueError: a direction that is none.
    """

def accumulated_bias(
    model: Model,
    layer: typing.SupportsInt | typing.SupportsIndex,
    mlp_input: bool = False,
    include_mlp_biases: bool = True,
) -> torch.Tensor:
    """
    The sum [d_model] of b_O and b_out of the blocks before ``layer``, and with mlp_input of its own b_O.

    Raises:
        ConfigError: biases pass a norm (Gemma 2 and 3 with biases) and differ from position to position.
    """

def accumulated_resid(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    incl_mid: bool = False,
    mlp_input: bool = False,
    apply_ln: bool = False,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """
    The residual stream before each block up to ``layer``, and labels: see ActivationCache.accumulated_resid.

    Args:
        activations: full hook name -> tensor.
        positions: int64 [n]; None is all.

    Returns:
        [streams, ..., d_model] and a label for each.

    Raises:
        HookError: an activation that is needed is not there.
        IndexError: a layer or position the model does not have.
    """

def acdc(
    model: Model,
    clean: collections.abc.Sequence[torch.Tensor],
    corrupted: collections.abc.Sequence[torch.Tensor],
    metrics: collections.abc.Sequence[Metric],
    threshold: typing.SupportsFloat | typing.SupportsIndex,
    *,
    of_logits: collections.abc.Callable[[torch.Tensor], torch.Tensor] = None,
    start: Circuit | None = None,
    ungrouped: bool = False,
    ablation: str = "patching",
    mean_over: collections.abc.Sequence[torch.Tensor] = [],
    progress: typing.Any = None,
) -> tuple[Circuit, int, float]:
    """
    Automatic circuit discovery: the circuit, how many were run, and its metric. See introspect.circuits.acdc.
    """

def activation_source(
    models: collections.abc.Sequence[typing.Any],
    tokens: TokenStream,
    sites: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
    *,
    first_position: typing.SupportsInt | typing.SupportsIndex | None = None,
    end_position: typing.SupportsInt | typing.SupportsIndex | None = None,
    position_step: typing.SupportsInt | typing.SupportsIndex = 1,
    exclude_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = (),
    max_norm_multiple: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    dtype: torch.dtype = ...,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    contexts_per_pass: typing.SupportsInt | typing.SupportsIndex = 0,
) -> tuple[str, list[int]]:
    """
    Where write_activations begins, as JSON ("tokens", of the stream, and "contexts_per_pass"), and the widths of sites.

    Args:
        models: introspect.Model; several that share a vocabulary read the same tokens.
        tokens: a TokenStream, which is read from where it stands; this one itself is not moved.
        sites: (hook name, number of the model) each; heads of a point stand one after another.
        first_position, end_position, position_step: of each context, as a slice; SAELens's ``seqpos_slice``.
        exclude_tokens: ids whose rows are dropped.
        max_norm_multiple: rows longer than so many times their pass's median at any site are dropped; 0: none.
        dtype: of rows: bfloat16, float32 or float64.
        memory_budget: bytes of one pass's activations.
        contexts_per_pass: 0: as many as make a pass of 2,048 tokens and fit the budget.

    Raises:
        As ActivationStream.of_model.
    """

def activations_at(
    model: Model,
    tokens: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    point: str,
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    interventions: collections.abc.Sequence[collections.abc.Sequence[Intervention]] = [],
) -> list[torch.Tensor]:
    """
    Activations of runs at one point, [layers, T, ...] each (patterns [layers, T, heads, T]), in float32 at least.

    What the runs begin with is run once, so that equal activations of two runs are equal bit for bit.
    """

def adjusted_p(p_values: collections.abc.Sequence[float], method: str = "holm") -> list[float]:
    """
    p-values adjusted for their number: what is at most alpha may be called found at alpha.

    Args:
        p_values: [n].
        method: "bonferroni" or "holm" (1979) bound the chance of any error, "benjamini_hochberg" (1995) the share of errors
            among findings under independence or positive dependence, "benjamini_yekutieli" (2001) under any dependence.

    Raises:
        ValueError: no values, values not from 0 to 1, or another method.
    """

def answer_shares(
    model: Model,
    prompts: collections.abc.Sequence[
        tuple[
            collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], collections.abc.Sequence[Intervention]
        ]
    ],
    answers: collections.abc.Sequence[tuple[str, collections.abc.Sequence[str]]],
    *,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    The exact probability of every label after each prompt, see introspect.studies.answer_shares.

    Args:
        prompts: (token ids, interventions while they run) each.
        answers: (label, texts) each.

    Returns:
        [n_prompts, n_labels], float64.
    """

def anthropic_jumprelu(
    d_in: typing.SupportsInt | typing.SupportsIndex,
    d_sae: typing.SupportsInt | typing.SupportsIndex,
    total_steps: typing.SupportsInt | typing.SupportsIndex,
) -> typing.Any:
    """
    Options of Anthropic's JumpReLU of January 2025: see introspect.sae.anthropic_jumprelu.
    """

def apply_norm(
    model: Model,
    stack: torch.Tensor,
    scale: torch.Tensor | None,
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    mlp_input: bool = False,
) -> torch.Tensor:
    """
    A stack [n, ..., d_model] as the norm before a block, its MLP or (layer n_layers) the unembedding passes it on.

    Args:
        scale: the cached hook_scale [..., 1], held fixed: weight * x / scale, without the mean for LayerNorm, and without
            the bias. None: the whole norm of each component, bias included.
    """

def as_interventions(
    vectors: collections.abc.Sequence[ControlVector | None],
    how: Intervention,
    *,
    model: typing.Any,
    layers: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None = None,
    second: ControlVector | None = None,
) -> list[Intervention]:
    """
    Control vectors as interventions: ``Model.steer`` adds them.

    Args:
        vectors: one for all rows of ``how``, or one for each (without rows: for 0, 1, ...); None leaves its row as it is.
        how: an Intervention without values: operator, strength, parameters, positions, text and rows.
        model: the introspect.Model they are for.
        layers: first and last block, both included; None is every layer a vector has.
        second: the second direction of operators on a plane.

    Raises:
        ValueError: no vectors, or another number of rows.
        IndexError: a layer the model does not have.
        ShapeError: vectors of different widths.
        ConfigError: a vector has no direction in the range, or ``second`` none for a layer.
    """

def attribute(
    model: Model,
    tokens: torch.Tensor,
    *,
    transcoders: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, Dictionary],
    cross_layer: CrossLayerTranscoder | None = None,
    saes: collections.abc.Sequence[Dictionary] = [],
    input: str | None = None,
    name: str = "",
    logit_mass: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    max_logits: typing.SupportsInt | typing.SupportsIndex = 10,
    targets: collections.abc.Sequence[GraphTarget] = [],
    injections: collections.abc.Sequence[Injection] = [],
    max_features: typing.SupportsInt | typing.SupportsIndex = 7500,
    edges_per_row: typing.SupportsInt | typing.SupportsIndex = 4096,
    fold: bool = True,
    mask_first: bool = True,
    rows_per_batch: typing.SupportsInt | typing.SupportsIndex = 128,
    batches_per_update: typing.SupportsInt | typing.SupportsIndex = 8,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 2147483648,
    rows_folder: str = "",
    time_budget: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    progress: typing.Any = None,
) -> AttributionGraph:
    """
    The attribution graph of one prompt: see introspect.circuits.attribute.
    """

def attribution_patching(
    model: Model,
    pairs: collections.abc.Sequence[PatchPair],
    *,
    points: collections.abc.Sequence[str],
    correct_qk: bool = False,
    grad_drop: bool = False,
    sum_positions: bool = False,
    reference_is_to: bool = False,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> AttributionPatching:
    """
    See analysis.attribution_patch.
    """

def attribution_points(model: Model, unit: str = "component") -> list[str]:
    """
    The hook names that direct_logit_attribution needs, at the positions that are asked about.
    """

def auc(
    positives: collections.abc.Sequence[float],
    negatives: collections.abc.Sequence[float],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> Estimate:
    """
    The chance that a positive scores above a negative, ties half.

    The standard error is DeLong's (1988), the interval normal and cut at 0 and 1; for classes that do not overlap the error
    is 0.

    Raises:
        ValueError: fewer than two of either, or scores that are not finite.
    """

def behaviour_score(
    model: typing.Any,
    texts: collections.abc.Sequence[str],
    *,
    tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> float:
    """
    Mean of log p - log(1 - p) over texts, p the probability that one of the tokens comes next.
    """

def bfloat16_products() -> str:
    """
    The way in use: the quickest, or the one that the environment variable INTROSPECT_BFLOAT16_PRODUCTS names.

    Raises:
        ConfigError: that variable names a way that this processor does not have.
    """

def bfloat16_products_here() -> list[str]:
    """
    The ways in which this processor multiplies bfloat16 matrices, the quickest first.

    "tiles": AMX. "pairs": AVX512-BF16. "widened": float32 arithmetic. The first two take numbers below 2^-126 for zero, as
    these instructions do. Their bits differ from one another: sums are made in another order.
    """

def binomial_p(
    successes: typing.SupportsInt | typing.SupportsIndex,
    trials: typing.SupportsInt | typing.SupportsIndex,
    chance: typing.SupportsFloat | typing.SupportsIndex,
) -> float:
    """
    The chance of at least ``successes`` of ``trials``, each with probability ``chance`` (exact, one-sided).

    Raises:
        ValueError: counts as in ``proportion``, or a chance not from 0 to 1.
    """

def blocks_of_fractions(
    first: typing.SupportsFloat | typing.SupportsIndex,
    last: typing.SupportsFloat | typing.SupportsIndex,
    n_layers: typing.SupportsInt | typing.SupportsIndex,
) -> tuple[int, int]:
    """
    The first and the last block that fractions of the depth stand for: f is block round(f n_layers), at most the last one.

    Raises:
        IndexError: fractions out of order or not from 0 to 1.
    """

def bootstrap_difference(
    values: collections.abc.Sequence[float],
    arms: collections.abc.Sequence[int],
    factors: collections.abc.Sequence[Factor] = [],
    *,
    resamples: typing.SupportsInt | typing.SupportsIndex = 10000,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    method: str = "bca",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Estimate:
    """
    The mean of arm 1 less the mean of arm 0, with its bootstrap interval.

    A factor each of whose levels lies in one arm (questions of either kind) is drawn within each arm; one with levels in
    both (concepts) is drawn for both at once, so that what the arms share cancels. Otherwise as ``bootstrap_mean``.

    Args:
        values: [n] numbers.
        arms: [n], 0 or 1.
        factors: what observations share.
        resamples: bootstrap replicates.
        confidence: of the interval.
        method: "bca" or "percentile".
        seed: of the draws.

    Raises:
        ValueError: as ``bootstrap_mean``, and unless every arm is 0 or 1 and both are there.
    """

def bootstrap_interval(
    replicates: collections.abc.Sequence[float],
    estimate: typing.SupportsFloat | typing.SupportsIndex,
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    acceleration: typing.SupportsFloat | typing.SupportsIndex | None = None,
) -> Interval:
    """
    The interval that bootstrap replicates of a statistic give.

    Args:
        replicates: [n] values of the statistic on resamples.
        estimate: its value on the sample.
        confidence: of the interval.
        acceleration: Efron's (1987), for BCa; None means percentiles.

    Raises:
        ValueError: no replicates, or a confidence not between 0 and 1.
    """

def bootstrap_mean(
    values: collections.abc.Sequence[float],
    factors: collections.abc.Sequence[Factor] = [],
    *,
    resamples: typing.SupportsInt | typing.SupportsIndex = 10000,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    method: str = "bca",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Estimate:
    """
    The mean with its bootstrap interval over crossed and nested factors.

    Each factor's levels are drawn with replacement, those of a nested one within each level of the factor around it, and an
    observation's weight is the product of how often its levels were drawn (Owen 2007, "The pigeonhole bootstrap"; Owen &
    Eckles 2012). BCa: Efron 1987, several samples as Davison & Hinkley 1997, 5.3. The same seed gives the same bits.

    Args:
        values: [n] numbers.
        factors: what observations share; none: every observation is drawn by itself.
        resamples: bootstrap replicates.
        confidence: of the interval.
        method: "bca" or "percentile".
        seed: of the draws.

    Raises:
        ValueError: fewer than two observations, numbers that are not finite, factors of another length, no factor with two
            levels to draw from, or options out of range.
    """

def calibration_error(
    probabilities: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    bins: typing.SupportsInt | typing.SupportsIndex = 10,
) -> float:
    """
    Expected calibration error: the mean distance of stated probability and observed share over bins of equal width.

    Raises:
        ValueError: lists of other lengths, or numbers out of range.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """

def check_dictionary(
    dictionary: Dictionary, model: typing.Any, *, hook_name: str = "", hook_name_out: str = "", any_model: bool = False
) -> tuple:
    """
    Where a dictionary stands in a model, and whether it belongs there: (hook it reads, hook it writes, warnings).

    Args:
        hook_name: where it is to read, if not where it was trained.
        any_model: another model hash is a warning, not an error.

    Raises:
        ConfigError: a model of another hash, or sites that are not known.
        HookError: a point or layer that the model does not have.
        ShapeError: another width.
    """

def check_folds(
    folds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> None:
    """
    Raises ValueError unless every class has texts outside of each fold.
    """

def check_probe(who: str, probe: Probe, model: typing.Any) -> None:
    """
    Raises ConfigError for a probe of another model.
    """

def clustered_mean(
    values: collections.abc.Sequence[float],
    clusters: collections.abc.Sequence[str],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    null: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    flips: typing.SupportsInt | typing.SupportsIndex = 16384,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> ClusteredMean:
    """
    The mean over clusters (concepts, say) with its interval and one-sided p-values; each cluster counts alike.

    Student's t on the clusters' means (Ibragimov & Müller 2010) needs no agreement of their variances or sizes; flips of the
    signs of their distances from ``null`` (Canay, Romano & Shaikh 2017) are exact where these are symmetric. c clusters
    cannot give a p of flips below 2^-c.

    Args:
        values: [n] numbers.
        clusters: [n], the cluster of each.
        confidence: of the interval.
        null: the mean that the p-values are against.
        flips: of signs; all of them where there are no more.
        seed: of the flips where there are more.

    Raises:
        ValueError: lists of different lengths, numbers that are not finite, fewer than two clusters, clusters whose means are
            all equal, or options out of range.
    """

def coactive_features(
    activations: FeatureActivations,
    feature: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex = 10,
) -> Neighbours:
    """
    The features whose values correlate most (Pearson, over the tokens read) with one's. Raises IndexError.
    """

def coherent_windows(
    model: Model,
    context: Protocol | collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    **kwargs,
) -> list[CoherentWindow]:
    """
    The coherent window of every vector and range.
    """

def collect_activations(
    model: typing.Any,
    texts: collections.abc.Sequence[str],
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
    read_position: typing.SupportsInt
    | typing.SupportsIndex
    | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None] = -1,
    point: str = "hook_resid_post",
    last_layer_after_norm: bool = False,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> Activations:
    """
    Reads a model at chosen tokens of texts; what texts begin with is run once, and equal texts are read once.

    Args:
        model: an introspect.Model with a tokenizer.
        texts: in the order of the result's rows.
        layers: block numbers; None is 1 to n_layers - 1.
        read_position: see ControlVector.train, and so for ``point``, ``last_layer_after_norm`` and ``memory_budget``.
        progress: called with (what, done, total).

    Returns:
        Activations.

    Raises:
        As ControlVector.train does before its first forward pass.
    """

def collect_positions(
    model: typing.Any,
    texts: collections.abc.Sequence[str],
    positions: collections.abc.Sequence[
        typing.SupportsInt
        | typing.SupportsIndex
        | tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex | None]
    ],
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
    point: str = "hook_resid_post",
    last_layer_after_norm: bool = False,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> list[Activations]:
    """
    collect_activations at several positions of each text in one pass: a list of Activations.
    """

def composition_scores(model: Model, mode: str) -> torch.Tensor:
    """
    Composition scores of all pairs of heads, [n_layers, n_heads, n_layers, n_heads], the earlier head first.

    Args:
        mode: what of the later head reads what the earlier one writes: "Q", "K" or "V".

    Returns:
        ||W_OV M|| / (||W_OV|| ||M||) in Frobenius norms, M being the later head's W_Q W_K^T, W_K W_Q^T or W_V W_O; zero
        unless the second layer is the higher one. Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
    """

def concept_pairs(model: typing.Any, concept: str, suffixes: collections.abc.Sequence[str]) -> list[tuple[str, str]]:
    """
    The text pairs of the introspection experiments: "Please talk about {concept}." against "Please talk about anything.",
    with an empty system message, each suffix being the start of the assistant's answer.

    Args:
        model: an introspect.Model with a tokenizer and a chat template.
        concept: a word.
        suffixes: see introspect.load_suffixes.

    Returns:
        (positive, negative) texts, one pair a suffix.

    Raises:
        ValueError: an empty concept or no suffixes.
        ConfigError: the model has no tokenizer or chat template.
    """

def confusion(
    counts: collections.abc.Sequence[collections.abc.Sequence[float]],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    permutations: typing.SupportsInt | typing.SupportsIndex = 10000,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Confusion:
    """
    Accuracy and mutual information of a confusion matrix: rows are what was injected, columns what was reported.

    Accuracy has its exact interval (Clopper & Pearson 1934) and binomial p against 1 / rows; information is Shannon's, with
    Miller's (1955) correction and a p from permutations that keep both margins (Phipson & Smyth 2010).

    Args:
        counts: [k, k or more] trials; row i means the same as column i, further columns are answers that name none.
        confidence: of the interval.
        permutations: of the reports over the trials.
        seed: of the permutations.

    Raises:
        ValueError: fewer than two rows, fewer columns than rows, counts that are not whole, or no trials.
    """

def context_groups(
    activations: FeatureActivations,
    feature: typing.SupportsInt | typing.SupportsIndex,
    *,
    top: typing.SupportsInt | typing.SupportsIndex = 20,
    quantiles: typing.SupportsInt | typing.SupportsIndex = 5,
    per_quantile: typing.SupportsInt | typing.SupportsIndex = 5,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> list[ContextGroup]:
    """
    SAEDashboard's groups: the contexts with the highest values, then intervals of equal width from 0 to the largest value,
    from the highest down, with contexts drawn from each. A dead feature has none.

    Raises:
        IndexError: a feature that was not looked at.
    """

def contrast(
    positive: Activations,
    negative: Activations,
    *,
    method: str = "pca_center",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    folds: typing.SupportsInt | typing.SupportsIndex = 2,
    progress: typing.Any = None,
) -> ControlVector:
    """
    The vector from one model to another: directions of the pairs that a text's activations in two models are.

    Args:
        positive: Activations of the model that the vector leads to.
        negative: of the model that it is for, from the same texts, layers, position and point.
        method: see direction_of_pairs.
        seed: of the random pairing of "lat".
        folds: see ControlVector.train.
        progress: called with (what, done, total).

    Raises:
        ShapeError: activations of different widths.
        ValueError: activations of other layers, texts, positions or points, or that are not finite or equal in both models,
            naming the layer.

    Source: the model-contrastive vectors of vgel.me, "Small Models Can Introspect, Too".
    """

def conversation_tokens(
    model: Model, protocol: Protocol, question: str | None = None, controls: str | None = None
) -> tuple[list[int], list[int], list[int]]:
    """
    Token ids before, in and after the injected messages: see introspect.conversation_tokens.
    """

def copy_scores(
    model: Model,
    texts: collections.abc.Sequence[torch.Tensor],
    *,
    top_k: typing.SupportsInt | typing.SupportsIndex = 5,
    max_tokens: typing.SupportsInt | typing.SupportsIndex = 100,
    progress: typing.Any = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What heads would do to the logit of a token that they attend to with all their weight.

    Each distinct token's residual after block 0 goes through the head's values and output, the final norm and the
    unembedding.

    Args:
        texts: int64 [batch, pos] each; position 0 is left out.
        max_tokens: how many distinct tokens are read, the first of the texts.

    Returns:
        Three float64 [n_layers, n_heads]: the share of tokens that are among the ``top_k`` of what the head writes (the
        copy score of name movers: Wang et al. 2022), among those of its negative (copy suppression: McDougall et al. 2023),
        and the mean logit of the token less its mean over the vocabulary.
    """

def costs_by_stage(passes: collections.abc.Callable[[], None]) -> dict:
    """
    What the forward passes of a call cost, by stage.

    Args:
        passes: called once, with nothing.

    Returns:
        {stage: {"seconds", "calls", "flops", "bytes"}} for embedding, norms, QKV, rotary, attention, output, MLP products,
        activation, residual, unembedding, readout, hooks and other. The times add up to the call's. flops are those of
        matrix products and attention, bytes the weights, inputs and results, each once.
    """

def debug_prediction(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    expected: typing.SupportsInt | typing.SupportsIndex,
    actual: typing.SupportsInt | typing.SupportsIndex,
) -> Prediction:
    """
    A Prediction from the activations of one position of one text: see introspect.analysis.debug_prediction.
    """

def decoder_neighbours(
    dictionary: Dictionary,
    feature: typing.SupportsInt | typing.SupportsIndex,
    k: typing.SupportsInt | typing.SupportsIndex = 10,
) -> Neighbours:
    """
    The features whose decoder rows point most alike (cosine). Raises IndexError.
    """

def decompose_resid(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    mlp_input: bool = False,
    mode: str = "all",
    apply_ln: bool = False,
    positions: torch.Tensor | None = None,
    incl_embeds: bool = True,
) -> tuple[torch.Tensor, list[str]]:
    """
    What the embeddings and each layer add to the stream: see ActivationCache.decompose_resid.
    """

def diagnose(
    positive: torch.Tensor,
    negative: torch.Tensor,
    direction: torch.Tensor,
    *,
    method: str = "pca_center",
    folds: typing.SupportsInt | typing.SupportsIndex = 2,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> LayerDiagnostics:
    """
    Judges a direction of pairs: explained variance and sign agreement on these pairs, accuracy and AUC on held-out ones.

    Pair i is in fold i mod ``folds``; each fold is judged by the direction that ``method`` finds for all other pairs.

    Args:
        positive: [pairs, d_model].
        negative: [pairs, d_model].
        direction: [d_model], what direction_of_pairs gave.
        method: the same as for direction_of_pairs.
        folds: 2 or more; 0 leaves accuracy and auc None, and so do fewer than two pairs a fold.
        seed: of "lat".

    Returns:
        LayerDiagnostics.

    Raises:
        ShapeError: other shapes.
        ValueError: one fold, or a negative number.
    """

def dictionary_formats() -> list[str]:
    """
    Names of the formats that load_dictionary reads, each with what its file or folder holds.
    """

def dictionary_layers(folder: os.PathLike | str | bytes) -> list[int]:
    """
    The layers of a folder that holds a file for each; none for every other path.
    """

def direct_logit_attribution(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    tokens: torch.Tensor,
    *,
    wrong: torch.Tensor | None = None,
    unit: str = "component",
) -> Attribution:
    """
    What each part of a model adds to the logits of tokens: see introspect.analysis.direct_logit_attribution.

    Args:
        activations: full hook name -> [batch, 1, ...], of one position of every row.
        tokens: int64 [batch, n].
        wrong: of the same shape; their logits are subtracted.

    Raises:
        HookError: an activation that is needed is not there.
        ShapeError: other shapes.
        IndexError: tokens outside the vocabulary.
    """

def direction_of_pairs(
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    method: str = "pca_center",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> torch.Tensor:
    """
    One layer's direction from activations of pairs, pointing from negative to positive, in double precision inside.

    The principal components have length 1 and the sign under which most pairs project in order (repeng's vote).

    Args:
        positive: [pairs, d_model], any float dtype.
        negative: [pairs, d_model], row by row the other side of ``positive``.
        method: what becomes the direction:
            "pca_center": first component of the pairs about their midpoints (repeng's pca_center);
            "pca_global_center": of all activations less their common mean (activation-steering's pca_center);
            "pca_diff": of the differences less their mean (repeng's default);
            "pca_diff_uncentered": of the differences about zero (llama.cpp, steering-vectors), equal to "pca_center";
            "lat": of the differences of activations paired at random (Zou et al. 2023, arXiv:2310.01405);
            "mean_diff": mean of the differences, at its own length (Rimsky et al. 2023, arXiv:2312.06681);
            "logistic": weights of a logistic regression, of length 1 (scikit-learn's LogisticRegression with C = 1).
        seed: of the pairing of "lat".

    Returns:
        float32 [d_model].

    Raises:
        ShapeError: sides of unequal count or width, or not float matrices.
        ValueError: an unknown method, activations that are not finite, pairs that do not differ.
    """

def edge_attribution(
    model: Model,
    clean: collections.abc.Sequence[torch.Tensor],
    corrupted: collections.abc.Sequence[torch.Tensor],
    metrics: collections.abc.Sequence[Metric],
    *,
    of_logits: collections.abc.Callable[[torch.Tensor], torch.Tensor] = None,
    method: str = "eap",
    ig_steps: typing.SupportsInt | typing.SupportsIndex = 5,
    gauss: bool = False,
    ablation: str = "patching",
    mean_over: collections.abc.Sequence[torch.Tensor] = [],
    per_position: bool = False,
    ungrouped: bool = False,
    edges: collections.abc.Sequence[str] = [],
    progress: typing.Any = None,
) -> EdgeAttribution:
    """
    Scores of edges: see introspect.circuits.edge_attribution. Prompts are int64 [pos] each.
    """

def entropy(logits: torch.Tensor) -> torch.Tensor:
    """
    Entropy of the next token in nats: [..., d_vocab] -> float64 [...].
    """

def equal_doses(
    model: Model,
    context: Protocol | collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    what: str,
    **kwargs,
) -> list[EqualDose]:
    """
    Every null of the vectors at the strength that gives the vector's own dose.
    """

def equivalence(
    values: collections.abc.Sequence[float],
    clusters: collections.abc.Sequence[str],
    bounds: tuple[typing.SupportsFloat | typing.SupportsIndex, typing.SupportsFloat | typing.SupportsIndex],
    *,
    level: typing.SupportsFloat | typing.SupportsIndex = 0.05,
    errors: str = "student",
    resamples: typing.SupportsInt | typing.SupportsIndex = 9999,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> Equivalence:
    """
    Two one-sided tests over clusters (Schuirmann 1987): what a null result must pass before it is called one.

    Args:
        values: [n] numbers.
        clusters: [n], the cluster of each.
        bounds: (low, high), in the unit of the values.
        level: of either test, and so of the claim.
        errors: "student" (t of the clusters' means) or "bootstrap_t" (clusters drawn with replacement).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: as ``clustered_mean``, and for bounds that are not finite or not in order.
    """

def estimate_layers(
    model: Model,
    protocol: Protocol,
    *,
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    strengths: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] | None,
    questions: collections.abc.Sequence[str] | None,
    controls: str | None,
    nulls: typing.SupportsInt | typing.SupportsIndex,
    strength_unit: str | None,
    seed: typing.SupportsInt | typing.SupportsIndex,
    progress: typing.Any,
) -> list[LayerEstimate]:
    """
    The estimates behind introspect.estimate_ranges: one for each vector, strength, rotation and question.
    """

def evaluate_dictionary(
    model: typing.Any,
    dictionary: Dictionary,
    tokens: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    special_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    spliced: bool = True,
    batch_tokens: typing.SupportsInt | typing.SupportsIndex = 2048,
    progress: typing.Any = None,
) -> DictionaryEvaluation:
    """
    A dictionary at its place in a model, on token contexts: see introspect.sae.evaluate.

    Args:
        tokens: int64 [contexts, tokens].
        lengths: int64 [contexts], of each; the rest is padding.
        special_tokens: ids that are run, and neither replaced nor counted.
        spliced: also the model's losses with the dictionary in it.
        batch_tokens: of a pass.
    """

def evaluate_probe(
    probe: Probe,
    activations: torch.Tensor,
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    groups: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    resamples: typing.SupportsInt | typing.SupportsIndex = 1000,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> ProbeScores:
    """
    A probe on other activations [n, d]: ProbeScores with intervals.

    Raises:
        ShapeError, ValueError: inputs that do not go together, or labels of one class.
    """

def faithfulness(
    model: Model,
    clean: collections.abc.Sequence[torch.Tensor],
    corrupted: collections.abc.Sequence[torch.Tensor],
    metrics: collections.abc.Sequence[Metric],
    circuit: Circuit,
    *,
    of_logits: collections.abc.Callable[[torch.Tensor], torch.Tensor] = None,
    shares: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
    absolute: bool = True,
    ablation: str = "patching",
    mean_over: collections.abc.Sequence[torch.Tensor] = [],
    progress: typing.Any = None,
) -> Faithfulness:
    """
    The curve of a circuit's scores: see introspect.circuits.faithfulness.
    """

def false_alarms_at(
    positives: collections.abc.Sequence[float],
    negatives: collections.abc.Sequence[float],
    hit_rate: typing.SupportsFloat | typing.SupportsIndex,
) -> MatchedRate:
    """
    False alarms at the highest threshold that gives at least this hit rate.

    Raises:
        ValueError: no positives or negatives, scores that are not finite, or a hit rate not above 0 and at most 1.
    """

def feature_activations(
    model: typing.Any,
    dictionary: Dictionary,
    tokens: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    special_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ids: torch.Tensor | None = None,
    batch_tokens: typing.SupportsInt | typing.SupportsIndex = 4096,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 2147483648,
    progress: typing.Any = None,
) -> FeatureActivations:
    """
    One pass of token contexts through the model, as far as needed, and the dictionary: see introspect.sae.feature_activations.

    Args:
        tokens: int64 [contexts, tokens].
        lengths: int64 [contexts], of each; the rest is padding.
        special_tokens: ids that are run, and at which no feature is said to be active.
        ids: int64 [n], these features only.
        memory_budget: bytes of entries.

    Raises:
        ConfigError, HookError, ShapeError: a dictionary that is not of this model.
        ValueError: no tokens, or more entries than fit the budget.
    """

def feature_activations_of_rows(
    dictionary: Dictionary,
    tokens: torch.Tensor,
    x: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    special_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    ids: torch.Tensor | None = None,
    batch_tokens: typing.SupportsInt | typing.SupportsIndex = 4096,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 2147483648,
) -> FeatureActivations:
    """
    The same for inputs that were read before, x [contexts, tokens, d_in].
    """

def feature_effects(
    dictionary: Dictionary, x: torch.Tensor, gradient: torch.Tensor, source: torch.Tensor | None = None
) -> tuple:
    """
    (offsets, indices, values, effects, error, bias): f_i (W_dec_i . gradient) of each feature of rows that is not 0.

    Effects, error and bias of a row sum to x . gradient. Row n has the entries offsets[n] to offsets[n + 1].

    Args:
        x: [n, d_out].
        gradient: of a number by x, [n, d_out].
        source: [n, d_in], what a transcoder reads.
    """

def feature_table(activations: FeatureActivations) -> FeatureTable:
    """
    Counts, densities, mean and largest value of every feature.
    """

def feature_values(
    activations: FeatureActivations, feature: typing.SupportsInt | typing.SupportsIndex, rows: torch.Tensor
) -> torch.Tensor:
    """
    What a feature did in some contexts, [n, tokens]. Raises IndexError.
    """

def fit_probe(
    x: torch.Tensor,
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    classes: collections.abc.Sequence[str],
    *,
    kind: str = "logistic",
    C: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    standardise: bool | None = None,
) -> Probe:
    """
    A probe of activations [n, d]: see introspect.analysis.fit_probe.
    """

def full_resid_decomposition(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    apply_ln: bool = False,
    positions: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """
    Every component of the stream: see ActivationCache.get_full_resid_decomposition.
    """

def head_loadings(
    model: Model,
    tokens: torch.Tensor,
    source: GraphNode,
    target: GraphNode,
    *,
    transcoders: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, Dictionary],
    cross_layer: CrossLayerTranscoder | None = None,
    saes: collections.abc.Sequence[Dictionary] = [],
    input: str | None = None,
    mask_first: bool = True,
) -> HeadLoadings:
    """
    See introspect.circuits.head_loadings.
    """

def head_results(model: Model, layer: typing.SupportsInt | typing.SupportsIndex, z: torch.Tensor) -> torch.Tensor:
    """
    attn.hook_result of a layer, [..., n_heads, d_model], from its attn.hook_z [..., n_heads, d_head].
    """

def head_scores(
    model: Model,
    texts: collections.abc.Sequence[torch.Tensor],
    *,
    patterns: collections.abc.Mapping[str, torch.Tensor] = {},
    progress: typing.Any = None,
) -> tuple[list[str], torch.Tensor, list[int]]:
    """
    What every head attends to in texts: see introspect.analysis.head_scores.

    Args:
        texts: int64 [batch, pos] each.
        patterns: further ones, [pos, pos] and lower triangular.

    Returns:
        Names, float64 [names, n_layers, n_heads] (NaN where no position counts), and the positions each is a mean over.
    """

def jacobian_lens(
    model: typing.Any,
    prompts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    skip_first: typing.SupportsInt | typing.SupportsIndex,
    context: typing.SupportsInt | typing.SupportsIndex,
    directions: typing.SupportsInt | typing.SupportsIndex,
    progress: typing.Any,
) -> Lens:
    """
    See introspect.analysis.JacobianLens.compute.
    """

def kendall_tau(a: collections.abc.Sequence[float], b: collections.abc.Sequence[float]) -> float:
    """
    Kendall's tau-b (1945), computed as Knight 1966; NaN where one list is constant.

    Raises:
        ValueError: lists of different lengths, fewer than two values, or values that are not finite.
    """

def kl_divergence(logits: torch.Tensor, base_logits: torch.Tensor) -> torch.Tensor:
    """
    KL(p || base) in nats of two sets of logits [..., d_vocab] -> float64 [...]. Raises ShapeError for other sizes.
    """

def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    x W^T + b over the last dimension, in x's dtype, by the kernels that models use.

    Args:
        x: [..., D].
        weight: [N, D].
        bias: [N], or None.

    Returns:
        [..., N], summed in float32; where :func:`bfloat16_products` says "tiles" or "pairs", a row of bfloat16 has the same
        bits whatever the number of rows.
    """

def load_cross_layer_transcoder(
    folder: os.PathLike | str | bytes,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device = ...,
    origin: DictionaryOrigin | None = None,
) -> CrossLayerTranscoder:
    """
    Read a cross-layer transcoder from its folder, circuit-tracer's or Gemma Scope 2's: see introspect.CrossLayerTranscoder.load.

    Raises:
        IoError: a file is missing or damaged.
        ConfigError: the folder holds no such files.
    """

def load_dictionary(
    path: os.PathLike | str | bytes,
    *,
    format: str = "",
    dtype: torch.dtype | None = None,
    device: torch.device = ...,
    layer: typing.SupportsInt | typing.SupportsIndex | None = None,
    k: typing.SupportsInt | typing.SupportsIndex | None = None,
    input_scale: typing.SupportsFloat | typing.SupportsIndex | None = None,
    origin: DictionaryOrigin | None = None,
) -> Dictionary:
    """
    Read a dictionary of any format, from its file or folder: see introspect.SAE.load.

    Args:
        format: one of dictionary_formats(); found out if empty.
        dtype: that of the stored decoder if not given.
        layer: of a folder that holds a file for each.
        k: of top-k files that do not say it.
        input_scale: of files whose inputs were scaled by a number that they do not say.
        origin: a DictionaryOrigin, which stands where the file says nothing.

    Raises:
        IoError: the file is missing or damaged, or its tensors fit no dictionary.
        ConfigError: an unknown format, architecture or activation, or a number that is missing.
    """

def logistic_regressions(
    rows: torch.Tensor,
    labels: torch.Tensor,
    C: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    n_classes: typing.SupportsInt | typing.SupportsIndex = 2,
    tolerance: typing.SupportsFloat | typing.SupportsIndex = 1e-09,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    L2-regularised logistic regressions of several sets of labels on the same rows, all at once.

    Args:
        rows: float32 or float64 [n, d].
        labels: int64 [p, n], classes from 0; -1 leaves the row out.
        C: float64 [p], as in scikit-learn.
        scale: float64 [p, d], the scaler of each; None: ones.
        n_classes: two have one row of weights, more one each (softmax).
        tolerance: of the gradient, as a share of that at zero.

    Returns:
        weights [p, K, d] and biases [p, K], float64: logits of rows x are x w + b.

    Raises:
        ShapeError, ValueError: other shapes, numbers out of range, or no convergence.
    """

def logit_attributions(
    model: Model,
    stack: torch.Tensor,
    scale: torch.Tensor,
    tokens: torch.Tensor,
    incorrect_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What each component of a stack [n, ..., d_model] adds to the logit of tokens, or to a difference of logits.

    Args:
        scale: ln_final.hook_scale [..., 1].
        tokens: int64, broadcast against the dimensions between n and d_model.
        incorrect_tokens: their logit is subtracted.

    Returns:
        [n, ...], float32 at least.
    """

def logit_effects(
    model: typing.Any,
    dictionary: Dictionary,
    ids: torch.Tensor,
    *,
    site: typing.SupportsInt | typing.SupportsIndex = -1,
) -> torch.Tensor:
    """
    What a unit of each feature adds to the logits on the direct path, [n, d_vocab].

    W_dec (through W_O or W_out at attn.hook_z and mlp.hook_post) times the final norm's weight and W_U; LayerNorm takes the
    mean off first. To have logits divide by the norm's denominator at the token; a soft cap is left out.

    Args:
        ids: int64 [n].
        site: which output of a crosscoder; -1 is the last.

    Raises:
        ConfigError: an output from which there is no linear way to the logits.
        IndexError: features or sites that are not there.
    """

def match_heads(
    model: Model,
    tokens: torch.Tensor,
    detection: torch.Tensor,
    *,
    n_layers: typing.SupportsInt | typing.SupportsIndex,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> torch.Tensor:
    """
    match_pattern of every head of the first n_layers blocks on tokens [pos]: float64 [n_layers, n_heads].
    """

def match_pattern(
    attention: torch.Tensor,
    detection: torch.Tensor,
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: str = "mul",
) -> torch.Tensor:
    """
    How well attention [..., pos, pos] shows a lower triangular pattern [pos, pos]: float64 [...].

    Args:
        exclude_bos: attention to position 0 counts for nothing.
        exclude_current_token: nor does that of a position to itself.
        error_measure: "mul", sum(A D) / sum(A), or "abs", 1 - sum|A - D| / pos with the sum rounded to three digits.

    Raises:
        ShapeError: other shapes.
        ValueError: a pattern that is not zero above the diagonal.
    """

def max_null_band(
    values: collections.abc.Sequence[float],
    nulls: collections.abc.Sequence[collections.abc.Sequence[float]],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    studentise: bool = True,
) -> MaxNullBand:
    """
    p-values of the points of a sweep from the nulls' maxima, adjusted for looking at all points.

    Source: Westfall & Young 1993, 2.3 (single-step maxT); Nichols & Holmes 2002.

    Args:
        values: [points].
        nulls: [n, points].
        confidence: of the threshold.
        studentise: measure each point from the mean and in the standard deviation of the curve and the nulls together, so
            that points with noisy nulls do not hide the others; the threshold is then in these units.

    Raises:
        ValueError: as ``null_bands``.
    """

def mean_differences(
    model: typing.Any,
    positives: collections.abc.Sequence[str],
    negatives: collections.abc.Sequence[str],
    *,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    Mean activations of some texts less those of others before every block: float64 [positions, layers, d_model].
    """

def measure_coherence(
    model: Model,
    context: Protocol | collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    **kwargs,
) -> list[Coherence]:
    """
    How the text of every vector, range and strength reads.
    """

def measure_doses(
    model: Model,
    context: Protocol | collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    **kwargs,
) -> list[NativeDose]:
    """
    The dose of every vector, range and strength in a protocol or in prompts (token ids).
    """

def meta_analysis(
    effects: collections.abc.Sequence[float],
    standard_errors: collections.abc.Sequence[float],
    *,
    method: str = "reml",
    hartung_knapp: bool = True,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> MetaAnalysis:
    """
    Random-effects meta-analysis of studies that share no readings.

    Args:
        effects: [studies].
        standard_errors: [studies], above 0.
        method: of the variance between studies: "reml" (Viechtbauer 2005), "paule_mandel" (1982) or "dersimonian_laird" (1986).
        hartung_knapp: t with the observed spread (Hartung & Knapp 2001), never narrower than without it (Röver, Knapp & Friede
            2015); False: normal, which is too narrow for few studies.
        confidence: of the intervals. That of tau squared is by Q's profile (Viechtbauer 2007), the prediction interval as
            Higgins, Thompson & Spiegelhalter 2009.

    Raises:
        ValueError: fewer than two studies, lists of different lengths, effects that are not finite, standard errors not above
            0, or another method.
    """

def monitor_report(
    positives: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    negatives: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    *,
    threshold: typing.SupportsFloat | typing.SupportsIndex,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> MonitorReport:
    """
    Recall, false alarms and AUC of scores, with intervals. Raises ValueError for fewer than two of either.
    """

def most_changed(
    logits: torch.Tensor,
    base_logits: torch.Tensor,
    *,
    k: typing.SupportsInt | typing.SupportsIndex,
    raised: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The k tokens whose log-probability rose (or fell) most: (changes in nats, ids), for logits [d_vocab].
    """

def n_tokens_after_instruction(model: typing.Any) -> int:
    """
    How many tokens the chat template puts after the user's message, the generation prompt included.
    """

def neuron_results(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    neurons: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    What each neuron of one layer adds to the stream, [neurons, ..., d_model].
    """

def new_model(cfg: Config, *, dtype: torch.dtype = ..., device: torch.device = ...) -> Model:
    """
    A model that nothing has been trained into: matrices and biases are zero, the weights of norms one; without a tokenizer.

    Raises:
        ConfigError: a config or dtype that no model has.
    """

def null_band(
    value: typing.SupportsFloat | typing.SupportsIndex,
    nulls: collections.abc.Sequence[float],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> NullBand:
    """
    Where a value lies among nulls; n nulls cannot give a p below 1 / (1 + n).

    Source: Davison & Hinkley 1997, 4.2; Phipson & Smyth 2010.

    Args:
        value: the quantity for the concept's vector.
        nulls: [n], the quantity for each random vector.
        confidence: the share of the nulls between the ends of the band.

    Raises:
        ValueError: no nulls, numbers that are not finite, or a confidence not between 0 and 1.
    """

def null_bands(
    values: collections.abc.Sequence[float],
    nulls: collections.abc.Sequence[collections.abc.Sequence[float]],
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> list[NullBand]:
    """
    ``null_band`` at every point of a curve (layers, strengths).

    Args:
        values: [points].
        nulls: [n, points].
        confidence: the share of the nulls between the ends of each band.

    Raises:
        ValueError: as ``null_band``, and for nulls with another number of points.
    """

def open_tensors(path: os.PathLike | str | bytes) -> TensorSource:
    """
    Open whatever holds tensors: a .safetensors file or its index, a GGUF file, or an HF folder.

    Args:
        path: file or folder. Files are mapped, not read.

    Raises:
        IoError: the file is missing, truncated or corrupt.
        ConfigError: the format is another one. Pickles are never opened, because they run code.
    """

def operator_names() -> list[str]:
    """
    The operators an Intervention may name, sorted.
    """

def orthogonalised(model: typing.Any, direction: torch.Tensor) -> Model:
    """
    The native model with weights that cannot write a direction: see introspect.analysis.orthogonalised.
    """

def ov_copying_scores(model: Model, circuit: str = "full") -> torch.Tensor:
    """
    How much each head copies what it attends to, from eigenvalues: Re(sum) / sum of moduli, float64 [n_layers, n_heads].

    1: the head raises what it reads, -1: it lowers that. Weights of norms count as parts of the matrices; divisions by
    their scales and biases are left out. Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Args:
        circuit: "head", of W_V W_O, or "full", of W_E W_V W_O W_U, from tokens to logits.
    """

def parse_dose(text: str) -> tuple[str, float]:
    """
    The name and the number of a dose such as 'kl=0.5'. Raises ValueError for any other text.
    """

def patch_grid(
    model: Model,
    pairs: collections.abc.Sequence[PatchPair],
    axes: PatchAxes,
    *,
    with_: str = "run",
    mean: torch.Tensor | None = None,
    reference_is_to: bool = False,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> PatchGrid: ...
def patched_residuals(
    model: Model,
    tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    source: torch.Tensor,
    axes: PatchAxes,
    *,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    patched: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    The last residual [cells, positions, d_model] of a run for each cell of a grid that puts in ``source`` [layers, T, ...]
    at each of the ``patched`` positions, or at all.

    Raises:
        ShapeError: a source of another shape than the run's own activations.
    """

def patchscope(
    model: typing.Any,
    source: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    target: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    source_positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    target_position: typing.SupportsInt | typing.SupportsIndex,
    target_layer: typing.SupportsInt | typing.SupportsIndex | None,
    read_position: typing.SupportsInt | typing.SupportsIndex,
    memory_budget: typing.SupportsInt | typing.SupportsIndex,
    progress: typing.Any,
) -> torch.Tensor:
    """
    See introspect.analysis.patchscope.
    """

def path_patching(
    model: Model,
    pairs: collections.abc.Sequence[PatchPair],
    *,
    senders: collections.abc.Sequence[collections.abc.Sequence[PathSender]],
    receivers: collections.abc.Sequence[collections.abc.Sequence[PathReceiver]],
    freeze_mlps: bool = True,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    by_position: bool = False,
    reference_is_to: bool = False,
    most_cells: typing.SupportsInt | typing.SupportsIndex = 100000,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> PatchGrid:
    """
    Values [pairs, receivers, senders (, positions)]: see analysis.path_patching.
    """

def plan_attribution(
    model: Model,
    tokens: torch.Tensor,
    *,
    transcoders: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, Dictionary],
    cross_layer: CrossLayerTranscoder | None = None,
    saes: collections.abc.Sequence[Dictionary] = [],
    input: str | None = None,
    name: str = "",
    logit_mass: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    max_logits: typing.SupportsInt | typing.SupportsIndex = 10,
    targets: collections.abc.Sequence[GraphTarget] = [],
    injections: collections.abc.Sequence[Injection] = [],
    max_features: typing.SupportsInt | typing.SupportsIndex = 7500,
    edges_per_row: typing.SupportsInt | typing.SupportsIndex = 4096,
    fold: bool = True,
    mask_first: bool = True,
    rows_per_batch: typing.SupportsInt | typing.SupportsIndex = 128,
    batches_per_update: typing.SupportsInt | typing.SupportsIndex = 8,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 2147483648,
    rows_folder: str = "",
    time_budget: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    progress: typing.Any = None,
) -> AttributionPlan:
    """
    What attribute would take: see introspect.circuits.attribute.
    """

def plan_trie(
    model: Model, trie: TokenTrie, *, memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824
) -> TriePlan:
    """
    How many passes of how many nodes ``run_trie`` makes of a trie.

    Raises:
        ValueError: the budget (bytes) does not hold a pass of one node.
    """

def prediction_points(model: Model) -> list[str]:
    """
    The hook names that debug_prediction needs beside attribution_points.
    """

def probe_of_direction(
    direction: torch.Tensor,
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    name: str = "",
    point: str = "hook_resid_post",
) -> Probe:
    """
    A probe whose score is the projection on a direction, x.v / |v|.

    Args:
        direction: [d], any float dtype.
        layer: where it is read.
        name: what it reads.
        point: a hook point of a block.

    Raises:
        ShapeError, ValueError: a direction that is none.
    """

def proportion(
    successes: typing.SupportsInt | typing.SupportsIndex,
    trials: typing.SupportsInt | typing.SupportsIndex,
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> Proportion:
    """
    The share of successes with its exact interval (Clopper & Pearson 1934).

    Raises:
        ValueError: not 0 <= successes <= trials, no trials, or a confidence not between 0 and 1.
    """

def qk_attribution(
    model: Model,
    tokens: torch.Tensor,
    layer: typing.SupportsInt | typing.SupportsIndex,
    head: typing.SupportsInt | typing.SupportsIndex,
    query: typing.SupportsInt | typing.SupportsIndex,
    key: typing.SupportsInt | typing.SupportsIndex,
    *,
    transcoders: collections.abc.Mapping[typing.SupportsInt | typing.SupportsIndex, Dictionary],
    cross_layer: CrossLayerTranscoder | None = None,
    saes: collections.abc.Sequence[Dictionary] = [],
    input: str | None = None,
    mask_first: bool = True,
) -> QkAttribution:
    """
    See introspect.circuits.qk_attribution.
    """

def random_directions(vector: ControlVector, *, seed: typing.SupportsInt | typing.SupportsIndex) -> ControlVector:
    """
    Independent random directions of the lengths the vector's have, uniform on each layer's sphere.
    """

def random_rotation(vector: ControlVector, *, seed: typing.SupportsInt | typing.SupportsIndex) -> ControlVector:
    """
    The vector under one random orthogonal map of the residual stream: the null for "any vector of this shape".

    All layers go through the same map, so every norm and every cosine between layers stays.
    """

def read_config(path: os.PathLike | str | bytes) -> Config:
    """
    The Config of a model's folder or .gguf file, without reading a weight. Raises as Model.load.
    """

def read_contexts(
    model: typing.Any,
    hook_names: collections.abc.Sequence[str],
    tokens: torch.Tensor,
    *,
    lengths: torch.Tensor | None = None,
    batch_tokens: typing.SupportsInt | typing.SupportsIndex = 4096,
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    What stands at hook points over token contexts, side by side: [contexts, tokens, width] in the model's dtype, 0 at padding.

    Raises:
        HookError, ConfigError: a point that the model does not have, after the last block, or without a width.
        ShapeError: contexts that are too long.
    """

def read_lens(
    model: typing.Any,
    lens: Lens,
    tokens: torch.Tensor,
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    incl_mid: bool = False,
    top_k: typing.SupportsInt | typing.SupportsIndex = 5,
    targets: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    measures: bool = False,
    hooks: HookRegistry = None,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 268435456,
    progress: typing.Any = None,
) -> LensReading:
    """
    Read a text through a lens in one forward pass: see introspect.analysis.logit_lens.
    """

def read_npz(path: os.PathLike | str | bytes) -> dict[str, torch.Tensor]:
    """
    Read the arrays of numpy.savez, or the one of a .npy file, which is called "arr_0".

    Numbers and truths of either byte order, in C's or Fortran's order. Nothing in the file is executed.

    Returns:
        CPU tensors by name, in the dtypes of the file.

    Raises:
        IoError: the file is missing, damaged or compressed, or holds objects, structures, text, dates or raw bytes.
    """

def read_torch_zip(path: os.PathLike | str | bytes, *, objects_as_data: bool = False) -> typing.Any:
    """
    Read a file of torch.save (torch 1.6 and later); nothing in it is executed.

    A pickle is a program; this knows only what tensors, parameters and plain containers need of it.

    Args:
        path: a .pt, .pth or .bin file.
        objects_as_data: give objects of other classes as {"class": name, "arguments": ..., "state": ...} instead of
            refusing them; nothing of the class is looked up or run.

    Returns:
        Nested dicts, lists and tuples of CPU tensors and plain values. An OrderedDict is a dict.

    Raises:
        IoError: the file is missing, truncated or corrupt, is compressed, or names anything else, which is named.
    """

def reading_problem(json: str) -> str:
    """
    What is wrong with the JSON of a reading that comes from a file, or nothing.
    """

def readouts() -> list:
    """
    (name, fields) of every readout, in the order of a reading's JSON.
    """

def register_feature_readout(
    name: str,
    dictionary: Dictionary,
    *,
    hook_name: str,
    features: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None,
    top_k: typing.SupportsInt | typing.SupportsIndex,
    own_question_only: bool,
) -> None:
    """
    See introspect.sae.feature_readout.
    """

def register_operator(
    name: str,
    function: collections.abc.Callable,
    *,
    operand: str | collections.abc.Mapping[str, str] = "required",
    reads_source: bool = False,
    check: collections.abc.Callable | None = None,
    takes_strength: bool = True,
    identity: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    parameters: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex | None] = {},
) -> None:
    """
    Makes a function an operator that interventions and ``Model.steer`` may name, for as long as the process lives.

    Args:
        name: not taken yet. Interventions stand in files by this name, so it should mean one thing.
        function: ``function(x, v, strength, **parameters)`` returns the new values of x [rows, positions, (heads,) width],
            in its shape; they are rounded to its dtype. v broadcasts against x, and is None where there is none. Each
            position must be treated as if it were alone: a step of a generation shows one at a time.
            With operands of other names v is {name: tensor}, and with reads_source the call has ``source=``, the
            activation at the intervention's source, of the same rows and positions.
        operand: "required", "optional" or "none", of one operand v; or {name: "required" or "optional"} of several.
        reads_source: True for an operator that reads a second point.
        check: ``check(v, width, source_width)`` raises for operands that do not fit points of these widths, before
            anything runs. Operands of other names need one; v is then given as it is, not broadcast.
        takes_strength: False allows no strength but 1 (and the identity's).
        identity: the strength at which nothing is changed; the function is not called with it.
        parameters: its numbers by name, with what one is that is not given; None must be given.

    Raises:
        ValueError: the name is taken, an unknown ``operand``, or operands of other names than v without a ``check``.
    """

def register_readout(
    name: str,
    *,
    needs: collections.abc.Sequence[str],
    read: typing.Any,
    check_parameter: typing.Any,
    check: typing.Any,
    version: typing.SupportsInt | typing.SupportsIndex,
    own_question_only: bool,
    reads_text: bool,
) -> None:
    """
    See introspect.register_readout.
    """

def regression_lens(
    model: typing.Any,
    texts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    *,
    ridge: typing.SupportsFloat | typing.SupportsIndex,
    context: typing.SupportsInt | typing.SupportsIndex,
    bias: bool,
    progress: typing.Any,
) -> Lens:
    """
    See introspect.analysis.TunedLens.regression.
    """

def replays_steps(device: torch.device) -> bool:
    """
    True if static steps of a generation (step=) are replayed on a torch.device, and none has failed to be.
    """

def residual_norms(
    model: typing.Any,
    tokens: torch.Tensor,
    *,
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] | None = None,
    attention_mask: torch.Tensor | None = None,
) -> dict[int, float]:
    """
    Median norm of the residual stream after each block: see introspect.residual_norms.
    """

def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, *, eps: typing.SupportsFloat | typing.SupportsIndex
) -> torch.Tensor:
    """
    Root-mean-square norm over the last dimension, as in Llama and Qwen2.

    Args:
        x: [..., d_model], any floating dtype.
        weight: [d_model].
        eps: added to the mean square.

    Returns:
        Same shape and dtype as ``x``; computed in float32, rounded before the weight is applied.

    Raises:
        ShapeError: ``weight`` is not [d_model].
    """

def rotary_frequencies(
    d_rotary: typing.SupportsInt | typing.SupportsIndex,
    *,
    base: typing.SupportsFloat | typing.SupportsIndex = 10000.0,
    scaling: str = "none",
    factor: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    low_freq_factor: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    high_freq_factor: typing.SupportsFloat | typing.SupportsIndex = 4.0,
    original_max_position: typing.SupportsFloat | typing.SupportsIndex = 8192.0,
    beta_fast: typing.SupportsFloat | typing.SupportsIndex = 32.0,
    beta_slow: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    truncate: bool = True,
    short_factor: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
    long_factor: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [],
    longest: typing.SupportsFloat | typing.SupportsIndex = 0.0,
) -> torch.Tensor:
    """
    The angular frequencies of rotary embedding.

    Args:
        d_rotary: width that is rotated, even.
        base: of the geometric series (theta).
        scaling: "none", "linear" (divided by ``factor``), "llama3" (low_freq_factor, high_freq_factor), "yarn" (beta_fast,
            beta_slow, truncate), "longrope" (short_factor, or long_factor where ``longest`` is above
            ``original_max_position``) or "dynamic" (a base that grows with ``longest``, in positions).

    Returns:
        float32 [d_rotary / 2], in radians per position.

    Raises:
        ConfigError: unknown scaling, or an odd width.

    Source: Su et al. 2021, arXiv:2104.09864.
    """

def run_circuits(
    model: Model,
    clean: collections.abc.Sequence[torch.Tensor],
    corrupted: collections.abc.Sequence[torch.Tensor],
    metrics: collections.abc.Sequence[Metric],
    circuits: collections.abc.Sequence[Circuit],
    *,
    of_logits: collections.abc.Callable[[torch.Tensor], torch.Tensor] = None,
    ablation: str = "patching",
    mean_over: collections.abc.Sequence[torch.Tensor] = [],
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    The metric of each circuit and prompt, float64 [circuits, prompts]: see introspect.circuits.run_circuit.
    """

def run_experiments(
    model: Model,
    experiments: collections.abc.Sequence[dict],
    *,
    store: Store,
    memory_budget: typing.SupportsInt | typing.SupportsIndex,
    progress: typing.Any,
    work: typing.Any,
    before: typing.Any,
    only_plan: bool,
    pass_seconds: typing.SupportsFloat | typing.SupportsIndex,
) -> list[str]:
    """
    The results of experiments that run together as JSON. Each is a dictionary of run_experiment's arguments, all of them there; layers are (first, last, whether they are fractions) and groups pairs. ``work`` is told the token-layers done and to do, ``before`` the RunPlan; with ``only_plan`` nothing else happens.
    """

def run_trie(
    model: typing.Any,
    trie: TokenTrie,
    *,
    nodes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    point: str = "hook_resid_post",
    rows: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    last_layer_after_norm: bool = False,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> torch.Tensor:
    """
    Activations at nodes of a trie, where every node is run once, whatever sequences it belongs to.

    Args:
        model: an introspect.Model, or its native model; what is hooked into it takes no part.
        nodes: in the order of the result's rows, unless ``rows`` says another.
        layers: block numbers, in the order of the result's columns.
        point: a hook point of a block that has a position: "hook_resid_post", "attn.hook_z".
        rows: the result's row of each of ``nodes``: a row is the mean over its nodes. Empty: every node is a row.
        last_layer_after_norm: read the last block's hook_resid_post as the final norm leaves it.
        memory_budget: bytes that the activations of one pass may take, weights and result aside.
        progress: called with (what, done, total).

    Returns:
        float32 (float64 for a float64 model) [rows, layers, ...], what stands at the point for one position. Equal to
        running each sequence by itself up to rounding.

    Raises:
        IndexError: a node or layer that is not there.
        HookError: a point that this model does not have.
        ShapeError: a sequence longer than n_ctx.
        ValueError: nothing to read, a row without nodes, another point after the norm, or a budget too small for one node.
    """

def save_cross_layer_transcoder(transcoder: CrossLayerTranscoder, folder: os.PathLike | str | bytes) -> None:
    """
    Write a cross-layer transcoder as circuit-tracer has it: see introspect.CrossLayerTranscoder.save.

    Raises:
        ConfigError: the format cannot hold it: a skip, or another activation than relu and jumprelu.
        IoError: it cannot be written.
    """

def save_dictionary(dictionary: Dictionary, folder: os.PathLike | str | bytes, *, format: str = "saelens") -> None:
    """
    Write a dictionary, each file whole or not at all: see introspect.SAE.save.

    Args:
        folder: of its own for "saelens", of one transcoder a layer for "circuit_tracer"; made if it is not there.

    Raises:
        ConfigError: the format cannot hold it, or the folder is of another model or other hook points.
        IoError: it cannot be written.
    """

def save_safetensors(
    path: os.PathLike | str | bytes,
    tensors: collections.abc.Sequence[tuple[str, torch.Tensor]],
    *,
    metadata: collections.abc.Mapping[str, str] = {},
) -> None:
    """
    Write a .safetensors file, whole or not at all.

    Args:
        path: replaced if it exists, only once everything is on the disk.
        tensors: (name, tensor) pairs, of any device and layout.
        metadata: strings by name.

    Raises:
        ValueError: a name is empty, repeated or ``__metadata__``.
        ShapeError: a tensor's dtype is not one of the format's.
        IoError: the file cannot be written, on a full disk for example.
    """

def save_torch_zip(path: os.PathLike | str | bytes, value: typing.Any) -> None:
    """
    Write a file that ``torch.load(path, weights_only=True)`` reads, whole or not at all.

    Args:
        value: tensors, plain values, and dicts, lists and tuples of them.

    Raises:
        TypeError: anything else is in it.
        ShapeError: a tensor's dtype has no class of storages.
        ValueError: the file would have 4 GiB or more; save_safetensors writes larger ones.
        IoError: the file cannot be written.
    """

def score_directions(
    model: typing.Any,
    candidates: torch.Tensor,
    *,
    positions: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    layers: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    positives: collections.abc.Sequence[str],
    negatives: collections.abc.Sequence[str],
    tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> list[DirectionScores]:
    """
    DirectionScores of mean differences [positions, layers, d_model], in the order [layer, position].
    """

def score_examples(
    model: Model,
    examples: collections.abc.Sequence[LoraExample],
    *,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    progress: typing.Any = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    How a model answers examples: see introspect.score_examples.

    Returns:
        float64 [n], the mean cross-entropy of each example's target tokens; bool [n], whether greedy decoding gives the target.
    """

def select_direction(
    scores: collections.abc.Sequence[DirectionScores],
    *,
    n_layers: typing.SupportsInt | typing.SupportsIndex,
    most_kl: typing.SupportsFloat | typing.SupportsIndex = 0.1,
    least_induce: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    depth: typing.SupportsFloat | typing.SupportsIndex = 0.8,
) -> int | None:
    """
    The place of the lowest bypass score within the limits, or None.
    """

def sensitivity(
    hits: typing.SupportsInt | typing.SupportsIndex,
    misses: typing.SupportsInt | typing.SupportsIndex,
    false_alarms: typing.SupportsInt | typing.SupportsIndex,
    correct_rejections: typing.SupportsInt | typing.SupportsIndex,
    *,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
) -> Sensitivity:
    """
    Hit rate, false-alarm rate, d' and criterion of a yes-no task.

    d' and criterion (Green & Swets 1966) with 0.5 added to each count and 1 to each number of trials, the log-linear
    correction of Hautus 1995; the rates are as counted, with exact intervals.

    Raises:
        ValueError: negative counts, or no trials of either kind.
    """

def set_log_odds(
    logits: torch.Tensor,
    *,
    yes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    no: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
) -> torch.Tensor:
    """
    Log-odds of one set of tokens against another: the log of the sum of exp(logit) over each, yes - no, in nats.

    Args:
        logits: [..., d_vocab].
        yes, no: token ids.

    Returns:
        float64 [...] on the CPU.

    Raises:
        ValueError: an empty set.
        IndexError: ids outside the vocabulary.
    """

def sha256_hex(bytes: bytes) -> str:
    """
    The SHA-256 of ``bytes`` as 64 lowercase hexadecimal digits.
    """

def shift_table(
    base: collections.abc.Sequence[float],
    injected: collections.abc.Sequence[float],
    questions: collections.abc.Sequence[str],
    control: collections.abc.Sequence[int],
    factors: collections.abc.Sequence[Factor] = [],
    *,
    resamples: typing.SupportsInt | typing.SupportsIndex = 10000,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    method: str = "bca",
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
) -> ShiftTable:
    """
    Shifts of log-odds by injection, of introspection questions beside control questions.

    Args:
        base: [n] log-odds of each reading without injection, nats.
        injected: [n] log-odds with it.
        questions: [n], the question of each reading; a factor named "question", within which others can lie.
        control: [n], true for readings of control questions.
        factors: what else readings share (concepts, paraphrases), each resampled as well. An arm with one question is
            conditional on this question.
        resamples: bootstrap replicates.
        confidence: of the intervals.
        method: "bca" or "percentile".
        seed: of the draws.

    Returns:
        The table, with the difference of the arms and its bootstrap interval (as ``bootstrap_difference``).

    Raises:
        ValueError: lists of other lengths, numbers that are not finite, an arm without readings, a question in both arms,
            or fewer than two levels to draw from.
    """

def solve_doses(
    model: Model,
    context: Protocol | collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    vectors: collections.abc.Sequence[tuple[str, ControlVector]],
    what: str,
    value: typing.SupportsFloat | typing.SupportsIndex,
    **kwargs,
) -> list[SolvedDose]:
    """
    The strength of every vector and range that gives the dose.
    """

def spearman(a: collections.abc.Sequence[float], b: collections.abc.Sequence[float]) -> float:
    """
    Correlation of the ranks of two lists, ties sharing their mean (Spearman 1904); NaN where one is constant.

    Raises:
        ValueError: lists of different lengths, fewer than two values, or values that are not finite.
    """

def splice(
    dictionary: Dictionary,
    *,
    edits: collections.abc.Sequence[
        tuple[
            typing.SupportsInt | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
            typing.SupportsFloat | typing.SupportsIndex,
        ]
    ] = [],
    keeps: str = "error",
    strength: typing.SupportsFloat | typing.SupportsIndex = 1.0,
    hook_name: str = "",
    hook_name_out: str = "",
) -> Intervention:
    """
    A dictionary as an Intervention: planned, by row, in graphs, under a KV cache and with gradients like any other.

    With f = encode(x), f' its features after the edits and s the strength, x becomes x + s (y - x), y being decode(f') if
    ``keeps`` is "nothing", decode(f') + x - decode(f) if "error" and x + decode(f') if "everything". A transcoder encodes what
    stands at its input and changes what stands at its output.

    Args:
        edits: (feature, gain, value): f' = gain f + value. Adding is (i, 1, a), clamping (i, 0, c), scaling (i, g, 0),
            ablating (i, 0, 0).
        keeps: "error" computes the edited features only: x + s sum (f'_i - f_i) W_dec_i, and x itself where there are none.
        hook_name: where it reads, if it is not where it was trained.
        hook_name_out: where it writes.

    Raises:
        ConfigError: a dictionary of several sites, of sites that are not known, or a batchtopk, whose rows depend on one
            another.
        HookError: there is no such point.
        IndexError: there is no such feature.
        ValueError: a feature that is edited twice, or numbers that are not finite.
    """

def splice_seen(
    dictionary: Dictionary,
    x: torch.Tensor,
    source: torch.Tensor | None,
    *,
    keeps_error: bool,
    see: collections.abc.Callable,
) -> torch.Tensor:
    """
    What a dictionary makes of x, everything in between shown to ``see(name, tensor)``, whose answer goes on in its place.

    Names and order are SAELens's: hook_sae_input, hook_sae_acts_pre, hook_sae_acts_post, hook_sae_recons, with the error
    kept hook_sae_error, and hook_sae_output. The error is that of the features before anything is replaced, and a constant
    for gradients. Nothing replaced: x, bit for bit, if the error is kept.

    Args:
        source: what a transcoder reads; None is x.
    """

def stack_head_results(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """
    What each head adds to the stream: see ActivationCache.stack_head_results.
    """

def stack_neuron_results(
    model: Model,
    activations: collections.abc.Mapping[str, torch.Tensor],
    *,
    layer: typing.SupportsInt | typing.SupportsIndex,
    neurons: torch.Tensor | None = None,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    positions: torch.Tensor | None = None,
    projection: torch.Tensor | None = None,
) -> tuple[torch.Tensor, list[str]]:
    """
    What each neuron adds to the stream: see ActivationCache.stack_neuron_results.
    """

def stratified_folds(
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    n_folds: typing.SupportsInt | typing.SupportsIndex,
) -> list[int]:
    """
    The fold of each text, 0 to n_folds - 1, with every class spread evenly: scikit-learn's StratifiedKFold(n_folds).

    Raises:
        ValueError: labels of one class, a class with fewer texts than folds, or fewer than two folds.
    """

def stratified_group_folds(
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    groups: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    n_folds: typing.SupportsInt | typing.SupportsIndex,
) -> list[int]:
    """
    The same with each group whole in one fold: scikit-learn's StratifiedGroupKFold(n_folds).

    Raises:
        ValueError: labels of one class, fewer groups than folds, or fewer than two folds.
    """

def study_probes(
    values: torch.Tensor,
    classes: collections.abc.Sequence[str],
    labels: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    *,
    folds: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    groups: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    types: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [],
    kind: str = "logistic",
    standardise: bool | None = None,
    C: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex] = [1.0],
    nulls: typing.SupportsInt | typing.SupportsIndex = 20,
    description: bool = True,
    confidence: typing.SupportsFloat | typing.SupportsIndex = 0.95,
    resamples: typing.SupportsInt | typing.SupportsIndex = 1000,
    seed: typing.SupportsInt | typing.SupportsIndex = 0,
    progress: typing.Any = None,
) -> list[ProbeStudy]:
    """
    Probes of activations [texts, layers, d], cross-validated, with what chance gives in the same place.

    ``introspect.analysis.probe_layers`` reads a model and makes a table of it; this takes activations that are there.

    Returns:
        One ProbeStudy a layer.

    Raises:
        ShapeError, ValueError: inputs that do not go together, activations that are not finite (naming text and layer).
    """

def threshold_at(
    harmless: collections.abc.Sequence[typing.SupportsFloat | typing.SupportsIndex],
    false_positive_rate: typing.SupportsFloat | typing.SupportsIndex = 0.01,
) -> float:
    """
    The lowest threshold that at most this share of harmless texts reaches, from their scores.

    They must be other texts than those that the monitor is judged on; 1 % wants a thousand to be known well.

    Raises:
        ValueError: no scores, scores that are not finite, or a rate out of range.
    """

def top_k_overlap(
    a: collections.abc.Sequence[float], b: collections.abc.Sequence[float], k: typing.SupportsInt | typing.SupportsIndex
) -> float:
    """
    The share of the k highest of ``a`` that are among the k highest of ``b``; of equal values the first is higher.

    Raises:
        ValueError: lists as in ``spearman``, or k not from 1 to their length.
    """

def train_dictionaries(
    stream: ActivationStream,
    dictionaries: collections.abc.Sequence[
        tuple[
            str,
            collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
            collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
        ]
    ],
    *,
    model_name: str = "",
    model_hash: str = "",
    context_size: typing.SupportsInt | typing.SupportsIndex | None = None,
    prepend_bos: bool | None = None,
    notes: str = "{}",
    steps: typing.SupportsInt | typing.SupportsIndex = 0,
    held_out_rows: typing.SupportsInt | typing.SupportsIndex = 8192,
    evaluate_every: typing.SupportsInt | typing.SupportsIndex = 500,
    record_every: typing.SupportsInt | typing.SupportsIndex = 10,
    folder: os.PathLike | str | bytes = "",
    checkpoint_every: typing.SupportsInt | typing.SupportsIndex = 500,
    resume: bool = False,
    on_record: typing.Any = None,
    evaluate: typing.Any = None,
    progress: typing.Any = None,
) -> tuple[list[Dictionary], list[TrainingRecord]]:
    """
    Trains several dictionaries on one stream of activations, with checkpoints and figures on held-out rows.

    Args:
        stream: an ActivationStream.
        dictionaries: (TrainerOptions as JSON, sites read, sites written) each; no sites written: those read.
        model_name, model_hash, context_size, prepend_bos, notes: where they come from, for their files.
        steps: of all; a resumed run counts those before.
        held_out_rows: taken from the stream's beginning; 0: none, and no evaluation.
        evaluate_every, record_every, checkpoint_every: steps.
        folder: of checkpoints; "": none are kept.
        resume: goes on from the folder's checkpoint.
        on_record: called with each TrainingRecord.
        evaluate: called with (number, Dictionary); returns more figures, {name: number}.
        progress: called with (what, done, total).

    Returns:
        (list of Dictionary, list of TrainingRecord).

    Raises:
        Error: a loss is not finite or all features are dead; it names the last good checkpoint.
        ConfigError, ValueError, IoError: before the first step, for what does not fit.
    """

def train_tuned_lens(
    model: typing.Any,
    texts: collections.abc.Sequence[collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]],
    *,
    steps: typing.SupportsInt | typing.SupportsIndex,
    tokens_per_step: typing.SupportsInt | typing.SupportsIndex,
    context: typing.SupportsInt | typing.SupportsIndex,
    optimizer: str,
    lr: typing.SupportsFloat | typing.SupportsIndex,
    momentum: typing.SupportsFloat | typing.SupportsIndex,
    weight_decay: typing.SupportsFloat | typing.SupportsIndex,
    clip: typing.SupportsFloat | typing.SupportsIndex,
    bias: bool,
    seed: typing.SupportsInt | typing.SupportsIndex,
    start: Lens | None,
    memory_budget: typing.SupportsInt | typing.SupportsIndex,
    progress: typing.Any,
    on_step: collections.abc.Callable[[typing.SupportsInt | typing.SupportsIndex, torch.Tensor], None],
) -> Lens:
    """
    See introspect.analysis.TunedLens.train.
    """

def unembedding_hash(model: typing.Any) -> str:
    """
    The hash of an unembedding in the config.json of the tuned-lens package.
    """

def use_bfloat16_products(way: str) -> str:
    """
    From now on multiply bfloat16 this way, in every thread: to compare ways, or to get another machine's bits.

    Returns:
        The way before.

    Raises:
        ConfigError: this processor does not have it.
    """

def whitening(
    rows: torch.Tensor, *, eps: typing.SupportsFloat | typing.SupportsIndex = 0.001
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The affine map that gives rows mean 0 and covariance 1: z = (x - mean) matrix, x = z inverse + mean.

    Args:
        rows: [n, d], more than d of them.
        eps: added to the variances of the covariance's eigenvectors.

    Returns:
        mean [d], matrix [d, d] and inverse [d, d], float64.

    Raises:
        ShapeError: rows are not [n, d].
        ValueError: too few rows, or numbers that are not finite.

    Source: arXiv:2511.13981.
    """

def write_activations(
    models: collections.abc.Sequence[typing.Any],
    tokens: TokenStream,
    sites: collections.abc.Sequence[tuple[str, typing.SupportsInt | typing.SupportsIndex]],
    path: os.PathLike | str | bytes,
    *,
    first_position: typing.SupportsInt | typing.SupportsIndex | None = None,
    end_position: typing.SupportsInt | typing.SupportsIndex | None = None,
    position_step: typing.SupportsInt | typing.SupportsIndex = 1,
    exclude_tokens: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = (),
    max_norm_multiple: typing.SupportsFloat | typing.SupportsIndex = 0.0,
    dtype: torch.dtype = ...,
    memory_budget: typing.SupportsInt | typing.SupportsIndex = 1073741824,
    contexts_per_pass: typing.SupportsInt | typing.SupportsIndex = 0,
    rows: typing.SupportsInt | typing.SupportsIndex = 0,
    commit_rows: typing.SupportsInt | typing.SupportsIndex = 32768,
    resume: bool = False,
    notes: str = "{}",
    progress: typing.Any = None,
) -> ActivationFile:
    """
    Writes the activations of models at some sites into a folder.

    What a killed run has committed stays readable, marked as partial, and ``resume`` goes on there to the same bytes.

    Args:
        models: introspect.Model; several that share a vocabulary read the same tokens.
        tokens: a TokenStream, which is read from where it stands; this one itself is not moved.
        sites: (hook name, number of the model) each; heads of a point stand one after another.
        first_position, end_position, position_step: of each context, as a slice; SAELens's ``seqpos_slice``.
        exclude_tokens: ids whose rows are dropped.
        max_norm_multiple: rows longer than so many times their pass's median at any site are dropped; 0: none.
        dtype: of rows: bfloat16, float32 or float64.
        memory_budget: bytes of one pass's activations.
        contexts_per_pass: 0: as many as make a pass of 2,048 tokens and fit the budget.

        path: the folder, made if it is not there.
        rows: to write; 0: to the end of the text.
        commit_rows: after so many rows what is written is safe.
        resume: goes on with a broken-off run of the same models, tokens, sites and options.
        notes: JSON that is kept.
        progress: called with (what, done, total).

    Raises:
        IoError: activations are there already (others, with ``resume``), or the disk is full.
        As ActivationStream.of_model.
    """

def write_atomically(path: os.PathLike | str | bytes, bytes: bytes) -> None:
    """
    Write a file, whole or not at all.

    Args:
        path: replaced if it exists, only once everything is on the disk. It keeps its permissions; of a symbolic link, the
            file that it leads to is replaced and the link stays.
        bytes: what the file is to hold.

    Raises:
        IoError: the file cannot be written, on a full disk for example.
    """

__version__: str = "0.1.0"
built_with_torch: str = "2.13.0"
default_coherence_factor: float = 8.0
default_layers: tuple = (0.33, 0.66)
default_nulls: int = 10
default_strength: float = 0.1
kept_mass: float = 0.5
least_mass: float = 0.1
setting_fields: tuple = (
    "concept",
    "strength",
    "first_layer",
    "last_layer",
    "question",
    "question_kind",
    "kind",
    "null_index",
    "asked_in",
    "paraphrase",
    "place",
    "part_first",
    "part_last",
    "group",
)
