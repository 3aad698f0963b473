"""What the heads of a model do: scores of all of them, names for them, a table and a map."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .. import _C
from ..arguments import native_model
from .prompts import Prompts, tokens_of

if TYPE_CHECKING:
    import pandas

    from ..plots.style import Figure

ATTENTION = ("induction", "duplicate_token", "previous_token", "diagonal")  # that a head is named after
TYPES = ("anti_induction", *ATTENTION, "first_token", "uniform", "mixed")
SHOWN = ("previous_token", "duplicate_token", "induction", "first_token", "diagonal", "entropy")
WRITTEN = ("induction_logit", "ov_copying_head", "ov_copying", "name_mover", "copy_suppression", "ov_diagonal")
UNIFORM = 0.9  # of the largest entropy
LOWERS = -0.1  # nats: from which on a head that attends as induction heads do is one of anti-induction


@dataclass(frozen=True, eq=False)
class HeadTable:
    """Scores of every head, and a name for each; ``classify_heads`` says what they mean.

    Attributes:
        scores: name -> float64 [n_layers, n_heads]; NaN where no position of the texts counts.
        types: of every head, [n_layers][n_heads].
        n_positions: name -> positions that the scores of attention are means over.
        model_name: of the model.
        threshold: from which attention on a head was named.
    """

    scores: dict[str, torch.Tensor]
    types: list[list[str]]
    n_positions: dict[str, int]
    model_name: str
    threshold: float

    def heads(self, type: str) -> list[tuple[int, int]]:
        """(layer, head) of the heads of a type, the strongest first."""
        if type not in TYPES:
            raise ValueError(f"HeadTable.heads: a type is one of {', '.join(TYPES)}, got {type!r}")
        found = [(i, h) for i, row in enumerate(self.types) for h, name in enumerate(row) if name == type]
        score = self.scores[_score_of(type)]
        return sorted(found, key=lambda at: -float(score[at]))

    def largest(self, score: str, n: int = 5, *, smallest: bool = False) -> list[tuple[tuple[int, int], float]]:
        """((layer, head), score) of the n heads with the largest score, or the smallest."""
        values = self.scores[score]
        order = (
            values.flatten().nan_to_num(float("inf") if smallest else -float("inf")).argsort(descending=not smallest)
        )
        places = [divmod(int(i), values.shape[1]) for i in order[:n]]
        return [(at, float(values[at])) for at in places]

    def counts(self) -> dict[str, int]:
        """type -> number of heads."""
        return dict(Counter(name for row in self.types for name in row))

    def to_dict(self) -> dict[tuple[int, int], dict[str, Any]]:
        """{(layer, head): {"type": name, "scores": {score: number}}}."""
        return {
            (layer, head): {"type": name, "scores": {s: float(v[layer, head]) for s, v in self.scores.items()}}
            for layer, row in enumerate(self.types)
            for head, name in enumerate(row)
        }

    def to_pandas(self) -> pandas.DataFrame:
        """One row a head: layer, head, type, and a column for each score."""
        import pandas

        rows = [
            {"layer": layer, "head": head, "type": of["type"], **of["scores"]}
            for (layer, head), of in self.to_dict().items()
        ]
        return pandas.DataFrame(rows)

    def plot(self, scores: Sequence[str] | None = None, *, title: str | None = None) -> Figure:
        """A map of heads by layers for each score, on one scale; None: attention and entropy.

        Raises:
            ValueError: a score that the table does not have.
        """
        from ..plots import head_maps

        names = [name for name in SHOWN if name in self.scores] if scores is None else list(scores)
        for name in names:
            if name not in self.scores:
                raise ValueError(f"HeadTable.plot: a score is one of {', '.join(self.scores)}, got {name!r}")
        maps = {name: self.scores[name].tolist() for name in names}
        return head_maps(maps, label="score", title=f"heads of {self.model_name}" if title is None else title)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n} {name}" for name, n in sorted(self.counts().items(), key=lambda item: -item[1]))
        return f"HeadTable({self.model_name!r}, {len(self.types)} x {len(self.types[0])} heads: {counts})"


def repeated_tokens(model: Any, *, n_tokens: int = 50, n_sequences: int = 4, seed: int = 0) -> torch.Tensor:
    """Random tokens, each sequence of them twice: int64 [n_sequences, 2 n_tokens], one more with BOS in front.

    No token stands twice in the first half, and special ones nowhere. BOS is there where the tokenizer has one.

    Raises:
        ValueError: fewer than two tokens, more than the vocabulary or the context holds, or no sequence.
    """
    native = native_model(model, "repeated_tokens")
    tokenizer = native.tokenizer if native.has_tokenizer else None
    bos = None if tokenizer is None else tokenizer.bos_token_id
    first = [] if bos is None else [bos]
    n_vocab = native.cfg.d_vocab if tokenizer is None else min(native.cfg.d_vocab, tokenizer.vocab_size)
    most = min(n_vocab, (native.cfg.n_ctx - len(first)) // 2)
    if not 2 <= n_tokens <= most or n_sequences < 1:
        raise ValueError(
            f"repeated_tokens: n_tokens must be 2 to {most} and n_sequences at least 1, got {n_tokens} and "
            f"{n_sequences}"
        )
    rng = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n_sequences):
        ids = torch.randperm(n_vocab, generator=rng).tolist()
        plain = (one for one in ids if one != bos and (tokenizer is None or not tokenizer.is_special(one)))
        half = [one for one, _ in zip(plain, range(n_tokens), strict=False)]
        rows.append([*first, *half, *half])
    return torch.tensor(rows)


def classify_heads(
    model: Any,
    texts: Prompts | None = None,
    *,
    n_tokens: int = 50,
    n_sequences: int = 4,
    seed: int = 0,
    patterns: Mapping[str, torch.Tensor] | None = None,
    copying: bool = True,
    top_k: int = 5,
    threshold: float = 0.4,
    progress: Callable[[str, int, int], None] | bool | None = None,
) -> HeadTable:
    """Scores of every head from one pass over texts and from the weights, and a name for each.

    Attention, as means over the positions that count (A is a head's attention, i a position):
        previous_token, first_token, diagonal: A[i, i-1], A[i, 0], A[i, i] for i > 0.
        duplicate_token: attention to earlier occurrences of the current token, where there are any.
        induction: attention to what followed them.
        entropy: of A[i] for i > 0, divided by that of uniform attention.
    What the head writes:
        induction_logit: what it adds to the logit of the token that followed the last occurrence, less the mean over
            the vocabulary, in nats, with the final norm's scale held fixed.
        ov_copying_head, ov_copying: Re(sum of eigenvalues) / sum of moduli of W_V W_O, and of the full circuit
            W_E W_V W_O W_U. 1 copies, -1 suppresses.
        name_mover, copy_suppression: share of the texts' first 100 tokens that are among the ``top_k`` of what the head
            writes when it attends to them alone, and of its negative.
        ov_diagonal: logit of the token less the mean over the vocabulary, there.

    A head's type is the largest of induction, duplicate_token, previous_token and diagonal where that reaches
    ``threshold`` (anti_induction where a head attends as induction heads do and lowers the logit by 0.1 nats or more),
    then first_token where that does, "uniform" from an entropy of 0.9 on, and otherwise "mixed". Names are a screening:
    they say what a head attends to in these texts.

    Args:
        model: a ``Model`` or ``HookedTransformer``.
        texts: texts or token ids. None: random tokens, each sequence twice (``repeated_tokens``), on which
            ``induction`` is the usual prefix-matching score.
        n_tokens, n_sequences, seed: of the random ones.
        patterns: further patterns of attention, name -> lower triangular [pos, pos], for texts of that many tokens:
            their score is the sum of A[i, j] D[i, j], over rows in which D is not zero.
        copying: False leaves out what is read from the weights, which takes most of the time.
        progress: called with (what, done, total); None draws a bar on a terminal, False draws nothing.

    Raises:
        ValueError: numbers out of range, or a pattern with numbers above the diagonal.
        ShapeError: a text of one token or of more than n_ctx, a pattern of another size.
        ConfigError: something is hooked into the model.
        Error: attention that is not finite.
    """
    who = "classify_heads"
    native = native_model(model, who)
    if not 0 < threshold <= 1 or top_k < 1:
        raise ValueError(f"{who}: threshold must be in (0, 1] and top_k at least 1, got {threshold} and {top_k}")
    if clash := set(patterns or {}) & {*TYPES, *SHOWN, *WRITTEN}:
        raise ValueError(f"{who}: a pattern needs a name of its own, got {sorted(clash)}")
    if texts is None:
        batches = [repeated_tokens(model, n_tokens=n_tokens, n_sequences=n_sequences, seed=seed)]
    else:
        batches = _by_length(tokens_of(model, texts, who, "texts"))
    names, values, n_positions = _C.head_scores(native, batches, patterns=dict(patterns or {}), progress=progress)
    scores = dict(zip(names, values, strict=True))
    types = [[_type(scores, (i, h), threshold) for h in range(values.shape[2])] for i in range(values.shape[1])]
    if copying:
        eigenvalues = (_C.ov_copying_scores(native, circuit) for circuit in ("head", "full"))
        copied = _C.copy_scores(native, batches, top_k=top_k, progress=progress)
        scores |= dict(zip(WRITTEN[1:], (*eigenvalues, *copied), strict=True))
    return HeadTable(scores, types, dict(zip(names, n_positions, strict=True)), model_name(model), threshold)


def classify_attention_heads(model: Any, texts: Prompts | None = None, **options: Any) -> dict[tuple[int, int], dict]:
    """{(layer, head): {"type": name, "scores": {score: number}}} of ``classify_heads``, whose arguments these are."""
    return classify_heads(model, texts, **options).to_dict()


def model_name(model: Any) -> str:
    """What a model is called in tables and titles."""
    return str(getattr(model, "name", "") or model.cfg.model_name)


def _by_length(rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Texts of equal length as one batch [batch, pos] each."""
    lengths: dict[int, list[Sequence[int]]] = {}
    for row in rows:
        lengths.setdefault(len(row), []).append(row)
    return [torch.tensor(same) for same in lengths.values()]


def _score_of(type: str) -> str:
    return {"anti_induction": "induction", "uniform": "entropy", "mixed": "entropy"}.get(type, type)


def _type(scores: Mapping[str, torch.Tensor], at: tuple[int, int], threshold: float) -> str:
    found = {name: float(scores[name][at]) for name in ATTENTION}
    name = max(found, key=lambda one: found[one] if found[one] == found[one] else -1.0)
    if found[name] >= threshold:
        return "anti_induction" if name == "induction" and float(scores["induction_logit"][at]) < LOWERS else name
    if float(scores["first_token"][at]) >= threshold:
        return "first_token"
    return "uniform" if float(scores["entropy"][at]) >= UNIFORM else "mixed"
