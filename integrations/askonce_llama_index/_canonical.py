"""
From what LlamaIndex is given to values that a key can hold.

Two values have one form only if they are the same to the model.  Forms that are no plain value are mappings with one
name that begins with ``$``; the caller's own mappings with such names are marked, so that none can pass for another.
Never ``repr``: it holds addresses.  What cannot be told apart raises Uncacheable.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Final

from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel, SecretBytes, SecretStr

from askonce import Uncacheable, Verbatim
from askonce.keys import canonical

from ._blocks import ToolCallBlock, VideoBlock, is_block

#: Types whose values are their own form.
SCALARS: Final = frozenset((str, int, float, bool, type(None)))
_MEDIA: Final[dict[type, str]] = {
    ImageBlock: "image",
    AudioBlock: "audio",
    VideoBlock: "video",
    DocumentBlock: "data",
}


class Ids:
    """Names tool calls by their first appearance: their ids are random, and would differ from run to run."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def of(self, given: object) -> object:
        """Return what stands in the key for one id."""
        if not isinstance(given, str) or not given:
            return plain(given)
        return {"$id": self._names.setdefault(given, len(self._names))}


def plain(value: object) -> object:
    """Return the form of any value; raise Uncacheable if it has none."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": hashlib.blake2b(value, digest_size=20).digest()}
    if isinstance(value, SecretStr | SecretBytes):
        return {"$secret": None}
    if isinstance(value, PurePath):
        return {"$path": str(value)}
    if isinstance(value, set | frozenset):
        return {"$set": sorted((plain(item) for item in value), key=canonical)}
    if isinstance(value, datetime.date | datetime.time):
        return {"$time": value.isoformat(), "$n": type(value).__name__}
    if isinstance(value, type):
        return _class(value)
    return _object(value)


def named(values: Mapping[str, object]) -> dict[str, object]:
    """
    Return the form of parameters by name.

    Their own order does not count.  Below each it does: it may be a JSON schema, whose order reaches the model.
    """
    return {
        name: value
        if type(value) in SCALARS
        else Verbatim(plain(value))
        if isinstance(value, dict | list | tuple)
        else plain(value)
        for name, value in values.items()
    }


def messages(given: object) -> list[object]:
    """Return the form of a conversation."""
    if not isinstance(given, list | tuple):
        raise Uncacheable(f"messages: a {type(given).__qualname__} was given: reading it would consume it")
    ids = Ids()
    return [_message(message, ids) for message in given]


def _mapping(value: Mapping[Any, object]) -> dict[str, object]:
    if not all(type(key) is str for key in value):
        pairs = [[plain(key), plain(item)] for key, item in value.items()]
        return {"$pairs": sorted(pairs, key=lambda pair: canonical(pair[0]))}
    form = {key: plain(item) for key, item in value.items()}
    return {"$dict": form} if any(key.startswith("$") for key in form) else form


def _class(value: type[Any]) -> dict[str, object]:
    if issubclass(value, BaseModel):
        return {"$schema": Verbatim(plain(value.model_json_schema())), "$n": value.__name__}
    return {"$type": f"{value.__module__}:{value.__qualname__}"}


def _object(value: object) -> object:
    if isinstance(value, ChatMessage):
        return {"$message": _message(value, Ids())}
    if is_block(value):
        return {"$block": _block(value, Ids())}
    if isinstance(value, BasePromptTemplate):
        return {"$template": value.get_template(), "$n": type(value).__name__}
    tool = getattr(getattr(value, "metadata", None), "to_openai_tool", None)
    if tool is not None:
        direct = bool(value.metadata.return_direct)  # type: ignore[attr-defined]  # it is tool metadata
        return {"$tool": Verbatim(plain(tool(skip_length_check=True))), "$direct": direct}
    if isinstance(value, BaseModel):
        return _pydantic(value)
    if dataclasses.is_dataclass(value):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"$dataclass": f"{type(value).__module__}:{type(value).__qualname__}", "$fields": fields}
    if callable(value):
        return {"$function": _function(value)}
    raise Uncacheable(f"{type(value).__module__}.{type(value).__qualname__} cannot be told from others")


def _pydantic(value: BaseModel) -> dict[str, object]:
    # Tool calls of a provider, options: data.  Whoever hides more behind private names is not told apart.
    private = {name: item for name, item in (value.__pydantic_private__ or {}).items() if item is not None}
    if private and any(type(item) not in SCALARS for item in private.values()):
        raise Uncacheable(f"{type(value).__qualname__} holds private objects: register its class")
    return {
        "$model": type(value).__name__,
        "$fields": {name: plain(item) for name, item in value.__dict__.items()},
        "$extra": plain(value.__pydantic_extra__ or {}),
        "$private": plain(private),
    }


def _function(value: Callable[..., object]) -> str:
    name, module = getattr(value, "__qualname__", ""), getattr(value, "__module__", None)
    bound = getattr(value, "__self__", None)
    if not module or not name or "<" in name or not (bound is None or isinstance(bound, type)):
        raise Uncacheable(
            f"a {type(value).__qualname__} without a name of its own cannot be told from others"
        )
    return f"{module}:{name}"


def _message(message: object, ids: Ids) -> list[object]:
    if not isinstance(message, ChatMessage):
        raise Uncacheable(f"messages: a {type(message).__qualname__} is no ChatMessage")
    form = [getattr(message.role, "value", message.role), [_block(block, ids) for block in message.blocks]]
    own_class = type(message) is not ChatMessage
    if message.additional_kwargs or own_class:
        form.append({name: _part(name, value, ids) for name, value in message.additional_kwargs.items()})
    if own_class:
        own = {name: plain(value) for name, value in message.__dict__.items() if name not in _OF_MESSAGES}
        form.append({"$class": type(message).__qualname__, "$fields": own})
    return form


_OF_MESSAGES: Final = frozenset(ChatMessage.model_fields)


def _part(name: str, value: object, ids: Ids) -> object:
    if name == "tool_call_id":
        return ids.of(value)
    if name == "tool_calls" and isinstance(value, list | tuple):
        return [_tool_call(call, ids) for call in value]
    return plain(value)


def _tool_call(call: object, ids: Ids) -> object:
    form = plain(call)
    fields = form.get("$fields", form) if isinstance(form, dict) else {}
    if isinstance(fields, dict):
        for name in ("id", "call_id"):
            if name in fields:
                fields[name] = ids.of(fields[name])
    return form


def _block(block: Any, ids: Ids) -> object:
    """Return the form of a block: text is itself, any other a mapping."""
    if type(block) is TextBlock:
        return block.text
    if not is_block(block):
        raise Uncacheable(f"messages: a {type(block).__qualname__} is no block of a message")
    if type(block) in _MEDIA:
        return _media(block, _MEDIA[type(block)])
    form: dict[str, object] = {
        name: _block(value, ids)
        if is_block(value)
        else [_block(item, ids) for item in value]
        if isinstance(value, list) and any(is_block(item) for item in value)
        else plain(value)
        for name, value in block.__dict__.items()
    }
    if isinstance(block, ToolCallBlock):
        form["tool_call_id"] = ids.of(block.tool_call_id)
        form["tool_kwargs"] = Verbatim(form["tool_kwargs"])
    return {"$block": type(block).__name__, "$fields": form}


def _media(block: Any, field: str) -> dict[str, object]:
    form = {name: value for name, value in block.__dict__.items() if name not in {field, "path", "url"}}
    content, path, url = getattr(block, field), getattr(block, "path", None), getattr(block, "url", None)
    digest = None
    if isinstance(content, bytes | bytearray):
        digest = _digest((bytes(content),))
    elif content is not None:
        digest = _digest_of_file(content)
    elif path is not None:  # its content decides, not its name
        with Path(path).open("rb") as file:
            digest = _digest(iter(lambda: file.read(1 << 20), b""))
    source = None if url is None else str(url)
    return {"$media": type(block).__name__, "$fields": plain(form), "$digest": digest, "$url": source}


def _digest_of_file(file: Any) -> bytes:
    if not file.seekable():
        raise Uncacheable("messages: a stream that cannot be read twice")
    place = file.tell()
    file.seek(0)
    try:
        return _digest(iter(lambda: file.read(1 << 20), b""))
    finally:
        file.seek(place)


def _digest(parts: Iterable[bytes]) -> bytes:
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        state.update(part)
    return state.digest()
