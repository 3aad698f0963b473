"""Runs in the environment of SAELens: reads dictionaries with SAELens's own code and applies them.

    python dictionary_reader.py JOBS.json

JOBS.json: a list of {"kind", "path", "x", "out", ..}. `x` is a .pt of rows; features and output are saved to `out`.
Kinds: "saelens" is SAE.load_from_disk of a folder, "dictionary_learning" load_dictionary of that package, "sparsify"
SparseCoder.load_from_disk of that one; every other kind is the name of one of SAELens's loaders for the hub, which is
given `repo` and `folder` and finds its files below `root`.
"""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

import torch


def from_hub_loader(job):
    import sae_lens.loading.pretrained_sae_loaders as loaders
    from sae_lens.registry import get_sae_class
    from safetensors import safe_open

    root = Path(job["root"])

    def local(repo_id=None, filename=None, subfolder=None, **_):
        path = root / (subfolder or "") / filename
        if not path.exists():
            raise FileNotFoundError(path)
        return str(path)

    def shapes(repo_id, filename):
        with safe_open(root / filename, framework="pt") as f:
            return {key: f.get_slice(key).get_shape() for key in f.keys()}  # noqa: SIM118

    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = shapes
    cfg, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[job["kind"]](
        job["repo"], job["folder"], "cpu", False, {"dtype": "float32", "device": "cpu", **job.get("overrides", {})}
    )
    cfg = loaders.handle_config_defaulting(cfg)
    kind, config = get_sae_class(cfg["architecture"])
    sae = kind(config.from_dict(cfg))
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict(state)
    if "fold" in job:
        sae.fold_activation_norm_scaling_factor(job["fold"])
    return sae


def apply(job):
    x = torch.load(job["x"])
    if job["kind"] == "dictionary_learning":
        sys.modules.setdefault("nnsight", MagicMock(__spec__=ModuleSpec("nnsight", None)))  # of its training
        from dictionary_learning.utils import load_dictionary

        dictionary, _ = load_dictionary(job["path"], "cpu")
        f = dictionary.encode(x)
        return f, dictionary.decode(f)
    if job["kind"] == "sparsify":
        from sparsify import SparseCoder

        coder = SparseCoder.load_from_disk(job["path"])
        top = coder.encode(x)
        f = torch.zeros(len(x), coder.num_latents).scatter(-1, top.top_indices, top.top_acts)
        return f, coder(x).sae_out
    if job["kind"] == "saelens":
        from sae_lens import SAE

        sae = SAE.load_from_disk(job["path"])
    else:
        sae = from_hub_loader(job)
    if sae.cfg.reshape_activations == "hook_z":  # rows are flat already
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae.encode(x), sae(x)


with torch.no_grad():
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            f, y = apply(job)
            torch.save({"f": f, "y": y}, job["out"])
        except Exception as error:  # whatever it is belongs to the answer
            torch.save({"error": f"{type(error).__name__}: {error}"}, job["out"])
