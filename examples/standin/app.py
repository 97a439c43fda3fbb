"""The stand-in as a web application: its routes around `Behaviour`, `Stats` and the wire."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from json import JSONDecodeError
from random import Random
from typing import Any, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.standin.behaviour import Behaviour, Fault, Stats, digest_of
from examples.standin.shapes import Event, Message, embed, reply, respond
from examples.standin.shapes import Response as Answer
from examples.standin.wire import BadRequestError, Completion, complete, error, model_list

MODELS = ("gpt-4.1-mini", "gpt-4o-mini")
# Providers send both; the openai client reads the milliseconds first.
_RETRY_AFTER = {"retry-after": "1", "retry-after-ms": "250"}

_Answered: TypeAlias = Completion | Answer | Message
_Complete: TypeAlias = Callable[[dict[str, Any], str, Random], _Answered]


class _Provider:
    """The routes, and what they have counted. One event loop runs them all, so the counters need no lock."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._stats = Stats()
        self._attempts: Counter[str] = Counter()
        self._answered: set[str] = set()

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, complete)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, respond)

    async def messages(self, request: Request) -> Response:
        return await self._answer(request, reply)

    async def embeddings(self, request: Request) -> Response:
        try:
            answer = embed(await request.json())
        except (BadRequestError, JSONDecodeError, AttributeError) as problem:
            return JSONResponse(error(400, str(problem), "invalid_request_error"), status_code=400)
        self._stats.calls += 1
        self._stats.prompt_tokens += answer["usage"]["prompt_tokens"]
        return JSONResponse(answer)

    async def _answer(self, request: Request, complete: _Complete) -> Response:
        try:
            body = await request.json()
            digest = digest_of(body)
            self._attempts[digest] += 1
            dice = self._behaviour.dice(digest, self._attempts[digest])
            # The words depend on the request alone: a second attempt must not get another answer.
            answer = complete(body, digest, self._behaviour.dice(digest, 0))
        except (BadRequestError, JSONDecodeError, AttributeError, KeyError) as problem:
            return JSONResponse(error(400, str(problem), "invalid_request_error"), status_code=400)
        if fault := self._behaviour.fault(dice):
            return self._refuse(fault)
        self._count(body, digest, answer if isinstance(answer, Completion) else answer.completion)
        return await self._reply(body, answer, dice)

    async def models(self, request: Request) -> Response:  # noqa: ARG002  (a route is called with its request)
        return JSONResponse(model_list(*MODELS))

    async def stats(self, request: Request) -> Response:  # noqa: ARG002  (as above)
        return JSONResponse(asdict(self._stats))

    def _refuse(self, fault: Fault) -> Response:
        self._stats.errors[fault] = self._stats.errors.get(fault, 0) + 1
        if fault == "429":
            return JSONResponse(
                error(429, "Rate limit reached.", "requests"), status_code=429, headers=_RETRY_AFTER
            )
        return JSONResponse(error(500, "The server had an error.", "server_error"), status_code=500)

    def _count(self, body: dict[str, Any], digest: str, completion: Completion) -> None:
        self._answered.add(digest)
        self._stats.calls += 1
        self._stats.distinct = len(self._answered)
        self._stats.streams += bool(body.get("stream"))
        self._stats.prompt_tokens += completion.prompt_tokens
        self._stats.completion_tokens += completion.completion_tokens

    async def _reply(self, body: dict[str, Any], answer: _Answered, dice: Random) -> Response:
        seconds = self._behaviour.seconds(dice)
        if not body.get("stream"):
            await asyncio.sleep(seconds)
            return JSONResponse(answer.whole())
        if isinstance(answer, Completion):
            include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            chunks = [_event(chunk) for chunk in answer.chunks(include_usage=include_usage)]
            chunks.append("data: [DONE]\n\n")
        else:
            chunks = [_named(event) for event in answer.events()]
        return StreamingResponse(_events(chunks, seconds), media_type="text/event-stream")


def create_app(behaviour: Behaviour) -> Starlette:
    """The stand-in, to be served by any ASGI server or called in tests without one."""
    provider = _Provider(behaviour)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", provider.chat, methods=["POST"]),
            Route("/v1/responses", provider.responses, methods=["POST"]),
            Route("/v1/embeddings", provider.embeddings, methods=["POST"]),
            Route("/v1/messages", provider.messages, methods=["POST"]),
            Route("/v1/models", provider.models),
            Route("/standin/stats", provider.stats),
        ]
    )


def _event(said: dict[str, Any]) -> str:
    return f"data: {json.dumps(said)}\n\n"


def _named(event: Event) -> str:
    return f"event: {event[0]}\n{_event(event[1])}"


async def _events(chunks: list[str], seconds: float) -> AsyncIterator[str]:
    """Server-sent events that take as long as the whole answer would: half the time is the wait for the first."""
    await asyncio.sleep(seconds / 2)
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(seconds / 2 / len(chunks))
