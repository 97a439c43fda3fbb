"""
How LangChain's answers are written and read: MessagePack rows, rebuilt by a fixed table of classes.

A row is ``[class, message class or None, fields or text, generation_info]``.  Nothing is ever loaded by a name
found in the data, as ``langchain_core.load.loads`` does (CVE-2025-68664).  What would not come back as it was is
refused by ``encode``; two exceptions, as everywhere in LangChain: a tuple comes back as a list, and the ``parsed``
object of a structured output as the mapping from which LangChain builds it again.

Message ids are left out: LangGraph's ``add_messages`` merges by id, so that an id that comes back twice costs a
thread one of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import ormsgpack
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ChatMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk
from pydantic import BaseModel

from askonce.errors import Uncacheable

from ._plain import TOOL_CALL, plain_answer

# By name, and by exact class: `GenerationChunk().type` is "Generation", and a subclass has fields of its own.
_GENERATIONS: Final[dict[str, type[Generation]]] = {
    cls.__name__: cls for cls in (Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
}
_MESSAGES: Final[dict[str, type[BaseMessage]]] = {
    cls.__name__: cls for cls in (AIMessage, AIMessageChunk, ChatMessage)
}
_OF_GENERATIONS: Final[dict[type, str]] = {cls: name for name, cls in _GENERATIONS.items()}
_OF_MESSAGES: Final[dict[type, str]] = {cls: name for name, cls in _MESSAGES.items()}

_NO_USAGE: Final = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
_NOT_WRITTEN: Final = frozenset({"id", "type"})
_REQUIRED: Final = frozenset({"content", "role"})
_USAGE_REPORTS: Final = ("token_usage", "usage")

# MessagePack would turn these into text or numbers; passed on, they are refused.
_EXACT: Final = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

_Row = tuple[str, str | None, Mapping[str, Any] | str, Mapping[str, Any] | None]


class GenerationsCodec:
    """Writes and reads the list of generations that LangChain hands to a cache."""

    name = "langchain"

    def encode(self, value: Sequence[Generation]) -> bytes:
        """Return *value* as bytes; raise Uncacheable if it would not come back as it is."""
        rows: list[_Row | list[int]] = [_row(generation) for generation in value]
        if isinstance(value, Streamed) and value.cuts:
            rows.append(value.cuts)
        return _pack(rows)

    def decode(self, data: bytes) -> list[Generation]:
        """Return new generations; raise if `encode` cannot have written *data*."""
        return _generations(ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS))


class Streamed(list[Generation]):
    """An answer that came in pieces: ``cuts`` are their lengths, if its text is all there was in them."""

    def __init__(self, generations: Sequence[Generation], cuts: list[int]) -> None:
        super().__init__(generations)
        self.cuts = cuts


def encode_piece(piece: Generation) -> bytes:
    """Return one chunk of a stream as bytes; raise Uncacheable if it would not come back as it is."""
    return _pack(list(_row(piece, whole=False)))


def decode_stream(data: bytes) -> Generation | Streamed:
    """Return one chunk of a stream, or a whole answer, from bytes."""
    rows = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
    if rows and isinstance(rows[0], str):
        return _generation(*rows)
    cuts = rows[-1] if rows and rows[-1] and isinstance(rows[-1][0], int) else []
    return Streamed(_generations(rows), cuts)


def mark(generations: Sequence[Generation], source: str, age: float, *, keep_usage: bool) -> None:
    """
    Note on the messages of a hit where they come from.

    Plain generations have no place for it that their users do not compare: they stay as they are.
    """
    for generation in generations:
        if not isinstance(generation, ChatGeneration):
            continue
        message = generation.message
        message.response_metadata["askonce"] = {"source": source, "age": age}
        if not keep_usage:
            for report in _USAGE_REPORTS:
                message.response_metadata.pop(report, None)
            if isinstance(message, AIMessage):
                message.usage_metadata = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def copied(generations: object) -> list[Generation] | None:
    """Return copies that share nothing with *generations*, without message ids; None if there is nothing to copy."""
    if not isinstance(generations, Sequence) or not generations:
        return None
    copies: list[Generation] = []
    for generation in generations:
        if not isinstance(generation, Generation):
            return None
        copy = generation.model_copy(deep=True)
        if isinstance(copy, ChatGeneration):
            copy.message.id = None
        copies.append(copy)
    return copies


# --- writing ------------------------------------------------------------------------------------------------------


def _pack(rows: list[Any]) -> bytes:
    try:
        return ormsgpack.packb(rows, option=_EXACT)
    except TypeError:
        pass
    try:
        data = ormsgpack.packb(rows, option=_EXACT | ormsgpack.OPT_NON_STR_KEYS)
        # Keys that are numbers come back so; members of an enum, dates and UUIDs come back as what they are not.
        if ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS) == _listed(rows):
            return data
    except TypeError as error:  # a lone surrogate, an integer over 64 bits, a date, any object
        raise Uncacheable(f"answer: {error}") from None
    raise Uncacheable("answer: a mapping's key would come back as another type")


def _listed(rows: list[Any]) -> list[Any]:
    return [list(row) if isinstance(row, tuple) else row for row in rows]


def _row(generation: Generation, *, whole: bool = True) -> _Row:
    name = _name(generation, _OF_GENERATIONS)
    if not isinstance(generation, ChatGeneration):
        return name, None, generation.text, generation.generation_info
    message = generation.message
    return name, _name(message, _OF_MESSAGES), _fields(message, whole=whole), generation.generation_info


def _name(written: object, names: Mapping[type, str]) -> str:
    if (name := names.get(type(written))) is None:
        raise Uncacheable(f"answer: {type(written).__qualname__} is no class known here")
    return name


def _fields(message: BaseMessage, *, whole: bool) -> dict[str, Any]:
    """Return the fields that differ from an empty message of this class."""
    fields = {
        name: value
        for name, value in message.__dict__.items()
        if (value and name not in _NOT_WRITTEN) or name in _REQUIRED
    }
    if message.__pydantic_extra__:
        fields |= message.__pydantic_extra__
    parsed = message.additional_kwargs.get("parsed")
    if isinstance(parsed, BaseModel):
        fields["additional_kwargs"] = {**message.additional_kwargs, "parsed": _rebuildable(parsed)}
    if isinstance(message, AIMessage):
        if whole:  # on a hit LangChain adds `total_cost` to whatever is here: alone, it is invalid
            fields["usage_metadata"] = {**_NO_USAGE, **(message.usage_metadata or {})}
        for call in message.tool_calls:
            if not call.keys() <= TOOL_CALL:  # LangChain drops `extras`, and fails on any other
                raise Uncacheable("answer: a tool call holds more than name, args and id")
    return fields


def _rebuildable(parsed: BaseModel) -> dict[str, Any]:
    """Return *parsed* as LangChain rebuilds it, ``schema(**parsed)``: by alias."""
    try:
        fields = parsed.model_dump(mode="json", by_alias=True)
        if type(parsed)(**fields) == parsed:
            return fields
    except Exception:  # noqa: BLE001, S110  the user's own validators and serialisers run here
        pass
    raise Uncacheable(
        f"answer: {type(parsed).__qualname__} does not rebuild from its own model_dump by alias"
    )


# --- reading ------------------------------------------------------------------------------------------------------


def _generations(rows: list[Any]) -> list[Generation]:
    found = [_generation(*row) for row in rows if not isinstance(row[0], int)]
    if not found:  # LangChain would take an empty list for a hit, and fail on it
        raise ValueError("no generation")
    return found


def _generation(kind: str, message_kind: str | None, body: object, info: object) -> Generation:
    if (
        kind == "ChatGeneration"
        and message_kind == "AIMessage"
        and (answer := plain_answer(body, info)) is not None
    ):
        return answer
    fields = {"generation_info": info}
    if message_kind is None:
        fields["text"] = body
    else:
        fields["message"] = _MESSAGES[message_kind].model_validate(body)
    return _GENERATIONS[kind].model_validate(fields)
