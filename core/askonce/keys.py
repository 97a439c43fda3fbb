"""
From a request to its key: canonical form, fingerprint, names in Redis.

Two requests share an answer if, and only if, their canonical forms are equal.  The canonical form is MessagePack,
whose values carry their type and length, so that no two different requests can be written alike:

1. mappings are sorted by key, except below ``Verbatim``, where their order counts (it reaches the model: JSON
   schemas of tools and of structured output);
2. numbers count by value: ``1.0`` is ``1``, ``-0.0`` is ``0``; ``True`` is a truth value, not ``1``;
3. a tuple counts as a list, an enum member as its value, a UUID as its text, bytes as bytes;
4. NaN, infinities, sets, keys that are not text, cycles and every other object are refused with the path to them
   (``Uncacheable``): a missed hit costs money, a wrong hit costs trust.

The fingerprint is BLAKE2b of 20 bytes over length-prefixed parts: kind, version, scope, request.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Integral
from typing import Any, Final
from uuid import UUID

import ormsgpack
from ormsgpack import Ext

from .errors import ConfigurationError, Uncacheable

_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# Extension types of the canonical form: what MessagePack has no type of its own for.
_BIG_INT, _SURROGATES, _VERBATIM = 1, 2, 4

_PASS_ON = (
    ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_SORTED: Final = _PASS_ON | ormsgpack.OPT_SORT_KEYS
_AS_GIVEN: Final = _PASS_ON

_FLOAT = b"\xcb"  # the MessagePack marker of a double
_double = struct.Struct(">d").unpack_from
_TO_URL = bytes.maketrans(b"+/", b"-_")

#: The kind of requests that come straight from the caller.
PLAIN: Final = "request"


@dataclass(frozen=True, slots=True)
class Verbatim:
    """A part of a request in which the order of mappings counts."""

    value: object


@dataclass(frozen=True, slots=True)
class Request:
    """A request of a *kind* of its own: requests of different kinds never share an answer."""

    kind: str
    body: object


# --- the canonical form -------------------------------------------------------------------------------------------


def canonical(request: object) -> bytes:
    """Return the canonical form of *request*, or raise Uncacheable with the path to what has none."""
    return _pack(request, _SORTED)


def _pack(value: object, option: int) -> bytes:
    # The fast path leaves the walk to C.  It misses two things only: floats that are whole numbers or not finite
    # (found by looking at every byte that could be a float's marker) and what MessagePack refuses.
    try:
        packed = ormsgpack.packb(value, default=_plain, option=option)
    except TypeError:
        pass
    else:
        if _floats_are_fractions(packed):
            return packed
    try:
        return ormsgpack.packb(tree(value), option=option)
    except Uncacheable:
        raise
    except RecursionError:
        raise Uncacheable("request: nested too deep to be keyed") from None
    except TypeError as error:
        raise Uncacheable(f"request: {error}") from None


def _floats_are_fractions(packed: bytes) -> bool:
    at = packed.find(_FLOAT)
    while at >= 0:
        if at + 9 <= len(packed):
            (number,) = _double(packed, at + 1)
            if number.is_integer() or number - number != 0:  # infinity and NaN, in half the time of isfinite
                return False
        at = packed.find(_FLOAT, at + 1)
    return True


def _plain(value: object) -> object:
    """Return *value* in types that MessagePack has; raise TypeError if there is only one's guess for it."""
    match value:
        case Verbatim():
            return Ext(_VERBATIM, _pack(value.value, _AS_GIVEN))
        case Enum():
            inner = value.value
            return (
                _number(inner) if type(inner) is float else _integer(inner) if type(inner) is int else inner
            )
        case str():
            return str.__str__(value)
        case float():
            return _number(float(value))
        case Integral():  # numpy's too
            return _integer(value.__index__())
        case Mapping():
            return dict(value)
        case list() | tuple():
            return list(value)
        case UUID():
            return str(value)
        case bytearray() | memoryview():
            return bytes(value)
        case _:
            raise TypeError(f"{type(value).__qualname__} has no canonical form")


def _number(value: float) -> object:
    if not math.isfinite(value):
        raise TypeError(f"{value!r} is no number that can be compared")
    return _integer(int(value)) if value.is_integer() else value


def _integer(value: int) -> object:
    if -(2**63) <= value < 2**64:
        return value
    return Ext(_BIG_INT, value.to_bytes((value.bit_length() + 8) // 8, "big", signed=True))


def tree(value: object) -> Any:
    """Return *value* in its canonical types, mappings in the order given; raise Uncacheable with the path."""
    return _tree(value, "request", set())


def _tree(value: object, path: str, above: set[int]) -> Any:
    kind = type(value)
    if value is None or kind is bool or kind is bytes or kind is Ext:
        return value
    if kind is str:
        return _text(value)  # type: ignore[arg-type]  # kind says so
    if id(value) in above:
        raise Uncacheable(f"{path}: a cycle: this {kind.__qualname__} contains itself")
    above.add(id(value))
    try:
        if isinstance(value, Mapping):
            return {_key(key, path): _tree(item, f"{path}[{key!r}]", above) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [_tree(item, f"{path}[{index}]", above) for index, item in enumerate(value)]
        if kind is Verbatim:
            return Ext(_VERBATIM, ormsgpack.packb(_tree(value.value, path, above), option=_AS_GIVEN))  # type: ignore[attr-defined]
        try:
            plain = _number(value) if kind is float else _plain(value)  # type: ignore[arg-type]
        except TypeError as error:
            raise Uncacheable(
                f"{path}: {error}; give JSON-like values (None, bool, numbers, text, bytes, lists, mappings)"
            ) from None
        return plain if type(plain) in {int, float, Ext} else _tree(plain, path, above)
    finally:
        above.discard(id(value))


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise Uncacheable(f"{path}: the key {key!r} is {type(key).__qualname__}; keys of a mapping are text")
    text = str.__str__(key)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Uncacheable(f"{path}: the key {key!r} is not valid Unicode") from None
    return text


def _text(value: str) -> object:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: not UTF-8, yet the same text each time
        return Ext(_SURROGATES, value.encode("utf-8", "surrogatepass"))
    return value


#: Bytes of a digest as it stands in keys: 20 bytes as unpadded base64url.
DIGEST_LENGTH: Final = 27


# --- the fingerprint ----------------------------------------------------------------------------------------------


_MOST_KINDS: Final = 64


class Fingerprints:
    """Fingerprints under one version and scope.  Immutable and safe to share between threads."""

    __slots__ = ("_plain", "_scope_form", "_started", "scope", "version")

    def __init__(self, version: str, scope: Mapping[str, object]) -> None:
        self.version = version
        self.scope = dict(scope)
        self._scope_form = check_scope(scope)
        self._started: dict[str, hashlib.blake2b] = {}
        self._plain = self._start(PLAIN)

    def _start(self, kind: str) -> hashlib.blake2b:
        """Return the state that every digest of *kind* begins with; to be copied."""
        if (started := self._started.get(kind)) is not None:
            return started
        state = hashlib.blake2b(digest_size=20)
        for part in (kind.encode(), self.version.encode(), self._scope_form):
            state.update(len(part).to_bytes(8, "big") + part)
        if len(self._started) < _MOST_KINDS:  # kinds are few; who makes one of each request gains nothing
            self._started[kind] = state
        return state

    def within(self, parts: Mapping[str, object]) -> Fingerprints:
        """Return the fingerprints whose scope holds *parts* as well; a part given again replaces the outer one."""
        return Fingerprints(self.version, {**self.scope, **parts}) if parts else self

    def of(self, request: object) -> bytes:
        """Return the digest of *request* as it stands in keys: 27 bytes of base64url without padding."""
        if type(request) is Request:
            form, state = _pack(request.body, _SORTED), self._start(request.kind).copy()
        else:
            form, state = _pack(request, _SORTED), self._plain.copy()
        state.update(len(form).to_bytes(8, "big"))
        state.update(form)
        return _url(state.digest())


def check_scope(scope: Mapping[str, object]) -> bytes:
    """Return the canonical form of scope parts, or raise ConfigurationError with the path to what has none."""
    if not isinstance(scope, Mapping):
        raise ConfigurationError(
            f"scope={scope!r} is {type(scope).__name__}; give a mapping of names to values"
        )
    try:
        return canonical(dict(scope))
    except Uncacheable as error:
        raise ConfigurationError(f"scope{str(error).removeprefix('request')}") from None


def _url(raw: bytes) -> bytes:
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URL)


def tag_hash(tag: str) -> bytes:
    """Return the eight bytes by which a tag stands in an entry."""
    if not isinstance(tag, str) or not tag:
        raise ConfigurationError(f"tag={tag!r} is no tag: give text that is not empty")
    return hashlib.blake2b(tag.encode("utf-8", "surrogatepass"), digest_size=8).digest()


# --- names in Redis -----------------------------------------------------------------------------------------------


def check_text(name: str, value: object) -> None:
    """Raise ConfigurationError if *value*, the argument *name*, is no text that can be written down."""
    if not isinstance(value, str):
        raise ConfigurationError(f"{name}={value!r} is {type(value).__name__}; give text such as 'v3'")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}={value!r} is not valid Unicode; give text such as 'v3'") from None


def check_namespace(namespace: str) -> str:
    """Return *namespace*, or raise ConfigurationError: a brace would end the cluster hash tag."""
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(f"namespace={namespace!r} is not allowed: give 1 to 64 of A-Z a-z 0-9 _ . -")
    return namespace


def partition_tags(namespace: str, count: int) -> list[int]:
    """
    Return the hash tag numbers of *count* partitions, spread evenly over the slots of a cluster.

    The n-th tag is the first integer whose slot falls into the n-th part of the 16384 slots
    (Redis Cluster specification, "Key distribution model": CRC16, XMODEM variant, of the hash tag).
    """
    found: dict[int, int] = {}
    number = 0
    while len(found) < count:
        found.setdefault(partition_slot(namespace, number) * count // 16384, number)
        number += 1
    return [found[part] for part in range(count)]


def partition_slot(namespace: str, tag: int) -> int:
    """Return the slot in which all keys of a partition lie."""
    return _slot(b"%b:%d" % (namespace.encode(), tag))


def meta_slot(namespace: str) -> int:
    """Return the slot of ``meta_name``."""
    return _slot(namespace.encode())


def meta_name(namespace: str) -> bytes:
    """Return the name of the hash in which the layout of a namespace is fixed."""
    return b"ao:{%b}:meta" % namespace.encode()


def _slot(hash_tag: bytes) -> int:
    return binascii.crc_hqx(hash_tag, 0) % 16384


class Names:
    """The key names of one partition; the table of docs/data-model.md says what each key holds."""

    __slots__ = ("c", "e", "f", "h", "k", "l", "prefix", "r", "s", "tv", "w", "x")

    def __init__(self, namespace: str, tag: int) -> None:
        self.prefix = prefix = b"ao:{%b:%d}:" % (namespace.encode(), tag)
        self.l, self.x, self.c, self.f = prefix + b"l", prefix + b"x", prefix + b"c", prefix + b"f"
        self.tv, self.w, self.s = prefix + b"tv", prefix + b"w", prefix + b"s"
        self.e, self.k, self.r, self.h = prefix + b"e:", prefix + b"k:", prefix + b"r:", prefix + b"h:"


# --- explain ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """A place where two requests differ; a side that has nothing there is ``None`` and says so in ``missing``."""

    path: str
    left: object
    right: object
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """
    What is in a key, part by part.

    ``key`` is the whole Redis key, ``None`` while Redis cannot say which generation is current.  ``differences``
    is empty unless two requests were given; two requests without differences share an answer.
    """

    namespace: str
    version: str
    scope: Mapping[str, object]
    kind: str
    request: object
    fingerprint: str
    generation: int | None
    partition: int
    key: str | None
    differences: Sequence[Difference] = ()


def differences(left: object, right: object) -> list[Difference]:
    """Return where the canonical forms of two requests differ, in the order of the left one."""
    found: list[Difference] = []
    one = left if isinstance(left, Request) else Request(PLAIN, left)
    other = right if isinstance(right, Request) else Request(PLAIN, right)
    if one.kind != other.kind:
        found.append(Difference("kind", one.kind, other.kind))
    _compare(tree(one.body), tree(other.body), "request", found)
    return found


def visible(request: object) -> Any:
    """Return the canonical form of *request* for people: parts whose order counts are lists of pairs."""
    return _visible(tree(request))


def _visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _visible(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_visible(item) for item in value]
    return _opened(value)[1] if type(value) is Ext else value


def _opened(value: Any) -> tuple[int, Any]:
    """Return the number and the content of an extension type, in types for people; 0 for any other value."""
    if type(value) is not Ext:
        return 0, value
    tag, data = _parts(value)
    if tag == _BIG_INT:
        return tag, int.from_bytes(data, "big", signed=True)
    if tag == _SURROGATES:
        return tag, data.decode("utf-8", "surrogatepass")
    return tag, _visible(_inside(data)) if tag == _VERBATIM else data


def _parts(value: Any) -> tuple[int, bytes]:
    """Return number and data of an extension type, which shows them only to who unpacks it."""
    parts: list[tuple[int, bytes]] = []
    ormsgpack.unpackb(ormsgpack.packb(value), ext_hook=lambda tag, data: parts.append((tag, bytes(data))))
    return parts[0]


def _inside(data: bytes) -> Any:
    """Return a part whose order counts with its mappings as lists of pairs, so that the order can be compared."""
    return _pairs(ormsgpack.unpackb(data, ext_hook=lambda tag, inner: Ext(tag, bytes(inner))))


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return [[key, _pairs(item)] for key, item in value.items()]
    return [_pairs(item) for item in value] if isinstance(value, list) else value


def _compare(left: Any, right: Any, path: str, found: list[Difference]) -> None:
    if isinstance(left, dict) and isinstance(right, dict):
        for key in [*left, *(key for key in right if key not in left)]:
            below = f"{path}[{key!r}]"
            if key not in right:
                found.append(Difference(below, _visible(left[key]), None, "right"))
            elif key not in left:
                found.append(Difference(below, None, _visible(right[key]), "left"))
            else:
                _compare(left[key], right[key], below, found)
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            _compare(one, other, f"{path}[{index}]", found)
    elif ormsgpack.packb(left, option=_SORTED) != ormsgpack.packb(right, option=_SORTED):
        if _opened(left)[0] == _VERBATIM == _opened(right)[0]:
            inside: list[Difference] = []
            _compare(_inside(_parts(left)[1]), _inside(_parts(right)[1]), path, inside)
            found.extend(inside or [Difference(path, _visible(left), _visible(right))])
        else:
            found.append(Difference(path, _visible(left), _visible(right)))
