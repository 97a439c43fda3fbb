"""
From a model and a call to a request: what is in the key.

In it: the class of the model and its fields, the messages or the prompt, every argument of the call.  Not in it: which
of the four ways of asking was taken, credentials, connections, and what only observes (``_rules.IGNORED``).
Never ``llm.metadata``: Ollama asks its server for it, Anthropic raises for a model that it does not know.
"""

from __future__ import annotations

import functools
import hashlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.generic_utils import messages_to_prompt as default_messages_to_prompt
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.prompts import BasePromptTemplate

from askonce import Request, Uncacheable, Verbatim
from askonce.keys import canonical

from ._canonical import SCALARS, messages, named, plain
from ._rules import Plan, plan_of

_FORMAT: Final = "llama_index.1"
_ABSENT: Final = object()
#: Of what pydantic never dumps, what can be told apart.
_PLAIN: Final = (str, int, float, list, tuple, dict, BasePromptTemplate)


def base_of(cls: type[Any]) -> type[Any]:
    """Return the class as the application knows it."""
    base: type[Any] = cls.__dict__.get("__askonce_base__", cls)
    return base


def chat_request(model: BaseLLM, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Request:
    """Return the request of a call of one of the four chat methods; raise Uncacheable if it cannot be told."""
    rest, words = list(args), dict(kwargs)
    given = rest.pop(0) if rest else words.pop("messages", None)
    asked = messages(given)
    # Functions, often lambdas, that make the prompt of a completion model: their output counts.
    render = getattr(model, "messages_to_prompt", None)
    rendered = None
    if render is not None and render is not default_messages_to_prompt:
        rendered = render(given)
    return _request(model, "chat", asked, rendered, rest, words, kwargs)


def completion_request(model: BaseLLM, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Request:
    """Return the request of a call of one of the four completion methods; raise Uncacheable as ``chat_request``."""
    rest, words = list(args), dict(kwargs)
    prompt = rest.pop(0) if rest else words.pop("prompt", None)
    if not isinstance(prompt, str):
        raise Uncacheable(f"prompt: a {type(prompt).__qualname__} was given, no text")
    formatted = bool(rest.pop(0) if rest else words.get("formatted", False))
    words["formatted"] = formatted
    render, rendered = getattr(model, "completion_to_prompt", None), None
    if not formatted and render is not None and render is not default_completion_to_prompt:
        rendered = render(prompt)
    return _request(model, "complete", prompt, rendered, rest, words, kwargs)


def embedding_requests(model: BaseEmbedding, role: str, texts: Sequence[object]) -> list[Request]:
    """Return a request for each text in its *role*: many models embed a query otherwise than a text."""
    if not all(isinstance(text, str) for text in texts):
        raise Uncacheable("texts: one of them is no text")
    identity = _digest(_identity(model, "embedding", {}))
    return [Request(f"{_FORMAT}.embedding", [identity, role, text]) for text in texts]


def _request(
    model: BaseLLM,
    kind: str,
    asked: object,
    rendered: object,
    rest: Sequence[object],
    words: Mapping[str, object],
    kwargs: Mapping[str, Any],
) -> Request:
    arguments = named({name: value for name, value in words.items() if name != "stream"})
    body = [_identity(model, kind, kwargs), asked, arguments, plain(rendered), plain(list(rest))]
    return Request(f"{_FORMAT}.{kind}", body)


def _identity(model: BaseLLM | BaseEmbedding, kind: str, kwargs: Mapping[str, Any]) -> dict[str, object]:
    """Return what tells this model from others."""
    plan = plan_of(base_of(type(model)))
    if not plan.rule.cacheable(model, kind, kwargs):
        raise Uncacheable(f"{plan.name}: its models are not cached, or not in this state")
    values = model.__dict__
    if plan.rule.overwritten is not None and id(model) in _overwritten:
        field, value = plan.rule.overwritten
        values = {**values, field: value}
    held = [values.get(name, _ABSENT) for name in plan.public]
    if plan.rule.named and not any(name in values for name in plan.naming):
        raise Uncacheable(f"{plan.name}: no field names the model; use register(..., identity=)")
    types = tuple(map(type, held))
    others: dict[str, object] = {}
    if not SCALARS.issuperset(types):
        for place, value in enumerate(held):
            if types[place] not in SCALARS:
                held[place] = None
                if value is not _ABSENT:
                    others[plan.public[place]] = _field(value)
    if model.__pydantic_extra__:
        others.update({name: _field(value) for name, value in model.__pydantic_extra__.items()})
    identity: dict[str, object] = {"fields": _scalars(plan, types, tuple(held)), "others": others}
    private = {name: _field(getattr(model, name, None)) for name in plan.private}
    for name in plan.plain:
        value = getattr(model, name, None)
        if isinstance(value, _PLAIN):
            private[name] = _field(value)
    if private:
        identity["private"] = private
    if plan.rule.identity is not None:
        identity["identity"] = plain(plan.rule.identity(model))
    return identity


@functools.lru_cache(maxsize=1024)
def _scalars(plan: Plan, types: tuple[type, ...], held: tuple[object, ...]) -> bytes:
    """Return a digest of a class and of what its fields hold that is plain; by type too, for 1 is equal to True."""
    fields = {
        name: value for name, kind, value in zip(plan.public, types, held, strict=True) if kind in SCALARS
    }
    return _digest({"class": plan.name, "fields": fields})


def _digest(value: object) -> bytes:
    return hashlib.blake2b(canonical(value), digest_size=20).digest()


def _field(value: object) -> object:
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):  # type: ignore[attr-defined]
        return named(value)  # type: ignore[arg-type]  # it is a dict with such keys
    if kind is list:
        return Verbatim(plain(value))  # tools of the model: the order of their schemas reaches it
    return _nested(value) if isinstance(value, BaseLLM | BaseEmbedding) else plain(value)


def _nested(model: BaseLLM | BaseEmbedding) -> dict[str, object]:
    return {"$llama_index": _identity(model, "nested", {})}


# --- fields that a model overwrites -------------------------------------------------------------------------------

#: Models whose field still held the value to be overwritten when they were attached, by their ids.
_overwritten: dict[int, weakref.ref[Any]] = {}
_lock: Final = threading.RLock()  # re-entrant: the garbage collector may call in at any time


def note_overwritten(model: BaseLLM | BaseEmbedding) -> None:
    """Remember that a field of *model* holds what the model itself will replace: its key stays the same."""
    rule = plan_of(base_of(type(model))).rule
    if rule.overwritten is None or getattr(model, rule.overwritten[0], None) != rule.overwritten[1]:
        return
    number = id(model)

    def forget(_: object) -> None:
        with _lock:
            _overwritten.pop(number, None)

    with _lock:
        _overwritten[number] = weakref.ref(model, forget)
