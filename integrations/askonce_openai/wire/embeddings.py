"""
Embeddings item by item, as values: a request into its items, an answer into their vectors, vectors into an answer.

An entry holds float32, which every format is made of, so that base64 and float, one text and batches share entries.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from array import array
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeGuard

from askonce.keys import Request

from .plan import Plan
from .record import UNREADABLE
from .sse import compact

#: A text, or an array of tokens.
Item: TypeAlias = str | list[int]

_FORMATS: Final = ("float", "base64")
_STANDARD: Final = frozenset({"model", "input", "dimensions", "encoding_format", "user"})


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of one item, as float32 in little-endian order, and the model that upstream says made it."""

    model: str
    data: bytes


class _Codec:
    name = "http.vector"

    def encode(self, value: Vector) -> bytes:
        return value.model.encode("utf-8", "surrogatepass") + b"\n" + value.data

    def decode(self, data: bytes) -> Vector:
        model, line_end, numbers = data.partition(b"\n")
        if not line_end or not numbers or len(numbers) % 4:
            raise ValueError("no vector")
        return Vector(model.decode("utf-8", "surrogatepass"), numbers)


#: Writes and reads vectors (an ``askonce.Codec``).
CODEC: Final = _Codec()


@dataclass(frozen=True, slots=True)
class Batch:
    """The items of an embeddings request, and the request of each to the core."""

    body: Mapping[str, Any]
    items: Sequence[Item]
    requests: Sequence[Request]

    @classmethod
    def of(cls, plan: Plan) -> Batch | None:
        """Return the batch of a request, or None if it has items or a format that are not kept one by one."""
        if plan.api != "embeddings" or _format(plan.body) not in _FORMATS:
            return None
        items = _items(plan.body["input"])
        if not items:
            return None
        # With a parameter of a vendor's own the numbers may be no float32 in one format: then the formats stay apart.
        apart = {"input", "encoding_format"} if _STANDARD.issuperset(plan.body) else {"input"}
        parts: Any = plan.request.body
        body = {name: value for name, value in parts["body"].items() if name not in apart}
        shared = {**parts, "body": body}
        return cls(plan.body, items, [Request("http.embedding", [shared, item]) for item in items])

    def content(self, missing: Sequence[Item]) -> bytes | None:
        """Return the content of a request for the *missing* items; None if that is the request as it was made."""
        return None if missing == self.items else compact({**self.body, "input": list(missing)})


def vectors_of(batch: Batch, content: bytes, count: int) -> tuple[dict[str, Any], list[Vector]] | None:
    """Return an answer for *count* items and their vectors, in order; None if it cannot be merged with others."""
    try:
        said = json.loads(content)
        vectors = _vectors(said, count, batch.body["model"])
    except UNREADABLE:
        return None
    return (said, vectors) if are_alike(vectors) else None


def merged(batch: Batch, said: Mapping[str, Any], vectors: Sequence[Vector], usage: object) -> bytes | None:
    """Return the answer to the whole *batch*, in its format, with what was *said* besides; None if JSON cannot say it."""
    wanted = _format(batch.body)
    try:
        return compact(
            {
                **said,
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": _encoded(vector.data, wanted)}
                    for index, vector in enumerate(vectors)
                ],
                "model": vectors[0].model,
                "usage": usage,
            }
        )
    except ValueError:
        return None


def are_alike(vectors: Sequence[Vector]) -> bool:
    """Return whether the vectors are of one model and one length."""
    return len({(vector.model, len(vector.data)) for vector in vectors}) == 1


def _format(body: Mapping[str, Any]) -> object:
    wanted = body.get("encoding_format")
    return "float" if wanted is None else wanted


def item_key(item: Item) -> Hashable:
    """Return what equal items have in common."""
    return item if isinstance(item, str) else tuple(item)


def _items(given: object) -> list[Item] | None:
    """Return the texts or token arrays in *given*, which may be one of them; None if there is anything else."""
    if isinstance(given, str):
        return [given]
    if _is_tokens(given):
        return [given]
    if isinstance(given, list) and all(isinstance(item, str) or _is_tokens(item) for item in given):
        return given
    return None


def _is_tokens(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _vectors(said: dict[str, Any], count: int, model: str) -> list[Vector]:
    """Return the vectors of an answer in the order of their items; raise ValueError and its like for another answer."""
    if said.get("error"):
        raise ValueError("an error")
    data = said["data"]
    if sorted(one["index"] for one in data) != list(range(count)):
        raise ValueError("not one vector an item")
    made_by = said.get("model") or model
    if not isinstance(made_by, str) or "\n" in made_by:
        raise ValueError("no model")
    numbers = {one["index"]: _packed(one["embedding"]) for one in data}
    return [Vector(made_by, numbers[index]) for index in range(count)]


def _packed(embedding: Any) -> bytes:
    numbers = array("f", () if isinstance(embedding, str) else embedding)
    if isinstance(embedding, str):
        numbers.frombytes(base64.b64decode(embedding, validate=True))
        _little(numbers)
    if not numbers or not math.isfinite(sum(numbers)):
        raise ValueError("no vector")
    return _little(numbers).tobytes()


def _encoded(data: bytes, wanted: object) -> str | list[float]:
    if wanted == "base64":
        return base64.b64encode(data).decode()
    numbers = array("f")
    numbers.frombytes(data)
    return _little(numbers).tolist()


def _little(numbers: array[float]) -> array[float]:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
