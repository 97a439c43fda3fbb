"""
Which answers are worth keeping.

An answer that is empty, refused, filtered, broken or cut short is given to the caller once; stored, it would be
given to everybody until it expires.  One such answer among several refuses them all: LangChain asks for all of them
together.  The rules read what the providers report, each in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, Generation

_LIMIT_REACHED: Final = "truncated"

# What a provider's reason for ending an answer contains, in any case -> why such an answer is not kept.
_REASONS: Final = (
    ("filter", "filtered"),
    ("safety", "filtered"),
    ("recitation", "filtered"),
    ("blocklist", "filtered"),
    ("prohibited", "filtered"),  # Google: PROHIBITED_CONTENT
    ("spii", "filtered"),  # Google: personal data
    ("guardrail", "filtered"),  # Bedrock: guardrail_intervened
    ("refusal", "refused"),
    ("error", "failed"),
    ("malformed", "failed"),  # Google: MALFORMED_FUNCTION_CALL
    ("pause", "incomplete"),  # Anthropic: pause_turn
    ("context_window", "outgrown"),  # Anthropic: model_context_window_exceeded
    ("length", _LIMIT_REACHED),
    ("max_tokens", _LIMIT_REACHED),
    ("max_output_tokens", _LIMIT_REACHED),  # OpenAI Responses: incomplete_details
)
_REPORTED_AS: Final = ("finish_reason", "stop_reason", "done_reason", "stopReason")
# Thoughts alone answer nothing.
_THOUGHTS: Final = frozenset({"reasoning", "reasoning_content", "redacted_thinking", "thinking"})
_NO_ANSWER: Final = _THOUGHTS | {"parsed", "refusal"}


def refusal(generations: Sequence[Generation], *, limited: bool = False) -> str | None:
    """
    Return why *generations* are not stored, in one word; None if they are.

    *limited*: the caller has set a limit for the length, so that an answer cut off there is what was asked for.
    """
    if not generations:
        return "empty"
    for generation in generations:
        if why := _refusal(generation, limited=limited):
            return why
    return None


def _refusal(generation: Generation, *, limited: bool) -> str | None:
    if not isinstance(generation, ChatGeneration):
        why = _ended_badly(generation.generation_info)
        says_something = bool(generation.text.strip())
    else:
        message = generation.message
        if isinstance(message, AIMessage) and message.invalid_tool_calls:
            return "invalid_tool_calls"
        if message.additional_kwargs.get("refusal") or any(map(_is_refusal, _blocks(message))):
            return "refused"
        why = _ended_badly(generation.generation_info) or _ended_badly(message.response_metadata)
        says_something = _says_something(message)
    if why is not None and not (limited and why == _LIMIT_REACHED):
        return why
    return None if says_something else "empty"


def _ended_badly(report: Mapping[str, Any] | None) -> str | None:
    if not report:
        return None
    for name in _REPORTED_AS:
        if (reason := report.get(name)) is not None and (why := _meaning(str(reason))):
            return why
    status = report.get("status")
    if not status or str(status).lower() == "completed":
        return None
    details = report.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, Mapping) else None
    return _meaning(str(reason or "")) or "incomplete"


@lru_cache(maxsize=128)  # the same few words at each answer
def _meaning(said: str) -> str | None:
    said = said.lower()
    return next((why for word, why in _REASONS if word in said), None)


def _says_something(message: BaseMessage) -> bool:
    if isinstance(message.content, str) and message.content.strip():
        return True
    if isinstance(message, AIMessage) and message.tool_calls:
        return True
    if any(map(_is_answer, _blocks(message))):
        return True
    # Older forms of an answer: function_call, audio, tool_outputs.
    return any(value for name, value in message.additional_kwargs.items() if name not in _NO_ANSWER)


def _blocks(message: BaseMessage) -> Sequence[Mapping[str, Any]]:
    if not isinstance(message.content, list):
        return ()
    return [{"type": "text", "text": block} if isinstance(block, str) else block for block in message.content]


def _is_answer(block: Mapping[str, Any]) -> bool:
    if block.get("type") in _THOUGHTS:
        return False
    return bool(block["text"].strip()) if isinstance(block.get("text"), str) else True


def _is_refusal(block: Mapping[str, Any]) -> bool:
    held = block.get("value") if block.get("type") == "non_standard" else None  # LangChain's v1 form
    return block.get("type") == "refusal" or (isinstance(held, Mapping) and "refusal" in held)
