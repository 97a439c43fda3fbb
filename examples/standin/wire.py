"""The shapes of OpenAI's chat completions: a request read, an answer as one object, as chunks, as an error.

Only what clients look at is here. Reference: platform.openai.com/docs/api-reference/chat
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from examples.standin.answers import answer, fill, last_text, text_of

# The moment at which every answer was made. A clock would make two equal requests get unequal answers.
_CREATED = 1_767_225_600
_CHARACTERS_PER_TOKEN = 4


class BadRequestError(ValueError):
    """A body that a provider would refuse; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer: the message, why it ended, and what it cost in tokens."""

    id: str
    model: str
    message: dict[str, Any]
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int

    @property
    def usage(self) -> dict[str, Any]:
        """Token counts as clients read them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choice = {"index": 0, "message": self.message, "finish_reason": self.finish_reason, "logprobs": None}
        return self._envelope("chat.completion") | {"choices": [choice], "usage": self.usage}

    def chunks(self, *, include_usage: bool) -> Iterator[dict[str, Any]]:
        """The same answer piece by piece: role, text or tool calls, the reason it ended, and the usage if asked for."""
        # A provider that was asked for the usage sends `"usage": null` until the last chunk.
        envelope = self._envelope("chat.completion.chunk") | ({"usage": None} if include_usage else {})
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in re.findall(r"\s*\S+\s*", self.message["content"] or "")]
        for index, call in enumerate(self.message.get("tool_calls", ())):
            deltas.append({"tool_calls": [{"index": index} | call]})
        for delta in deltas:
            yield envelope | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield envelope | {"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish_reason}]}
        if include_usage:
            yield envelope | {"choices": [], "usage": self.usage}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": _CREATED,
            "model": self.model,
            "system_fingerprint": None,
        }


def complete(body: dict[str, Any], digest: str, dice: Random) -> Completion:
    """The stand-in's answer to this request; `BadRequestError` if a provider would refuse it."""
    messages, model = body.get("messages"), body.get("model")
    if not isinstance(model, str) or not isinstance(messages, list) or not messages:
        raise BadRequestError("a request needs a 'model' and at least one of 'messages'")
    message, finish_reason = _message(body, messages, digest, dice)
    spoken = json.dumps(message.get("tool_calls") or message["content"])
    asked = "".join(map(text_of, messages)) + json.dumps(body.get("tools", ""))
    return Completion(
        id=f"chatcmpl-{digest[:24]}",
        model=model,
        message=message,
        finish_reason=finish_reason,
        prompt_tokens=_tokens(asked),
        completion_tokens=_tokens(spoken),
    )


def error(status: int, message: str, kind: str) -> dict[str, Any]:
    """The body of a refusal."""
    return {"error": {"message": message, "type": kind, "param": None, "code": str(status)}}


def model_list(*names: str) -> dict[str, Any]:
    """The answer of ``/v1/models``."""
    models = [{"id": name, "object": "model", "created": _CREATED, "owned_by": "standin"} for name in names]
    return {"object": "list", "data": models}


def _message(
    body: dict[str, Any], messages: list[Any], digest: str, dice: Random
) -> tuple[dict[str, Any], str]:
    question = last_text(messages, "user")
    if _wants_tool(body, messages):
        function = body["tools"][0]["function"]
        arguments = json.dumps(fill(function.get("parameters", {}), question, dice))
        call = {"name": function["name"], "arguments": arguments}
        calls = [{"id": f"call_{digest[:20]}", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}, "tool_calls"
    text, finish_reason = _shaped(body, messages, dice), "stop"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and len(text) > limit * _CHARACTERS_PER_TOKEN:
        text, finish_reason = text[: limit * _CHARACTERS_PER_TOKEN], "length"
    return {"role": "assistant", "content": text, "refusal": None}, finish_reason


def _wants_tool(body: dict[str, Any], messages: list[Any]) -> bool:
    return (
        bool(body.get("tools")) and body.get("tool_choice") != "none" and messages[-1].get("role") != "tool"
    )


def _shaped(body: dict[str, Any], messages: list[Any], dice: Random) -> str:
    wanted = body.get("response_format") or {}
    match wanted.get("type"):
        case "json_schema":
            return json.dumps(fill(wanted["json_schema"]["schema"], last_text(messages, "user"), dice))
        case "json_object":
            return json.dumps({"answer": answer(messages, dice)})
        case _:
            return answer(messages, dice)


def _tokens(text: str) -> int:
    return -(-len(text) // _CHARACTERS_PER_TOKEN)
