"""
What an agent asks of a model and of a tool, as the middleware is given it: the key of each, and how an answer is
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain.agents.middleware.types import ModelRequest, ModelResponse
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
    Refused,
    Request,
    Served,
    Source,
    Uncacheable,
    Verbatim,
)

from ._admission import refusal
from ._live import live, sets_limit
from ._message_key import canonical_messages
from ._shape import as_invoked
from ._values import ValuesCodec

_MODEL_CALL: Final = "langchain.agent"
_TOOL_CALL: Final = "langchain.tool"
_VALUES: Final = ValuesCodec()

if TYPE_CHECKING:
    _ToolResult = ToolMessage | Command[Any]


def is_answer(message: BaseMessage) -> bool:
    """Return whether *message* is one of a model's."""
    return isinstance(message, AIMessage)


# --- the key of a model's call ------------------------------------------------------------------------------------


def model_call(request: ModelRequest[Any]) -> Request:
    """Return what the model is asked; raise Uncacheable if that cannot be told."""
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


class ResponseCodec:
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
        answers = [ChatGeneration(message=message) for message in value.result if is_answer(message)]
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
        whole = [next(messages) if is_answer(message) else message for message in value.result]
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


def tool_call(request: ToolCallRequest) -> Request:
    """Return what the tool is asked; raise Uncacheable if that cannot be told."""
    tool = request.tool
    if tool is None:
        raise Uncacheable("tool: it is not registered")
    if parameters_of(tool.tool_call_schema) not in (None, parameters_of(tool.get_input_schema())):
        raise Uncacheable("tool: it is injected more than its arguments")
    return Request(_TOOL_CALL, {"tool": _tool(tool), "arguments": Verbatim(request.tool_call["args"])})


def parameters_of(schema: Any) -> set[str] | None:
    """Return the names in the schema of a tool; None for one that was given as a mapping."""
    if isinstance(schema, dict):
        return None
    return set(getattr(schema, "model_fields", None) or schema.__fields__)  # Pydantic's first version


def tool_result(served: Served[_ToolResult], request: ToolCallRequest) -> _ToolResult | None:
    """Return the result as one of *request*; None if it belongs to another caller."""
    if served.source is not Source.COALESCED:
        return served.value
    if type(served.value) is not ToolMessage:
        return None
    own = {"id": None, "tool_call_id": request.tool_call["id"]}
    return served.value.model_copy(deep=True, update=own)


class ResultCodec:
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
