"""
How an answer is stored, whichever of the four ways of asking it came by.

One entry holds the whole answer: its message or text, ``raw``, log probabilities, what the provider said of its end,
and, if it came as a stream, where its pieces ended.  It is made anew for every reader: callers change what they get.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
)
from pydantic_core import from_json

from askonce import Uncacheable

from ._types import found, is_answer, name_of
from ._values import read, read_raw, write, write_raw

Answer: TypeAlias = ChatResponse | CompletionResponse

#: Where a chunk of a stream has its thinking: on the response, or on the message (Anthropic).
ON_RESPONSE, ON_MESSAGE = "r", "m"
#: What the text of a chunk is: all so far, its own piece (OpenAI's Responses API), nothing before the end (Anthropic).
SO_FAR, OWN, NOTHING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a replayed stream: how many characters, and what was thought, where."""

    length: int
    thought: str | None = None
    place: str = ON_RESPONSE


@dataclass(frozen=True, slots=True)
class Entry:
    """One answer.  ``pieces`` if it came as a stream; ``read`` if it is no caller's own object."""

    answer: Answer
    finish: str | None = None
    pieces: tuple[Piece, ...] | None = None
    text: int = SO_FAR
    read: bool = False


def text_of(answer: Answer) -> str:
    """Return the text of an answer."""
    return (answer.message.content or "") if isinstance(answer, ChatResponse) else answer.text


def dumps(form: object) -> bytes:
    """Return *form* as JSON; lone surrogates stay what they are."""
    return json.dumps(form, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def loads(data: bytes) -> Any:
    """Return what `dumps` was given."""
    try:
        return from_json(data)
    except ValueError:  # lone surrogates, or no JSON
        return json.loads(data.decode("utf-8", "surrogatepass"))


class EntryCodec:
    """Writes and reads whole answers."""

    name = "llama_index"

    def encode(self, value: Entry) -> bytes:
        """Return the entry as bytes; raise Uncacheable if the answer would not come back as it is."""
        answer = value.answer
        kind = ChatResponse if isinstance(answer, ChatResponse) else CompletionResponse
        form: dict[str, Any] = {"f": value.finish, "raw": write_raw(answer.raw, text_of(answer))}
        if isinstance(answer, ChatResponse):
            form["m"] = write_message(answer.message)
        else:
            form["x"] = answer.text
        if answer.additional_kwargs:
            form["kw"] = write(answer.additional_kwargs)
        if answer.logprobs is not None:
            form["lp"] = [[write(token) for token in row] for row in answer.logprobs]
        if answer.delta is not None:
            form["d"] = answer.delta
        if value.pieces is not None:
            form["p"] = [
                [piece.length, piece.thought, piece.place] if piece.thought is not None else piece.length
                for piece in value.pieces
            ]
            form["t"] = value.text
        if type(answer) is not kind:
            form.update(_write_own(answer, kind))
        return dumps(form)

    def decode(self, data: bytes) -> Entry:
        """Return the entry, its answer a new object; raise if `encode` cannot have written *data*."""
        form = loads(data)
        cls: Any = ChatResponse if "m" in form else CompletionResponse
        if "c" in form:
            cls = found(form["c"]) if is_answer(form["c"]) else None
            if cls is None:
                raise ValueError("an answer of a class that is not known here")
        message = read_message(form["m"]) if "m" in form else None
        body = {"text": form["x"]} if message is None else {"message": message}
        answer = cls.model_construct(
            **body,
            raw=read_raw(form["raw"], message.content if message is not None else form["x"]),
            delta=form.get("d"),
            logprobs=_read_logprobs(form.get("lp")),
            additional_kwargs=read(form.get("kw", {})),
            **{name: read(value) for name, value in form.get("own", {}).items()},
        )
        pieces = form.get("p")
        return Entry(
            answer,
            form["f"],
            None
            if pieces is None
            else tuple(Piece(*piece) if type(piece) is list else Piece(piece) for piece in pieces),
            form.get("t", SO_FAR),
            read=True,
        )


CODEC: Final = EntryCodec()


def write_message(message: ChatMessage) -> list[Any]:
    """Return a message in JSON's types; raise Uncacheable if it would not come back as it is."""
    if type(message) is not ChatMessage:
        raise Uncacheable(f"answer: a {name_of(type(message))} would not come back as it is")
    role = getattr(message.role, "value", message.role)
    form = [role, write_blocks(message.blocks)]
    return [*form, write(message.additional_kwargs)] if message.additional_kwargs else form


def read_message(form: list[Any]) -> ChatMessage:
    """Return the message that `write_message` was given."""
    # Not ChatMessage(...): at each validation it appends what stands in additional_kwargs["images"] to its blocks.
    return ChatMessage.model_construct(
        role=MessageRole(form[0]),
        blocks=read_blocks(form[1]),
        additional_kwargs=read(form[2]) if len(form) > 2 else {},
    )


def write_blocks(blocks: list[Any]) -> list[Any]:
    """Return blocks in JSON's types: plain text is itself."""
    return [block.text if type(block) is TextBlock else write(block) for block in blocks]


def read_blocks(form: list[Any]) -> list[Any]:
    """Return the blocks that `write_blocks` was given."""
    return [text_block(block) if type(block) is str else read(block) for block in form]


def text_block(text: str) -> TextBlock:
    """Return a block of text."""
    return TextBlock.model_construct(block_type="text", text=text)


def _write_own(answer: Answer, kind: type[Answer]) -> dict[str, Any]:
    name = name_of(type(answer))
    if not is_answer(name):
        raise Uncacheable(f"answer: a {name} is not known; name it by register(..., types=[...])")
    own = set(type(answer).model_fields) - set(kind.model_fields)
    return {"c": name, "own": {field: write(getattr(answer, field)) for field in sorted(own)}}


def _read_logprobs(rows: list[list[Any]] | None) -> list[list[LogProb]] | None:
    return None if rows is None else [[read(token) for token in row] for row in rows]
