"""Random experiment graphs for hypothesis: trees of segments with interventions, splices and foreign models, as data.

A drawn graph is a list of nodes, each after those it names. reference_experiments.py says what a graph must give,
`interventions` how a change reads in the library's words. Sized for the models of tiny.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from hypothesis import strategies as st

import introspect

POINTS = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z")
MORE_POINTS = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_resid_mid", "mlp.hook_post")
PATTERN_POINTS = ("attn.hook_attn_scores", "attn.hook_pattern")  # [batch, head, query, key]: changed, read as attention
OPERATIONS = ("add", "ablate", "project_out", "replace", "interpolate", "scale", "zero", "mean", "mean of x")
MAX_TOKENS = 6  # of a segment


@dataclass(frozen=True)
class Sizes:
    """What a strategy has to know of a model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    points: tuple[str, ...] = POINTS  # that changes are drawn from

    @classmethod
    def of(cls, model: introspect.Model, points: tuple[str, ...] = POINTS) -> "Sizes":
        """With those of the points that the model has."""
        names = [name for name in cls.__dataclass_fields__ if name != "points"]
        there = tuple(point for point in points if f"blocks.0.{point}" in model.hook_names)
        return cls(*(getattr(model.cfg, name) for name in names), there)

    @property
    def read_points(self) -> tuple[str, ...]:
        """Those of the points that are read as activations."""
        return tuple(point for point in self.points if point not in PATTERN_POINTS)

    def width(self, point: str) -> int:
        if point.startswith("attn."):
            return self.d_head
        return self.d_mlp if point == "mlp.hook_post" else self.d_model

    def heads(self, point: str) -> int | None:
        """Number of heads, or of groups of keys and values, at points that have them."""
        if point in ("attn.hook_k", "attn.hook_v"):
            return self.n_key_value_heads
        return self.n_heads if point.startswith("attn.") else None


@dataclass(frozen=True)
class Change:
    """An intervention on some tokens of a segment: positions count from its first one; None is all of them."""

    op: str
    point: str
    layers: tuple[int, ...]
    strength: float
    seed: int  # of the operands, one a layer
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None  # of points that have them
    shape: tuple[
        int, ...
    ] = ()  # of an operand before its width: (2,) directions, or (1, tokens) of a stored activation

    def operand(self, layer: int, sizes: Sizes) -> torch.Tensor | None:
        """[..., W], float64; None for operators without one."""
        if self.op in ("scale", "zero", "mean of x"):
            return None
        rng = torch.Generator().manual_seed(1000 * self.seed + layer)
        return torch.randn(*self.shape, sizes.width(self.point), generator=rng, dtype=torch.float64)


@dataclass(frozen=True)
class Segment:
    """Tokens after those of `parent` (None: the first), run by one of the models under changes."""

    tokens: tuple[int, ...]
    parent: int | None = None
    model: int = 0
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Splice:
    """`target` with the keys and values of positions [first, last) from `source`, whose tokens there are the same."""

    target: int
    first: int
    last: int
    source: int


@dataclass(frozen=True)
class Read:
    """What is kept of a node: "activation" at a point, "attention" to some keys, or "cache"."""

    node: int
    what: str
    point: str = "hook_resid_post"
    positions: tuple[int, ...] = (-1,)  # of the segment; negative ones count from its end
    layers: tuple[int, ...] = ()  # none: all
    heads: tuple[int, ...] = ()
    keys: tuple[int, int] | None = None  # positions of the sequence


@dataclass(frozen=True)
class Graph:
    nodes: tuple[Segment | Splice, ...]
    reads: tuple[Read, ...] = ()

    def tokens(self, node: int | None) -> tuple[int, ...]:
        """Of the sequence down to the end of a node."""
        if node is None:
            return ()
        which = self.nodes[node]
        if isinstance(which, Splice):
            return self.tokens(which.target)
        return self.tokens(which.parent) + which.tokens

    def length(self, node: int | None) -> int:
        return len(self.tokens(node))


def interventions(segment: Segment, sizes: Sizes) -> list[introspect.Intervention]:
    """The changes of a segment as the library takes them: positions count from its first token."""
    return [
        introspect.Intervention(
            {layer: change.operand(layer, sizes) for layer in change.layers},
            op="mean" if change.op == "mean of x" else change.op,
            point=change.point,
            strength=change.strength,
            positions=change.positions and list(change.positions),
            heads=change.heads and list(change.heads),
        )
        for change in segment.changes
    ]


def build(graph: Graph, models: list[introspect.Model]) -> tuple[introspect.Graph, list[int], list[int]]:
    """The graph of the library, its nodes for those of the drawn graph, and its readings for the drawn ones."""
    sizes, ours, nodes, reads = Sizes.of(models[0]), introspect.Graph(), [], []
    for which in graph.nodes:
        if isinstance(which, Splice):
            nodes.append(ours.splice(nodes[which.target], which.first, which.last, nodes[which.source]))
        else:
            parent = None if which.parent is None else nodes[which.parent]
            made = interventions(which, sizes)
            nodes.append(ours.segment(models[which.model], which.tokens, parent, made))
    for read in graph.reads:
        layers = list(read.layers) or None
        if read.what == "cache":
            reads.append(ours.read_cache(nodes[read.node]))
        elif read.what == "attention":
            heads = list(read.heads) or None
            reads.append(
                ours.read_attention(
                    nodes[read.node], positions=read.positions, layers=layers, heads=heads, keys=read.keys
                )
            )
        else:
            reads.append(ours.read(nodes[read.node], positions=read.positions, layers=layers, point=read.point))
    return ours, nodes, reads


@st.composite
def changes(draw, sizes: Sizes, n_tokens: int) -> Change:
    point = draw(st.sampled_from(sizes.points))
    # Scores of keys that are not seen are minus infinity: they stay so under positive factors.
    operations = {"attn.hook_attn_scores": ("scale",), "attn.hook_pattern": ("scale", "zero")}.get(point, OPERATIONS)
    op = draw(st.sampled_from(operations))
    layers = draw(st.lists(st.integers(0, sizes.n_layers - 1), min_size=1, max_size=2, unique=True))
    fixed = op in ("replace", "zero", "mean", "mean of x")
    strengths = [0.5, 3.0] if point == "attn.hook_attn_scores" else [-1.5, 0.0, 0.5, 3.0]
    strength = 1.0 if fixed else draw(st.sampled_from(strengths))
    subset = st.lists(st.integers(0, n_tokens - 1), min_size=1, max_size=n_tokens, unique=True).map(sorted).map(tuple)
    n_heads = sizes.heads(point)
    heads = st.none()
    if n_heads:
        heads |= st.lists(st.integers(0, n_heads - 1), min_size=1, max_size=2, unique=True).map(sorted).map(tuple)
    shapes = [()]
    if op == "project_out":
        shapes.append((2,))
    elif op != "ablate" and not n_heads:
        shapes.append((1, n_tokens))
    return Change(
        op,
        point,
        tuple(sorted(layers)),
        strength,
        seed=draw(st.integers(0, 3)),  # few, so that equal changes come up
        positions=draw(st.none() | subset),
        heads=draw(heads),
        shape=draw(st.sampled_from(shapes)),
    )


@st.composite
def graphs(draw, sizes: Sizes, max_nodes: int = 7, n_models: int = 2, max_length: int = 20) -> Graph:
    """Trees in which siblings are often equal: in everything, in their tokens, or in their model and changes."""
    nodes: list[Segment | Splice] = []
    for _ in range(draw(st.integers(2, max_nodes))):
        graph = Graph(tuple(nodes))
        segments = [node for node in nodes if isinstance(node, Segment)]
        kinds = ["new", *(["sibling", "sibling", "splice"] if segments else [])]
        kind = draw(st.sampled_from(kinds))
        if kind == "splice":
            nodes.append(draw(_splices(graph)))
        elif kind == "sibling":
            nodes.append(draw(_siblings(sizes, draw(st.sampled_from(segments)), n_models)))
        else:
            nodes.append(draw(_segments(sizes, graph, n_models, max_length)))
    nodes.append(draw(_segments(sizes, Graph(tuple(nodes)), n_models, max_length)))  # so that a splice is seen
    graph = Graph(tuple(nodes))
    return Graph(graph.nodes, tuple(draw(st.lists(_reads(sizes, graph), min_size=1, max_size=5))))


@st.composite
def _segments(draw, sizes: Sizes, graph: Graph, n_models: int, max_length: int) -> Segment:
    late_first = reversed(range(len(graph.nodes)))
    parents = [*(i for i in late_first if graph.length(i) + MAX_TOKENS <= max_length), None]
    tokens = draw(_tokens(sizes))
    return Segment(tokens, draw(st.sampled_from(parents)), draw(_models(n_models)), draw(_changes(sizes, len(tokens))))


@st.composite
def _reads(draw, sizes: Sizes, graph: Graph) -> Read:
    node = draw(st.integers(0, len(graph.nodes) - 1))
    layers = draw(st.just(()) | st.lists(st.integers(0, sizes.n_layers - 1), min_size=1, max_size=2, unique=True))
    layers = tuple(sorted(layers))
    if isinstance(graph.nodes[node], Splice):
        return Read(node, "cache")
    n = len(graph.nodes[node].tokens)
    position = st.integers(-n, n - 1)
    positions = draw(st.just((-1,)) | st.lists(position, min_size=1, max_size=n, unique_by=lambda p: p % n).map(tuple))
    what = draw(st.sampled_from(["activation", "activation", "attention", "cache"]))
    if what == "cache":
        return Read(node, what)
    if what == "activation":
        point = draw(st.sampled_from(["hook_resid_post", *sizes.read_points]))
        return Read(node, what, point, positions, layers)
    heads = draw(st.just(()) | st.lists(st.integers(0, sizes.n_heads - 1), min_size=1, max_size=2, unique=True))
    last = draw(st.integers(1, graph.length(node)))
    keys = draw(st.none() | st.just((draw(st.integers(0, last - 1)), last)))
    return Read(node, what, "attn.hook_pattern", positions, layers, tuple(heads), keys)


def _tokens(sizes: Sizes):
    # A small alphabet makes equal beginnings likely.
    token = st.integers(3, 6) | st.integers(3, sizes.d_vocab - 1)
    return st.lists(token, min_size=1, max_size=MAX_TOKENS).map(tuple)


def _models(n_models: int):
    return st.sampled_from([0, 0, 0, *range(n_models)])


def _changes(sizes: Sizes, n_tokens: int):
    return st.just(()) | st.lists(changes(sizes, n_tokens), max_size=2).map(tuple)


@st.composite
def _siblings(draw, sizes: Sizes, segment: Segment, n_models: int) -> Segment:
    """A segment beside another one, from which it differs in nothing, its changes, its model, or the ends of both."""
    what = draw(st.sampled_from(["nothing", "changes", "one change more", "model", "tokens"]))
    if what == "changes":
        return Segment(segment.tokens, segment.parent, segment.model, draw(_changes(sizes, len(segment.tokens))))
    if what == "one change more":
        more = draw(changes(sizes, len(segment.tokens)))
        return Segment(segment.tokens, segment.parent, segment.model, (*segment.changes, more))
    if what == "model":
        return Segment(segment.tokens, segment.parent, draw(_models(n_models)), segment.changes)
    if what == "tokens":
        kept = segment.tokens[: draw(st.integers(0, len(segment.tokens)))]
        tokens = (kept + draw(_tokens(sizes)))[:MAX_TOKENS]
        return Segment(tokens, segment.parent, segment.model, ())
    return segment


@st.composite
def _splices(draw, graph: Graph) -> Splice:
    target, source = draw(st.sampled_from(list(_pairs_with_equal_tokens(graph))))
    equal = [a == b for a, b in zip(graph.tokens(target), graph.tokens(source), strict=False)]
    first = draw(st.sampled_from([i for i, same in enumerate(equal) if same]))
    end = equal.index(False, first) if False in equal[first:] else len(equal)
    return Splice(target, first, draw(st.integers(first + 1, end)), source)


def _pairs_with_equal_tokens(graph: Graph) -> Iterator[tuple[int, int]]:
    """Targets and sources that have the same token at some position; every node is one of its own."""
    for target, source in product(range(len(graph.nodes)), repeat=2):
        if any(a == b for a, b in zip(graph.tokens(target), graph.tokens(source), strict=False)):
            yield target, source
