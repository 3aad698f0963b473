"""Small files in the layout of the suites that laboratories published of their own models: Gemma, Llama and Qwen Scope.

See dictionary_files, which lists them with those of the libraries.
"""

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from written_dictionary import D, F, K, Written, describe, draw, jump, threshold, top


def gemma_scope(
    root: Path, repo: str = "gemma-scope-2b-pt-res", folder: str = "layer_20/width_16k/average_l0_71"
) -> Written:
    place = root / f"google--{repo}" / folder
    place.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec = draw(5)
    th = threshold(5)
    arrays = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": th}
    np.savez(place / "params.npz", **{name: t.numpy() for name, t in arrays.items()})

    def run(x):
        scale = math.sqrt(D) if folder.startswith("embedding") else 1.0  # trained before Gemma's sqrt(d)
        f = jump(x / scale @ W_enc + b_enc, th)
        return f, (f @ W_dec + b_dec) * scale

    hook = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}.get(repo[-3:], "ln2.hook_normalized")
    out = "hook_mlp_out" if "transcoders" in repo else hook
    if folder.startswith("embedding"):
        return Written(place, run, "hook_embed", "hook_embed", "google/gemma-2-2b")
    return Written(place, run, f"blocks.20.{hook}", f"blocks.20.{out}", "google/gemma-2-2b")


def gemma_scope_2(root: Path, kind: str = "resid_post") -> Written:
    affine = kind == "transcoder"
    name = "layer_12_width_16k_l0_small" + ("_affine" if affine else "")
    folder = root / "google--gemma-scope-2-270m-pt" / kind / name
    W_enc, b_enc, W_dec, b_dec = draw(6)
    th = threshold(6)
    tensors = {"w_enc": W_enc, "w_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": th}
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(7))  # [d_in, d_out]
    points = {
        "resid_post": ("output", None, "hook_resid_post", "hook_resid_post"),
        "attn_out": ("self_attn.o_proj.input", None, "attn.hook_z", "attn.hook_z"),
        "mlp_out": ("post_feedforward_layernorm.output", None, "hook_mlp_out", "hook_mlp_out"),
        "transcoder": (
            "pre_feedforward_layernorm.output",
            "post_feedforward_layernorm.output",
            "mlp.hook_in",
            "hook_mlp_out",
        ),
    }[kind]
    cfg = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "width": F, "affine_connection": affine}
    cfg |= {"hf_hook_point_in": f"model.layers.12.{points[0]}", "type": "transcoder" if affine else "sae"}
    if affine:
        tensors["affine_skip_connection"] = skip
        cfg["hf_hook_point_out"] = f"model.layers.12.{points[1]}"
    describe(folder, "config.json", cfg)
    save_file(tensors, folder / "params.safetensors")

    def run(x):
        f = jump(x @ W_enc + b_enc, th)
        y = f @ W_dec + b_dec
        return f, y + x @ skip if affine else y

    return Written(folder, run, f"blocks.12.{points[2]}", f"blocks.12.{points[3]}", "google/gemma-3-270m")


def gemma_scope_2_crosscoder(root: Path) -> Written:
    """Two layers: features of each read it alone and write both."""
    folder = root / "google--gemma-scope-2-1b-pt" / "crosscoder" / "layer_7_13_width_16k_l0_medium"
    describe(folder, "config.json", {"architecture": "jump_relu", "model_name": "gemma-3-1b-pt"})
    parts = []
    for layer in range(2):
        W_enc, b_enc, _, b_dec = draw(10 + layer)
        W_dec = torch.randn(F, 2, D, generator=torch.Generator().manual_seed(20 + layer))
        parts.append((W_enc, b_enc, threshold(layer), W_dec, b_dec))
        names = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec")
        save_file(dict(zip(names, parts[-1], strict=True)), folder / f"params_layer_{layer}.safetensors")

    def run(x):
        f = [jump(x[..., layer * D : (layer + 1) * D] @ p[0] + p[1], p[2]) for layer, p in enumerate(parts)]
        y = [sum(f[i] @ parts[i][3][:, t] for i in range(2)) + parts[t][4] for t in range(2)]
        return torch.cat(f, -1), torch.cat(y, -1)

    return Written(folder, run, "blocks.7.hook_resid_post", "blocks.7.hook_resid_post", "google/gemma-3-1b-pt")


def llama_scope(root: Path) -> Written:
    """The threshold is of the model's own scale, the weights of inputs scaled to a mean norm of sqrt(d)."""
    folder = root / "fnlp--Llama3_1-8B-Base-LXR-8x" / "Llama3_1-8B-Base-L15R-8x"
    W_enc, b_enc, W_dec, b_dec = draw(8)
    W_dec = W_dec / W_dec.norm(dim=-1, keepdim=True)
    average, raw = 9.5, 0.4
    cfg = {
        "d_model": D,
        "d_sae": F,
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
    }
    cfg |= {"jump_relu_threshold": raw, "act_fn": "jumprelu", "norm_activation": "dataset-wise"}
    describe(folder, "hyperparams.json", cfg | {"dataset_average_activation_norm": {"in": average, "out": average}})
    (folder / "checkpoints").mkdir()
    tensors = {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T, "decoder.bias": b_dec}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "checkpoints" / "final.safetensors")

    def run(x):
        scale = math.sqrt(D) / average
        f = jump(x * scale @ W_enc + b_enc, raw * scale)
        return f, (f @ W_dec + b_dec) / scale

    hook = "blocks.15.hook_resid_post"
    return Written(folder, run, hook, hook, "meta-llama/Llama-3.1-8B")


def qwen_scope(root: Path) -> Written:
    """k in the repository's name; negative values among the k largest stay."""
    folder = root / f"Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    folder.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec = draw(9)
    b_enc = b_enc - 3.0  # so that some of the largest are below 0
    torch.save(
        {"W_enc": W_enc.T.contiguous(), "W_dec": W_dec.T, "b_enc": b_enc, "b_dec": b_dec}, folder / "layer14.sae.pt"
    )

    def run(x):
        f = top(x @ W_enc + b_enc)
        return f, f @ W_dec + b_dec

    hook = "blocks.14.hook_resid_post"
    return Written(folder / "layer14.sae.pt", run, hook, hook, "Qwen/Qwen3-1.7B-Base")
