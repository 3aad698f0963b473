"""TransformerLens's utils and evals: each against its definition."""

import math
import sys

import pytest
import torch
from tiny import write_tiny
from tiny_chat import write_tiny_chat

import introspect
from introspect import HookedTransformer, evals, loading, utils


class Tokenizer:
    """One id for each letter; 0 is BOS, EOS and pad unless told otherwise."""

    eos_token, bos_token, pad_token = ".", ".", "."

    def __init__(self, padding_side="right", bos=0, pad=0):
        self.padding_side = padding_side
        self.eos_token_id, self.bos_token_id, self.pad_token_id = 0, bos, pad

    def encode(self, text, add_special_tokens=True):
        return [ord(letter) - ord("a") + 1 for letter in text]


# Tokens


@pytest.mark.parametrize(
    ("side", "prepend_bos", "bos", "expected"),
    [
        ("right", True, 0, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        ("left", False, 0, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ("left", True, 0, [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),  # the last pad is BOS
        ("left", True, 9, [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
    ],
)
def test_attention_masks_leave_out_padding(side, prepend_bos, bos, expected):
    row = [5, 0, 6, 0, 0] if side == "right" else [0, 0, 5, 0, 6]
    tokens = torch.tensor([row, [4, 5, 6, 7, 8]])
    assert utils.get_attention_mask(Tokenizer(side, bos), tokens, prepend_bos).tolist() == expected
    assert utils.get_attention_mask(None, tokens, prepend_bos).tolist() == [[1] * 5] * 2


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert utils.get_offset_position_ids(0, mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]
    assert utils.get_offset_position_ids(3, mask).tolist() == [[1, 2], [3, 3]]


def test_bos_comes_and_goes():
    right = torch.tensor([[9, 1, 2, 0], [9, 3, 4, 5]])
    assert utils.get_tokens_with_bos_removed(Tokenizer("right", 9), right).tolist() == [[1, 2, 0], [3, 4, 5]]
    left = torch.tensor([[0, 9, 1, 2], [9, 3, 9, 5]])
    assert utils.get_tokens_with_bos_removed(Tokenizer("left", 9), left).tolist() == [[0, 1, 2], [3, 9, 5]]
    same = torch.tensor([[0, 0, 1, 2], [0, 3, 4, 5]])  # pad and BOS are one
    assert utils.get_tokens_with_bos_removed(Tokenizer("left", 0), same).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert utils.get_input_with_manually_prepended_bos(Tokenizer(), ["a", "b"]) == [".a", ".b"]
    assert utils.get_input_with_manually_prepended_bos("<s>", "a") == "<s>a"


def test_texts_become_rows_of_one_length():
    texts = ["abc", "de", "fghij"]
    ids = [1, 2, 3, 0, 4, 5, 0, 6, 7, 8, 9, 10]  # EOS between two texts
    rows = [row["tokens"].tolist() for row in utils.tokenize_and_concatenate(texts, Tokenizer(bos=77), max_length=5)]
    assert rows == [[77, *ids[0:4]], [77, *ids[4:8]], [77, *ids[8:12]]]
    plain = utils.tokenize_and_concatenate(texts, Tokenizer(), max_length=5, add_bos_token=False)
    assert [row["tokens"].tolist() for row in plain] == [ids[0:5], ids[5:10]]  # a rest is dropped
    short = utils.tokenize_and_concatenate([{"text": "ab"}], Tokenizer(bos=77, pad=88), max_length=6)
    assert [row["tokens"].tolist() for row in short] == [[77, 1, 2, 88, 88, 88]]
    assert utils.tokenize_and_concatenate([], Tokenizer()) == []
    with pytest.raises(ValueError, match="max_length"):
        utils.tokenize_and_concatenate(texts, Tokenizer(), max_length=1)


class Table:
    """What the functions use of a data set of the ``datasets`` package."""

    def __init__(self, columns):
        self.columns = columns
        self.features = dict.fromkeys(columns)

    def remove_columns(self, names):
        return Table({name: values for name, values in self.columns.items() if name not in names})

    def map(self, function, batched, remove_columns, num_proc):
        assert batched and num_proc == 3
        return Table(function(self.columns)) if remove_columns == list(self.columns) else None

    def with_format(self, kind, columns):
        assert (kind, columns) == ("torch", ["tokens"])
        return self


def test_data_sets_are_mapped_by_their_package():
    given = Table({"text": ["abc", "de", "fghij"], "id": [1, 2, 3]})
    assert list(utils.keep_single_column(given, "text").columns) == ["text"]
    rows = utils.tokenize_and_concatenate(given, Tokenizer(bos=77), max_length=5, num_proc=3)
    assert rows.columns["tokens"].tolist() == [[77, 1, 2, 3, 0], [77, 4, 5, 0, 6], [77, 7, 8, 9, 10]]


def test_what_is_not_installed_or_known_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"openwebtext.*got 'imagenet'"):
        utils.get_dataset("imagenet")
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(introspect.ConfigError, match="pip install datasets"):
        utils.get_dataset("pile")
    with pytest.raises(introspect.ConfigError, match="pip install datasets"):
        evals.make_wiki_data_loader(Tokenizer())
    with pytest.raises(introspect.ConfigError, match="pip install huggingface_hub"):
        utils.download_file_from_hf("owner/name", "config.json")


def test_files_of_the_hub_are_read_by_their_kind(monkeypatch, tmp_path):
    (tmp_path / "a.json").write_text('{"x": [1, 2]}')
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth")
    (tmp_path / "a.txt").write_text("text")

    class Hub:
        @staticmethod
        def hf_hub_download(repo_id, filename, subfolder, cache_dir, revision="main"):
            assert (repo_id, revision) == ("owner/name", "v2")
            return str(tmp_path / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)

    def download(name):
        return utils.download_file_from_hf("owner/name", name, revision="v2", unknown=3)

    assert download("a.json") == {"x": [1, 2]}
    assert torch.equal(download("a.pth")["w"], torch.ones(2))
    assert download("a.txt") == str(tmp_path / "a.txt")
    with pytest.raises(introspect.IoError, match=r"owner/name/b\.json"):
        download("b.json")


# Tensors and objects


def test_small_helpers(capsys):
    x = torch.arange(12.0).reshape(1, 3, 4)
    repeated = utils.repeat_along_head_dimension(x, 5)
    assert repeated.shape == (1, 3, 5, 4) and all(torch.equal(repeated[:, :, h], x) for h in range(5))
    assert utils.repeat_along_head_dimension(x, 5, clone_tensor=False).data_ptr() == x.data_ptr() != repeated.data_ptr()
    assert utils.get_cumsum_along_dim(torch.tensor([[1, 2, 3]]), -1, reverse=True).tolist() == [[6, 5, 3]]
    v = torch.tensor([1.0, 2.0])
    e1, e2 = math.e, math.e**2
    torch.testing.assert_close(utils.solu(v), torch.tensor([e1 / (e1 + e2), 2 * e2 / (e1 + e2)]))
    torch.testing.assert_close(utils.apply_softcap(v, 2.0), torch.tensor([2 * math.tanh(0.5), 2 * math.tanh(1.0)]))
    assert torch.equal(utils.apply_softcap(v, -1.0), v) and torch.equal(utils.ACTIVATION_FN_DICT["relu"](-v), 0 * v)
    assert utils.calc_fan_in_and_fan_out(torch.ones(8, 16, 4)) == (16, 32)
    assert utils.filter_dict_by_prefix({"a.b.c": 1, "a.bc": 2}, "a.b") == {"c": 1}
    assert utils.override_or_use_default_value(1) == 1 and utils.override_or_use_default_value(1, False) is False
    assert utils.is_library_available("torch") and not utils.is_library_available("no_such_library")
    box = type("Box", (), {})()
    box.inner = type("Box", (), {"x": 3})()
    utils.set_nested_attr(box, "inner.x", 4)
    assert utils.get_nested_attr(box, "inner.x") == 4
    assert utils.select_compatible_kwargs({"a": 1, "b": 2}, lambda b: 0) == {"b": 2}
    utils.print_gpu_mem("now")
    utils.check_structure(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [7, 8]]))
    utils.check_structure(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[5, 6], [3, 8]]))
    printed = capsys.readouterr().out
    assert "now ~ 0.00 GiB" in printed and "PASSED" in printed and "row mismatch: [0]" in printed


def test_defaults_of_a_model_are_others_inside_a_block(tmp_path):
    model = HookedTransformer(introspect.load_model(write_tiny_chat(tmp_path)))
    before = model.to_tokens("cat").tolist()
    with pytest.raises(KeyError), utils.LocallyOverridenDefaults(model, prepend_bos=True, padding_side="left"):
        assert model.to_tokens("cat").tolist() == [[model.tokenizer.bos_token_id, *before[0]]]
        assert model.tokenizer.padding_side == "left"
        raise KeyError
    assert model.to_tokens("cat").tolist() == before and model.tokenizer.padding_side == "right"
    with (
        pytest.raises(ValueError, match="padding_side='middle'"),
        utils.LocallyOverridenDefaults(model, padding_side="middle"),
    ):
        pass


def test_what_is_left_out_says_what_to_use(tmp_path):
    with pytest.raises(AttributeError, match=r"get_best_available_device.*use get_device"):
        utils.get_best_available_device  # noqa: B018
    with pytest.raises(ImportError, match="encoders such as BERT"):
        from introspect import HookedEncoder  # noqa: F401
    with pytest.raises(ImportError, match="one device"):
        from introspect.utils import resolve_device_map  # noqa: F401
    with pytest.raises(AttributeError, match=r"HookedEncoder.*encoders such as BERT"):
        introspect.HookedEncoder  # noqa: B018
    with pytest.raises(AttributeError, match="near it: to_numpy"):
        utils.to_numpi  # noqa: B018
    assert not hasattr(introspect, "HookedEncoder") and not hasattr(utils, "warn_if_mps")
    model = HookedTransformer(introspect.load_model(write_tiny(tmp_path)))
    with pytest.raises(AttributeError, match=r"HookedTransformer has no attribute 'half'.*dtype='float16'"):
        model.half()
    from introspect.transformer_lens import left_out

    for name in left_out.MODEL:
        assert not hasattr(model, name), f"{name} is there and listed as left out"
    assert not [name for name in left_out.UTILS if hasattr(utils, name)]
    assert not [name for name in left_out.PACKAGE if hasattr(introspect, name)]


def test_official_names_are_found_whatever_their_case():
    assert loading.get_official_model_name("GPT2-small") == "openai-community/gpt2"
    assert loading.get_official_model_name("openai-community/gpt2") == "openai-community/gpt2"
    assert loading.get_official_model_name("smollm2-135m-instruct") in loading.OFFICIAL_MODEL_NAMES
    assert "gpt2-small" in loading.MODEL_ALIASES["openai-community/gpt2"]
    assert set(loading.make_model_alias_map().values()) == set(loading.OFFICIAL_MODEL_NAMES)
    with pytest.raises(ValueError, match="'gelu-99l'"):
        loading.get_official_model_name("gelu-99l")


# Evaluations


class Names:
    """A model of the sentences: it always prefers the first name of a sentence (the indirect object) by two nats."""

    class cfg:
        device, default_prepend_bos, n_ctx, d_vocab = torch.device("cpu"), False, 64, 40

    def __init__(self, tokenizer, margin=2.0):
        self.tokenizer, self.margin = tokenizer, margin

    def __call__(self, tokens, return_type="logits", attention_mask=None):
        logits = torch.zeros(*tokens.shape, 40)
        for row in range(len(tokens)):
            real = tokens[row][attention_mask[row]]
            logits[row, int(attention_mask[row].sum()) - 2, real[-1]] = self.margin
            logits[row, -1] += 100 * torch.rand(40)  # what stands at padding, or after the name, does not count
        return logits


class Words:
    """One id for each word."""

    bos_token_id = 39

    def __init__(self):
        self.ids = {}

    def encode(self, text, add_special_tokens=True):
        return [self.ids.setdefault(word.strip("."), len(self.ids)) for word in text.split()]


def test_ioi_compares_the_names_where_the_indirect_object_is_due():
    words = Words()
    options = {"names": ["John", "Mary", "Anna"], "num_samples": 9}
    templates = ["[A] met [B]. [B] gave the [OBJECT] to [A]", "[B] saw [A]. [B] left [A]"]
    dataset = evals.IOIDataset(words, templates=templates, nouns={"OBJECT": ["ball", "book"]}, **options)
    assert len(dataset) == 9 and len({sample["text"] for sample in dataset.samples}) > 3
    for sample in dataset.samples:
        said = sample["text"].split()
        assert said[-1] == sample["IO"].strip() and sample["S"].strip() in said and sample["IO"] != sample["S"]
    assert dataset[0]["prompt"][0] == 39
    assert evals.ioi_eval(Names(words), dataset) == {"Logit Difference": 2.0, "Accuracy": 1.0}
    assert evals.ioi_eval(Names(words, -1.0), dataset, batch_size=2) == {"Logit Difference": -1.0, "Accuracy": 0.0}


def test_a_symmetric_ioi_dataset_exchanges_the_names():
    dataset = evals.IOIDataset(Words(), num_samples=6, symmetric=True)
    assert len(dataset) == 6
    for one, other in zip(dataset.samples[::2], dataset.samples[1::2], strict=True):
        assert (one["IO"], one["S"]) == (other["S"], other["IO"])
        swapped = one["text"].replace("John", "?").replace("Mary", "John").replace("?", "Mary")
        assert other["text"] == swapped
    again = evals.IOIDataset(Words(), num_samples=6, symmetric=True)
    assert again.samples == dataset.samples


def test_names_of_several_tokens_are_compared_where_they_begin_to_differ():
    class Letters(Words):
        def encode(self, text, add_special_tokens=True):
            return [ord(letter) % 38 for letter in text]

    dataset = evals.IOIDataset(Letters(), templates=["[B] sees [A]"], names=["Jan", "Jim"], nouns={}, num_samples=2)

    class Late(Names):
        def __call__(self, tokens, return_type="logits", attention_mask=None):
            logits = torch.zeros(*tokens.shape, 40)
            for row in range(len(tokens)):
                logits[row, -3, tokens[row, -2]] = 5.0  # "Ja|n" and "Ji|m": two letters before the end
            return logits

    assert evals.ioi_eval(Late(None), dataset) == {"Logit Difference": 5.0, "Accuracy": 1.0}
    alike = evals.IOIDataset(Letters(), templates=["[B] sees [A]"], names=["Jan", "Jane"], nouns={}, num_samples=1)
    with pytest.raises(ValueError, match="begin with the other"):
        evals.ioi_eval(Late(None), alike)


def test_induction_loss_is_that_of_the_second_half():
    class Copies:
        """Knows the token that came `subseq_len` before, in the second half only."""

        tokenizer = None

        class cfg:
            device, default_prepend_bos, n_ctx, d_vocab = torch.device("cpu"), False, 24, 30

        def __call__(self, tokens, return_type, loss_per_token):
            assert torch.equal(tokens[:, :12], tokens[:, 12:]) and tokens.max() < 30
            loss = torch.full((len(tokens), tokens.shape[1] - 1), math.log(30))
            loss[:, 13:] = 0.25
            return loss

    assert evals.induction_loss(Copies(), subseq_len=12) == 0.25
    with pytest.raises(introspect.ShapeError, match="n_ctx = 24"):
        evals.induction_loss(Copies())
    with pytest.raises(introspect.ConfigError, match="BOS"):
        evals.induction_loss(Copies(), subseq_len=12, prepend_bos=True)


def test_evals_run_on_a_model_with_any_tokenizer(tmp_path):
    model = HookedTransformer(introspect.load_model(write_tiny_chat(tmp_path)))
    loss = evals.induction_loss(model, subseq_len=20, batch_size=2, seed=1)
    assert 0 < float(loss) < 50 and torch.equal(loss, evals.induction_loss(model, subseq_len=20, batch_size=2, seed=1))
    result = evals.ioi_eval(model, num_samples=4)
    assert 0 <= result["Accuracy"] <= 1 and math.isfinite(result["Logit Difference"])
    batches = [{"tokens": torch.randint(0, 200, (2, 8))} for _ in range(3)]
    losses = [float(model(batch["tokens"], return_type="loss")) for batch in batches]
    assert evals.evaluate_on_dataset(model, batches) == pytest.approx(sum(losses) / 3)
    assert evals.evaluate_on_dataset(model, batches, truncate=1) == pytest.approx(losses[0])
    assert math.isfinite(float(evals.sanity_check(model)))
