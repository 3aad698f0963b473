"""The engine under the names of TransformerLens 2 and 3, for notebooks that lost ``HookedTransformer`` in version 4."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch

from .. import _C
from ..hooks.activation_cache import ActivationCache
from ..hooks.manager import Hooks, caching_hooks
from ..hooks.points import NamesFilter
from ..hooks.slices import Slice, SliceInput
from ..hub import pretrained
from ..hub.tokenizer_adapter import TokenizerFace
from ..model import Model
from ..utils import get_device, lm_cross_entropy_loss
from .data_methods import DataMethods
from .generation import GenerationMethods
from .key_value_cache import HookedTransformerKeyValueCache
from .new_model import new_engine
from .settings import Settings
from .submodules import Parts
from .token_methods import Side, TokenMethods
from .transformer_config import HookedTransformerConfig, LoadedConfig
from .weight_methods import WeightMethods, applicable


class Output(NamedTuple):
    """What ``return_type="both"`` gives."""

    logits: torch.Tensor
    loss: torch.Tensor


class HookedTransformer(TokenMethods, WeightMethods, DataMethods, GenerationMethods, Settings, Parts, Model):  # type: ignore[misc]
    """A model with TransformerLens's methods, hook names, shapes and defaults.

    Use it for notebooks and programs written for TransformerLens, and for ``blocks``, ``W_U`` and other weights by
    name; ``load_model`` gives the plain Model, which takes chat messages and returns new text only.

    What is other than in TransformerLens 2: weights are the checkpoint's own unless processing is asked for; a hook
    name that does not exist is an error, wherever it stands; padding never has an influence, on either side; points
    that need a flag there can be hooked by name without it; cached keys are those after RoPE; logits are float32
    whatever the model's dtype; cached tensors never change.
    """

    def __init__(
        self,
        cfg: _C.Model | Model | HookedTransformerConfig | Mapping[str, Any],
        tokenizer: Any = None,
        move_to_device: bool = True,
        default_padding_side: Side | None = None,
        *,
        name: str | None = None,
        default_prepend_bos: bool | None = None,
        layer_norm_folding: bool = False,
    ) -> None:
        """A model of random weights from a config, or this face of a model that is loaded already.

        Random weights are TransformerLens's for the same seed, and require gradients, so that
        ``torch.optim.Adam(model.parameters())`` trains them. Every layer has all biases; that of a gated MLP's input is
        added before the product with the gate, in TransformerLens after it.

        Args:
            cfg: a HookedTransformerConfig or a dict of its fields (or the ``cfg`` of a model, for another of its
                shape); or a native or an introspect.Model.
            tokenizer: a transformers tokenizer, or anything with its methods; None is the one that
                ``cfg.tokenizer_name`` names, or the model's own.
            move_to_device: False leaves new weights on the CPU, whatever ``cfg.device`` says.
            default_padding_side: None is the tokenizer's, else "right".
            name: what the model is called.
            default_prepend_bos: None is the config's, and for a loaded model as for ``from_pretrained``.
            layer_norm_folding: of a native model: norms' weights are folded.

        Raises:
            ConfigError: a field that asks for what the engine does not run, named; d_vocab missing without a tokenizer.
        """
        engine: Any = cfg
        given = None
        if isinstance(cfg, Model):
            engine, name = cfg.engine, name or cfg.name
        elif isinstance(cfg, HookedTransformerConfig | Mapping):
            given = HookedTransformerConfig.unwrap(cfg)
            if tokenizer is None and given.tokenizer_name is not None and not isinstance(given, LoadedConfig):
                tokenizer = pretrained.tokenizer(given.tokenizer_name, n_ctx=given.n_ctx)
            engine = new_engine(given, tokenizer, torch.device(given.device if move_to_device else "cpu"))
            name = name or given.model_name
            layer_norm_folding = (given.normalization_type or "").endswith("Pre")
            if default_prepend_bos is None:
                default_prepend_bos = given.default_prepend_bos
        elif not isinstance(cfg, _C.Model):
            raise TypeError(
                f"HookedTransformer: a config or a model is required, got {type(cfg).__name__}; "
                "HookedTransformer.from_pretrained loads a model by its name or path"
            )
        Model.__init__(self, engine, name=name)
        self._cfg = LoadedConfig(
            engine,
            tokenizer_name=self.name,
            default_prepend_bos=default_prepend_bos,
            layer_norm_folding=layer_norm_folding,
            given=given,
        )
        self.dataset: Any = None
        self._tokenizer_in_use: Any = None
        if tokenizer is None and engine.has_tokenizer:
            tokenizer = TokenizerFace(engine.tokenizer, name_or_path=self.name, n_ctx=engine.cfg.n_ctx)
        self.set_tokenizer(tokenizer, default_padding_side)
        if given is not None:
            self._let_train()

    def _let_train(self) -> None:
        """New weights require gradients, but for those of norms that TransformerLens has none for."""
        fixed = ("ln1.", "ln2.", "ln1_post.", "ln2_post.", "ln_final.") if self.cfg.layer_norm_folding else ()
        for name, tensor in self.named_parameters():
            tensor.requires_grad_(not any(norm in name for norm in fixed))

    def init_weights(self) -> None:
        """Draws the weights again, as a new model of this ``cfg`` does."""
        self._use(new_engine(self.cfg, self.tokenizer, self.device))

    # Loading

    @classmethod
    def from_pretrained(
        cls,
        model_name: str | os.PathLike,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        checkpoint_label: str | None = None,
        hf_model: Any = None,
        device: torch.device | str | None = None,
        n_devices: int = 1,
        tokenizer: Any = None,
        move_to_device: bool = True,
        fold_value_biases: bool = False,
        default_prepend_bos: bool | None = None,
        default_padding_side: Side | None = None,
        dtype: torch.dtype | str = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        **hf_kwargs: Any,
    ) -> HookedTransformer:
        """Loads a model.

        The four changes of weights that TransformerLens makes unless told not to are off here unless asked for:
        activations, and what is trained on them, are then the checkpoint's own and fit those of other libraries. They
        leave probabilities as they are.

        Args:
            model_name: a short name ("gpt2-small", "pythia-70m", "gemma-2-2b", or one of ``introspect pull --list``),
                a hub id, a Hugging Face folder or a .gguf file.
            fold_ln: the weights of norms go into the products after them.
            center_writing_weights: what is written to the residual stream has no mean. Without LayerNorm it is left
                out, as in TransformerLens, with a warning.
            center_unembed: the logits of a position have no mean. Where logits are capped it is left out likewise.
            refactor_factored_attn_matrices: QK and OV are factored by their singular values.
            hf_model: a transformers model with the weights to use; ``model_name`` is then its name, and where its
                tokenizer is if that is a folder.
            device: None is CUDA where there is one, else the CPU.
            tokenizer: a transformers tokenizer to use instead of the checkpoint's.
            move_to_device: False leaves the weights on the CPU.
            fold_value_biases: biases of values go into b_O.
            default_prepend_bos: whether text gets a BOS token unless a call says otherwise. None is True but for
                GPT-NeoX, Qwen2, Qwen3 and Phi.
            default_padding_side: None is the tokenizer's, else "right".
            dtype: of weights and activations, or its name.

        Raises:
            ConfigError: a name, architecture or option that is not supported: checkpoints in the middle of training
                and n_devices, first_n_layers, n_ctx or options of transformers other than the defaults.
            IoError: a file is missing or damaged, or no source could be reached.
        """
        given: dict[str, Any] = {
            "checkpoint_index": checkpoint_index,
            "checkpoint_value": checkpoint_value,
            "checkpoint_label": checkpoint_label,
            "first_n_layers": first_n_layers,
            "n_ctx": n_ctx,
            "n_devices": None if n_devices == 1 else n_devices,
            **hf_kwargs,
        }
        if refused := [name for name, value in given.items() if value is not None]:
            raise _C.ConfigError(f"from_pretrained: not supported here: {', '.join(refused)}")
        where = torch.device(device) if device is not None else get_device() if move_to_device else torch.device("cpu")
        wanted = pretrained.checked_dtype(dtype, "from_pretrained")
        engine = pretrained.load_engine(model_name, hf_model=hf_model, dtype=wanted, device=where)
        processing = applicable(
            engine,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        if any(processing.values()):
            engine = engine.processed(**processing)
        return cls(
            engine,
            name=os.fspath(model_name),
            tokenizer=tokenizer,
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
            layer_norm_folding=fold_ln,
        )

    @classmethod
    def from_pretrained_no_processing(
        cls,
        model_name: str | os.PathLike,
        fold_ln: bool = False,
        center_writing_weights: bool = False,
        center_unembed: bool = False,
        refactor_factored_attn_matrices: bool = False,
        fold_value_biases: bool = False,
        **options: Any,
    ) -> HookedTransformer:
        """As ``from_pretrained``, whose defaults are the same here."""
        return cls.from_pretrained(
            model_name,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
            fold_value_biases=fold_value_biases,
            **options,
        )

    # What it is made of

    @property
    def cfg(self) -> LoadedConfig:  # type: ignore[override]
        """Sizes and options, under TransformerLens's names."""
        return self._cfg

    def _hook_flags(self) -> dict[str, bool]:
        return self.cfg.hook_flags()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with the methods of a transformers one, or None."""
        return self._tokenizer_in_use

    def set_tokenizer(self, tokenizer: Any, default_padding_side: Side | None = None) -> None:
        """Uses another tokenizer: a transformers one, or anything with its ``encode``, ``decode`` and special ids."""
        if default_padding_side not in (None, "left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right', got {default_padding_side!r}")
        if tokenizer is not None and (default_padding_side or getattr(tokenizer, "padding_side", None) is None):
            tokenizer.padding_side = default_padding_side or "right"
        self._tokenizer_in_use = tokenizer

    # Forward passes

    def __call__(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        """As ``forward``."""
        return self.forward(*args, **options)

    def forward(
        self,
        input: str | Sequence[str] | torch.Tensor,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Side | None = None,
        start_at_layer: int | None = None,
        tokens: torch.Tensor | None = None,
        shortformer_pos_embed: None = None,
        attention_mask: torch.Tensor | None = None,
        stop_at_layer: int | None = None,
        past_kv_cache: HookedTransformerKeyValueCache | None = None,
    ) -> Any:
        """One forward pass.

        Args:
            input: text, a list of texts (padded where they differ in length), tokens [batch, pos] or [pos], or, with
                ``start_at_layer``, the residual before that block [batch, pos, d_model].
            return_type: "logits" (float32 [batch, pos, d_vocab]), "loss" (cross-entropy of the next token), "both" (a
                pair), or None to run the blocks only.
            loss_per_token: [batch, pos - 1] instead of the mean.
            prepend_bos: to text; None is ``cfg.default_prepend_bos``.
            padding_side: None is the tokenizer's.
            start_at_layer: the first block that is run; negative ones count from the end.
            tokens: what the loss is of, with ``start_at_layer``.
            shortformer_pos_embed: None: no such model is supported.
            attention_mask: [batch, pos], 0 for padding at either side; with a cache, of the new positions. If None it
                follows from the texts, or from pad tokens at the ends of rows: those that are at the left, with that
                padding side; and where the tokenizer has a pad token of its own, those that some rows have more of.
                Padding counts for neither logits nor loss. (TransformerLens masks left padding only, and averages the
                loss over padding at the right.)
            stop_at_layer: the first block that is not run; the residual before it is returned.
            past_kv_cache: goes before the input, and is appended to unless frozen.

        Raises:
            ShapeError: wrong shapes, or more than n_ctx positions.
            IndexError: tokens or layers out of range.
            ConfigError: text, and the model has no tokenizer.
        """
        if return_type not in ("logits", "loss", "both", None):
            raise ValueError(f"forward: return_type must be 'logits', 'loss', 'both' or None, got {return_type!r}")
        if shortformer_pos_embed is not None:
            raise _C.ConfigError("forward: shortformer_pos_embed is not supported")
        if start_at_layer is None:
            input, mask = self._tokens_of(input, prepend_bos, padding_side)
            tokens = input
            attention_mask = mask if attention_mask is None else attention_mask
        elif not isinstance(input, torch.Tensor):
            raise TypeError(f"forward: start_at_layer takes a residual, got {type(input).__name__}")
        if attention_mask is not None:
            attention_mask = attention_mask.to(torch.bool)[..., -input.shape[1] :]  # new positions of a whole mask
        with_loss = stop_at_layer is None and return_type in ("loss", "both")
        if with_loss and tokens is None:
            raise ValueError("forward: tokens must be given for a loss with start_at_layer")
        cache: Any = None if past_kv_cache is None else past_kv_cache.for_pass()
        out: Any = self.engine.forward(
            input,
            hooks=self._hooks_of_pass(input, attention_mask, cache),
            cache=cache,
            attention_mask=attention_mask,
            logits_at="none" if return_type is None else "all",
            start_at_layer=self._layer(start_at_layer, "start_at_layer"),
            stop_at_layer=self._layer(stop_at_layer, "stop_at_layer"),
        )
        if not with_loss or tokens is None:
            return out
        loss = self.loss_fn(out, tokens, attention_mask, per_token=loss_per_token)
        return loss if return_type == "loss" else Output(out, loss)

    def _tokens_of(
        self,
        input: str | Sequence[str] | torch.Tensor,
        prepend_bos: bool | None,
        padding_side: Side | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens [batch, pos] and their mask, None where all are real."""
        side = self._side(padding_side)
        if not isinstance(input, torch.Tensor):
            return self._pad(self._rows(input, prepend_bos, True, "forward"), side)
        tokens = input[None] if input.ndim == 1 else input
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise _C.ShapeError(
                f"forward: tokens must be int64 [batch, pos], got {tokens.dtype} {list(tokens.shape)}; a residual goes "
                "with start_at_layer"
            )
        return tokens.long(), self._mask_of(tokens, side)

    def _layer(self, layer: int | None, who: str) -> int | None:
        n_layers = self.engine.cfg.n_layers
        if layer is None:
            return None
        if not -n_layers <= layer <= n_layers:
            raise IndexError(f"forward: {who} must be {-n_layers} to {n_layers}, got {layer}")
        return layer + n_layers if layer < 0 else layer

    def loss_fn(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        per_token: bool = False,
    ) -> torch.Tensor:
        """Cross-entropy of the next token: ``utils.lm_cross_entropy_loss``."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    def run_with_hooks(  # type: ignore[override]
        self,
        *model_args: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> Any:
        """A forward pass with hooks that go when it ends.

        Args:
            model_args: those of ``forward``, as ``model_kwargs`` are.
            fwd_hooks: (name, hook) pairs; a name may be a list of names or a predicate on them.
            bwd_hooks: the same for gradients: they act on the backward pass of this output, whenever it is run (in
                TransformerLens only with ``reset_hooks_end=False``).
            reset_hooks_end: remove these hooks after the pass.
            clear_contexts: empty the ``ctx`` of every hook point after it.

        Raises:
            HookError: a name that does not exist (the nearest are listed), or a replacement of another shape or dtype.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(*model_args, **model_kwargs)

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
        pos_slice: Slice | SliceInput = None,
    ) -> tuple[dict[str, torch.Tensor], list, list]:
        """(dict, fwd_hooks, bwd_hooks) of hooks that will fill the dict, to be added by the caller.

        Arguments and errors are those of ``run_with_cache``, which records without Python.
        """
        cache = {} if cache is None else cache
        forward, backward = caching_hooks(
            self._select(names_filter, "get_caching_hooks"),
            cache,
            incl_bwd=incl_bwd,
            device=device,
            remove_batch_dim=remove_batch_dim,
            pos_slice=Slice.unwrap(pos_slice),
        )
        return cache, forward, backward

    def add_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        """The dict of ``get_caching_hooks``, filled by every pass until hooks are reset."""
        cache, forward, backward = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, hook in forward:
            self.add_hook(name, hook)
        for name, hook in backward:
            self.add_hook(name, hook, "bwd")
        return cache

    def run_with_cache(  # type: ignore[override]
        self,
        *model_args: Any,
        return_cache_object: bool = True,
        remove_batch_dim: bool = False,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Slice | SliceInput = None,
        dtype: torch.dtype | None = None,
        heads: Sequence[int] | None = None,
        **model_kwargs: Any,
    ) -> tuple[Any, Any]:
        """The output of a forward pass and an ActivationCache.

        Args:
            model_args: those of ``forward``, as ``model_kwargs`` are.
            return_cache_object: False gives a dict.
            remove_batch_dim: drop the first dimension of what is cached, for a batch of one.
            names_filter: a name, a list of names, a predicate on names, or None for every point.
            device: where activations are kept; the model stays where it is.
            incl_bwd: call ``backward`` on the output, which must be a scalar (``return_type="loss"``), and cache the
                gradients under the hook names with ``_grad`` after them.
            reset_hooks_end: False goes on recording in later passes.
            clear_contexts: empty the ``ctx`` of every hook point afterwards.
            pos_slice: which positions are kept, as ``utils.Slice`` takes them; an int keeps its dimension.
            dtype: in which activations are kept.
            heads: which heads are kept; only points that have heads may then be asked for.

        Raises:
            HookError: a name that does not exist (the nearest are listed), or a predicate that is true of none.
            ShapeError: remove_batch_dim for a batch of more than one.
            ValueError: incl_bwd, and the output is not a scalar.
        """
        recording = self._recording(
            names_filter,
            incl_bwd=incl_bwd,
            device=device,
            dtype=dtype,
            pos_slice=pos_slice,
            heads=heads,
            reset_hooks_end=reset_hooks_end,
            clear_contexts=clear_contexts,
        )
        with recording as recorded:
            if incl_bwd:
                with torch.enable_grad():
                    out = self.forward(*model_args, **model_kwargs)
                    if not isinstance(out, torch.Tensor) or out.numel() != 1:
                        raise ValueError("run_with_cache: incl_bwd needs a scalar output: return_type='loss'")
                    out.backward()
            else:
                out = self.forward(*model_args, **model_kwargs)
        cache = ActivationCache(recorded.to_dict(), self)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        return out, cache if return_cache_object else cache.cache_dict
