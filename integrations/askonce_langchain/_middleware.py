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
from langchain.agents.structured_output import (
    AutoStrategy,
    OutputToolBinding,
    ProviderStrategy,
    ProviderStrategyBinding,
    ToolStrategy,
)
from langchain_core.language_models import BaseChatModel
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from askonce import (
    Cache,
    ConfigurationError,
    LeaderFailed,
    NotCached,
    Refused,
    Request,
    Served,
    Source,
    Uncacheable,
    Verbatim,
    control,
)
from askonce.control import current
from askonce.keys import canonical

from ._admission import refusal
from ._codec import mark
from ._given import cache_of
from ._live import live, sets_limit
from ._message_key import canonical_messages
from ._node_cache import ValuesCodec
from ._shape import as_invoked

_MODEL_CALL: Final = "langchain.agent"
_TOOL_CALL: Final = "langchain.tool"
_VALUES: Final = ValuesCodec()
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
        asked = self._asked(_model_call, request, handler)
        if asked is None:
            return handler(request)

        def ask() -> ModelResponse[Any]:
            with control(read=False, write=False):
                return handler(request)

        try:
            served = self._cache.serve(asked, ask, codec=_ResponseCodec(request))
        except LeaderFailed:  # elsewhere; this caller is owed the model's answer, or its error
            self._cache.bypass(_FAILED)
            return ask()
        return self._answer(served)

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: _AsyncModelHandler
    ) -> ModelResponse[Any]:
        """Do what ``wrap_model_call`` does, without a thread."""
        asked = self._asked(_model_call, request, handler)
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
            served = await self._cache.aio.serve(asked, ask, codec=_ResponseCodec(request))
        except LeaderFailed:  # as above
            self._cache.bypass(_FAILED)
            return await ask()
        return self._answer(served)

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], _ToolResult]
    ) -> _ToolResult:
        """Return the stored result of a safe tool, or the tool's."""
        asked = self._asked(_tool_call, request) if request.tool_call["name"] in self._safe else None
        if asked is None:
            return handler(request)
        try:
            served = self._cache.serve(asked, lambda: handler(request), codec=_ResultCodec(request))
        except LeaderFailed:
            self._cache.bypass(_FAILED)
            return handler(request)
        result = _result(served, request)
        return handler(request) if result is None else result

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[_ToolResult]]
    ) -> _ToolResult:
        """Do what ``wrap_tool_call`` does, without a thread."""
        asked = self._asked(_tool_call, request) if request.tool_call["name"] in self._safe else None
        if asked is None:
            return await handler(request)
        try:
            served = await self._cache.aio.serve(asked, lambda: handler(request), codec=_ResultCodec(request))
        except LeaderFailed:
            self._cache.bypass(_FAILED)
            return await handler(request)
        result = _result(served, request)
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
        answers = [ChatGeneration(message=message) for message in response.result if _is_answer(message)]
        mark(answers, served.source.value, served.age, keep_usage=self._keep_usage)
        return response


#: What LangChain hands on instead of the model where further middleware stands behind.
_NOT_LAST: Final = ("_chain_model_call_handlers.", "_chain_async_model_call_handlers.")


def _is_answer(message: BaseMessage) -> bool:
    return isinstance(message, AIMessage)


# --- the key of a model's call ------------------------------------------------------------------------------------


def _model_call(request: ModelRequest[Any]) -> Request:
    if not isinstance(request.model, BaseChatModel):
        kind = type(request.model).__qualname__
        raise Uncacheable(f"model: {kind} decides at the call what it asks; give a chat model")
    system = [] if request.system_message is None else [request.system_message]
    return Request(
        _MODEL_CALL,
        {
            "model": live(request.model, None, request.model_settings),
            "messages": canonical_messages([*system, *request.messages]),
            "tools": [_tool(tool) for tool in request.tools],
            "tool_choice": Verbatim(request.tool_choice),
            "response_format": _format(request.response_format),
            "agent": _agent_name(),
        },
    )


def _tool(tool: BaseTool | dict[str, Any]) -> object:
    if isinstance(tool, dict):
        return Verbatim(tool)
    extras = getattr(tool, "extras", None)  # what a provider is sent beside the schema
    return {"tool": Verbatim(convert_to_openai_tool(tool)), "extras": Verbatim(extras)}


def _format(wanted: object) -> object:
    if wanted is None:
        return None
    specs = [
        {
            "name": spec.name,
            "description": spec.description,
            "strict": spec.strict,
            "schema": Verbatim(spec.json_schema),
        }
        for spec in _specs(wanted)
    ]
    said = wanted.tool_message_content if isinstance(wanted, ToolStrategy) else None
    return {"strategy": type(_strategy(wanted)).__name__, "schemas": specs, "tool_message": said}


def _strategy(wanted: Any) -> Any:
    """Return *wanted* as create_agent takes it: a schema alone leaves the way to the model's abilities."""
    return (
        wanted if isinstance(wanted, AutoStrategy | ProviderStrategy | ToolStrategy) else AutoStrategy(wanted)
    )


def _specs(wanted: object) -> Sequence[Any]:
    strategy = _strategy(wanted)
    if isinstance(strategy, ProviderStrategy):
        return [strategy.schema_spec]
    return (strategy if isinstance(strategy, ToolStrategy) else ToolStrategy(strategy.schema)).schema_specs


def _agent_name() -> object:
    """Return the agent's name, which create_agent writes on its answers."""
    config = var_child_runnable_config.get() or {}
    return (config.get("metadata") or {}).get("lc_agent_name")


# --- what is stored of a model's answer ---------------------------------------------------------------------------


class _ResponseCodec:
    """
    Writes and reads a model's response: its messages, and whether a structured response was made from them.

    That is made anew on a hit, by the caller's own schema, as create_agent makes it.
    """

    name = "langchain.agent"

    def __init__(self, request: ModelRequest[Any]) -> None:
        self._request = request

    def encode(self, value: ModelResponse[Any]) -> bytes:
        asked = self._request
        if type(value) is not ModelResponse:
            raise Uncacheable(f"answer: {type(value).__qualname__} is no ModelResponse")
        answers = [ChatGeneration(message=message) for message in value.result if _is_answer(message)]
        if why := refusal(answers, limited=sets_limit(asked.model, asked.model_settings)):
            raise Refused(why)
        structured = value.structured_response is not None
        # Without a structured response, a further message asks the model to try again.
        if not structured and len(value.result) > len(answers):
            raise Refused("invalid")
        if structured and not self._structured(value.result) == value.structured_response:
            raise Uncacheable("answer: the structured response does not follow from the messages")
        plain = as_invoked(answers, dumps(asked.model))
        if plain is None:
            raise Refused("shape")
        messages = iter(
            [generation.message for generation in plain if isinstance(generation, ChatGeneration)]
        )
        whole = [next(messages) if _is_answer(message) else message for message in value.result]
        return _VALUES.encode([whole, structured])

    def decode(self, data: bytes) -> ModelResponse[Any]:
        messages, structured = _VALUES.decode(data)
        return ModelResponse(messages, self._structured(messages) if structured else None)

    def _structured(self, messages: Sequence[BaseMessage]) -> object:
        strategy, answer = _strategy(self._request.response_format), messages[0]
        if not isinstance(answer, AIMessage):
            raise TypeError("no answer")
        if not isinstance(strategy, ProviderStrategy):
            bindings = {spec.name: OutputToolBinding.from_schema_spec(spec) for spec in _specs(strategy)}
            for call in answer.tool_calls:
                if call["name"] in bindings:
                    return bindings[call["name"]].parse(call["args"])
        provider = strategy if isinstance(strategy, ProviderStrategy) else ProviderStrategy(strategy.schema)
        return ProviderStrategyBinding.from_schema_spec(provider.schema_spec).parse(answer)


# --- tools --------------------------------------------------------------------------------------------------------


def _tool_call(request: ToolCallRequest) -> Request:
    tool = request.tool
    if tool is None:
        raise Uncacheable("tool: it is not registered")
    if _parameters(tool.tool_call_schema) not in (None, _parameters(tool.get_input_schema())):
        raise Uncacheable("tool: it is injected more than its arguments")
    return Request(_TOOL_CALL, {"tool": _tool(tool), "arguments": Verbatim(request.tool_call["args"])})


def _parameters(schema: Any) -> set[str] | None:
    """Return the names in the schema of a tool; None for one that was given as a mapping."""
    if isinstance(schema, dict):
        return None
    return set(getattr(schema, "model_fields", None) or schema.__fields__)  # Pydantic's first version


def _result(served: Served[_ToolResult], request: ToolCallRequest) -> _ToolResult | None:
    """Return the result as one of *request*; None if it belongs to another caller."""
    if served.source is not Source.COALESCED:
        return served.value
    if type(served.value) is not ToolMessage:
        return None
    own = {"id": None, "tool_call_id": request.tool_call["id"]}
    return served.value.model_copy(deep=True, update=own)


class _ResultCodec:
    """Writes and reads the result of a tool, which comes back as that of the caller's own tool call."""

    name = "langchain.tool"

    def __init__(self, request: ToolCallRequest) -> None:
        self._call_id = request.tool_call["id"]

    def encode(self, value: _ToolResult) -> bytes:
        if type(value) is not ToolMessage:
            raise Uncacheable(f"result: {type(value).__qualname__} is more than a ToolMessage")
        if value.status != "success":
            raise Refused("failed")
        return _VALUES.encode(value)

    def decode(self, data: bytes) -> _ToolResult:
        message = _VALUES.decode(data)
        if type(message) is not ToolMessage:
            raise TypeError("no ToolMessage")
        message.tool_call_id = self._call_id or ""
        return message
