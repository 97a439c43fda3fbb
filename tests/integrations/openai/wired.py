"""Requests and answers of the model APIs as the tests of the wire need them: plans, JSON answers, streams."""

from __future__ import annotations

import json
from typing import Any

from askonce_openai import wire
from askonce_openai.wire.sse import DONE, written

PATH = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "embeddings": "/v1/embeddings",
    "completions": "/v1/completions",
    "messages": "/v1/messages",
}
BODY: dict[str, dict[str, Any]] = {
    "chat": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
    "responses": {"model": "m", "input": "q"},
    "embeddings": {"model": "e", "input": ["a", "b"]},
    "completions": {"model": "m", "prompt": "p"},
    "messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
}
JSON = {"content-type": "application/json"}
STREAM = {"content-type": "text/event-stream"}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def planned(
    api: str = "chat",
    body: dict[str, Any] | None = None,
    *,
    headers: dict[str, str] | None = None,
    origin: str = "https://x",
    path: str | None = None,
    query: str = "",
    content: bytes | None = None,
    key_headers: tuple[str, ...] = (),
    scope: object = None,
) -> wire.Plan | str:
    """Return the plan of a request of this API, with *body* on top of a plain one."""
    if content is None:
        content = json.dumps({**BODY[api], **(body or {})}).encode()
    call = wire.Call(
        method="POST",
        origin=origin,
        path=path or PATH[api],
        query=query,
        headers=headers or {},
        content=content,
    )
    return wire.plan(call, key_headers=key_headers, scope=scope)


def plan(api: str = "chat", body: dict[str, Any] | None = None, **how: Any) -> wire.Plan:
    """Return the plan of a request that is not bypassed."""
    made = planned(api, body, **how)
    assert isinstance(made, wire.Plan), made
    return made


def recorded(given: wire.Plan, answer: object) -> wire.Entry | str:
    """Record a JSON answer."""
    return wire.record(given, 200, JSON, json.dumps(answer).encode(), ended=True)


def streamed(given: wire.Plan, body: bytes, *, ended: bool = True) -> wire.Entry | str:
    """Record a stream."""
    return wire.record(given, 200, STREAM, body, ended=ended)


def entry(of: wire.Entry | str) -> wire.Entry:
    """Return an entry that was admitted."""
    assert isinstance(of, wire.Entry), of
    return of


def given(to: wire.Plan, by: wire.Entry, hits: wire.Hits | None = None, token: str = "") -> bytes | None:
    """Return the body that *by* gives to *to*."""
    rendered = wire.render(to, by, hits or wire.Hits(), token=token)
    return None if rendered is None else rendered.body


def read(body: bytes | None) -> dict[str, Any]:
    """Return a JSON body."""
    assert body is not None
    value = json.loads(body)
    assert isinstance(value, dict)
    return value


# --- chat and completions -----------------------------------------------------------------------------------------


def chat(reason: str | None = "stop", content: object = "hello", **message: Any) -> dict[str, Any]:
    """A JSON answer of chat."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": None, **message},
        "logprobs": None,
        "finish_reason": reason,
    }
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m-2025"}
    return {**head, "choices": [choice], "usage": USAGE}


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def chunk(delta: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """One chunk of chat."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m-2025"}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
    return {**head, "choices": [choice], **more}


SAYS = (
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "he"}),
    chunk({"content": "llo"}),
    chunk({}, "stop"),
)
TELLS_USAGE = {**chunk({}), "choices": [], "usage": USAGE}


def sse(*values: dict[str, Any], done: bool = True) -> bytes:
    """The stream of these chunks."""
    return b"".join(map(written, values)) + (DONE if done else b"")


def text(reason: str | None = "stop", said: str = "hello") -> dict[str, Any]:
    """A JSON answer of completions."""
    choice = {"index": 0, "text": said, "logprobs": None, "finish_reason": reason}
    head = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
    return {**head, "choices": [choice], "usage": USAGE}


# --- Responses ----------------------------------------------------------------------------------------------------

SAID = {"type": "output_text", "text": "hello", "annotations": [], "logprobs": []}
MESSAGE = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant", "content": [SAID]}
FUNCTION = {
    "id": "fc_1",
    "type": "function_call",
    "status": "completed",
    "call_id": "call_1",
    "name": "f",
    "arguments": '{"a": 1}',
}
CUSTOM = {"id": "ctc_1", "type": "custom_tool_call", "call_id": "call_2", "name": "g", "input": "x"}
THOUGHT = {"id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}


def response(status: str = "completed", why: str | None = None, *items: Any, **more: Any) -> dict[str, Any]:
    """A JSON answer of Responses."""
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": status,
        "error": None,
        "incomplete_details": why and {"reason": why},
        "model": "m-2025",
        "output": list(items or (MESSAGE,)),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "metadata": {},
        "usage": {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 3,
        },
        **more,
    }


def told(answer: dict[str, Any], *, last: str | None = None) -> bytes:
    """The stream of an answer of Responses that holds one message."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    at = {"output_index": 0, "item_id": "msg_1", "content_index": 0}
    happened: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_text.delta", {**at, "delta": "hello", "logprobs": []}),
        (last or f"response.{answer['status']}", {"response": answer}),
    ]
    return b"".join(
        written({"type": kind, "sequence_number": number, **fields}, kind)
        for number, (kind, fields) in enumerate(happened)
    )


# --- Messages -----------------------------------------------------------------------------------------------------


def message(reason: str | None = "end_turn", *blocks: dict[str, Any]) -> dict[str, Any]:
    """A JSON answer of Messages."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": list(blocks or ({"type": "text", "text": "hello"},)),
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }


TOOL_USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"b": 1, "a": 2}}


def blocks(answer: dict[str, Any], *, stops: bool = True) -> bytes:
    """The stream of an answer of Messages with text and calls, as Anthropic sends it."""
    begun = {**answer, "content": [], "stop_reason": None, "usage": {"input_tokens": 5, "output_tokens": 1}}
    happened: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(answer["content"]):
        if block["type"] == "text":
            start, half = {"type": "text", "text": ""}, len(block["text"]) // 2
            deltas = [
                {"type": "text_delta", "text": part} for part in (block["text"][:half], block["text"][half:])
            ]
        else:
            start, said = {**block, "input": {}}, json.dumps(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in ("", said[:5], said[5:])]
        happened.append({"type": "content_block_start", "index": index, "content_block": start})
        happened.append({"type": "ping"})
        happened += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        happened.append({"type": "content_block_stop", "index": index})
    stop = {"stop_reason": answer["stop_reason"], "stop_sequence": None}
    happened.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 3}})
    if stops:
        happened.append({"type": "message_stop"})
    return b"".join(written(event, event["type"]) for event in happened)
