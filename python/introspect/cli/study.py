"""``introspect study``: a protocol with its control arms, what it shows, and the page."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from .._json import parse_json
from ..output_files import check_file_name
from ..progress import step_bars_or_lines
from . import experiment
from .common import (
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    guarded,
    load_model,
    note,
    print_json,
    resumable,
)
from .run import DEFAULT_LAYERS


def question_groups(path: Path) -> dict[str, list[str]]:
    """{group: questions} of a file."""
    if not path.is_file():
        raise typer.BadParameter(f"--groups: there is no file {path}")
    found = parse_json(path.read_text(encoding="utf-8"), f"--groups: {path}", typer.BadParameter)
    lists = found.values() if isinstance(found, dict) else [None]
    if not found or not all(isinstance(one, list) and one and all(isinstance(q, str) for q in one) for one in lists):
        raise typer.BadParameter(f"--groups: {path} must be an object of lists of questions, {{name: [question, ...]}}")
    return found


@guarded
def command(
    model: Model,
    protocol: Annotated[str, typer.Argument(metavar="PROTOCOL", help="with_info, no_info, ... or a file of your own.")],
    vector: experiment.Vectors,
    output: experiment.Folder,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", metavar="ARM", help="injected, rotations, swap, ...; all that fit if none is given."),
    ] = None,
    strength: experiment.Strength = None,
    fraction: experiment.Fraction = None,
    layers: experiment.Ranges = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="F", help='Questions of the arm question_groups: a JSON file, {"factual_yes": [...], ...}.'
        ),
    ] = None,
    nulls: experiment.Nulls = 10,
    seed: experiment.Seed = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    dry_run: experiment.DryRun = False,
    yes: experiment.Yes = False,
    json: Json = False,
) -> None:
    """Run a protocol with its control arms, say what still stands, and write the study and its page into DIR."""
    files = experiment.vector_files(vector)
    options: dict[str, Any] = experiment.strengths(strength, fraction)
    asked = None if groups is None else question_groups(groups)
    import introspect

    from ..studies import run_study

    chosen = experiment.load_protocols([protocol])[0]
    name = check_file_name(chosen.name, "the protocol's name")
    options |= {
        "vectors": {concept: introspect.ControlVector.load(path) for concept, path in files.items()},
        "layers": [tuple(one) for one in layers or [DEFAULT_LAYERS]],
        "nulls": nulls,
        "seed": seed,
        "store": output / experiment.CELLS,
        **({"arms": arms} if arms else {}),
        **({"groups": asked} if asked else {}),
    }
    loaded = load_model(model, dtype, device)
    plan = run_study(loaded, chosen, **options, plan=True)
    if dry_run:
        typer.echo(str(plan))
        return
    note(f"introspect: {plan.together}")  # type: ignore[attr-defined]
    experiment.agree(plan.together, yes)  # type: ignore[attr-defined]
    output.mkdir(parents=True, exist_ok=True)
    resumable(output)
    with step_bars_or_lines() as step, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = run_study(loaded, chosen, **options, progress=step, long=True)
    for warning in caught:
        note(f"introspect: {warning.message}")
    study.save(output / f"{name}.study.json")
    claims = study.claims()
    page = study.report(output / f"{name}.html", claims)
    if json:
        print_json({**claims.to_dict(), "not_run": study.not_run})
    else:
        typer.echo(str(claims))
        note(f"\nthe page: {page}")
