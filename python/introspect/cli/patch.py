"""``introspect patch``: where one prompt's activations make the answer to another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import step_bars
from ..tables import print_lines, print_table
from .common import MOST, DeviceOption, Dtype, DtypeOption, Json, Model, guarded, load_model, print_json
from .outputs import OutputOption, output_files, write_outputs

if TYPE_CHECKING:
    from ..analysis import PatchGrid, PatchGrids


@guarded
def command(
    model: Model,
    clean: Annotated[str, typer.Argument(help="The prompt whose activations are put in.")],
    corrupted: Annotated[str, typer.Argument(help="The prompt that is run, of as many tokens.")],
    right: Annotated[str, typer.Option("--right", metavar="T", help="The clean prompt's answer, one token.")],
    wrong: Annotated[str, typer.Option("--wrong", metavar="T", help="The corrupted prompt's answer, one token.")],
    point: Annotated[
        list[str] | None,
        typer.Option("--point", metavar="P", help="resid_pre, attn_out, mlp_out, z, q, k, v; give it several times."),
    ] = None,
    noising: Annotated[bool, typer.Option("--noising", help="Run the clean prompt and put in the other's.")] = False,
    top: Annotated[int, typer.Option(min=1, max=MOST, help="Cells that are shown of each point.")] = 10,
    output: OutputOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Patch every layer and position of one prompt into another, and show which move the answer."""
    files = output_files(output)
    loaded = load_model(model, dtype, device)
    from ..analysis import LogitDifference, patch_grid

    with step_bars() as step:
        grids = patch_grid(
            loaded,
            clean,
            corrupted,
            point or ["resid_pre"],
            metric=LogitDifference(right, wrong),
            direction="noising" if noising else "denoising",
            progress=step,
        )
    if json:
        print_json(_facts(loaded, grids, right, wrong))
    else:
        _show(grids, top, noising)
    title = f"Patching {loaded.name}: logit of {right!r} less that of {wrong!r}"
    first = next(iter(grids.grids.values()))
    lines = [f"Clean: {clean}", f"Corrupted: {corrupted}", _ends(first)]
    write_outputs(files, title, grids.to_pandas, lambda: {name: g.plot() for name, g in grids.grids.items()}, lines)


def _ends(grid: PatchGrid) -> str:
    clean, corrupted = float(grid.clean[0]), float(grid.corrupted[0])
    return f"The logit difference is {clean:+.2f} in the clean run and {corrupted:+.2f} in the corrupted one."


def _facts(model: Any, grids: PatchGrids, right: str, wrong: str) -> dict[str, Any]:
    return {
        "model": model.name,
        "hash": model.hash,
        "metric": {"right": right, "wrong": wrong},
        "points": {
            name: {
                "axes": list(grid.axes),
                "labels": grid.labels,
                "clean": float(grid.clean[0]),
                "corrupted": float(grid.corrupted[0]),
                "values": grid.values[0].tolist(),
                "token_layers_asked": grid.token_layers_asked,
                "token_layers_to_run": grid.token_layers_to_run,
            }
            for name, grid in grids.grids.items()
        },
    }


def _show(grids: PatchGrids, top: int, noising: bool) -> None:
    from rich.console import Console

    console = Console()
    for name, grid in grids.grids.items():
        table = grid.to_pandas()
        unpatched = float(grid.clean[0] if noising else grid.corrupted[0])
        moved = (table["value"] - unpatched).abs().sort_values(ascending=False)
        cells = table.loc[moved.index[:top]].to_numpy()
        rows = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells]
        print_lines(console, ["", name])
        print_table(console, list(table.columns), rows)
    print_lines(console, ["", _ends(grid)])
