"""Protocols made from another one: what control arms ask in its place, and inject in its spans' place."""

from __future__ import annotations

import functools
import json
from typing import Any

from .. import _C
from ..data import share_folder

UNTOLD = {
    "with_info": "no_info",
    "lens_with_info": "lens_no_info",
    "finetune_with_info": "finetune_no_info",
    "lorem_ipsum": "no_info",
}
"""Shipped protocols without the information that these give, and the same but for that."""


@functools.cache
def texts() -> dict[str, Any]:
    """What cpp/share/study_texts.json holds: questions of control groups, and wordings of arms."""
    return json.loads((share_folder() / "study_texts.json").read_text(encoding="utf-8"))


def question_groups(protocol: _C.Protocol) -> dict[str, list[str]]:
    """{group: questions}: the protocol's own groups, or those of the library that fit it."""
    own = protocol.control_groups
    if own:
        return {name: list(questions) for name, questions in own.items()}
    return dict(texts()["localisation"] if protocol.answers else texts()["groups"])


def edited(protocol: _C.Protocol, name: str, **fields: Any) -> _C.Protocol:
    """The protocol with other fields under another name; a field that is None is left out.

    Raises:
        ConfigError: fields that do not go together; it names the place.
    """
    data = {**json.loads(protocol.to_json()), "name": f"{protocol.name}, {name}", **fields}
    return _C.Protocol.parse(json.dumps({key: value for key, value in data.items() if value is not None}))


def refuse(arm: str, protocol: _C.Protocol, why: str) -> Any:
    """Raises ConfigError that says why a protocol cannot have an arm."""
    raise _C.ConfigError(f"arm '{arm}': protocol '{protocol.name}' cannot have it: {why}")


def paraphrased(protocol: _C.Protocol, paraphrases: Any) -> _C.Protocol:
    """The protocol asked in these words besides its own; None: its own paraphrases, or the library's that fit."""
    if paraphrases is None:
        if protocol.paraphrases or protocol.own_question != _shipped("paraphrases").own_question:
            return protocol
        answers = [turn["content"] for turn in protocol.turns[-1:] if turn["role"] == "assistant"]
        if protocol.read != "yes_no" or answers != [_shipped("paraphrases").turns[-1]["content"]]:
            return protocol
        paraphrases = json.loads(_shipped("paraphrases").to_json())["paraphrases"]
    listed = [paraphrases] if isinstance(paraphrases, str) else list(paraphrases)
    data = {**json.loads(protocol.to_json()), "paraphrases": listed or None}
    return _C.Protocol.parse(json.dumps({key: value for key, value in data.items() if value is not None}))


def untold(protocol: _C.Protocol, given: _C.Protocol | None = None) -> _C.Protocol | None:
    """The twin of a protocol without its information (the shipped one, of a shipped one), asked in the same words."""
    twin = given
    if twin is None:
        name = UNTOLD.get(protocol.name)
        if name is None or _shipped(protocol.name).turns != protocol.turns:
            return None
        twin = _shipped(name)
    fields = json.loads(protocol.to_json())
    same = {name: fields.get(name) for name in ("paraphrases", "asks_own_question", "readouts", "read")}
    return edited(twin, "untold", **same)


def with_groups(protocol: _C.Protocol, groups: dict[str, list[str]]) -> _C.Protocol:
    """The protocol with questions in groups, in the wording of its controls or in the library's."""
    data = json.loads(protocol.to_json())
    kind = "localisation" if protocol.answers else "yes_no"
    controls = data.get("controls") or {"question": texts()["wording"][kind]}
    return edited(protocol, "question groups", controls={**controls, "groups": groups})


def content(protocol: _C.Protocol, arm: str = "content") -> _C.Protocol:
    """The answer begins with a yes, and what it would name is read."""
    turns = _open_turns(protocol, arm)
    if protocol.read == "content":
        refuse(arm, protocol, "it reads the content itself")
    turns[-1] = {**turns[-1], "content": turns[-1]["content"] + texts()["content_prefix"]}
    return edited(protocol, arm, turns=turns, read="content", paraphrases=None, controls=None, asks_own_question=None)


def no_question(protocol: _C.Protocol) -> _C.Protocol:
    """The same reading of content where nothing was asked."""
    arm = "no_question"
    turns = _open_turns(protocol, arm)
    last = _last_user(protocol)
    if last < 0 or _is_injected(protocol, last):
        refuse(arm, protocol, "it needs a last message of the user, not injected, whose place is taken")
    turns[-1] = {**turns[-1], "content": texts()["no_question_prefix"]}
    own, *more = texts()["no_question"]
    turns[last] = {**turns[last], "content": own["question"]}
    fields = {"read": "content", "controls": None, "asks_own_question": None}
    return edited(protocol, arm, turns=turns, paraphrases=more, **fields)


def input_edit(protocol: _C.Protocol, associations: dict[str, str] | None = None) -> _C.Protocol:
    """The concept's word, or what is associated with it, is written into the injected messages; nothing is injected."""
    arm = "input_edit"
    written = _written(protocol, arm, "$CONCEPT" if associations else texts()["input_edit"])
    if associations:
        written["inject"]["texts"] = associations
    return edited(protocol, arm, **written)


def known_positive(protocol: _C.Protocol) -> _C.Protocol:
    """The concept's word is written into the injected messages as a secret word; asked is whether it is there."""
    arm = "known_positive"
    last = _last_user(protocol)
    if protocol.read != "yes_no" or last < 0 or _is_injected(protocol, last):
        refuse(arm, protocol, "it needs a question for yes or no in a last message of the user that is not injected")
    given, controls, turns = texts()[arm], json.loads(protocol.to_json()).get("controls"), protocol.turns
    wording = controls.get("question") if isinstance(controls, dict) else None
    question = (wording or texts()["wording"]["yes_no"]).replace("$QUESTION", given["question"])
    turns[last] = {**turns[last], "content": question}
    fields = {"turns": turns, "paraphrases": None, "controls": None, "asks_own_question": None}
    return edited(protocol, arm, **fields, **_written(protocol, arm, given["text"], turns))


def _written(protocol: _C.Protocol, arm: str, text: str, turns: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Fields of a protocol in which a text ends an injected message (the user's, if one is); nothing is injected."""
    injected = _whole_messages(protocol, arm)
    turns = list(turns or protocol.turns)
    at = next((i for i in injected if turns[i]["role"] == "user"), injected[0])
    turns[at] = {**turns[at], "content": f"{turns[at]['content']}\n\n{text}"}
    return {"inject": {"by": "tokens", "turns": turns}, "steer_generation": None}


def other_span(protocol: _C.Protocol) -> _C.Protocol:
    """The message that asks is injected in the place of those that it asks about."""
    arm = "other_span"
    last = _last_user(protocol)
    if protocol.answers or last < 0 or _is_injected(protocol, last):
        refuse(arm, protocol, "it needs a last message of the user that is not injected, and no answers for places")
    return edited(protocol, arm, injected=[last])


def spoken(protocol: _C.Protocol, n_tokens: int) -> tuple[_C.Protocol, int]:
    """What the model says itself in its injected message, while it is steered; and the message's number."""
    arm = "observer"
    injected = _whole_messages(protocol, arm)
    turns = protocol.turns
    places = [i for i in injected if turns[i]["role"] == "assistant" and i + 1 < len(turns)]
    if not places:
        refuse(arm, protocol, "it needs an injected message of the assistant, whose words the model can write")
    at = places[-1]
    fields = {"paraphrases": None, "asks_own_question": None, "controls": None, "readouts": None}
    return (
        edited(
            protocol,
            "spoken",
            turns=[*turns[:at], {**turns[at], "content": ""}],
            injected=[i for i in injected if i <= at],
            read="sample",
            steer_generation=True,
            sampling={"max_new_tokens": n_tokens, "temperature": 0.0},
            **fields,
        ),
        at,
    )


def observed(protocol: _C.Protocol, at: int, base: str, said: dict[str, str]) -> _C.Protocol:
    """The transcript without activations: what the model said, steered (``said`` of each concept) and not, is read."""
    asked = protocol if protocol.read == "content" else content(protocol, "observer")
    turns = asked.turns
    empty = turns[at]["content"]
    words = {concept: text if text.strip() else empty for concept, text in said.items()}
    turns[at] = {**turns[at], "content": base if base.strip() else empty}
    other = [{**turn, "content": "$CONCEPT"} if i == at else turn for i, turn in enumerate(turns)]
    inject = {"by": "tokens", "turns": other, "texts": words}
    return edited(protocol, "observer", **_fields(asked, turns=turns, inject=inject, steer_generation=None))


def _fields(protocol: _C.Protocol, **more: Any) -> dict[str, Any]:
    data = json.loads(protocol.to_json())
    return {**{name: None for name in ("paraphrases", "controls", "asks_own_question")}, "read": data["read"], **more}


@functools.cache
def _shipped(name: str) -> _C.Protocol:
    return _C.Protocol.load(name)


def _last_user(protocol: _C.Protocol) -> int:
    return max((i for i, turn in enumerate(protocol.turns) if turn["role"] == "user"), default=-1)


def _is_injected(protocol: _C.Protocol, turn: int) -> bool:
    return turn in protocol.injected or any(turn == of for of, _ in protocol.passages)


def _open_turns(protocol: _C.Protocol, arm: str) -> list[dict[str, str]]:
    turns = protocol.turns
    if protocol.answers:
        refuse(arm, protocol, "it asks where a thought was injected, not what about")
    if turns[-1]["role"] != "assistant":
        refuse(arm, protocol, "it needs the beginning of an answer as its last message")
    return turns


def _whole_messages(protocol: _C.Protocol, arm: str) -> list[int]:
    if not protocol.injected:
        refuse(arm, protocol, "it needs whole messages that are injected, not passages")
    return list(protocol.injected)
