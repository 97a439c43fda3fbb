"""The stand-in as a web application: three routes around `Behaviour`, `Stats` and the wire."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from json import JSONDecodeError
from random import Random
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from examples.standin.behaviour import Behaviour, Fault, Stats, digest_of
from examples.standin.wire import BadRequestError, Completion, complete, error, model_list

MODELS = ("gpt-4.1-mini", "gpt-4o-mini")
# Providers send both; the openai client reads the milliseconds first.
_RETRY_AFTER = {"retry-after": "1", "retry-after-ms": "250"}


class _Provider:
    """The routes, and what they have counted. One event loop runs them all, so the counters need no lock."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._stats = Stats()
        self._attempts: Counter[str] = Counter()
        self._answered: set[str] = set()

    async def chat(self, request: Request) -> Response:
        try:
            body = await request.json()
            digest = digest_of(body)
            self._attempts[digest] += 1
            dice = self._behaviour.dice(digest, self._attempts[digest])
            # The words depend on the request alone: a second attempt must not get another answer.
            completion = complete(body, digest, self._behaviour.dice(digest, 0))
        except (BadRequestError, JSONDecodeError, AttributeError, KeyError) as problem:
            return JSONResponse(error(400, str(problem), "invalid_request_error"), status_code=400)
        if fault := self._behaviour.fault(dice):
            return self._refuse(fault)
        self._count(body, digest, completion)
        return await self._reply(body, completion, dice)

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

    async def _reply(self, body: dict[str, Any], completion: Completion, dice: Random) -> Response:
        seconds = self._behaviour.seconds(dice)
        if not body.get("stream"):
            await asyncio.sleep(seconds)
            return JSONResponse(completion.whole())
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        chunks = list(completion.chunks(include_usage=include_usage))
        return StreamingResponse(_events(chunks, seconds), media_type="text/event-stream")


def create_app(behaviour: Behaviour) -> Starlette:
    """The stand-in, to be served by any ASGI server or called in tests without one."""
    provider = _Provider(behaviour)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", provider.chat, methods=["POST"]),
            Route("/v1/models", provider.models),
            Route("/standin/stats", provider.stats),
        ]
    )


async def _events(chunks: list[dict[str, Any]], seconds: float) -> AsyncIterator[str]:
    """Server-sent events that take as long as the whole answer would: half the time is the wait for the first."""
    await asyncio.sleep(seconds / 2)
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
        await asyncio.sleep(seconds / 2 / len(chunks))
    yield "data: [DONE]\n\n"
