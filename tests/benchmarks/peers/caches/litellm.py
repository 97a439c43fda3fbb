"""LiteLLM's response cache: asked directly, and through ``litellm.completion``."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it fetches a list of prices

import litellm
from litellm.caching.caching import Cache

from tests.benchmarks.payloads import ANSWER, request
from tests.benchmarks.peers.peer import TTL_S, Peer

litellm.suppress_debug_info = True
litellm.telemetry = False


class Canned(litellm.CustomLLM):
    """A provider in this process: answers at once, or when the function of the stampede does."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.compute: Callable[[], Awaitable[str]] | None = None

    def completion(self, *args: Any, **kwargs: Any) -> litellm.ModelResponse:
        self.asked += 1
        return _filled(kwargs["model_response"], ANSWER)

    async def acompletion(self, *args: Any, **kwargs: Any) -> litellm.ModelResponse:
        assert self.compute is not None
        return _filled(kwargs["model_response"], await self.compute())


def _filled(response: litellm.ModelResponse, text: str) -> litellm.ModelResponse:
    response.choices[0].message.content = text
    return response


class Litellm(Peer):
    packages = ("litellm", "redis")
    asked_by = "request"
    note = "SHA-256 of the parameters that it knows; the cache's own call, without what completion does around it"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        parts = urlsplit(url)
        self._cache = Cache(type="redis", host=parts.hostname, port=str(parts.port), ttl=TTL_S)
        self._request = functools.cache(request)
        self._model = Canned()
        litellm.custom_provider_map = [{"provider": "canned", "custom_handler": self._model}]

    def store(self, number: int, text: str) -> None:
        self._cache.add_cache(_filled(litellm.ModelResponse(), text), **self._request(number))

    def hit(self, number: int) -> str | None:
        return _text(self._cache.get_cache(**self._request(number)))

    async def astore(self, number: int, text: str) -> None:
        await self._cache.async_add_cache(_filled(litellm.ModelResponse(), text), **self._request(number))

    async def ahit(self, number: int) -> str | None:
        return _text(await self._cache.async_get_cache(**self._request(number)))

    def framework(self) -> Callable[[int], object]:
        litellm.cache = self._cache

        def call(number: int) -> object:
            before, messages = self._model.asked, self._request(number)["messages"]
            response = litellm.completion(model="canned/m", messages=messages, caching=True)
            return response if self._model.asked == before else None

        return call

    async def aask(self, name: str, compute: Callable[[], Awaitable[str]]) -> object:
        litellm.cache, self._model.compute = self._cache, compute
        messages = [{"role": "user", "content": name}]
        return await litellm.acompletion(model="canned/m", messages=messages, caching=True)


def _text(found: Any) -> str | None:
    return found["choices"][0]["message"]["content"] if found else None
