"""The engine under the names of TransformerLens 2 and 3, for notebooks that lost ``HookedTransformer`` in version 4."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from .. import _C
from ..hooked_model import HookedModel
from ..hub import pretrained
from ..hub.tokenizer_adapter import TokenizerAdapter
from ..model import Model
from . import generation, passes, settings, submodules, text, training_texts, weights
from . import saes as dictionaries
from .helpers import get_device
from .lens_model import LensModel, Side
from .new_model import new_native
from .transformer_config import HookedTransformerConfig, LoadedConfig
from .weights import applicable, stacked, whole


class HookedTransformer(LensModel):
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
        cfg: _C.Model | HookedModel | HookedTransformerConfig | Mapping[str, Any],
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
        native: Any = cfg
        given = None
        if isinstance(cfg, HookedModel):
            native, name = cfg.native, name or cfg.name
        elif isinstance(cfg, HookedTransformerConfig | Mapping):
            given = HookedTransformerConfig.unwrap(cfg)
            if tokenizer is None and given.tokenizer_name is not None and not isinstance(given, LoadedConfig):
                tokenizer = pretrained.tokenizer(given.tokenizer_name, n_ctx=given.n_ctx)
            native = new_native(given, tokenizer, torch.device(given.device if move_to_device else "cpu"))
            name = name or given.model_name
            layer_norm_folding = (given.normalization_type or "").endswith("Pre")
            if default_prepend_bos is None:
                default_prepend_bos = given.default_prepend_bos
        elif not isinstance(cfg, _C.Model):
            raise TypeError(
                f"HookedTransformer: a config or a model is required, got {type(cfg).__name__}; "
                "HookedTransformer.from_pretrained loads a model by its name or path"
            )
        name = name or native.cfg.model_name
        if tokenizer is None and native.has_tokenizer:
            tokenizer = TokenizerAdapter(native.tokenizer, name_or_path=name, n_ctx=native.cfg.n_ctx)
        fields = LoadedConfig(
            native,
            tokenizer_name=name,
            default_prepend_bos=default_prepend_bos,
            layer_norm_folding=layer_norm_folding,
            given=given,
        )
        super().__init__(native, fields, name=name, tokenizer=tokenizer, default_padding_side=default_padding_side)
        if given is not None:
            self._let_train()

    def _let_train(self) -> None:
        """New weights require gradients, but for those of norms that TransformerLens has none for."""
        fixed = ("ln1.", "ln2.", "ln1_post.", "ln2_post.", "ln_final.") if self.cfg.layer_norm_folding else ()
        for name, tensor in self.named_parameters():
            tensor.requires_grad_(not any(norm in name for norm in fixed))

    def init_weights(self) -> None:
        """Draws the weights again, as a new model of this ``cfg`` does."""
        self._use(new_native(self.cfg, self.tokenizer, self.device))

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
        native = pretrained.load_native(model_name, hf_model=hf_model, dtype=wanted, device=where)
        processing = applicable(
            native,
            fold_ln=fold_ln,
            center_writing_weights=center_writing_weights,
            center_unembed=center_unembed,
            fold_value_biases=fold_value_biases,
            refactor_factored_attn_matrices=refactor_factored_attn_matrices,
        )
        if any(processing.values()):
            native = native.processed(**processing)
        return cls(
            native,
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

    # Passes

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As ``forward``."""
        return self.forward(*args, **options)

    forward = passes.forward
    loss_fn = passes.loss_fn
    run_with_hooks = passes.run_with_hooks
    run_with_cache = passes.run_with_cache
    get_caching_hooks = passes.get_caching_hooks
    add_caching_hooks = passes.add_caching_hooks
    input_to_embed = passes.input_to_embed
    generate = generation.generate
    generate_stream = generation.generate_stream

    # Dictionaries, under SAELens's names

    add_sae = dictionaries.add_sae
    reset_saes = dictionaries.reset_saes
    saes = dictionaries.saes
    acts_to_saes = property(dictionaries.acts_to_saes)
    run_with_saes = dictionaries.run_with_saes
    run_with_cache_with_saes = dictionaries.run_with_cache_with_saes
    run_with_hooks_with_saes = dictionaries.run_with_hooks_with_saes
    _inner_points = dictionaries.inner_points

    # Text

    to_tokens = text.to_tokens
    to_string = text.to_string
    to_str_tokens = text.to_str_tokens
    to_single_token = text.to_single_token
    to_single_str_token = text.to_single_str_token
    get_token_position = text.get_token_position
    load_sample_training_dataset = training_texts.load_sample_training_dataset
    sample_datapoint = training_texts.sample_datapoint

    # Weights: those of one layer are in ``blocks``, stacks of all layers are copies

    W_E = whole("embed.W_E", "[d_vocab, d_model]; with Gemma's scale, so that rows are what hook_embed sees.")
    W_U = whole("unembed.W_U", "[d_model, d_vocab].")
    b_U = whole("unembed.b_U", "[d_vocab].")
    W_Q = stacked("attn.W_Q", "[n_layers, n_heads, d_model, d_head].")
    W_K = stacked("attn.W_K", "[n_layers, n_heads, d_model, d_head].")
    W_V = stacked("attn.W_V", "[n_layers, n_heads, d_model, d_head].")
    W_O = stacked("attn.W_O", "[n_layers, n_heads, d_head, d_model].")
    b_Q = stacked("attn.b_Q", "[n_layers, n_heads, d_head].")
    b_K = stacked("attn.b_K", "[n_layers, n_heads, d_head].")
    b_V = stacked("attn.b_V", "[n_layers, n_heads, d_head].")
    b_O = stacked("attn.b_O", "[n_layers, d_model].")
    W_in = stacked("mlp.W_in", "[n_layers, d_model, d_mlp].")
    W_out = stacked("mlp.W_out", "[n_layers, d_mlp, d_model].")
    b_in = stacked("mlp.b_in", "[n_layers, d_mlp].")
    b_out = stacked("mlp.b_out", "[n_layers, d_model].")
    W_gate = property(weights.W_gate)
    W_pos = property(weights.W_pos)
    W_E_pos = property(weights.W_E_pos)
    QK = property(weights.QK)
    OV = property(weights.OV)
    n_params_total = property(weights.n_params_total)
    state_dict = weights.state_dict
    load_state_dict = weights.load_state_dict
    load_and_process_state_dict = weights.load_and_process_state_dict
    process_weights_ = weights.process_weights_
    fold_layer_norm = weights.fold_layer_norm
    center_writing_weights = weights.center_writing_weights
    center_unembed = weights.center_unembed
    fold_value_biases = weights.fold_value_biases
    refactor_factored_attn_matrices = weights.refactor_factored_attn_matrices
    named_parameters = weights.named_parameters
    parameters = weights.parameters
    requires_grad_ = weights.requires_grad_
    zero_grad = weights.zero_grad
    tokens_to_residual_directions = weights.tokens_to_residual_directions
    accumulated_bias = weights.accumulated_bias
    all_composition_scores = weights.all_composition_scores
    all_head_labels = weights.all_head_labels

    # The parts that stand once in a model, its blocks, and all of them by name

    blocks = property(submodules.blocks)
    embed = property(submodules.embed)
    pos_embed = property(submodules.pos_embed)
    ln_final = property(submodules.ln_final)
    unembed = property(submodules.unembed)
    mod_dict = property(submodules.mod_dict)
    named_modules = submodules.named_modules
    modules = submodules.modules
    named_children = submodules.named_children
    children = submodules.children

    # What it can be told about itself

    set_use_attn_result = settings.set_use_attn_result
    set_use_split_qkv_input = settings.set_use_split_qkv_input
    set_use_attn_in = settings.set_use_attn_in
    set_use_hook_mlp_in = settings.set_use_hook_mlp_in
    set_ungroup_grouped_query_attention = settings.set_ungroup_grouped_query_attention
    eval = settings.eval
    train = settings.train
    to = settings.to
    cpu = settings.cpu
    cuda = settings.cuda


Model.other_face = HookedTransformer
