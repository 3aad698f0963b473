"""Published dictionaries: SAELens's names of releases, a hub on this machine, and the command that converts."""

import dictionary_files as made
import pytest
import torch
from local_hub import folder, server, unreachable_address  # noqa: F401 (fixtures)
from typer.testing import CliRunner

import introspect
from introspect.cli.app import app
from introspect.hub.dictionaries import find_release
from introspect.sae import SAE, CrossLayerTranscoder, files

NAMES = [
    ("gemma-scope-2-4b-pt-transcoders-all", "layer_0_width_16k_l0_big", "google/gemma-scope-2-4b-pt",
     "transcoder_all/layer_0_width_16k_l0_big"),
    ("gemma-scope-2-1b-it-res", "layer_13_width_16k_l0_big", "google/gemma-scope-2-1b-it",
     "resid_post/layer_13_width_16k_l0_big"),
    ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "google/gemma-scope-2b-pt-res",
     "layer_20/width_16k/average_l0_71"),
    ("gemma-scope-2b-pt-res-canonical", "layer_0/width_16k/canonical", "google/gemma-scope-2b-pt-res",
     "layer_0/width_16k/average_l0_105"),
    ("llama_scope_lxr_8x", "l31r_8x", "fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L31R-8x"),
    ("qwen-scope-3.5-27b-w80k-l100", "layer63", "Qwen/SAE-Res-Qwen3.5-27B-W80K-L0_100", "layer63.sae.pt"),
    ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.8.hook_resid_pre"),
    ("gpt2-small-mlp-out-v5-32k", "blocks.3.hook_mlp_out", "jbloom/GPT2-Small-OAI-v5-32k-mlp-out-SAEs",
     "v5_32k_layer_3"),
    ("goodfire-llama-3.1-8b-instruct", "layer_19", "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
     "Llama-3.1-8B-Instruct-SAE-l19.pth"),
    ("mwhanna-qwen3-4b-transcoders", "layer_35", "mwhanna/qwen3-4b-transcoders", "layer_35.safetensors"),
    ("sae_bench_pythia70m_sweep_topk_ctx128_0730", "blocks.3.hook_resid_post__trainer_0", "canrager/lm_sae",
     "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0"),
    ("EleutherAI/sae-llama-3-8b-32x", "layers.10", "EleutherAI/sae-llama-3-8b-32x", "layers.10"),
    ("mntss/clt-gemma-2-2b-2.5M", "", "mntss/clt-gemma-2-2b-2.5M", ""),
]  # fmt: skip


@pytest.mark.parametrize(("release", "sae_id", "repo", "path"), NAMES)
def test_releases_and_ids_stand_for_saelens_s_repositories_and_paths(release, sae_id, repo, path):
    found = find_release(release, sae_id)
    assert (found.repo, found.path) == (repo, path)


@pytest.mark.parametrize(
    ("release", "sae_id", "named"),
    [
        ("gemma-scope-2b-pt-res-canonical", "layer_0/width_3k/canonical", "has no layer_0"),
        ("qwen-scope-3-8b-base-w64k-l50", "blocks.3", "ids of the form layer"),
        ("no-such-release", "layer_0", "neither a release"),
        ("owner/name", "../../secret", "within owner/name"),
        ("/etc/passwd", "x", "neither a release"),
    ],
)
def test_names_that_stand_for_nothing_are_errors_before_anything_is_fetched(release, sae_id, named, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", unreachable_address())
    with pytest.raises(introspect.ConfigError, match=named):
        SAE.from_pretrained(release, sae_id)


def publish(server, repo, root):  # noqa: F811
    """Puts what lies below a folder on the hub."""
    server.files[repo] = {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_release_is_fetched_once_and_read_from_here_afterwards(tmp_path, server, folder, monkeypatch):  # noqa: F811
    written = made.gemma_scope(tmp_path)
    publish(server, "google/gemma-scope-2b-pt-res", tmp_path / "google--gemma-scope-2b-pt-res")
    server.files["google/gemma-scope-2b-pt-res"]["layer_20/width_16k/average_l0_71/notes.txt"] = b"not wanted"
    sae = SAE.from_pretrained("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    assert sae.hash == SAE.load(written.path).hash
    assert (sae.origin.release, sae.origin.sae_id) == ("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71")
    assert sae.cfg.metadata.hook_name == "blocks.20.hook_resid_post" and sae.origin.model_name == "google/gemma-2-2b"
    assert len(server.downloads()) == 1 and not list(folder.rglob("notes.txt"))
    monkeypatch.setenv("HF_ENDPOINT", unreachable_address())
    assert SAE.from_pretrained("gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71").hash == sae.hash
    sae.save(tmp_path / "to")
    assert SAE.load(tmp_path / "to").origin == sae.origin


def test_what_lies_beside_a_file_or_above_a_folder_comes_too(tmp_path, server, folder):  # noqa: F811
    made.circuit_tracer(tmp_path / "a", "jumprelu")
    publish(server, "mwhanna/qwen3-4b-transcoders", tmp_path / "a" / "mwhanna--qwen3-4b-transcoders")
    sae = SAE.from_pretrained("mwhanna-qwen3-4b-transcoders", "layer_1", dtype="bfloat16")
    assert sae.dtype == torch.bfloat16 and sae.cfg.metadata.hook_name == "blocks.1.mlp.hook_in"
    made.sparsify(tmp_path / "b")
    publish(server, "EleutherAI/sae-pythia-70m-32k", tmp_path / "b" / "EleutherAI--sae-pythia-70m-32k")
    assert SAE.from_pretrained("EleutherAI/sae-pythia-70m-32k", "layers.2").origin.model_name == "EleutherAI/pythia-70m"


def test_every_layer_of_a_cross_layer_transcoder_comes(tmp_path, server, folder):  # noqa: F811
    made.cross_layer(tmp_path / "clt")
    publish(server, "mntss/clt-tiny", tmp_path / "clt")
    fetched = CrossLayerTranscoder.from_pretrained("mntss/clt-tiny")
    assert fetched.hash == CrossLayerTranscoder.load(tmp_path / "clt").hash


def test_a_wrong_checksum_and_a_missing_path_are_errors_and_leave_nothing(tmp_path, server, folder):  # noqa: F811
    made.circuit_tracer(tmp_path, "jumprelu")
    repo = "mwhanna/qwen3-4b-transcoders"
    publish(server, repo, tmp_path / "mwhanna--qwen3-4b-transcoders")
    server.stated_sha256["layer_1.safetensors"] = "0" * 64
    with pytest.raises(introspect.IoError, match="checksum"):
        SAE.from_pretrained("mwhanna-qwen3-4b-transcoders", "layer_1")
    assert not list(folder.rglob("*.safetensors"))
    with pytest.raises(introspect.IoError, match="no dictionary at nowhere"):
        SAE.from_pretrained(repo, "nowhere")
    with pytest.raises(introspect.IoError, match="no public repository"):
        SAE.from_pretrained("owner/none", "x")


def test_a_path_is_taken_as_it_is(tmp_path):
    written = made.goodfire(tmp_path)
    assert SAE.from_pretrained(written.path).hash == SAE.load(written.path).hash


def test_the_command_writes_what_saelens_and_circuit_tracer_read(tmp_path):
    written = made.circuit_tracer(tmp_path / "a", "jumprelu")
    run = CliRunner().invoke
    done = run(app, ["sae", "convert", str(written.path), "--layer", "1", "-o", str(tmp_path / "to")])
    assert done.exit_code == 0 and "jumprelu" in done.output
    sae = SAE.load(tmp_path / "to")
    assert sae.hash == SAE.load(written.path, layer=1).hash
    back = ["sae", "convert", str(tmp_path / "to"), "--to", "circuit_tracer", "--dtype", "bfloat16"]
    assert run(app, [*back, "-o", str(tmp_path / "back")]).exit_code == 0
    assert SAE.load(tmp_path / "back").hash == sae.to(torch.bfloat16).hash
    failed = run(app, ["sae", "convert", str(tmp_path / "nothing"), "-o", str(tmp_path / "x")])
    assert failed.exit_code == 1 and "nothing" in failed.output and not (tmp_path / "x").exists()
    assert files.FORMATS == ("saelens", "circuit_tracer")
