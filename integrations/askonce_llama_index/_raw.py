"""
``raw``: what the provider's SDK returned, in the shapes in which LlamaIndex's classes leave it.

A call and a stream have different ones, and users look into both: a call that is answered from a stream's entry must not
be given a chunk, nor a chunk a whole completion.  Where no other shape is known, ``raw`` stays as it was stored.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from llama_index.core.base.llms.types import ChatResponse
from pydantic import BaseModel

from ._codec import Answer, Entry, text_of
from ._types import COMPLETION, found
from ._values import made

_CHUNK: Final = "openai.types.chat.chat_completion_chunk:ChatCompletionChunk"
_COMPLETED: Final = "openai.types.responses.response_completed_event:ResponseCompletedEvent"


def finish_reason(answer: Answer) -> str | None:
    """Return what the provider said of the end of an answer, if it did."""
    raw = answer.raw
    reason: object = None
    if isinstance(raw, BaseModel):
        reason = _of_object(raw)
    elif isinstance(raw, dict):
        reason = _of_mapping(raw)
    if reason is None and isinstance(answer, ChatResponse):
        reason = answer.message.additional_kwargs.get("stop_reason")  # Anthropic, in a stream
    if reason is None:
        reason = answer.additional_kwargs.get("stop_reason")
    return None if reason is None else str(getattr(reason, "value", reason))


def _of_object(raw: BaseModel) -> object:
    choices = getattr(raw, "choices", None)
    if choices:
        return getattr(choices[0], "finish_reason", None)
    response = getattr(raw, "response", raw)  # the Responses API: an event, an answer
    status = getattr(response, "status", None)
    if status == "incomplete":
        return getattr(getattr(response, "incomplete_details", None), "reason", None) or status
    return None if status in {"in_progress", "queued"} else status


_NAMES: Final = ("stop_reason", "stopReason", "done_reason", "finish_reason", "finishReason")


def _of_mapping(raw: dict[str, Any]) -> object:
    for name in _NAMES:
        if raw.get(name):
            return raw[name]
    delta = raw.get("delta")  # Anthropic, the last event of a stream
    if delta is not None:
        return delta.get("stop_reason") if isinstance(delta, dict) else getattr(delta, "stop_reason", None)
    choices = raw.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    return first.get("finish_reason") if isinstance(first, dict) else getattr(first, "finish_reason", None)


def for_call(entry: Entry) -> Answer:
    """Return the answer as a call gives it."""
    answer = entry.answer
    if entry.pieces is not None:
        answer.delta = None
        with suppress(Exception):  # what a compatible server sent may lack anything: then it stays as it is
            answer.raw = _raw_of_call(entry, answer.raw)
    return answer


def _raw_of_call(entry: Entry, raw: Any) -> object:
    kind, text = type(raw).__name__, text_of(entry.answer)
    if kind == "ResponseCompletedEvent":
        return raw.response
    if kind == "ChatCompletionChunk":
        return _completion(entry, raw)
    if isinstance(raw, dict) and isinstance(raw.get("message"), dict):  # Ollama
        return {**raw, "message": {**raw["message"], "content": text}}
    if isinstance(raw, dict) and raw.get("type") == "message_delta":  # Anthropic
        return {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text}],
            "stop_reason": entry.finish,
            "usage": raw.get("usage"),
        }
    return raw


def _completion(entry: Entry, chunk: Any) -> object:
    cls = found(COMPLETION)
    if cls is None:
        return chunk
    answer = entry.answer
    kwargs = (
        answer.message.additional_kwargs if isinstance(answer, ChatResponse) else answer.additional_kwargs
    )
    message: dict[str, Any] = {"role": "assistant", "content": text_of(answer) or None}
    calls = [
        call.model_dump(mode="json", exclude={"index"}, exclude_unset=True, warnings=False)
        if isinstance(call, BaseModel)
        else call
        for call in kwargs.get("tool_calls") or ()
    ]
    if calls:
        message["tool_calls"] = calls
    form = chunk.model_dump(mode="json", exclude_unset=True, exclude={"choices", "object"}, warnings=False)
    choice = {"index": 0, "finish_reason": entry.finish or "stop", "message": message, "logprobs": None}
    return made(cls, {**form, "object": "chat.completion", "choices": [choice]})


def last_of_stream(entry: Entry, delta: str) -> object:
    """Return the ``raw`` of the last chunk of a replayed stream."""
    raw = entry.answer.raw
    if entry.pieces is None:
        with suppress(Exception):  # as above
            return _raw_of_stream(entry, raw, delta)
    return raw


def _raw_of_stream(entry: Entry, raw: Any, delta: str) -> object:
    kind = type(raw).__name__
    if kind == "ChatCompletion":
        last: Any = like(shape_of(raw), delta)
        last.id, last.created = raw.id, raw.created
        last.choices[0].finish_reason, last.usage = entry.finish, raw.usage
        return last
    if kind == "Response" and (cls := found(_COMPLETED)) is not None:
        return cls.model_construct(type="response.completed", response=raw, sequence_number=0)
    return raw


#: The shape of a chunk's ``raw``, for chunks whose own is not kept: a model's name, "" for a mapping, None for none.
Shape = str | None


def shape_of(raw: object) -> Shape:
    """Return what is kept of the ``raw`` of a chunk that only carries text."""
    if type(raw).__name__ in {"ChatCompletionChunk", "ChatCompletion"}:
        return str(getattr(raw, "model", "")) or "-"
    return "" if isinstance(raw, dict) else None


def like(shape: Shape, delta: str) -> object:
    """Return a ``raw`` of this shape, for a chunk that only carries text."""
    if not shape:
        return None if shape is None else {}
    cls = found(_CHUNK)
    if cls is None:
        return None
    choice = {"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": delta}}
    form = {"id": "", "created": 0, "model": shape, "object": "chat.completion.chunk", "choices": [choice]}
    return made(cls, form)
