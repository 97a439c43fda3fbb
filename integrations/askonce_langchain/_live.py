"""
What a model is told at this moment: what LangChain's own key forgets or tells too late.

LangChain writes a model down once and keeps that, so that a changed ``temperature`` or a ``model_copy(update=...)``
has the key of the first state; it leaves out what is bound to a completion model, shows a class of structured output
without its schema, and a custom model by its type alone.  Here the model itself is read, at each call: its class, its
public fields, the parameters that it would send, and the arguments of the call.

What is of the connection or a credential is left out.  What cannot be told apart is ``Uncacheable``.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson
from langchain_core.language_models import BaseLanguageModel
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel, SecretBytes, SecretStr, TypeAdapter
from typing_extensions import is_typeddict

from askonce.errors import Uncacheable
from askonce.keys import Verbatim

from ._keys import OF_THE_CALL, OF_THE_CONNECTION

# How an answer is handed over, not what it says: a stream and a whole answer share an entry.
_OF_THE_STREAM: Final = frozenset({"stream", "stream_chunk_timeout", "stream_options", "stream_usage"})
_LEFT_OUT: Final = OF_THE_CALL | OF_THE_CONNECTION | _OF_THE_STREAM
# What every model has.  Of these only the shape of the content counts.
_COMMON: Final = frozenset({*BaseChatModel.model_fields, *BaseLLM.model_fields}) - {"output_version"}
_PLAIN: Final = frozenset({str, int, float, bool})
_NOT_JSON: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
)
# LangChain's fakes count their own calls in a field.
_FAKES: Final = "langchain_core.language_models.fake"
# The names under which callers limit the length of an answer.
_LIMITS: Final = frozenset(
    {
        "max_completion_tokens",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens",
        "max_tokens_to_sample",
        "maxTokens",
        "n_predict",
        "num_predict",
    }
)

_names: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()
_schemas: weakref.WeakKeyDictionary[type, object] = weakref.WeakKeyDictionary()


def live(model: BaseLanguageModel[Any], stop: object, arguments: Mapping[str, Any]) -> dict[str, object]:
    """Return what tells this call of *model* from others; raise Uncacheable if that cannot be told."""
    kind = type(model)
    return {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "fields": _fields(model),
        "params": _told(_params(model, stop, arguments), without=arguments),
        "arguments": _told(arguments),
        "stop": stop,
    }


def sets_limit(model: BaseLanguageModel[Any], arguments: Mapping[str, Any]) -> bool:
    """Return whether the caller has set a limit for the length of the answer, on *model* or for this call."""
    extra = getattr(model, "model_kwargs", None)
    if any(arguments.get(name) is not None for name in _LIMITS & arguments.keys()):
        return True
    if isinstance(extra, Mapping) and _LIMITS & extra.keys():
        return True
    return any(getattr(model, name, None) is not None for name in _LIMITS & model.model_fields_set)


def several_answers(model: BaseLanguageModel[Any], arguments: Mapping[str, Any]) -> bool:
    """Return whether the call asks for more than one answer: a stream of those is none of any."""
    wanted = [arguments.get(name, getattr(model, name, None)) for name in ("n", "best_of")]
    return any(isinstance(number, int) and number > 1 for number in wanted)


def _params(model: BaseLanguageModel[Any], stop: object, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(model, BaseChatModel):
        return model._get_invocation_params(stop=stop, **arguments)  # type: ignore[arg-type]
    told: Mapping[str, Any] = (getattr(model, "_dict_for_compat", None) or model.dict)()
    return told


def _told(parameters: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, object]:
    told: dict[str, object] = {}
    for name, value in parameters.items():
        if value is None or name in _LEFT_OUT or name in without:
            continue
        told[name] = value if type(value) in _PLAIN else _verbatim(value, name)
    return told


def _fields(model: BaseLanguageModel[Any]) -> dict[str, object]:
    kind, state = type(model), model.__dict__
    if (names := _names.get(kind)) is None:
        names = _names[kind] = tuple(_names_of(model))
    told: dict[str, object] = {}
    for name in names:
        value = state.get(name)
        if value is None:
            continue
        if type(value) in _PLAIN:
            told[name] = value
            continue
        try:
            told[name] = _verbatim(value, name)
        except Uncacheable:
            # A custom model that says what identifies it may keep any object beside that.
            if (
                model.is_lc_serializable()
                or kind._identifying_params is BaseLanguageModel._identifying_params
            ):
                raise
    if model.__pydantic_extra__:
        told["extra"] = _told(model.__pydantic_extra__)
    return told


def _names_of(model: BaseLanguageModel[Any]) -> Iterable[str]:
    kind = type(model)
    if kind.__module__.startswith(_FAKES):
        return
    left_out = _LEFT_OUT | _COMMON | model.lc_secrets.keys()
    for name, field in kind.model_fields.items():
        if name not in left_out and field.exclude is not True:
            yield name


def _verbatim(value: object, path: str) -> object:
    """Return *value* so that the order of its mappings counts, for it reaches the model: schemas of tools."""
    try:
        orjson.dumps(value, option=_NOT_JSON)
    except TypeError:
        value = _json_like(value, path)
    return Verbatim(value) if isinstance(value, list | tuple | dict) else value


def _json_like(value: Any, path: str) -> Any:
    """Return *value* in JSON-like types, each other type by what it says; without credentials."""
    match value:
        case None | bool() | int() | float() | str() | bytes() | UUID() | Enum():
            return value
        case SecretStr() | SecretBytes():
            return None
        case list() | tuple():
            return [_json_like(item, f"{path}[{index}]") for index, item in enumerate(value)]
        case set() | frozenset():
            return {"set": sorted((_json_like(item, path) for item in value), key=repr)}
        case Mapping():
            return [
                [_json_like(key, path), _json_like(item, f"{path}[{key!r}]")] for key, item in value.items()
            ]
        case type():
            return _schema(value, path)
        case BaseModel():
            return {"of": _name(type(value)), "fields": _json_like(dict(value), path)}
        case date() | time() | timedelta() | Decimal() | PurePath():
            return {"of": _name(type(value)), "text": str(value)}
        case _ if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return {"of": _name(type(value)), "fields": _json_like(fields, path)}
        case _:
            raise Uncacheable(
                f"{path}: nothing tells one {type(value).__qualname__} from another; "
                "give JSON-like values, or define _identifying_params on the model's class"
            )


def _schema(kind: type, path: str) -> object:
    """Return a class of structured output as its JSON schema, which is what the model is sent."""
    if (schema := _schemas.get(kind)) is not None:
        return schema
    try:
        if issubclass(kind, BaseModel):
            schema = kind.model_json_schema()
        elif is_typeddict(kind):
            schema = convert_to_json_schema(kind)
        elif dataclasses.is_dataclass(kind):
            schema = TypeAdapter(kind).json_schema()
    except Exception as error:
        raise Uncacheable(f"{path}: {kind.__qualname__} has no JSON schema") from error
    if schema is None:
        raise Uncacheable(f"{path}: the class {kind.__qualname__} does not say what the model is sent")
    _schemas[kind] = {"of": kind.__name__, "schema": schema}
    return _schemas[kind]


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
