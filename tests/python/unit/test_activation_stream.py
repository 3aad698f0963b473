"""Rows of activations from models and files: equal to run_with_cache's, mixed by SAELens's rule, resumed anywhere."""

import json

import pytest
import torch
from tiny import ARCHITECTURES, write_tiny, write_tiny_transformers

import introspect
from introspect.sae import streams
from introspect.sae.streams import ActivationFile, ActivationStream, TokenStream

POINTS = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_z",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
BARE = {"prepend_bos": False, "sequence_separator_token": None}


def token_rows(n, context, seed=0):
    return torch.randint(3, 101, (n, context), generator=torch.Generator().manual_seed(seed))


def stream_of(model, tokens, hooks, *, rows=None, mixing=0.0, buffer=None, seed=0, repeat=False, **options):
    """Rows of packed contexts, in one batch unless said otherwise."""
    stream = TokenStream.of_tokens(tokens.tolist(), context=tokens.shape[1], packed=True, repeat=repeat)
    rows = rows or tokens.numel()
    models = model if isinstance(model, list) else [model]
    return ActivationStream.of_model(
        [m.native for m in models], stream, streams.sites(hooks), batch_rows=rows, buffer_rows=buffer or rows,
        mixing=mixing, seed=seed, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("m") / "tiny"), dtype="float64")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_are_those_of_run_with_cache_at_every_kind_of_point(tmp_path, name):
    folder = write_tiny_transformers(tmp_path / "tiny", name)
    model = introspect.load_model(folder, dtype="float64")
    tokens = token_rows(5, 12)
    points = [point for point in POINTS if f"blocks.0.{point}" in model.hook_dict]
    hooks = [f"blocks.{layer}.{point}" for layer in (0, 2) for point in points]
    batch = stream_of(model, tokens, hooks, dtype=torch.float64, contexts_per_pass=2).next_batch()
    _, cache = model.run_with_cache(tokens)
    for hook, rows in zip(hooks, batch, strict=True):
        torch.testing.assert_close(rows, cache[hook].flatten(2).flatten(0, 1), rtol=1e-9, atol=1e-9)


def test_several_sites_are_each_alone_bit_for_bit(model):
    tokens = token_rows(4, 10)
    hooks = ["blocks.2.hook_resid_post", "blocks.0.attn.hook_z", "hook_embed"]
    together = stream_of(model, tokens, hooks).next_batch()
    for hook, rows in zip(hooks, together, strict=True):
        assert rows.dtype == torch.float32
        assert torch.equal(stream_of(model, tokens, hook).next_batch()[0], rows)


def test_nothing_above_the_highest_site_is_run(model, tmp_path):
    """A model whose upper weights are NaN has the same rows below them."""
    from safetensors.torch import load_file, save_file

    folder = write_tiny(tmp_path / "tiny")
    state = load_file(folder / "model.safetensors")
    for name in state:
        if name.startswith(("model.layers.1", "model.layers.2", "lm_head")):
            state[name] = torch.full_like(state[name], float("nan"))
    save_file(state, folder / "model.safetensors")
    broken = introspect.load_model(folder, dtype="float64")
    tokens = token_rows(3, 8)
    hook = "blocks.0.hook_resid_post"
    rows = stream_of(broken, tokens, hook).next_batch()[0]
    assert torch.equal(rows, stream_of(model, tokens, hook).next_batch()[0])


def test_the_final_norm_and_two_models_are_read_too(model, tmp_path):
    other = introspect.load_model(write_tiny(tmp_path / "other", seed=1), dtype="float64")
    tokens = token_rows(3, 8)
    hooks = [("ln_final.hook_normalized", 0), ("blocks.1.hook_mlp_out", 1)]
    batch = stream_of([model, other], tokens, hooks, dtype=torch.float64).next_batch()
    for (hook, number), rows in zip(hooks, batch, strict=True):
        _, cache = [model, other][number].run_with_cache(tokens)
        torch.testing.assert_close(rows, cache[hook].flatten(0, 1), rtol=1e-9, atol=1e-9)


def test_positions_special_tokens_and_sinks_are_left_out(model):
    tokens = token_rows(6, 10)
    hook = "blocks.1.hook_resid_post"
    _, cache = model.run_with_cache(tokens)
    every = cache[hook]
    read = stream_of(
        model, tokens, hook, rows=1, first_position=2, end_position=-1, position_step=3, dtype=torch.float64
    )
    got = torch.cat([batch[0] for batch in iter(read.next_batch, [])])
    torch.testing.assert_close(got, every[:, 2:-1:3].flatten(0, 1), rtol=1e-9, atol=1e-9)

    excluded = tokens.unique()[:20].tolist()
    read = stream_of(model, tokens, hook, rows=1, exclude_tokens=excluded, dtype=torch.float64)
    got = torch.cat([batch[0] for batch in iter(read.next_batch, [])])
    torch.testing.assert_close(got, every[~torch.isin(tokens, torch.tensor(excluded))], rtol=1e-9, atol=1e-9)

    norms = every.flatten(0, 1).norm(dim=1)
    multiple = (norms.sort().values[-5] / norms.median()).item()  # so that four rows are longer
    read = stream_of(model, tokens, hook, rows=1, max_norm_multiple=multiple * (1 + 1e-6), dtype=torch.float64)
    got = torch.cat([batch[0] for batch in iter(read.next_batch, [])])
    torch.testing.assert_close(got, every.flatten(0, 1)[norms <= norms.sort().values[-5]], rtol=1e-9, atol=1e-9)


def numbered_file(folder, rows, width=1):
    """A file by hand whose row n is n: the format as activation_file.h has it."""
    import hashlib

    folder.mkdir()
    x = torch.arange(rows, dtype=torch.float64).repeat_interleave(width)
    raw = x.numpy().tobytes()
    (folder / "rows.bin").write_bytes(raw)
    head = {
        "format": "introspect activations 1", "dtype": "float64", "rows": rows, "complete": True, "notes": "{}",
        "source_state": "", "sites": [{"hook_name": "blocks.0.hook_resid_post", "width": width, "model": 0}],
        "pieces": [{"rows": rows, "sha256": hashlib.sha256(raw).hexdigest()}],
    }  # fmt: skip
    (folder / "activations.json").write_text(json.dumps(head))
    return ActivationFile.open(folder)


def served(stream):
    return [batch[0].flatten().to(torch.int64).tolist() for batch in iter(stream.next_batch, [])]


def test_without_mixing_rows_come_in_order(tmp_path):
    file = numbered_file(tmp_path / "f", 1000)
    batches = served(ActivationStream.of_file(file, batch_rows=7, buffer_rows=50, mixing=0.0))
    assert [row for batch in batches for row in batch] == list(range(994))


@pytest.mark.parametrize(("batch", "buffer", "mixing"), [(8, 64, 0.5), (10, 25, 0.3), (16, 16, 1.0), (64, 9000, 0.5)])
def test_rows_are_mixed_by_saelens_rule(tmp_path, batch, buffer, mixing):
    """How many rows were read when a batch is served, and how many stay, as its mixing_buffer has it."""
    n, chunk = 20000, 4096  # rows of a file come 4,096 at a time
    batches = served(ActivationStream.of_file(numbered_file(tmp_path / "f", n), batch_rows=batch, buffer_rows=buffer,
                                              mixing=mixing))  # fmt: skip
    stored, read, position = set(), 0, 0
    while read < n:
        while len(stored) < buffer and read < n:
            stored |= set(range(read, min(read + chunk, n)))
            read = min(read + chunk, n)
        keep = int(buffer * mixing) if len(stored) >= buffer and read < n else 0
        count = max(1, (len(stored) - keep) // batch) if keep or read < n else len(stored) // batch
        for _ in range(min(count, len(batches) - position)):
            given = set(batches[position])
            assert len(given) == batch
            assert given <= stored  # no row twice, none that was not read yet
            stored -= given
            position += 1
    assert position == len(batches)
    assert n - sum(map(len, batches)) < batch
    flat = [row for given in batches for row in given]
    assert flat != sorted(flat)
    assert batches != served(ActivationStream.of_file(ActivationFile.open(tmp_path / "f"), batch_rows=batch,
                                                      buffer_rows=buffer, mixing=mixing, seed=1))  # fmt: skip


@pytest.mark.parametrize("kind", ["model", "file"])
def test_a_stream_goes_on_from_any_batch_bit_for_bit(model, tmp_path, kind):
    file = numbered_file(tmp_path / "f", 600, 3)

    def new():
        options = {"rows": 16, "buffer": 64, "mixing": 0.5, "repeat": True}
        if kind == "model":
            return stream_of(model, token_rows(12, 10), ["blocks.1.hook_resid_post", "hook_embed"], **options)
        return ActivationStream.of_file(file, batch_rows=16, buffer_rows=64, mixing=0.5, repeat=True)

    whole = new()
    whole.hold_out(20)
    expected = [whole.next_batch() for _ in range(30)]
    for n in (0, 1, 3, 11, 20):
        first = new()
        first.hold_out(20)
        for _ in range(n):
            first.next_batch()
        first.save(tmp_path / "place.safetensors")
        second = new()
        second.hold_out(20)
        second.restore(tmp_path / "place.safetensors")
        assert second.batches == n
        for wanted in expected[n:]:
            for a, b in zip(second.next_batch(), wanted, strict=True):
                assert torch.equal(a, b)
    with pytest.raises(introspect.IoError, match=r"of\.\w+ must be"):
        ActivationStream.of_file(file, batch_rows=8, buffer_rows=64).restore(tmp_path / "place.safetensors")


def test_what_is_held_out_is_in_no_batch(tmp_path, model):
    stream = ActivationStream.of_file(numbered_file(tmp_path / "f", 100), batch_rows=10, buffer_rows=20, repeat=True)
    assert stream.hold_out(15)[0].flatten().tolist() == list(range(15))
    rows = [row for _ in range(40) for row in stream.next_batch()[0].flatten().tolist()]
    assert set(rows) == set(range(15, 100))
    with pytest.raises(ValueError, match="more than the 100 rows that are held out"):
        ActivationStream.of_file(ActivationFile.open(tmp_path / "f")).hold_out(100)
    with pytest.raises(ValueError, match="must have more than the 1000 tokens that are held out"):
        stream_of(model, token_rows(4, 10), "hook_embed", repeat=True).hold_out(1000)


def write(model, tokens, path, **options):
    stream = TokenStream.of_tokens(tokens.tolist(), context=tokens.shape[1], packed=True)
    hooks = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"]
    options = {"exclude_special_tokens": False, "max_norm_multiple": None} | options
    return streams.write_activations(model, stream, path, hooks=hooks, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_file_holds_the_rows_of_the_stream(model, tmp_path, dtype):
    tokens = token_rows(9, 10)
    file = write(model, tokens, tmp_path / "a", dtype=dtype)
    assert file.is_complete
    assert (file.rows, file.widths, file.dtype) == (90, [32, 32], dtype)
    _, cache = model.run_with_cache(tokens)
    for site, (hook, _) in enumerate(file.sites):
        rows = cache[hook].flatten(2).flatten(0, 1)
        torch.testing.assert_close(file.read(site, 0, 90).double(), rows, rtol=2**-8, atol=1e-6)
        assert torch.equal(file.read(site, 3, 8), file.read(site, 0, 90)[3:8])
    batch = ActivationStream.of_file(file, batch_rows=90, buffer_rows=90, mixing=0.0).next_batch()
    assert torch.equal(batch[1], file.read(1, 0, 90))


class Stopped(Exception):
    pass


def test_a_broken_off_file_is_partial_and_goes_on_to_the_same_bytes(model, tmp_path):
    tokens = token_rows(40, 10)
    options = {"memory_budget": 1 << 17, "commit_rows": 30}  # passes of a few contexts
    whole = write_native(model, tokens, tmp_path / "whole", **options)
    bytes_ = (whole.path / "rows.bin").read_bytes()

    def stop(what, done, total):
        if done >= 150:
            raise Stopped

    with pytest.raises(Stopped):
        write_native(model, tokens, tmp_path / "part", progress=stop, **options)
    part = ActivationFile.open(tmp_path / "part")
    assert not part.is_complete
    assert 0 < part.rows < 400
    assert torch.equal(part.read(0, 0, part.rows), whole.read(0, 0, part.rows))
    assert "partial" in repr(part)
    with pytest.raises(introspect.IoError, match="holds activations already; resume goes on"):
        write_native(model, tokens, tmp_path / "part", **options)
    with pytest.raises(introspect.IoError, match="of other rows, with the documents 'tokens "):
        write_native(model, token_rows(40, 10, seed=1), tmp_path / "part", resume=True, **options)
    assert write_native(model, tokens, tmp_path / "part", resume=True, **options).is_complete
    assert (tmp_path / "part/rows.bin").read_bytes() == bytes_


def write_native(model, tokens, path, *, progress=False, resume=False, commit_rows, memory_budget):
    from introspect import _C

    stream = TokenStream.of_tokens(tokens.tolist(), context=tokens.shape[1], packed=True)
    return _C.write_activations([model.native], stream, [("blocks.1.hook_resid_post", 0)], path, progress=progress,
                                resume=resume, commit_rows=commit_rows, memory_budget=memory_budget)  # fmt: skip


def test_damaged_files_are_named(tmp_path):
    numbered_file(tmp_path / "f", 100)
    raw = (tmp_path / "f/rows.bin").read_bytes()
    (tmp_path / "f/rows.bin").write_bytes(raw[:40] + b"\x01" + raw[41:])
    with pytest.raises(introspect.IoError, match=r"rows\.bin: bytes 0 to 800 are not those that were written"):
        ActivationFile.open(tmp_path / "f")
    assert ActivationFile.open(tmp_path / "f", verify=False).rows == 100
    (tmp_path / "f/rows.bin").write_bytes(raw[:-8])
    with pytest.raises(introspect.IoError, match="must have 100 rows of 8 bytes, has 792 bytes"):
        ActivationFile.open(tmp_path / "f")
    head = json.loads((tmp_path / "f/activations.json").read_text())
    for field, value, message in [("rows", 99, "must be those of the pieces"), ("dtype", "int8", "must be bfloat16"),
                                  ("format", "x", "must be 'introspect activations 1'"),
                                  ("sites", [], "must not be empty"),
                                  ("pieces", [{"rows": -3, "sha256": ""}], "must be positive")]:  # fmt: skip
        (tmp_path / "f/activations.json").write_text(json.dumps(head | {field: value}))
        with pytest.raises(introspect.IoError, match=message):
            ActivationFile.open(tmp_path / "f")
    with pytest.raises(introspect.IoError, match=r"activations\.json"):
        ActivationFile.open(tmp_path / "none")


def test_what_does_not_fit_is_said_before_the_first_pass(model):
    tokens = token_rows(4, 10)
    with pytest.raises(introspect.HookError, match=r"blocks\.2\.hook_resid_post"):
        stream_of(model, tokens, "blocks.2.hook_resid_pots")
    with pytest.raises(ValueError, match=r"one vector a position, got blocks\.0\.attn\.hook_pattern"):
        stream_of(model, tokens, "blocks.0.attn.hook_pattern")
    with pytest.raises(introspect.ShapeError, match="n_ctx = 64, got 65 tokens"):
        stream_of(model, token_rows(4, 65), "hook_embed")
    with pytest.raises(IndexError, match="a site's model must be 0 to 0, got 1"):
        stream_of(model, tokens, [("hook_embed", 1)])
    with pytest.raises(ValueError, match="buffer_rows must hold a batch of 40, got 39"):
        stream_of(model, tokens, "hook_embed", buffer=39)
    with pytest.raises(ValueError, match="mixing must be 0 to 1, got 2"):
        stream_of(model, tokens, "hook_embed", mixing=2.0)
    with pytest.raises(ValueError, match="the positions read must not be none of 10"):
        stream_of(model, tokens, "hook_embed", first_position=10)
    with pytest.raises(IndexError, match="token ids must be 0 to 100"):
        stream_of(model, tokens + 100, "hook_embed").next_batch()
