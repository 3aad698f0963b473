"""keep_blocks=False: the same numbers, bit for bit, while the blocks stay in the files."""

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dictionaries import dictionary_at
from graphs import Sizes, build, graphs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import ARCHITECTURES, tiny_transformers, write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat
from tiny_gguf import write_tiny_gguf

import introspect


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folders(request, tmp_path_factory):
    """Two models of equal shape."""
    return [write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param, seed) for seed in (0, 1)]


def load_both_ways(source, dtype=torch.float64):
    return [introspect.load_model(source, dtype=dtype, keep_blocks=kept) for kept in (True, False)]


@pytest.fixture
def tokens(rng):
    return torch.randint(3, 80, (2, 9), generator=rng)


def same_readings(a, b):
    def tensors(reading):
        if isinstance(reading, torch.Tensor):
            return [reading]
        return [x for layer in range(reading.n_layers) for x in (reading.keys(layer), reading.values(layer))]

    return all(
        torch.equal(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(tensors(r), tensors(s), strict=True)
    )


def test_a_pass_is_the_same(folders, tokens):
    kept, left = load_both_ways(folders[0])
    assert torch.equal(left(tokens), kept(tokens))
    logits, cache = left.run_with_cache(tokens)
    expected = kept.run_with_cache(tokens)
    assert torch.equal(logits, expected[0])
    assert all(torch.equal(cache[name], value) for name, value in expected[1].items())
    halves = []
    for model in (kept, left):
        cache = model.native.make_cache(2)
        halves.append([model(part, cache=cache) for part in (tokens[:, :5], tokens[:, 5:])])
    assert all(torch.equal(a, b) for a, b in zip(*halves, strict=True))


def test_a_gguf_file_is_read_block_by_block_too(tmp_path, tokens):
    kept, left = load_both_ways(write_tiny_gguf(tmp_path / "tiny.gguf", tiny_transformers("qwen2")))
    assert torch.equal(left(tokens), kept(tokens))


@settings(deadline=None, derandomize=True, max_examples=8, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_graph_of_models_that_are_read_layer_by_layer_is_the_same(folders, data):
    pairs = [load_both_ways(folder) for folder in folders]
    graph = data.draw(graphs(Sizes.of(pairs[0][0])))
    kept, left = (build(graph, [pair[which] for pair in pairs])[0].run() for which in (0, 1))
    assert same_readings(kept, left)


def test_activations_of_such_a_model_are_the_same(tmp_path):
    texts = ["The cat sleeps", "The cat", "No bread at all today"]
    kept, left = load_both_ways(write_tiny_chat(tmp_path / "model"))
    a, b = (introspect.collect_activations(model, texts, layers=[0, 2]) for model in (kept, left))
    assert torch.equal(a.values, b.values)


@pytest.mark.filterwarnings("ignore:add_sae. the dictionary does not say which model")
def test_a_dictionary_stands_in_such_a_model_as_in_the_other(tmp_path, tokens):
    models = load_both_ways(write_tiny_transformers(tmp_path, "llama"))
    sae = dictionary_at("blocks.1.hook_resid_post", models[0].cfg.d_model)
    kept, left = (introspect.HookedTransformer(model).run_with_saes(tokens, saes=sae) for model in models)
    assert torch.equal(kept, left) and not torch.equal(kept, models[0](tokens))


def test_what_the_model_is_does_not_change(folders):
    kept, left = load_both_ways(folders[0])
    assert (left.hash, left.dtype, left.native.n_params) == (kept.hash, kept.dtype, kept.native.n_params)
    named = dict(kept.native.named_weights())
    outside = sum(t.nbytes for name, t in named.items() if not name.startswith("blocks."))
    assert left.native.nbytes == outside < kept.native.nbytes


def test_weights_that_are_not_in_memory_are_not_handed_out(folders):
    left = load_both_ways(folders[0])[1]
    with pytest.raises(introspect.ConfigError, match=r"blocks stay in the files.*keep_blocks"):
        left.native.named_weights()
    with pytest.raises(introspect.ConfigError, match=r"blocks stay in the files.*keep_blocks"):
        introspect.finetune(left, [introspect.FinetuneExample([5], [6])], steps=1)


def test_several_threads_run_one_model(folders, tokens):
    """Each asks for blocks in an order of its own, while the next ones are read ahead."""
    kept, left = load_both_ways(folders[0])
    n = left.cfg.n_layers
    stops = [None, 1, n - 1, None]
    expected = [kept.native.forward(tokens, stop_at_layer=stop) for stop in stops]
    with ThreadPoolExecutor(len(stops)) as pool:
        for _ in range(5):
            got = pool.map(lambda stop: left.native.forward(tokens, stop_at_layer=stop), stops)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_file_that_changes_between_blocks_is_named_by_the_pass_that_needs_it(tmp_path, tokens):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", tiny_transformers("qwen2"))
    left = introspect.load_model(path, dtype=torch.float64, keep_blocks=False)
    left.native.forward(tokens, stop_at_layer=1)  # reads block 0, and block 1 ahead
    path.touch()
    with pytest.raises(introspect.IoError, match=r"tiny\.gguf"):
        left(tokens)


def test_signals_are_heard_between_blocks(tmp_path):
    """Ctrl-C does not wait for the end of a pass over a file of many gigabytes."""
    layers = 40
    model = introspect.load_model(write_tiny(tmp_path, num_hidden_layers=layers), keep_blocks=False)
    heard, before = [], 0
    usual = signal.signal(signal.SIGALRM, lambda *_: heard.append(model.native.n_block_reads - before))
    try:
        for i in range(100):
            before = model.native.n_block_reads
            signal.setitimer(signal.ITIMER_REAL, 1e-3 * (i + 1))
            model(torch.tensor([[3, 4, 5]]))
            signal.setitimer(signal.ITIMER_REAL, 0)
            if any(0 < n_read < layers for n_read in heard):
                return
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    pytest.fail(f"heard only before or after the {layers} blocks: {heard}")


class Logits(torch.utils.data.Dataset):
    """Of one text, by a model that came with the process."""

    def __init__(self, model, tokens):
        self.model, self.tokens = model, tokens

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.model(self.tokens)[0]


def test_a_forked_process_runs_the_model_whose_block_was_being_read(tmp_path, tokens):
    model = introspect.load_model(write_tiny(tmp_path, num_hidden_layers=8), keep_blocks=False)
    rows = Logits(model, tokens[:1])
    expected = rows[0]  # and block 0 is read ahead for the next pass
    for _ in range(2):
        loader = torch.utils.data.DataLoader(
            rows, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=30
        )
        assert [torch.equal(row, expected) for row in loader] == [True] * 4
        assert torch.equal(rows[0], expected)
