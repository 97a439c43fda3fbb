"""
Answers put together without LangChain's own validation, which runs in Python and takes most of a decode.

Only what is found to be of the right types already is put together here, as pydantic's ``model_construct`` does; the
outcome is what validation gives, to the last field.  All else is left to validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Generic, TypeVar

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration
from pydantic import BaseModel

Model = TypeVar("Model", bound=BaseModel)

TOOL_CALL: Final = frozenset({"name", "args", "id", "type"})

_PLAIN: Final[dict[object, type]] = {
    "additional_kwargs": dict,
    "content": str,
    "name": str,
    "response_metadata": dict,
    "tool_calls": list,
    "usage_metadata": dict,
}
_TEXT: Final = frozenset({str})
_NUMBER: Final = frozenset({int})
_COUNTS: Final = ("input_tokens", "output_tokens", "total_tokens")
_DETAILS: Final = frozenset({"input_token_details", "output_token_details"})


def plain_answer(body: object, info: object) -> ChatGeneration | None:
    """Return the answer whose message has the fields *body*; None if validation is to judge it."""
    if info is not None and not _is_mapping(info):
        return None
    message = plain_message(body)
    if message is None:
        return None
    return _ANSWER.made({"text": _TEXT_OF(message.content), "message": message, "generation_info": info})


def plain_message(body: object) -> AIMessage | None:
    """Return the message with the fields *body*, if it is text, calls of tools, or both; else None."""
    if type(body) is not dict or "content" not in body:
        return None
    for name, value in body.items():
        if type(value) is not _PLAIN.get(name):
            return None
    calls = body.get("tool_calls")
    if calls is None:
        if "tool_calls" in body.get("additional_kwargs", ()):  # an older form, which LangChain reads
            return None
    elif not calls or not all(map(_is_tool_call, calls)):
        return None
    if "usage_metadata" in body and not _is_usage(body["usage_metadata"]):
        return None
    return _MESSAGE.made(body)


class _Blank(Generic[Model]):
    """An object of a class with as few fields as it may have, to be made again with others."""

    def __init__(self, blank: Model) -> None:
        self._kind, self._has_extra = type(blank), blank.model_extra is not None
        self._state = vars(blank)
        self._own = [
            (name, type(value)) for name, value in self._state.items() if type(value) in {dict, list}
        ]

    def made(self, fields: Mapping[str, object]) -> Model:
        """Return a new object with *fields*, which are of the right types."""
        state = {**self._state, **fields}
        for name, kind in self._own:
            if name not in fields:
                state[name] = kind()
        made = object.__new__(self._kind)
        put = object.__setattr__
        put(made, "__dict__", state)
        put(made, "__pydantic_fields_set__", set(fields))
        put(made, "__pydantic_extra__", {} if self._has_extra else None)
        put(made, "__pydantic_private__", None)
        return made


_MESSAGE: Final = _Blank(AIMessage(""))
_ANSWER: Final = _Blank(ChatGeneration(message=AIMessage("")))
#: What the text of an answer is: text in langchain-core 1.2.10, text of a class of its own in later ones.
_TEXT_OF: Final = type(ChatGeneration(message=AIMessage("")).text)


def _is_mapping(value: object) -> bool:
    return type(value) is dict and _TEXT.issuperset(map(type, value))


def _is_tool_call(call: object) -> bool:
    return (
        type(call) is dict
        and call.keys() == TOOL_CALL
        and call["type"] == "tool_call"
        and type(call["name"]) is str
        and (call["id"] is None or type(call["id"]) is str)
        and _is_mapping(call["args"])
    )


def _is_usage(usage: dict[object, object]) -> bool:
    for name in _COUNTS:
        if type(usage.get(name)) is not int:
            return False
    for key, value in usage.items():
        if type(key) is not str or (key in _DETAILS and not _is_counts(value)):
            return False
    return True


def _is_counts(details: object) -> bool:
    return _is_mapping(details) and _NUMBER.issuperset(map(type, details.values()))  # type: ignore[attr-defined]
