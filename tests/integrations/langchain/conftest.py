"""The real OpenAI clients of langchain-openai over a canned transport: no network, every request kept."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest
from langchain_core.caches import BaseCache
from langchain_core.outputs import Generation
from langchain_openai import ChatOpenAI, OpenAI
from tests.servers import one_server  # noqa: F401  a fixture

from askonce_langchain import uninstall

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class Strings(BaseCache):
    """A cache that never hits and keeps the two strings that LangChain gives it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: list[Sequence[Generation]] = []

    def lookup(self, prompt: str, llm_string: str) -> None:
        self.asked.append((prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Generation]) -> None:
        self.answers.append(return_val)

    def clear(self, **kwargs: Any) -> None:
        self.asked.clear()


class Provider:
    """
    Answers as OpenAI does, each answer with a number of its own; ``respond`` may be replaced.

    The requests with the numbers in ``failing`` are answered with an error.  ``gate`` and ``agate`` are called, the
    one from threads, the other awaited, with the number of a request before it is answered.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.respond: Callable[[dict[str, Any], int], dict[str, Any]] = self._answer
        self.failing: set[int] = set()
        self.gate: Callable[[int], object] = lambda _: None
        self.agate: Callable[[int], Awaitable[object]] | None = None

    @property
    def calls(self) -> int:
        return len(self.requests)

    def chat(self, cache: BaseCache | bool | None = None, **kwargs: Any) -> ChatOpenAI:
        return ChatOpenAI(**{"model": "gpt-x", **self._common(), **kwargs}, cache=cache)

    def completion(self, cache: BaseCache | bool | None = None, **kwargs: Any) -> OpenAI:
        return OpenAI(**{"model": "gpt-instruct", **self._common(), **kwargs}, cache=cache)

    def strings(self, question: Any = "q", *, completion: bool = False, **kwargs: Any) -> tuple[str, str]:
        """What LangChain tells a cache about *question*; ``call`` holds arguments of the call."""
        cache, call = Strings(), kwargs.pop("call", {})
        model = (self.completion if completion else self.chat)(cache, **kwargs)
        model.invoke(question, **call)
        return cache.asked[0]

    def _common(self) -> dict[str, Any]:
        return {
            "api_key": "sk-SECRET",
            "max_retries": 0,
            "http_client": httpx.Client(transport=httpx.MockTransport(self._handle)),
            "http_async_client": httpx.AsyncClient(transport=httpx.MockTransport(self._ahandle)),
        }

    def _handle(self, request: httpx.Request) -> httpx.Response:
        body, number = self._received(request)
        self.gate(number)
        return self._response(request, body, number)

    async def _ahandle(self, request: httpx.Request) -> httpx.Response:
        body, number = self._received(request)
        if self.agate is not None:
            await self.agate(number)
        return self._response(request, body, number)

    def _received(self, request: httpx.Request) -> tuple[dict[str, Any], int]:
        body = json.loads(request.content)
        self.requests.append(body)
        return body, self.calls

    def _response(self, request: httpx.Request, body: dict[str, Any], number: int) -> httpx.Response:
        if number in self.failing:
            return httpx.Response(500, json={"error": {"message": "provider failure"}})
        if request.url.path.endswith("/responses"):
            whole = _response(body, number)
            return _events(_response_events(whole)) if body.get("stream") else httpx.Response(200, json=whole)
        if body.get("stream"):
            return _events(_texts(body, number) if "prompt" in body else _chunks(body, number))
        return httpx.Response(200, json=self.respond(body, number))

    def _answer(self, body: dict[str, Any], number: int) -> dict[str, Any]:
        several = range(body.get("n") or 1)
        whole = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
        }
        if "prompt" in body:
            prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
            choices = [
                {"text": f"text {number}-{index}", "index": index, "finish_reason": "stop", "logprobs": None}
                for index in range(len(prompts) * len(several))
            ]
            return {**whole, "object": "text_completion", "choices": choices, "usage": USAGE}
        choices = [
            {
                "index": index,
                "message": _message(body, number, index),
                "finish_reason": "stop",
                "logprobs": None,
            }
            for index in several
        ]
        return {**whole, "choices": choices, "usage": USAGE}


def _message(body: dict[str, Any], number: int, index: int) -> dict[str, Any]:
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        return {"role": "assistant", "content": None, "tool_calls": [_tool_call(body, number)]}
    if (body.get("response_format") or {}).get("type") == "json_schema":
        return {"role": "assistant", "content": '{"when": "2025-01-01T00:00:00Z", "cityName": "Rome"}'}
    return {"role": "assistant", "content": f"answer {number}-{index}"}


def _tool_call(body: dict[str, Any], number: int) -> dict[str, Any]:
    function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"a": 1}'}
    return {"id": f"call_{number}", "type": "function", "function": function}


def _chunks(body: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        whole = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1}
        return {**whole, "model": body["model"], "choices": choices}

    yield chunk({"role": "assistant", "content": ""})
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        yield chunk({"tool_calls": [{**_tool_call(body, number), "index": 0}]})
        yield chunk({}, "tool_calls")
    else:
        first, space, rest = _message(body, number, 0)["content"].partition(" ")
        for text in (first + space, rest):
            yield chunk({"content": text})
        yield chunk({}, "stop")


def _texts(body: dict[str, Any], number: int) -> Iterator[dict[str, Any]]:
    for text, finish in (("text ", None), (f"{number}-0", None), ("", "stop")):
        choices = [{"text": text, "index": 0, "finish_reason": finish, "logprobs": None}]
        whole = {"id": f"cmpl-{number}", "object": "text_completion", "created": 1}
        yield {**whole, "model": body["model"], "choices": choices}


def _response(body: dict[str, Any], number: int) -> dict[str, Any]:
    """An answer of the Responses API: a thought, then a message, or the call of a tool."""
    thought = {
        "id": f"rs_{number}",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "think"}],
        "encrypted_content": "xyz",
    }
    text = {"type": "output_text", "text": f"answer {number}", "annotations": []}
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [text],
    }
    if body.get("tools") and body["input"][-1].get("type") != "function_call_output":
        message = {
            "id": f"fc_{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{number}",
            "name": body["tools"][0]["name"],
            "arguments": '{"a": 1}',
        }
    return {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "completed",
        "output": [thought, message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 10,
            "output_tokens": 5,
            "total_tokens": 15,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 2},
        },
    }


def _response_events(whole: dict[str, Any]) -> Iterator[dict[str, Any]]:
    thought, answer = whole["output"]
    to = {"item_id": answer["id"], "output_index": 1}
    if answer["type"] == "message":
        text = answer["content"][0]
        part = {**to, "content_index": 0}
        parts = [
            {"type": "response.content_part.added", **part, "part": {**text, "text": ""}},
            {"type": "response.output_text.delta", **part, "delta": text["text"], "logprobs": []},
        ]
        begun = {**answer, "content": []}
    else:
        arguments = answer["arguments"]
        parts = [
            {"type": "response.function_call_arguments.delta", **to, "delta": arguments},
            {"type": "response.function_call_arguments.done", **to, "arguments": arguments, "name": answer["name"]},
        ]  # fmt: skip
        begun = {**answer, "arguments": ""}
    events: list[dict[str, Any]] = [
        {
            "type": "response.created",
            "response": {**whole, "status": "in_progress", "output": [], "usage": None},
        },
        {"type": "response.output_item.added", "output_index": 0, "item": {**thought, "summary": []}},
        {"type": "response.output_item.done", "output_index": 0, "item": thought},
        {"type": "response.output_item.added", "output_index": 1, "item": begun},
        *parts,
        {"type": "response.output_item.done", "output_index": 1, "item": answer},
        {"type": "response.completed", "response": whole},
    ]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _events(events: Iterator[dict[str, Any]]) -> httpx.Response:
    lines = [b"data: " + json.dumps(event).encode() for event in events]
    content = b"\n\n".join([*lines, b"data: [DONE]", b""])
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    """Leave LangChain as it was found."""
    yield
    uninstall()
