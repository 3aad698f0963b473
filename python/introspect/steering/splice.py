"""Dictionaries in effect for every pass inside a ``with`` block."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from .. import _C
from ..arguments import positions_and_ids
from ..hooks.manager import Hooked, Steered
from .splice_cross_layer import check_layers, edits_of_layer, parts
from .steer import SPAN, Tokens, token_sets

Spliced = TypeVar("Spliced", bound=Hooked)
Amounts = Mapping[int, float]
LayerAmounts = Mapping[tuple[int, int], float]


def feature_edits(
    who: str,
    *,
    add: Amounts | None = None,
    clamp: Amounts | None = None,
    scale: Amounts | None = None,
    ablate: Iterable[int] = (),
) -> list[tuple[int, float, float]]:
    """Edits (feature, gain, value): the feature becomes gain f + value.

    Raises:
        TypeError: something that is not {feature: number}.
    """
    edits: list[tuple[int, float, float]] = []
    for name, given in (("add", add), ("clamp", clamp), ("scale", scale)):
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"{who}: {name} must be {{feature: number}}, got {type(given).__name__}")
    edits += [(int(feature), 1.0, float(amount)) for feature, amount in (add or {}).items()]
    edits += [(int(feature), 0.0, float(value)) for feature, value in (clamp or {}).items()]
    edits += [(int(feature), float(gain), 0.0) for feature, gain in (scale or {}).items()]
    edits += [(int(feature), 0.0, 0.0) for feature in ([ablate] if isinstance(ablate, int) else ablate)]
    return edits


def checked_sites(
    model: Any, sae: _C.Dictionary, who: str, *, hook: str = "", hook_out: str = "", any_model: bool = False
) -> tuple[str, str]:
    """The hook points a dictionary reads and writes in this model, warned of what does not fit and is no error."""
    if not isinstance(sae, _C.Dictionary):
        raise TypeError(f"{who}: sae must be an introspect.SAE, got {type(sae).__name__}")
    found = _C.check_dictionary(sae, model, hook_name=hook, hook_name_out=hook_out, any_model=any_model)
    for warning in found[2]:
        warnings.warn(f"{who}: {warning}", stacklevel=4)
    return found[0], found[1]


def splice_intervention(
    model: Any,
    sae: _C.Dictionary,
    *,
    add: Amounts | None = None,
    clamp: Amounts | None = None,
    scale: Amounts | None = None,
    ablate: Iterable[int] = (),
    error_term: bool = True,
    strength: float = 1.0,
    positions: tuple[int, int | None] | list[int] = (0, None),
    when: str = "all",
    tokens: Tokens | None = None,
    after: Iterable[int] | None = None,
    rows: Sequence[int] | None = None,
    skip_padding: bool = True,
    hook: str = "",
    hook_out: str = "",
    any_model: bool = False,
    keeps: str = "",
) -> _C.Intervention:
    """A dictionary as an Intervention, for graphs and files; arguments and errors are those of ``Model.splice``.

    Args:
        skip_padding: False for a graph's segments, which have none: without a text filter its pieces are shared more
            often.
        keeps: "everything" adds what the dictionary decodes; "" goes by ``error_term``.
    """
    who = "splice"
    sites = checked_sites(model, sae, who, hook=hook, hook_out=hook_out, any_model=any_model)
    positions_and_ids(who, positions, tokens=tokens, after=after, rows=rows)
    edits = feature_edits(who, add=add, clamp=clamp, scale=scale, ablate=ablate)
    sets = token_sets(model.native.cfg.d_vocab, tokens)
    bos = _bos(model) if sae.origin.masks_bos else None
    if bos is not None and "tokens" in sets:
        sets["tokens"] = [token for token in sets["tokens"] if token != bos]
    elif bos is not None:
        sets["not_tokens"] = sorted({*sets.get("not_tokens", []), bos})
    span: dict[str, Any] = {"positions": positions}
    if not isinstance(positions, list):
        span = dict(zip(SPAN, positions, strict=True))
    what = _C.splice(
        sae,
        edits=edits,
        keeps=keeps or ("error" if error_term else "nothing"),
        strength=strength,
        hook_name=sites[0],
        hook_name_out=sites[1],
    )
    return _C.Intervention(
        what.values,  # type: ignore[arg-type]
        op=what.op,
        point=what.point,
        strength=what.strength,
        parameters=what.parameters,
        source=what.source,
        source_layer=what.source_layer,
        rows=None if rows is None else list(rows),
        text=_C.TextFilter(phase=when, after=None if after is None else list(after), skip_padding=skip_padding, **sets),
        **span,
    )


def splice_interventions(
    model: Any,
    sae: _C.Dictionary | _C.CrossLayerTranscoder,
    *,
    add: Any = None,
    clamp: Any = None,
    scale: Any = None,
    ablate: Any = (),
    error_term: bool = True,
    **options: Any,
) -> list[_C.Intervention]:
    """As ``splice_intervention``, also for a cross-layer transcoder: one for each layer it reads and layer it writes.

    Args:
        add, clamp, scale, ablate: of a cross-layer transcoder by (layer, feature).
        options: of ``splice_intervention``; a cross-layer transcoder stands where it was trained.

    Raises:
        As ``splice_intervention``; TypeError, IndexError: features of a cross-layer transcoder that are no (layer,
        feature) of it.
    """
    edits = {"add": add, "clamp": clamp, "scale": scale, "ablate": ablate}
    if not isinstance(sae, _C.CrossLayerTranscoder):
        return [splice_intervention(model, sae, **edits, error_term=error_term, **options)]
    if options.get("hook") or options.get("hook_out"):
        raise TypeError("splice: a cross-layer transcoder stands where it was trained: hook and hook_out are of others")
    check_layers(edits, sae.n_layers, "splice")
    out = []
    written = -1
    for layer, target, part in parts(sae):
        own = edits_of_layer(layer, edits, "splice")
        if error_term and not any(own.values()):
            continue  # changes nothing
        # The first part at a layer takes the place of what is there, and the others are added to it.
        first = target != written
        written = target
        keeps = "" if error_term or first else "everything"
        out.append(splice_intervention(model, part, **own, error_term=error_term, keeps=keeps, **options))
    return out


def _bos(model: Any) -> int | None:
    native = model.native
    return native.tokenizer.bos_token_id if native.has_tokenizer else None


@contextlib.contextmanager
def splice(
    model: Spliced,
    sae: _C.Dictionary | _C.CrossLayerTranscoder,
    *,
    add: Amounts | LayerAmounts | None = None,
    clamp: Amounts | LayerAmounts | None = None,
    scale: Amounts | LayerAmounts | None = None,
    ablate: Iterable[int] | Iterable[tuple[int, int]] = (),
    error_term: bool = True,
    strength: float = 1.0,
    positions: tuple[int, int | None] | list[int] = (0, None),
    when: str = "all",
    tokens: Tokens | None = None,
    after: Iterable[int] | None = None,
    rows: Sequence[int] | None = None,
    hook: str = "",
    hook_out: str = "",
    any_model: bool = False,
) -> Iterator[Spliced]:
    """A dictionary in the model inside the ``with`` block, in this thread: its features edited, or its reconstruction.

    With f its features of x and f' those after the edits, x becomes x + sum of (f'_i - f_i) W_dec_i over the edited
    features, so that what the dictionary does not explain stays: nothing edited, nothing changed, bit for bit. With
    ``error_term=False`` x becomes decode(f'). What is changed depends on the text alone: it is the same in one pass, in
    chunks through a KV cache, in every step of ``generate``, and in a batch padded on either side. Blocks inside one
    another splice several dictionaries. Gradients are those of this function; ``HookedTransformer.saes`` has SAELens's.

    Args:
        sae: an SAE; a transcoder, which reads at one point and changes another; or a cross-layer transcoder, which
            changes all layers: its features are (layer, feature).
        add: {feature: amount}: f + amount.
        clamp: {feature: value}: the value.
        scale: {feature: factor}: factor times f.
        ablate: features that become 0.
        strength: x + strength (y - x), with y what the edits make of x.
        positions, when, tokens, after, rows: as of ``steer``.
        hook, hook_out: other points than those it was trained at, by full name, where you know better.
        any_model: True lets a dictionary of another model hash stand here, with a warning.

    Warns:
        UserWarning: a dictionary that does not say its model, or names another one; another context length, BOS rule or
            centring of weights.

    Raises:
        TypeError: no dictionary, or edits that are not {feature: number}.
        ConfigError: a dictionary of another model, of several sites, or whose site is not known.
        HookError: a point or layer that the model does not have.
        ShapeError: another width.
        IndexError: a feature that it does not have.
        ValueError: a feature edited twice, or numbers that are not finite.
    """
    interventions = splice_interventions(
        model,
        sae,
        add=add,
        clamp=clamp,
        scale=scale,
        ablate=ablate,
        error_term=error_term,
        strength=strength,
        positions=positions,
        when=when,
        tokens=tokens,
        after=after,
        rows=rows,
        hook=hook,
        hook_out=hook_out,
        any_model=any_model,
    )
    hooks = model.native.make_hooks()
    for intervention in interventions:
        hooks.add_intervention(intervention)  # throws now what the first pass would
    effects = [Steered(intervention) for intervention in interventions]
    model._put(effects, everywhere=False)
    try:
        yield model
    finally:
        model._take(effects)
