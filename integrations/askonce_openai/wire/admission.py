"""
Which answers are worth keeping, judged in their JSON form.

An answer that is empty, refused, filtered, broken or cut short is given to the caller once; stored, it would be given
to everybody until it expires.  One cut short by a limit that the caller set is what was asked for.
"""

from __future__ import annotations

from typing import Any, Final

from .assembled import Json

_FINISHED: Final = frozenset({"stop", "tool_calls", "function_call", "eos"})
_STOPPED: Final = frozenset({"end_turn", "tool_use", "stop_sequence", "max_tokens"})


def refusal(api: str, body: Json, answer: object) -> str | None:
    """
    Return in few words why *answer*, to the request *body*, is not stored; None if it is.

    Raises TypeError, AttributeError and their like for what is no answer of this API.
    """
    if not isinstance(answer, dict) or answer.get("error"):
        return "error"
    match api:
        case "chat" | "completions":
            return _choices(body, answer)
        case "responses":
            return _response(body, answer)
        case "messages":
            return _message(answer)
        case _:
            return _embeddings(body, answer)


def _choices(body: Json, answer: Json) -> str | None:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) < expected(body):
        return "incomplete"
    limited = bool(body.get("max_tokens") or body.get("max_completion_tokens"))
    return next((why for choice in choices if (why := _choice(choice, limited=limited))), None)


def _choice(choice: Json, *, limited: bool) -> str | None:
    reason, message = choice.get("finish_reason"), choice.get("message") or {}
    if reason is None:
        return "incomplete"
    if reason == "length":
        if not limited:
            return "length"
    elif reason not in _FINISHED:
        return f"finish-reason {reason}"
    if choice.get("error"):
        return "error"
    if message.get("refusal"):
        return "refused"
    texts = message.get("content"), choice.get("text")
    if any(map(_says, texts)) or message.get("tool_calls") or message.get("function_call"):
        return None
    return "empty"


def expected(body: Json) -> int:
    """Return how many choices the request *body* asks for: ``n`` for each prompt."""
    each, prompt = int(body.get("n") or 1), body.get("prompt")
    several = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    return each * len(prompt) if several else each  # type: ignore[arg-type]  # a list


def _response(body: Json, answer: Json) -> str | None:
    status = answer.get("status")
    if status == "incomplete":
        why = (answer.get("incomplete_details") or {}).get("reason")
        if why != "max_output_tokens" or not body.get("max_output_tokens"):
            return "length" if why == "max_output_tokens" else f"incomplete {why}"
    elif status != "completed":
        return f"status {status}"
    said = False
    for item in answer.get("output") or ():
        said = said or item.get("type") in {"function_call", "custom_tool_call"}
        for part in item.get("content") or ():
            if part.get("type") == "refusal":
                return "refused"
            said = said or (part.get("type") == "output_text" and _says(part.get("text")))
    return None if said else "empty"


def _message(answer: Json) -> str | None:
    # max_tokens is required in this API: that limit is always the caller's.
    if answer.get("stop_reason") not in _STOPPED:
        return f"stop-reason {answer.get('stop_reason')}"
    for block in answer.get("content") or ():
        if block.get("type") == "tool_use" or _says(block.get("text")):
            return None
    return "empty"


def _embeddings(body: Json, answer: Json) -> str | None:
    vectors, given = answer.get("data"), body["input"]
    single = isinstance(given, str) or (isinstance(given, list) and isinstance(given[0], int))
    if not isinstance(vectors, list) or len(vectors) != (1 if single else len(given)):
        return "incomplete"
    return None if all(vector.get("embedding") for vector in vectors) else "empty"


def _says(content: Any) -> bool:
    return bool(content.strip()) if isinstance(content, str) else bool(content)
