"""Path patching and attribution patching against transformers with plain PyTorch hooks and autograd."""

import pytest
import torch
from plain_hooks import PlainHooks
from tiny import tiny_transformers, write_tiny_transformers

import introspect
from introspect.analysis import attribution_patch, path_patching

FAMILIES = ["gpt2", "llama", "qwen2", "gpt_neox", "gemma2"]
T = 8
METRIC = introspect.LogitDifference(5, 6)


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param)
    return PlainHooks(tiny_transformers(request.param), request.param), introspect.load_model(
        folder, dtype=torch.float64
    )


@pytest.fixture(scope="module")
def prompts():
    clean = torch.randint(3, 101, (2, T), generator=torch.Generator().manual_seed(1))
    corrupted = clean.clone()
    corrupted[:, 3:-1] = (corrupted[:, 3:-1] * 7 + 5) % 101
    return clean, corrupted


def metric(logits):
    return logits[:, -1, 5] - logits[:, -1, 6]


def is_layer_norm(plain):
    return plain.name in ("gpt2", "gpt_neox")


def direct_effect(plain, source, target, sender, receivers, freeze_mlps):
    """[pairs]: sender (layer, head) or (layer, None) for an MLP; receivers (kind, layer, head)."""
    L = len(plain.layers)
    writers = {("z", layer): plain.z(layer) for layer in range(L)}
    writers |= {("mlp", layer): plain.mlp_out(layer) for layer in range(L)}
    a, b = plain.record(source, writers), plain.record(target, writers)
    layer, head = sender
    frozen = [(writers["z", at], lambda _, at=at: b["z", at]) for at in range(L)]
    if freeze_mlps:
        frozen += [(writers["mlp", at], lambda _, at=at: b["mlp", at]) for at in range(L)]
    if head is None:
        frozen.append((writers["mlp", layer], lambda _: a["mlp", layer]))
    else:
        place = plain.z(layer, head)
        frozen.append((place, lambda _: a["z", layer][..., place[2]]))
    of = {"mlp": lambda at, _: plain.mlp_in(at), "logits": lambda *_: plain.final()}
    places = [of.get(kind, lambda at, h, kind=kind: plain.reader(kind, at, h))(at, h) for kind, at, h in receivers]
    heard = {}
    hears = [(place, lambda x, i=i: heard.update({i: x.clone()})) for i, place in enumerate(places)]
    with torch.no_grad():
        plain.run(target, [*hears, *frozen])
        patched = plain.run(target, [(place, lambda _, i=i: heard[i]) for i, place in enumerate(places)])
        return metric(patched) - metric(plain.run(target, []))


@pytest.mark.parametrize("freeze_mlps", [True, False])
@pytest.mark.parametrize(
    ("receivers", "names"),
    [
        ([("logits", None, None)], ["logits"]),
        ([("q", 2, 1), ("q", 1, 4)], ["a2.h1<q>", "a1.h4<q>"]),
        ([("k", 2, 0), ("v", 2, 1), ("mlp", 1, None)], ["a2.g0<k>", "a2.g1<v>", "m1"]),
    ],
    ids=["logits", "queries", "key, value and MLP"],
)
def test_paths_equal_plain_hooks_in_transformers(both, prompts, receivers, names, freeze_mlps):
    plain, model = both
    clean, corrupted = prompts
    grid = path_patching(model, clean, corrupted, METRIC, senders="all", receivers=names, freeze_mlps=freeze_mlps)
    for sender, name in [((0, 1), "a0.h1"), ((0, 5), "a0.h5"), ((1, 2), "a1.h2"), ((0, None), "m0"), ((1, None), "m1")]:
        expected = direct_effect(plain, clean, corrupted, sender, receivers, freeze_mlps)
        found = grid.values[:, grid.labels["sender"].index(name)]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def test_attributions_equal_autograd_through_transformers(both, prompts):
    plain, model = both
    clean, corrupted = prompts
    L, H, G = len(plain.layers), plain.n_heads, plain.n_groups
    heads = {"z": H, "q": H, "k": G, "v": G}
    points = ["resid_pre", "mlp_out", *heads]
    places = {}
    for layer in range(L):
        places |= {("resid_pre", layer): [plain.resid_pre(layer)], ("mlp_out", layer): [plain.mlp_out(layer)]}
        for point, n in heads.items():
            places[point, layer] = [
                plain.z(layer, head) if point == "z" else plain.reader(point, layer, head) for head in range(n)
            ]
    flat = {(*key, i): place for key, all_of in places.items() for i, place in enumerate(all_of)}
    there, leaves = plain.record(clean, flat), {}

    def watch(x, key):
        # Heads of one tensor are watched one by one: each is a leaf that the rest goes on from.
        leaves[key] = x if x.requires_grad else x.detach().requires_grad_()
        return leaves[key]

    plain.model.requires_grad_(False)
    output = plain.run(corrupted, [(place, lambda x, key=key: watch(x, key)) for key, place in flat.items()])
    gradients = torch.autograd.grad(metric(output).sum(), list(leaves.values()))
    found = attribution_patch(model, clean, corrupted, METRIC, points)
    floor = 1e-9 if is_layer_norm(plain) else 1e-5  # RMS norms are float32 on both sides
    for (point, layer, i), gradient in zip(leaves, gradients, strict=True):
        expected = ((there[point, layer, i] - leaves[point, layer, i].detach()) * gradient).sum(-1)
        ours = found[point].values[:, layer, :, i] if point in heads else found[point].values[:, layer]
        torch.testing.assert_close(ours, expected, rtol=floor, atol=floor, msg=lambda text, p=point: f"{p}: {text}")
