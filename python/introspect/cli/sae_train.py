"""``introspect sae train``: dictionaries from texts or from a file of activations."""

from __future__ import annotations

import itertools
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..progress import step_bars_or_lines
from . import holding
from .common import (
    MOST,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Model,
    SeedOption,
    guarded,
    load_model,
    note,
    print_json,
)


class Architecture(str, Enum):
    topk = "topk"
    batchtopk = "batchtopk"
    jumprelu = "jumprelu"
    standard = "standard"
    gated = "gated"
    abstopk = "abstopk"
    matryoshka_batchtopk = "matryoshka_batchtopk"
    matching_pursuit = "matching_pursuit"


@guarded
def command(
    model: Model,
    texts: Annotated[
        list[Path],
        typer.Argument(
            exists=True, metavar="TEXT...", help="Files of text (.txt, .jsonl), or one folder of activations."
        ),
    ],
    hook: Annotated[
        list[str], typer.Option("--hook", metavar="NAME", help="Where it reads, such as blocks.15.hook_resid_post.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Dictionaries and checkpoints.")],
    hook_out: Annotated[
        str | None, typer.Option(metavar="NAME", help="Where a transcoder writes; not given: where it reads.")
    ] = None,
    width: Annotated[
        list[int] | None, typer.Option(min=1, max=MOST, help="Features; not given: eight times the activation's.")
    ] = None,
    k: Annotated[list[float] | None, typer.Option(help="Features of a row; of jumprelu the aim. Default 32.")] = None,
    architecture: Annotated[Architecture, typer.Option(help="How features are chosen.")] = Architecture.topk,
    tokens: Annotated[int, typer.Option(min=1, max=MOST, help="Of the training; texts are repeated.")] = 2_000_000,
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Tokens of a step.")] = 4096,
    context: Annotated[int, typer.Option(min=1, max=MOST, help="Tokens of a context.")] = 128,
    lr: Annotated[float | None, typer.Option(help="Learning rate; not given: by the width.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    seed: SeedOption = 0,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Train sparse autoencoders or transcoders: one for each --hook, --width and --k, all on one pass of the model."""
    from ..sae.streams import ActivationFile
    from ..sae.training import train_many

    options: dict[str, Any] = {} if lr is None else {"lr": lr}
    if hook_out is not None:
        options["hook_out"] = hook_out
    widths: list[int | None] = [*width] if width else [None]
    wanted = [
        {"hook": place, "d_sae": d_sae, "k": few, "architecture": architecture.value, **options}
        for place, d_sae, few in itertools.product(hook, widths, k or [32.0])
    ]
    folders = (
        [out] if len(wanted) == 1 else [out / f"{one['hook']}-{one['d_sae'] or 'x8'}-k{one['k']:g}" for one in wanted]
    )
    from_activations = len(texts) == 1 and texts[0].is_dir()
    if from_activations and any(value is not None for value in holding.chosen().values()):
        raise typer.BadParameter("--weights and --keep-blocks are of a model; these rows are there already")
    source = ActivationFile.open(texts[0]) if from_activations else texts
    loaded = None if from_activations else load_model(model, dtype, device)
    with step_bars_or_lines() as step:
        trained = train_many(
            loaded,
            source,
            wanted,
            training_tokens=tokens,
            train_batch_size_tokens=batch,
            context_size=context,
            seed=seed,
            checkpoint_path=out / "checkpoint",
            resume=resume,
            on_record=None if json else _show,
            progress=step,
        )
    facts = []
    for folder, dictionary, of in zip(folders, trained.dictionaries, range(len(wanted)), strict=True):
        dictionary.save(folder)
        last: dict[str, float] = next((r.held_out[of] for r in reversed(trained.records) if r.held_out), {})
        facts.append({"path": str(folder), "name": trained.names[of], "d_sae": dictionary.d_sae, **last})
    trained.to_pandas().to_csv(out / "training.csv", index=False)
    if json:
        print_json(facts)
    else:
        for folder in folders:
            typer.echo(folder)


def _show(record: Any) -> None:
    """A line at each evaluation: what is held out is what counts."""
    for held_out in record.held_out:
        note(
            f"{record.step} steps, {record.rows:,} tokens: explained variance {held_out['explained_variance']:.4f}, "
            f"L0 {held_out['l0']:.1f}, dead {held_out['dead_share']:.1%}"
        )
