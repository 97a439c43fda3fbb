"""
Agents of LangChain over an askonce cache: ``create_agent(model, tools, middleware=[AskonceMiddleware(url)])``.

Middleware is given the call as an object, and sees it fail.  So the key holds all that the model is sent, of all who
ask the same at the same time one asks the model, and a stale answer can stand in for an error.  What the model's own
cache would do is switched off inside, so that nothing is stored twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from langchain.agents.middleware.types import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import ToolMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables.config import var_child_runnable_config
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from askonce import (
    Cache,
    ConfigurationError,
    LeaderFailed,
    NotCached,
    Request,
    Served,
    Source,
    Uncacheable,
    control,
)
from askonce.control import current
from askonce.keys import canonical

from ._agent_calls import ResponseCodec, ResultCodec, is_answer, model_call, tool_call, tool_result
from ._codec import mark
from ._given import cache_of

_FAILED: Final = "leader failed"
#: Sources of a value that this caller's own handler returned.
_OWN: Final = frozenset({Source.COMPUTED, Source.BYPASSED})
_log = logging.getLogger("askonce.langchain")

if TYPE_CHECKING:
    _Middleware = AgentMiddleware[Any, Any, Any]
    _ModelHandler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
    _AsyncModelHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    _ToolResult = ToolMessage | Command[Any]
else:
    _Middleware = AgentMiddleware  # whose parameters differ between LangChain's versions


class AskonceMiddleware(_Middleware):
    """
    Serve an agent's model calls from Redis, and the calls of those tools that are named as safe.

    With a URL, or none, the options are those of ``askonce.Cache``.  A ``Cache`` that is given is used as it is.
    Put it last in ``middleware=[...]``: what stands behind it may change what the model is asked, so that calls then
    go uncached, counted and logged.

    ``safe_tools``: names of tools whose result follows from their arguments alone, and which do nothing else.  A tool
    that is injected state, a store or its runtime is called all the same.  ``usage_on_hit="zero"`` reports no tokens
    for an answer that cost none.
    """

    def __init__(
        self,
        url_or_cache: str | Cache | None = None,
        *,
        safe_tools: Sequence[str] = (),
        usage_on_hit: Literal["keep", "zero"] = "keep",
        **options: Any,
    ) -> None:
        super().__init__()
        if usage_on_hit not in {"keep", "zero"}:
            raise ConfigurationError(f"usage_on_hit={usage_on_hit!r} is not allowed: give 'keep' or 'zero'")
        if isinstance(safe_tools, str) or not all(isinstance(name, str) for name in safe_tools):
            raise ConfigurationError(f"safe_tools={safe_tools!r} is not allowed: give a list of tools' names")
        self._cache = cache_of(url_or_cache, options)
        self._safe = frozenset(safe_tools)
        self._keep_usage = usage_on_hit == "keep"
        self._warned = False

    @property
    def cache(self) -> Cache:
        """The askonce cache behind this one: for ``stats``, ``bump``, ``invalidate_tag``, ``close``."""
        return self._cache

    def wrap_model_call(self, request: ModelRequest[Any], handler: _ModelHandler) -> ModelResponse[Any]:
        """Return the stored answer, or the model's, asked once among all who ask the same at the same time."""
        asked = self._asked(model_call, request, handler)
        if asked is None:
            return handler(request)

        def ask() -> ModelResponse[Any]:
            with control(read=False, write=False):
                return handler(request)

        try:
            served = self._cache.serve(asked, ask, codec=ResponseCodec(request))
        except LeaderFailed:  # elsewhere; this caller is owed the model's answer, or its error
            self._cache.bypass(_FAILED)
            return ask()
        return self._answer(served)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: _AsyncModelHandler
    ) -> ModelResponse[Any]:
        """Do what ``wrap_model_call`` does, without a thread."""
        asked = self._asked(model_call, request, handler)
        if asked is None:
            return await handler(request)
        caller = asyncio.current_task()

        async def ask() -> ModelResponse[Any]:
            if asyncio.current_task() is not caller:
                # A refresh behind the caller: its tokens must not appear in the stream of the run that began it.
                var_child_runnable_config.set(None)
            with control(read=False, write=False):
                return await handler(request)

        try:
            served = await self._cache.aio.serve(asked, ask, codec=ResponseCodec(request))
        except LeaderFailed:  # as above
            self._cache.bypass(_FAILED)
            return await ask()
        return self._answer(served)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], _ToolResult]
    ) -> _ToolResult:
        """Return the stored result of a safe tool, or the tool's."""
        asked = self._asked(tool_call, request) if request.tool_call["name"] in self._safe else None
        if asked is None:
            return handler(request)
        try:
            served = self._cache.serve(asked, lambda: handler(request), codec=ResultCodec(request))
        except LeaderFailed:
            self._cache.bypass(_FAILED)
            return handler(request)
        result = tool_result(served, request)
        return handler(request) if result is None else result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[_ToolResult]]
    ) -> _ToolResult:
        """Do what ``wrap_tool_call`` does, without a thread."""
        asked = self._asked(tool_call, request) if request.tool_call["name"] in self._safe else None
        if asked is None:
            return await handler(request)
        try:
            served = await self._cache.aio.serve(asked, lambda: handler(request), codec=ResultCodec(request))
        except LeaderFailed:
            self._cache.bypass(_FAILED)
            return await handler(request)
        result = tool_result(served, request)
        return await handler(request) if result is None else result

    def _asked(
        self, key: Callable[[Any], Request], request: object, handler: object = None
    ) -> Request | None:
        """Return what is asked; None, counted, if it cannot be told: then the call goes uncached."""
        if getattr(handler, "__qualname__", "").startswith(_NOT_LAST):
            self._warn()
        else:
            try:
                asked = key(request)
                canonical(asked.body)
            except Uncacheable:
                self._cache.bypass("uncacheable")
            except Exception as error:  # noqa: BLE001  code of models and tools runs here; the call itself will tell
                self._cache.bypass("error")
                _log.error("%s was kept from an agent, whose call goes uncached", type(error).__qualname__)
            else:
                return asked
        if current().only_if_cached:  # RFC 9111, 5.2.1.7
            raise NotCached(
                "only_if_cached: this call cannot be told from others, so nothing is stored for it"
            )
        return None

    def _warn(self) -> None:
        self._cache.bypass("not last")
        if not self._warned:
            self._warned = True
            _log.warning(
                "AskonceMiddleware is not last in middleware=[...]: what stands behind it may change what the "
                "model is asked, so nothing is cached"
            )

    def _answer(self, served: Served[ModelResponse[Any]]) -> ModelResponse[Any]:
        if served.source in _OWN:
            return served.value
        response = served.value
        if served.source is Source.COALESCED:  # what is not stored is handed over as the leader's own object
            copies = [message.model_copy(deep=True, update={"id": None}) for message in response.result]
            response = ModelResponse(copies, response.structured_response)
        answers = [ChatGeneration(message=message) for message in response.result if is_answer(message)]
        mark(answers, served.source.value, served.age, keep_usage=self._keep_usage)
        return response


#: What LangChain hands on instead of the model where further middleware stands behind.
_NOT_LAST: Final = ("_chain_model_call_handlers.", "_chain_async_model_call_handlers.")
