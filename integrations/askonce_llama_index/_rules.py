"""
What must be known of a model class to tell two of its models apart.

A rule is found by the exact name of a class or of one of its bases, so that no integration is ever imported for it.
Of a class without a rule everything plain is in the key: a miss that all see beats a wrong answer that none sees.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

from askonce import ConfigurationError

from ._types import admit_types

#: Decides whether a model may be cached in its present state: ``(model, "chat" | "complete" | "embedding", kwargs)``.
Cacheable = Callable[[Any, str, Mapping[str, Any]], bool]

#: Public fields that do not shape the answer, by exact name: a part of a name would catch ``max_tokens``.
IGNORED: Final = frozenset(
    [
        "api_key",
        "api_secret",
        "password",
        "token",
        "credentials",
        "azure_ad_token",
        "azure_ad_token_provider",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
        "profile_name",
        "region_name",
        "botocore_session",
        "botocore_config",
        "use_ssl",
        "verify",
        "callback_manager",
        "rate_limiter",
        "timeout",
        "request_timeout",
        "max_retries",
        "reuse_client",
        "keep_alive",
        "default_headers",
        "headers",
        "http_client",
        "async_http_client",
        "verbose",
        "num_workers",
        "embeddings_cache",
        "embed_batch_size",
        "output_parser",
        "pydantic_program_mode",
        "tokenizer",
        "messages_to_prompt",
        "completion_to_prompt",
    ]
)

#: Fields of which at least one must name the model, unless a rule says how else it is told.
NAMES: Final = frozenset(
    ("model", "model_name", "model_id", "model_path", "engine", "deployment_name", "azure_deployment")
)

#: How names end behind which a credential or a connection stands.  ``_max_tokens`` is neither.
_SECRET: Final = re.compile(
    r"(^|_)(key|token|secret|credentials?|password|headers|clients?|aclient|session|http|lock|tokenizer)$"
)


def _always(_model: Any, _kind: str, _kwargs: Mapping[str, Any]) -> bool:
    return True


def _never(_model: Any, _kind: str, _kwargs: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """
    What is known of one class and its subclasses.

    ``include``: private attributes that shape the answer.  ``ignore``: fields and attributes that do not.
    ``identity(model)``: what tells its models apart where no field does.  ``overwritten``: a field, and the value that
    the model itself replaces once it has asked its server.
    """

    include: tuple[str, ...] = ()
    ignore: frozenset[str] = frozenset()
    identity: Callable[[Any], object] | None = None
    cacheable: Cacheable = _always
    named: bool = True
    overwritten: tuple[str, object] | None = None


_RULES: Final[dict[str, Rule]] = {
    "llama_index.llms.openai.base:OpenAI": Rule(),
    # With track_previous_responses each answer changes the model (llms/openai/responses.py:548).
    "llama_index.llms.openai.responses:OpenAIResponses": Rule(
        include=("_previous_response_id",),
        cacheable=lambda model, _kind, _kwargs: not model.track_previous_responses,
    ),
    "llama_index.llms.anthropic.base:Anthropic": Rule(),
    "llama_index.llms.bedrock_converse.base:BedrockConverse": Rule(),
    "llama_index.llms.mistralai.base:MistralAI": Rule(),
    "llama_index.llms.ollama.base:Ollama": Rule(overwritten=("context_window", -1)),
    # Two configurations dump alike.
    "llama_index.llms.google_genai.base:GoogleGenAI": Rule(include=("_generation_config", "_max_tokens")),
    # Two models dump alike; the LangChain adapter caches below.
    "llama_index.llms.langchain.base:LangChainLLM": Rule(cacheable=_never),
    # It takes a model object and keeps its default name.
    "llama_index.llms.huggingface.base:HuggingFaceLLM": Rule(cacheable=_never),
    "llama_index.core.llms.mock:MockLLM": Rule(named=False),
    "llama_index.embeddings.openai.base:OpenAIEmbedding": Rule(include=("_query_engine", "_text_engine")),
    "llama_index.core.embeddings.mock_embed_model:MockEmbedding": Rule(named=False),
}


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What of the models of one class goes into a key: names of fields, and of what pydantic never dumps."""

    name: str
    rule: Rule
    public: tuple[str, ...]
    naming: tuple[str, ...]  # those of the public ones that name the model
    private: tuple[str, ...]  # always
    plain: tuple[str, ...]  # where the value is plain


def plan_of(cls: type[Any]) -> Plan:
    """Return the plan of a model class."""
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _plan(cls)
    return plan


_plans: WeakKeyDictionary[type[Any], Plan] = WeakKeyDictionary()


def _plan(cls: type[Any]) -> Plan:
    rule, known = Rule(), None
    for base in cls.__mro__:
        if class_name(base) in _RULES:
            rule, known = _RULES[class_name(base)], base
            break
    fields = cls.model_fields
    dropped = IGNORED | rule.ignore
    public = tuple(name for name, field in fields.items() if name not in dropped and not field.exclude)
    # Of a known class its rule says which private attributes count.
    unknown = set(cls.__private_attributes__) - set(getattr(known, "__private_attributes__", ()))
    unknown |= {name for name, field in fields.items() if field.exclude}
    unknown -= dropped.union(rule.include)
    plain = tuple(sorted(name for name in unknown if not _SECRET.search(name)))
    naming = tuple(NAMES.intersection(public))
    return Plan(class_name(cls), rule, public, naming, rule.include, plain)


def class_name(cls: type[Any]) -> str:
    """Return the exact name of a class."""
    return f"{cls.__module__}:{cls.__qualname__}"


def register(
    cls: type[Any],
    *,
    include: Iterable[str] = (),
    ignore: Iterable[str] = (),
    identity: Callable[[Any], object] | None = None,
    cacheable: Cacheable | None = None,
    types: Iterable[type[Any]] = (),
) -> None:
    """
    Say how models of *cls* and of its subclasses are told apart, in place of what askonce knows of them.

    ``include`` names private attributes that shape the answer, ``ignore`` fields and private attributes that do not.
    ``identity(model)`` returns what tells two models apart, for a class none of whose fields names its model.
    ``cacheable(model, kind, kwargs)`` may refuse a call.  ``types`` are pydantic classes that only hold data, and may
    be made anew from what is stored.  Raises ConfigurationError for what is no class, no name or no function.
    """
    if not isinstance(cls, type):
        raise ConfigurationError(f"cls={cls!r} is no class; give the class of a model")
    for name, function in (("identity", identity), ("cacheable", cacheable)):
        if function is not None and not callable(function):
            raise ConfigurationError(f"{name}={function!r} is no function; give a callable, or leave it out")
    admit_types(types)
    _RULES[class_name(getattr(cls, "__askonce_base__", cls))] = Rule(
        include=_names("include", include),
        ignore=frozenset(_names("ignore", ignore)),
        identity=identity,
        cacheable=cacheable or _always,
        named=identity is None,
    )
    _plans.clear()


def _names(argument: str, given: Iterable[str]) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if not isinstance(name, str):
            raise ConfigurationError(f"{argument}: {name!r} is no name; give text such as '_options'")
    return names
