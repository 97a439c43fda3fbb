"""
Values inside an answer, as JSON and back, with their types.

What has no form of its own in JSON is a mapping with one name that begins with ``$``; other mappings with such names are
marked.  A provider's ``raw`` is written as well as it can be; everything else comes back as it was, or is refused.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any, Final

from pydantic import AnyUrl, BaseModel, ValidationError

from askonce import Uncacheable

from ._types import BY_FIELD, COMPLETION, found, is_dumped, name_of

_SCALARS: Final = frozenset((str, int, float, bool, type(None)))


def write(value: object, *, loosely: bool = False) -> Any:
    """
    Return *value* in JSON's types; raise Uncacheable for what would not come back.

    ``loosely``, a pydantic object whose class is not in the table becomes a mapping, an enum member its value.
    """
    if type(value) in _SCALARS:
        return value
    if isinstance(value, dict):
        return _write_mapping(value, loosely=loosely)
    if type(value) is list:
        return [write(item, loosely=loosely) for item in value]
    if type(value) is tuple:
        return {"$t": [write(item, loosely=loosely) for item in value]}
    if isinstance(value, bytes):
        return {"$b": base64.b64encode(value).decode()}
    if isinstance(value, enum.Enum):
        if loosely or isinstance(value, str | int):  # a member that is equal to its value
            return write(value.value, loosely=loosely)
    elif isinstance(value, AnyUrl):
        return {"$u": str(value)}
    elif isinstance(value, PurePath):
        return {"$f": str(value)}
    elif isinstance(value, BaseModel):
        return _write_model(value, loosely=loosely)
    elif loosely and isinstance(value, list | tuple):
        return [write(item, loosely=loosely) for item in value]
    raise Uncacheable(f"answer: a {name_of(type(value))} would not come back as it is")


def _write_mapping(value: dict[Any, object], *, loosely: bool) -> Any:
    if not all(type(key) is str for key in value):
        pairs = [[write(key, loosely=loosely), write(item, loosely=loosely)] for key, item in value.items()]
        return {"$i": pairs}
    form = {key: write(item, loosely=loosely) for key, item in value.items()}
    return {"$k": form} if any(key.startswith("$") for key in form) else form


def _write_model(value: BaseModel, *, loosely: bool) -> Any:
    name = name_of(type(value))
    if name in BY_FIELD:
        return {"$o": name, "v": {key: write(item) for key, item in value.__dict__.items()}}
    known = is_dumped(name)
    if not known and not loosely:
        raise Uncacheable(
            f"answer: a {name} would not come back as it is; name it by register(..., types=[...])"
        )
    form = value.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    return {"$p": name, "v": form} if known else _write_mapping(form, loosely=loosely)


def write_raw(raw: object, text: str = "") -> Any:
    """
    Return a provider's raw answer in JSON's types, as well as it goes; None if it does not.

    The *text* of a chat completion stands beside it already, and is left out.
    """
    try:
        form = write(raw, loosely=True)
    except Exception:  # noqa: BLE001  it may be any object, and dump itself in any way
        return None
    message = _message_in(form)
    if text and message is not None and message.get("content") == text:
        del message["content"]
        form["same"] = True
    return form


def read_raw(form: Any, text: str | None) -> Any:
    """Return the raw answer that `write_raw` was given."""
    message = _message_in(form)
    if message is not None and form.get("same"):
        message["content"] = text
    return read(form)


def _message_in(form: Any) -> dict[str, Any] | None:
    """Return the message of a chat completion in JSON's types."""
    if type(form) is not dict or form.get("$p") != COMPLETION:
        return None
    try:
        message = form["v"]["choices"][0]["message"]
    except (LookupError, TypeError):
        return None
    return message if type(message) is dict else None


def read(form: Any) -> Any:
    """Return the value, new objects throughout; raise for what `write` cannot have written."""
    if type(form) is list:
        return [read(item) for item in form]
    if type(form) is not dict:
        return form
    mark = next(iter(form), "")
    if mark.startswith("$"):
        return _MARKED[mark](form)
    return {key: read(item) for key, item in form.items()}


def _read_by_field(form: dict[str, Any]) -> Any:
    cls = found(form["$o"]) if form["$o"] in BY_FIELD else None
    if cls is None:
        raise ValueError("a block of a kind that this version of LlamaIndex does not have")
    return cls.model_construct(**{key: read(item) for key, item in form["v"].items()})


def _read_dumped(form: dict[str, Any]) -> Any:
    cls = found(form["$p"]) if is_dumped(form["$p"]) else None
    return form["v"] if cls is None else made(cls, form["v"])


def made(cls: type[BaseModel], form: dict[str, Any]) -> BaseModel:
    """Return an object of a class in the table, also where a compatible server sent what its schema does not allow."""
    try:
        return cls.model_validate(form)
    except ValidationError:
        return cls.model_construct(**form)


_MARKED: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "$p": _read_dumped,
    "$o": _read_by_field,
    "$t": lambda form: tuple(read(item) for item in form["$t"]),
    "$b": lambda form: base64.b64decode(form["$b"]),
    "$u": lambda form: AnyUrl(form["$u"]),
    "$f": lambda form: Path(form["$f"]),
    "$i": lambda form: {read(key): read(item) for key, item in form["$i"]},
    "$k": lambda form: {key: read(item) for key, item in form["$k"].items()},
}
