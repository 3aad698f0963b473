"""Whole runs of dictionary training: against plain torch loops, from checkpoints, on planted features, into trouble."""

import math
from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from introspect import _C
from introspect.sae.trainer import Trainer, anthropic_jumprelu


def batches(n: int, rows: int, d: int, dtype=torch.float64, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, d, generator=g, dtype=dtype) for _ in range(n)]


class SparseAutoencoder(nn.Module):
    """The plain one of the textbooks: linear, relu, linear with rows of length 1, L1."""

    def __init__(self, d_in: int, d_hidden: int):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(d_in, d_hidden), nn.Linear(d_hidden, d_in)
        self.normalize_decoder()

    @torch.no_grad()
    def normalize_decoder(self):
        self.decoder.weight.div_(self.decoder.weight.norm(dim=0, keepdim=True))

    def forward(self, x):
        f = torch.relu(self.encoder(x))
        return self.decoder(f), f


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("means", ["of_rows", "of_all"])
def test_a_plain_torch_autoencoder_with_l1_and_unit_rows_gives_the_same_numbers(means, project):
    torch.manual_seed(0)
    d, m, l1 = 12, 48, 0.05
    sae = SparseAutoencoder(d, m).double()
    start = {
        "W_enc": sae.encoder.weight.detach().clone(),
        "b_enc": sae.encoder.bias.detach().clone(),
        "W_dec": sae.decoder.weight.detach().T.clone(),
        "b_dec": sae.decoder.bias.detach().clone(),
    }
    # A loss that is a mean over entries too is d times smaller, its L1 m times: Adam sees the first in its eps alone.
    scale = {"of_rows": 1, "of_all": d}[means]
    ours = Trainer(
        d,
        objective="standard",
        float64=True,
        start=start,
        l1_coefficient=l1 if means == "of_rows" else l1 * d / m,
        l1_by_decoder_norm=False,
        unit_decoder=True,
        project_gradient=project,
        subtract_b_dec=False,
        lr=1e-3,
        eps=1e-8 * scale,
        clip=0,
    )
    adam = torch.optim.Adam(sae.parameters(), lr=1e-3)
    for x in batches(20, 64, d):
        x_hat, f = sae(x)
        if means == "of_rows":
            loss = (x_hat - x).square().sum(-1).mean() + l1 * f.sum(-1).mean()
        else:
            loss = nn.functional.mse_loss(x_hat, x) + l1 * f.abs().mean()
        adam.zero_grad()
        loss.backward()
        if project:
            W = sae.decoder.weight
            unit = W.detach() / W.detach().norm(dim=0, keepdim=True)
            W.grad -= (W.grad * unit).sum(0, keepdim=True) * unit
        adam.step()
        sae.normalize_decoder()
        metrics = ours.step(x)
        assert metrics.loss == pytest.approx(loss.item() * scale, rel=1e-9)
        assert metrics.l0 == pytest.approx((f > 0).sum(-1).double().mean().item())
    w = ours.weights()
    torch.testing.assert_close(w["W_enc"], sae.encoder.weight.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(w["W_dec"], sae.decoder.weight.detach().T, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(w["b_dec"], sae.decoder.bias.detach(), rtol=1e-8, atol=1e-10)
    x = batches(1, 64, d, seed=9)[0]
    torch.testing.assert_close(ours.dictionary()(x), sae(x)[0].detach(), rtol=1e-8, atol=1e-9)


def test_a_topk_run_is_adam_with_clipping_warm_up_and_decay():
    d, m, k, steps, warm, decay = 12, 60, 4, 20, 5, 6
    ours = Trainer(
        d,
        objective="topk",
        d_sae=m,
        k=k,
        float64=True,
        lr=2e-2,
        warm_up_steps=warm,
        decay_steps=decay,
        total_steps=steps,
    )
    w = {name: nn.Parameter(t) for name, t in ours.weights().items()}
    adam = torch.optim.Adam(w.values(), lr=1.0)
    clipped = 0
    for step, x in enumerate(batches(steps, 80, d)):
        x = 3 * x
        p = (x - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        n = w["W_dec"].norm(dim=-1)
        ranked = torch.relu(p * n)
        f = ranked * torch.zeros_like(p).scatter(-1, ranked.topk(k, -1).indices, 1.0)
        loss = (f / n @ w["W_dec"] + w["b_dec"] - x).square().sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(w.values(), 1.0)
        clipped += norm.item() > 1
        lr = 2e-2 * min((step + 1) / warm, 1.0, (steps - step) / decay)
        adam.param_groups[0]["lr"] = lr
        adam.step()
        metrics = ours.step(x)
        assert metrics.loss == pytest.approx(loss.item(), rel=1e-9)
        assert metrics.gradient_norm == pytest.approx(norm.item(), rel=1e-9)
        assert metrics.lr == pytest.approx(lr)
    assert clipped > 10
    for name, weight in ours.weights().items():
        torch.testing.assert_close(weight, w[name].detach(), rtol=1e-7, atol=1e-9)


def test_cosine_falls_to_lr_end_between_warm_up_and_decay():
    t = Trainer(
        4, d_sae=8, k=2, lr=1.0, schedule="cosineannealing", warm_up_steps=4, decay_steps=5, total_steps=30, lr_end=0.2
    )
    lrs = [t.step(x).lr for x in batches(31, 8, 4)]
    assert lrs[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert lrs[4] == pytest.approx(1.0)
    assert lrs[4:25] == pytest.approx([0.2 + 0.8 * (1 + math.cos(math.pi * i / 21)) / 2 for i in range(21)])
    assert lrs[25:] == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0.0])


OBJECTIVES = {
    "standard": {"sparsity_warm_up_steps": 9},
    "gated": {},
    "topk": {"k": 4, "dead_window": 3},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 2.5, "dead_window": 3},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [16, 32], "dead_window": 3},
    "jumprelu": {"pre_act_coefficient": 0.01, "dead_window": 3},
    "p_anneal": {"total_steps": 20, "anneal_start": 2, "anneal_updates": 6},
    "matching_pursuit": {"k": 2},
}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_from_a_checkpoint_goes_on_with_the_same_bits(tmp_path, objective):
    options = {"d_sae": 64, "lr": 1e-2, "resample_every": 7 if objective != "matching_pursuit" else 0, "seed": 3}
    options |= {"input_norm": "expected_average_only_in", "b_dec_start": "mean"} | OBJECTIVES[objective]
    data = [5 * x + 1 for x in batches(16, 40, 8, torch.float32)]
    whole = Trainer(8, objective=objective, **options)
    seen = [whole.step(x).to_dict() for x in data]

    first = Trainer(8, objective=objective, **options)
    first.measure(data[0])
    for x in data[:10]:
        first.step(x)
    first.save(tmp_path / "here")
    again = Trainer.load(tmp_path / "here")
    assert again.options == whole.options
    assert [again.step(x).to_dict() for x in data[10:]] == seen[10:]
    for name, weight in again.weights().items():
        assert torch.equal(weight, whole.weights()[name]), name
    assert torch.equal(again.firing_rates(), whole.firing_rates())
    assert torch.equal(again.steps_since_fired(), whole.steps_since_fired())
    assert again.dictionary() == whole.dictionary()


@pytest.mark.parametrize("norm", ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_dictionary_computes_what_was_trained(objective, norm):
    """Scales, norms and thresholds are folded as they were used: its error is the next step's."""
    options = {"d_sae": 64, "lr": 3e-3, "float64": True, "aux": "none", "input_norm": norm, "threshold_lr": 0.5}
    t = Trainer(8, objective=objective, **options | OBJECTIVES[objective])
    g = torch.Generator().manual_seed(1)
    mixing = torch.randn(30, 8, generator=g, dtype=torch.float64)
    draw = lambda: torch.relu(torch.randn(200, 30, generator=g, dtype=torch.float64) - 1.3)  # noqa: E731
    data = [7 * draw() @ mixing + 0.5 for _ in range(40)]
    for x in data:
        t.step(x)
    metrics, _ = t.gradients(data[0])
    sae, x = t.dictionary(), data[0]
    f = sae.encode(x)
    error = (sae(x) - x).square().sum(-1).mean().item()
    if norm == "expected_average_only_in":
        # one scale, sqrt(8) over the mean length of the first batch
        error *= (8**0.5 / data[0].norm(dim=-1).mean().item()) ** 2
    l0 = (f != 0).sum(-1).double().mean().item()
    if objective in ("batchtopk", "matryoshka_batchtopk"):
        assert sae.architecture == "jumprelu"
        assert metrics.l0 / 2 < l0 < metrics.l0 * 2  # a threshold that follows the batches' least choice
        return
    assert l0 == pytest.approx(metrics.l0)
    assert error == pytest.approx(metrics.mse, rel=1e-9)
    if objective in ("topk", "abstopk"):
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("norm", ["none", "expected_average_only_in"])
@pytest.mark.parametrize("by_norm", [True, False])
def test_the_threshold_of_batchtopk_follows_the_least_choice_and_is_saved_in_the_space_of_features(by_norm, norm):
    """Facts 6: SAELens #763, a threshold that was not divided with the scale; its moving average is in float64."""
    t = Trainer(
        8,
        objective="batchtopk",
        d_sae=32,
        k=3,
        rank_by_decoder_norm=by_norm,
        input_norm=norm,
        lr=1e-2,
        float64=True,
        aux="none",
    )
    data = [9 * x for x in batches(30, 100, 8)]
    scale = 8**0.5 / data[0].norm(dim=-1).mean() if norm != "none" else 1.0
    threshold = 0.0
    for x in data:
        w = t.weights()
        p = (x * scale - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
        n = w["W_dec"].norm(dim=-1) if by_norm else torch.ones(32, dtype=torch.float64)
        least = torch.relu(p * n).flatten().topk(300).values.min().item()
        assert t.step(x).threshold == pytest.approx(threshold, rel=1e-12)
        threshold += 0.01 * (least - threshold)
    w = t.weights()
    n = w["W_dec"].norm(dim=-1) if by_norm else torch.ones(32, dtype=torch.float64)
    p = (data[0] * scale - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]
    f = p * (p * n > threshold)
    expected = (f @ w["W_dec"] + w["b_dec"]) / scale
    sae = t.dictionary()
    torch.testing.assert_close(sae(data[0]), expected, rtol=1e-9, atol=1e-9)
    assert ((sae.encode(data[0]) != 0) == (f != 0)).all()


def planted(n_features: int, d: int, seed: int):
    """Directions of length 1 and a source of rows: each feature in one row of 25, strengths around 1."""
    g = torch.Generator().manual_seed(seed)
    true = nn.functional.normalize(torch.randn(n_features, d, generator=g), dim=-1)

    def rows(n: int) -> Tensor:
        active = torch.rand(n, n_features, generator=g) < 0.04
        return (active * (1 + 0.3 * torch.randn(n, n_features, generator=g)).clamp(min=0.1)) @ true

    return true, rows


def recovery(true: Tensor, W_dec: Tensor) -> tuple[float, float]:
    """MMCS: the mean over true features of their largest cosine. MCC: of the best one-to-one assignment."""
    cosines = (true @ nn.functional.normalize(W_dec, dim=-1).T).abs()
    found, chosen = linear_sum_assignment(-cosines.numpy())
    return cosines.max(-1).values.mean().item(), cosines[found, chosen].mean().item()


RECOVERS = {
    "standard": {"l1_coefficient": 0.12},
    "standard_unit": {
        "objective": "standard", "l1_coefficient": 0.25, "unit_decoder": True, "l1_by_decoder_norm": False, "clip": 0.0
    },
    "gated": {"l1_coefficient": 0.35},
    "topk": {"k": 3},
    "abstopk": {"k": 3},
    "batchtopk": {"k": 2},
    "matryoshka_batchtopk": {"k": 2, "matryoshka_widths": [24]},
    "jumprelu": {"l0_coefficient": 0.05, "sparsity_warm_up_steps": 300, "bandwidth": 0.2, "init_threshold": 0.1},
    "p_anneal": {"l1_coefficient": 0.2, "total_steps": 700, "anneal_start": 200, "p_end": 0.5, "unit_decoder": True},
    "matching_pursuit": {"k": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", RECOVERS)
def test_planted_features_in_superposition_are_found(name):
    """48 features in 20 dimensions. An untrained dictionary has MMCS and MCC of about 0.5."""
    true, rows = planted(48, 20, seed=4)
    t = Trainer(20, **{"objective": name, "d_sae": 64, "lr": 5e-3, "dead_window": 50} | RECOVERS[name])
    before = recovery(true, t.dictionary().W_dec)
    for _ in range(700):
        metrics = t.step(rows(256))
    mmcs, mcc = recovery(true, t.dictionary().W_dec)
    assert max(before) < 0.65
    assert mmcs > 0.85 and mcc > 0.8, (name, before, mmcs, mcc, metrics)


def test_a_crosscoder_finds_the_feature_that_one_of_two_models_lacks():
    d = 16
    g = torch.Generator().manual_seed(0)
    a, b = (nn.functional.normalize(torch.randn(24, d, generator=g), dim=-1) for _ in range(2))
    b[5] = 0  # known to the first model only
    sites = [_C.DictionarySite("blocks.1.hook_resid_post", d, model=i) for i in range(2)]
    origin = _C.DictionaryOrigin(inputs=sites, outputs=sites)
    t = Trainer(
        2 * d, origin=origin, objective="batchtopk", d_sae=32, k=1.5, lr=5e-3, subtract_b_dec=False, dead_window=50,
        input_norm="expected_average_only_in",
    )  # fmt: skip
    for _ in range(600):
        f = (torch.rand(256, 24, generator=g) < 0.05) * (1 + 0.3 * torch.rand(256, 24, generator=g))
        t.step(torch.cat([f @ a, f @ b], -1))
    first, second = t.dictionary().W_dec.split(d, -1)
    norms = torch.stack([first.norm(dim=-1), second.norm(dim=-1)])
    share = norms[0] / norms.sum(0)
    own = (nn.functional.normalize(first, dim=-1) @ a[5]).argmax()
    assert (nn.functional.normalize(first, dim=-1) @ a[5])[own] > 0.9
    assert share[own] > 0.9
    alive = t.firing_rates() > 0.01
    alive[own] = False
    assert ((share[alive] - 0.5).abs() < 0.15).float().mean() > 0.8


def test_dead_features_come_back_by_resampling_and_by_the_auxiliary_loss():
    _, rows = planted(48, 20, seed=5)
    kwargs = {"objective": "topk", "d_sae": 64, "k": 3, "lr": 5e-3, "dead_window": 30, "aux": "none"}
    w = Trainer(20, **kwargs).weights()
    w["b_enc"][:40] = -0.6  # never among the largest
    data = [rows(128) for _ in range(400)]
    dead = {}
    for name, more in {"none": {}, "aux": {"aux": "residual"}, "resample": {"resample_every": 100}}.items():
        t = Trainer(20, start=w, **{**kwargs, **more})
        for x in data:
            t.step(x)
        dead[name] = (t.steps_since_fired()[:40] > 30).sum().item()
    assert dead["none"] == 40
    assert dead["aux"] < 20
    assert dead["resample"] < 20


def test_resampled_features_are_inputs_that_fitted_badly():
    g = torch.Generator().manual_seed(0)
    t = Trainer(6, objective="standard", d_sae=12, lr=1e-3, resample_every=5, subtract_b_dec=False)
    w = t.weights()
    w["b_enc"][:4] = -100.0
    t = Trainer(6, start=w, **t.options)
    for _ in range(4):
        t.step(torch.randn(30, 6, generator=g))
    x = torch.randn(30, 6, generator=g)
    t.step(x)
    w = t.weights()
    assert torch.equal(w["b_enc"][:4], torch.zeros(4))
    cosines = nn.functional.normalize(x, dim=-1) @ w["W_dec"][:4].T
    assert cosines.max(0).values == pytest.approx([1.0] * 4, abs=1e-6)
    assert len(set(cosines.argmax(0).tolist())) == 4
    alive = w["W_enc"][4:].norm(dim=-1).mean()
    for i in range(4):
        torch.testing.assert_close(w["W_enc"][i], x[cosines[:, i].argmax()] * 0.2 * alive)


def test_first_weights_and_biases_are_those_that_were_asked_for():
    x = 2 * batches(1, 500, 10)[0] + 3
    t = Trainer(10, d_sae=40, k=4, seed=1)
    w = t.weights()
    assert w["W_dec"].norm(dim=-1).tolist() == pytest.approx([0.1] * 40)
    assert torch.equal(w["W_enc"], w["W_dec"])
    assert not torch.equal(w["W_dec"], Trainer(10, d_sae=40, k=4, seed=2).weights()["W_dec"])
    median = Trainer(10, d_sae=40, k=4, b_dec_start="geometric_median", float64=True, lr=1e-300)
    median.step(x)
    b = median.weights()["b_dec"]
    assert ((x - b) / (x - b).norm(dim=-1, keepdim=True)).mean(0).norm() < 1e-4  # where the sum of distances is flat
    rate = Trainer(10, objective="jumprelu", d_sae=40, b_enc_rate=0.1, float64=True, lr=1e-300)
    assert rate.step(x).l0 == pytest.approx(4.0, abs=0.1)
    options = anthropic_jumprelu(10, 40, 100)
    assert Trainer(10, **options).options == options
    assert options["ste_to_input"] is True


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"k": 41}, ValueError, "at most d_sae, 40, got 41"),
        ({"k": 2.5}, ValueError, "whole for"),
        ({"l1_coeficient": 1}, _C.ConfigError, "l1_coefficient"),
        ({"objective": "relu"}, _C.ConfigError, "standard, gated"),
        ({"objective": "matryoshka_batchtopk", "matryoshka_widths": [20, 10]}, ValueError, "ascend"),
        ({"lr": -1.0}, ValueError, "lr must be above 0"),
        ({"decay_steps": 10}, ValueError, "total_steps"),
        ({"transcodes": True}, _C.ConfigError, "subtract_b_dec"),
        ({"objective": "jumprelu", "sparsity_loss": "quadratic"}, ValueError, "target_l0"),
        ({"start": {"W_dec": torch.zeros(40, 10)}}, _C.ShapeError, "W_enc"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(options, error, says):
    with pytest.raises(error, match=says):
        Trainer(10, **{"d_sae": 40, "k": 4} | options)


def test_a_step_that_is_not_finite_or_all_dead_leaves_the_trainer_as_it_was(tmp_path: Path):
    t = Trainer(10, d_sae=40, k=4, dead_window=5)
    for x in batches(3, 50, 10, torch.float32):
        t.step(x)
    before = t.weights()
    bad = batches(1, 50, 10, torch.float32)[0]
    bad[3, 4] = math.nan
    with pytest.raises(_C.Error, match=r"step 3: the loss is .*as it was before"):
        t.step(bad)
    assert all(torch.equal(before[name], t.weights()[name]) for name in before)
    assert t.steps == 3
    for wrong in (torch.randn(5, 9), torch.randn(10), torch.zeros(0, 10), torch.ones(5, 10, dtype=torch.int64)):
        with pytest.raises(_C.ShapeError):
            t.step(wrong)
    with pytest.raises(_C.ShapeError, match="only to transcoders"):
        t.step(torch.randn(5, 10), torch.randn(5, 10))

    w = t.weights()
    w["b_enc"][:] = -1e6
    silent = Trainer(10, start=w, **t.options)
    with pytest.raises(_C.Error, match="every feature is dead"):
        for x in batches(8, 50, 10, torch.float32):
            silent.step(x)
    assert silent.steps == 6

    t.save(tmp_path)
    file = tmp_path / "trainer.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(_C.IoError):
        Trainer.load(tmp_path)
    with pytest.raises(_C.IoError):
        Trainer.load(tmp_path / "nowhere")
