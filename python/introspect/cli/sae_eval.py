"""``introspect sae eval``: how good a dictionary is on texts that it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import step_bars
from ..tables import print_lines, print_table
from .common import MOST, DeviceOption, Dtype, DtypeOption, Json, Model, guarded, load_model, print_json
from .outputs import OutputOption, output_files, write_outputs

if TYPE_CHECKING:
    from ..sae.contexts import Contexts

SaeArgument = Annotated[
    str, typer.Argument(metavar="SAE", help="A dictionary's folder or file, or a release of SAELens.")
]
SaeIdOption = Annotated[str | None, typer.Option(metavar="ID", help="Which of a release.")]
TextsArgument = Annotated[
    list[Path], typer.Argument(exists=True, dir_okay=False, metavar="TEXT...", help="Files of text (.txt, .jsonl).")
]
TokensOption = Annotated[int, typer.Option(min=1, max=MOST, help="At most; contexts are whole.")]
ContextOption = Annotated[
    int | None, typer.Option(min=2, max=MOST, help="Tokens of a context; not given: the dictionary's, or 128.")
]


@guarded
def command(
    model: Model,
    sae: SaeArgument,
    texts: TextsArgument,
    sae_id: SaeIdOption = None,
    tokens: TokensOption = 20_000,
    context: ContextOption = None,
    spliced: Annotated[
        bool, typer.Option("--spliced/--no-spliced", help="The model's losses with the dictionary in it, too.")
    ] = True,
    output: OutputOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = "cpu",
    json: Json = False,
) -> None:
    """Measure a dictionary: explained variance, features a token, dead features, and the loss with it in the model."""
    files = output_files(output)
    dictionary = load_dictionary(sae, sae_id)
    loaded = load_model(model, dtype, device)
    contexts = contexts_of_files(loaded, dictionary, texts, tokens, context)
    from ..sae.evaluation import evaluate

    with step_bars() as step:
        found = evaluate(loaded, dictionary, contexts, spliced=spliced, progress=step)
    if json:
        print_json({"sae": sae, "model": loaded.name, "hook": found.hook_name, **found.to_dict()})
    else:
        from rich.console import Console

        console = Console()
        print_table(console, ["measure", "value"], [[name, f"{one:.6g}"] for name, one in found.to_dict().items()])
        print_lines(console, ["", *found.sentences()])
    if files:
        pictures = {"density": found.plot} if float(found.reconstruction.density.max()) > 0 else {}
        write_outputs(
            files,
            f"{Path(sae).name} in {loaded.name}",
            lambda: found.to_pandas().T.reset_index().set_axis(["measure", "value"], axis=1),
            lambda: {name: draw() for name, draw in pictures.items()},
            found.sentences(),
        )


def load_dictionary(source: str, sae_id: str | None) -> Any:
    """The dictionary of a path, or of a release."""
    import introspect

    return introspect.SAE.from_pretrained(source, sae_id)


def contexts_of_files(model: Any, dictionary: Any, texts: list[Path], tokens: int, context: int | None) -> Contexts:
    """Contexts packed as in the training, by the dictionary's rule for BOS."""
    from ..sae.contexts import contexts_of
    from ..sae.streams import token_stream

    origin = dictionary.origin
    size = min(context or origin.context_size or 128, model.cfg.n_ctx)
    stream = token_stream(model, texts, context_size=size, prepend_bos=origin.prepend_bos is not False)
    rows = stream.next(max(tokens // size, 1))
    if len(rows) == 0:
        raise ValueError(f"the texts must fill one context of {size} tokens: --context takes a smaller one")
    return contexts_of(model, rows, dictionary)
