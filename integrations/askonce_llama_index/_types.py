"""
Which types may be made from what is stored: a fixed table of exact names.

All of them only hold data.  A prefix such as ``llama_index.`` would admit classes whose constructors open clients and
files.  A type is looked for among what is imported already; nothing is ever imported by a name that was stored.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from typing import Any, Final

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from pydantic import BaseModel

from askonce import ConfigurationError

_BLOCKS: Final = "llama_index.core.base.llms.types"

#: Blocks of a message and their like: written field by field, made without validation, which would change media.
BY_FIELD: Final = frozenset(
    f"{_BLOCKS}:{name}"
    for name in (
        *(
            "TextBlock",
            "ImageBlock",
            "AudioBlock",
            "VideoBlock",
            "DocumentBlock",
            "CachePoint",
            "CacheControl",
        ),
        *("CitableBlock", "CitationBlock", "ThinkingBlock", "ToolCallBlock", "LogProb"),
    )
)

_OPENAI: Final = "openai.types"
COMPLETION: Final = f"{_OPENAI}.chat.chat_completion:ChatCompletion"
_CHUNK: Final = f"{_OPENAI}.chat.chat_completion_chunk"
_CALL: Final = f"{_OPENAI}.chat.chat_completion_message"
_RESPONSES: Final = f"{_OPENAI}.responses"

#: Answers of providers, and parts of them.
_dumped: set[str] = {
    COMPLETION,
    f"{_CHUNK}:ChatCompletionChunk",
    f"{_CHUNK}:ChoiceDeltaToolCall",
    f"{_CALL}_tool_call:ChatCompletionMessageToolCall",
    f"{_CALL}_function_tool_call:ChatCompletionMessageFunctionToolCall",
    f"{_CALL}_custom_tool_call:ChatCompletionMessageCustomToolCall",
    f"{_OPENAI}.completion:Completion",
    f"{_OPENAI}.completion_usage:CompletionUsage",
    f"{_RESPONSES}.response:Response",
    f"{_RESPONSES}.response_completed_event:ResponseCompletedEvent",
    f"{_RESPONSES}.response_usage:ResponseUsage",
    f"{_RESPONSES}.response_function_tool_call:ResponseFunctionToolCall",
    f"{_RESPONSES}.response_output_text:AnnotationFileCitation",
    f"{_RESPONSES}.response_output_text:AnnotationFilePath",
    f"{_RESPONSES}.response_output_text:AnnotationURLCitation",
    "anthropic.types.text_block:TextBlock",
    "anthropic.types.tool_use_block:ToolUseBlock",
    "anthropic.types.thinking_block:ThinkingBlock",
    "anthropic.types.usage:Usage",
    "anthropic.types.message_delta_usage:MessageDeltaUsage",
    "anthropic.types.raw_message_delta_event:Delta",
    "ollama._types:Message",
    "ollama._types:Message.ToolCall",
}

#: Subclasses of LlamaIndex's two answers, with fields of their own.
_answers: set[str] = {
    "llama_index.llms.anthropic.base:AnthropicChatResponse",
    "llama_index.llms.anthropic.base:AnthropicCompletionResponse",
}


def name_of(cls: type[Any]) -> str:
    """Return the exact name under which a class stands in the table, or would."""
    return f"{cls.__module__}:{cls.__qualname__}"


def is_dumped(name: str) -> bool:
    """Return whether a class of this name is in the table of what is dumped and validated."""
    return name in _dumped


def is_answer(name: str) -> bool:
    """Return whether a class of this name is a kind of answer of its own."""
    return name in _answers


def admit_types(types: Iterable[type[Any]]) -> None:
    """Add classes of the user's to the table; raise ConfigurationError for one that is no pydantic class."""
    for cls in types:
        if not isinstance(cls, type) or not issubclass(cls, BaseModel):
            raise ConfigurationError(f"types: {cls!r} is no pydantic class; give classes that only hold data")
        (_answers if issubclass(cls, ChatResponse | CompletionResponse) else _dumped).add(name_of(cls))


def found(name: str) -> type[BaseModel] | None:
    """Return the class of this name if its module is imported and it is a pydantic class."""
    module, _, path = name.partition(":")
    try:
        cls: Any = functools.reduce(getattr, path.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return None
    return cls if isinstance(cls, type) and issubclass(cls, BaseModel) else None
