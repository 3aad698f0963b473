"""A steered text worked out position by position: one row, no cache, an intervention that lists positions."""

import torch

import introspect

D, VOCAB, LAYERS = 32, 101, 3
FLOOR = {"rtol": 0, "atol": 1e-9}  # float64: the same sums in another order


def random_vector(seed, layers=(0, 2), scale=3.0):
    rng = torch.Generator().manual_seed(seed)
    return introspect.ControlVector("qwen2", {layer: scale * torch.randn(D, generator=rng) for layer in layers})


def random_ids(n, seed):
    ids = torch.randint(0, VOCAB, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    ids[3] = 5  # one of those that "after" waits for
    return ids


def expected_logits(model, ids, n_prompt, vector, where, op="add", **options):
    """Logits [pos, d_vocab] of one text, steered at the positions of which ``where`` is true, worked out here."""
    positions = [p for p in range(len(ids)) if where(p, ids, n_prompt)]
    hooks = model.native.make_hooks()
    strength = options.pop("strength", 1.0)
    if positions and vector is not None:
        hooks.add_intervention(
            introspect.Intervention(
                vector.directions, op=op, strength=strength, positions=positions, parameters=options
            )
        )
    return model.native.forward(torch.tensor([ids]), hooks=hooks)[0]


def greedy(model, prompt, n_new, *arguments, **options):
    """Greedy tokens of one prompt, everything run again for each of them."""
    ids = list(prompt)
    for _ in range(n_new):
        ids.append(int(expected_logits(model, ids, len(prompt), *arguments, **options)[-1].argmax()))
    return ids[len(prompt) :]


def padded(rows, side):
    width = max(map(len, rows))
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for r, row in enumerate(rows):
        real = slice(width - len(row), None) if side == "left" else slice(None, len(row))
        tokens[r, real], mask[r, real] = torch.tensor(row), True
    return tokens, mask


def by_chunks(model, tokens, sizes, n_prompt):
    """Logits of tokens [batch, pos] that go through a cache in chunks."""
    cache, done, out = model.native.make_cache(len(tokens)), 0, []
    for size in sizes:
        chunk = tokens[:, done : done + size]
        out.append(model(chunk, cache=cache, n_prompt=n_prompt, history=tokens[:, :done]))
        done += size
    return torch.cat(out, dim=1)
