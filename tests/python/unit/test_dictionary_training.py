"""Losses and gradients of every objective that dictionaries are trained for, against their equations in plain torch."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from introspect import _C
from introspect.sae.trainer import Trainer

N, D, F = 48, 10, 40
STEP = torch.float64


def weights_of(trainer: Trainer, seed: int = 1) -> dict[str, Tensor]:
    """Weights in which nothing is 0 or symmetric, so that no term of a gradient can hide."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, like in trainer.weights().items():
        noise = torch.randn(like.shape, generator=g, dtype=STEP)
        if name == "threshold":
            out[name] = 0.3 + 0.2 * noise.abs()
        elif name in ("W_enc", "W_dec"):
            out[name] = 0.5 * noise
        else:
            out[name] = 0.1 * noise
    return out


def made(objective: str, *, d_in: int = D, d_out: int | None = None, origin=None, **options) -> Trainer:
    options = {"d_sae": F, "float64": True, "objective": objective, **options}
    plain = Trainer(d_in, d_out, origin=origin, **options)
    return Trainer(d_in, d_out, origin=origin, start=weights_of(plain), **options)


def rows(d: int = D, seed: int = 0, n: int = N) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=STEP)


def assert_gradients(trainer: Trainer, loss_of, x: Tensor, y: Tensor | None = None) -> None:
    """loss_of(weights) -> {"mse": .., "sparsity_loss": .., "aux_loss": ..}, differentiable in the weights."""
    w = {name: t.clone().requires_grad_() for name, t in trainer.weights().items()}
    parts = loss_of(w)
    total = sum(parts.values())
    total.backward()
    metrics, gradients = trainer.gradients(x, y)
    for name in ("mse", "sparsity_loss", "aux_loss"):
        expected = torch.as_tensor(parts.get(name, 0.0)).item()
        assert getattr(metrics, name) == pytest.approx(expected, rel=1e-10, abs=1e-12), name
    assert metrics.loss == pytest.approx(total.item(), rel=1e-10)
    assert set(gradients) == set(w)
    for name, weight in w.items():
        expected = torch.zeros_like(weight) if weight.grad is None else weight.grad
        torch.testing.assert_close(gradients[name], expected, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


def sse(r: Tensor) -> Tensor:
    return r.square().sum(-1).mean()


def encoded(w, x, subtract: bool = True) -> Tensor:
    return (x - w["b_dec"] if subtract else x) @ w["W_enc"].T


def norms(w, sites=None) -> Tensor:
    return sum(part.norm(dim=-1) for part in w["W_dec"].split(sites or [w["W_dec"].shape[1]], dim=-1))


def kept(rank: Tensor, k: int) -> Tensor:
    """1 at the k largest of a row, 0 elsewhere."""
    return torch.zeros_like(rank).scatter(-1, rank.topk(k, -1).indices, 1.0)


# Few active features take the sparse path, many the dense one: `shift` moves every pre-activation.
@pytest.fixture(params=[0.0, -3.5], ids=["many", "few"])
def shift(request) -> float:
    return request.param


def shifted(trainer: Trainer, shift: float, **options) -> Trainer:
    w = trainer.weights()
    for bias in ("b_enc", "b_gate"):
        if bias in w:
            w[bias] = w[bias] + shift
    return Trainer(trainer.d_in, trainer.d_out, origin=trainer.origin, start=w, **{**trainer.options, **options})


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("lp", [1.0, 0.5, 2.0])
def test_standard_is_the_squared_error_and_the_penalty_of_features(shift, by_norm, lp):
    trainer = shifted(made("standard", l1_coefficient=0.7, l1_by_decoder_norm=by_norm, lp=lp), shift)
    x = rows()

    def loss(w):
        f = torch.relu(encoded(w, x) + w["b_enc"])
        u = f * norms(w) if by_norm else f
        active = f > 0
        some = active.any(-1)
        powers = torch.where(active, torch.where(active, u, 1.0) ** lp, 0.0).sum(-1)[some]
        return {
            "mse": sse(f @ w["W_dec"] + w["b_dec"] - x),
            "sparsity_loss": 0.7 * (powers ** (1 / lp)).sum() / N,
        }

    assert_gradients(trainer, loss, x)
    metrics, _ = trainer.gradients(x)
    assert (metrics.l0 < F / 12) == (shift < 0)  # which path it took


def test_an_encoder_may_leave_b_dec_alone(shift):
    trainer = shifted(made("standard", subtract_b_dec=False), shift)
    x = rows()

    def loss(w):
        f = torch.relu(encoded(w, x, subtract=False) + w["b_enc"])
        return {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x), "sparsity_loss": (f * norms(w)).sum(-1).mean()}

    assert_gradients(trainer, loss, x)


@pytest.mark.parametrize("detach", [False, True])
def test_gated_is_trained_through_magnitudes_and_its_gate_through_a_reconstruction_of_its_own(shift, detach):
    trainer = shifted(made("gated", l1_coefficient=0.4, gated_detach=detach), shift)
    x = rows()

    def loss(w):
        q = encoded(w, x)
        gate = torch.relu(q + w["b_gate"])
        f = (gate > 0) * torch.relu(q * w["r_mag"].exp() + w["b_mag"])
        W, b = (w["W_dec"].detach(), w["b_dec"].detach()) if detach else (w["W_dec"], w["b_dec"])
        return {
            "mse": sse(f @ w["W_dec"] + w["b_dec"] - x),
            "sparsity_loss": 0.4 * (gate * norms(w)).sum(-1).mean(),
            "aux_loss": sse(gate @ W + b - x),
        }

    assert_gradients(trainer, loss, x)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("k", [2, 7])  # few places, and all
@pytest.mark.parametrize("objective", ["topk", "abstopk", "batchtopk"])
def test_choices_pass_gradients_to_what_they_chose(objective, k, by_norm):
    trainer = made(objective, k=k, rank_by_decoder_norm=by_norm, aux="none")
    x = rows()

    def loss(w):
        p = encoded(w, x) + w["b_enc"]
        scale = norms(w) if by_norm else torch.ones(F, dtype=STEP)
        ranked = p * scale  # with the gradient of the norms, as SAELens trains: it cancels
        if objective == "topk":
            f = torch.relu(ranked) * kept(ranked, k)
        elif objective == "abstopk":
            f = ranked * kept(ranked.abs(), k)
        else:
            flat = torch.relu(ranked).flatten()
            f = (flat * kept(flat, k * N)).reshape(N, F)
        return {"mse": sse(f / scale @ w["W_dec"] + w["b_dec"] - x)}

    assert_gradients(trainer, loss, x)


def dead_trainer(trainer: Trainer, ids: list[int], folder) -> Trainer:
    """The same trainer, in whose counters these features have been silent for longer than the window."""
    trainer.save(folder)
    path = folder / "trainer.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["since_fired"][ids] = 5000
    save_file(tensors, path, metadata)
    return Trainer.load(folder)


@pytest.mark.parametrize("aux", ["residual", "normalised"])
@pytest.mark.parametrize("n_dead", [3, 12])  # fewer than k_aux = 5, and more
@pytest.mark.parametrize("objective", ["topk", "abstopk"])
def test_dead_features_are_drawn_to_what_the_others_leave(tmp_path, objective, n_dead, aux):
    ids = list(range(0, 2 * n_dead, 2))
    trainer = made(objective, k=6, aux=aux, aux_coefficient=0.3)
    old, dead = dead_trainer(trainer, ids, tmp_path), torch.tensor(ids)
    x = rows()

    def loss(w):
        p = encoded(w, x) + w["b_enc"]
        n = norms(w)
        rank = (p * n).abs() if objective == "abstopk" else torch.relu(p * n)
        f = (p if objective == "abstopk" else torch.relu(p)) * kept(rank, 6)
        x_hat = f @ w["W_dec"] + w["b_dec"]
        e = (x - x_hat).detach()
        rank = (p * n)[:, dead].abs() if objective == "abstopk" else (p * n)[:, dead]
        chosen = kept(rank, min(D // 2, len(dead)))
        a = p[:, dead] * chosen
        if aux == "normalised" and objective == "topk":
            a = torch.relu(a)
        fit = sse(a @ w["W_dec"][dead] - e)
        scale = 1 / sse(e - e.mean(0)) if aux == "normalised" else min(len(dead) / (D // 2), 1.0)
        return {"mse": sse(x_hat - x), "aux_loss": 0.3 * scale * fit}

    metrics, _ = old.gradients(x)
    assert metrics.dead_share == pytest.approx(len(dead) / F)
    assert metrics.aux_loss > 0
    assert_gradients(old, loss, x)


@pytest.mark.parametrize("each_level", [False, True])
@pytest.mark.parametrize("k", [1.5, 6])
def test_matryoshka_adds_the_errors_of_its_prefixes(tmp_path, k, each_level):
    widths = [8, 20, F]
    dead = torch.tensor([3, 9, 25, 26])
    trainer = made("matryoshka_batchtopk", k=k, matryoshka_widths=widths[:2], matryoshka_aux=each_level)
    trainer = dead_trainer(trainer, dead.tolist(), tmp_path)
    x = rows()

    def loss(w):
        p = encoded(w, x) + w["b_enc"]
        n = norms(w)
        flat = torch.relu(p * n).flatten()
        f = torch.relu(p) * kept(flat, int(k * N)).reshape(N, F)
        outs = [f[:, :m] @ w["W_dec"][:m] + w["b_dec"] for m in widths]
        aux = torch.zeros((), dtype=STEP)
        levels = zip([0, *widths[:-1]], widths, outs, strict=True) if each_level else [(0, F, outs[-1])]
        for first, last, out in levels:
            ids = dead[(dead >= first) & (dead < last)]
            if len(ids) == 0:
                continue
            chosen = kept((p * n)[:, ids], min(D // 2, len(ids)))
            fit = sse((p[:, ids] * chosen) @ w["W_dec"][ids] - (x - out).detach())
            aux = aux + min(len(ids) / (D // 2), 1.0) * fit
        return {"mse": sum(sse(out - x) for out in outs), "aux_loss": aux}

    assert_gradients(trainer, loss, x)


class Jump(torch.autograd.Function):
    """p H(p - t) with the rectangle's estimate of its gradients, written out from 2407.14435."""

    @staticmethod
    def forward(ctx, p, t, width, to_input):
        ctx.save_for_backward(p, t)
        ctx.width, ctx.to_input = width, to_input
        return p * (p > t)

    @staticmethod
    def backward(ctx, g):
        p, t = ctx.saved_tensors
        K = ((p - t).abs() < ctx.width / 2) / ctx.width
        gp = g * (p > t) + (g * t * K if ctx.to_input else 0)
        return gp, (-g * t * K).sum(0), None, None


class Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, t, width, to_input):
        ctx.save_for_backward(p, t)
        ctx.width, ctx.to_input = width, to_input
        return (p > t).to(p)

    @staticmethod
    def backward(ctx, g):
        p, t = ctx.saved_tensors
        K = ((p - t).abs() < ctx.width / 2) / ctx.width
        return (g * K if ctx.to_input else None), (-g * K).sum(0), None, None


@pytest.mark.parametrize("to_input", [False, True])
@pytest.mark.parametrize("mode", ["step", "tanh", "quadratic"])
def test_jumprelu_has_the_gradients_of_the_rectangle(shift, mode, to_input):
    options = {"l0_coefficient": 0.2, "bandwidth": 0.4, "tanh_scale": 1.5, "target_l0": 5.0, "ste_to_input": to_input}
    trainer = shifted(made("jumprelu", sparsity_loss=mode, **options), shift)
    x = rows()

    def loss(w):
        p = encoded(w, x) + w["b_enc"]
        f = Jump.apply(p, w["threshold"], 0.4, to_input)
        l0 = Heaviside.apply(p, w["threshold"], 0.4, to_input).sum(-1)
        penalty = {
            "step": l0,
            "tanh": torch.tanh(1.5 * f * norms(w)).sum(-1),
            "quadratic": 2 / 5.0 * (l0 - 5.0) ** 2,
        }[mode]
        return {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x), "sparsity_loss": 0.2 * penalty.mean()}

    assert_gradients(trainer, loss, x)


@pytest.mark.parametrize("of_all", [False, True])
def test_the_pull_on_pre_activations_reaches_dead_features_or_all(tmp_path, of_all):
    dead = torch.tensor([1, 4, 5])
    trainer = made("jumprelu", pre_act_coefficient=0.05, pre_act_of_all=of_all)
    trainer = dead_trainer(trainer, dead.tolist(), tmp_path)
    x = rows()

    def loss(w):
        p = encoded(w, x) + w["b_enc"]
        f = Jump.apply(p, w["threshold"], 0.05, False)
        l0 = Heaviside.apply(p, w["threshold"], 0.05, False).sum(-1).mean()
        ids = torch.arange(F) if of_all else dead
        pull = (torch.relu(w["threshold"] - p) * norms(w))[:, ids].sum(-1).mean()
        return {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x), "sparsity_loss": l0 + 0.05 * pull}

    assert_gradients(trainer, loss, x)


def test_matching_pursuit_is_trained_through_every_pick():
    trainer = made("matching_pursuit", k=4)
    w = trainer.weights()
    w["W_dec"] = w["W_dec"] / w["W_dec"].norm(dim=-1, keepdim=True)
    trainer = Trainer(D, start=w, **trainer.options)
    x = rows()

    def loss(w):
        rest = x - w["b_dec"]
        f = torch.zeros(N, F, dtype=STEP)
        ended = torch.zeros(N, dtype=torch.bool)
        for _ in range(4):
            best = (rest @ w["W_dec"].T).detach().max(-1).indices
            picked = w["W_dec"][best]
            v = torch.relu((rest * picked).sum(-1)) * ~ended
            again = f.detach().gather(1, best[:, None])[:, 0] != 0
            f = f.scatter_add(1, best[:, None], v[:, None])
            rest = rest - v[:, None] * picked
            ended = ended | again | (v == 0) | (rest.norm(dim=-1) < 1e-2)
        return {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x)}

    assert_gradients(trainer, loss, x)


@pytest.mark.parametrize("power", [True, False])
def test_p_anneal_penalises_powers_and_keeps_their_size_as_p_falls(power):
    options = {"total_steps": 40, "anneal_start": 5, "anneal_updates": 5, "p_end": 0.2, "l1_coefficient": 0.3}
    trainer = made("p_anneal", anneal_power=power, lr=1e-3, **options)
    x = rows()
    ps = torch.linspace(1, 0.2, 5, dtype=STEP).tolist()
    times = torch.linspace(5, 40, 5, dtype=torch.int64).tolist()
    p, following, factor, queue, updates = 1.0, None, 1.0, [], 0

    def penalty(f, p):
        powers = torch.where(f > 0, torch.where(f > 0, f, 1.0) ** p, 0.0).sum(-1)
        return (powers if power else powers ** (1 / p)).mean()

    for step in range(36):
        if step in (0, 6, 20, 35):

            def loss(w, p=p, factor=factor):
                f = torch.relu(encoded(w, x) + w["b_enc"])
                return {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x), "sparsity_loss": 0.3 * factor * penalty(f, p)}

            assert_gradients(trainer, loss, x)
        w = trainer.weights()
        f = torch.relu(encoded(w, x) + w["b_enc"])
        if following is not None:
            queue = [*queue, (penalty(f, p).item(), penalty(f, following).item())][-10:]
        if updates < 5 and step == times[updates]:  # as dictionary_learning's PAnnealTrainer
            if following is not None:
                factor *= sum(a for a, _ in queue) / sum(b for _, b in queue)
            p, following = ps[updates], ps[min(updates + 1, 4)]
            updates += 1
        trainer.step(x)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("objective", ["topk", "standard"])
def test_transcoders_are_trained_to_write_y(objective, skip):
    trainer = made(objective, d_out=6, transcodes=True, subtract_b_dec=False, skip=skip, k=3, aux="none")
    x, y = rows(), rows(6, seed=3)

    def loss(w):
        p = x @ w["W_enc"].T + w["b_enc"]
        f = torch.relu(p)
        if objective == "topk":
            f = f * kept(torch.relu(p * norms(w)), 3)
        out = f @ w["W_dec"] + w["b_dec"] + (x @ w["W_skip"].T if skip else 0)
        parts = {"mse": sse(out - y)}
        if objective == "standard":
            parts["sparsity_loss"] = (f * norms(w)).sum(-1).mean()
        return parts

    assert_gradients(trainer, loss, x, y)


def crosscoder_origin(widths: list[int]):
    sites = [_C.DictionarySite(f"blocks.{i}.hook_resid_post", width) for i, width in enumerate(widths)]
    return _C.DictionaryOrigin(inputs=sites, outputs=sites)


@pytest.mark.parametrize("objective", ["standard", "batchtopk"])
def test_a_crosscoder_counts_the_sum_of_its_norms_at_each_site(objective):
    widths = [4, 6]
    trainer = made(objective, origin=crosscoder_origin(widths), k=3, aux="none", subtract_b_dec=False)
    x = rows()

    def loss(w):
        p = x @ w["W_enc"].T + w["b_enc"]
        n = norms(w, widths)
        f = torch.relu(p)
        if objective == "batchtopk":
            f = f * kept((f * n).flatten(), 3 * N).reshape(N, F)
        parts = {"mse": sse(f @ w["W_dec"] + w["b_dec"] - x)}
        if objective == "standard":
            parts["sparsity_loss"] = (f * n).sum(-1).mean()
        return parts

    assert_gradients(trainer, loss, x)


@pytest.mark.parametrize("norm", ["constant_norm_rescale", "layer_norm"])
def test_norms_of_each_input_are_undone_before_the_error_is_taken(norm):
    trainer = made("standard", input_norm=norm)
    x = 3 * rows() + 1

    def loss(w):
        if norm == "layer_norm":
            shift, scale = x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
            inside = (x - shift) / (scale + 1e-5)
        else:
            shift, scale = torch.zeros(N, 1, dtype=STEP), x.norm(dim=-1, keepdim=True) / D**0.5
            inside = x / scale
        f = torch.relu(encoded(w, inside) + w["b_enc"])
        out = (f @ w["W_dec"] + w["b_dec"]) * scale + shift
        return {"mse": sse(out - x), "sparsity_loss": (f * norms(w)).sum(-1).mean()}

    assert_gradients(trainer, loss, x)
