"""``introspect sae show``: what features of a dictionary do over texts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import step_bars
from ..tables import print_lines, print_table
from .common import MOST, DeviceOption, Dtype, DtypeOption, Json, Model, guarded, load_model, note, print_json
from .outputs import OutputOption, output_files, write_outputs
from .sae_eval import (
    ContextOption,
    SaeArgument,
    SaeIdOption,
    TextsArgument,
    TokensOption,
    contexts_of_files,
    load_dictionary,
)

if TYPE_CHECKING:
    from ..sae.features import FeatureStatistics

AROUND = 8  # tokens on either side of the one that is shown
LISTED = 20  # features


@guarded
def command(
    model: Model,
    sae: SaeArgument,
    texts: TextsArgument,
    sae_id: SaeIdOption = None,
    feature: Annotated[
        list[int] | None,
        typer.Option("--feature", min=0, max=MOST, metavar="N", help="One to show; several times. None: a table."),
    ] = None,
    tokens: TokensOption = 50_000,
    context: ContextOption = None,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Contexts of each group that are shown.")] = 5,
    saedashboard: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write SAEDashboard's batch-N.json files.")
    ] = None,
    neuronpedia: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write Neuronpedia's folder of jsonl files.")
    ] = None,
    output: OutputOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Show features: how often and how strongly they are active, in which contexts, and which tokens they favour."""
    files = output_files(output)
    dictionary = load_dictionary(sae, sae_id)
    loaded = load_model(model, dtype, device)
    contexts = contexts_of_files(loaded, dictionary, texts, tokens, context)
    from ..sae.features import feature_statistics

    with step_bars() as step:
        found = feature_statistics(loaded, dictionary, contexts, progress=step)
    cards = [found.card(one, top=top, per_quantile=top) for one in feature or []]
    if json:
        print_json(cards or {"tokens": found.activations.read_tokens, "dead_share": found.dead_share, **_table(found)})
    elif cards:
        for card in cards:
            _show(card, top)
    else:
        _list(found)
    if saedashboard is not None:
        from ..sae.export import write_saedashboard

        for path in write_saedashboard(found, saedashboard, feature):
            note(f"wrote {path}")
    if neuronpedia is not None:
        from ..sae.export import write_neuronpedia

        name = loaded.name.rpartition("/")[2]
        where = write_neuronpedia(found, neuronpedia, feature, model_id=name, source_set="introspect", release=name)
        note(f"wrote {where}")
    if files:
        write_outputs(
            files,
            f"Features of {Path(sae).name} in {loaded.name}",
            lambda: found.to_pandas().sort_values("frequency", ascending=False),
            lambda: _figures(found, cards),
            [line for card in cards for line in _lines(card, top)] or [_said(found)],
        )


def _said(found: FeatureStatistics) -> str:
    activations = found.activations
    return (
        f"{len(found.ids):,} features on {activations.read_tokens:,} tokens of {len(activations.tokens):,} contexts; "
        f"{found.dead_share:.1%} were never active."
    )


def _table(found: FeatureStatistics) -> dict[str, Any]:
    frame = found.to_pandas().sort_values("frequency", ascending=False)
    return {"features": frame.to_dict("records")}


def _list(found: FeatureStatistics) -> None:
    from rich.console import Console

    console = Console()
    frame = found.to_pandas().sort_values("frequency", ascending=False).head(LISTED)
    rows = [
        [str(row.feature), f"{row.frequency:.4%}", str(row.contexts), f"{row.mean_active:.3g}", f"{row.max_active:.3g}"]
        for row in frame.itertuples()
    ]
    print_table(console, ["feature", "frequency", "contexts", "mean active", "largest"], rows)
    print_lines(console, ["", _said(found), "--feature N shows one."])


def _figures(found: FeatureStatistics, cards: list[dict[str, Any]]) -> dict[str, Any]:
    from ..plots.features import activation_histogram

    figures = {"density": found.plot()} if int(found.counts.sum()) else {}
    for card in cards:
        if card["count"]:
            bars = card["histogram"]
            title = f"feature {card['feature']}"
            figures[title] = activation_histogram(bars["values"], bars["heights"], title=title)
    return figures


def _show(card: dict[str, Any], top: int) -> None:
    from rich.console import Console

    print_lines(Console(), [*_lines(card, top), ""])


def _lines(card: dict[str, Any], top: int) -> list[str]:
    name = f" ({card['label']})" if card["label"] else ""
    lines = [
        f"Feature {card['feature']}{name} of {card['hook_name']}: active at {card['frequency']:.3%} of "
        f"{card['tokens']:,} tokens, {card['mean_active']:.3g} in the mean there, {card['max_active']:.3g} at most"
    ]
    for what, key in (("raises", "top_logits"), ("lowers", "bottom_logits")):
        if key in card:
            lines.append(f"{what}: " + "  ".join(f"{one['token']!r} {one['value']:+.2f}" for one in card[key]))
    near = "  ".join(f"{one['feature']} ({one['cosine']:.2f})" for one in card["neighbours"][:5])
    lines.append(f"decoder neighbours: {near}")
    beside = "  ".join(f"{one['feature']} ({one['pearson']:.2f})" for one in card["coactive"][:5])
    lines.append(f"active together with: {beside or 'none'}")
    for group in card["groups"]:
        high = f"{group['high']:.3g}"
        span = f"highest, up to {high}" if group["low"] < 0 else f"{group['low']:.3g} to {high}, {group['share']:.3%}"
        lines.append(f"[{span}]")
        for one in group["contexts"][:top]:
            at = one["position"]
            before = "".join(one["tokens"][max(at - AROUND, 0) : at])
            after = "".join(one["tokens"][at + 1 : at + 1 + AROUND])
            text = " ".join(f"{before}<<{one['tokens'][at]}>>{after}".split())
            lines.append(f"  {one['values'][at]:8.3g}  {text}")
    return lines
