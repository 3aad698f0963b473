"""Every path on a device whose memory faults when the host touches it (tests/cpp/device). The numbers are the CPU's."""

import signal
import subprocess
import sys
from pathlib import Path

import fenced
import pytest
import torch
import works
from invariants import *  # noqa: F403  # the tests of DESIGN 5; the fixtures below put their models on the device
from tiny import ARCHITECTURES, MIXTURES, write_tiny, write_tiny_transformers
from tiny_chat import write_tiny_chat

import introspect
from introspect import placement

TESTS = Path(__file__).parents[1]
FLOOR = {"rtol": 0, "atol": 1e-8}  # float64: the CPU's kernels of ours sum in another order than ATen's


@pytest.fixture(scope="module", autouse=True)
def device():
    fenced.load()
    return "fenced:0"


@pytest.fixture(scope="module", params=["gemma3"])
def folder(request, tmp_path_factory):
    return write_tiny_transformers(tmp_path_factory.mktemp("tiny"), request.param)


@pytest.fixture(scope="module")
def model(folder, device):
    return introspect.load_model(folder, dtype=torch.float64, device=device)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    return write_tiny_chat(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def on_cpu(chat):
    return introspect.load_model(chat, dtype=torch.float64)


@pytest.fixture(scope="module")
def on_device(chat, device):
    return introspect.load_model(chat, dtype=torch.float64, device=device)


def assert_same(name, ours, theirs):
    made, expected = works.run(name, ours), works.run(name, theirs)
    assert made.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            made[key], expected[key], equal_nan=True, msg=lambda m, key=key: f"{key}: {m}", **FLOOR
        )


# The device itself


def run_python(code):
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import fenced, torch; fenced.load(); {code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_host_that_touches_the_memory_is_ended():
    touched = run_python(
        "t = torch.arange(6, device='fenced:1')[2:]; print(int(t.sum()), flush=True); print(torch.ops.fenced.touch(t))"
    )
    assert (touched.returncode, touched.stdout) == (-signal.SIGSEGV, "14\n")


def test_operators_work_on_views_and_refuse_other_devices(device, rng):
    x = torch.randn(4, 6, generator=rng)
    y = x.to(device)
    y[1:, 2:].t().mul_(2)
    x[1:, 2:].t().mul_(2)
    assert torch.equal(y.cpu(), x)
    assert torch.equal(y[:, ::2].unfold(1, 2, 1).cumsum(0).cpu(), x[:, ::2].unfold(1, 2, 1).cumsum(0))
    assert torch.equal(torch.cat([y, y[:0]]).topk(2).indices.cpu(), x.topk(2).indices)
    empty = torch.empty(0, device=device)
    torch.mul(y, 3, out=empty)
    assert torch.equal(empty.cpu(), 3 * x)
    for other in (x, x.to("fenced:1")):
        with pytest.raises(RuntimeError, match="the same device"):
            y + other


# What the library does


@pytest.mark.parametrize("name", works.all_works())
def test_a_device_gives_what_the_cpu_gives(on_device, on_cpu, name):
    assert_same(name, on_device, on_cpu)


def test_blocks_in_their_files_run_on_the_device(chat, device, on_cpu):
    model = introspect.load_model(chat, dtype=torch.float64, device=device, keep_blocks=False)
    for name in ("logits", "graph"):
        assert_same(name, model, on_cpu)


def test_what_a_device_holds_is_written_as_the_cpus(on_device, on_cpu, tmp_path):
    pairs = [("Talk of cats.", "Talk."), ("A cat sat.", "It sat."), ("cat", "dog")]
    files = []
    for name, model in (("device", on_device), ("cpu", on_cpu)):
        vector = introspect.ControlVector.train(model, pairs)
        vector.export_gguf(tmp_path / f"{name}.gguf")
        files.append(introspect.ControlVector.import_gguf(tmp_path / f"{name}.gguf").directions)
    for layer, direction in files[1].items():
        torch.testing.assert_close(files[0][layer], direction, rtol=0, atol=1e-6)  # written in float32


# What a device is waited for


def test_a_pass_waits_for_nothing_and_its_logits_are_one_copy(on_device, device):
    mask = torch.ones(works.TOKENS.shape, dtype=torch.bool)
    mask[0, :2] = False
    on = works.TOKENS.to(device)
    vector = introspect.ControlVector("qwen2", {0: torch.randn(32), 1: torch.randn(32)})
    with on_device.steer(vector, strength=2.0):
        assert fenced.waits(lambda: on_device(works.TOKENS)) == 0
        assert fenced.waits(lambda: on_device(works.TOKENS, attention_mask=mask, logits_at="last")) == 0
        assert fenced.waits(lambda: on_device(works.TOKENS).cpu()) == 1
        assert fenced.waits(lambda: on_device.run_with_cache(works.TOKENS)) == 0
        cache = on_device.native.make_cache(2)
        on_device(works.TOKENS, cache=cache)
        assert fenced.waits(lambda: on_device(works.TOKENS[:, :1], cache=cache, logits_at="last")) == 0
    assert fenced.waits(lambda: on_device(on)) == 1  # token ids are checked, by the host


def test_a_token_is_one_copy(on_device):
    def generate():
        return on_device.native.generate([works.IDS, works.OTHER], max_new_tokens=5, stop_at_eos=False)

    assert fenced.waits(generate) == 5


def test_a_planned_pass_and_a_trie_bring_what_they_read_in_one_copy(on_device):
    graph = introspect.Graph()
    root = graph.segment(on_device, works.IDS[:4])
    changed = [works.steering(on_device), works.steering(on_device, positions=[0, 2])]
    for change in ([], changed[:1], changed[1:]):
        end = graph.segment(on_device, works.IDS[4:], root, change)
        graph.read(end)
        graph.read(end, point="hook_mlp_out", positions=[0, -1])
        graph.read_attention(end)
    assert graph.plan().n_passes == 1
    assert fenced.waits(graph.run) == 1
    trie = introspect.TokenTrie([works.IDS, works.OTHER])
    nodes = list(range(len(trie)))
    assert fenced.waits(lambda: introspect.run_trie(on_device.native, trie, nodes=nodes, layers=[0, 1, 2])) == 1


# Work that is recorded once and replayed


def steered_tokens(model, step="auto", n=12, prompts=(works.IDS, works.OTHER[:6]), **how):
    hooks = model.native.make_hooks()
    hooks.add_intervention(works.steering(model, **how))
    return model.native.generate(list(prompts), max_new_tokens=n, stop_at_eos=False, hooks=hooks, step=step)


def test_a_generation_replays_one_step_and_waits_once_a_token(on_device, on_cpu):
    expected = steered_tokens(on_cpu, "plain")
    assert introspect._C.replays_steps(on_device.device)
    assert fenced.replays(lambda: steered_tokens(on_device)) == 11
    n_checks = 2  # of the numbers of both layers' operands
    assert fenced.waits(lambda: steered_tokens(on_device)) == 12 + n_checks
    assert steered_tokens(on_device) == expected
    assert fenced.replays(lambda: steered_tokens(on_device, n=5)) == 0  # too few to pay
    assert fenced.replays(lambda: steered_tokens(on_device, first_position=12)) == 0
    assert steered_tokens(on_device, first_position=12) == steered_tokens(on_cpu, first_position=12)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in MIXTURES])
def test_replayed_steps_of_every_architecture(tmp_path, device, name):
    folder = write_tiny_transformers(tmp_path / "model", name)
    on_cpu, on_device = (introspect.load_model(folder, dtype=torch.float64, device=d) for d in ("cpu", device))
    expected = steered_tokens(on_cpu, "plain")
    assert steered_tokens(on_device) == expected
    assert fenced.replays(lambda: steered_tokens(on_device)) == 11


def test_what_is_outgrown_is_recorded_again(tmp_path, device):
    folder = write_tiny(tmp_path / "long", max_position_embeddings=512, num_hidden_layers=2)
    on_cpu, on_device = (introspect.load_model(folder, dtype=torch.float64, device=d) for d in ("cpu", device))
    prompt = torch.randint(3, 90, (250,), generator=torch.Generator().manual_seed(0)).tolist()
    assert steered_tokens(on_device, prompts=[prompt]) == steered_tokens(on_cpu, "plain", prompts=[prompt])


def test_a_recording_that_fails_is_said_once_and_changes_no_token(chat, device):
    done = run_python(
        f"import introspect; model = introspect.load_model({str(chat)!r}, device={device!r})\n"
        "def made(step): return model.native.generate([[40, 41, 7]], max_new_tokens=10, stop_at_eos=False, step=step)\n"
        "torch.ops.fenced.refuse_recordings(); assert made('auto') == made('plain') == made('static')\n"
        "print(introspect._C.replays_steps(model.device))"
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert done.stderr.count("could not be recorded") == 1
    assert "recordings are refused" in done.stderr


# Several devices


def devices_of(model):
    """Of the embedding, and of the blocks."""
    found = {name: str(weight.device) for name, weight in model.native.named_weights()}
    blocks = {found[name] for name in found if name.startswith("blocks.0.")}
    assert len(blocks) == 1
    return found["embed.W_E"], [found[f"blocks.{layer}.attn.W_O"] for layer in range(model.cfg.n_layers)]


@pytest.mark.parametrize(
    ("device_map", "home", "blocks"),
    [
        (["fenced:0", "fenced:1"], "fenced:0", ["fenced:0", "fenced:0", "fenced:1"]),
        (["fenced:1", "cpu"], "fenced:1", ["fenced:1", "fenced:1", "cpu"]),
        ({0: "fenced:1", 2: "fenced"}, "cpu", ["fenced:1", "cpu", "fenced:0"]),
    ],
)
def test_blocks_live_and_run_where_they_are_put(chat, on_cpu, device_map, home, blocks):
    model = introspect.load_model(chat, dtype=torch.float64, device_map=device_map)
    assert devices_of(model) == (home, blocks)
    assert str(model.device) == home
    for name in (
        "every_activation",
        "interventions",
        "steered_text",
        "caches",
        "graph",
        "trie",
        "dictionary",
        "adapter",
    ):
        assert_same(name, model, on_cpu)


def test_auto_fills_one_device_after_another_and_leaves_the_rest_on_the_cpu(chat, monkeypatch):
    cfg = introspect._C.read_config(str(chat))
    outside, block = placement.bytes_of(cfg, torch.float32)
    plain = introspect.load_model(chat).native
    norms_and_biases = 0.05  # of a block this small
    assert plain.nbytes == pytest.approx(outside + cfg.n_layers * block, rel=norms_and_biases)

    def room(first, second):
        free = {0: outside + first * block, 1: second * block}
        monkeypatch.setattr(placement, "free_bytes", lambda device: int(free[device.index] / placement.FOR_BLOCKS) + 64)
        return devices_of(introspect.load_model(chat, device_map="auto"))

    assert room(1, 1) == ("fenced:0", ["fenced:0", "fenced:1", "cpu"])
    assert room(0, 2) == ("fenced:0", ["fenced:1", "fenced:1", "cpu"])
    assert room(5, 0) == ("fenced:0", ["fenced:0"] * 3)
    assert room(0, 0) == ("fenced:0", ["cpu"] * 3)
    monkeypatch.setattr(placement, "free_bytes", lambda device: None)  # a device that does not say
    assert devices_of(introspect.load_model(chat, device_map="auto")) == ("fenced:0", ["fenced:0"] * 3)
    assert devices_of(introspect.load_model(chat, device_map="auto", device="cpu"))[0] == "cpu"
    monkeypatch.setattr(placement, "accelerators", list)
    assert devices_of(introspect.load_model(chat, device_map="auto")) == ("cpu", ["cpu"] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "must name a device of torch's"),
        ({"device": "fenced:7"}, "device 'fenced:7' cannot be used here: .*devices are 0 to 1"),
        ({"device_map": {1: "fenced:2"}}, "device 'fenced:2' cannot be used here"),
        ({"device_map": ["fenced:0", "nowhere"]}, "must name a device of torch's"),
        ({"device_map": "balanced"}, "must be 'auto', a list of devices or"),
        ({"device_map": []}, "at least one device"),
        ({"device_map": {9: "fenced:0"}}, "block 9, and blocks are 0 to 2"),
    ],
)
def test_devices_that_are_not_there_are_refused(chat, options, message):
    with pytest.raises(introspect.ConfigError, match=message):
        introspect.load_model(chat, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_kind_of_device_that_this_torch_lacks_is_refused(chat):
    with pytest.raises(introspect.ConfigError, match="device 'cuda' cannot be used here"):
        introspect.load_model(chat, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_no_further_from_float32_than_the_cpus(chat, device, dtype):
    """Padded rows, chunks after a prefix and whole passes, which take different kernels of a device."""
    exact, cpu, ours = (
        introspect.load_model(chat, dtype=kind, device=where)
        for kind, where in ((torch.float32, "cpu"), (dtype, "cpu"), (dtype, device))
    )
    mask = torch.ones(works.TOKENS.shape, dtype=torch.bool)
    mask[1, :3] = False

    def read(model):
        cache = model.native.make_cache(2)
        model(works.TOKENS[:, :4], cache=cache)
        parts = [model(works.TOKENS), model(works.TOKENS, attention_mask=mask), model(works.TOKENS[:, 4:], cache=cache)]
        return torch.cat([part[1, -3:].cpu() for part in parts])

    want = read(exact)
    assert (read(ours) - want).norm() < 1.5 * (read(cpu) - want).norm()  # both round, in places of their own
