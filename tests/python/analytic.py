"""Models whose weights are written by hand, so that their circuits are known: a gate, an induction head, two programs.

The library has no model without norms and no ReLU. Both are made of what it has, to float64's digits: beside an eps of
1 a stream that is TINY counts for nothing in an RMS norm, whose weight makes it large again; gelu(STEEP x) / STEEP is
ReLU.
"""

import json

import torch

import introspect
from introspect import _C

TINY = 1e-8
STEEP = 1e6


def model_of(weights: dict[str, torch.Tensor], **sizes: int) -> introspect.Model:
    """A float64 model without norms, with learned positions and biases; weights that are not given are zero.

    Names are those of Model.named_weights; sizes are n_layers, d_model, n_heads, d_head, d_mlp, d_vocab, n_ctx.
    """
    fields = {
        "model_name": "analytic",
        "original_architecture": "analytic",
        "n_key_value_heads": sizes["n_heads"],
        "act_fn": "gelu",
        "gated_mlp": False,
        "normalization_type": "RMS",
        "eps": 1.0,
        "positional_embedding_type": "standard",
        "attn_scale": 1.0,
        "qkv_bias": True,
        "attn_out_bias": True,
        "mlp_bias": True,
        **sizes,
    }
    native = _C.new_model(_C.Config.from_json(json.dumps(fields)), dtype=torch.float64)
    norms = {
        name: torch.full_like(tensor, 1 / TINY)
        for name, tensor in native.named_weights()
        if name.split(".")[-2] in ("ln1", "ln2", "ln_final")
    }
    writes = ("W_E", "W_pos", "W_O", "b_O", "W_out", "b_out")
    scaled = {name: (TINY if name.endswith(writes) else 1) * tensor for name, tensor in weights.items()}
    return introspect.Model(native.with_weights({**norms, **scaled}), name="analytic")


def or_gate() -> introspect.Model:
    """Logit 0 is 1 if either head writes its 1, and 0 if none does: ACDC's gate, Conmy et al. 2023.

    Both heads write 1 on token 0 and nothing on token 1.
    """
    one = torch.ones(1, dtype=torch.float64)
    b_qkv = torch.zeros(6, dtype=torch.float64)
    b_qkv[4:] = 1  # both heads' values
    dim0, dim1, off = torch.eye(3, dtype=torch.float64)
    return model_of(
        {
            "embed.W_E": torch.stack([0 * off, off]),
            "blocks.0.attn.W_QKV": -b_qkv.unsqueeze(1) * off,
            "blocks.0.attn.b_QKV": b_qkv,
            "blocks.0.attn.W_O": torch.stack([dim0, dim0], 1),  # [D, H K]
            "blocks.0.mlp.W_in": -STEEP * dim0.unsqueeze(0),
            "blocks.0.mlp.b_in": STEEP * one,
            "blocks.0.mlp.W_out": -dim1.unsqueeze(1) / STEEP,
            "blocks.0.mlp.b_out": dim1.clone(),
            "unembed.W_U": torch.stack([dim1, 0 * dim1]),
        },
        n_layers=1, d_model=3, n_heads=2, d_head=1, d_mlp=1, d_vocab=2, n_ctx=4,
    )  # fmt: skip


INDUCTION_EDGES = {
    "input->a0.h0<v>",
    "a0.h0->a1.h0<k>",
    "input->a1.h0<q>",
    "input->a1.h0<v>",
    "a1.h0->logits",
}


def induction_head(sharpness: float, vocab: int = 6, n_ctx: int = 8) -> introspect.Model:
    """Two attention layers that continue `A B ... A` with B; INDUCTION_EDGES are all that matter.

    Slots of the stream: token | position | previous token | out. Token 0 is the beginning, to which a head attends
    where nothing matches. Positions stand in the stream from the start and belong to no node.
    """
    V, N = vocab, n_ctx
    K = max(V, N)
    tok, pos, prev, out = 0, V, V + N, 2 * V + N
    D = 3 * V + N
    eye = lambda rows, columns, at: torch.nn.functional.pad(  # noqa: E731
        torch.eye(rows, dtype=torch.float64), (at, columns - at - rows)
    )
    qkv0, qkv1 = (torch.zeros(3 * K, D, dtype=torch.float64) for _ in range(2))
    # Layer 0: the query at position i is i - 1, the key its own position, the value the token.
    for i in range(1, N):
        qkv0[i - 1, pos + i] = sharpness
    qkv0[K : K + N] = eye(N, D, pos)
    qkv0[2 * K : 2 * K + V] = eye(V, D, tok)
    # Layer 1: the query is the token, the key the previous one (the beginning: a little of each), the value the token.
    qkv1[:V] = sharpness * eye(V, D, tok)
    qkv1[K : K + V] = eye(V, D, prev)
    qkv1[K : K + V, pos] = 0.5
    qkv1[2 * K : 2 * K + V] = eye(V, D, tok)
    o0, o1 = (torch.zeros(D, K, dtype=torch.float64) for _ in range(2))
    o0[prev : prev + V, :V] = torch.eye(V, dtype=torch.float64)
    o1[out : out + V, :V] = torch.eye(V, dtype=torch.float64)
    return model_of(
        {
            "embed.W_E": eye(V, D, tok),
            "pos_embed.W_pos": eye(N, D, pos),
            "blocks.0.attn.W_QKV": qkv0,
            "blocks.0.attn.W_O": o0,
            "blocks.1.attn.W_QKV": qkv1,
            "blocks.1.attn.W_O": o1,
            "unembed.W_U": eye(V, D, out),
        },
        n_layers=2, d_model=D, n_heads=1, d_head=K, d_mlp=1, d_vocab=V, n_ctx=N,
    )  # fmt: skip


FRACTION_EDGES = {"input->m0", "m0->a1.h0<v>", "a1.h0->logits"}


def fraction_of_previous() -> introspect.Model:
    """Logit 0 is the share of tokens so far that are token 1: what tracr compiles frac_prevs to, written by hand.

    Layer 0's MLP says whether a token is 1, layer 1's head takes the mean over all positions up to its own.
    """
    tok, is_one, share, D = 0, 3, 4, 5
    at = lambda *entries, size: torch.zeros(size, dtype=torch.float64).index_put_(  # noqa: E731
        tuple(torch.tensor(axis) for axis in zip(*(place for place, _ in entries), strict=True)),
        torch.tensor([value for _, value in entries], dtype=torch.float64),
    )
    return model_of(
        {
            "embed.W_E": torch.eye(3, D, dtype=torch.float64),
            "blocks.0.mlp.W_in": at(((0, tok + 1), STEEP), size=(1, D)),
            "blocks.0.mlp.W_out": at(((is_one, 0), 1 / STEEP), size=(D, 1)),
            "blocks.1.attn.W_QKV": at(((2, is_one), 1.0), size=(3, D)),
            "blocks.1.attn.W_O": at(((share, 0), 1.0), size=(D, 1)),
            "unembed.W_U": at(((0, share), 1.0), size=(3, D)),
        },
        n_layers=2, d_model=D, n_heads=1, d_head=1, d_mlp=1, d_vocab=3, n_ctx=8,
    )  # fmt: skip


REVERSE_EDGES = {
    "input->a0.h0<k>",
    "a0.h0->m0",
    "m0->a1.h0<q>",
    "input->a1.h0<v>",
    "a1.h0->logits",
}


def reverse(sharpness: float, vocab: int = 7, n_ctx: int = 8) -> introspect.Model:
    """Continues `x y z | z y` with x: what tracr compiles `reverse` to, written by hand for causal attention.

    length: layer 0's head finds the bar (token 0) and writes its position. opposite = 2 length - position - 1: layer
    0's MLP, as a one-hot of tents made of ReLUs. select(indices == opposite), aggregate(tokens): layer 1's head.
    Positions stand in the stream as a one-hot and as a number from the start, and belong to no node.
    """
    V, N = vocab, n_ctx
    tok, pos, num, length, opposite, out = 0, V, V + N, V + N + 1, V + N + 2, V + 2 * N + 2
    D, K, M = 2 * V + 2 * N + 2, max(V, N), N + 2
    zeros = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
    W_E, W_pos, W_U = zeros(V, D), zeros(N, D), zeros(V, D)
    W_E[:, tok : tok + V] = W_U[:, out : out + V] = torch.eye(V, dtype=torch.float64)
    W_pos[:, pos : pos + N] = torch.eye(N, dtype=torch.float64)
    W_pos[:, num] = torch.arange(N, dtype=torch.float64)
    qkv0, b0, o0 = zeros(3 * K, D), zeros(3 * K), zeros(D, K)
    b0[0] = sharpness  # every position asks for the bar
    qkv0[K, tok] = qkv0[2 * K, num] = o0[length, 0] = 1
    corners = torch.arange(-1, N + 1, dtype=torch.float64)  # hidden unit m is relu(opposite - corners[m])
    W_in, W_out = zeros(M, D), zeros(D, M)
    W_in[:, length], W_in[:, num] = 2 * STEEP, -STEEP
    for j in range(N):
        W_out[opposite + j, j : j + 3] = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64) / STEEP
    qkv1, o1 = zeros(3 * K, D), zeros(D, K)
    qkv1[:N, opposite : opposite + N] = sharpness * torch.eye(N, dtype=torch.float64)
    qkv1[K : K + N, pos : pos + N] = torch.eye(N, dtype=torch.float64)
    qkv1[2 * K : 2 * K + V, tok : tok + V] = o1[out : out + V, :V] = torch.eye(V, dtype=torch.float64)
    return model_of(
        {
            "embed.W_E": W_E,
            "pos_embed.W_pos": W_pos,
            "blocks.0.attn.W_QKV": qkv0,
            "blocks.0.attn.b_QKV": b0,
            "blocks.0.attn.W_O": o0,
            "blocks.0.mlp.W_in": W_in,
            "blocks.0.mlp.b_in": -STEEP * (1 + corners),
            "blocks.0.mlp.W_out": W_out,
            "blocks.1.attn.W_QKV": qkv1,
            "blocks.1.attn.W_O": o1,
            "unembed.W_U": W_U,
        },
        n_layers=2, d_model=D, n_heads=1, d_head=K, d_mlp=M, d_vocab=V, n_ctx=N,
    )  # fmt: skip


def linear(rng: torch.Generator) -> introspect.Model:
    """Random embeddings, values and outputs, uniform attention, no MLP: logits are linear in every sender's output."""
    sizes = {"n_layers": 3, "d_model": 8, "n_heads": 2, "d_head": 4, "d_mlp": 1, "d_vocab": 11, "n_ctx": 8}
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    weights = {"embed.W_E": draw(11, 8), "pos_embed.W_pos": draw(8, 8), "unembed.W_U": draw(11, 8)}
    for layer in range(3):
        qkv = draw(24, 8)
        qkv[:16] = 0
        weights |= {f"blocks.{layer}.attn.W_QKV": qkv, f"blocks.{layer}.attn.W_O": draw(8, 8) / 2}
    return model_of(weights, **sizes)
