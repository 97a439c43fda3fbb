"""
How what nodes and tools return is written: MessagePack, rebuilt by a fixed table of classes, which ``types=`` extends.

Nothing is ever imported by a name found in the data.  Answers lose their ids: a graph would take the second one for
the first.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple
from uuid import UUID

import langchain_core.messages as lc
import ormsgpack
from langchain_core.documents import Document
from langgraph.graph.message import REMOVE_ALL_MESSAGES
from langgraph.types import Send
from pydantic import BaseModel

from askonce import ConfigurationError, Uncacheable

from ._plain import plain_message


class Form(NamedTuple):
    """How the objects of one class are taken apart, and put together again."""

    apart: Callable[[Any], Any]
    together: Callable[[Any], Any]


class ValuesCodec:
    """Writes and reads what nodes write: JSON-like values, Python's own types, messages, and the *types* given."""

    name = "langgraph"

    def __init__(self, types: Sequence[type] = ()) -> None:
        self._forms = _FORMS | {kind: _form_of(kind) for kind in types}
        self._kinds = {_name(kind): kind for kind in self._forms}
        if len(self._kinds) < len(self._forms):
            raise ConfigurationError(f"types={types!r}: two of them have the same name; give each its own")

    def encode(self, value: object) -> bytes:
        """Return *value* as bytes; raise Uncacheable if it would not come back as it is, but for message ids."""
        try:
            return ormsgpack.packb(self._apart(value))
        except RecursionError:
            raise Uncacheable("value: nested too deep, or contains itself") from None

    def decode(self, data: bytes) -> Any:
        """Return a new value; raise if ``encode`` cannot have written *data*."""
        return ormsgpack.unpackb(data, ext_hook=self._together)

    def _apart(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in _AS_THEY_ARE or (kind is int and -(2**63) <= value < 2**64):
            return value
        if kind is str and _is_utf8(value):
            return value
        if kind is list:
            return [self._apart(item) for item in value]
        if kind is dict and all(type(key) is str and _is_utf8(key) for key in value):
            return {key: self._apart(item) for key, item in value.items()}
        form = self._forms.get(kind)
        if form is None:
            raise Uncacheable(f"value: {_name(kind)} is no class known here; give it with types=")
        parts = form.apart(value)
        if kind not in _EXACT:
            _check(value, form, parts)
        return ormsgpack.Ext(_OBJECT, ormsgpack.packb([_name(kind), self._apart(parts)]))

    def _together(self, code: int, data: bytes) -> Any:
        if code != _OBJECT:
            raise ValueError(f"extension {code}")
        name, parts = ormsgpack.unpackb(data, ext_hook=self._together)
        return self._forms[self._kinds[name]].together(parts)


def _is_utf8(text: str) -> bool:
    return text.isascii() or not _SURROGATE.search(text)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _check(value: Any, form: Form, parts: Any) -> None:
    """Refuse an object that its class does not rebuild: a validator may change it, a field may not be compared."""
    try:
        same = bool(_without_id(form.together(parts)) == _without_id(value))
    except Exception as error:  # noqa: BLE001  constructors and validators of the user's own classes run here
        raise Uncacheable(
            f"value: {_name(type(value))} does not rebuild ({type(error).__qualname__})"
        ) from None
    if not same:
        raise Uncacheable(f"value: {_name(type(value))} does not rebuild from its own fields")


def _without_id(value: Any) -> Any:
    return value.model_copy(update={"id": None}) if isinstance(value, lc.BaseMessage) else value


# Ids that LangChain (runs) and LangGraph (add_messages) make up.
_MADE_UP: Final = re.compile(r"(lc_)?run-.*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.DOTALL)
_ANSWERS: Final = (lc.AIMessage, lc.ToolMessage)


def _message_apart(message: lc.BaseMessage) -> dict[str, Any]:
    fields = {name: value for name, value in message.__dict__.items() if value is not None}
    fields |= message.__pydantic_extra__ or {}
    made_up = message.id is not None and _MADE_UP.fullmatch(message.id)
    if made_up or isinstance(message, _ANSWERS):  # an answer is a new one in each thread, whoever named it
        fields["id"] = None
    return fields


_NO_ANSWER: Final = vars(lc.AIMessage(""))


def _answer_apart(message: lc.AIMessage) -> dict[str, Any]:
    return {
        name: value
        for name, value in _message_apart(message).items()
        if name == "content" or name not in _NO_ANSWER or value != _NO_ANSWER[name]
    }


def _answer_together(fields: Any) -> lc.AIMessage:
    message = plain_message(fields)
    return lc.AIMessage.model_validate(fields) if message is None else message


def _remove_all_apart(message: lc.RemoveMessage) -> str:
    if message.id != REMOVE_ALL_MESSAGES:  # elsewhere there is no such message, and add_messages raises
        raise Uncacheable("value: RemoveMessage names a message of one thread")
    return REMOVE_ALL_MESSAGES


def _moment_apart(value: datetime | time) -> str:
    if value.fold or not (value.tzinfo is None or type(value.tzinfo) is timezone):
        raise Uncacheable("value: a time zone with a name does not come back; give an offset")
    return value.isoformat()


def _deque_apart(value: deque[Any]) -> list[Any]:
    if value.maxlen is not None:
        raise Uncacheable("value: a deque with maxlen does not come back")
    return list(value)


def _send_apart(send: Send) -> list[Any]:
    if getattr(send, "timeout", None) is not None:
        raise Uncacheable("value: a Send with a timeout does not come back")
    return [send.node, send.arg]


def _model_apart(value: BaseModel) -> list[Any]:
    if value.__pydantic_private__:
        raise Uncacheable(f"value: {_name(type(value))} holds private attributes")
    return [{**value.__dict__, **(value.__pydantic_extra__ or {})}, sorted(value.model_fields_set)]


def _form_of(kind: type) -> Form:
    """Return how a class given as one of ``types`` is taken apart; raise ConfigurationError if it cannot be."""
    if isinstance(kind, type):
        if issubclass(kind, Enum):
            return Form(lambda member: member.value, kind)
        if issubclass(kind, BaseModel):
            return Form(_model_apart, lambda parts: kind.model_construct(set(parts[1]), **parts[0]))
        if dataclasses.is_dataclass(kind):
            names = [field.name for field in dataclasses.fields(kind)]
            return Form(
                lambda value: {name: getattr(value, name) for name in names}, lambda parts: kind(**parts)
            )
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            return Form(list, lambda parts: kind(*parts))
    raise ConfigurationError(
        f"types: {kind!r} is not allowed; give classes: Pydantic models, dataclasses, enums, named tuples"
    )


_OBJECT: Final = 1
_AS_THEY_ARE: Final = frozenset({bool, bytes, float})
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_PLAIN_FORMS: Final[dict[type, Form]] = {
    bytearray: Form(bytes, bytearray),
    complex: Form(lambda value: [value.real, value.imag], lambda parts: complex(*parts)),
    date: Form(date.isoformat, date.fromisoformat),
    datetime: Form(_moment_apart, datetime.fromisoformat),
    Decimal: Form(str, Decimal),
    deque: Form(_deque_apart, deque),
    dict: Form(lambda value: [list(pair) for pair in value.items()], dict),
    frozenset: Form(list, frozenset),
    int: Form(str, int),  # of more than 64 bits
    set: Form(list, set),
    str: Form(
        lambda value: value.encode("utf-8", "surrogatepass"),
        lambda parts: parts.decode("utf-8", "surrogatepass"),
    ),
    time: Form(_moment_apart, time.fromisoformat),
    timedelta: Form(
        lambda value: [value.days, value.seconds, value.microseconds], lambda parts: timedelta(*parts)
    ),
    tuple: Form(list, tuple),
    UUID: Form(str, UUID),
    lc.RemoveMessage: Form(_remove_all_apart, lambda parts: lc.RemoveMessage(id=parts)),
    Send: Form(_send_apart, lambda parts: Send(*parts)),
}
_MESSAGES: Final = (
    lc.AIMessageChunk, lc.ChatMessage, lc.ChatMessageChunk, lc.FunctionMessage, lc.HumanMessage,
    lc.HumanMessageChunk, lc.SystemMessage, lc.SystemMessageChunk, lc.ToolMessage, lc.ToolMessageChunk,
)  # fmt: skip
#: Classes whose forms are exact by construction.
_EXACT: Final = frozenset(_PLAIN_FORMS)
_FORMS: Final = (
    _PLAIN_FORMS
    | {kind: Form(_message_apart, kind.model_validate) for kind in _MESSAGES}
    | {lc.AIMessage: Form(_answer_apart, _answer_together), Document: _form_of(Document)}
)
