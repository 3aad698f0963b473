"""``introspect sweep``: a protocol over strengths x layer ranges x vectors x questions, as far as one wants."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .. import report
from . import experiment
from .common import (
    MOST,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Layers,
    Model,
    guarded,
    note,
    print_json,
)
from .lists import Fractions, Strengths, flat, parse_ranges


@guarded
def command(
    model: Model,
    protocols: experiment.Protocols,
    vector: experiment.Vectors,
    output: experiment.Folder,
    strength: Strengths = None,
    fraction: Fractions = None,
    layers: Annotated[
        list[Layers] | None,
        typer.Option(
            parser=parse_ranges,
            metavar="A-B,A-B,...",
            help="Ranges of steered blocks, or fractions; the one to stay in for --all-ranges and --each-layer.",
        ),
    ] = None,
    all_ranges: Annotated[bool, typer.Option("--all-ranges", help="Every range of the vectors' blocks.")] = False,
    each_layer: Annotated[bool, typer.Option("--each-layer", help="Every block on its own.")] = False,
    min_width: Annotated[int, typer.Option(min=1, max=MOST, help="Blocks in a range of --all-ranges, at least.")] = 1,
    max_width: Annotated[int | None, typer.Option(min=1, max=MOST, help="... and at most.")] = None,
    step: Annotated[int, typer.Option(min=1, max=MOST, help="Between first blocks, and between widths.")] = 1,
    questions: experiment.Questions = "controls",
    controls: experiment.Controls = None,
    nulls: experiment.Nulls = 10,
    seed: experiment.Seed = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    dry_run: experiment.DryRun = False,
    yes: experiment.Yes = False,
    ray: experiment.Ray = None,
    json: Json = False,
) -> None:
    """Run protocols over every combination of strengths (0.1 of the residual norm if not given), ranges and vectors.

    Readings are kept in DIR as they are finished: what was interrupted goes on where it stopped, and a wider sweep into
    the same DIR runs only what is missing. Settings that earlier runs into DIR had stay in its results.
    """
    files = experiment.vector_files(vector)
    options: dict[str, Any] = {
        **experiment.strengths(flat(strength), flat(fraction)),
        "dose": True,
        "questions": experiment.control_questions(questions),
        "controls": controls,
        "nulls": nulls,
        "seed": seed,
    }
    given = flat(layers)
    if (all_ranges and each_layer) or not (all_ranges or each_layer or given):
        raise typer.BadParameter("give one of --layers, --all-ranges and --each-layer")
    if (all_ranges or each_layer) and len(given) > 1:
        raise typer.BadParameter("--all-ranges and --each-layer stay in one range of --layers")
    import introspect

    chosen = experiment.load_protocols(protocols, controls)
    vectors = {name: introspect.ControlVector.load(path) for name, path in files.items()}

    def complete(loaded: Any) -> dict[str, Any]:
        ranges: list[tuple] = [tuple(one) for one in given]
        if all_ranges or each_layer:
            first, last = _common_blocks(vectors, given, loaded.cfg.n_layers)
            widths = (1, 1) if each_layer else (min_width, max_width)
            ranges = introspect.layer_ranges(first, last, min_width=widths[0], max_width=widths[1], step=step)
        return {**options, "vectors": vectors, "layers": ranges}

    results: list[Any] = []
    ran = experiment.run_protocols(
        model,
        chosen,
        output,
        note_name="sweep.json",
        dtype=dtype,
        device=device,
        options=complete,
        show=results.append,
        dry_run=dry_run,
        yes=yes,
        json=json,
        ray=ray,
    )
    if not ran:
        return
    if json:
        print_json({"sweeps": [report.sweep_dict(result) for result in results]})
        return
    for result in results:
        report.show_one(result)
    note(f"\nplots and the page: introspect report {output}")


def _common_blocks(vectors: dict[str, Any], within: list[Layers], n_layers: int) -> tuple[int, int]:
    """The first and the last block that every vector has, in the range to stay in if one is given."""
    from ..arguments import layer_range  # here, because it loads torch

    first = max(min(one.layers) for one in vectors.values())
    last = min(max(one.layers) for one in vectors.values())
    lowest, highest = (within and layer_range(within[0], n_layers, "--layers")) or (first, last)
    return max(first, lowest), min(last, highest)
