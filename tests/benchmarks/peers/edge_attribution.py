"""Runs in the peers' environment: EAP-IG of all edges as the EAP-IG package does it, written from its formula.

The package itself is not on PyPI. As there, one tensor [batch, pos, senders, d_model] holds the differences of what
senders write, hooks fill it, and backward hooks at the receivers multiply it with gradients, one forward and backward
pass a step. Keys and values are ungrouped, which it requires.
"""

import time

import torch


def scores_and_seconds(model, clean, corrupted, right, wrong, steps, weight_gradients, repeats):
    """Scores [senders, receivers] of the logit difference at the end, the mean over prompts, and the best wall time.

    weight_gradients: as the package leaves it, backward passes compute those of all weights too.
    """
    model.set_ungroup_grouped_query_attention(True)
    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    for parameter in model.parameters():
        parameter.requires_grad_(weight_gradients)
    clean, corrupted = torch.tensor(clean), torch.tensor(corrupted)
    right, wrong = torch.tensor(right), torch.tensor(wrong)
    seconds, scores = [], None
    for _ in range(repeats):
        model.zero_grad()
        start = time.perf_counter()
        scores = _scores(model, clean, corrupted, right, wrong, steps)
        seconds.append(time.perf_counter() - start)
    return {"scores": scores, "seconds": torch.tensor(min(seconds))}


def _scores(model, clean, corrupted, right, wrong, steps):
    L, H = model.cfg.n_layers, model.cfg.n_heads
    B, T = clean.shape
    n_senders, n_receivers = 1 + L * (H + 1), L * (3 * H + 1) + 1
    scores = torch.zeros(n_senders, n_receivers)
    change = torch.zeros(B, T, n_senders, model.cfg.d_model)
    senders = [("hook_embed", 0, 1)]
    receivers = []  # hook, first receiver, how many, senders before it
    for layer in range(L):
        first = 1 + layer * (H + 1)
        senders += [(f"blocks.{layer}.attn.hook_result", first, H), (f"blocks.{layer}.hook_mlp_out", first + H, 1)]
        at = layer * (3 * H + 1)
        receivers += [(f"blocks.{layer}.hook_{c}_input", at + i * H, H, first) for i, c in enumerate("qkv")]
        receivers.append((f"blocks.{layer}.hook_mlp_in", at + 3 * H, 1, first + H))
    receivers.append((f"blocks.{L - 1}.hook_resid_post", n_receivers - 1, 1, n_senders))

    def writer(first, n, sign):
        def write(x, hook):
            change[:, :, first : first + n] += sign * (x if x.dim() == 4 else x.unsqueeze(2)).detach()

        return write

    def scorer(first, n, before):
        def score(gradient, hook):
            g = gradient if gradient.dim() == 4 else gradient.unsqueeze(2)
            scores[:before, first : first + n] += torch.einsum("btsd,btrd->sr", change[:, :, :before], g)

        return score

    with torch.inference_mode(), model.hooks(fwd_hooks=[(name, writer(i, n, 1)) for name, i, n in senders]):
        model(corrupted)
    from_ = change[:, :, 0].clone()
    with torch.inference_mode(), model.hooks(fwd_hooks=[(name, writer(i, n, -1)) for name, i, n in senders]):
        model(clean)
    to = from_ - change[:, :, 0]
    rows = torch.arange(B)
    for k in range(steps):
        start = (from_ + k / steps * (to - from_)).requires_grad_()
        hooks = {
            "fwd_hooks": [("hook_embed", lambda x, hook, start=start: start)],
            "bwd_hooks": [(name, scorer(i, n, before)) for name, i, n, before in receivers],
        }
        with model.hooks(**hooks):
            logits = model(clean)[:, -1]
            (logits[rows, right] - logits[rows, wrong]).sum().backward()
    return scores / B / steps
