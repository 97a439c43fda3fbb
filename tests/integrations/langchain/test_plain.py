"""An answer that is put together without validation is what validation gives."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load import dumps
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel

from askonce_langchain._plain import plain_answer, plain_message

USAGE = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
CALL = {"name": "t", "args": {"a": {"b": [1, 2.5, None]}}, "id": "c1", "type": "tool_call"}
INVALID_CALL = {"name": "z", "args": "{bad", "id": "c2", "error": "e"}


class Text(str):
    __slots__ = ()


def validated(body: Any, info: Any) -> ChatGeneration:
    return ChatGeneration.model_validate(
        {"generation_info": info, "message": AIMessage.model_validate(copy.deepcopy(body))}
    )


def state(model: BaseModel) -> dict[str, Any]:
    held = {**vars(model), "message": None}
    return {"fields": held, "given": model.model_fields_set, "extra": model.model_extra}


PLAIN = {
    "content": ["x", "", "\u00e9"],
    "additional_kwargs": [{}, {"refusal": None}, {1: 2}],
    "response_metadata": [{"model_name": "m"}, {1: {2: 3}}],
    "usage_metadata": [
        USAGE,
        {**USAGE, "total_cost": 0},
        {**USAGE, "input_token_details": {"audio": 1, "other": 2}},
        {**USAGE, "output_token_details": {}},
    ],
    "tool_calls": [[CALL], [CALL, {**CALL, "id": None, "args": {}}]],
    "name": ["bob"],
}
ODD = {
    "content": [1, None, ["x"], [{"type": "text", "text": "hi"}], Text("x")],
    "additional_kwargs": [{"tool_calls": []}, {"tool_calls": [{"function": 1}]}, [], None],
    "response_metadata": [None, "x"],
    "usage_metadata": [
        {},
        None,
        {**USAGE, 1: 1},
        {**USAGE, "total_tokens": 2.0},
        {**USAGE, "total_tokens": "2"},
        {**USAGE, "total_tokens": True},
        {**USAGE, "output_token_details": {"audio": 1.5}},
        {**USAGE, "output_token_details": {1: 1}},
        {**USAGE, "output_token_details": None},
    ],
    "tool_calls": [
        [],
        {},
        [1],
        [{"name": "t", "args": {}, "id": "1"}],
        [{**CALL, "type": "other"}],
        [{**CALL, "id": 1}],
        [{**CALL, "args": {1: 2}}],
        [{**CALL, "args": "{}"}],
        [{**CALL, "name": 1}],
        [{**CALL, "more": 1}],
    ],
    "invalid_tool_calls": [[], [INVALID_CALL]],
    "name": [1, None],
    "id": ["1"],
    "type": ["ai"],
    "more": [1, None],
}


def plain() -> st.SearchStrategy[dict[str, Any]]:
    """Draw the fields of an ordinary message."""
    fields = {name: st.sampled_from(values) for name, values in PLAIN.items()}
    return st.fixed_dictionaries({"content": fields.pop("content")}, optional=fields)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the fields of a message, sometimes one of them odd."""
    body = draw(plain())
    if draw(st.booleans()):
        name = draw(st.sampled_from(sorted(ODD)))
        body[name] = draw(st.sampled_from(ODD[name]))
    return body


@given(bodies(), st.sampled_from([None, {}, {"a": 1}, {1: 1}, "x"]))
def test_what_is_not_validated_is_what_validation_gives(body: Any, info: Any) -> None:
    """The short way of reading an answer gives what LangChain's own validation gives, or is not taken."""
    found = plain_answer(copy.deepcopy(body), info)
    if found is not None:
        expected = validated(body, info)
        assert found == expected
        assert state(found) == state(expected)
        assert type(found.text) is type(expected.text)
        assert state(found.message) == state(expected.message)
        assert dumps(found) == dumps(expected)


@given(plain())
def test_an_ordinary_answer_is_not_validated(body: Any) -> None:
    """The short way is the one of ordinary answers: text, calls of tools, or both."""
    assert plain_answer(body, {"finish_reason": "stop"}) is not None


def test_messages_share_nothing() -> None:
    """A hit may be changed by its caller, down to its mappings and lists."""
    one, other = plain_message({"content": "x"}), plain_message({"content": "x"})
    assert one is not None
    one.additional_kwargs["a"] = one.response_metadata["b"] = 1
    one.tool_calls.append(CALL)  # type: ignore[arg-type]
    assert other == AIMessage("x") == plain_message({"content": "x"})
