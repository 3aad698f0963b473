"""``introspect profile``: where the time of forward passes goes."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from .common import MOST, Dtype, DtypeOption, Json, Model, guarded, load_model, print_json

Tokens = Annotated[
    list[str] | None,
    typer.Option(metavar="BxT", help="Texts x tokens of a pass, as 4x128; may be given several times."),
]
Decode = Annotated[bool, typer.Option("--decode", help="One token after 64 others in a cache as well.")]
Repeats = Annotated[int, typer.Option(min=1, max=MOST, help="Passes of each kind, of which the quickest counts.")]


@guarded
def command(
    model: Model,
    tokens: Tokens = None,
    dtype: DtypeOption = Dtype.float32,
    decode: Decode = False,
    repeats: Repeats = 5,
    json: Json = False,
) -> None:
    """Print per stage of a pass its time, FLOPs, bytes and its share of the floor that this machine sets."""
    shapes = [_shape(text) for text in tokens or ["1x16", "1x64", "4x128"]]
    import torch

    from .. import ops, profiling

    loaded = load_model(model, dtype, "cpu")
    for _, length in shapes:
        if length > loaded.cfg.n_ctx:
            raise typer.BadParameter(f"the model reads at most {loaded.cfg.n_ctx} tokens, got {length}")
    rates = profiling.machine_rates(loaded)
    passes = [profiling.profile_forward(loaded, *shape, repeats=repeats) for shape in shapes]
    if decode:
        passes.append(profiling.profile_decode(loaded, repeats=4 * repeats))
    facts = {
        "model": loaded.name,
        "dtype": dtype.value,
        "threads": torch.get_num_threads(),
        "bfloat16_products": ops.bfloat16_products(),
        "flops_per_second": rates.flops,
        "bytes_per_second": rates.bytes,
        "passes": [each.to_dict(rates) for each in passes],
    }
    if json:
        print_json(facts)
    else:
        _print(facts)


def _shape(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,8})x([1-9]\d{0,8})", text)
    if not match:
        raise typer.BadParameter(f"--tokens must be texts x tokens as 4x128, got {text!r}")
    return int(match[1]), int(match[2])


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    way = f", bfloat16 by {facts['bfloat16_products']}" if facts["dtype"] == "bfloat16" else ""
    console.print(
        f"{facts['model']}, {facts['dtype']}{way}, {facts['threads']} threads; measured now: products "
        f"{facts['flops_per_second'] / 1e9:,.0f} GFLOP/s, memory {facts['bytes_per_second'] / 1e9:,.1f} GB/s",
        markup=False,
    )
    for each in facts["passes"]:
        rate = each["flops"] / each["seconds"]
        title = (
            f"{each['pass']}: {1e3 * each['seconds']:.2f} ms, {rate / 1e9:,.0f} GFLOP/s, "
            f"{rate / facts['flops_per_second']:.0%} of the products' rate"
        )
        table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
        table.add_column("stage")
        for name in ("ms", "of pass", "GFLOP", "MB", "GFLOP/s", "GB/s", "of floor"):
            table.add_column(name, justify="right")
        for s in each["stages"]:
            table.add_row(*_row(s, each["seconds"]))
        console.print()
        console.print(table)


def _row(s: dict[str, Any], total: float) -> list[str]:
    seconds = s["seconds"]
    flops, moved = s["flops"] / 1e9, s["bytes"] / 1e6
    return [
        s["stage"],
        f"{1e3 * seconds:.2f}",
        f"{seconds / total:.1%}",
        f"{flops:.2f}" if flops else "",
        f"{moved:.1f}" if moved else "",
        f"{flops / seconds:,.0f}" if flops and seconds else "",
        f"{moved / 1e3 / seconds:.1f}" if moved and seconds else "",
        f"{s['share_of_floor']:.0%}" if moved and seconds else "",
    ]
