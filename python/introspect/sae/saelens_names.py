"""Training by SAELens's names: its runner, the runner's config and those of dictionaries.

    cfg = LanguageModelSAERunnerConfig(
        sae=TopKTrainingSAEConfig(d_in=576, d_sae=4608, k=32),
        model_name="smollm2-135m-instruct", hook_name="blocks.15.hook_resid_post", dataset_path="corpus.jsonl",
    )
    sae = LanguageModelSAETrainingRunner(cfg).run()

Fields have SAELens's names and defaults. A field that does not exist is an error that names the nearest; one that has
no meaning here is an error that says why, where it is set to something else than its default.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from .. import _C
from .dictionary import SAE
from .streams import ActivationFile
from .training import Training, train_many

T = TypeVar("T")


def _named(cls: type[T]) -> type[T]:
    """A dataclass whose error for an unknown field names the nearest ones."""
    init: Callable[..., None] = cls.__init__
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **given: Any) -> None:
        for name in given:
            if name not in known:
                nearest = ", ".join(difflib.get_close_matches(name, known, 3, 0.4))
                hint = f"; the nearest are {nearest}" if nearest else ""
                raise _C.ConfigError(f"{cls.__name__} has no field {name!r}{hint}")
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[method-assign, assignment]
    return cls


@_named
@dataclass
class TrainingSAEConfig:
    """What all training configs have; see its subclasses."""

    d_in: int
    d_sae: int
    dtype: str = "float32"
    device: str = "cpu"
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    reshape_activations: str = "none"  # heads of a point stand one after another in any case
    decoder_init_norm: float | None = 0.1

    objective: ClassVar[str]

    def architecture(self) -> str:
        return self.objective

    def trainer_options(self) -> dict[str, Any]:
        """The same in Trainer's names."""
        if self.decoder_init_norm is None:
            raise _C.ConfigError(f"{type(self).__name__}: decoder_init_norm must be a length, got None")
        return {
            "objective": self.objective,
            "float64": self.dtype == "float64",
            "subtract_b_dec": self.apply_b_dec_to_input,
            "input_norm": self.normalize_activations,
            "decoder_norm": self.decoder_init_norm,
        }


@_named
@dataclass
class StandardTrainingSAEConfig(TrainingSAEConfig):
    objective = "standard"
    l1_coefficient: float = 1.0
    lp_norm: float = 1.0
    l1_warm_up_steps: int = 0

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "l1_coefficient": self.l1_coefficient,
            "lp": self.lp_norm,
            "sparsity_warm_up_steps": self.l1_warm_up_steps,
        }


@_named
@dataclass
class GatedTrainingSAEConfig(TrainingSAEConfig):
    objective = "gated"
    l1_coefficient: float = 1.0
    l1_warm_up_steps: int = 0

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "l1_coefficient": self.l1_coefficient,
            "sparsity_warm_up_steps": self.l1_warm_up_steps,
        }


@_named
@dataclass
class TopKTrainingSAEConfig(TrainingSAEConfig):
    objective = "topk"
    k: float = 100
    use_sparse_activations: bool = False  # features are sparse in any case
    aux_loss_coefficient: float = 1.0
    rescale_acts_by_decoder_norm: bool = True

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "k": self.k,
            "aux": "residual" if self.aux_loss_coefficient else "none",
            "aux_coefficient": self.aux_loss_coefficient,
            "rank_by_decoder_norm": self.rescale_acts_by_decoder_norm,
        }


@_named
@dataclass
class AbsTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    objective = "abstopk"


@_named
@dataclass
class BatchTopKTrainingSAEConfig(TopKTrainingSAEConfig):
    objective = "batchtopk"
    topk_threshold_lr: float = 0.01

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {"threshold_lr": self.topk_threshold_lr}


@_named
@dataclass
class MatryoshkaBatchTopKTrainingSAEConfig(BatchTopKTrainingSAEConfig):
    objective = "matryoshka_batchtopk"
    matryoshka_widths: list[int] = field(default_factory=list)
    use_matryoshka_aux_loss: bool = False

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "matryoshka_widths": self.matryoshka_widths,
            "matryoshka_aux": self.use_matryoshka_aux_loss,
        }


@_named
@dataclass
class JumpReLUTrainingSAEConfig(TrainingSAEConfig):
    objective = "jumprelu"
    jumprelu_init_threshold: float = 0.01
    jumprelu_bandwidth: float = 0.05
    jumprelu_sparsity_loss_mode: str = "step"
    l0_coefficient: float = 1.0
    l0_warm_up_steps: int = 0
    pre_act_loss_coefficient: float | None = None
    jumprelu_tanh_scale: float = 4.0
    jumprelu_ste_to_input: bool = False
    target_l0: float | None = None

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "init_threshold": self.jumprelu_init_threshold,
            "bandwidth": self.jumprelu_bandwidth,
            "sparsity_loss": self.jumprelu_sparsity_loss_mode,
            "l0_coefficient": self.l0_coefficient,
            "sparsity_warm_up_steps": self.l0_warm_up_steps,
            "pre_act_coefficient": self.pre_act_loss_coefficient or 0.0,
            "tanh_scale": self.jumprelu_tanh_scale,
            "ste_to_input": self.jumprelu_ste_to_input,
            "target_l0": self.target_l0 or 0.0,
        }


@_named
@dataclass
class MatchingPursuitTrainingSAEConfig(TrainingSAEConfig):
    objective = "matching_pursuit"
    residual_threshold: float = 1e-2
    max_iterations: int | None = None
    stop_on_duplicate_support: bool = True

    def trainer_options(self) -> dict[str, Any]:
        return super().trainer_options() | {
            "residual_threshold": self.residual_threshold,
            "k": self.d_in if self.max_iterations is None else self.max_iterations,
        }


@_named
@dataclass
class LoggingConfig:
    """SAELens's. Nothing is sent to W&B: records stand in ``runner.training``."""

    log_to_wandb: bool = False
    log_activations_store_to_wandb: bool = False
    log_optimizer_state_to_wandb: bool = False
    log_weights_to_wandb: bool = True
    wandb_project: str = "sae_lens_training"
    wandb_id: str | None = None
    run_name: str | None = None
    wandb_entity: str | None = None
    wandb_log_frequency: int = 10
    eval_every_n_wandb_logs: int = 100


_WITHOUT_MEANING = {
    "model_class_name": "models are introspect's own",
    "hook_head_index": "a dictionary reads all heads of a point, one after another",
    "use_chat_formatting": "give texts with the template applied (model.apply_chat_template)",
    "from_pretrained_path": "Trainer(start=...) begins from weights",
    "llm_device": "load the model there and give it as override_model",
    "act_store_device": "rows are mixed on the CPU",
    "prefetch_llm_batches": "the model and the training share the same threads",
    "autocast": "dtype of the sae is that of training",
    "autocast_lm": "load the model in bfloat16 and give it as override_model",
    "compile_llm": "nothing is compiled",
    "llm_compilation_mode": "nothing is compiled",
    "compile_sae": "nothing is compiled",
    "sae_compilation_mode": "nothing is compiled",
    "model_kwargs": "a pass has no further arguments",
    "eval_batch_size_prompts": "passes fit the memory budget",
    "n_restart_cycles": "the schedule does not restart",
}


@_named
@dataclass
class LanguageModelSAERunnerConfig:
    """SAELens's config of a training, field by field; see its documentation for what they mean.

    ``dataset_path`` is a .txt or .jsonl file (rows with "text", "tokens" or "input_ids"); other datasets are given to
    the runner as ``override_dataset``. A dictionary's device is the CPU; ``device`` is the model's.
    """

    sae: TrainingSAEConfig
    model_name: str = "gelu-2l"
    model_class_name: str = "HookedTransformer"
    hook_name: str = "blocks.0.hook_mlp_out"
    hook_eval: str = "NOT_IN_USE"
    hook_head_index: int | None = None
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True  # nothing is executed
    streaming: bool = True
    is_dataset_tokenized: bool = True  # seen from the rows, as in SAELens
    use_chat_formatting: bool = False
    context_size: int = 128
    use_cached_activations: bool = False
    cached_activations_path: str | None = None
    from_pretrained_path: str | None = None
    n_batches_in_buffer: int = 20
    training_tokens: int = 2_000_000
    store_batch_size_prompts: int = 32
    seqpos_slice: tuple[int | None, ...] = (None,)
    disable_concat_sequences: bool = False
    sequence_separator_token: int | str | None = "bos"
    activations_mixing_fraction: float = 0.5
    device: str = "cpu"
    llm_device: str | None = None
    act_store_device: str | None = None
    prefetch_llm_batches: bool | int = False
    seed: int = 42
    dtype: str = "float32"
    prepend_bos: bool = True
    autocast: bool = False
    autocast_lm: bool = False
    compile_llm: bool = False
    llm_compilation_mode: str | None = None
    compile_sae: bool = False
    sae_compilation_mode: str | None = None
    train_batch_size_tokens: int = 4096
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    lr: float = 3e-4
    lr_scheduler_name: str = "constant"
    lr_warm_up_steps: int = 0
    lr_end: float | None = None
    lr_decay_steps: int = 0
    n_restart_cycles: int = 1
    dead_feature_window: int = 1000
    feature_sampling_window: int = 2000
    dead_feature_threshold: float = 1e-8
    n_eval_batches: int = 10
    eval_batch_size_prompts: int | None = None
    logger: LoggingConfig = field(default_factory=LoggingConfig)
    n_checkpoints: int = 0
    checkpoint_path: str | None = "checkpoints"
    save_final_checkpoint: bool = False
    output_path: str | None = "output"
    resume_from_checkpoint: str | None = None
    verbose: bool = True
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    model_from_pretrained_kwargs: dict[str, Any] | None = None
    exclude_special_tokens: bool | list[int] = False
    n_batches_for_norm_estimate: int = 1000

    def __post_init__(self) -> None:
        defaults: dict[str, Any] = {f.name: f.default if f.default_factory is not dict else {} for f in fields(self)}
        for name, why in _WITHOUT_MEANING.items():
            if getattr(self, name) != defaults[name]:
                raise _C.ConfigError(f"LanguageModelSAERunnerConfig: {name} has no meaning here: {why}")
        if self.lr_scheduler_name not in ("constant", "cosineannealing"):
            raise _C.ConfigError(
                f"lr_scheduler_name must be constant or cosineannealing, got {self.lr_scheduler_name!r}"
            )
        asked = self.model_from_pretrained_kwargs or {}
        if any(asked.values()):
            raise _C.ConfigError(
                f"model_from_pretrained_kwargs: process the model yourself and give it as override_model, got {asked}"
            )

    def trainer_options(self) -> dict[str, Any]:
        """Of the dictionary, in Trainer's names."""
        steps = self.training_tokens // self.train_batch_size_tokens
        return self.sae.trainer_options() | {
            "lr": self.lr,
            "beta1": self.adam_beta1,
            "beta2": self.adam_beta2,
            "schedule": self.lr_scheduler_name,
            "lr_end": self.lr_end or 0.0,
            "warm_up_steps": self.lr_warm_up_steps,
            "decay_steps": self.lr_decay_steps,
            "dead_window": self.dead_feature_window,
            "total_steps": steps,
            "seed": self.seed,
            "b_dec_start": "zero",
        }


class LanguageModelSAETrainingRunner:
    """Trains what a config says: ``run()`` returns the dictionary, writes ``cfg.output_path`` and fills ``training``.

    Args:
        cfg: LanguageModelSAERunnerConfig.
        override_dataset: texts in any form that ``streams.token_stream`` takes, instead of ``cfg.dataset_path``.
        override_model: an introspect.Model instead of ``cfg.model_name``.
    """

    training: Training

    def __init__(
        self, cfg: LanguageModelSAERunnerConfig, override_dataset: Any = None, override_model: Any = None
    ) -> None:
        self.cfg = cfg
        self.dataset = self._dataset() if override_dataset is None else override_dataset
        self.model = override_model
        if override_model is None and not cfg.use_cached_activations:
            import introspect

            self.model = introspect.load_model(cfg.model_name, device=cfg.device)

    def _dataset(self) -> Any:
        cfg = self.cfg
        if cfg.use_cached_activations:
            if cfg.cached_activations_path is None:
                raise _C.ConfigError("use_cached_activations needs cached_activations_path, an ActivationFile's folder")
            return ActivationFile.open(Path(cfg.cached_activations_path))
        path = Path(cfg.dataset_path)
        if not cfg.dataset_path or not path.is_file():
            raise _C.ConfigError(
                f"dataset_path must be a .txt or .jsonl file, got {cfg.dataset_path!r}; any other dataset is given "
                "as override_dataset"
            )
        return path

    def run(self) -> SAE:
        cfg = self.cfg
        steps = cfg.training_tokens // cfg.train_batch_size_tokens
        keeps = cfg.n_checkpoints > 0 or cfg.save_final_checkpoint or cfg.resume_from_checkpoint
        folder = (cfg.resume_from_checkpoint or cfg.checkpoint_path) if keeps else None
        self.training = train_many(
            self.model,
            self.dataset,
            [
                {"hook": cfg.hook_name, "d_sae": cfg.sae.d_sae, "architecture": cfg.sae.objective, "defaults": False}
                | cfg.trainer_options()
            ],
            training_tokens=cfg.training_tokens,
            train_batch_size_tokens=cfg.train_batch_size_tokens,
            context_size=cfg.context_size,
            prepend_bos=cfg.prepend_bos,
            sequence_separator_token=cfg.sequence_separator_token,
            disable_concat_sequences=cfg.disable_concat_sequences,
            is_dataset_tokenized=_is_tokenized(self.dataset),
            exclude_special_tokens=cfg.exclude_special_tokens,
            max_norm_multiple=None,
            seqpos_slice=cfg.seqpos_slice,
            # SAELens refuses a buffer of less than a batch, which its own defaults make.
            buffer_tokens=max(cfg.n_batches_in_buffer * cfg.context_size, cfg.train_batch_size_tokens),
            activations_mixing_fraction=cfg.activations_mixing_fraction,
            dtype=cfg.dtype,
            seed=cfg.seed,
            record_every=cfg.logger.wandb_log_frequency,
            checkpoint_path=folder,
            checkpoint_every=max(1, steps // cfg.n_checkpoints) if cfg.n_checkpoints else max(1, steps),
            resume=cfg.resume_from_checkpoint is not None,
            progress=None if cfg.verbose else False,
        )
        sae = self.training.dictionaries[0]
        if sae.d_in != cfg.sae.d_in:
            raise _C.ShapeError(f"{cfg.hook_name} is {sae.d_in} wide, and sae.d_in is {cfg.sae.d_in}")
        if cfg.output_path is not None:
            sae.save(Path(cfg.output_path))
        return sae


SAETrainingRunner = LanguageModelSAETrainingRunner  # before version 6


def _is_tokenized(dataset: Any) -> bool:
    """Whether a dataset's rows are token ids in columns, as SAELens looks for them."""
    if isinstance(dataset, Path):
        with dataset.open(encoding="utf-8", errors="replace") as lines:
            first = next(iter(lines), "").lstrip()
        return first.startswith("{") and ('"tokens"' in first or '"input_ids"' in first)
    if isinstance(dataset, list | tuple) and dataset and isinstance(dataset[0], Mapping):
        return "tokens" in dataset[0] or "input_ids" in dataset[0]
    columns = getattr(dataset, "column_names", None) or ()
    return "tokens" in columns or "input_ids" in columns
