"""
From LangChain's two strings to a request that counts what the model sees, and nothing else.

LangChain gives a cache ``prompt`` (messages as JSON, or the text of a completion model) and ``llm_string`` (the
model as JSON, and the ``repr`` of the call's arguments).  Both change where the model sees no difference: the usage
of an earlier answer, an artifact's address, a timeout.  Taken as they are, the second turn of a chat misses on its
first replay.  Here they become structured data:

1. of messages, what no provider is sent is dropped, and so are empty fields; unknown fields stay: a missed hit
   costs money, a wrong hit costs trust;
2. the order of tool-call arguments counts, for it reaches the model; that of other mappings does not;
3. what cannot be told apart (an address, a class without its schema) is refused: ``Uncacheable``.

``llm_string`` may hold credentials in clear.  Nothing of either string is kept, logged or named in an error.
A change of these rules changes which requests are alike: it needs a new ``KIND``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from json import JSONDecoder
from typing import Any, Final

import orjson

from askonce.errors import Uncacheable
from askonce.keys import Request, Verbatim

KIND: Final = "langchain"

# Facts about an answer.  A provider is sent none of them when the answer comes back as history.
_OF_THE_ANSWER: Final = frozenset(
    {
        "askonce",
        "created",
        "created_at",
        "finish_reason",
        "headers",
        "logprobs",
        "service_tier",
        "stop_reason",
        "stop_sequence",
        "system_fingerprint",
        "token_usage",
        "usage",
    }
)
# How the call is made, not what is asked.
OF_THE_CALL: Final = frozenset(
    {"disable_streaming", "max_retries", "name", "request_timeout", "streaming", "timeout", "verbose"}
)
# Model fields that carry a connection or a credential.  LangChain writes such an object as its class alone.
OF_THE_CONNECTION: Final = frozenset(
    {
        "async_client",
        "azure_ad_async_token_provider",
        "azure_ad_token_provider",
        "client",
        "credentials",
        "http_async_client",
        "http_client",
        "rate_limiter",
        "root_async_client",
        "root_client",
    }
)
_ARGUMENTS: Final = frozenset({"args", "arguments", "input"})
_MARKS: Final = ((" at 0x", "an address"), ("<class '", "a class"), ("<function ", "a function"))
_LARGEST_EXACT: Final = 2.0**63


def request(prompt: str, llm_string: str, live: Mapping[str, object] | None = None) -> Request:
    """
    Return what is asked; raise Uncacheable if it cannot be told.

    *live* is what the model itself says, see ``_live``: it stands in for *llm_string*, which says less, and later.
    """
    messages = _messages(prompt)
    asked: dict[str, object] = {"prompt": prompt} if messages is None else {"messages": messages}
    if live is not None:
        return Request(KIND, {**asked, "live": live})
    model, call = _model(llm_string)
    return Request(KIND, {**asked, "model": model, "call": call})


def model_fields(llm_string: str) -> dict[str, Any] | None:
    """Return the fields of the model in *llm_string*; None if it says only how the model identifies itself."""
    model, _ = _model(llm_string)
    return None if model is None else model["fields"]


# --- the prompt ---------------------------------------------------------------------------------------------------


def _messages(prompt: str) -> list[object] | None:
    """Return the messages in *prompt*, or None if it is another text, or one that cannot be read exactly."""
    if not prompt.startswith('[{"lc"'):
        return None
    try:
        return [_message(node) for node in orjson.loads(prompt)]
    except Uncacheable:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        return None


def _message(node: dict[str, Any]) -> list[object]:
    if node["type"] != "constructor":
        raise ValueError("not a message")
    name: str = node["id"][-1]
    fields: dict[str, Any] = node["kwargs"]
    fields.pop("id", None)
    kind = fields.get("type")
    if kind in {"ai", "AIMessageChunk"}:
        name = _forget_the_answer(name, fields)
    elif kind in {"tool", "ToolMessageChunk"}:
        fields.pop("artifact", None)  # for the application, not the model; often an object with an address
    kept: dict[str, object] = {}
    for field, value in fields.items():
        if type(value) is str:
            kept[field] = value
        elif value or value is False or value == 0:
            kept[field] = _exact(value)
    return [name, kept]


def _forget_the_answer(name: str, fields: dict[str, Any]) -> str:
    """Drop what is known of an answer and never sent back; return the class it counts as."""
    fields["type"] = "ai"
    for field in ("usage_metadata", "tool_call_chunks", "chunk_position"):
        fields.pop(field, None)
    if facts := fields.get("response_metadata"):
        kept = {
            fact: value for fact, value in facts.items() if fact not in _OF_THE_ANSWER and value is not None
        }
        if not str(kept.get("id", "")).startswith("resp_"):  # that one is sent, as previous_response_id
            kept.pop("id", None)
        fields["response_metadata"] = kept
    if extra := fields.get("additional_kwargs"):
        fields["additional_kwargs"] = {
            field: value for field, value in extra.items() if field != "parsed" and value is not None
        }
    if calls := fields.get("tool_calls"):
        fields["tool_calls"] = [
            {field: call.get(field) for field in ("name", "args", "id")} for call in calls
        ]
    return "AIMessage" if name == "AIMessageChunk" else name


def _exact(value: Any, ordered: bool = False) -> Any:
    """Return *value*, the order of arguments marked as counting; refuse what two values may be written as."""
    kind = type(value)
    if kind is dict:
        if value.get("type") == "not_implemented" and "lc" in value:
            return _shown(value)
        return {
            name: Verbatim(_exact(item, True))
            if not ordered and name in _ARGUMENTS and type(item) is dict
            else _exact(item, ordered)
            for name, item in value.items()
        }
    if kind is list:
        return [_exact(item, ordered) for item in value]
    if kind is float and not -_LARGEST_EXACT < value < _LARGEST_EXACT:
        raise ValueError("orjson reads an integer over 64 bits as a float, and two of them as one")
    return value


def _shown(node: dict[str, Any]) -> dict[str, Any]:
    """Return an object that LangChain could only write as its ``repr``, if that tells it from others."""
    shown = node.get("repr")
    if not isinstance(shown, str) or " at 0x" in shown or "..." in shown:
        raise Uncacheable("a message holds an object that its repr does not describe: give JSON-like values")
    return node


# --- the model ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # an application has few models, and asks each of them often
def _model(llm_string: str) -> tuple[dict[str, Any] | None, str]:
    """Return the model, if *llm_string* begins with one, and the rest: the arguments of the call as text."""
    model, call = None, llm_string
    if llm_string.startswith("{"):
        # Arguments begin like this; the rest of the line, a tool's description say, may hold the marks again.
        head, mark, tail = llm_string.partition("---[(")
        model = _fields(head)
        if model is None:
            head, mark, tail = _split(llm_string)
            model = _fields(head)
        if model is not None:
            call = mark + tail
    for mark, what in _MARKS:
        if mark in call:
            raise Uncacheable(
                f"the arguments of the call hold {what}: it does not say what the model is sent"
            )
    return model, call


def _split(llm_string: str) -> tuple[str, str, str]:
    try:
        _, end = JSONDecoder().raw_decode(llm_string)
    except (ValueError, RecursionError):
        return "", "", llm_string
    return llm_string[:end], "", llm_string[end:]


@lru_cache(maxsize=64)  # the tools of a call may differ where the model does not
def _fields(head: str) -> dict[str, Any] | None:
    """Return class and fields of the model written in *head*, or None if it is no model."""
    try:
        model = JSONDecoder().decode(head)
        fields = {name: value for name, value in model["kwargs"].items() if name not in OF_THE_CALL}
        identity = model.get("id")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    for name, value in fields.items():
        if name not in OF_THE_CONNECTION:
            _check_field(name, value)
    return {"class": identity, "fields": fields}


def _check_field(name: str, value: Any) -> None:
    """LangChain takes the ``repr`` from what it cannot write: two objects of a class then look alike."""
    if isinstance(value, dict):
        if value.get("type") == "not_implemented" and "lc" in value:
            shown = value.get("repr")
            if not isinstance(shown, str) or " at 0x" in shown:
                raise Uncacheable(
                    f"the model's field {name!r} is an object that LangChain writes as its class alone"
                )
        for item in value.values():
            _check_field(name, item)
    elif isinstance(value, list):
        for item in value:
            _check_field(name, item)
