"""
One JSON answer out of the events of a stream: what the same request would have been given without ``stream``.

Text is put together, calls by their index, log probabilities in their order.  What a vendor adds to the pieces may
follow rules of its own: an unknown field that comes in more than one piece makes the answer inexact, fit to be judged
but not to be served.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from .sse import Event

Json: TypeAlias = dict[str, Any]

# Fields of a delta that come in pieces of text.
_TEXTS: Final = frozenset({"content", "refusal", "reasoning", "reasoning_content", "thinking"})

# What an event of Responses, or of Messages, is called that nothing of the answer follows.
_LAST_KINDS: Final = {
    "responses": ("response.completed", "response.incomplete", "response.failed", "error"),
    "messages": ("message_stop", "error"),
}


@dataclass(slots=True)
class Assembled:
    """
    The answer, ``{"error": ...}`` if the stream says so, and its events.

    ``closed``: the last of them has come.  ``exact``: nothing was guessed.
    """

    answer: Json
    events: Sequence[Event]
    closed: bool
    exact: bool = True


def _up_to_last(api: str, given: Sequence[Event]) -> tuple[list[Event], bool]:
    """Return the events up to the last one of the answer, and whether that has come."""
    kinds = _LAST_KINDS.get(api)
    for place, event in enumerate(given):
        if event.is_done or (kinds and event.data and event.kind in kinds):
            return list(given[: place + 1]), True
    return list(given), False


def assembled(api: str, given: Sequence[Event]) -> Assembled:
    """Return the answer of a stream; raise KeyError, TypeError, ValueError and their like if it is no such stream."""
    given, closed = _up_to_last(api, given)
    told = [event for event in given if event.data and not event.is_done]
    match api:
        case "chat":
            answer = _Choices(_ChatChoice).of(told)
            return Assembled(answer.json("chat.completion"), given, closed, answer.exact)
        case "completions":
            answer = _Choices(_TextChoice).of(told)
            return Assembled(answer.json("text_completion"), given, closed, answer.exact)
        case "responses":
            return Assembled(_response(told), given, closed)
        case "messages":
            return Assembled(_message(told), given, closed)
    raise ValueError(f"{api} does not stream")


# --- chat and completions -----------------------------------------------------------------------------------------


class _Choices:
    """The chunks of chat and of completions: parts of choices, each with its index."""

    def __init__(self, kind: type[_Choice]) -> None:
        self._kind = kind
        self._base: Json = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Any = None
        self._error: Any = None

    def of(self, told: Sequence[Event]) -> _Choices:
        for event in told:
            chunk = event.read()
            if chunk.get("error") or event.name == "error":
                self._error = chunk.get("error") or True
                break
            self._usage = chunk.get("usage") or self._usage
            for name, value in chunk.items():
                # Azure's first chunk has an empty id and model.
                if name not in {"choices", "usage", "object", "obfuscation"} and not self._base.get(name):
                    self._base[name] = value
            for part in chunk.get("choices") or ():
                index = part["index"]
                if index not in self._choices:
                    self._choices[index] = self._kind(index)
                self._choices[index].add(part)
        return self

    @property
    def exact(self) -> bool:
        return all(choice.exact for choice in self._choices.values())

    def json(self, kind: str) -> Json:
        if self._error is not None:
            return {"error": self._error}
        choices = [self._choices[index].json() for index in sorted(self._choices)]
        return {**self._base, "object": kind, "choices": choices, "usage": self._usage}


class _Choice:
    """One choice, as far as it has come."""

    def __init__(self, index: int) -> None:
        self.exact = True
        self._index = index
        self._logprobs: Json | None = None
        self._finish: Any = None
        self._further: Json = {}

    def add(self, part: Json) -> None:
        for name, value in part.items():
            if name == "logprobs":
                self._add_logprobs(value)
            elif name == "finish_reason":
                self._finish = value or self._finish
            elif name not in {"index", "delta", "message", "text"} and value:
                self._further[name] = value

    def _add_logprobs(self, given: Json | None) -> None:
        if not given:
            return
        held = self._logprobs = self._logprobs or {}
        for name, value in given.items():
            if isinstance(value, list) and isinstance(held.get(name), list):
                held[name] = held[name] + value
            elif held.get(name) is None:
                held[name] = value

    def json(self) -> Json:
        further = {"logprobs": self._logprobs, "finish_reason": self._finish}
        return {"index": self._index, **self._said(), **further, **self._further}

    def _said(self) -> Json:
        raise NotImplementedError


class _TextChoice(_Choice):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._text = ""

    def add(self, part: Json) -> None:
        super().add(part)
        self._text += part.get("text") or ""

    def _said(self) -> Json:
        return {"text": self._text}


class _ChatChoice(_Choice):
    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._message: Json = {"role": "assistant", "content": None, "refusal": None}
        self._calls: dict[int, Json] = {}

    def add(self, part: Json) -> None:
        super().add(part)
        for name, value in (part.get("delta") or {}).items():
            if value is None or name == "role":
                continue
            if name == "tool_calls":
                for place, call in enumerate(value):
                    index = call.get("index")
                    _add_call(self._calls.setdefault(place if index is None else index, {}), call)
            elif name == "function_call":
                _add_call(self._message.setdefault(name, {}), value)
            elif isinstance(value, str):  # content, refusal, reasoning_content ...
                before = self._message.get(name)
                self.exact = self.exact and (not before or (name in _TEXTS and isinstance(before, str)))
                self._message[name] = before + value if isinstance(before, str) else value
            else:
                self.exact = self.exact and not self._message.get(name)
                self._message[name] = value

    def _said(self) -> Json:
        if not self._calls:
            return {"message": self._message}
        calls = [self._calls[index] for index in sorted(self._calls)]
        content = self._message["content"] or None  # streams begin with "", which JSON says as null
        return {"message": {**self._message, "content": content, "tool_calls": calls}}


def _add_call(call: Json, piece: Json) -> None:
    for name, value in piece.items():
        if name == "index":
            continue
        if isinstance(value, dict):
            _add_call(call.setdefault(name, {}), value)
        elif name in {"id", "type"}:  # some servers repeat them in each piece
            call[name] = value or call.get(name)
        elif isinstance(value, str) and isinstance(call.get(name), str):
            if not (name == "name" and value == call[name]):
                call[name] += value
        elif value is not None or name not in call:
            call[name] = value


# --- Responses and Messages ---------------------------------------------------------------------------------------


def _response(told: Sequence[Event]) -> Json:
    """Return what the last event holds: the whole answer."""
    if not told:
        return {"error": "no event"}
    last = told[-1].read()
    if told[-1].kind in {"response.completed", "response.incomplete"}:
        answer = last["response"]
        if isinstance(answer, dict):
            return answer
    return {"error": last.get("error") or told[-1].kind or True}


def _message(told: Sequence[Event]) -> Json:
    answer: Json = {}
    blocks: dict[int, Json] = {}
    inputs: dict[int, str] = {}
    kind = ""
    for event in told:
        kind, given = event.kind, event.read()
        match kind:
            case "error":
                return {"error": given.get("error") or True}
            case "message_start":
                answer = {**given["message"], "content": []}
            case "content_block_start":
                blocks[given["index"]] = dict(given["content_block"])
            case "content_block_delta":
                index = given["index"]
                _add_delta(blocks[index], given["delta"])
                if given["delta"]["type"] == "input_json_delta":
                    inputs[index] = inputs.get(index, "") + given["delta"]["partial_json"]
            case "message_delta":
                answer |= given["delta"]
                now = {name: value for name, value in (given.get("usage") or {}).items() if value is not None}
                answer["usage"] = {**(answer.get("usage") or {}), **now}
                answer |= {n: v for n, v in given.items() if n not in {"type", "delta", "usage"}}
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text or "{}")
    if kind != "message_stop":
        return {"error": "no message_stop"}
    return {**answer, "content": [blocks[index] for index in sorted(blocks)]}


def _add_delta(block: Json, delta: Json) -> None:
    match delta["type"]:
        case "input_json_delta":
            pass  # read when it is whole
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
        case kind:  # {"type": "text_delta", "text": ...}; thinking and signature likewise
            name = kind.removesuffix("_delta")
            block[name] = (block.get(name) or "") + delta[name]
