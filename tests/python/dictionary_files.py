"""Small files in the exact layout of each published format, and what each computes, in plain torch.

A maker writes a file or folder below `root` and returns where it lies, a function x -> (features, output), and what its
name and description say. Names of folders are those of the published repositories, since they say what files do not.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D, F, OUT, K = 6, 16, 5, 3


@dataclass
class Written:
    path: Path
    run: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    hook: str = ""
    hook_out: str = ""
    model: str = ""
    options: dict = field(default_factory=dict)


def draw(seed: int = 0, d_out: int = D):
    """W_enc [D, F], b_enc, W_dec [F, d_out], b_dec, all of them unlike one another."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return normal(D, F), normal(F) * 0.3, normal(F, d_out), normal(d_out)


def threshold(seed: int = 1) -> torch.Tensor:
    return torch.rand(F, generator=torch.Generator().manual_seed(seed)) * 1.5


def jump(p: torch.Tensor, th: torch.Tensor | float) -> torch.Tensor:
    return torch.relu(p) * (p > th)


def top(p: torch.Tensor, k: int = K) -> torch.Tensor:
    kept = p.topk(k, dim=-1)
    return torch.zeros_like(p).scatter(-1, kept.indices, kept.values)


def describe(folder: Path, name: str, content: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def saelens(root: Path, architecture: str = "standard", **cfg) -> Written:
    """Version 6, of any of SAELens's architectures."""
    folder = root / "blocks.3.hook_resid_post"
    transcoder = "transcoder" in architecture
    W_enc, b_enc, W_dec, b_dec = draw(d_out=OUT if transcoder else D)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    subtract = cfg.setdefault("apply_b_dec_to_input", not transcoder)
    metadata = {"sae_lens_version": "6.54.12", "model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
    metadata |= {"context_size": 128, "prepend_bos": True}
    if transcoder:
        metadata["hook_name_out"] = "blocks.3.hook_mlp_out"
        cfg["d_out"] = OUT
    norms = W_dec.norm(dim=-1)
    rescaled = cfg.get("rescale_acts_by_decoder_norm", False)
    act = torch.relu
    if "jumprelu" in architecture:
        th = tensors["threshold"] = threshold()
        act = lambda p: jump(p, th)  # noqa: E731
    elif architecture == "topk":
        cfg["k"] = K
        act = lambda p: torch.relu(top(p))  # noqa: E731
    elif architecture == "abstopk":
        cfg["k"] = K
        act = lambda p: p * (top(p.abs()) != 0)  # noqa: E731
    elif architecture == "gated":
        del tensors["b_enc"]
        tensors |= {"b_gate": b_enc, "b_mag": threshold(2) - 0.5, "r_mag": threshold(3) - 0.7}
        act = lambda q: (  # noqa: E731
            (q + b_enc > 0) * torch.relu(q * tensors["r_mag"].exp() + tensors["b_mag"])
        )
    if "skip" in architecture:
        tensors["W_skip"] = torch.randn(OUT, D, generator=torch.Generator().manual_seed(9))
    norm = cfg.setdefault("normalize_activations", "none")

    def run(x):
        given, scale, shift = x, 1.0, 0.0
        if norm == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / math.sqrt(D)
            x = x / scale
        elif norm == "layer_norm":
            shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            x = (x - shift) / (scale + 1e-5)
        p = (x - b_dec if subtract else x) @ W_enc + (0 if architecture == "gated" else b_enc)
        f = act(p * norms if rescaled else p)
        y = (f / norms if rescaled else f) @ W_dec + b_dec
        y = y * scale + shift
        return f, y + given @ tensors["W_skip"].T if "skip" in architecture else y

    describe(
        folder,
        "cfg.json",
        {"architecture": architecture, "d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu"}
        | {"reshape_activations": "none", **cfg, "metadata": metadata},
    )
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "sae_weights.safetensors")
    hook = "blocks.3.hook_resid_post"
    return Written(folder, run, hook, "blocks.3.hook_mlp_out" if transcoder else hook, "gpt2")


def bloom(root: Path) -> Written:
    """Before version 6: one flat cfg.json, other names, a scaling_factor of ones."""
    folder = root / "jbloom--GPT2-Small-SAEs-Reformatted" / "blocks.8.hook_resid_pre"
    W_enc, b_enc, W_dec, b_dec = draw(4)
    cfg = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "d_in": D,
        "d_sae": F,
    }
    cfg |= {"hook_point_head_index": None, "dataset_path": "Skylion007/openwebtext", "context_size": 128}
    describe(folder, "cfg.json", cfg | {"dtype": "torch.float32", "device": "mps", "l1_coefficient": 8e-5, "lr": 4e-4})
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "scaling_factor": torch.ones(F)}
    save_file(tensors, folder / "sae_weights.safetensors")

    def run(x):
        f = torch.relu((x - b_dec) @ W_enc + b_enc)
        return f, f @ W_dec + b_dec

    hook = "blocks.8.hook_resid_pre"
    return Written(folder, run, hook, hook, "gpt2-small")


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


def dictionary_learning(root: Path, kind: str = "AutoEncoder") -> Written:
    folder = root / "pythia70m" / "trainer_0"
    W_enc, b_enc, W_dec, b_dec = draw(11)
    th = threshold(11)
    linear = {"encoder.weight": W_enc.T.contiguous(), "decoder.weight": W_dec.T}  # as nn.Linear has them
    trainer = {
        "dict_class": kind,
        "activation_dim": D,
        "dict_size": F,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    }
    trainer |= {"submodule_name": "resid_post_layer_3", "k": K}
    subtract, act = True, torch.relu
    if kind == "AutoEncoder":
        W_dec /= W_dec.norm(
            dim=-1, keepdim=True
        )  # in place: its trainer keeps rows at length 1, and its reader makes them so
        state = linear | {"encoder.bias": b_enc, "bias": b_dec}
    elif kind == "AutoEncoderNew":
        state, subtract = linear | {"encoder.bias": b_enc, "decoder.bias": b_dec}, False
    elif kind == "GatedAutoEncoder":
        state = linear | {"decoder_bias": b_dec, "r_mag": th - 0.5, "gate_bias": b_enc, "mag_bias": th - 0.8}
        act = lambda q: (q + b_enc > 0) * torch.relu((th - 0.5).exp() * q + th - 0.8)  # noqa: E731
    elif kind == "AutoEncoderTopK":
        state = linear | {"encoder.bias": b_enc, "b_dec": b_dec, "k": torch.tensor(K, dtype=torch.int)}
        state["threshold"] = torch.tensor(0.7)
        act = lambda p: top(torch.relu(p))  # noqa: E731
    elif kind == "BatchTopKSAE":
        state = linear | {"encoder.bias": b_enc, "b_dec": b_dec, "k": torch.tensor(K, dtype=torch.int)}
        state["threshold"] = torch.tensor(0.7)
        act = lambda p: jump(p, 0.7)  # noqa: E731
    else:
        state = {"W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
        if kind == "JumpReluAutoEncoder":
            state["threshold"], subtract = th, False
            act = lambda p: jump(p, th)  # noqa: E731
        else:
            state |= {"threshold": torch.tensor(0.7), "k": torch.tensor(K), "group_sizes": torch.tensor([4, 12])}
            act = lambda p: jump(p, 0.7)  # noqa: E731
    describe(folder, "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128, "d_submodule": D}})
    torch.save(state, folder / "ae.pt")

    def run(x):
        p = (x - b_dec if subtract else x) @ W_enc + (0 if kind == "GatedAutoEncoder" else b_enc)
        f = act(p)
        return f, f @ W_dec + b_dec

    hook = "blocks.3.hook_resid_post"
    return Written(folder, run, hook, hook, "EleutherAI/pythia-70m-deduped")


def sparsify(root: Path, activation: str = "topk", transcode: bool = False) -> Written:
    folder = root / "EleutherAI--sae-pythia-70m-32k" / ("layers.2.mlp" if transcode else "layers.2")
    W_enc, b_enc, W_dec, b_dec = draw(12)
    k = 4
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(13))
    tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    cfg = {"activation": activation, "expansion_factor": 4, "normalize_decoder": True, "num_latents": F, "k": k}
    cfg |= {"multi_topk": False, "skip_connection": transcode, "transcode": transcode, "d_in": D}
    if transcode:
        tensors["W_skip"] = skip
    describe(folder, "cfg.json", cfg)
    describe(folder.parent, "config.json", {"model": "EleutherAI/pythia-70m", "ctx_len": 2048, "dataset": "pile"})
    save_file(tensors, folder / "sae.safetensors")

    def run(x):
        p = torch.relu((x if transcode else x - b_dec) @ W_enc + b_enc)
        if activation == "groupmax":
            groups = p.unflatten(-1, (k, -1))
            f = (groups * (groups == groups.max(-1, keepdim=True).values)).flatten(-2)
        else:
            f = top(p, k)
        y = f @ W_dec + b_dec
        return f, y + x @ skip.T if transcode else y

    if transcode:
        return Written(folder, run, "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", "EleutherAI/pythia-70m")
    return Written(folder, run, "blocks.2.hook_resid_post", "blocks.2.hook_resid_post", "EleutherAI/pythia-70m")


def openai(root: Path, activation: str = "TopK") -> Written:
    location = "resid_post_attn_v5_32k" if activation == "TopK" else "mlp_post_act"
    folder = root / "gpt2-small" / location / "autoencoders"
    folder.mkdir(parents=True)
    W_enc, b_enc, W_dec, b_dec = draw(14)
    state = {"pre_bias": b_dec, "encoder.weight": W_enc.T.contiguous(), "latent_bias": b_enc, "decoder.weight": W_dec.T}
    state |= {"stats_last_nonzero": torch.zeros(F, dtype=torch.long), "latents_activation_frequency": torch.ones(F)}
    state |= {"latents_mean_square": torch.zeros(F), "activation": activation}
    if activation == "TopK":
        state["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    torch.save(state, folder / "8.pt")

    def run(x):
        mean = std = None
        if activation == "TopK":
            mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            x = (x - mean) / (std + 1e-5)
        p = (x - b_dec) @ W_enc + b_enc
        f = torch.relu(top(p)) if activation == "TopK" else torch.relu(p)
        y = f @ W_dec + b_dec
        return f, y if mean is None else y * std + mean

    hook = "blocks.8.hook_resid_mid" if activation == "TopK" else "blocks.8.mlp.hook_post"
    return Written(folder / "8.pt", run, hook, hook, "gpt2")


def goodfire(root: Path) -> Written:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    W_enc, b_enc, W_dec, b_dec = draw(15)
    state = {"encoder_linear.weight": W_enc.T, "encoder_linear.bias": b_enc}
    torch.save(state | {"decoder_linear.weight": W_dec.T, "decoder_linear.bias": b_dec}, path)

    def run(x):
        f = torch.relu(x @ W_enc + b_enc)
        return f, f @ W_dec + b_dec

    hook = "blocks.19.hook_resid_post"
    return Written(path, run, hook, hook, "meta-llama/Llama-3.1-8B-Instruct")


def circuit_tracer(root: Path, activation: str = "") -> Written:
    folder = root / "mwhanna--qwen3-4b-transcoders"
    folder.mkdir(parents=True, exist_ok=True)
    W_enc, b_enc, W_dec, b_dec = draw(16)
    skip = torch.randn(D, D, generator=torch.Generator().manual_seed(17))
    tensors = {"W_enc": W_enc.T.contiguous(), "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec, "W_skip": skip}
    act = torch.relu
    if activation == "jumprelu":
        tensors["activation_function.threshold"] = threshold(16)
        act = lambda p: p * (p > threshold(16))  # noqa: E731
    elif activation == "topk":
        tensors["k"] = torch.tensor(K)
        act = lambda p: torch.relu(top(p))  # noqa: E731
    text = 'model_name: "Qwen/Qwen3-4B"\nmodel_kind: transcoder_set\nfeature_input_hook: "mlp.hook_in"  # a comment\n'
    text += "feature_output_hook: hook_mlp_out\nscan: 'qwen3-4b'\n"
    text += "activation: topk\n" if activation == "topk" else ""
    (folder / "config.yaml").write_text(text + "transcoders:\n- layer_0.safetensors\n- layer_1.safetensors\n")
    save_file(
        {"W_enc": W_enc.T.contiguous() * 2} | {n: t for n, t in tensors.items() if n != "W_enc"},
        folder / "layer_0.safetensors",
    )
    save_file(tensors, folder / "layer_1.safetensors")

    def run(x):
        f = act(x @ W_enc + b_enc)
        return f, f @ W_dec + b_dec + x @ skip.T

    return Written(folder, run, "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "Qwen/Qwen3-4B", {"layer": 1})


def ckkissane(root: Path) -> Written:
    root.mkdir(parents=True, exist_ok=True)
    path = root / "gpt2-small_L5_Hcat_z_v9.pt"
    W_enc, b_enc, W_dec, b_dec = draw(18)
    torch.save({"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}, path)
    describe(root, path.stem + "_cfg.json", {"act_size": D, "dict_size": F, "act_name": "blocks.5.attn.hook_z"})

    def run(x):
        f = torch.relu((x - b_dec) @ W_enc + b_enc)
        return f, f @ W_dec + b_dec

    return Written(path, run, "blocks.5.attn.hook_z", "blocks.5.attn.hook_z", "gpt2")


def tinystories(root: Path) -> Written:
    """Saved with strides that are not those of a dense matrix."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / f"sae_{F}_{K}.pt"
    W_enc, b_enc, W_dec, b_dec = draw(19)
    strided = W_enc.T.contiguous().T
    torch.save({"pre_bias": b_dec, "encoder_bias": b_enc, "decoder_weights": W_dec, "encoder_weights": strided}, path)

    def run(x):
        f = top((x - b_dec) @ W_enc + b_enc)
        return f, f @ W_dec + b_dec

    return Written(path, run)


def cross_layer(folder: Path, L: int = 3) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """circuit-tracer's layout; returns x [L, N, D] -> (features, output)."""
    folder.mkdir(parents=True)
    layers = []
    for i in range(L):
        W_enc, b_enc, _, b_dec = draw(30 + i)
        W_dec = torch.randn(F, L - i, D, generator=torch.Generator().manual_seed(40 + i))
        th = threshold(i)
        layers.append((W_enc, b_enc, W_dec, b_dec, th))
        names = (f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}", f"threshold_{i}")
        encoder = (W_enc.T.contiguous(), b_enc, b_dec, th)
        save_file(dict(zip(names, encoder, strict=True)), folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": W_dec}, folder / f"W_dec_{i}.safetensors")
    text = "model_name: google/gemma-2-2b\nmodel_kind: cross_layer_transcoder\nfeature_input_hook: hook_resid_mid\n"
    (folder / "config.yaml").write_text(text + "feature_output_hook: hook_mlp_out\n")

    def run(x):
        f = torch.stack([p * (p > q[4]) for q, p in ((q, x[i] @ q[0] + q[1]) for i, q in enumerate(layers))])
        y = [sum(f[i] @ layers[i][2][:, t - i] for i in range(t + 1)) + layers[t][3] for t in range(L)]
        return f, torch.stack(y)

    return run


ARCHITECTURES = ["standard", "gated", "topk", "abstopk", "jumprelu", "transcoder", "skip_transcoder"]
ARCHITECTURES += ["jumprelu_transcoder", "jumprelu_skip_transcoder"]

MAKERS: dict[str, Callable[[Path], Written]] = {
    **{f"saelens {a}": lambda root, a=a: saelens(root, a) for a in ARCHITECTURES},
    "saelens rescaled topk": lambda root: saelens(root, "topk", rescale_acts_by_decoder_norm=True),
    "saelens constant norm": lambda root: saelens(root, normalize_activations="constant_norm_rescale"),
    "saelens layer norm": lambda root: saelens(root, "topk", normalize_activations="layer_norm"),
    "saelens no input bias": lambda root: saelens(root, apply_b_dec_to_input=False),
    "bloom": bloom,
    "gemma_scope": gemma_scope,
    "gemma_scope attention": lambda root: gemma_scope(root, "gemma-scope-2b-pt-att"),
    "gemma_scope mlp": lambda root: gemma_scope(root, "gemma-scope-2b-pt-mlp"),
    "gemma_scope transcoder": lambda root: gemma_scope(root, "gemma-scope-2b-pt-transcoders"),
    "gemma_scope embedding": lambda root: gemma_scope(root, folder="embedding/width_4k/average_l0_6"),
    **{f"gemma_scope_2 {k}": lambda root, k=k: gemma_scope_2(root, k)
       for k in ("resid_post", "attn_out", "mlp_out", "transcoder")},
    "gemma_scope_2 crosscoder": gemma_scope_2_crosscoder,
    "llama_scope": llama_scope,
    "qwen_scope": qwen_scope,
    **{
        f"dictionary_learning {k}": lambda root, k=k: dictionary_learning(root, k)
        for k in ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE",
                  "MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")
    },
    "sparsify": sparsify,
    "sparsify groupmax": lambda root: sparsify(root, "groupmax"),
    "sparsify skip transcoder": lambda root: sparsify(root, transcode=True),
    "openai TopK": openai,
    "openai ReLU": lambda root: openai(root, "ReLU"),
    "goodfire": goodfire,
    "circuit_tracer relu": circuit_tracer,
    "circuit_tracer jumprelu": lambda root: circuit_tracer(root, "jumprelu"),
    "circuit_tracer topk": lambda root: circuit_tracer(root, "topk"),
    "ckkissane": ckkissane,
    "tinystories": tinystories,
}  # fmt: skip
