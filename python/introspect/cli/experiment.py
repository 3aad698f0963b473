"""What ``introspect run`` and ``introspect sweep`` share: options, and runs of several protocols into a folder."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..experiments.plans import HOUR, ExperimentPlan
from ..experiments.runs import CELLS as CELLS
from ..experiments.runs import difference, model_facts, note_finished, protocol_facts, write_note
from ..output_files import check_file_name
from ..progress import step_bars_or_lines
from .common import (
    MOST,
    Dtype,
    Layers,
    SeedOption,
    load_model,
    note,
    one,
    parse_layers,
    parse_number,
    parse_strength,
    print_json,
    resumable,
)

if TYPE_CHECKING:
    from ..experiments.results import Result

Protocols = Annotated[
    list[str],
    typer.Argument(metavar="PROTOCOL", help="no_info, with_info, content_report, ... or files of your own."),
]
Vectors = Annotated[
    list[str], typer.Option("--vector", metavar="[NAME=]F", help="A concept and its vector; give it several times.")
]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results and finished cells.")]
Questions = Annotated[
    str, typer.Option(help="controls (the protocol's own and its control questions), own, or a file of questions.")
]
Controls = Annotated[
    str | None,
    typer.Option(
        metavar="CONVERSATION",
        help="Where control questions are asked: own (the protocol's own conversation, the default), with_info (as in "
        "the article, always after its long introduction) or another protocol.",
    ),
]
Strength = Annotated[
    list[Any] | None,
    typer.Option(
        parser=one(parse_strength, "--strength"),
        metavar="S",
        help="Factor of the vector, or a dose that is solved for: kl=0.5 (nats), sd=2, coherent.",
    ),
]
Fraction = Annotated[
    list[float] | None,
    typer.Option(
        parser=one(parse_number, "--fraction"),
        metavar="F",
        help="Strength as a fraction of the median residual norm. 0.1 if not given.",
    ),
]
Ranges = Annotated[
    list[Layers] | None,
    typer.Option(
        parser=one(parse_layers, "--layers"),
        metavar="A-B",
        help="Steered blocks, or fractions. 0.33-0.66 if not given.",
    ),
]
Nulls = Annotated[int, typer.Option(min=0, max=MOST, help="Random rotations of each vector to compare with.")]
Seed = SeedOption
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how much there is to run, and run nothing.")]


def _has_ray(address: str | None) -> str | None:
    """Said before a model is loaded."""
    if address is not None and importlib.util.find_spec("ray") is None:
        raise typer.BadParameter("Ray is not installed: pip install 'introspect[ray]'")
    return address


Ray = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        callback=_has_ray,
        help="Run on the workers of a Ray cluster: auto, local or its address.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Run without asking, also for more than an hour.")]


def ray_workers(address: str | None, chat_template: str | None) -> Any:
    """The argument ``ray`` of run_experiment for --ray and --chat-template, which workers must be given, too."""
    if address is None or chat_template is None:
        return address
    from ..chat import is_template_path
    from ..ray_cluster import RayWorkers

    given = os.path.abspath(chat_template) if is_template_path(chat_template) else chat_template
    return RayWorkers(address, load={"chat_template": given})


def strengths(given: list[Any] | None, fractions: list[float] | None) -> dict[str, Any]:
    """The arguments of run_experiment for --strength and --fraction."""
    if given and fractions:
        raise typer.BadParameter("give --strength or --fraction, not both")
    if not given and not fractions:
        return {}  # run_experiment's own default
    doses = [one for one in given or [] if isinstance(one, str)]
    if doses and len(doses) < len(given or []):
        raise typer.BadParameter(f"--strength: give numbers or doses, not some of each; got {doses[0]} among numbers")
    if doses:
        return {"strengths": doses}
    return {"strengths": given or fractions, "strength_unit": "absolute" if given else "residual"}


def vector_files(given: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        name, equals, file = text.rpartition("=")
        path = Path(file)
        name = name if equals else path.stem
        if not path.is_file():
            raise typer.BadParameter(f"--vector: there is no file {file}")
        if not name or name in files:
            raise typer.BadParameter(f"--vector: every vector needs a name of its own, got {text!r}")
        files[name] = path
    return files


def control_questions(text: str) -> list[str] | None:
    if text == "controls":
        return None
    if text == "own":
        return []
    if not Path(text).is_file():
        raise typer.BadParameter(f"--questions is controls, own or a file with one question a line, got {text!r}")
    return [line for line in Path(text).read_text(encoding="utf-8").splitlines() if line.strip()]


def load_protocols(sources: list[str], controls: str | None = None) -> list[Any]:
    """The protocols, with the conversation in which their controls are asked."""
    import introspect

    from ..experiments.arguments import Arguments

    given = Arguments("--controls")
    protocols = [given.controls(introspect.load_protocol(source), controls)[0] for source in sources]
    for protocol in protocols:
        check_file_name(protocol.name, "the protocol's name")
    return protocols


def run_protocols(
    model: str,
    protocols: list[Any],
    output: Path,
    *,
    note_name: str,
    dtype: Dtype,
    device: str,
    options: Callable[[Any], dict[str, Any]],
    show: Callable[[Result], None],
    dry_run: bool,
    yes: bool,
    json: bool,
    ray: str | None = None,
) -> bool:
    """Run protocols into a folder: finished readings in its store, and each protocol's result.

    They run together, so that what their conversations share runs once. Says first how much there is to run. Results
    that earlier runs left there are added to.

    Args:
        note_name: the file that says what was asked for, from which an interrupted run becomes a result.
        options: the arguments of run_experiment for the loaded model.
        show: called with every result.
        ray: where workers run it, see run_experiment.

    Returns:
        Whether anything was run.

    Raises:
        ValueError: results of another model, dtype, protocol or unit in the folder; more than an hour of work that
            nobody has agreed to.
    """
    import introspect

    earlier = earlier_results(output, protocols, dtype)
    loaded = load_model(model, dtype, device)
    arguments = options(loaded)
    facts = model_facts(loaded)
    settings = {name: arguments[name] for name in ("seed", "nulls", "controls") if arguments.get(name) is not None}
    settings["strength_unit"] = arguments.get("strength_unit") or "residual"
    if settings["strength_unit"] == "residual":
        settings["residual_norm"] = "median"
    for protocol in protocols:
        own = {**settings, "controls": asked_in(protocol, arguments.get("controls"))}
        refuse_others(output, earlier.get(protocol.name), facts, protocol_facts(protocol), own)
    store = output / CELLS

    def plan_of(some: list[Any]) -> Any:
        return introspect.run_experiments(loaded, some, **arguments, store=store, plan=True)

    total = plan_of(protocols)
    if dry_run:
        if json:
            print_json({**asdict(total), "protocols": {one.name: asdict(plan_of([one])) for one in protocols}})
        else:
            typer.echo(total)
        return False
    note(f"introspect: {total}")
    agree(total, yes)

    output.mkdir(parents=True, exist_ok=True)
    write_note(output, note_name, facts, map(protocol_facts, protocols), settings)
    resumable(output)
    with step_bars_or_lines() as step, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = introspect.run_experiments(
            loaded, protocols, **arguments, store=store, progress=step, long=True, ray=ray
        )
    for warning in caught:
        note(f"introspect: {warning.message}")
    for protocol, result in zip(protocols, results, strict=True):
        before = earlier.get(protocol.name)
        (before.merged(result) if before else result).save(output / f"{protocol.name}.json")
        note_finished(output, note_name, protocol.name)
        show(result)
    return True


def asked_in(protocol: Any, controls: str | None) -> str:
    """Where a protocol's control questions are asked, as its result says it."""
    from ..experiments.arguments import Arguments

    where = Arguments("--controls").controls(protocol, controls)[1] or protocol.controls
    return "own" if protocol.is_own(where) else where


def agree(plan: ExperimentPlan, yes: bool) -> None:
    """Ask, or refuse where nobody can be asked, before more than an hour of work."""
    if yes or plan.seconds <= HOUR:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ValueError("that is more than an hour of work: --yes runs it, --dry-run only says how much it is")
    typer.confirm("introspect: that is more than an hour of work. Run it?", abort=True, err=True)


def earlier_results(output: Path, protocols: list[Any], dtype: Dtype) -> dict[str, Result]:
    """What earlier runs left in a folder of these protocols. Of others it is refused before the model is loaded."""
    from ..experiments.results import Result

    found = {}
    for protocol in protocols:
        file = output / f"{protocol.name}.json"
        if file.is_file():
            found[protocol.name] = Result.load(file)
            told = str(found[protocol.name].model.get("dtype"))
            # "bfloat16, weights as stored" may be met: how weights are held is known when the model is loaded.
            wanted = told if told.partition(",")[0] == dtype.value else dtype.value
            refuse_others(output, found[protocol.name], {"dtype": wanted}, protocol_facts(protocol), {})
    return found


def refuse_others(
    output: Path, earlier: Result | None, model: dict[str, Any], protocol: dict[str, Any], settings: dict[str, Any]
) -> None:
    if earlier is None:
        return
    known = {name: value for name, value in earlier.settings.items() if name in settings}
    old = {"model": earlier.model, "protocol": earlier.protocol, "settings": known}
    if problem := difference(old, model, protocol, settings):
        file = output / f"{protocol['name']}.json"
        raise ValueError(
            f"{file} holds results of another kind: {problem}. Choose another folder (-o), or move that file away"
        )
