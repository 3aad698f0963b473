"""Dictionaries under SAELens's names, against hooks on transformers that do what SAELens's equations say."""

import pytest
import torch
from dictionaries import decode, dictionary_at, encode
from reference import exact_softmax
from tiny import tiny_transformers, write_tiny_transformers

import introspect
from introspect import _C

T = 9
FLOOR = {"rtol": 0, "atol": 1e-9}
POST = "blocks.1.hook_resid_post"
POINTS = ("input", "acts_pre", "acts_post", "recons", "error", "output")

pytestmark = pytest.mark.filterwarnings("ignore:add_sae. the dictionary does not say which model")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model here, and the same in transformers."""
    folder = write_tiny_transformers(tmp_path_factory.mktemp("tiny"), "llama")
    return introspect.HookedTransformer.from_pretrained(folder, dtype="float64"), tiny_transformers("llama")


@pytest.fixture
def model(pair):
    yield pair[0]
    pair[0].reset_saes()
    pair[0].reset_hooks()


@pytest.fixture
def tokens(pair, rng):
    return torch.randint(3, pair[0].cfg.d_vocab, (2, T), generator=rng)


def sae_of(model, architecture="standard", hook=POST, **config):
    return dictionary_at(hook, model.cfg.d_model, architecture, **config)


class InTransformers:
    """A dictionary hooked into transformers' block 1, as SAELens's wrapper has it; a feature may be edited."""

    def __init__(self, model, sae, error_term, edit=None):
        self.model, self.sae, self.error_term, self.edit = model, sae, error_term, edit
        self.seen = {}

    def __call__(self, module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        f = encode(self.sae, x)
        if self.edit is not None:
            f = self.edit(f)
        f.retain_grad()
        y = decode(self.sae, f, x)
        with torch.no_grad():
            error = x - decode(self.sae, encode(self.sae, x), x)
        out = y + error if self.error_term else y
        self.seen |= {"input": x, "acts_post": f, "recons": y, "error": error, "output": out}
        return (out, *output[1:]) if isinstance(output, tuple) else out

    def run(self, tokens):
        handle = self.model.model.layers[1].register_forward_hook(self)
        try:
            with exact_softmax():
                return self.model(tokens).logits
        finally:
            handle.remove()


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("error_term", [False, True])
def test_logits_and_points_are_those_of_a_hook_in_transformers(model, pair, tokens, architecture, error_term):
    sae = sae_of(model, architecture)
    theirs = InTransformers(pair[1], sae, error_term)
    expected = theirs.run(tokens)
    logits = model.run_with_saes(tokens, saes=sae, use_error_term=error_term)
    torch.testing.assert_close(logits, expected, **FLOOR)
    logits, cache = model.run_with_cache_with_saes(tokens, saes=[sae], use_error_term=error_term)
    torch.testing.assert_close(logits, expected, **FLOOR)
    names = [n for n in POINTS if error_term or n != "error"]
    assert [n for n in cache if ".hook_sae_" in n] == [f"{POST}.hook_sae_{n}" for n in names]
    for name in names:
        if name != "acts_pre":
            torch.testing.assert_close(cache[f"{POST}.hook_sae_{name}"], theirs.seen[name], **FLOOR)
    p = cache[f"{POST}.hook_sae_acts_pre"]
    w = sae.weights
    q = (theirs.seen["input"] - w["b_dec"]) @ w["W_enc"].T
    expected = q * w["r_mag"].exp() + w["b_mag"] if architecture == "gated" else q + w["b_enc"]
    torch.testing.assert_close(p, expected, **FLOOR)
    assert torch.equal(cache[POST], cache[f"{POST}.hook_sae_output"])


def test_with_the_error_term_the_model_is_as_it_was_bit_for_bit(model, tokens):
    plain = model(tokens)
    for run in (model.run_with_saes, model.run_with_cache_with_saes, model.run_with_hooks_with_saes):
        out = run(tokens, saes=sae_of(model), use_error_term=True)
        assert torch.equal(out[0] if isinstance(out, tuple) else out, plain)


@pytest.mark.parametrize("error_term", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_hook_on_features_changes_what_goes_on_and_the_error_does_not_hide_it(
    model, pair, tokens, error_term, in_place
):
    sae = sae_of(model, "topk")

    def edit(f):
        return torch.where(torch.arange(f.shape[-1]) == 3, 7.0, f)

    def hook(f, hook):
        if not in_place:
            return edit(f)
        f[..., 3] = 7.0
        return None

    expected = InTransformers(pair[1], sae, error_term, edit).run(tokens)
    got = model.run_with_hooks_with_saes(
        tokens, saes=sae, use_error_term=error_term, fwd_hooks=[(f"{POST}.hook_sae_acts_post", hook)]
    )
    torch.testing.assert_close(got, expected, **FLOOR)
    assert not torch.allclose(got, model(tokens))


def test_every_point_can_be_written(model, tokens):
    sae = sae_of(model)
    plain = model.run_with_saes(tokens, saes=sae, use_error_term=True)
    for name in POINTS:
        hook = (f"{POST}.hook_sae_{name}", lambda x, hook: x * 1.5)
        out = model.run_with_hooks_with_saes(tokens, saes=sae, use_error_term=True, fwd_hooks=[hook])
        assert not torch.allclose(out, plain, atol=1e-6), name
    wrong = (f"{POST}.hook_sae_acts_post", lambda x, hook: x[..., :3])
    with pytest.raises(introspect.HookError, match="must return"):
        model.run_with_hooks_with_saes(tokens, saes=sae, fwd_hooks=[wrong])


@pytest.mark.parametrize("error_term", [False, True])
def test_gradients_flow_through_the_features_and_not_through_the_error(model, pair, tokens, error_term):
    sae = sae_of(model, "jumprelu")
    theirs = InTransformers(pair[1], sae, error_term)
    loss = theirs.run(tokens)[:, -1, 5].sum()
    expected = torch.autograd.grad(loss, [theirs.seen["acts_post"], theirs.seen["input"]])

    seen = {}
    name = f"{POST}.hook_sae_acts_post"
    with (
        model.saes(sae, use_error_term=error_term),
        model.hooks(
            bwd_hooks=[
                (name, lambda g, hook: seen.update(f=g)),
                ("blocks.1.hook_resid_mid", lambda g, hook: seen.update(mid=g)),
            ]
        ),
    ):
        model(tokens)[:, -1, 5].sum().backward()
    torch.testing.assert_close(seen["f"], expected[0], **FLOOR)
    # What reaches the stream below is the features' part alone.
    _, cache = model.run_with_cache(tokens, names_filter=[POST])
    torch.testing.assert_close(cache[POST], theirs.seen["input"], **FLOOR)
    assert seen["mid"].abs().sum() > 0


def test_run_with_cache_keeps_gradients_of_features(model, pair, tokens):
    sae = sae_of(model)
    theirs = InTransformers(pair[1], sae, True)
    logits = theirs.run(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (expected,) = torch.autograd.grad(loss, theirs.seen["acts_post"])
    name = f"{POST}.hook_sae_acts_post"
    with model.saes([sae], use_error_term=True):
        _, cache = model.run_with_cache(tokens, names_filter=[name], incl_bwd=True, return_type="loss")
    assert list(cache) == [name, f"{name}_grad"]
    torch.testing.assert_close(cache[f"{name}_grad"], expected, **FLOOR)


def test_a_hook_may_replace_a_gradient(model, tokens):
    sae, seen = sae_of(model), {}
    name = f"{POST}.hook_sae_acts_post"
    with (
        model.saes(sae),
        model.hooks(
            bwd_hooks=[(name, lambda g, hook: g * 0), ("blocks.0.hook_resid_post", lambda g, hook: seen.update(g=g))]
        ),
    ):
        model(tokens)[:, -1, 5].sum().backward()
    assert not seen["g"].any()


def test_transcoders_show_under_the_point_that_they_write(model, tokens):
    d = model.cfg.d_model
    below, above = "blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"
    sae = dictionary_at(below, d, "topk", hook_out=above, skip=True)
    _, plain = model.run_with_cache(tokens, names_filter=[below, above])
    f = encode(sae, plain[below])
    _, cache = model.run_with_cache_with_saes(tokens, saes=sae)
    torch.testing.assert_close(cache[f"{above}.hook_sae_acts_post"], f, **FLOOR)
    torch.testing.assert_close(cache[above], decode(sae, f, plain[below]), **FLOOR)  # the skip among it
    logits = model.run_with_hooks(tokens, fwd_hooks=[(above, lambda x, hook: decode(sae, f, plain[below]))])
    torch.testing.assert_close(model.run_with_saes(tokens, saes=sae), logits, **FLOOR)
    with torch.no_grad(), model.saes(sae, use_error_term=True):
        assert torch.equal(model(tokens), model.native.forward(tokens))


def test_heads_stand_side_by_side_and_go_back_as_they_came(model, tokens):
    z = "blocks.1.attn.hook_z"
    sae = dictionary_at(z, model.cfg.n_heads * model.cfg.d_head, "topk")
    _, plain = model.run_with_cache(tokens, names_filter=[z])
    _, cache = model.run_with_cache_with_saes(tokens, saes=sae, use_error_term=True)
    flat = plain[z].flatten(2)
    torch.testing.assert_close(cache[f"{z}.hook_sae_acts_post"], encode(sae, flat), **FLOOR)
    assert cache[f"{z}.hook_sae_input"].shape == flat.shape
    assert cache[f"{z}.hook_sae_error"].shape == plain[z].shape
    assert torch.equal(cache[z], plain[z])


def test_several_dictionaries_at_once(model, pair, tokens):
    below, above = sae_of(model, hook="blocks.0.hook_resid_post", seed=1), sae_of(model, "topk")
    _, cache = model.run_with_cache_with_saes(tokens, saes=[below, above])
    x = cache["blocks.0.hook_resid_post.hook_sae_input"]
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], decode(below, encode(below, x), x), **FLOOR)
    x = cache[f"{POST}.hook_sae_input"]
    torch.testing.assert_close(cache[POST], decode(above, encode(above, x), x), **FLOOR)


def test_add_reset_and_contexts_put_back_what_was_there(model, tokens):
    plain, one, two = model(tokens), sae_of(model), sae_of(model, "topk", seed=3)
    model.add_sae(one)
    assert model.acts_to_saes == {POST: one}
    with_one = model(tokens)
    with model.saes(two):
        assert model.acts_to_saes == {POST: two}
        assert not torch.allclose(model(tokens), with_one)
    assert torch.equal(model(tokens), with_one)
    model.add_sae(two)  # in its place
    assert model.acts_to_saes == {POST: two}
    with pytest.raises(introspect.HookError, match="no dictionary is attached"):
        model.reset_saes("blocks.0.hook_resid_post")
    model.reset_saes(POST)
    assert model.acts_to_saes == {}
    assert torch.equal(model(tokens), plain)
    with model.saes(one, reset_saes_end=False):
        pass
    assert model.acts_to_saes == {POST: one}


def test_points_are_there_while_a_dictionary_is(model, tokens):
    name = f"{POST}.hook_sae_acts_post"
    with pytest.raises(introspect.HookError, match="does not exist"):
        model.run_with_cache(tokens, names_filter=[name])
    with model.saes(sae_of(model)):
        assert name in model.hook_dict
        names = model.hook_names
        assert names.index(name) < names.index(POST)
        assert f"{POST}.hook_sae_error" not in names
        _, cache = model.run_with_cache(tokens, names_filter=[name], pos_slice=-1)
        assert cache[name].shape == (2, 1, 24)
        with pytest.raises(ValueError, match="no heads"):
            model.run_with_cache(tokens, names_filter=[name], heads=[0])
    assert name not in model.hook_dict


def test_generation_runs_with_dictionaries(model, tokens):
    plain = model.generate(tokens, max_new_tokens=5, temperature=0.0, stop_at_eos=False, verbose=False)
    with model.saes(sae_of(model), use_error_term=True):
        same = model.generate(tokens, max_new_tokens=5, temperature=0.0, stop_at_eos=False, verbose=False)
    assert torch.equal(same, plain)


def test_a_wrong_dictionary_is_an_error_and_not_skipped(model):
    with pytest.raises(introspect.HookError, match="does not exist"):
        model.add_sae(sae_of(model, hook="blocks.7.hook_resid_post"))
    with pytest.raises(introspect.ShapeError, match="wide"):
        model.add_sae(dictionary_at(POST, 7))
    batch = dictionary_at(POST, model.cfg.d_model, "batchtopk", k=3.0)
    with pytest.raises(introspect.ConfigError, match="neighbours"):
        model.add_sae(batch)


def test_the_name_of_saelens_class_is_an_alias():
    assert introspect.HookedSAETransformer is introspect.HookedTransformer
    assert issubclass(introspect.SAE, _C.Dictionary)
