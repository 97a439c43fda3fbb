"""What tells one embedding model from another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_openai import AzureOpenAIEmbeddings, OpenAIEmbeddings
from pydantic import BaseModel, ConfigDict, PrivateAttr, SecretStr

from askonce import Uncacheable
from askonce_langchain._identity import identity


def openai(**fields: Any) -> OpenAIEmbeddings:
    return OpenAIEmbeddings(**{"model": "small", "api_key": "sk-SECRET", **fields})


class Declared(BaseModel):
    model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)
    model: str = "m"
    options: Any = None
    _count: int = PrivateAttr(0)


class Plain:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class Slotted:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def test_a_model_is_itself() -> None:
    """Made twice, in whatever order of its arguments."""
    assert identity(openai(dimensions=256)) == identity(openai(dimensions=256))
    assert identity(Plain(a=1, b=2)) == identity(Plain(b=2, a=1))


@pytest.mark.parametrize(
    "change",
    [
        {"model": "large"},
        {"dimensions": 256},
        {"base_url": "http://other"},
        {"model_kwargs": {"encoding_format": "float"}},
        {"headers": {"x-tenant": "b"}},
        {"disallowed_special": {"<x>", "<y>"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_may_shape_a_vector_counts(change: dict[str, Any]) -> None:
    assert identity(openai()) != identity(openai(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"api_key": "sk-OTHER"},
        {"api_key": lambda: "sk-OTHER"},
        {"max_retries": 7},
        {"timeout": 3},
        {"show_progress_bar": True},
        {"retry_max_seconds": 3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_a_call_is_made_does_not(change: dict[str, Any]) -> None:
    assert identity(openai()) == identity(openai(**change))


def test_no_credential_is_in_it() -> None:
    azure = AzureOpenAIEmbeddings(
        azure_endpoint="https://a.example", api_key=SecretStr("SECRET-1"), api_version="1"
    )
    for model in (openai(), azure, Plain(model="m", api_key="SECRET-2", aws_secret_access_key="SECRET-3")):
        assert b"SECRET" not in identity(model)


def test_a_field_that_changes_changes_it() -> None:
    """LangChain lets fields be set; what was computed before is another model's."""
    model = openai()
    before = identity(model)
    assert before != identity(model.model_copy(update={"dimensions": 256}))
    model.model = "large"
    assert before != identity(model)


def test_the_class_counts() -> None:
    """Two classes with the same fields are two models."""

    class Other(Plain):
        pass

    assert identity(Plain(model="m")) != identity(Other(model="m"))
    assert identity(DeterministicFakeEmbedding(size=3)) != identity(DeterministicFakeEmbedding(size=4))


def test_fields_that_nobody_declared_count_too() -> None:
    assert identity(Declared()) != identity(Declared(extra=1))


def test_private_attributes_of_a_pydantic_model_do_not() -> None:
    """What shapes it is declared; a counter is none of that."""
    counted = Declared()
    counted._count = 3
    assert identity(Declared()) == identity(counted)


def test_all_that_another_object_holds_counts() -> None:
    """A class of the user's own may keep its model's name in a private attribute, or in a slot."""
    assert identity(Plain(_model="a")) != identity(Plain(_model="b"))
    assert identity(Slotted("a")) != identity(Slotted("b"))
    assert identity(Slotted("a")) == identity(Slotted("a"))


@pytest.mark.parametrize("held", [threading.Lock(), object(), len, {"deep": [object()]}, {1, "a"}], ids=repr)
def test_what_cannot_be_compared_is_refused(held: Any) -> None:
    """With the path to it."""
    for model in (Plain(held=held), Declared(options=held)):
        name = "held" if isinstance(model, Plain) else "options"
        with pytest.raises(Uncacheable, match=rf"\['{name}'\]"):
            identity(model)


IN_ANOTHER_PROCESS = """
from types import SimpleNamespace
from askonce_langchain._identity import identity
print(identity(SimpleNamespace(special={f"<{number}>" for number in range(50)})).hex())
"""


def test_it_is_the_same_in_every_process() -> None:
    """Whatever order a process gives to sets of text."""
    told = {
        subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
