"""Dictionaries' files as SAELens 6, dictionary_learning and sparsify read them, in an environment of their own.

SAELens reads what we write to the numbers that we compute; they and we read files of every layout that their readers
take from a disk to the same numbers.
"""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import dictionary_files as made
import pytest
import torch
from conftest import ROOT

from introspect.hub.dictionaries import find_release
from introspect.sae import SAE

sys.path.insert(0, str(ROOT / "tests/benchmarks"))
from peers.environment import SAE_LENS

FLOOR = {"rtol": 1e-4, "atol": 1e-4}

# Layout -> SAELens's loader, the repository and the folder in it.
LOADERS = {
    "gemma_scope": ("gemma_2", "google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71"),
    "gemma_scope attention": ("gemma_2", "google/gemma-scope-2b-pt-att", "layer_20/width_16k/average_l0_71"),
    "gemma_scope transcoder": (
        "gemma_2_transcoder",
        "google/gemma-scope-2b-pt-transcoders",
        "layer_20/width_16k/average_l0_71",
    ),
    "gemma_scope_2 resid_post": ("gemma_3", "google/gemma-scope-2-270m-pt", "resid_post/layer_12_width_16k_l0_small"),
    "gemma_scope_2 transcoder": (
        "gemma_3",
        "google/gemma-scope-2-270m-pt",
        "transcoder/layer_12_width_16k_l0_small_affine",
    ),
    "llama_scope": ("llama_scope", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x"),
    "dictionary_learning AutoEncoder": ("dictionary_learning_1", "x/y", "pythia70m/trainer_0"),
    "dictionary_learning GatedAutoEncoder": ("dictionary_learning_1", "x/y", "pythia70m/trainer_0"),
    "dictionary_learning AutoEncoderTopK": ("dictionary_learning_1", "x/y", "pythia70m/trainer_0"),
    "dictionary_learning BatchTopKSAE": ("dictionary_learning_1", "x/y", "pythia70m/trainer_0"),
    "dictionary_learning JumpReluAutoEncoder": ("dictionary_learning_1", "x/y", "pythia70m/trainer_0"),
}
WIDTHS = {"d_in": made.D, "d_sae": made.F, "d_out": made.D}  # theirs are tables of the real models


def ask(jobs: list[dict], folder: Path) -> list[dict]:
    """What the other readers answer, job by job."""
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of SAELens: python tests/benchmarks/peers/environment.py sae_lens makes it")
    (folder / "jobs.json").write_text(json.dumps(jobs))
    reader = ROOT / "tests/benchmarks/peers/dictionary_reader.py"
    done = subprocess.run([python, reader, folder / "jobs.json"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(job["out"]) for job in jobs]


def rows(folder: Path, width: int) -> tuple[str, torch.Tensor]:
    x = torch.randn(30, width, generator=torch.Generator().manual_seed(5)) * 1.5
    torch.save(x, folder / f"x{width}.pt")
    return str(folder / f"x{width}.pt"), x


def assert_same(answers, ours, names):
    for name, theirs, (sae, x) in zip(names, answers, ours, strict=True):
        assert "error" not in theirs, f"{name}: {theirs['error']}"
        torch.testing.assert_close(sae.encode(x), theirs["f"], **FLOOR, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(sae(x), theirs["y"], **FLOOR, msg=lambda m, name=name: f"{name}: {m}")


# What SAELens has an architecture for; the others are refused there by name.
WHOLE = ("saelens", "bloom", "gemma_scope", "gemma_scope_2", "llama_scope", "dictionary_learning", "goodfire")
READABLE = [name for name in made.MAKERS if name.split()[0] in WHOLE and "crosscoder" not in name]
READABLE += ["sparsify", "openai TopK", "openai ReLU", "circuit_tracer relu", "circuit_tracer jumprelu", "ckkissane"]


def test_saelens_reads_what_we_write_to_our_numbers(tmp_path):
    jobs, ours = [], []
    for i, name in enumerate(READABLE):
        written = made.MAKERS[name](tmp_path / f"from{i}")
        sae = SAE.load(written.path, **written.options)
        sae.save(tmp_path / f"to{i}")
        path, x = rows(tmp_path, sae.d_in)
        jobs.append({"kind": "saelens", "path": str(tmp_path / f"to{i}"), "x": path, "out": str(tmp_path / f"{i}.pt")})
        ours.append((sae, x))
    assert_same(ask(jobs, tmp_path), ours, READABLE)


def test_saelens_refuses_by_name_what_it_has_no_architecture_for(tmp_path):
    names = ["qwen_scope", "tinystories", "sparsify groupmax", "gemma_scope_2 crosscoder", "circuit_tracer topk"]
    jobs = []
    for i, name in enumerate(names):
        written = made.MAKERS[name](tmp_path / f"from{i}")
        sae = SAE.load(written.path, **written.options)
        sae.save(tmp_path / f"to{i}")
        path, _ = rows(tmp_path, sae.d_in)
        jobs.append({"kind": "saelens", "path": str(tmp_path / f"to{i}"), "x": path, "out": str(tmp_path / f"{i}.pt")})
    for name, answer in zip(names, ask(jobs, tmp_path), strict=True):
        architecture = json.loads((tmp_path / f"to{names.index(name)}" / "cfg.json").read_text())["architecture"]
        assert architecture in answer["error"], (name, answer)


def test_saelens_reads_its_own_layouts_from_our_files_as_we_do(tmp_path):
    names = [n for n in made.MAKERS if n.split()[0] in ("saelens", "bloom")]
    jobs, ours = [], []
    for i, name in enumerate(names):
        written = made.MAKERS[name](tmp_path / f"from{i}")
        path, x = rows(tmp_path, made.D)
        jobs.append({"kind": "saelens", "path": str(written.path), "x": path, "out": str(tmp_path / f"{i}.pt")})
        ours.append((SAE.load(written.path), x))
    assert_same(ask(jobs, tmp_path), ours, names)


def test_saelens_s_loaders_read_published_layouts_as_we_do(tmp_path):
    jobs, ours = [], []
    for i, (name, (kind, repo, folder)) in enumerate(LOADERS.items()):
        written = made.MAKERS[name](tmp_path / f"from{i}")
        root = str(written.path).removesuffix("/" + folder)
        path, x = rows(tmp_path, made.D)
        job = {"kind": kind, "repo": repo, "folder": folder, "root": root, "x": path, "out": str(tmp_path / f"{i}.pt")}
        job["overrides"] = dict(WIDTHS)
        if name == "llama_scope":
            job["fold"] = math.sqrt(made.D) / 9.5
        jobs.append(job)
        ours.append((SAE.load(written.path), x))
    assert_same(ask(jobs, tmp_path), ours, list(LOADERS))


def test_dictionary_learning_and_sparsify_read_their_files_as_we_do(tmp_path):
    names = [n for n in made.MAKERS if n.split()[0] == "dictionary_learning"]
    names += ["sparsify", "sparsify groupmax", "sparsify skip transcoder"]
    jobs, ours = [], []
    for i, name in enumerate(names):
        written = made.MAKERS[name](tmp_path / f"from{i}")
        path, x = rows(tmp_path, made.D)
        jobs.append({"kind": name.split()[0], "path": str(written.path), "x": path, "out": str(tmp_path / f"{i}.pt")})
        ours.append((SAE.load(written.path), x))
    assert_same(ask(jobs, tmp_path), ours, names)


def test_every_name_that_a_rule_takes_stands_for_what_saelens_s_list_says(tmp_path):
    python = SAE_LENS.python()
    if python is None:
        pytest.skip("no environment of SAELens")
    code = (
        "import pickle, sys\n"
        "from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory as d\n"
        "pickle.dump({n: (r.repo_id, r.saes_map) for n, r in d().items()}, open(sys.argv[1], 'wb'))"
    )
    subprocess.run([python, "-c", code, tmp_path / "list.pkl"], check=True, capture_output=True)
    taken = total = 0
    for release, (repo, ids) in pickle.loads((tmp_path / "list.pkl").read_bytes()).items():
        for sae_id, path in ids.items():
            total += 1
            try:
                found = find_release(release, sae_id)
            except RuntimeError:  # a family that has no rule
                continue
            taken += 1
            assert (found.repo, found.path) == (repo, path), (release, sae_id)
    assert taken > 0.95 * total
