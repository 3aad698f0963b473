"""The model as a notebook uses it: tokens, logits, caches of activations, generation and steering."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from . import _C, hub
from .arguments import Messages, as_rows, as_texts, checked_source, is_messages
from .chat import given_chat_template, load_chat_template
from .generation import Decoding, generate
from .hooked_model import HookedModel
from .hooks.activation_cache import ActivationCache
from .hooks.manager import Hooks
from .hooks.points import NamesFilter
from .hooks.slices import Slice, SliceInput
from .hub import pretrained
from .placement import DeviceMap, as_device, place
from .transformer_lens import left_out

DEFAULT_MODEL = "qwen2.5-coder-0.5b-instruct"


def load_model(
    source: str | os.PathLike | torch.nn.Module = DEFAULT_MODEL,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    keep_blocks: bool | None = None,
    weights: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    tokenizer: Any = None,
    chat_template: str | os.PathLike | _C.ChatTemplate | None = None,
    revision: str | None = None,
    n_ctx: int | None = None,
) -> Model:
    """Load a model from a short name, a Hugging Face folder, a .gguf file, a hub id, or a transformers model in memory.

    Use it for chats, steering and experiments; ``HookedTransformer.from_pretrained`` gives the same engine under
    TransformerLens's names, with ``blocks``, ``W_U`` and other weights by name.

    Args:
        source: a short name (``introspect pull --list``) or hub id is fetched first if it is not on disk. The weights
            of a transformers model are copied.
        dtype: of weights and activations: float32, bfloat16, float16 or float64, or its name.
        device: where the weights live. None: on the CPU, or on the first device of ``device_map``.
        device_map: where blocks live instead, with their keys and values, and are computed: a list of devices shares
            them evenly, in order; "auto" fills one accelerator after another to nine tenths of its free memory, and
            leaves the rest on the CPU; {12: "cuda:1"} moves single blocks. Blocks that stay in their files and are
            computed on an accelerator: ``device`` and ``keep_blocks=False``. Not for a transformers model.
        keep_blocks: False leaves the blocks in the files: each is read when it runs and dropped after it. Slower, and
            of this model only the embeddings and one block take memory: for the second model of an experiment, or one
            that is larger than memory. Weights of blocks cannot be got by name then, nor edited. The files must stay as
            they are meanwhile: a block of a file that was changed is an IoError. None: where all is on the CPU and the
            model would take more than 85 % of the memory that is free: of the host's, and of what a container or a job
            (its control groups) may still take.
        weights: how quantised matrices of a .gguf file are held. "dense": as numbers in ``dtype``. "as stored": in
            their blocks, whose values are unpacked while they are multiplied, so that a model takes no more memory than
            its file. Results are those of the dense model but for rounding; such weights cannot be trained (a LoRA
            adapter on top can), and live on the CPU. None: "as stored" where dense weights would take 8 GiB or more and
            all is on the CPU, otherwise "dense".
        progress: called with (what, done, total).
        tokenizer: of a transformers model: transformers' tokenizer for it, or a folder or file that holds it.
        chat_template: instead of the one in the model's files, or for files that have none: the text of a Jinja
            template, a file that holds one, a folder or .gguf file that has one, the name of a native format
            (``ChatTemplate.names()``), or "plain": the turns as plain text, for base models.
        revision: of a hub id: the branch, tag or commit to fetch, such as a stage of training; "owner/name@revision"
            is the same. Each is kept in a folder of its own, and the model's name, which results hold, ends in it.
        n_ctx: the longest text, in tokens, instead of what the files say. Needed for texts beyond the length that a
            model was trained on before rope scaling "longrope" (Phi-4) or "dynamic": there the frequencies depend on
            the text's length, and are here those of a text of n_ctx tokens for every text.

    Raises:
        IoError: a file is missing or damaged, or no source could be reached.
        ConfigError: an architecture, quantisation or option that is not supported.
    """
    wanted = pretrained.checked_dtype(dtype, "load_model")
    if isinstance(source, torch.nn.Module):
        if revision is not None:
            raise _C.ConfigError("load_model: revision= goes with a hub id; a transformers model is what it is")
        if device_map:
            raise _C.ConfigError(
                "load_model: device_map= goes with files; a transformers model is copied to one device"
            )
        if weights == "as stored":
            raise _C.ConfigError("load_model: weights='as stored' goes with .gguf files; this model's are dense")
        where = as_device("cpu" if device is None else device, "load_model: device=")
        native = pretrained.copy_native(
            source,
            dtype=wanted,
            device=where,
            tokenizer=tokenizer,
            chat_template=chat_template,
            n_ctx=n_ctx,
            who="load_model",
        )
        return Model(native, name=getattr(source, "name_or_path", "") or type(source).__name__)
    if tokenizer is not None:
        raise _C.ConfigError("load_model: tokenizer= goes with a transformers model; files bring their own")
    path = hub.resolve(checked_source(source, "load_model"), revision=revision)
    where, blocks = place(device_map, device, path, wanted)
    native = _C.Model.load(
        path,
        dtype=wanted,
        device=where,
        block_devices={layer: there for layer, there in blocks.items()},
        chat_template=load_chat_template(path) if chat_template is None else given_chat_template(chat_template, path),
        n_ctx=n_ctx,
        keep_blocks=keep_blocks,
        weights=weights,
        progress=progress,
    )
    name = os.fspath(source)
    return Model(native, name=f"{name}@{revision}" if revision and "@" not in name else name)


class Model(HookedModel):
    """A hooked decoder: the native model and what is at the moment hooked into it.

    ``HookedTransformer`` is the same engine under TransformerLens's names (``blocks``, ``W_U``, ``to_str_tokens``);
    ``HookedTransformer(model)`` makes one of this.

    ``native`` is the native model, which never changes; hooks and steering belong to this object. Several threads may
    use it: what ``add_hook`` adds is in effect in all of them until it is removed, a ``with`` block in its own thread.
    """

    other_face: ClassVar[type[HookedModel] | None] = None  # HookedTransformer says so when it is loaded

    def _missing(self, name: str) -> str:
        if hasattr(self.other_face, name) or name in left_out.MODEL:
            return (
                f"Model has no attribute {name!r}: introspect.HookedTransformer(model) is this model under "
                "TransformerLens's names"
            )
        known = [other for other in dir(Model) if not other.startswith("_")]
        return left_out.missing("Model", name, left_out.MODEL, known)

    def with_adapter(self, adapter: _C.Adapter, *, scale: float = 1.0) -> Model:
        """A Model with a LoRA adapter and without this one's hooks; arguments and errors are those of ``adapted``."""
        return Model(self.native.with_adapter(adapter, scale=scale), name=f"{self.name}, adapted")

    @property
    def cfg(self) -> _C.Config:
        """Sizes and options, under TransformerLens's names."""
        return self.native.cfg

    @property
    def tokenizer(self) -> _C.Tokenizer | None:
        """The model's tokenizer, or None if its files held none."""
        return self.native.tokenizer if self.native.has_tokenizer else None

    # Text

    def _prompt(self, messages: Messages) -> str:
        return self.apply_chat_template(messages, add_generation_prompt=True)

    def to_tokens(self, text: str | Sequence[str] | Messages | Sequence[Messages]) -> torch.Tensor:
        """Token ids, int64 [batch, pos], with BOS in front where the tokenizer adds one and the text has none.

        Messages [{"role": ..., "content": ...}] are written by the chat template, the generation prompt after them.

        Raises:
            ShapeError: strings of unequal length; run them one by one, or let ``generate`` pad them.
            ConfigError: the model has no tokenizer, or no chat template for messages, or the text is not UTF-8.
        """
        rows = [self.native.to_tokens(t) for t in as_texts(text, self._prompt, "to_tokens")]
        lengths = {row.shape[1] for row in rows}
        if len(lengths) != 1:
            raise _C.ShapeError(f"to_tokens: the strings must have equally many tokens, got {sorted(lengths)}")
        return torch.cat(rows)

    def to_string(self, tokens: torch.Tensor | Sequence[int]) -> str:
        """The text of one row of token ids.

        Raises:
            IndexError: an id outside the vocabulary.
        """
        ids = tokens.flatten().tolist() if isinstance(tokens, torch.Tensor) else list(tokens)
        return self.native.tokenizer.decode(ids)

    # Forward passes

    def _tokens(self, tokens: torch.Tensor | str) -> torch.Tensor:
        return tokens if isinstance(tokens, torch.Tensor) else self.to_tokens(tokens)

    def __call__(
        self,
        tokens: torch.Tensor | str,
        *,
        attention_mask: torch.Tensor | None = None,
        cache: _C.KVCache | None = None,
        logits_at: str = "all",
        n_prompt: int | None = None,
        history: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Float32 logits [batch, pos, d_vocab] for int64 tokens [batch, pos], or for text.

        Logits that are not finite are returned as they are; ``native.check_finite`` makes an error of them that names
        the first block.

        Args:
            attention_mask: bool [batch, pos], False for padding, on either side.
            cache: a KVCache to continue and append to.
            logits_at: "all", "last" (float32 readout at each row's last real position) or "none".
            n_prompt: how many positions from the cache's start are the prompt, for ``steer``; without a cache all.
            history: int64 [batch, length of the cache], the tokens it holds, for ``steer``.

        Raises:
            IndexError: token ids out of range.
            ShapeError: wrong shapes, or more than n_ctx positions.
            HookError: something is steered by more of the text than is known.
        """
        return self._forward(
            self._tokens(tokens),
            attention_mask=attention_mask,
            cache=cache,
            logits_at=logits_at,
            n_prompt=n_prompt,
            history=history,
        )

    def run_with_hooks(
        self,
        tokens: torch.Tensor | str,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        *,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **options,
    ) -> torch.Tensor | None:
        """Logits of a pass in which ``hook(activation, hook=point)`` is called and may return a replacement.

        Args:
            fwd_hooks: (name, hook) pairs; a name may be a list of names or a predicate on them.
            bwd_hooks: the same for gradients: they act on the backward pass of these logits, whenever it is run.
            reset_hooks_end: remove these hooks after the pass.
            clear_contexts: empty the ``ctx`` of every hook point after it.
            options: those of a call of the model.

        Raises:
            HookError: a name that does not exist (the nearest are listed), or a replacement of another shape or dtype.
        """
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self._forward(self._tokens(tokens), **options)

    def run_with_cache(
        self,
        tokens: torch.Tensor | str,
        names_filter: NamesFilter = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        pos_slice: Slice | SliceInput = None,
        heads: Sequence[int] | None = None,
        remove_batch_dim: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **options,
    ) -> tuple[torch.Tensor | None, ActivationCache]:
        """Logits, and the activations at the hook points asked for.

        Args:
            names_filter: a name, a list of names, a predicate on names, or None for every point.
            device: where the activations are kept; the model stays where it is.
            dtype: in which they are kept.
            pos_slice: which positions are kept, as ``utils.Slice`` takes them; an int keeps its dimension.
            heads: which heads are kept; only points that have heads may then be asked for.
            remove_batch_dim: drop the first dimension, for a batch of one.
            reset_hooks_end: False goes on recording into the same cache.
            clear_contexts: empty the ``ctx`` of every hook point after the pass.
            options: those of a call of the model.

        Raises:
            HookError: a name that does not exist (the nearest are listed), or a predicate that is true of none.
            ShapeError: remove_batch_dim for a batch of more than one.
        """
        return self._recorded(
            lambda: self._forward(self._tokens(tokens), **options),
            names_filter,
            device=device,
            dtype=dtype,
            pos_slice=pos_slice,
            heads=heads,
            remove_batch_dim=remove_batch_dim,
            reset_hooks_end=reset_hooks_end,
            clear_contexts=clear_contexts,
        )

    # Generation

    def generate(
        self,
        prompt: str | Sequence[str] | Messages | Sequence[Messages] | torch.Tensor,
        *,
        max_new_tokens: int = 20,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_at_eos: bool = True,
        padding_side: str = "left",
        on_text: Callable[[int, str], None] | None = None,
    ) -> str | list[str]:
        """The model's continuation of a prompt (the new text only), or of each prompt of a list.

        Args:
            prompt: text, messages [{"role": ..., "content": ...}] (written by the chat template, the generation prompt
                after them), a list of either (run as one padded batch), or int64 tokens [batch, pos].
            temperature: 0 is greedy.
            top_k: sample among this many most probable tokens; 0 is all.
            top_p: sample among the smallest set of tokens with this probability.
            repetition_penalty: over prompt and continuation (Keskar et al. 2019, arXiv:1909.05858).
            seed: row r draws from its own stream, whatever its neighbours do.
            on_text: called with (row, text) as the text grows.

        Raises:
            ValueError: an empty prompt, or options out of range.
            ShapeError: prompt and continuation do not fit into n_ctx, or tokens of another shape or dtype.
            Error: the logits are not finite, before a token is chosen; it names the first block.
        """

        def to_ids(given: Any) -> list[list[int]]:
            texts = as_texts(given, self._prompt, "generate")
            return [self.native.to_tokens(text)[0].tolist() for text in texts]

        rows = as_rows(prompt, to_ids, "generate")
        streams = [_C.StreamDecoder(self.native.tokenizer) for _ in rows]

        def on_token(row: int, token: int) -> None:
            if on_text and (text := streams[row].push(token)):
                on_text(row, text)

        how = Decoding(
            max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            stop_at_eos=stop_at_eos,
            seed=seed,
            padding_side=padding_side,
        )
        new = generate(self, rows, how, on_token=on_token)
        for row, stream in enumerate(streams):
            if on_text and (rest := stream.finish()):
                on_text(row, rest)
        continuations = [self.native.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
        return continuations[0] if isinstance(prompt, str) or is_messages(prompt) else continuations
