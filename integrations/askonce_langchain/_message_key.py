"""
Keys of nodes by what their messages say.

LangGraph's own key of a node is a pickle of its input, message ids included: the same text asked twice is another
key.  Here messages count by what a model is sent of them, as in the key of a model's call.

    CachePolicy(key_func=message_key)
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final

from langchain_core.load import dumps
from langchain_core.messages import BaseMessage, RemoveMessage
from pydantic import BaseModel

from askonce.errors import Uncacheable
from askonce.keys import Fingerprints, Request, Verbatim, canonical

from ._keys import _messages

_KIND: Final = "langgraph.input"
_FINGERPRINTS: Final = Fingerprints("", {})
_log = logging.getLogger("askonce.langchain")


def message_key(*args: object, **kwargs: object) -> str:
    """
    Return the key of a node's input, for ``CachePolicy(key_func=message_key)``.

    Message ids do not count, nor what else no model is sent: token counts of earlier answers, artifacts of tools.
    A node that reads these needs a key of its own.  What cannot be told apart gets a key that nobody has, so that
    the node runs: an error would fail the graph.
    """
    try:
        return _FINGERPRINTS.of(Request(_KIND, [comparable(args), comparable(kwargs)])).decode()
    except Exception as error:  # noqa: BLE001  properties and validators of the user's own classes run here
        why = str(error) if isinstance(error, Uncacheable) else type(error).__qualname__
        _log.debug("a node's input cannot be keyed, so the node runs: %s", why)
        return uuid.uuid4().hex


def canonical_messages(messages: Sequence[BaseMessage]) -> list[object]:
    """Return *messages* as they count in a key; raise Uncacheable if they cannot be told from others."""
    if not messages:
        return []
    found = _messages(dumps(list(messages)))
    if found is None or any(type(message) is RemoveMessage for message in messages):
        raise Uncacheable("messages: they do not tell what the model is sent; give LangChain's own messages")
    return found


def comparable(value: Any) -> object:
    """
    Return *value* in JSON-like types; what has none is left to the key, which refuses it.

    The mark that says what an object was is ``Verbatim``, which no JSON-like value is taken for.
    """
    if isinstance(value, BaseMessage):
        return [Verbatim("message"), canonical_messages([value])]
    if isinstance(value, BaseModel):
        return _object(value, _model_fields(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Verbatim):
        return _object(value, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, set | frozenset):
        return [Verbatim("set"), sorted(canonical(comparable(item)) for item in value)]
    if isinstance(value, datetime | date | time):
        return [Verbatim(type(value).__name__), value.isoformat()]
    if isinstance(value, timedelta):
        return [Verbatim("timedelta"), value.days, value.seconds, value.microseconds]
    return [Verbatim("Decimal"), str(value)] if isinstance(value, Decimal) else value


def _object(value: object, fields: Mapping[str, object]) -> object:
    kind = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return [Verbatim("object"), name, {field: comparable(item) for field, item in fields.items()}]


def _model_fields(value: BaseModel) -> Mapping[str, object]:
    if value.__pydantic_private__:
        raise Uncacheable(
            f"{type(value).__qualname__} holds private attributes: what they mean is not known here"
        )
    return {**value.__dict__, **(value.__pydantic_extra__ or {})}
