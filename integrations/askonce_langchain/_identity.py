"""
Which model an ``Embeddings`` object stands for: its class and the fields that may shape a vector.

Unknown fields count: a missed hit costs money, a wrong hit costs trust.  Left out are credentials, connections and
how a call is made.  Of a pydantic model the declared fields are taken; of any other class all that the object holds,
private or not, for that may be where it keeps the name of its model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel, SecretBytes, SecretStr

from askonce import Uncacheable
from askonce.keys import canonical

from ._keys import OF_THE_CONNECTION

_OF_THE_CALL: Final = frozenset(
    {
        "max_retries",
        "request_timeout",
        "retry_max_seconds",
        "retry_min_seconds",
        "show_progress",
        "show_progress_bar",
        "timeout",
        "verbose",
    }
)
_CREDENTIALS: Final = ("api_key", "access_key", "api_token", "password", "secret")


def identity(embeddings: object) -> bytes:
    """
    Return what tells *embeddings* from other models, in its canonical form.

    Raises Uncacheable with the path to a field that has none.
    """
    kind = type(embeddings)
    fields = {name: _plain(name, value) for name, value in _fields(embeddings)}
    return canonical(f"{kind.__module__}.{kind.__qualname__}") + canonical(fields)


def _fields(embeddings: object) -> Iterator[tuple[str, object]]:
    held: dict[str, Any]
    if isinstance(embeddings, BaseModel):
        names = type(embeddings).model_fields.keys() - OF_THE_CONNECTION
        held = {name: getattr(embeddings, name) for name in names} | (embeddings.__pydantic_extra__ or {})
    else:
        held = _state(embeddings)
    for name, value in held.items():
        if name in _OF_THE_CALL or isinstance(value, SecretStr | SecretBytes):
            continue
        if not (name.endswith(_CREDENTIALS) and (isinstance(value, str) or callable(value))):
            yield name, value


def _state(embeddings: object) -> dict[str, Any]:
    """Return all attributes of an object, those in slots too."""
    state: Any = object.__getstate__(embeddings)
    parts = state if isinstance(state, tuple) else (state,)
    return {name: value for part in parts if part for name, value in part.items()}


def _plain(name: str, value: object) -> object:
    if not isinstance(value, set | frozenset):
        return value
    try:
        return sorted(value)
    except TypeError:
        raise Uncacheable(f"request[{name!r}]: a set of unlike things has no order to be keyed by") from None
