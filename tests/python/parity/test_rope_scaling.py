"""Rope scaling yarn, longrope and dynamic in every family, against transformers.

Where frequencies depend on the text's length, transformers takes those of the text that it is given; ours are those of
`n_ctx`, for every text, since a cache must not hold keys of two kinds. At a text of that length both mean the same.
"""

import json

import pytest
import torch
from reference import exact_forward
from tiny import tiny_transformers

import introspect
from introspect import _C

EXACT = {"rtol": 0, "atol": 1e-9}
ORIGINAL, SHORT, LONG = 16, 12, 24  # positions before scaling; tokens of texts within and beyond them
FAMILIES = [
    "llama",
    "qwen2 windows",
    "qwen3",
    "mistral",
    "gemma2",
    "gpt_neox",
    "olmo2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
]
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
YARNS = {
    "plain": {},
    "mscale": {"mscale": 0.7, "mscale_all_dim": 0.3, "beta_fast": 9.0, "beta_slow": 2.0},
    "attention factor": {"attention_factor": 1.3, "truncate": False},
}


def tokens_of(rng, n):
    return torch.randint(3, 101, (2, n), generator=rng)


def load(theirs, folder, **options):
    theirs.save_pretrained(folder)
    return introspect.load_model(folder, dtype=torch.float64, **options)


def partial(name):
    return {"partial_rotary_factor": 0.5} if name == "gpt_neox" else {}


def longrope(width):
    factors = torch.linspace(1, 2, width // 2)
    return {
        "rope_type": "longrope", "rope_theta": 500.0, "original_max_position_embeddings": ORIGINAL,
        "short_factor": factors.tolist(), "long_factor": (factors**2 + 0.3).tolist(),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "plain") for name in FAMILIES] + [("llama", "mscale"), ("gpt_neox", "attention factor")],
)
def test_yarn(name, kind, tmp_path, rng):
    theirs = tiny_transformers(name, rope_parameters={**YARN, **YARNS[kind], **partial(name)})
    ours = load(theirs, tmp_path)
    tokens = tokens_of(rng, LONG)
    torch.testing.assert_close(ours(tokens), exact_forward(theirs, tokens).logits, **EXACT)


@pytest.mark.parametrize("name", [*FAMILIES, "phi3"])
def test_longrope(name, tmp_path, rng):
    halved = {"partial_rotary_factor": 0.5} if name in ("gpt_neox", "phi3") else {}
    rope = longrope(4 if halved else 8 if name in ("qwen2 windows", "olmo2") else 10) | halved
    beside = {"original_max_position_embeddings": ORIGINAL} if name == "phi3" else {}
    theirs = tiny_transformers(name, rope_parameters=rope, **beside)
    short, long = tokens_of(rng, SHORT), tokens_of(rng, LONG)
    expected = [exact_forward(theirs, tokens).logits for tokens in (short, long)]
    ours = load(theirs, tmp_path)
    assert ours.cfg.n_ctx == ORIGINAL
    torch.testing.assert_close(ours(short), expected[0], **EXACT)
    with pytest.raises(introspect.ShapeError, match="at most n_ctx = 16"):
        ours(long)
    longer = introspect.load_model(tmp_path, dtype=torch.float64, n_ctx=64)
    torch.testing.assert_close(longer(long), expected[1], **EXACT)
    assert longer.native.hash != ours.native.hash
    # One set of frequencies for all texts: a cache changes nothing, however it is filled.
    cache = longer.native.make_cache(2)
    logits = torch.cat([longer(part, cache=cache) for part in long.split([5, 13, 6], dim=1)], dim=1)
    torch.testing.assert_close(logits, expected[1], **EXACT)


@pytest.mark.parametrize("name", FAMILIES)
def test_dynamic(name, tmp_path, rng):
    rope = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0, **partial(name)}
    theirs = tiny_transformers(name, rope_parameters=rope, max_position_embeddings=ORIGINAL)
    short, long = tokens_of(rng, SHORT), tokens_of(rng, LONG)
    expected = [exact_forward(theirs, tokens).logits for tokens in (short, long)]
    ours = load(theirs, tmp_path)
    torch.testing.assert_close(ours(short), expected[0], **EXACT)
    with pytest.raises(introspect.ShapeError, match="at most n_ctx = 16"):
        ours(long)
    longer = introspect.load_model(tmp_path, dtype=torch.float64, n_ctx=LONG)
    torch.testing.assert_close(longer(long), expected[1], **EXACT)


def test_scaling_of_the_layers_without_a_window_alone(tmp_path, rng):
    rope = {
        "full_attention": {**YARN, "attention_factor": 1.2},
        "sliding_attention": {"rope_type": "default", "rope_theta": 9.0},
    }
    theirs = tiny_transformers("olmo3", rope_parameters=rope)
    tokens = tokens_of(rng, LONG)
    torch.testing.assert_close(load(theirs, tmp_path)(tokens), exact_forward(theirs, tokens).logits, **EXACT)
    # as its first checkpoints' configs say it
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    config |= {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in YARN.items() if k != "rope_theta"}}
    path.write_text(json.dumps(config))
    old = tiny_transformers("olmo3", rope_parameters=None, rope_theta=500000.0, rope_scaling=config["rope_scaling"])
    ours = introspect.load_model(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(ours(tokens), exact_forward(old, tokens).logits, **EXACT)


@pytest.mark.parametrize("scaling", ["yarn", "yarn mscale", "longrope", "longrope long", "dynamic", "dynamic long"])
def test_frequencies_have_transformers_bits(scaling):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, longest = scaling.split()[0], 100.0 if scaling.endswith("long") else 0.0
    rope = {
        "yarn": {**YARN, **(YARNS["mscale"] if "mscale" in scaling else {})}, "longrope": longrope(64),
        "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
    }[kind]  # fmt: skip
    config = LlamaConfig(
        head_dim=64, max_position_embeddings=ORIGINAL if kind == "dynamic" else 64, rope_parameters=rope
    )
    length = torch.tensor(100) if kind == "dynamic" else 100
    expected, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length if longest else None)
    arguments = {
        k: v for k, v in rope.items() if k in ("factor", "beta_fast", "beta_slow", "short_factor", "long_factor")
    }
    ours = _C.rotary_frequencies(
        64, base=500.0, scaling=kind, original_max_position=ORIGINAL, longest=longest, **arguments
    )
    assert torch.equal(ours, expected)


def test_a_length_that_the_model_does_not_have_is_refused(tmp_path):
    theirs = tiny_transformers("phi3", rope_parameters={**longrope(4), "partial_rotary_factor": 0.5})
    theirs.save_pretrained(tmp_path)
    for n in (0, 65):
        with pytest.raises(introspect.ConfigError, match="n_ctx must be from 1 to 64"):
            introspect.load_model(tmp_path, n_ctx=n)
    tiny_transformers("gpt2").save_pretrained(tmp_path / "gpt2")
    with pytest.raises(introspect.ConfigError, match="learned positions"):
        introspect.load_model(tmp_path / "gpt2", n_ctx=8)
