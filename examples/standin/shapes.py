"""The same answers in the shapes of three more APIs: OpenAI's Responses and embeddings, Anthropic's messages.

Only what clients look at is here. References: platform.openai.com/docs/api-reference/responses and /embeddings,
docs.anthropic.com/en/api/messages
"""

import base64
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from examples.standin.wire import BadRequestError, Completion, complete

_DIMENSIONS = 64
_CHARACTERS_PER_TOKEN = 4
#: An event of a stream: its name, and what it says.
Event = tuple[str, dict[str, Any]]


def respond(body: dict[str, Any], digest: str, dice: Random) -> "Response":
    """The answer to a request of the Responses API; `BadRequestError` if a provider would refuse it."""
    given = body.get("input")
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    asked: dict[str, Any] = {"model": body.get("model"), "messages": messages}
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted["schema"]}}
    completion = complete(asked, digest, dice)
    return Response(replace(completion, id=f"resp_{digest[:24]}"), dict(body.get("metadata") or {}))


class Response:
    """One answer of the Responses API."""

    def __init__(self, completion: Completion, metadata: dict[str, Any]) -> None:
        self.completion, self._metadata = completion, metadata

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        said = self.completion
        return self._envelope("completed") | {
            "output": [self._item("completed", [self._part(said.message["content"])])],
            "usage": {
                "input_tokens": said.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": said.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": said.prompt_tokens + said.completion_tokens,
            },
        }

    def events(self) -> Iterator[Event]:
        """The same answer piece by piece."""
        text = self.completion.message["content"]
        here = {"output_index": 0, "content_index": 0, "item_id": f"msg_{self.completion.id}"}
        begun = self._envelope("in_progress") | {"output": [], "usage": None}
        events: list[Event] = [
            ("response.created", {"response": begun}),
            ("response.output_item.added", {"output_index": 0, "item": self._item("in_progress", [])}),
            ("response.content_part.added", here | {"part": self._part("")}),
        ]
        events += [
            ("response.output_text.delta", here | {"delta": piece, "logprobs": []}) for piece in pieces(text)
        ]
        events += [
            ("response.output_text.done", here | {"text": text, "logprobs": []}),
            ("response.content_part.done", here | {"part": self._part(text)}),
            (
                "response.output_item.done",
                {"output_index": 0, "item": self._item("completed", [self._part(text)])},
            ),
            ("response.completed", {"response": self.whole()}),
        ]
        for number, (kind, said) in enumerate(events):
            yield kind, {"type": kind, "sequence_number": number} | said

    def _envelope(self, status: str) -> dict[str, Any]:
        return {
            "id": self.completion.id,
            "object": "response",
            "created_at": 1_767_225_600,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": self._metadata,
            "model": self.completion.model,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
        }

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"msg_{self.completion.id}"
        return {"id": name, "type": "message", "status": status, "role": "assistant", "content": content}

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reply(body: dict[str, Any], digest: str, dice: Random) -> "Message":
    """The answer to a request of Anthropic's; `BadRequestError` if that provider would refuse it."""
    if not isinstance(body.get("max_tokens"), int):
        raise BadRequestError("a request needs 'max_tokens'")
    asked = {"model": body.get("model"), "messages": body.get("messages"), "max_tokens": body["max_tokens"]}
    return Message(replace(complete(asked, digest, dice), id=f"msg_{digest[:24]}"))


class Message:
    """One answer of Anthropic's."""

    def __init__(self, completion: Completion) -> None:
        self.completion = completion

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        said = self.completion
        return self._envelope(said.completion_tokens) | {
            "content": [{"type": "text", "text": said.message["content"]}],
            "stop_reason": self._reason(),
        }

    def events(self) -> Iterator[Event]:
        """The same answer piece by piece."""
        said = self.completion
        events: list[Event] = [
            ("message_start", {"message": self._envelope(1) | {"content": [], "stop_reason": None}}),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
        ]
        events += [
            ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": piece}})
            for piece in pieces(said.message["content"])
        ]
        events += [
            ("content_block_stop", {"index": 0}),
            (
                "message_delta",
                {
                    "delta": {"stop_reason": self._reason(), "stop_sequence": None},
                    "usage": {"output_tokens": said.completion_tokens},
                },
            ),
            ("message_stop", {}),
        ]
        for kind, what in events:
            yield kind, {"type": kind} | what

    def _reason(self) -> str:
        return "max_tokens" if self.completion.finish_reason == "length" else "end_turn"

    def _envelope(self, tokens: int) -> dict[str, Any]:
        said = self.completion
        usage = {"input_tokens": said.prompt_tokens, "output_tokens": tokens}
        return {
            "id": said.id,
            "type": "message",
            "role": "assistant",
            "model": said.model,
            "stop_sequence": None,
            "usage": usage,
        }


def embed(body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a request for embeddings: equal texts have equal vectors, others do not."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(body.get("model"), str) or not isinstance(texts, list) or not texts:
        raise BadRequestError("a request needs a 'model' and an 'input'")
    data = []
    for index, text in enumerate(texts):
        dice = Random(f"{body['model']} {text}")
        numbers = [dice.uniform(-1, 1) for _ in range(body.get("dimensions") or _DIMENSIONS)]
        packed: Any = numbers
        if body.get("encoding_format") == "base64":
            packed = base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
        data.append({"object": "embedding", "index": index, "embedding": packed})
    tokens = sum(-(-len(str(text)) // _CHARACTERS_PER_TOKEN) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body["model"], "usage": usage}


def pieces(text: str) -> list[str]:
    """A text as it is streamed: word by word."""
    return re.findall(r"\s*\S+\s*", text)
