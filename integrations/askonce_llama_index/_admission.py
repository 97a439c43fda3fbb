"""Which answers are worth keeping: whole ones, that the provider did not refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llama_index.core.base.llms.types import ChatResponse, TextBlock

from askonce import Refused

from ._blocks import ThinkingBlock
from ._codec import Entry, text_of

_CUT: Final = frozenset(
    ("length", "max_tokens", "max_output_tokens", "max_tokens_exceeded", "incomplete", "model_length")
)
_REFUSED: Final = frozenset(
    [
        "content_filter",
        "refusal",
        "safety",
        "recitation",
        "guardrail_intervened",
        "content_filtered",
        "blocklist",
        "prohibited_content",
        "spii",
        "failed",
        "cancelled",
        "error",
    ]
)
_LIMITS: Final = ("max_tokens", "max_output_tokens", "max_completion_tokens", "num_predict")

#: Whose streams always end with a reason: one without was cut off, even if it ended in silence.
_SAYS_FINISH: Final = (
    "llama_index.llms.openai.",
    "llama_index.llms.azure_openai.",
    "llama_index.llms.anthropic.",
)


def check(entry: Entry, model: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise Refused for an answer that is empty, refused, filtered, cut short, or not known to be whole."""
    finish = (entry.finish or "").lower()
    if finish in _REFUSED:
        raise Refused("refused")
    if finish in _CUT and not _limit_set(model, kwargs):
        raise Refused("cut")
    if entry.pieces is not None and not finish and _says_finish(type(model)):
        raise Refused("unfinished")
    if not _has_content(entry):
        raise Refused("empty")


def _limit_set(model: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether the caller chose the limit: then it is part of what was asked."""
    if any(name in kwargs for name in _LIMITS):
        return True
    fields = type(model).model_fields
    return any(
        name in fields and getattr(model, name, None) not in {None, fields[name].default} for name in _LIMITS
    )


def _says_finish(cls: type[Any]) -> bool:
    return any(base.__module__.startswith(_SAYS_FINISH) for base in cls.__mro__)


def _has_content(entry: Entry) -> bool:
    answer = entry.answer
    if text_of(answer).strip():
        return True
    return isinstance(answer, ChatResponse) and (
        any(type(block) not in {TextBlock, ThinkingBlock} for block in answer.message.blocks)
        or bool(answer.message.additional_kwargs.get("tool_calls"))
    )
