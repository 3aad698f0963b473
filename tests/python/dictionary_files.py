"""Small files in the exact layout of each published format, and what each computes, in plain torch.

A maker writes a file or folder below `root` and returns where it lies, a function x -> (features, output), and what its
name and description say. Names of folders are those of the published repositories, since they say what files do not.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from dictionary_scopes import gemma_scope, gemma_scope_2, gemma_scope_2_crosscoder, llama_scope, qwen_scope
from safetensors.torch import save_file
from written_dictionary import OUT, D, F, K, Written, describe, draw, jump, threshold, top


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
