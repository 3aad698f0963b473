"""What a call with wrong arguments says: who was called, which argument, what was required and what came.

Every function of the compiled part is called with arguments that fit nothing, so that one that is bound later is
tried, too. No message may be pybind11's list of signatures.
"""

import contextlib
import copy
import inspect
import pickle
import re

import numpy as np
import pytest
import torch
from tiny_chat import random_vectors, write_tiny_chat

import introspect
from introspect import _C

DUMP = re.compile(r"incompatible (function|constructor) arguments|The following argument types|Invoked with")


class Nothing:
    """Fits no type."""


WRONG = [(), (Nothing(),), (Nothing(), Nothing(), Nothing()), (object(),) * 30]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return introspect.load_model(write_tiny_chat(tmp_path_factory.mktemp("tiny") / "model"))


@pytest.fixture(scope="module")
def instances(model, tmp_path_factory):
    """An object of each class that can be had without files of its own."""
    vector = random_vectors()["cat"]
    condition = introspect.Condition(torch.ones(32), layer=1, threshold=0.0)
    objects = [
        model.native, model.native.cfg, model.native.make_cache(1), model.native.make_hooks(), model.native.tokenizer,
        model.native.chat_template, vector, introspect.Intervention({}), introspect.TextFilter(), condition,
        introspect.TokenTrie([[1, 2], [1, 3]]), introspect.load_protocol("no_info"), _C.ActivationCache(),
        _C.StreamDecoder(model.native.tokenizer), _C.GgufWriter("controlvector"),
        _C.Store(tmp_path_factory.mktemp("store") / "s"),
    ]  # fmt: skip
    return {type(one): one for one in objects}


def functions(owner, name=""):
    """(name, function) of everything that can be called in a module or class."""
    for attribute, value in vars(owner).items():
        if inspect.isclass(value):
            if value.__module__.startswith("introspect") and not issubclass(value, BaseException):
                yield attribute, value
                yield from functions(value, f"{name}{attribute}.")
        elif isinstance(value, staticmethod):
            yield f"{name}{attribute}", value.__func__
        elif (callable(value) and not attribute.startswith("__")) or attribute == "__init__":
            yield f"{name}{attribute}", value


EVERY = sorted(dict(functions(_C)).items())


def test_every_native_function_is_tried():
    assert len(EVERY) > 250 and {"Intervention", "KVCache.fork", "Tokenizer.load", "run_trie"} <= dict(EVERY).keys()


def test_no_call_answers_with_a_list_of_signatures(instances):
    tried = 0
    for name, function in EVERY:
        owner = getattr(_C, name.split(".")[0]) if "." in name else None
        calls = [function]
        if owner in instances and not isinstance(vars(owner).get(name.split(".")[1]), staticmethod):
            calls.append(getattr(instances[owner], name.split(".")[1]))
        for call in calls:
            for arguments in WRONG:
                for named in ({}, {"no_such_argument": 1}):
                    try:
                        call(*arguments, **named)
                    except Exception as error:
                        tried += 1
                        assert not DUMP.search(str(error)), (name, str(error))
                        assert len(str(error)) < 1500, (name, str(error))
    assert tried > 1500


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: introspect.Intervention({}, rows="abc"), "Intervention.*'rows'.*list of int or None, got str"),
        (lambda m: introspect.Intervention({}, rows=[1, "b"]), "'rows'.*got str in place 1"),
        (lambda m: introspect.Intervention({}, rows=[2**80]), "'rows'.*more than 64 bits"),
        (lambda m: introspect.Intervention({1: np.ones(3)}), "'values'.*Tensor.*got ndarray for 1"),
        (lambda m: introspect.Intervention({}, rowz=[1]), "no argument 'rowz'"),
        (lambda m: _C.Dictionary("topk", {}, k=4.0, kind=1), r"no argument 'kind'.*Dictionary\(architecture, weights"),
        (lambda m: introspect.Intervention({}, "add"), "at most 1 arguments go by position, got 2"),
        (lambda m: introspect.Intervention(), "argument 'values' is missing"),
        (lambda m: introspect.ControlVector("qwen2", torch.ones(3)), "'directions'.*dict of int to Tensor, got Tensor"),
        (lambda m: introspect.ControlVector("qwen2", {"1": torch.ones(3)}), "'directions'.*key of type str"),
        (lambda m: introspect.Tokenizer.load(3), r"Tokenizer.load.*'path' must be a path, got int"),
        (lambda m: m.native.make_cache("two"), "Model.make_cache.*'batch' must be int, got str"),
        (lambda m: m.native.make_cache(1).truncate(1.5), "KVCache.truncate.*'length' must be int, got float"),
        (lambda m: introspect.TokenTrie([1, 2]), "TokenTrie.*got int in place 0"),
        (lambda m: introspect.TextFilter(tokens=5), "TextFilter.*'tokens' must be a list of int or None, got int"),
        (lambda m: m.native.forward([[1, 2]]), "Model.forward.*'tokens' must be Tensor, got list"),
        (lambda m: m.native.forward(torch.zeros(1, 2, dtype=torch.long), hooks=3), "'hooks' must be HookReg"),
        (lambda m: _C.KVCache.fork(3), "KVCache.fork.*must be called on a KVCache, got int"),
    ],
)  # fmt: skip
def test_the_argument_that_does_not_fit_is_named(model, call, words):
    with pytest.raises(TypeError, match=words):
        call(model)


def test_an_error_of_a_function_inside_a_callback_stays_its_own(model):
    def hook(x, name):
        introspect.Intervention({}, rows="abc")

    hooks = model.native.make_hooks()
    hooks.add("hook_embed", hook)
    with pytest.raises(TypeError, match=r"Intervention.*'rows'"):
        model.native.forward(torch.zeros(1, 2, dtype=torch.long), hooks=hooks)

    def theirs(x, name):
        torch._C._jit_get_schemas_for_operator(3)  # torch binds with pybind11, too

    hooks = model.native.make_hooks()
    hooks.add("hook_embed", theirs)
    with pytest.raises(TypeError, match="_jit_get_schemas_for_operator"):
        model.native.forward(torch.zeros(1, 2, dtype=torch.long), hooks=hooks)


def test_what_a_callback_returns_is_said_if_it_does_not_fit(model):
    with pytest.raises(TypeError, match=r"Model\.generate.*returned str"):
        model.native.generate([[1, 2]], on_token=lambda row, token: "yes")
    template = introspect.ChatTemplate("mine", lambda messages, add_generation_prompt: 3)
    with pytest.raises(TypeError, match=r"ChatTemplate\.render.*returned int"):
        template.render([{"role": "user", "content": "a"}])


# Objects that were never initialised


CLASSES = [value for _, value in EVERY if inspect.isclass(value)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_object_that_was_never_initialised_is_refused_wherever_it_is_used(kind):
    empty = kind.__new__(kind)
    for name, value in vars(kind).items():
        if isinstance(value, property):
            with pytest.raises(TypeError, match="never initialised"):
                getattr(empty, name)
    for function in (repr, copy.copy, pickle.dumps, len):
        with contextlib.suppress(TypeError):  # or it is what object's own does
            function(empty)


def test_nor_does_one_pass_as_an_argument_or_inside_a_list(model):
    vector = introspect.ControlVector.__new__(introspect.ControlVector)
    other = random_vectors()["cat"]
    calls = [
        lambda: other + vector,
        lambda: other.cosine(vector),
        lambda: _C.as_interventions([other, vector], introspect.Intervention({}), model=model),
        lambda: model.native.make_hooks().add_intervention(introspect.Intervention.__new__(introspect.Intervention)),
        lambda: introspect.Intervention({}, text=introspect.TextFilter.__new__(introspect.TextFilter)),
        lambda: _C.apply_norm(_C.Model.__new__(_C.Model), torch.ones(1, 1, 32), None, layer=0),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


# Copies


def values(model):
    vector = random_vectors()["cat"]
    pairs = [("a cat", "the dog"), ("my cat purrs", "no"), ("cats", "dogs")]
    trained = introspect.ControlVector.train(model, pairs, method="pca_center")
    intervention = introspect.Intervention(
        {1: torch.randn(32), 2: None}, op="mean", point="hook_mlp_out", positions=[1, 4], rows=[0, 2],
        text=introspect.TextFilter(phase="prompt", tokens=[3, 1], skip_padding=True),
    )  # fmt: skip
    ranged = introspect.Intervention({0: torch.ones(32)}, strength=0.1, first_position=3, op="rotate",
                                     parameters={"angle": 30.0})  # fmt: skip
    return {
        "vector": vector,
        "trained vector": trained,
        "diagnostics": next(iter(trained.diagnostics.values())),
        "filter": introspect.TextFilter(phase="generation", tokens=[1, 2], not_tokens=[7], after=[9]),
        "condition": introspect.Condition(torch.randn(32), layer=1, threshold=0.3, above=False, over="last"),
        "intervention": intervention,
        "intervention of a range": ranged,
        "config": model.native.cfg,
        "protocol": introspect.load_protocol("with_info"),
    }


def content(one):
    """What can be read of an object, tensors as lists."""
    out = {}
    for name, kind in vars(type(one)).items():
        if isinstance(kind, property):
            value = getattr(one, name)
            if isinstance(value, introspect.TextFilter):
                value = content(value)
            if isinstance(value, dict):
                value = {key: v.tolist() if isinstance(v, torch.Tensor) else repr(v) for key, v in value.items()}
            out[name] = value.tolist() if isinstance(value, torch.Tensor) else value
    return out


KINDS = ["vector", "trained vector", "diagnostics", "filter", "condition", "intervention", "intervention of a range",
         "config", "protocol"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_values_can_be_copied_and_pickled(model, kind, duplicate):
    one = values(model)[kind]
    other = duplicate(one)
    assert type(other) is type(one) and other is not one
    first, second = content(one), content(other)
    assert first.keys() == second.keys() and len(first) > 2
    for name in first:
        assert repr(first[name]) == repr(second[name]), name


def test_a_deep_copy_of_an_intervention_has_tensors_of_its_own():
    tensor = torch.ones(4, requires_grad=True)
    one = introspect.Intervention({0: tensor})
    deep, shallow = copy.deepcopy(one), copy.copy(one)
    assert deep.values[0].requires_grad and shallow.values[0].data_ptr() == tensor.data_ptr()
    with torch.no_grad():
        tensor.zero_()
    assert deep.values[0].sum() == 4 and shallow.values[0].sum() == 0
