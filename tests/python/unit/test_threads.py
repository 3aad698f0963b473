"""Several threads, one model: what one of them does is never seen by another, and nothing crashes."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import _C, ControlVector, HookedTransformer

NAME = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("threads") / "tiny", "LlamaForCausalLM")


@pytest.fixture(params=[introspect.load_model, HookedTransformer.from_pretrained], ids=["Model", "HookedTransformer"])
def model(request, folder):
    return request.param(folder, dtype=torch.float32)


@pytest.fixture
def tokens(model, rng):
    return torch.randint(0, model.cfg.d_vocab, (1, 9), generator=rng)


def vector_of(model, rng):
    directions = {layer: torch.randn(model.cfg.d_model, generator=rng) for layer in range(1, model.cfg.n_layers)}
    return ControlVector("llama", directions)


def together(*jobs, times=60):
    """Each job over and over in a thread of its own, all at the same time; what one raises is raised here."""
    barrier = threading.Barrier(len(jobs))

    def repeat(job):
        barrier.wait()
        return [job() for _ in range(times)]

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(repeat, job) for job in jobs]]


def test_each_thread_gets_its_own_activations(model, rng):
    texts = [torch.randint(0, model.cfg.d_vocab, (1, 5 + n), generator=rng) for n in range(4)]
    alone = [dict(model.run_with_cache(text)[1].items()) for text in texts]
    jobs = [lambda text=text: model.run_with_cache(text)[1] for text in texts]
    for caches, expected in zip(together(*jobs), alone, strict=True):
        for cache in caches:
            assert list(cache) == list(expected)
            assert all(torch.equal(cache[name], value) for name, value in expected.items())


def test_a_plain_pass_beside_hooks_steering_and_generation_of_others(model, tokens, rng):
    vector, plain = vector_of(model, rng), model(tokens)

    def hooked():
        return model.run_with_hooks(tokens, fwd_hooks=[(NAME, lambda x, hook: 0 * x)])

    def block():
        with model.hooks([(NAME, lambda x, hook: 2 * x)]):
            return model(tokens)

    def steered():
        with model.steer(4 * vector):
            return model(tokens)

    jobs = [hooked, block, steered]
    expected = [plain, *(job() for job in jobs)]
    assert all(not torch.equal(plain, one) for one in expected[1:])
    for got, one in zip(together(lambda: model(tokens), *jobs), expected, strict=True):
        assert all(torch.equal(logits, one) for logits in got)


def test_a_condition_belongs_to_its_thread(model, tokens, rng):
    vector, plain = vector_of(model, rng), model(tokens)
    always = introspect.Condition(vector.directions[1], layer=1, threshold=-2.0)

    def steered():
        with model.steer(4 * vector, condition=always):
            return model(tokens)

    expected = steered()
    assert not torch.equal(expected, plain)
    of_plain, of_steered = together(lambda: model(tokens), steered, times=20)
    assert all(torch.equal(logits, plain) for logits in of_plain)
    assert all(torch.equal(logits, expected) for logits in of_steered)


def test_gradients_of_one_thread_are_its_own(model, tokens):
    def gradient():
        seen = []
        logits = model.run_with_hooks(
            tokens, fwd_hooks=[(NAME, lambda x, hook: None)], bwd_hooks=[(NAME, lambda g, hook: seen.append(g.clone()))]
        )
        logits.sum().backward()
        return seen[0]

    expected, plain = gradient(), model(tokens)
    gradients, logits = together(gradient, lambda: model(tokens), times=20)
    assert all(torch.equal(one, expected) for one in gradients)
    assert all(torch.equal(one.detach(), plain.detach()) for one in logits)


def test_what_add_hook_adds_is_in_effect_in_every_thread(model, tokens):
    plain = model(tokens)
    model.add_hook(NAME, lambda x, hook: 0 * x)
    zeroed = model(tokens)
    assert not torch.equal(plain, zeroed)
    ((inside,),) = together(lambda: model(tokens), times=1)
    assert torch.equal(inside, zeroed)
    together(model.reset_hooks, times=1)
    assert torch.equal(model(tokens), plain)


def test_reset_hooks_leaves_blocks_of_other_threads(model, tokens):
    with model.hooks([(NAME, lambda x, hook: 0 * x)]):
        inside = model(tokens)
        together(model.reset_hooks, times=1)
        assert torch.equal(model(tokens), inside)


def test_hooks_are_added_and_removed_while_others_look_and_run(model, tokens):
    def add_and_reset():
        model.add_hook(NAME, lambda x, hook: None)
        model.reset_hooks()

    plain = model(tokens)
    _, logits, _ = together(add_and_reset, lambda: model(tokens), lambda: model.hook_dict[NAME].fwd_hooks, times=200)
    assert all(torch.equal(one, plain) for one in logits)


def test_ctx_is_of_the_thread(model, tokens):
    def count(x, hook):
        hook.ctx["calls"] = hook.ctx.get("calls", 0) + 1

    def run():
        model.run_with_hooks(tokens, fwd_hooks=[(NAME, count)])
        return model.hook_dict[NAME].ctx["calls"]

    counts = together(run, run, times=30)
    assert counts == [list(range(1, 31))] * 2
    assert model.hook_dict[NAME].ctx == {}


def test_one_cache_of_keys_is_not_for_two_threads(model, tokens):
    # Whoever meets another in the cache gets an Error; what it then holds is whole passes, never parts of two.
    cache, refused = model.native.make_cache(1), []

    def grow():
        try:
            model.native.forward(tokens, cache=cache)
        except introspect.Error as error:
            refused.append(str(error))
            return 0
        return 1

    def look():
        try:
            return len(cache.fork()) % tokens.shape[1]
        except introspect.Error as error:
            assert "another thread" in str(error)
            return 0

    first, second, looks = together(grow, grow, look, times=3)
    assert len(cache) == (sum(first) + sum(second)) * tokens.shape[1]
    assert all("another thread is using it" in message for message in refused)
    assert not any(looks)


def test_a_cache_that_is_in_use_is_refused(model, tokens):
    # The hook stands still inside the pass of one thread while another asks for the same cache.
    cache, inside, done = model.native.make_cache(1), threading.Event(), threading.Event()

    def wait(x, hook):
        inside.set()
        assert done.wait(60)

    def first():
        hooks = model.native.make_hooks()
        hooks.add(NAME, lambda x, name: wait(x, name))
        return model.native.forward(tokens, cache=cache, hooks=hooks)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first)
        assert inside.wait(60)
        try:
            for use in (
                lambda: model.native.forward(tokens, cache=cache),
                lambda: len(cache),
                cache.fork,
                lambda: cache.keys(0),
                lambda: cache.truncate(0),
                lambda: cache.slice(0, 0),
                lambda: cache.select_rows([0]),
            ):
                with pytest.raises(
                    introspect.Error, match="another thread is using it; give each thread one of its own"
                ):
                    use()
        finally:
            done.set()
        running.result()
    assert len(cache) == tokens.shape[1]
    assert len(cache.fork()) == tokens.shape[1]


def test_forks_are_for_threads_of_their_own(model, tokens, rng):
    parent = model.native.make_cache(1)
    model.native.forward(tokens, cache=parent)
    rows = [torch.randint(0, model.cfg.d_vocab, (1, 3), generator=rng) for _ in range(3)]

    def go_on(row):
        return model.native.forward(row, cache=parent_of[id(row)].fork())

    parent_of = {id(row): parent.fork() for row in rows}
    expected = [go_on(row) for row in rows]
    for got, one in zip(together(*(lambda row=row: go_on(row) for row in rows)), expected, strict=True):
        assert all(torch.equal(logits, one) for logits in got)
    assert len(parent) == tokens.shape[1]


def test_two_threads_do_not_record_into_one_cache(model, tokens):
    # A recording that stays is in effect in every thread: the pass that comes second is refused, not mixed in.
    recorded, inside, done = _C.ActivationCache(), threading.Event(), threading.Event()
    hooks = model.native.make_hooks()
    hooks.record(NAME, recorded)
    waiting = hooks.copy()

    def wait(x, name):
        inside.set()
        assert done.wait(60)

    waiting.add("blocks.0.hook_resid_pre", wait)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(model.native.forward, tokens, hooks=waiting)
        assert inside.wait(60)
        try:
            with pytest.raises(introspect.Error, match="records into it: another thread"):
                model.native.forward(tokens, hooks=hooks)
            with pytest.raises(introspect.Error, match="another thread"):
                recorded.to_dict()
        finally:
            done.set()
        running.result()
    assert recorded.names() == [NAME]


def test_a_registry_may_be_emptied_while_a_pass_uses_it(model, tokens):
    registry = model.native.make_hooks()
    registry.add(NAME, lambda x, name: None)

    def refill():
        registry.reset()
        registry.add(NAME, lambda x, name: None)
        registry.add_intervention(_C.Intervention({0: torch.zeros(model.cfg.d_model)}, op="add"))

    plain = model.native.forward(tokens)
    _, logits = together(refill, lambda: model.native.forward(tokens, hooks=registry), times=100)
    assert all(torch.equal(one, plain) for one in logits)


@pytest.mark.parametrize("dir", ["fwd", "bwd"])
@pytest.mark.parametrize("how", ["add_hook", "add_perma_hook", "hooks that stay", "control"])
def test_a_model_that_its_hook_refers_to_is_freed(folder, tokens, dir, how):
    model = HookedTransformer.from_pretrained(folder, dtype="float32", device="cpu")

    def hook(tensor, hook=None, kept=model):
        return None

    if how == "add_hook":
        model.add_hook(NAME, hook, dir)
    elif how == "add_perma_hook":
        model.add_perma_hook(NAME, hook, dir)
    elif how == "hooks that stay":
        with model.hooks(**{f"{dir}_hooks": [(NAME, hook)]}, reset_hooks_end=False):
            pass
    else:
        wrapped = introspect.repeng.ControlModel(model, [1])
        wrapped.set_raw_control({1: torch.ones(model.cfg.d_model)}, operator=lambda x, v, kept=model: x)
        del wrapped
    with torch.enable_grad():
        model(tokens)
    gone = weakref.ref(model)
    del model, hook
    gc.collect()
    assert gone() is None
