"""Dictionaries' files: every format as it is published, read to the numbers of its equation, and written again."""

import contextlib
import json
import pickle
import random
import shutil
from pathlib import Path

import dictionary_files as made
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import introspect
from introspect.io import read_npz
from introspect.sae import SAE, Crosscoder, CrossLayerTranscoder, Transcoder, files

D, F, K = made.D, made.F, made.K
FLOOR = {"rtol": 1e-5, "atol": 1e-5}  # float32, sums in another order


def rows(width: int = D, n: int = 40) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(99)) * 1.5


def assert_computes(sae: SAE, run, x: torch.Tensor) -> None:
    f, y = run(x)
    assert (f != 0).any() and (f == 0).any()
    torch.testing.assert_close(sae.encode(x), f, **FLOOR)
    torch.testing.assert_close(sae(x), y, **FLOOR)


@pytest.mark.parametrize("name", made.MAKERS)
def test_every_format_is_read_to_the_numbers_of_its_equation_and_says_where_it_belongs(tmp_path, name):
    written = made.MAKERS[name](tmp_path)
    sae = SAE.load(written.path, **written.options)
    assert_computes(sae, written.run, rows(sae.d_in))
    meta = sae.cfg.metadata
    assert (meta.hook_name or "", meta.hook_name_out or "") == (written.hook, written.hook_out)
    assert (meta.model_name or "") == written.model
    named = SAE.load(written.path, **written.options, format=name.split()[0].replace("bloom", "saelens"))
    assert named.hash == sae.hash and named.origin == sae.origin


@pytest.mark.parametrize("name", made.MAKERS)
def test_what_is_saved_is_loaded_as_the_same_dictionary(tmp_path, name):
    written = made.MAKERS[name](tmp_path / "from")
    sae = SAE.load(written.path, **written.options)
    sae.save(tmp_path / "to")
    again = SAE.load(tmp_path / "to")
    assert type(again) is type(sae) and again.origin == sae.origin
    assert again.d_in == sae.d_in and again.architecture == sae.architecture and again.k == sae.k
    assert_computes(again, written.run, rows(sae.d_in))
    again.save(tmp_path / "once more")
    for file in ("sae_weights.safetensors", "cfg.json"):
        assert (tmp_path / "once more" / file).read_bytes() == (tmp_path / "to" / file).read_bytes()


def test_kinds_follow_from_the_sites(tmp_path):
    assert type(SAE.load(made.gemma_scope(tmp_path).path)) is SAE
    assert type(SAE.load(made.gemma_scope_2(tmp_path, "transcoder").path)) is Transcoder
    crosscoder = SAE.load(made.gemma_scope_2_crosscoder(tmp_path).path)
    assert type(crosscoder) is Crosscoder
    assert [site.hook_name for site in crosscoder.origin.inputs] == [
        "blocks.7.hook_resid_post",
        "blocks.13.hook_resid_post",
    ]
    assert [site.width for site in crosscoder.origin.outputs] == [D, D]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_dtype_may_be_asked_for_and_the_file_s_own_is_kept_otherwise(tmp_path, dtype):
    written = made.gemma_scope(tmp_path)
    assert SAE.load(written.path).dtype == torch.float32
    sae = SAE.load(written.path, dtype=dtype)
    assert sae.dtype == dtype
    sae.save(tmp_path / "to")
    again = SAE.load(tmp_path / "to")
    assert again.dtype == dtype and again.hash == sae.hash


# ---- what other readers get wrong (facts/saes.md 6) ----


def test_a_top_k_of_before_version_6_is_no_relu(tmp_path):
    written = made.bloom(tmp_path)
    cfg = json.loads((written.path / "cfg.json").read_text())
    (written.path / "cfg.json").write_text(
        json.dumps(cfg | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}})
    )
    sae = SAE.load(written.path)
    assert sae.architecture == "topk" and (sae.encode(rows()) > 0).sum(-1).max() == K
    for name in ("gelu", "tanh-relu"):
        (written.path / "cfg.json").write_text(json.dumps(cfg | {"activation_fn_str": name}))
        with pytest.raises(introspect.ConfigError, match=f"activation_fn.*{name}"):
            SAE.load(written.path)


def test_bloom_s_want_centred_weights_and_bos(tmp_path):
    origin = SAE.load(made.bloom(tmp_path).path).origin
    assert origin.centers_writing_weights and origin.prepend_bos and origin.context_size == 128


def test_a_gain_of_features_is_folded_in(tmp_path):
    written = made.bloom(tmp_path)
    tensors = load_file(written.path / "sae_weights.safetensors")
    gain = tensors["scaling_factor"] = torch.linspace(0.5, 2, F)
    save_file(tensors, written.path / "sae_weights.safetensors")
    f, _ = written.run(rows())
    torch.testing.assert_close(SAE.load(written.path).encode(rows()), f * gain, **FLOOR)


def test_a_batch_top_k_in_training_is_a_threshold_on_features_times_decoder_norms(tmp_path):
    written = made.saelens(tmp_path, "standard", rescale_acts_by_decoder_norm=True)
    path = written.path / "sae_weights.safetensors"
    tensors = load_file(path) | {"topk_threshold": torch.tensor(1.3, dtype=torch.float64)}
    save_file(tensors, path)
    cfg = json.loads((written.path / "cfg.json").read_text())
    (written.path / "cfg.json").write_text(json.dumps(cfg | {"architecture": "batchtopk", "k": 2.5}))
    sae = SAE.load(written.path)
    p = ((rows() - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]) * tensors["W_dec"].norm(dim=-1)
    torch.testing.assert_close(sae.encode(rows()), made.jump(p, 1.3), **FLOOR)


def test_inputs_of_an_unknown_scale_are_no_silent_number(tmp_path):
    written = made.saelens(tmp_path, normalize_activations="expected_average_only_in")
    with pytest.raises(introspect.ConfigError, match="input_scale"):
        SAE.load(written.path)
    given = SAE.load(written.path, input_scale=0.5)
    (written.path / "activation_scaler.json").write_text('{"scaling_factor": 0.5}')
    scaled = SAE.load(written.path)
    assert scaled.hash == given.hash
    f, y = written.run(rows() * 0.5)
    torch.testing.assert_close(scaled.encode(rows()), f, **FLOOR)
    torch.testing.assert_close(scaled(rows()), y / 0.5, **FLOOR)
    scaled.save(tmp_path / "to")  # folded, as SAELens does
    again = SAE.load(tmp_path / "to")
    torch.testing.assert_close(again(rows()), y / 0.5, **FLOOR)
    assert again.cfg.normalize_activations == "none"


def test_llama_scope_s_decoder_must_have_rows_of_length_1(tmp_path):
    written = made.llama_scope(tmp_path)
    path = written.path / "checkpoints" / "final.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"decoder.weight": tensors["decoder.weight"] * 1.1}, path)
    with pytest.raises(introspect.ConfigError, match="length 1"):
        SAE.load(written.path)


def test_llama_scope_r1_has_logarithms_of_thresholds_in_the_scaled_space(tmp_path):
    folder = tmp_path / "fnlp--Llama-Scope-R1-Distill" / "L15R"
    W_enc, b_enc, W_dec, b_dec = made.draw(3)
    made.describe(folder, "config.json", {"d_model": D, "hook_point_in": "blocks.15.hook_resid_post"})
    th = made.threshold(3) + 0.1
    tensors = {"encoder.weight": W_enc.T, "encoder.bias": b_enc, "decoder.weight": W_dec.T, "decoder.bias": b_dec}
    tensors["log_jumprelu_threshold"] = th.log()
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    with pytest.raises(introspect.ConfigError, match="input_scale"):
        SAE.load(folder)
    f = made.jump(rows() * 0.7 @ W_enc + b_enc, th)
    sae = SAE.load(folder, input_scale=0.7)
    torch.testing.assert_close(sae.encode(rows()), f, **FLOOR)
    torch.testing.assert_close(sae(rows()), (f @ W_dec + b_dec) / 0.7, **FLOOR)


def test_qwen_scope_keeps_negative_values_and_wants_its_k(tmp_path):
    written = made.qwen_scope(tmp_path)
    assert (SAE.load(written.path).encode(rows()) < 0).any()
    shutil.move(written.path, tmp_path / "layer14.sae.pt")
    with pytest.raises(introspect.ConfigError, match="give k"):
        SAE.load(tmp_path / "layer14.sae.pt")
    assert SAE.load(tmp_path / "layer14.sae.pt", k=5).k == 5


def test_circuit_tracer_s_features_are_masked_at_bos(tmp_path):
    written = made.circuit_tracer(tmp_path)
    assert SAE.load(written.path, layer=1).origin.masks_bos
    layers = SAE.load_layers(written.path)
    assert list(layers) == [0, 1] and layers[0].cfg.metadata.hook_name == "blocks.0.mlp.hook_in"
    torch.testing.assert_close(layers[0].W_enc, layers[1].W_enc * 2)


def test_a_backup_of_dictionary_learning_is_read_through_its_wrapping(tmp_path):
    written = made.dictionary_learning(tmp_path)
    state = torch.load(written.path / "ae.pt")
    torch.save({"step": 7, "ae": state, "optimizer": {"lr": 1e-3}}, written.path / "ae.pt")
    assert_computes(SAE.load(written.path), written.run, rows())


def test_a_submodule_that_is_not_known_gives_no_hook_point(tmp_path):
    written = made.dictionary_learning(tmp_path)
    config = json.loads((written.path / "config.json").read_text())
    for name, hook in (("mlp_out_layer_3", "blocks.3.hook_mlp_out"), ("something", None)):
        config["trainer"]["submodule_name"] = name
        (written.path / "config.json").write_text(json.dumps(config))
        assert SAE.load(written.path).cfg.metadata.hook_name == hook


def test_top_k_and_batch_top_k_hold_the_same_tensors_so_that_one_must_be_told(tmp_path):
    written = made.dictionary_learning(tmp_path, "AutoEncoderTopK")
    (written.path / "config.json").unlink()
    with pytest.raises(introspect.ConfigError, match=r"config\.json must say"):
        SAE.load(written.path)


# ---- writing ----


def test_circuit_tracer_s_format_is_written_layer_by_layer(tmp_path):
    sae = SAE.load(made.circuit_tracer(tmp_path / "a", "jumprelu").path, layer=1)
    target = tmp_path / "set"
    files.save(sae, target, format="circuit_tracer")
    assert sorted(p.name for p in target.iterdir()) == ["config.yaml", "layer_1.safetensors"]
    again = SAE.load(target)
    assert again.hash == sae.hash and again.origin.inputs == sae.origin.inputs
    stored = load_file(target / "layer_1.safetensors")
    assert torch.equal(stored["W_enc"].T, sae.W_enc) and "activation_function.threshold" in stored
    text = (target / "config.yaml").read_text()
    assert "model_kind: transcoder_set" in text and '- "layer_1.safetensors"' in text
    other = SAE.load(made.circuit_tracer(tmp_path / "b", "topk").path, layer=1)
    with pytest.raises(introspect.ConfigError, match="another kind"):
        files.save(other, target, format="circuit_tracer")
    with pytest.raises(introspect.ConfigError, match="gated"):
        files.save(SAE.load(made.saelens(tmp_path / "c", "gated").path), tmp_path / "d", format="circuit_tracer")
    with pytest.raises(ValueError, match="format must be one of saelens, circuit_tracer"):
        files.save(sae, target, format="onnx")


def test_b_dec_on_the_input_goes_into_b_enc_where_a_format_has_no_room_for_it(tmp_path):
    written = made.saelens(tmp_path, "standard")
    files.save(SAE.load(written.path), tmp_path / "to", format="circuit_tracer")
    assert_computes(SAE.load(tmp_path / "to"), written.run, rows())


def test_a_folder_is_replaced_and_nothing_half_done_stays(tmp_path):
    first, second = SAE.load(made.gemma_scope(tmp_path).path), SAE.load(made.goodfire(tmp_path).path)
    for sae in (first, second):
        sae.save(tmp_path / "to")
        assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
        assert SAE.load(tmp_path / "to").hash == sae.hash
    (tmp_path / "file").write_text("")
    with pytest.raises(introspect.IoError, match="file"):
        first.save(tmp_path / "file")


# ---- cross-layer transcoders ----


def test_cross_layer_transcoders_are_read_and_written_as_circuit_tracer_has_them(tmp_path):
    run = made.cross_layer(tmp_path / "clt")
    clt = CrossLayerTranscoder.load(tmp_path / "clt")
    x = rows().unflatten(0, (-1, 10))[:3]
    f, y = run(x)
    torch.testing.assert_close(clt.encode(x), f, **FLOOR)
    torch.testing.assert_close(clt.decode(clt.encode(x)), y, **FLOOR)
    assert [site.hook_name for site in clt.origin.inputs] == [f"blocks.{i}.hook_resid_mid" for i in range(3)]
    assert clt.origin.model_name == "google/gemma-2-2b" and clt.origin.masks_bos
    clt.save(tmp_path / "to")
    again = CrossLayerTranscoder.load(tmp_path / "to")
    assert again.hash == clt.hash and again.origin == clt.origin
    for file in (tmp_path / "clt").glob("*.safetensors"):
        ours, theirs = load_file(tmp_path / "to" / file.name), load_file(file)
        assert set(ours) == set(theirs) and all(torch.equal(ours[n], theirs[n]) for n in ours)
    with pytest.raises(introspect.ConfigError, match="cross-layer"):
        SAE.load(tmp_path / "clt")
    (tmp_path / "clt" / "W_dec_2.safetensors").unlink()
    with pytest.raises(introspect.IoError, match="W_dec_2"):
        CrossLayerTranscoder.load(tmp_path / "clt")


def test_gemma_scope_2_s_cross_layer_transcoders_have_all_their_layers_and_a_skip(tmp_path):
    folder, L = tmp_path / "clt" / "width_262k_l0_medium_affine", 3
    folder.mkdir(parents=True)
    layers = []
    for i in range(L):
        W_enc, b_enc, _, b_dec = made.draw(50 + i)
        rng = torch.Generator().manual_seed(60 + i)
        W_dec, skip = torch.randn(F, L, D, generator=rng), torch.randn(D, D, generator=rng)
        layers.append((W_enc, b_enc, made.threshold(i), W_dec, b_dec, skip))
        names = ("w_enc", "b_enc", "threshold", "w_dec", "b_dec", "affine_skip_connection")
        save_file(dict(zip(names, layers[-1], strict=True)), folder / f"params_layer_{i}.safetensors")
    clt = CrossLayerTranscoder.load(folder)
    x = rows().unflatten(0, (-1, 10))[:L]
    f = torch.stack([made.jump(x[i] @ q[0] + q[1], q[2]) for i, q in enumerate(layers)])
    y = [sum(f[i] @ layers[i][3][:, t] for i in range(t + 1)) + layers[t][4] + x[t] @ layers[t][5] for t in range(L)]
    torch.testing.assert_close(clt(x), torch.stack(y), **FLOOR)
    with pytest.raises(introspect.ConfigError, match="cross-layer"):
        SAE.load(folder)


# ---- what is wrong ----


def test_missing_and_surplus_tensors_are_named(tmp_path):
    for maker, file, drop in (
        (made.saelens, "sae_weights.safetensors", "b_dec"),
        (made.gemma_scope_2, "params.safetensors", "b_enc"),
        (made.sparsify, "sae.safetensors", "encoder.weight"),
    ):
        written = maker(tmp_path / maker.__name__)
        tensors = load_file(written.path / file)
        save_file(tensors | {"W_surplus": torch.zeros(2)}, written.path / file)
        with pytest.raises(introspect.IoError, match="W_surplus"):
            SAE.load(written.path)
        tensors.pop(drop)
        save_file(tensors, written.path / file)
        if drop != "b_dec":  # without it nothing is added
            with pytest.raises(introspect.IoError, match=drop):
                SAE.load(written.path)


@pytest.mark.parametrize("architecture", ["temporal", "vanilla", "", "topk2", "JUMPRELU"])
def test_an_architecture_that_is_not_known_is_an_error(tmp_path, architecture):
    written = made.saelens(tmp_path)
    cfg = json.loads((written.path / "cfg.json").read_text())
    (written.path / "cfg.json").write_text(json.dumps(cfg | {"architecture": architecture}))
    with pytest.raises(introspect.ConfigError, match="architecture"):
        SAE.load(written.path)


@pytest.mark.parametrize(
    ("maker", "change", "error", "named"),
    [
        (made.saelens, {"d_sae": 17}, "IoError", "d_sae 17"),
        (made.saelens, {"normalize_activations": "whitening"}, "ConfigError", "whitening"),
        (lambda root: made.saelens(root, "topk"), {"k": 99}, "IoError", "99"),
        (lambda root: made.saelens(root, "topk"), {"k": 0}, "ConfigError", "k"),
        (made.sparsify, {"activation": "gelu"}, "ConfigError", "gelu"),
        (made.sparsify, {"k": "many"}, "IoError", "k"),
        (made.sparsify, {"d_in": 7}, "IoError", "d_in 7"),
    ],
)
def test_descriptions_that_do_not_fit_are_errors(tmp_path, maker, change, error, named):
    written = maker(tmp_path)
    cfg = json.loads((written.path / "cfg.json").read_text())
    (written.path / "cfg.json").write_text(json.dumps(cfg | change))
    with pytest.raises(getattr(introspect, error), match=named):
        SAE.load(written.path)


def test_thresholds_in_another_space_and_numbers_that_are_none_are_errors(tmp_path):
    written = made.gemma_scope(tmp_path)
    arrays = dict(np.load(written.path / "params.npz"))
    np.savez(written.path / "params.npz", **arrays | {"threshold": np.log(arrays["threshold"])})
    with pytest.raises(introspect.IoError, match="logarithm"):
        SAE.load(written.path)
    for name in ("W_enc", "threshold", "b_dec"):
        bad = arrays[name].copy()
        bad.flat[3] = np.nan
        np.savez(written.path / "params.npz", **arrays | {name: bad})
        with pytest.raises(introspect.IoError, match=r"finite|at least 0"):
            SAE.load(written.path)


def test_a_pickle_of_anything_but_tensors_is_refused_by_name(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    for value, named in ((Evil(), "print"), (torch.nn.Linear(2, 2), "Linear"), (Path("x"), "PosixPath")):
        torch.save({"encoder_linear.weight": value}, tmp_path / "x.pth")
        with pytest.raises(introspect.IoError, match=named):
            SAE.load(tmp_path / "x.pth")
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"W_enc": 1}))
    with pytest.raises(introspect.IoError, match="zip"):
        SAE.load(tmp_path / "y.pt")


def test_paths_that_hold_no_dictionary_say_so(tmp_path):
    with pytest.raises(introspect.IoError, match="no file or folder"):
        SAE.load(tmp_path / "nothing")
    with pytest.raises(introspect.IoError, match="holds no tensors"):
        SAE.load(tmp_path)
    save_file({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(introspect.ConfigError, match="no format that is known; it holds 'a'"):
        SAE.load(tmp_path)
    with pytest.raises(introspect.ConfigError, match="format must be one of saelens"):
        SAE.load(tmp_path, format="mine")
    written = made.circuit_tracer(tmp_path / "two")
    with pytest.raises(introspect.ConfigError, match=r"name one.*layer_0.*layer_1"):
        SAE.load(written.path)
    with pytest.raises(introspect.ConfigError, match="no file of layer 5"):
        SAE.load(written.path, layer=5)
    assert set(files.formats()) >= {"saelens", "gemma_scope", "sparsify", "circuit_tracer"}


FUZZED = ["saelens topk", "bloom", "gemma_scope", "gemma_scope_2 transcoder", "gemma_scope_2 crosscoder"]
FUZZED += ["llama_scope", "qwen_scope", "dictionary_learning BatchTopKSAE", "sparsify", "openai TopK"]
FUZZED += ["circuit_tracer topk"]


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_are_errors_or_dictionaries_and_nothing_else(tmp_path, name):
    rng = random.Random(name)
    written = made.MAKERS[name](tmp_path)
    files_of = [p for p in tmp_path.rglob("*") if p.is_file()]
    loaded = 0
    for trial in range(120):
        file = rng.choice(files_of)
        sound = file.read_bytes()
        damaged = bytearray(sound)
        if trial % 3 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            for _ in range(rng.choice([1, 3, 20])):
                at = rng.randrange(min(len(damaged), 400) if trial % 2 else len(damaged))
                damaged[at] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            SAE.load(written.path, **written.options).encode(rows(2))
        except (introspect.IoError, introspect.ConfigError):
            pass
        except introspect.ShapeError:  # of another width: a sound file whose rows are not ours
            loaded += 1
        else:
            loaded += 1
        file.write_bytes(sound)
    assert loaded < 110
    assert SAE.load(written.path, **written.options).d_sae % F == 0


# ---- arrays of numpy ----


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">i8", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_number_and_order_are_read_as_numpy_has_them(tmp_path, dtype, order):
    given = np.asfortranarray if order == "F" else np.ascontiguousarray
    arrays = {
        "matrix": given((np.arange(24).reshape(2, 3, 4) % 7 - 2).astype(dtype)),
        "scalar": np.array(3, dtype=dtype),
        "none": np.zeros((0, 5), dtype=dtype),
    }
    np.savez(tmp_path / "x.npz", **arrays)
    read = read_npz(tmp_path / "x.npz")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert tuple(read[name].shape) == array.shape
        assert np.array_equal(read[name].numpy(), array)
    np.save(tmp_path / "y.npy", arrays["matrix"])
    assert np.array_equal(read_npz(tmp_path / "y.npy")["arr_0"].numpy(), arrays["matrix"])


def test_arrays_that_are_no_numbers_are_refused_by_name(tmp_path):
    for array, named in (
        (np.array([{"a": 1}, None]), "Python objects"),
        (np.array(["a", "b"]), "text"),
        (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]), "structured"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "dates"),
        (np.zeros(3, dtype="V2"), "bfloat16"),
        (np.zeros(3, dtype=np.complex64), "neither real"),
    ):
        np.savez(tmp_path / "x.npz", W_enc=array)
        with pytest.raises(introspect.IoError, match=named):
            read_npz(tmp_path / "x.npz")
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(100))
    with pytest.raises(introspect.IoError, match="compressed"):
        read_npz(tmp_path / "x.npz")


def test_damaged_arrays_are_errors(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(3, 4))
    sound = (tmp_path / "x.npy").read_bytes()
    rng = random.Random(0)
    for size in (0, 5, 9, 60, 127, 130, len(sound) - 1):
        (tmp_path / "x.npy").write_bytes(sound[:size])
        with pytest.raises(introspect.IoError):
            read_npz(tmp_path / "x.npy")
    for shape in ("(3, 4", "(3, -4)", "(3, 40000000000000000000)", "(4611686018427387904, 4)", "(3, 5)", "(3, 4.0)"):
        (tmp_path / "x.npy").write_bytes(sound.replace(b"(3, 4)", shape.encode().ljust(6))[: len(sound)])
        with pytest.raises(introspect.IoError):
            read_npz(tmp_path / "x.npy")
    for _ in range(500):
        damaged = bytearray(sound)
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "x.npy").write_bytes(damaged)
        with contextlib.suppress(introspect.IoError):
            read_npz(tmp_path / "x.npy")


def test_an_activation_of_before_version_6_in_a_later_file_is_no_relu(tmp_path):
    SAE(W_enc=torch.eye(3), W_dec=torch.eye(3)).save(tmp_path / "a")
    cfg = json.loads((tmp_path / "a/cfg.json").read_text())
    for key in ("activation_fn", "activation_fn_str"):
        (tmp_path / "a/cfg.json").write_text(json.dumps(cfg | {key: "topk"}))
        with pytest.raises(introspect.ConfigError, match=f"{key} 'topk' is of files before version 6"):
            SAE.load(tmp_path / "a")


def test_norms_are_ranked_by_in_choices_only_as_saelens_reads_it(tmp_path):
    sae = SAE(W_enc=torch.eye(3), W_dec=2 * torch.eye(3), architecture="jumprelu", threshold=torch.ones(3))
    sae.save(tmp_path / "a")
    cfg = json.loads((tmp_path / "a/cfg.json").read_text())
    (tmp_path / "a/cfg.json").write_text(json.dumps(cfg | {"rescale_acts_by_decoder_norm": True}))
    x = torch.tensor([[0.7, 1.5, 0.0]])
    assert torch.equal(SAE.load(tmp_path / "a").encode(x), torch.tensor([[0.0, 1.5, 0.0]]))
