"""Which answers are kept."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation

from askonce_langchain._admission import refusal

CALL = {"name": "t", "args": {}, "id": "1"}
BLOCK = {"type": "text", "text": "x"}


def ai(content: Any = "x", info: dict[str, Any] | None = None, **fields: Any) -> Generation:
    return ChatGeneration(message=AIMessage(content, **fields), generation_info=info)


def ended(reason: object, name: str = "finish_reason") -> Generation:
    return ai(response_metadata={name: reason})


KEPT = {
    "text": Generation(text="x"),
    "text and a reason": Generation(text="x", generation_info={"finish_reason": "stop", "logprobs": None}),
    "chat": ai(),
    "chat chunk": ChatGenerationChunk(message=AIMessageChunk(content="x")),
    "another speaker": ChatGeneration(message=ChatMessage(role="r", content="x")),
    "tool call": ai("", tool_calls=[CALL]),
    "blocks": ai([BLOCK]),
    "text as a block": ai(["x"]),
    "thought and text": ai([{"type": "reasoning", "summary": []}, BLOCK]),
    "image": ai([{"type": "image", "base64": "xx"}]),
    "audio": ai("", additional_kwargs={"audio": {"id": "1"}}),
    "function call": ai("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}),
    "no refusal": ai(additional_kwargs={"refusal": None}),
    "completed": ai(response_metadata={"status": "completed", "incomplete_details": None}),
    **{
        f"ended by {reason}": ended(reason)
        for reason in (
            "stop",
            "STOP",
            "tool_calls",
            "end_turn",
            "stop_sequence",
            "tool_use",
            "COMPLETE",
            "eos_token",
            None,
        )
    },
}

REFUSED = {
    "empty": [
        Generation(text=""),
        Generation(text=" \n"),
        ai(""),
        ai([]),
        ai([{"type": "text", "text": ""}]),
        ai([{"type": "reasoning", "summary": []}, {"type": "thinking", "thinking": "x"}]),
        ai("", additional_kwargs={"refusal": None, "reasoning_content": "x"}),
    ],
    "filtered": [
        *map(
            ended,
            [
                "content_filter",
                "SAFETY",
                "RECITATION",
                "BLOCKLIST",
                "PROHIBITED_CONTENT",
                "guardrail_intervened",
            ],
        ),
        Generation(text="x", generation_info={"finish_reason": "content_filter"}),
        ai(info={"finish_reason": "content_filter"}),
        ended("content_filtered", "stopReason"),
        ai(response_metadata={"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
    ],
    "outgrown": [ended("model_context_window_exceeded")],
    "truncated": [
        *map(ended, ["length", "LENGTH", "max_tokens", "MAX_TOKENS"]),
        ended("max_tokens", "stop_reason"),
        ended("length", "done_reason"),
        Generation(text="x", generation_info={"finish_reason": "length"}),
        ai(response_metadata={"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}),
    ],
    "refused": [
        ended("refusal", "stop_reason"),
        ai("", additional_kwargs={"refusal": "no"}),
        ai("x", additional_kwargs={"refusal": "no"}),
        ai([{"type": "refusal", "refusal": "no"}]),
        ai([{"type": "non_standard", "value": {"type": "refusal", "refusal": "no"}}]),
    ],
    "failed": [*map(ended, ["error", "ERROR_TOXIC", "MALFORMED_FUNCTION_CALL"])],
    "incomplete": [
        ended("pause_turn", "stop_reason"),
        *(
            ai(response_metadata={"status": status})
            for status in ("incomplete", "in_progress", "failed", "cancelled")
        ),
    ],
    "invalid_tool_calls": [
        ai("x", tool_calls=[CALL], invalid_tool_calls=[{"name": "t", "args": "{", "id": "1", "error": "e"}])
    ],
}


@pytest.mark.parametrize("generation", KEPT.values(), ids=KEPT)
def test_is_kept(generation: Generation) -> None:
    """A whole answer is stored."""
    assert refusal([generation]) is None


@pytest.mark.parametrize(
    ("why", "generation"), [(why, generation) for why, several in REFUSED.items() for generation in several]
)
def test_is_refused(why: str, generation: Generation) -> None:
    """An answer that nobody wants twice is not stored, and the reason is named."""
    assert refusal([generation]) == why


def test_no_generation_is_empty() -> None:
    """LangChain would take an empty list for a hit."""
    assert refusal([]) == "empty"


def test_one_refuses_all() -> None:
    """Generations are asked for together: one bad one, wherever it stands, and none is stored."""
    assert refusal([ai(), ended("length"), ai()]) == "truncated"
    assert refusal([ai(), ai()]) is None
