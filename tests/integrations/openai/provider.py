"""
A provider for tests: the endpoints of OpenAI, Azure and Anthropic on 127.0.0.1, in a thread of the test.

The model's name steers it, and parts can be combined ("m-held-429"):

    m            a plain answer                      m-held       each chunk, answer or error waits for ``release``
    m-late       a stream whose headers wait for ``release``
    m-tools      a tool call                         m-length, m-filter     why it ended
    m-empty      no text                             m-refuse     a refusal
    m-400 m-429 m-500  always refused                m-flaky      500 at odd calls
    m-midway     an error event in mid-stream        m-cut        the socket is dropped in mid-stream
    m-nodone     a stream without [DONE]             m-nousage    include_usage is ignored
    m-gzip       compressed                          m-obf        padded chunks
    m-ratelim    cookies and rate limits             m-bykey      refuses who has the key "bad" with 429
    m-accent     a header that is no ASCII

Every answer carries a number, so that a fresh answer never equals an older one.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PATIENCE = 20.0

Event = tuple[str | None, Any]


class Provider:
    """The endpoints, and what they have seen."""

    def __init__(self) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(self._app(), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
        )
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.reset()

    def __enter__(self) -> Provider:
        self._thread.start()
        with self._changed:
            started = self._changed.wait_for(lambda: self._server.started, 0) or self._until_started()
        assert started, "the provider did not start"
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def _until_started(self) -> bool:
        for _ in range(1000):
            if self._server.started:
                return True
            self._changed.wait(0.01)
        return False

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def reset(self) -> None:
        """Forget what was seen; no chunk is released."""
        self.calls: Counter[str] = Counter()
        self.aborted: Counter[str] = Counter()
        self.last: dict[str, dict[str, Any]] = {}
        self.seen: list[dict[str, Any]] = []
        self._permits = asyncio.Semaphore(0)

    def release(self, count: int = 1000) -> None:
        """Let that many chunks or answers of held models go."""
        assert self._loop is not None, "nothing was asked yet"
        permits = self._permits

        def let_go() -> None:
            for _ in range(count):
                permits.release()

        self._loop.call_soon_threadsafe(let_go)

    def wait_for(self, what: Any) -> None:
        """Wait until ``what(self)`` is true; it is asked whenever a call comes in or is aborted."""
        with self._changed:
            assert self._changed.wait_for(lambda: what(self), PATIENCE), (self.calls, self.aborted)

    def wait_for_calls(self, count: int, name: str = "chat") -> None:
        """Wait until *count* calls have come in."""
        self.wait_for(lambda self: self.calls[name] >= count)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _held(self, model: str) -> None:
        if "held" in model:
            await self._permits.acquire()

    # --- the endpoints ----------------------------------------------------------------------------------------

    async def _begin(self, request: Request, name: str) -> tuple[dict[str, Any], str, int]:
        self._loop = asyncio.get_running_loop()
        body = await request.json()
        number = next(self._numbers)
        self.last[name] = {
            "body": body,
            "headers": dict(request.headers),
            "path": request.url.path,
            "query": request.url.query,
        }
        self.seen.append(self.last[name])
        self.calls[name] += 1
        self._notify()
        return body, body.get("model", ""), number

    async def _refusal(self, request: Request, model: str, name: str, number: int) -> Response | None:
        status = next((int(part) for part in model.split("-") if part in {"400", "429", "500"}), None)
        if "flaky" in model and self.calls[name] % 2 == 1:
            status = 500
        if "bykey" in model and request.headers.get("authorization") == "Bearer bad":
            status = 429
        if status is None:
            return None
        await self._held(model)
        body = {"error": {"message": "refused", "type": "test", "code": None}}
        headers = {"x-request-id": f"req_err_{number}", "retry-after-ms": "5"}
        return JSONResponse(body, status, headers)

    async def _encoded(self, events: list[Event], model: str, name: str) -> AsyncIterator[bytes]:
        whole = False
        try:
            for position, (kind, data) in enumerate(events):
                await self._held(model)
                if "midway" in model and position == 3:
                    yield b'data: {"error":{"message":"overloaded","type":"server_error"}}\n\n'
                    return
                if "cut" in model and position == 3:
                    raise RuntimeError("cut")
                yield _sse(kind, data)
            whole = True
        finally:
            if not whole:
                self.aborted[name] += 1
                self._notify()

    async def _stream(self, events: list[Event], number: int, model: str, name: str) -> Response:
        if "late" in model:
            await self._permits.acquire()
        headers = _headers(number, model)
        if "gzip" in model:
            raw = gzip.compress(b"".join([_sse(kind, data) for kind, data in events]))
            headers["content-encoding"] = "gzip"
            return Response(raw, 200, headers, media_type="text/event-stream")
        return StreamingResponse(
            self._encoded(events, model, name), 200, headers, media_type="text/event-stream"
        )

    async def _whole(self, value: Any, number: int, model: str) -> Response:
        await self._held(model)
        headers = _headers(number, model)
        if "gzip" in model:
            raw = gzip.compress(json.dumps(value).encode())
            return Response(raw, 200, {**headers, "content-encoding": "gzip"}, media_type="application/json")
        return JSONResponse(value, 200, headers)

    async def chat(self, request: Request) -> Response:
        body, model, number = await self._begin(request, "chat")
        if (refused := await self._refusal(request, model, "chat", number)) is not None:
            return refused
        answer = _Chat(body, model, number)
        if not body.get("stream"):
            return await self._whole(answer.whole(), number, model)
        return await self._stream(list(answer.events()), number, model, "chat")

    async def completions(self, request: Request) -> Response:
        body, model, number = await self._begin(request, "completions")
        base = {"id": f"cmpl-{number}", "object": "text_completion", "created": number, "model": model}
        usage = _usage(8)
        if not body.get("stream"):
            choice = {
                "index": 0,
                "text": "".join(_words(number, 8)),
                "logprobs": None,
                "finish_reason": "stop",
            }
            return await self._whole({**base, "choices": [choice], "usage": usage}, number, model)

        def event(text: str, reason: str | None) -> Event:
            return None, {
                **base,
                "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
            }

        events = [*(event(word, None) for word in _words(number, 8)), event("", "stop")]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append((None, {**base, "choices": [], "usage": usage}))
        return await self._stream([*events, (None, "[DONE]")], number, model, "completions")

    async def responses(self, request: Request) -> Response:
        body, model, number = await self._begin(request, "responses")
        if (refused := await self._refusal(request, model, "responses", number)) is not None:
            return refused
        answer = _Answer(body, model, number)
        if not body.get("stream"):
            return await self._whole(answer.whole, number, model)
        return await self._stream(answer.events(), number, model, "responses")

    async def embeddings(self, request: Request) -> Response:
        body, model, number = await self._begin(request, "embeddings")
        if (refused := await self._refusal(request, model, "embeddings", number)) is not None:
            return refused
        given = body["input"]
        items = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        data = []
        for index, item in enumerate(items):
            vector = [float(len(str(item))), float(number), *(i / 7 for i in range(6))]
            embedding: Any = vector
            if body.get("encoding_format") == "base64":
                embedding = base64.b64encode(struct.pack("<8f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": embedding})
        usage = {"prompt_tokens": len(items), "total_tokens": len(items)}
        return await self._whole(
            {"object": "list", "data": data, "model": model, "usage": usage}, number, model
        )

    async def messages(self, request: Request) -> Response:
        body, model, number = await self._begin(request, "messages")
        if (refused := await self._refusal(request, model, "messages", number)) is not None:
            return refused
        whole, events = _message(model, number)
        if not body.get("stream"):
            return await self._whole(whole, number, model)
        return await self._stream(events, number, model, "messages")

    async def foreign(self, request: Request) -> Response:
        """No model: a POST that writes something, at a path that ends like one."""
        await self._begin(request, "foreign")
        return JSONResponse({"id": next(self._numbers)})

    def _app(self) -> Starlette:
        routes = []
        for prefix in ("/v1", "/openai/v1", "/openai/deployments/{deployment}"):
            for path, endpoint in (
                ("/chat/completions", self.chat),
                ("/completions", self.completions),
                ("/responses", self.responses),
                ("/embeddings", self.embeddings),
            ):
                routes.append(Route(prefix + path, endpoint, methods=["POST"]))
        routes.append(Route("/v1/messages", self.messages, methods=["POST"]))
        routes.append(Route("/forms/7/responses", self.foreign, methods=["POST"]))
        return Starlette(routes=routes)


def _sse(kind: str | None, data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return ((f"event: {kind}\n" if kind else "") + f"data: {text}\n\n").encode()


def _headers(number: int, model: str) -> dict[str, str]:
    headers = {
        "x-request-id": f"req_{number}",
        "request-id": f"req_{number}",
        "openai-processing-ms": "12",
        "openai-organization": "org-secret",
    }
    if "ratelim" in model:
        headers |= {"set-cookie": "__cf_bm=zzz; path=/", "x-ratelimit-remaining-requests": "7"}
    if "accent" in model:
        headers["openai-model"] = "modèle"
    return headers


def _words(number: int, count: int) -> list[str]:
    return [f"answer-{number} ", *(f"w{i} " for i in range(count - 1))]


def _usage(count: int) -> dict[str, Any]:
    return {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}


class _Chat:
    """One chat completion."""

    def __init__(self, body: dict[str, Any], model: str, number: int) -> None:
        self.body, self.model, self.number = body, model, number
        self.reason = next(
            (
                reason
                for word, reason in (
                    ("length", "length"),
                    ("filter", "content_filter"),
                    ("tools", "tool_calls"),
                )
                if word in model
            ),
            "stop",
        )
        count = int(body.get("max_tokens") or 8)
        self.pieces = [] if "empty" in model or "refuse" in model else _words(number, count)
        if (body.get("response_format") or {}).get("type") == "json_schema":
            text = json.dumps({"name": f"n{number}", "age": number})
            self.pieces = [text[:5], text[5:]]
        self.usage = _usage(count)
        self.base = {
            "id": f"chatcmpl-{number}",
            "created": 1700000000 + number,
            "model": model + "-2025",
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        }
        self.arguments = json.dumps({"city": f"c{number}"})
        self.choices = body.get("n") or 1

    def call(self, arguments: str) -> dict[str, Any]:
        function = {"name": "get_weather", "arguments": arguments}
        return {"id": f"call_{self.number}", "type": "function", "function": function}

    def whole(self) -> dict[str, Any]:
        says = self.reason != "tool_calls" and "refuse" not in self.model
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self.pieces) if says else None,
            "refusal": "no" if "refuse" in self.model else None,
            "annotations": [],
        }
        if self.reason == "tool_calls":
            message["tool_calls"] = [self.call(self.arguments)]
        choices = [
            {"index": i, "message": message, "logprobs": None, "finish_reason": self.reason}
            for i in range(self.choices)
        ]
        return {**self.base, "object": "chat.completion", "choices": choices, "usage": self.usage}

    def chunk(self, delta: dict[str, Any], index: int, reason: str | None = None) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        padding = {"obfuscation": "x" * 12} if "obf" in self.model else {}
        return None, {**self.base, **padding, "object": "chat.completion.chunk", "choices": [choice]}

    def events(self) -> Any:
        for index in range(self.choices):
            tools = self.reason == "tool_calls"
            yield self.chunk({"role": "assistant", "content": None if tools else ""}, index)
            if "refuse" in self.model:
                yield self.chunk({"refusal": "no"}, index)
            if tools:
                yield self.chunk({"tool_calls": [{"index": 0, **self.call("")}]}, index)
                for part in (self.arguments[:4], self.arguments[4:]):
                    yield self.chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}, index)
            for piece in () if tools else self.pieces:
                yield self.chunk({"content": piece}, index)
            yield self.chunk({}, index, self.reason)
        asked = (self.body.get("stream_options") or {}).get("include_usage")
        if asked and "nousage" not in self.model:
            yield (
                None,
                {**self.base, "object": "chat.completion.chunk", "choices": [], "usage": self.usage},
            )
        if "nodone" not in self.model:
            yield None, "[DONE]"


class _Answer:
    """One answer of the Responses API."""

    def __init__(self, body: dict[str, Any], model: str, number: int) -> None:
        self.number = number
        self.text = "" if "empty" in model else "".join(_words(number, 8))
        status = "incomplete" if "length" in model or "filter" in model else "completed"
        why = "content_filter" if "filter" in model else "max_output_tokens"
        self.part = {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}
        if "refuse" in model:
            self.part = {"type": "refusal", "refusal": "no"}
        self.item: dict[str, Any] = {
            "id": f"msg_{number}",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [self.part],
        }
        if "tools" in model:
            self.item = {
                "id": f"fc_{number}",
                "type": "function_call",
                "status": "completed",
                "call_id": f"call_{number}",
                "name": "get_weather",
                "arguments": json.dumps({"city": f"c{number}"}),
            }
        self.whole: dict[str, Any] = {
            "id": f"resp_{number}",
            "object": "response",
            "created_at": 1700000000 + number,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if status == "incomplete" else None,
            "instructions": None,
            "metadata": body.get("metadata") or {},
            "user": body.get("user"),
            "safety_identifier": body.get("safety_identifier"),
            "prompt_cache_key": body.get("prompt_cache_key"),
            "model": model + "-2025",
            "output": [self.item],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": body.get("tools") or [],
            "top_p": 1.0,
            "store": body.get("store", True),
            "truncation": "disabled",
            "background": body.get("background", False),
            "usage": {
                "input_tokens": 5,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 8,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": 13,
            },
            "text": {"format": {"type": "text"}},
        }

    def events(self) -> list[Event]:
        events: list[Event] = []

        def emit(kind: str, **fields: Any) -> None:
            events.append((kind, {"type": kind, "sequence_number": len(events), **fields}))

        begun = {**self.whole, "status": "in_progress", "output": [], "usage": None}
        emit("response.created", response=begun)
        emit("response.in_progress", response=begun)
        item = self.item
        if item["type"] == "message":
            here = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
            emit(
                "response.output_item.added",
                output_index=0,
                item={**item, "status": "in_progress", "content": []},
            )
            if self.part["type"] == "output_text":
                emit("response.content_part.added", **here, part={**self.part, "text": ""})
                for word in _words(self.number, 8) if self.text else ():
                    emit("response.output_text.delta", **here, delta=word, logprobs=[])
                emit("response.output_text.done", **here, text=self.text, logprobs=[])
                emit("response.content_part.done", **here, part=self.part)
        else:
            at = {"output_index": 0, "item_id": item["id"]}
            said = item["arguments"]
            begun_item = {**item, "status": "in_progress", "arguments": ""}
            emit("response.output_item.added", output_index=0, item=begun_item)
            emit("response.function_call_arguments.delta", **at, delta=said)
            emit("response.function_call_arguments.done", **at, arguments=said, name=item["name"])
        emit("response.output_item.done", output_index=0, item=item)
        emit("response." + self.whole["status"], response=self.whole)
        return events


def _message(model: str, number: int) -> tuple[dict[str, Any], list[Event]]:
    """One answer of Anthropic's, whole and as events."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": f"answer-{number} hi"}]
    reason = next(
        (
            reason
            for word, reason in (("tools", "tool_use"), ("length", "max_tokens"), ("refuse", "refusal"))
            if word in model
        ),
        "end_turn",
    )
    if "tools" in model:
        call = {
            "type": "tool_use",
            "id": f"toolu_{number}",
            "name": "get_weather",
            "input": {"city": f"c{number}"},
        }
        blocks.append(call)
    whole = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3},
    }
    events: list[Event] = []

    def emit(kind: str, **fields: Any) -> None:
        events.append((kind, {"type": kind, **fields}))

    begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": 5, "output_tokens": 1}}
    emit("message_start", message=begun)
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            emit("content_block_start", index=index, content_block={"type": "text", "text": ""})
            emit("ping")
            deltas = [{"type": "text_delta", "text": text} for text in (f"answer-{number}", " hi")]
        else:
            emit("content_block_start", index=index, content_block={**block, "input": {}})
            text = json.dumps(block["input"])
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in (text[:5], text[5:])]
        for delta in deltas:
            emit("content_block_delta", index=index, delta=delta)
        emit("content_block_stop", index=index)
    emit("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": 3})
    emit("message_stop")
    return whole, events
