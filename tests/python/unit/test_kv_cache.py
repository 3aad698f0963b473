"""KVCache as a value: every operation against plain tensors, bytes against the memory that tensors lie in, files."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import introspect
from introspect import KVCache

LAYERS, HEADS, HEAD = 3, 2, 4
_SERIAL = itertools.count()


def empty(batch=1, dtype=torch.float32, **sizes):
    sizes = {"n_layers": LAYERS, "n_key_value_heads": HEADS, "d_head": HEAD, **sizes}
    return KVCache(batch=batch, dtype=dtype, **sizes)


def distinct(*shape, dtype=torch.float32):
    """Tensors no two of which hold the same number, small enough to be exact in float32."""
    n = torch.Size(shape).numel()
    start = next(_SERIAL) % 8000
    return (torch.arange(n, dtype=torch.float64) + start * 1000).reshape(shape).to(dtype)


def push(cache, n, mask=None):
    """Appends and commits n positions; returns [n_layers, 2, batch, heads, n, d_head]."""
    new = distinct(cache.n_layers, 2, cache.batch, cache.n_key_value_heads, n, cache.d_head).to(cache.dtype)
    for layer in range(cache.n_layers):
        cache.append(layer, new[layer, 0], new[layer, 1])
    cache.commit(n, mask)
    return new


def contents(cache):
    layers = [torch.stack([cache.keys(i), cache.values(i)]) for i in range(cache.n_layers)]
    return torch.stack(layers).clone()


def storages(cache):
    """The memory of each tensor of a cache: {address: bytes}."""
    tensors = [x for i in range(cache.n_layers) for x in (cache.keys(i), cache.values(i))]
    memory = [x.untyped_storage() for x in tensors]
    return {m.data_ptr(): m.nbytes() for m in memory if m.nbytes()}


class CachesAreValues(RuleBasedStateMachine):
    """Random operations on a family of caches, beside tensors that are copied at every step."""

    def __init__(self):
        super().__init__()
        self.pool = [[empty(), torch.empty(LAYERS, 2, 1, HEADS, 0, HEAD), torch.ones(1, 0, dtype=torch.bool)]]

    def add(self, cache, tensors, mask):
        self.pool.append([cache, tensors, mask])
        if len(self.pool) > 7:
            self.pool.pop(0)

    def pick(self, data):
        return self.pool[data.draw(st.integers(0, len(self.pool) - 1))]

    def span(self, data, length):
        first = data.draw(st.integers(0, length))
        return first, data.draw(st.integers(first, length))

    @rule(data=st.data(), n=st.integers(0, 70))
    def append(self, data, n):
        entry = self.pick(data)
        cache, tensors, mask = entry
        padded = data.draw(st.booleans())
        new_mask = torch.arange(cache.batch * n).reshape(cache.batch, n) % 3 > 0 if padded else None
        new = push(cache, n, new_mask)
        entry[1] = torch.cat([tensors, new], dim=4)
        entry[2] = torch.cat([mask, torch.ones(cache.batch, n, dtype=torch.bool) if new_mask is None else new_mask], 1)

    @rule(data=st.data(), n=st.integers(1, 70), layer=st.integers(0, LAYERS - 1))
    def append_and_roll_back(self, data, n, layer):
        cache = self.pick(data)[0]
        x = distinct(cache.batch, HEADS, n, HEAD)
        cache.append(layer, x, -x)
        cache.rollback()

    @rule(data=st.data())
    def fork(self, data):
        cache, tensors, mask = self.pick(data)
        self.add(cache.fork(), tensors, mask)

    @rule(data=st.data())
    def truncate(self, data):
        entry = self.pick(data)
        n = data.draw(st.integers(0, len(entry[0])))
        entry[0].truncate(n)
        entry[1], entry[2] = entry[1][..., :n, :], entry[2][:, :n]

    @rule(data=st.data(), length=st.integers(0, 150), layer=st.none() | st.integers(0, LAYERS - 1))
    def reserve(self, data, length, layer):
        self.pick(data)[0].reserve(length, layer)

    @rule(data=st.data())
    def slice(self, data):
        cache, tensors, mask = self.pick(data)
        first, last = self.span(data, len(cache))
        self.add(cache.slice(first, last), tensors[..., first:last, :], mask[:, first:last])

    @rule(data=st.data())
    def splice(self, data):
        cache, tensors, mask = self.pick(data)
        others = [entry for entry in self.pool if entry[0].batch in (1, cache.batch)]
        other, their_tensors, their_mask = others[data.draw(st.integers(0, len(others) - 1))]
        first = data.draw(st.integers(0, min(len(cache), len(other))))
        last = data.draw(st.integers(first, len(other)))
        span = their_tensors[..., first:last, :].expand(-1, -1, cache.batch, -1, -1, -1)
        self.add(
            cache.splice(first, last, other),
            torch.cat([tensors[..., :first, :], span, tensors[..., last:, :]], dim=4),
            torch.cat([mask[:, :first], their_mask[:, first:last].expand(cache.batch, -1), mask[:, last:]], dim=1),
        )

    @rule(data=st.data())
    def select_positions(self, data):
        cache, tensors, mask = self.pick(data)
        positions = data.draw(st.lists(st.integers(0, len(cache) - 1), max_size=9)) if len(cache) else []
        self.add(cache.select_positions(positions), tensors[..., positions, :], mask[:, positions])

    @rule(data=st.data())
    def select_rows(self, data):
        cache, tensors, mask = self.pick(data)
        rows = data.draw(st.lists(st.integers(0, cache.batch - 1), min_size=1, max_size=3))
        self.add(cache.select_rows(rows), tensors[:, :, rows], mask[rows])

    @rule(data=st.data())
    def concat_rows(self, data):
        length = len(self.pick(data)[0])
        equal = [entry for entry in self.pool if len(entry[0]) == length]
        chosen = data.draw(st.lists(st.sampled_from(range(len(equal))), min_size=1, max_size=3))
        caches, tensors, masks = zip(*(equal[i] for i in chosen), strict=True)
        if sum(cache.batch for cache in caches) <= 6:
            self.add(KVCache.concat_rows(caches), torch.cat(tensors, dim=2), torch.cat(masks))

    @precondition(lambda self: len(self.pool) > 1)
    @rule(data=st.data())
    def drop(self, data):
        self.pool.pop(data.draw(st.integers(0, len(self.pool) - 1)))

    @invariant()
    def every_cache_holds_what_its_own_history_says(self):
        for cache, tensors, mask in self.pool:
            assert len(cache) == tensors.shape[4]
            assert torch.equal(contents(cache), tensors)
            assert torch.equal(mask, torch.ones_like(mask) if cache.mask is None else cache.mask)

    @invariant()
    def bytes_are_those_of_the_memory_that_the_tensors_lie_in(self):
        memory = [storages(cache) for cache, _, _ in self.pool]
        holders = [address for held in memory for address in held]
        for (cache, _, _), held in zip(self.pool, memory, strict=True):
            own = sum(size for address, size in held.items() if holders.count(address) == 1)
            assert (cache.nbytes, cache.nbytes_own) == (sum(held.values()), own)
            assert cache.nbytes_shared == cache.nbytes - cache.nbytes_own
        total = sum({address: size for held in memory for address, size in held.items()}.values())
        assert KVCache.total_nbytes([cache for cache, _, _ in self.pool]) == total


CachesAreValues.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCachesAreValues = CachesAreValues.TestCase


def test_a_prefix_and_a_fork_share_memory_and_a_tail_does_not():
    cache = empty()
    push(cache, 100)
    prefix, fork, tail = cache.slice(0, 40), cache.fork(), cache.slice(40, 100)
    assert storages(prefix) == storages(fork) == storages(cache)
    assert not storages(tail).keys() & storages(cache).keys()


def test_splicing_shares_the_layers_in_which_both_share_memory():
    """What a range of steered layers leaves alone stays one tensor."""
    base = empty()
    push(base, 10)
    changed = base.fork()
    changed.truncate(6)
    changed.append(0, base.keys(0)[:, :, 6:], base.values(0)[:, :, 6:])  # the parent sees these places: a copy
    for layer in (1, 2):
        changed.append(layer, distinct(1, HEADS, 4, HEAD), distinct(1, HEADS, 4, HEAD))
    changed.commit(4)
    assert base.nbytes_shared == 0
    other = base.fork()
    spliced = base.splice(2, 9, other)
    assert storages(spliced) == storages(base)
    assert torch.equal(contents(spliced), contents(base))
    assert not storages(base.splice(2, 9, changed)).keys() & storages(base).keys()


def test_memory_is_reserved_to_the_byte_and_for_one_layer_alone():
    cache = empty(batch=2)
    cache.reserve(37, 1)
    position = 2 * 2 * HEADS * HEAD * 4  # keys and values, rows, float32
    assert cache.nbytes == 37 * position
    cache.reserve(37)
    assert cache.nbytes == LAYERS * 37 * position
    before = storages(cache)
    push(cache, 37)
    assert storages(cache) == before
    fork = cache.fork()
    fork.reserve(50, 2)
    assert (fork.nbytes_shared, fork.nbytes_own) == (2 * 37 * position, 50 * position)


def test_a_reserved_fork_goes_on_in_place_though_its_parent_went_on_first():
    parent = empty()
    push(parent, 5)
    parent.reserve(20)
    fork = parent.fork()
    push(parent, 3)
    fork.reserve(20)
    memory = storages(fork)
    assert not memory.keys() & storages(parent).keys()
    push(fork, 15)
    assert storages(fork) == memory


def test_a_splice_converts_to_this_caches_dtype():
    cache, other = empty(), empty(dtype=torch.float64)
    push(cache, 5)
    push(other, 5)
    third = torch.full((1, HEADS, 1, HEAD), 1 / 3, dtype=torch.float64)
    for layer in range(LAYERS):
        other.append(layer, third, third)
    other.commit(1)
    spliced = cache.splice(3, 6, other)
    assert spliced.dtype == torch.float32
    assert torch.equal(contents(spliced)[..., 3:, :], contents(other)[..., 3:, :].float())


@pytest.mark.parametrize(
    "sizes", [{"n_layers": 2}, {"n_key_value_heads": 1}, {"d_head": 8}, {"batch": 2}], ids=lambda s: next(iter(s))
)
def test_models_of_other_shapes_are_refused_with_both_shapes(sizes):
    cache, other = empty(batch=3), empty(**sizes)
    push(cache, 4)
    push(other, 4)
    with pytest.raises(introspect.ShapeError, match=r"splice: the other cache must be for 3 layers.*; got"):
        cache.splice(0, 2, other)
    assert len(cache) == 4


def test_rows_are_joined_only_if_they_fit():
    cache = empty()
    push(cache, 4)
    for other in (empty(), empty(d_head=8), empty(dtype=torch.float64)):
        with pytest.raises(introspect.ShapeError, match="concat_rows: every cache must hold 4 positions"):
            KVCache.concat_rows([cache, other])
    with pytest.raises(ValueError, match="at least one"):
        KVCache.concat_rows([])


def test_spans_outside_a_cache_are_index_errors():
    cache, other = empty(), empty()
    push(cache, 4)
    push(other, 6)
    for first, last in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(IndexError, match="slice"):
            cache.slice(first, last)
    with pytest.raises(IndexError, match="of the other cache"):
        cache.splice(0, 7, other)
    with pytest.raises(IndexError, match="begins at one of the positions 0 to 4, got 5"):
        cache.splice(5, 6, other)
    for call in (cache.keys, cache.values, lambda layer: cache.reserve(1, layer)):
        with pytest.raises(IndexError, match="layers are 0 to 2, got 3"):
            call(3)
    with pytest.raises(introspect.ShapeError, match="the mask must be"):
        cache.commit(0, torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_a_saved_cache_comes_back_bit_for_bit(tmp_path, dtype, padded):
    cache = empty(batch=2, dtype=dtype)
    push(cache, 9, torch.arange(18).reshape(2, 9) % 4 > 0 if padded else None)
    cache.save(tmp_path / "a.safetensors", model_hash="abc")
    loaded = KVCache.load(tmp_path / "a.safetensors", model_hash="abc")
    assert (loaded.batch, loaded.n_layers, len(loaded), loaded.dtype) == (2, LAYERS, 9, dtype)
    assert torch.equal(contents(loaded), contents(cache))
    assert (loaded.mask is None) == (not padded) and (not padded or torch.equal(loaded.mask, cache.mask))
    push(loaded, 3)
    assert len(loaded) == 12


def test_other_readers_find_the_tensors_and_the_metadata(tmp_path):
    cache = empty()
    push(cache, 5)
    cache.save(tmp_path / "a.safetensors", model_hash="abc")
    tensors = load_file(tmp_path / "a.safetensors")
    assert torch.equal(tensors["keys.2"], cache.keys(2)) and torch.equal(tensors["values.0"], cache.values(0))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["model_hash"], metadata["length"], metadata["d_head"]) == ("abc", "5", "4")


def test_an_empty_cache_can_be_saved(tmp_path):
    empty().save(tmp_path / "a.safetensors")
    assert len(KVCache.load(tmp_path / "a.safetensors")) == 0


def test_a_cache_of_another_model_is_refused(tmp_path):
    cache = empty()
    push(cache, 5)
    cache.save(tmp_path / "a.safetensors", model_hash="abc")
    with pytest.raises(introspect.ConfigError, match="must be of the model xyz, it is of abc"):
        KVCache.load(tmp_path / "a.safetensors", model_hash="xyz")
    assert len(KVCache.load(tmp_path / "a.safetensors")) == 5


def saved(tmp_path):
    cache = empty()
    push(cache, 5)
    path = tmp_path / "a.safetensors"
    cache.save(path)
    with safe_open(path, "pt") as file:
        return path, load_file(path), file.metadata()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("length", "6"),
        ("batch", "0"),
        ("batch", "99999999999999999999"),
        ("n_layers", "4"),
        ("n_layers", "1000000000000"),
        ("d_head", "four"),
        ("n_key_value_heads", "-2"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_an_io_error(tmp_path, key, value):
    path, tensors, metadata = saved(tmp_path)
    save_file(tensors, path, {**metadata, key: value})
    with pytest.raises(introspect.IoError, match=r"load_cache: .*a\.safetensors"):
        KVCache.load(path)


@pytest.mark.parametrize("key", ["format", "model_hash", "length", "n_layers"])
def test_missing_metadata_is_an_io_error(tmp_path, key):
    path, tensors, metadata = saved(tmp_path)
    save_file(tensors, path, {k: v for k, v in metadata.items() if k != key})
    with pytest.raises(introspect.IoError, match="load_cache"):
        KVCache.load(path)


def test_tensors_of_another_kind_are_io_errors(tmp_path):
    path, tensors, metadata = saved(tmp_path)
    for broken in (
        {**tensors, "keys.1": tensors["keys.1"].double()},
        {**tensors, "keys.0": tensors["keys.0"].int()},
        {**tensors, "keys.1": tensors["keys.1"][:, :, :3].clone()},
        {**tensors, "mask": torch.ones(1, 3)},
        {("else" if name == "values.2" else name): x for name, x in tensors.items()},
    ):
        save_file(broken, path, metadata)
        with pytest.raises(introspect.IoError):
            KVCache.load(path)


def test_a_file_cut_short_or_not_there_is_an_io_error(tmp_path):
    path, _, _ = saved(tmp_path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(introspect.IoError):
            KVCache.load(path)
    with pytest.raises(introspect.IoError):
        KVCache.load(tmp_path / "none.safetensors")
    with pytest.raises(introspect.IoError):
        empty().save(tmp_path / "no folder" / "a.safetensors")


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path):
    path, _, _ = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError):
        empty().save(path, model_hash=b"\xff")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
