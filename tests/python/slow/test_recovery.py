"""Known features in superposition, found again by training: SynthSAEBench's setting at a sixteenth of its size, and
directions that were planted in a real model's activations.

2602.14687 has 16,384 features in 768 dimensions, a dictionary of 4,096 and 25 features a row, over 200 million rows:
MCC .757 (BatchTopK), .793 (Matryoshka), .693 (matching pursuit), .604 (L1), .753 (JumpReLU). Here 1,024 in 192, a
dictionary of 256 and 6 a row, over 2 million; rates fall as 1 / rank, strengths are normal.

TopK takes k features of every row. Where rows have differing numbers of features it fills up those that have fewer
with parts of features that it splits: the same equations in plain torch find as little (MCC .652 here, a third of the
features within 46 degrees of another; batchtopk .921). Where every row has k of the dictionary's, it finds them (.88).
"""

import pydoc_data.topics

import pytest
import torch
from conftest import slow

import introspect
from introspect.sae import ActivationStream, token_stream
from introspect.sae.recovery import recovery
from introspect.sae.streams import source_options
from introspect.sae.trainer import Trainer

FEATURES, D, WIDTH, L0, ROWS, STEPS = 1024, 192, 256, 6.0, 1024, 2000

OBJECTIVES = {
    "standard": {"l1_coefficient": 0.7, "sparsity_warm_up_steps": 500},
    "gated": {"l1_coefficient": 0.7, "sparsity_warm_up_steps": 500},
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "batchtopk": {"k": 5},
    "matryoshka_batchtopk": {"k": 5, "matryoshka_widths": [32, 64, 128]},
    "jumprelu": {
        "sparsity_loss": "quadratic", "target_l0": 5.0, "l0_coefficient": 0.3, "sparsity_warm_up_steps": 500,
        "bandwidth": 0.5, "init_threshold": 0.1, "decoder_norm": 1.0, "unit_decoder": True,
    },
    "matching_pursuit": {"k": 5},
    "p_anneal": {
        "l1_coefficient": 0.7, "total_steps": STEPS, "anneal_start": 800, "p_end": 0.5, "unit_decoder": True,
        "sparsity_warm_up_steps": 500,
    },
}  # fmt: skip
LEAST = {
    "standard": 0.85, "gated": 0.95, "topk": 0.6, "abstopk": 0.78, "batchtopk": 0.88, "matryoshka_batchtopk": 0.82,
    "jumprelu": 0.85, "matching_pursuit": 0.85, "p_anneal": 0.83,
}  # fmt: skip


class World:
    """Rows that are sums of features: rates 1 / rank scaled to ``l0`` a row, strengths normal of mean 1, a bias.

    ``alike``: every row has exactly l0 of them.
    """

    def __init__(self, seed: int, features: int = FEATURES, l0: float = L0, alike: bool = False):
        self.rng = torch.Generator().manual_seed(seed)
        self.directions = torch.nn.functional.normalize(torch.randn(features, D, generator=self.rng), dim=1)
        rates = 1 / torch.arange(10, features + 10)
        self.rates = rates * (l0 / rates.sum())
        self.bias = 0.3 * torch.randn(D, generator=self.rng)
        self.l0, self.alike = l0, alike

    def rows(self, n: int) -> torch.Tensor:
        if self.alike:
            chosen = torch.multinomial(self.rates.expand(n, -1), int(self.l0), generator=self.rng)
            active = torch.zeros(n, len(self.rates), dtype=torch.bool).scatter_(1, chosen, True)
        else:
            active = torch.rand(n, len(self.rates), generator=self.rng) < self.rates
        row, feature = active.nonzero(as_tuple=True)
        strength = (1 + 0.3 * torch.randn(len(row), generator=self.rng)).clamp_min(0.1)
        return self.bias + torch.zeros(n, D).index_add_(0, row, strength[:, None] * self.directions[feature])


def trained(world: World, objective: str, **options):
    """The dictionary, and how well an untrained one and it give the features back."""
    held_out = world.rows(8192)
    trainer = Trainer(
        D, objective=objective, d_sae=WIDTH, lr=1e-3, b_dec_start="mean", dead_window=100, decay_steps=STEPS // 5,
        **{"total_steps": STEPS} | options,
    )  # fmt: skip
    before = recovery(trainer.dictionary(), world.directions)
    for _ in range(STEPS):
        metrics = trainer.step(world.rows(ROWS))
    sae = trainer.dictionary()
    found = recovery(sae, world.directions)  # of the WIDTH that match best, as the paper has it
    explained = 1 - (sae(held_out) - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum()
    print(f"{objective}: MCC {found.mcc:.3f} (untrained {before.mcc:.3f}) EV {explained:.3f} L0 {metrics.l0:.2f}")
    return sae, found


@slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_features_in_superposition_are_found(objective):
    _, found = trained(World(0), objective, **OBJECTIVES[objective])
    assert found.mcc > LEAST[objective], found.mcc


@slow
def test_topk_finds_the_features_of_rows_that_have_as_many_as_it_takes():
    _, found = trained(World(0, features=WIDTH, l0=5.0, alike=True), "topk", k=5)
    assert found.mcc > 0.85, found.mcc


PLANTED, RATE, LAYER = 64, 0.02, 3


@slow
def test_directions_planted_in_a_real_model_s_activations_are_found(stories15m):
    """Sparse directions added to what a real model has at a hook: a dictionary has a feature for each, and one that was
    trained without them has none.

    A row has 1.3 of the directions beside what the model puts there. With a larger k, features that were not needed
    share in a direction and its own turns away: mean cosines at lr 3e-3 after 400 steps were .92 for k 12, .86 for 24
    and .77 for 48.
    """
    model = introspect.load_model(stories15m)
    hook = f"blocks.{LAYER}.hook_resid_post"
    texts = [pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics)]
    tokens = token_stream(model, texts, context_size=128)
    read = source_options(model.native, True, 10.0, (None,), None, 1 << 30)
    stream = ActivationStream.of_model([model.native], tokens, [(hook, 0)], **read, batch_rows=1024, buffer_rows=16384)
    rows = []
    while len(rows) < 60 and (batch := stream.next_batch()):
        rows.append(batch[0].float())
    x = torch.cat(rows)
    rng = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(PLANTED, x.shape[1], generator=rng), dim=1)
    active = torch.rand(len(x), PLANTED, generator=rng) < RATE
    strength = x.norm(dim=1).median() * (0.6 + 0.2 * torch.rand(len(x), PLANTED, generator=rng))
    planted = x + (active * strength) @ directions
    found = {}
    for name, data in (("with", planted), ("without", x)):
        trainer = Trainer(
            x.shape[1], objective="batchtopk", d_sae=512, k=8, lr=1e-3, b_dec_start="mean", decay_steps=120,
            total_steps=600, dead_window=100, input_norm="expected_average_only_in", seed=1,
        )  # fmt: skip
        for _ in range(600):
            trainer.step(data[torch.randint(len(data), (1024,), generator=rng)])
        found[name] = recovery(trainer.dictionary(), directions)
        if name == "with":
            sae = trainer.dictionary()
    print({name: (one.mmcs, one.found) for name, one in found.items()})
    assert found["with"].mmcs > 0.9 and found["with"].found > 0.8, found["with"]
    assert found["without"].mmcs < 0.4, found["without"].mmcs

    # The feature of a direction is active where it was planted.
    pair = found["with"].matches[found["with"].cosines > 0.9]
    f = sae.encode(planted[:8192], pair[:, 1]) > 0
    there = active[:8192, pair[:, 0]]
    hit = (f & there).sum() / there.sum()
    false = (f & ~there).sum() / (~there).sum()
    assert hit > 0.8 and false < 0.05, (hit, false)
