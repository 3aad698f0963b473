"""Runs in the peers' environment: a HookedTransformer behind a pipe, one JSON request a line, one JSON answer a line.

Started by client.Peer.
"""

import importlib.util
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
from process import serve  # of this folder: the script that runs is here
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging


def load_hooked(
    folder: str,
    fold_ln: bool = False,
    center_writing_weights: bool = False,
    center_unembed: bool = False,
    fold_value_biases: bool = False,
    **_,
) -> HookedTransformer:
    """The model of a Hugging Face folder, in float32; from_pretrained itself knows the names of hub models only."""
    cfg = get_pretrained_model_config(folder, fold_ln=fold_ln, device="cpu")
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    state = get_pretrained_state_dict(folder, cfg, hf_model=hf_model, dtype=torch.float32)
    cfg.tokenizer_name = None
    tokenizer = None
    if (Path(folder) / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    hooked = HookedTransformer(cfg, tokenizer, move_to_device=False)
    hooked.load_and_process_state_dict(
        state,
        fold_ln=fold_ln,
        center_writing_weights=center_writing_weights,
        center_unembed=center_unembed,
        fold_value_biases=fold_value_biases,
    )
    return hooked.eval()


def save(results: dict, out: str) -> None:
    torch.save({k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in results.items()}, out)


class Commands:
    """What a request may ask for; each returns something JSON can hold."""

    def load(self, folder: str, **options) -> None:
        self.model = load_hooked(folder, **options)

    def run(self, path: str, function: str, out: str, arguments: dict) -> None:
        """Call ``function(model, **arguments)`` of a file and save the dict that it returns."""
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        save(getattr(module, function)(self.model, **arguments), out)

    def notebook(self, path: str, replace: dict[str, str], folder: str, out: str) -> None:
        """Run the cells of a file, with some lines replaced, on the model of a folder; save its ``results``."""
        source = Path(path).read_text()
        for line, other in replace.items():
            if source.count(line) != 1:
                raise ValueError(f"{path} must hold the line {line!r} once")
            source = source.replace(line, other)
        cells = {}
        with mock.patch.object(
            HookedTransformer, "from_pretrained", lambda name, **options: load_hooked(folder, **options)
        ):
            exec(compile(source, path, "exec"), cells)
        save(cells["results"], out)

    def milliseconds(self, method: str, tokens: list[list[int]], repeats: int) -> list[float]:
        """Wall times of ``model.method(tokens)`` without gradients, the results dropped outside of them."""
        call, tokens, times = getattr(self.model, method), torch.tensor(tokens), []
        with torch.no_grad():
            for _ in range(repeats):
                start = time.perf_counter()
                results = call(tokens)
                times.append(1e3 * (time.perf_counter() - start))
                del results
        return times


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    serve(Commands())
