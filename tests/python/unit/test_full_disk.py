"""A disk that is full while dictionaries are trained: an error that says so, and the last good checkpoint as it was."""

import os
import shutil
import subprocess

import pytest
import torch
from tiny import write_tiny

import introspect
from introspect import IoError
from introspect.sae import SAE, ActivationFile, CrossLayerTranscoder, train_many, write_activations

MIB = 1 << 20
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MiB; where nothing may be mounted the tests are skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={2 * MIB}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root alone")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny(tmp_path_factory.mktemp("tiny")))


def texts():
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(3, 101, (40,), generator=rng).tolist() for _ in range(80)]


PACKING = {"context_size": 16, "prepend_bos": False, "sequence_separator_token": None}
OPTIONS = PACKING | {
    "training_tokens": 64 * 12,
    "train_batch_size_tokens": 64,
    "held_out_tokens": 64,
    "buffer_tokens": 256,
    "exclude_special_tokens": False,
    "checkpoint_every": 4,
    "record_every": 4,
    "progress": False,
}
WANTED = [{"hook": HOOK, "d_sae": 1500, "architecture": "topk", "k": 8}]  # a checkpoint of some 1.3 MB: one fits


def test_training_stops_and_its_last_checkpoint_goes_on_elsewhere(model, disk, tmp_path):
    whole = train_many(model, texts(), WANTED, checkpoint_path=tmp_path / "roomy", **OPTIONS)
    with pytest.raises(IoError, match="No space left on device"):
        train_many(model, texts(), WANTED, checkpoint_path=disk / "run", **OPTIONS)
    assert [path.name for path in (disk / "run").iterdir()] == ["step-4"]  # and nothing half written
    shutil.copytree(disk / "run", tmp_path / "moved")
    again = train_many(model, texts(), WANTED, checkpoint_path=tmp_path / "moved", resume=True, **OPTIONS)
    assert again.dictionaries == whole.dictionaries
    assert [r.step for r in again.records] == [r.step for r in whole.records]


def test_cross_layer_training_keeps_its_last_checkpoint_too(model, disk, tmp_path):
    streaming = PACKING | {"exclude_special_tokens": False, "buffer_tokens": 64}
    options = {"d_sae": 100, "architecture": "topk", "k": 4, "training_tokens": 64 * 12, "train_batch_size_tokens": 64,
               "held_out_tokens": 64, "checkpoint_every": 4, "streaming": streaming}  # fmt: skip
    whole = CrossLayerTranscoder.train(model, texts(), **options)
    with pytest.raises(IoError, match="No space left on device"):
        CrossLayerTranscoder.train(model, texts(), checkpoint_path=disk / "run", **options)
    assert [path.name for path in (disk / "run").iterdir()] == ["step-4"]
    shutil.copytree(disk / "run", tmp_path / "moved")
    assert (
        CrossLayerTranscoder.train(model, texts(), checkpoint_path=tmp_path / "moved", resume=True, **options) == whole
    )


def test_a_dictionary_that_does_not_fit_leaves_the_one_that_was_there(disk):
    g = torch.Generator().manual_seed(0)
    small, large = (
        SAE(torch.randn(16, n, generator=g), torch.randn(n, 16, generator=g), hook_name=HOOK) for n in (1000, 20_000)
    )
    small.save(disk / "sae")
    before = SAE.load(disk / "sae")
    with pytest.raises(IoError, match="No space left on device"):
        large.save(disk / "sae")
    assert SAE.load(disk / "sae") == before and torch.equal(before.W_dec, small.W_dec)


def test_activations_written_so_far_can_be_read_and_gone_on_with(model, disk, tmp_path):
    options = {"hooks": [HOOK], "dtype": torch.float32, "exclude_special_tokens": False, "progress": False, **PACKING}
    many = texts() * 6  # 2.4 MB
    whole = write_activations(model, many, tmp_path / "whole", **options)
    (disk / "ballast").write_bytes(bytes(MIB))
    with pytest.raises(IoError, match="No space left on device"):
        write_activations(model, many, disk / "file", **options)
    (disk / "ballast").unlink()
    shutil.copytree(disk / "file", tmp_path / "moved")
    again = write_activations(model, many, tmp_path / "moved", resume=True, **options)
    assert again.rows == whole.rows
    assert torch.equal(again.read(0, 0, again.rows), whole.read(0, 0, whole.rows))
    assert ActivationFile.open(tmp_path / "moved").rows == whole.rows
