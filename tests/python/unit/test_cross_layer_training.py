"""Training of cross-layer transcoders: losses and gradients against plain torch, planted features, checkpoints."""

import pytest
import torch
from tiny import write_tiny
from torch import Tensor

import introspect
from introspect import _C
from introspect.sae import CrossLayerTrainer, CrossLayerTranscoder
from introspect.sae.recovery import recovery

N, L, D, OUT, F = 40, 3, 6, 5, 24


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(objective: str, *, shift: float = 0.0, **options) -> CrossLayerTrainer:
    """Weights in which nothing is 0, so that no term of a gradient can hide."""
    options = {"d_sae": F, "float64": True, "objective": objective, **options}
    layers, _, W_skip = CrossLayerTrainer(L, D, OUT, **options).weights()
    sizes = {"W_enc": 0.6, "W_dec": 0.5, "b_enc": 0.1, "threshold": 0.2}
    start = [
        {name: sizes[name] * normal(*like.shape, seed=10 * layer + i) for i, (name, like) in enumerate(one.items())}
        for layer, one in enumerate(layers)
    ]
    for one in start:
        one["b_enc"] += shift
        if "threshold" in one:
            one["threshold"] = 0.3 + one["threshold"].abs()
    skip = None if W_skip is None else 0.3 * normal(*W_skip.shape, seed=98)
    return CrossLayerTrainer(L, D, OUT, start=(start, 0.2 * normal(L, OUT, seed=99), skip), **options)


class Jump(torch.autograd.Function):
    """p H(p - t), or H(p - t), with the gradient of a rectangle of width e around t."""

    @staticmethod
    def forward(ctx, p, t, e, whole):
        ctx.save_for_backward(p, t)
        ctx.e, ctx.whole = e, whole
        return (p if whole else torch.ones_like(p)) * (p > t)

    @staticmethod
    def backward(ctx, g):
        p, t = ctx.saved_tensors
        K = ((p - t).abs() < ctx.e / 2) / ctx.e
        return (g * (p > t) if ctx.whole else None), (-g * K * (t if ctx.whole else 1.0)).sum(0), None, None


def kept(rank: Tensor, k: int) -> Tensor:
    return torch.zeros_like(rank).scatter(-1, rank.topk(k, -1).indices, 1.0)


def losses(trainer: CrossLayerTrainer, layers, b_dec, W_skip, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of all outputs, and the penalty: the equations in loops over layers."""
    o = trainer.options
    y_hat = [b_dec[t] + (x[t] @ W_skip[t].T if W_skip is not None else 0) for t in range(L)]
    penalty = torch.zeros(())
    for layer, w in enumerate(layers):
        p, n = x[layer] @ w["W_enc"].T + w["b_enc"], w["W_dec"].norm(dim=1)
        if o["objective"] == "standard":
            f = torch.relu(p)
            penalty = penalty + o["l1_coefficient"] * (f * n).sum(1).mean()
        elif o["objective"] == "jumprelu":
            f = Jump.apply(p, w["threshold"], o["bandwidth"], True)
            if o["sparsity_loss"] == "tanh":
                penalty = penalty + o["l0_coefficient"] * torch.tanh(o["tanh_scale"] * f * n).sum(1).mean()
            else:
                l0 = Jump.apply(p, w["threshold"], o["bandwidth"], False).sum(1)
                penalty = penalty + o["l0_coefficient"] * l0.mean()
        else:
            rank = torch.relu(p * n)
            k = int(o["k"]) if o["objective"] == "topk" else int(o["k"] * N)
            chosen = kept(rank, k) if o["objective"] == "topk" else kept(rank.flatten(), k).view_as(rank)
            f = torch.relu(p) * chosen
        for t in range(layer, L):
            first = (t - layer) * OUT
            y_hat[t] = y_hat[t] + f @ w["W_dec"][:, first : first + OUT]
    return (torch.stack(y_hat) - y).square().sum((0, 2)).mean(), penalty


CASES = {
    "standard": {"l1_coefficient": 0.4},
    "jumprelu step": {"objective": "jumprelu", "l0_coefficient": 0.2, "bandwidth": 0.4},
    "jumprelu tanh": {"objective": "jumprelu", "l0_coefficient": 0.3, "sparsity_loss": "tanh", "bandwidth": 0.4},
    "topk": {"k": 3, "aux": "none"},
    "batchtopk": {"k": 2.5, "aux": "none"},
    "skip": {"objective": "standard", "skip": True},
}


@pytest.mark.parametrize("shift", [0.0, -3.0], ids=["many", "few"])  # dense and sparse paths
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_equations(case, shift):
    options = {"objective": case} | CASES[case]
    trainer = made(shift=shift, **options)
    x, y = normal(L, N, D, seed=1), normal(L, N, OUT, seed=2)
    layers, b_dec, W_skip = trainer.weights()
    leaves = [*(t for one in layers for t in one.values()), b_dec, *([] if W_skip is None else [W_skip])]
    for t in leaves:
        t.requires_grad_()
    mse, penalty = losses(trainer, layers, b_dec, W_skip, x, y)
    theirs = torch.autograd.grad(mse + penalty, leaves)
    metrics, (of_layers, of_bias, of_skip) = trainer.gradients(x, y)
    assert metrics.mse == pytest.approx(mse.item(), rel=1e-10)
    assert metrics.sparsity_loss == pytest.approx(penalty.item(), rel=1e-10)
    ours = [*(one[name] for one, w in zip(of_layers, layers, strict=True) for name in w), of_bias]
    ours += [] if of_skip is None else [of_skip]
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)
    norm = torch.stack([g.square().sum() for g in theirs]).sum().sqrt().item()
    assert metrics.gradient_norm == pytest.approx(norm, rel=1e-10)


def test_dead_features_are_drawn_to_what_all_layers_leave_of_their_outputs():
    trainer = made("topk", k=2, aux="residual", aux_coefficient=0.5, dead_window=1, lr=1e-9)
    x, y = normal(L, N, D, seed=1), normal(L, N, OUT, seed=2)
    for _ in range(3):
        trainer.step(x, y)
    dead = trainer.steps_since_fired() > 1
    assert dead.any() and not dead.all()
    layers, b_dec, _ = trainer.weights()
    y_hat, total = b_dec[:, None].expand(L, N, OUT).clone(), 0.0
    for layer, w in enumerate(layers):
        p, n = x[layer] @ w["W_enc"].T + w["b_enc"], w["W_dec"].norm(dim=1)
        f = torch.relu(p) * kept(torch.relu(p * n), 2)
        y_hat[layer:] += (f @ w["W_dec"]).unflatten(1, (-1, OUT)).movedim(1, 0)
    for layer, w in enumerate(layers):
        ids = dead[layer].nonzero()[:, 0]
        p = x[layer] @ w["W_enc"][ids].T + w["b_enc"][ids]
        rank = p * w["W_dec"][ids].norm(dim=1)
        some = p * (kept(rank, D // 2) if len(ids) > D // 2 else 1)
        left = (y - y_hat)[layer:].movedim(0, 1).flatten(1)
        total += 0.5 * min(len(ids) / (D // 2), 1) * (some @ w["W_dec"][ids] - left).square().sum(1).mean().item()
    assert trainer.gradients(x, y)[0].aux_loss == pytest.approx(total, rel=1e-10)


def test_a_step_is_adam_s_on_all_weights_with_one_clip():
    trainer = made("standard", lr=1e-2, clip=0.5)
    x, y = normal(L, N, D, seed=1), normal(L, N, OUT, seed=2)
    layers, b_dec, _ = trainer.weights()
    leaves = [*(t.requires_grad_() for one in layers for t in one.values()), b_dec.requires_grad_()]
    adam = torch.optim.Adam(leaves, lr=1e-2)
    for _ in range(5):
        adam.zero_grad()
        sum(losses(trainer, layers, b_dec, None, x, y)).backward()
        torch.nn.utils.clip_grad_norm_(leaves, 0.5)
        adam.step()
        trainer.step(x, y)
    mine, bias, _ = trainer.weights()
    for one, theirs in zip(mine, layers, strict=True):
        for name in theirs:
            torch.testing.assert_close(one[name], theirs[name].detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(bias, b_dec.detach(), rtol=1e-9, atol=1e-11)


def test_input_scales_are_of_each_layer_and_folded_into_what_infers():
    trainer = made("topk", k=3, input_norm="expected_average_only_in", skip=True, lr=1e-3)
    x, y = normal(L, N, D, seed=1), normal(L, N, OUT, seed=2)
    x = x * torch.tensor([1.0, 5.0, 30.0])[:, None, None]
    y = y * torch.tensor([7.0, 0.1, 2.0])[:, None, None]
    trainer.step(x, y)
    s_in = D**0.5 / x.norm(dim=2).mean(1)[:, None, None]
    s_out = OUT**0.5 / y.norm(dim=2).mean(1)[:, None, None]
    layers, b_dec, W_skip = trainer.weights()
    y_hat = b_dec[:, None] + torch.einsum("lnd,lod->lno", x * s_in, W_skip)
    for layer, w in enumerate(layers):
        p = (x * s_in)[layer] @ w["W_enc"].T + w["b_enc"]
        f = torch.relu(p) * kept(torch.relu(p * w["W_dec"].norm(dim=1)), 3)
        y_hat[layer:] += (f @ w["W_dec"]).unflatten(1, (-1, OUT)).movedim(1, 0)
    torch.testing.assert_close(trainer.transcoder()(x), y_hat / s_out, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("objective", ["topk", "jumprelu"])
def test_planted_cross_layer_features_are_learned(objective):
    """Features of layer 0 that write layers 0 and 1, and features of layer 1: outputs are theirs, and nothing else."""
    rng = torch.Generator().manual_seed(0)
    d, m, rows = 32, 32, 512
    reads = torch.nn.functional.normalize(torch.randn(2, m, d, generator=rng), dim=2)
    writes = [torch.randn(m, 2 * d, generator=rng) / d**0.5, torch.randn(m, d, generator=rng) / d**0.5]

    def batch():
        f = (torch.rand(2, rows, m, generator=rng) < 0.06) * (1 + torch.rand(2, rows, m, generator=rng))
        y = torch.stack([f[0] @ writes[0][:, :d], f[0] @ writes[0][:, d:] + f[1] @ writes[1]])
        return f @ reads, y

    own = {"topk": {"k": 2}, "jumprelu": {"sparsity_loss": "tanh", "l0_coefficient": 0.1, "bandwidth": 0.5}}
    trainer = CrossLayerTrainer(2, d, d_sae=m, objective=objective, lr=3e-3, dead_window=100, **own[objective])
    before = recovery(trainer.transcoder().layers[0], writes[0]).mcc
    for _ in range(600):
        metrics = trainer.step(*batch())
    clt = trainer.transcoder()
    found = [recovery(clt.layers[layer], writes[layer]).mcc for layer in range(2)]
    assert metrics.explained_variance > 0.7, metrics
    assert min(found) > {"topk": 0.9, "jumprelu": 0.8}[objective] and before < 0.3, (before, found)


def test_a_loaded_trainer_goes_on_with_the_same_numbers(tmp_path):
    whole, part = (made("jumprelu", input_norm="expected_average_only_in", lr=1e-2) for _ in range(2))
    batches = [(normal(L, N, D, seed=i), normal(L, N, OUT, seed=50 + i)) for i in range(6)]
    for x, y in batches[:3]:
        whole.step(x, y)
        part.step(x, y)
    part.save(tmp_path)
    part = CrossLayerTrainer.load(tmp_path)
    for x, y in batches[3:]:
        a, b = whole.step(x, y), part.step(x, y)
        assert a.to_dict() == b.to_dict()
    assert whole.transcoder() == part.transcoder() and part.options == whole.options
    torch.testing.assert_close(part.firing_rates(), whole.firing_rates(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"objective": "gated"}, introspect.ConfigError, "standard, jumprelu, topk"),
        ({"input_norm": "layer_norm"}, introspect.ConfigError, "transcoder needs an input norm|input norm must be"),
        ({"resample_every": 10}, introspect.ConfigError, "resampled"),
        ({"k": F + 1}, ValueError, "k must be above 0 and at most"),
        ({"objectiv": "topk"}, introspect.ConfigError, "objective"),
    ],
)
def test_what_a_cross_layer_trainer_cannot_have_is_named(change, error, says):
    with pytest.raises(error, match=says):
        CrossLayerTrainer(L, D, **{"d_sae": F, "objective": "topk", "k": 3} | change)


def test_rows_that_do_not_fit_and_numbers_that_are_not_finite_leave_it_as_it_was():
    trainer = made("topk", k=3)
    x, y = normal(L, N, D, seed=1), normal(L, N, OUT, seed=2)
    with pytest.raises(introspect.ShapeError, match=r"x must be \[3, N, 6\]"):
        trainer.step(x[:2], y)
    with pytest.raises(introspect.ShapeError, match="as many rows"):
        trainer.step(x, y[:, 1:])
    trainer.step(x, y)
    before = trainer.transcoder()
    y[1, 0, 0] = float("nan")
    with pytest.raises(introspect.Error, match="the loss is nan"):
        trainer.step(x, y)
    assert trainer.transcoder() == before and trainer.steps == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")), dtype=torch.float64)


def texts(n: int = 60) -> list[list[int]]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(3, 101, (30,), generator=rng).tolist() for _ in range(n)]


def run(model, folder=None, *, stop=None, **options) -> CrossLayerTranscoder:
    def watch(metrics):
        if stop is not None and metrics.step == stop:
            raise KeyboardInterrupt

    streaming = {"is_dataset_tokenized": False, "context_size": 16, "sequence_separator_token": None,
                 "prepend_bos": False, "exclude_special_tokens": False, "buffer_tokens": 256}  # fmt: skip
    return CrossLayerTranscoder.train(
        model, texts(), d_sae=32, architecture="topk", k=4, training_tokens=64 * 20, train_batch_size_tokens=64,
        held_out_tokens=128, checkpoint_path=folder, checkpoint_every=5, on_step=watch, streaming=streaming,
        float64=True, **options,
    )  # fmt: skip


def test_a_model_s_transcoder_is_trained_and_goes_on_from_its_checkpoint(model, tmp_path):
    whole = run(model)
    assert (whole.n_layers, whole.d_in, whole.d_sae) == (3, 32, 32)
    assert whole.origin.model_hash == model.native.hash
    assert [site.hook_name for site in whole.origin.outputs] == [f"blocks.{i}.hook_mlp_out" for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, stop=12)
    assert [path.name for path in tmp_path.iterdir()] == ["step-10"]
    with pytest.raises(introspect.IoError, match="resume goes on from it"):
        run(model, tmp_path)
    assert run(model, tmp_path, resume=True) == whole


def by_hand(clt, edits=None):
    """Hooks that do the transcoder's equations: all reads, and the outputs that take the place of the MLPs'."""
    read = {}

    def keep(x, hook):
        read[hook.layer()] = x.clone()

    def write(x, hook):
        t = hook.layer()
        f = [clt.layers[layer].encode(read[layer]) for layer in range(t + 1)]
        for (layer, feature), value in (edits or {}).items():
            if layer <= t:
                f[layer][..., feature] = value
        parts = sum(f[layer] @ clt.W_dec(layer)[:, t - layer] for layer in range(t + 1))
        return parts + (0 if clt.b_dec is None else clt.b_dec[t])

    names = [site.hook_name for site in clt.origin.inputs], [site.hook_name for site in clt.origin.outputs]
    return [(name, keep) for name in names[0]] + [(name, write) for name in names[1]]


@pytest.mark.parametrize("edits", [{}, {(0, 3): 2.0, (1, 5): -1.0}], ids=["plain", "edited"])
def test_spliced_into_a_model_it_is_what_hooks_make_of_the_equations(model, edits):
    clt = run(model)
    tokens = torch.tensor(texts(2))[:, :12]
    expected = model.run_with_hooks(tokens, by_hand(clt, edits))
    with model.splice(clt, clamp=edits, error_term=False):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-9)


def test_with_the_error_kept_only_what_is_edited_changes_every_layer_above(model):
    clt = run(model)
    tokens = torch.tensor(texts(2))[:, :12]
    plain = model(tokens)
    with model.splice(clt):
        assert torch.equal(model(tokens), plain)
    read = {}

    def keep(x, hook):
        read["f"] = clt.layers[1].encode(x)[..., 5:6]

    def add(x, hook):
        return x + (7 - read["f"]) * clt.W_dec(1)[5, hook.layer() - 1]

    hooks = [(clt.origin.inputs[1].hook_name, keep)] + [(clt.origin.outputs[t].hook_name, add) for t in (1, 2)]
    expected = model.run_with_hooks(tokens, hooks)
    with model.splice(clt, clamp={(1, 5): 7.0}):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-9)
    for wrong, error in (({3: 1.0}, TypeError), ({(9, 0): 1.0}, IndexError), ({(0, 99): 1.0}, IndexError)):
        with pytest.raises(error), model.splice(clt, add=wrong):
            pass


def test_norms_that_features_were_ranked_by_are_those_of_all_that_they_write(model):
    layers = [
        _C.Dictionary(
            "topk", {"W_enc": normal(20, 32, seed=i), "W_dec": normal(20, (3 - i) * 32, seed=9 + i) / 6},
            k=4.0, subtract_b_dec=False, rank_by_decoder_norm=True,
        )
        for i in range(3)
    ]  # fmt: skip
    where = run(model).origin
    clt = CrossLayerTranscoder.of(_C.CrossLayerTranscoder(layers, origin=where))
    tokens = torch.tensor(texts(2))[:, :12]
    expected = model.run_with_hooks(tokens, by_hand(clt.fold_W_dec_norm()))
    with model.splice(clt, error_term=False):
        torch.testing.assert_close(model(tokens), expected, rtol=0, atol=1e-9)
