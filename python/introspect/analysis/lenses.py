"""Lenses: what the residual stream says of the next token at every layer; tuned and Jacobian lenses, patchscope."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from .._C import Lens
from ..arguments import all_or_some, native_model
from .metrics import Token, single_token
from .prompts import Prompts, tokens_of

if TYPE_CHECKING:
    import pandas

    from ..plots.style import Figure

Progress = Callable[[str, int, int], None] | bool | None
MEASURES = (
    *("entropy", "cross_entropy", "rank", "max_probability", "forward_kl", "reverse_kl", "js", "symmetric_kl"),
    "total_variation",
)


@dataclass(frozen=True, eq=False)
class LensTable:
    """What a lens reads of one text: n streams at P positions.

    Attributes:
        streams: "embed", "0", "1", ... and with incl_mid "1_mid"; block numbers, whose output is read.
        layers: the same as numbers; -1 is the embedding.
        positions, tokens: which were read, and the text's tokens there.
        top_tokens: [n][P][k], the most probable first; top_log_probs: float32 [n, P, k].
        log_probs, ranks: of each of the targets, [n, P]; rank 1 is the most probable.
        measures: name -> float64 [n, P] in nats, of ``trajectory``.
        lens: its kind.
    """

    streams: list[str]
    layers: list[int]
    positions: list[int]
    tokens: list[str]
    top_tokens: list[list[list[str]]]
    top_log_probs: torch.Tensor
    log_probs: dict[str, torch.Tensor]
    ranks: dict[str, torch.Tensor]
    measures: dict[str, torch.Tensor]
    lens: str

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each stream and position, with columns top_1, p_1, ..., of each target, and of each measure."""
        import pandas

        probs = self.top_log_probs.exp().tolist()
        rows = []
        for i, stream in enumerate(self.streams):
            for p, position in enumerate(self.positions):
                row: dict[str, Any] = {"stream": stream, "layer": self.layers[i]}
                row |= {"position": position, "token": self.tokens[p]}
                for k, (token, probability) in enumerate(zip(self.top_tokens[i][p], probs[i][p], strict=True)):
                    row |= {f"top_{k + 1}": token, f"p_{k + 1}": probability}
                for name in self.log_probs:
                    row[f"log_prob of {name!r}"] = float(self.log_probs[name][i, p])
                    row[f"rank of {name!r}"] = int(self.ranks[name][i, p])
                rows.append(row | {name: float(values[i, p]) for name, values in self.measures.items()})
        return pandas.DataFrame(rows)

    def plot(self, what: str | None = None) -> Figure:
        """A map of streams and positions.

        Args:
            what: "probability" of the most probable token, which stands in each cell; a target, whose log-probability
                is drawn; or a measure. None: the first of these that there is.

        Raises:
            ValueError: something else, or what was not read.
        """
        from ..plots.lens import lens_map

        known = (["probability"] if self.top_log_probs.shape[-1] else []) + [*self.log_probs, *self.measures]
        what = what or next(iter(known), "")
        if what not in known:
            read = ", ".join(known) or "nothing: top_k was 0, and there were no targets"
            raise ValueError(f"LensTable.plot: what must be among what was read ({read}), got {what!r}")
        texts = [[cell[0] if cell else "" for cell in row] for row in self.top_tokens]
        if what == "probability":
            values, label = self.top_log_probs[..., 0].exp(), "probability of the most probable token"
        elif what in self.log_probs:
            values, label = self.log_probs[what], f"log-probability of {what!r} (nats)"
        else:
            values, label = self.measures[what], what.replace("_", " ")
        return lens_map(
            values.tolist(), texts, streams=self.streams, tokens=self.tokens, label=label, title=f"{self.lens} lens"
        )


def _tokenizer(model: Any) -> Any:
    native = getattr(model, "native", model)
    return native.tokenizer if native.has_tokenizer else None


def _shown(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    return [tokenizer.decode([id]) if tokenizer else str(id) for id in ids]


def _read(
    model: Any, text: Prompts, who: str, *, lens: Lens | None, targets: Sequence[Token], **options: Any
) -> LensTable:
    rows = tokens_of(model, text, who, "the text")
    if len(rows) != 1:
        raise ValueError(f"{who}: one text is read at a time, got {len(rows)}")
    tokens = torch.tensor(rows)
    native = getattr(model, "native", model)
    lens = lens if lens is not None else Lens.logit(native)
    ids = [single_token(model, target, who) for target in targets]
    names = [target if isinstance(target, str) else str(target) for target in targets]
    if len(set(names)) < len(set(zip(names, ids, strict=True))):
        raise ValueError(f"{who}: the text and the number of two tokens among the targets are written alike: {names}")
    hooks: Any = model._hooks_of_pass(tokens) if hasattr(model, "_hooks_of_pass") else None
    read = _C.read_lens(native, lens, tokens, targets=ids, hooks=hooks, **options)
    tokenizer = _tokenizer(model)
    return LensTable(
        streams=read.labels,
        layers=read.layers,
        positions=read.positions,
        tokens=_shown(tokenizer, read.tokens),
        top_tokens=[[_shown(tokenizer, cell) for cell in row] for row in read.top_ids.tolist()],
        top_log_probs=read.top_log_probs,
        log_probs={name: read.target_log_probs[..., i] for i, name in enumerate(names)},
        ranks={name: read.target_ranks[..., i] for i, name in enumerate(names)},
        measures={name: read.measures[name] for name in MEASURES} if read.measures else {},
        lens=lens.kind,
    )


def logit_lens(
    model: Any,
    text_or_tokens: Prompts,
    top_k: int = 5,
    *,
    lens: Lens | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    incl_mid: bool = False,
    targets: Sequence[Token] = (),
    memory_budget: int = 256 << 20,
    progress: Progress = None,
) -> LensTable:
    """The next token that the stream names at every layer, in one forward pass that keeps only what is read.

    Logits are float32, through the model's own final norm, whose statistics are those of each layer, unembedding and
    soft cap. Hooks and steering that are in effect count.

    Args:
        text_or_tokens: one text, ids, or a tensor [1, pos].
        lens: ``TunedLens.load(path)``, say; the logit lens if not given.
        layers: block numbers, whose output is read; -1 is the stream before the first block. All, if not given.
        positions: negative ones count from the end; all, if not given.
        incl_mid: of the logit lens: also between attention and MLP.
        targets: tokens, or texts of one token, whose log-probability and rank (1 is first) are read everywhere.
        memory_budget: bytes of logits at a time.

    Raises:
        ValueError: more than one text, a target that is not one token, or top_k beyond the vocabulary.
        IndexError: layers or positions that are not there.
        ConfigError: a lens of another model.
    """
    return _read(
        model,
        text_or_tokens,
        "logit_lens",
        lens=lens,
        targets=targets,
        top_k=top_k,
        layers=all_or_some(layers, "layers", "logit_lens"),
        positions=all_or_some(positions, "positions", "logit_lens"),
        incl_mid=incl_mid,
        memory_budget=memory_budget,
        progress=progress,
    )


def trajectory(
    model: Any,
    text_or_tokens: Prompts,
    *,
    lens: Lens | None = None,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    targets: Sequence[Token] = (),
    top_k: int = 1,
    memory_budget: int = 256 << 20,
    progress: Progress = None,
) -> LensTable:
    """How a prediction comes about layer by layer: the measures of each layer's prediction q against the model's p.

    entropy, cross_entropy and rank (from 1) of the text's next token (NaN after its last), max_probability, forward_kl
    = KL(p || q), reverse_kl, js (Jensen and Shannon's, through the mean of p and q), symmetric_kl (half the sum of both
    KL, which the tuned-lens package calls js_divergence) and total_variation (half the sum of |p - q|), in nats. The
    model's own row has KL 0.

    Args and errors: those of ``logit_lens``.
    """
    return _read(
        model,
        text_or_tokens,
        "trajectory",
        lens=lens,
        targets=targets,
        top_k=top_k,
        layers=all_or_some(layers, "layers", "trajectory"),
        positions=all_or_some(positions, "positions", "trajectory"),
        measures=True,
        memory_budget=memory_budget,
        progress=progress,
    )


class TunedLens:
    """Makers and readers of tuned lenses (Belrose et al. 2023, arXiv:2303.08112); what they give is a ``Lens``."""

    @staticmethod
    def train(
        model: Any,
        texts: Prompts,
        *,
        steps: int = 250,
        tokens_per_step: int = 512,
        context: int = 128,
        optimizer: str = "sgd",
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-3,
        clip: float = 1.0,
        bias: bool = True,
        seed: int = 0,
        start: Lens | None = None,
        memory_budget: int = 512 << 20,
        progress: Progress = None,
        on_step: Callable[[int, torch.Tensor], None] | None = None,
    ) -> Lens:
        """Train an affine translator of every layer on texts: least mean KL(model || lens) of their tokens.

        The defaults are the paper's, but for tokens_per_step (2^18 there) and context (2048). One forward pass a text
        gives the residuals of all layers; an unembedding forward and back for each token and layer is what it costs.

        Args:
            texts: texts or token ids; those longer than ``context`` tokens are cut into pieces.
            tokens_per_step: at least; whole pieces are taken, in random order.
            optimizer: "sgd" with Nesterov momentum, or "adam" with amsgrad, whose learning rate is lr / 1000.
            lr: of the first step; it falls linearly to 0.
            clip: the largest norm of the gradient of all layers together.
            start: a lens to go on from, such as ``TunedLens.regression``'s.
            on_step: called with (step, mean KL of its tokens at each layer [n_layers], embedding first).

        Raises:
            ValueError: no texts, empty ones, or options out of range.
            ConfigError: ``start`` is of another model, or the model is hooked or steered.
        """
        return _C.train_tuned_lens(
            native_model(model, "TunedLens.train"),
            tokens_of(model, texts, "TunedLens.train", "texts"),
            steps=steps,
            tokens_per_step=tokens_per_step,
            context=context,
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            clip=clip,
            bias=bias,
            seed=seed,
            start=start,
            memory_budget=memory_budget,
            progress=progress,
            on_step=on_step,  # type: ignore[arg-type]  # None is none
        )

    @staticmethod
    def regression(
        model: Any,
        texts: Prompts,
        *,
        ridge: float = 0.01,
        context: int = 128,
        bias: bool = True,
        progress: Progress = None,
    ) -> Lens:
        """The affine map from each layer's residual to the last one by least squares: one pass, and a start for train.

        Args:
            ridge: draws towards the logit lens; in units of the mean square of a residual's entries.
        """
        rows = tokens_of(model, texts, "TunedLens.regression", "texts")
        native = native_model(model, "TunedLens.regression")
        return _C.regression_lens(native, rows, ridge=ridge, context=context, bias=bias, progress=progress)

    @staticmethod
    def load(path: str | os.PathLike) -> Lens:
        """Read a folder of the tuned-lens package (params.pt, config.json), or a .safetensors file of ``Lens.save``."""
        return _of_kind(Lens.load(path), "tuned", path)


class JacobianLens:
    """Makers and readers of Jacobian lenses (Gurnee et al. 2026); what they give is a ``Lens``."""

    @staticmethod
    def compute(
        model: Any,
        prompts: Prompts,
        *,
        layers: Sequence[int] | None = None,
        skip_first: int = 16,
        context: int = 128,
        directions: int = 8,
        progress: Progress = None,
    ) -> Lens:
        """The mean Jacobian [d_model, d_model] of the last residual by each layer's, over prompts and positions.

        A prompt of T tokens costs about 2 d_model forward passes of it, in d_model / directions backward passes.

        Args:
            layers: 0 to n_layers - 2; all of these if not given.
            skip_first: positions that are left out, as is the last one.
            directions: worked out side by side.

        Raises:
            ValueError: no prompts, or one that leaves no position.
            IndexError: layers that are not there.
        """
        return _C.jacobian_lens(
            native_model(model, "JacobianLens.compute"),
            tokens_of(model, prompts, "JacobianLens.compute", "prompts"),
            layers=all_or_some(layers, "layers", "JacobianLens.compute"),
            skip_first=skip_first,
            context=context,
            directions=directions,
            progress=progress,
        )

    @staticmethod
    def load(path: str | os.PathLike) -> Lens:
        """Read a published .pt (neuronpedia/jacobian-lens), or a file of ``Lens.save``."""
        return _of_kind(Lens.load(path), "jacobian", path)


def _of_kind(lens: Lens, kind: str, path: str | os.PathLike) -> Lens:
    if lens.kind != kind:
        raise _C.ConfigError(f"{os.fspath(path)} must hold a {kind} lens, got a {lens.kind} one")
    return lens


TARGET = "king king\n1135 1135\nhello hello\n?"


@dataclass(frozen=True, eq=False)
class Patchscope:
    """What the model says after a target text into which the residual of a source was put.

    Attributes:
        layers: whose output was taken; positions, tokens: of the source.
        log_probs: float32 [layers, positions, d_vocab].
    """

    layers: list[int]
    positions: list[int]
    tokens: list[str]
    log_probs: torch.Tensor
    tokenizer: Any

    def top_tokens(self, k: int = 5) -> list[list[list[str]]]:
        """The k most probable next tokens, [layers][positions][k]."""
        ids = self.log_probs.topk(k).indices.tolist()
        return [[_shown(self.tokenizer, cell) for cell in row] for row in ids]

    def to_pandas(self, k: int = 5) -> pandas.DataFrame:
        """One row for each layer and position: layer, position, token, top_1, p_1, ..."""
        import pandas

        top, probs = self.top_tokens(k), self.log_probs.topk(k).values.exp().tolist()
        rows = []
        for i, layer in enumerate(self.layers):
            for p, position in enumerate(self.positions):
                row: dict[str, Any] = {"layer": layer, "position": position, "token": self.tokens[p]}
                for n in range(k):
                    row |= {f"top_{n + 1}": top[i][p][n], f"p_{n + 1}": probs[i][p][n]}
                rows.append(row)
        return pandas.DataFrame(rows)


def patchscope(
    model: Any,
    source: Prompts,
    target: Prompts = TARGET,
    *,
    layers: Sequence[int] | None = None,
    source_positions: Sequence[int] = (-1,),
    target_position: int = -1,
    target_layer: int | None = None,
    read_position: int = -1,
    memory_budget: int = 512 << 20,
    progress: Progress = None,
) -> Patchscope:
    """Put the residual of a source text into a target text and read what comes next, for all layers and positions.

    All of it is one graph: what the targets have in common runs once, and no layer below the one that is replaced.

    Args:
        target: the default asks the model to repeat a word, and so names what the residual is of.
        layers: whose output is taken from the source; all, if not given.
        source_positions, target_position, read_position: negative ones count from the end.
        target_layer: whose output is replaced; the layer it is taken from, if not given.

    Raises:
        IndexError: layers or positions that are not there.
        ConfigError: the model is hooked or steered.

    Source: Ghandeharioun et al. 2024, arXiv:2401.06102.
    """
    native = native_model(model, "patchscope")
    sources, targets = (
        tokens_of(model, source, "patchscope", "source"),
        tokens_of(model, target, "patchscope", "target"),
    )
    if len(sources) != 1 or len(targets) != 1:
        raise ValueError(f"patchscope: one source and one target are needed, got {len(sources)} and {len(targets)}")
    source_ids, target_ids = sources[0], targets[0]
    chosen = all_or_some(layers, "layers", "patchscope") or list(range(native.cfg.n_layers))
    log_probs = _C.patchscope(
        native,
        source_ids,
        target_ids,
        layers=chosen,
        source_positions=list(source_positions),
        target_position=target_position,
        target_layer=target_layer,
        read_position=read_position,
        memory_budget=memory_budget,
        progress=progress,
    )
    positions = [p + len(source_ids) if p < 0 else p for p in source_positions]
    tokenizer = _tokenizer(model)
    return Patchscope(chosen, positions, _shown(tokenizer, [source_ids[p] for p in positions]), log_probs, tokenizer)
