"""Runs in SAELens's environment: features, reconstructions and folded forms of its own classes, with given weights.

    python saelens_dictionaries.py FOLDER

FOLDER holds jobs.json ({name: SAELens's config}) and weights.safetensors ("<name>.<weight>", in SAELens's layout, and
"<name>.x"). It writes answers.safetensors: "<name>.f", "<name>.y" and, where it folds norms, those of the folded.
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens.registry import get_sae_class, get_sae_training_class
from safetensors.torch import load_file, save_file


def run(config: dict, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    training = config.pop("training", False)
    kind, config_kind = (get_sae_training_class if training else get_sae_class)(config.pop("architecture"))
    sae = kind(config_kind(dtype="float64", device="cpu", **config))
    x = weights.pop("x")
    for name, weight in weights.items():
        getattr(sae, name).data = weight
    out = {"f": sae.encode(x).to_dense() if sae.encode(x).is_sparse else sae.encode(x), "y": sae(x)}
    try:
        sae.fold_W_dec_norm()
    except NotImplementedError:
        return out
    folded = sae.encode(x)
    return out | {"folded_f": folded.to_dense() if folded.is_sparse else folded, "folded_y": sae(x)}


def main(folder: Path) -> None:
    given, answers = load_file(folder / "weights.safetensors"), {}
    for name, config in json.loads((folder / "jobs.json").read_text()).items():
        own = {key.removeprefix(f"{name}."): t for key, t in given.items() if key.startswith(f"{name}.")}
        with torch.no_grad():
            for key, tensor in run(config, own).items():
                answers[f"{name}.{key}"] = tensor.contiguous()
    save_file(answers, folder / "answers.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
