"""From a request to its key."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import decimal
import enum
import hashlib
import json
import math
import random
import string
import struct
import threading
import types
import uuid
from fractions import Fraction
from typing import Any, NamedTuple

import ormsgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from askonce import ConfigurationError, Uncacheable
from askonce.keys import (
    _SORTED,
    PLAIN,
    Fingerprints,
    Names,
    Request,
    Verbatim,
    canonical,
    check_namespace,
    differences,
    partition_tags,
    tag_hash,
    tree,
    visible,
)


class Colour(enum.Enum):
    RED = "red"
    THREE = 3
    TWO_POINT = 2.0
    HALF = 0.5
    NAN = math.nan
    BIG = 2**70
    LIST = (1, 2)


class Word(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1
    BIG = 2**70


class Text(str):
    __slots__ = ()


class Integer(int):
    pass


class Float(float):
    pass


class Map(dict):
    pass


class Pair(NamedTuple):
    a: int
    b: int


@dataclasses.dataclass
class Point:
    x: int = 1


class Indexed:
    """A number that is no int, such as numpy's: a size, a place, or a test double's answer to everything."""

    def __index__(self) -> int:
        return 5


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")

# --- the canonical form -------------------------------------------------------------------------------------------

SAME = {
    "order of keys": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "order of keys below": ([{"a": {"c": 1, "b": 2}}], [{"a": {"b": 2, "c": 1}}]),
    "whole float": (1.0, 1),
    "whole float below": ({"temperature": 0.0}, {"temperature": 0}),
    "negative zero": (-0.0, 0),
    "large whole float": (1e300, int(1e300)),
    "float at the edge of integers": (2.0**64, 2**64),
    "tuple": ((1, (2,)), [1, [2]]),
    "named tuple": (Pair(1, 2), [1, 2]),
    "enum": (Colour.RED, "red"),
    "enum of a number": (Colour.THREE, 3),
    "enum of a whole float": (Colour.TWO_POINT, 2),
    "enum of a float": ([Colour.HALF], [0.5]),
    "enum of a big integer": (Colour.BIG, 2**70),
    "enum of a big integer beside a whole float": ([Number.BIG, 1.0], [2**70, 1]),
    "enum of a tuple": (Colour.LIST, [1, 2]),
    "text enum": (Word.RED, "red"),
    "integer enum": (Number.ONE, 1),
    "text enum as key": ({Word.RED: 1}, {"red": 1}),
    "subclass of text": (Text("a"), "a"),
    "subclass of text as key": ({Text("a"): 1.0}, {"a": 1}),
    "subclass of int": (Integer(3), 3),
    "subclass of float": ([Float(1.5), Float(2.0)], [1.5, 2]),
    "subclass of dict": (Map(b=1, a=2), {"a": 2, "b": 1}),
    "ordered dict": (collections.OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
    "proxy of a dict": (types.MappingProxyType({"b": 1, "a": 2}), {"a": 2, "b": 1}),
    "uuid": (UUID, str(UUID)),
    "bytearray": (bytearray(b"a"), b"a"),
    "memoryview": (memoryview(b"a"), b"a"),
    "the same object twice": ([["a"]] * 2, [["a"], ["a"]]),
    "verbatim number": (Verbatim(1.0), Verbatim(1)),
    "verbatim tuple": (Verbatim(({"b": 1, "a": 2},)), Verbatim([{"b": 1, "a": 2}])),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_what_means_the_same_is_written_alike(one, other):
    """Spellings of one request share a canonical form."""
    assert canonical(one) == canonical(other)
    assert canonical({"deep": [one, 0.5]}) == canonical({"deep": [other, 0.5]})
    assert canonical({"deep": [one, 2.0]}) == canonical({"deep": [other, 2]})


DIFFERENT = {
    "truth is no number": (True, 1),
    "false is no number": (False, 0),
    "truth is no float": (True, 1.0),
    "none is not false": (None, False),
    "none is not empty": (None, ""),
    "text is no number": ("1", 1),
    "bytes are not text": (b"a", "a"),
    "empty list and mapping": ([], {}),
    "order of a list": ([1, 2], [2, 1]),
    "nesting": ([[1], 2], [[1, 2]]),
    "key with null and no key": ({"a": None}, {}),
    "signs": (1, -1),
    "neighbouring floats": (0.1, math.nextafter(0.1, 1)),
    "big integers": (2**70, 2**70 + 1),
    "big integer and its digits": (2**70, str(2**70)),
    "big integer and its digits as bytes": (2**70, b"%d" % 2**70),
    "big integer and what a float makes of it": (2**63 + 1, float(2**63)),
    "lone surrogates": ("\ud800", "\ud801"),
    "lone surrogate and its bytes": ("\ud800", b"\xed\xa0\x80"),
    "lone surrogate and question mark": ("\ud800", "?"),
    "composed and decomposed letters": ("\u00e9", "e\u0301"),
    "case": ("A", "a"),
    "space": ("a", "a "),
    "verbatim order": (Verbatim({"a": 1, "b": 2}), Verbatim({"b": 2, "a": 1})),
    "verbatim order below": (Verbatim([{"x": {"a": 1, "b": 2}}]), Verbatim([{"x": {"b": 2, "a": 1}}])),
    "verbatim and not": (Verbatim({"a": 1}), {"a": 1}),
    "verbatim and a list of pairs": (Verbatim({"a": 1}), [["a", 1]]),
    "verbatim twice": (Verbatim(Verbatim(1)), Verbatim(1)),
    "verbatim and its bytes": (Verbatim(1), b"\x01"),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_what_means_another_thing_is_written_otherwise(one, other):
    """Requests that mean different things never share a canonical form."""
    assert canonical(one) != canonical(other)
    assert canonical({"deep": [one, 2.0]}) != canonical({"deep": [other, 2.0]})


def test_order_outside_a_verbatim_part_does_not_count():
    """Verbatim keeps the order below it and no other."""
    schema = Verbatim({"b": 1, "a": 2})

    assert canonical({"tools": schema, "model": "m"}) == canonical({"model": "m", "tools": schema})


CYCLE: list[Any] = []
CYCLE.append({"a": (CYCLE,)})
CYCLIC_VERBATIM: dict[str, Any] = {}
CYCLIC_VERBATIM["schema"] = Verbatim(CYCLIC_VERBATIM)

REFUSED = {
    "nan": ({"a": [1, math.nan]}, "request['a'][1]: nan is no number"),
    "infinity": ([math.inf], "request[0]: inf is no number"),
    "negative infinity": ((0, -math.inf), "request[1]: -inf is no number"),
    "subclass of float": ([Float("nan")], "request[0]: nan is no number"),
    "enum of nan": ({"a": Colour.NAN}, "request['a']: nan is no number"),
    "index": ({"n": Indexed()}, "request['n']: Indexed has no canonical form"),
    "set": ({"stop": {"a"}}, "request['stop']: set has no canonical form"),
    "frozen set": (frozenset(), "request: frozenset has no canonical form"),
    "object": ([[object()]], "request[0][0]: object has no canonical form"),
    "function": ({"f": len}, "request['f']: builtin_function_or_method has no canonical form"),
    "class": ([Point], "request[0]: type has no canonical form"),
    "generator": ((x for x in "a"), "request: generator has no canonical form"),
    "deque": (collections.deque([1]), "request: deque has no canonical form"),
    "decimal": (decimal.Decimal(1), "request: Decimal has no canonical form"),
    "complex": (1j, "request: complex has no canonical form"),
    "date": (datetime.date(2024, 1, 1), "request: date has no canonical form"),
    "time": ([datetime.datetime(2024, 1, 1)], "request[0]: datetime has no canonical form"),
    "dataclass": ([Point()], "request[0]: Point has no canonical form"),
    "error": ([ValueError("x")], "request[0]: ValueError has no canonical form"),
    "verbatim": ({"t": Verbatim([1, object()])}, "request['t'][1]: object has no canonical form"),
    "request in a request": ([Request("k", 1)], "request[0]: Request has no canonical form"),
    "number as key": ({"a": {1: 2}}, "request['a']: the key 1 is int; keys of a mapping are text"),
    "none as key": ({None: 2}, "request: the key None is NoneType; keys"),
    "bytes as key": ([{b"a": 2}], "request[0]: the key b'a' is bytes; keys"),
    "tuple as key": ({(1,): 2}, "request: the key (1,) is tuple; keys"),
    "truth as key": ({True: 2}, "request: the key True is bool; keys"),
    "surrogate as key": ({"\ud800": 2}, "request: the key '\\ud800' is not valid Unicode"),
    "cycle": (CYCLE, "request[0]['a'][0]: a cycle: this list contains itself"),
    "cycle below verbatim": (CYCLIC_VERBATIM, "request['schema']: a cycle: this dict contains itself"),
}


@pytest.mark.parametrize(("value", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_meaning_is_refused(value, message):
    """What cannot be keyed without guessing is refused with the path to it, whatever stands beside it."""
    with pytest.raises(Uncacheable) as alone:
        canonical(value)
    with pytest.raises(Uncacheable) as beside:
        canonical({"model": 1.0, "body": value})

    assert str(alone.value).startswith(message)
    assert str(beside.value).startswith(message.replace("request", "request['body']", 1))


def test_a_refusal_says_what_may_be_given():
    """The message of a refused object lists what has a canonical form."""
    with pytest.raises(Uncacheable, match=r"None, bool, numbers, text, bytes, lists, mappings"):
        canonical(object())


def test_the_address_of_an_object_never_reaches_a_message_or_a_key():
    """No part of a repr is guessed from: an object is refused by its type alone."""
    with pytest.raises(Uncacheable) as refusal:
        canonical({"client": object()})

    assert "0x" not in str(refusal.value)


@pytest.mark.parametrize("leaf", [0, 1.0, {"a": "b"}], ids=["int", "float", "mapping"])
def test_what_is_nested_too_deep_is_refused(leaf):
    """A request that no parser could have made is refused, not a crash of the interpreter."""
    value: Any = leaf
    for _ in range(5000):
        value = [value]

    with pytest.raises(Uncacheable, match="too deep"):
        canonical(value)


@pytest.mark.parametrize("number", [10**5000, -(10**5000), [10**5000, 1.0]], ids=["large", "small", "mixed"])
def test_a_number_of_thousands_of_digits_is_keyed_or_refused(number):
    """Python refuses to print integers of more than 4300 digits; that must not come out as a ValueError."""
    try:
        form = canonical(number)
    except Uncacheable:
        return
    assert form != canonical(10**4999)


def test_only_what_is_documented_passes_as_a_number():
    """A test double answers to every protocol, and is still no number."""
    from unittest.mock import MagicMock

    with pytest.raises(Uncacheable):
        canonical({"client": MagicMock()})


@pytest.mark.parametrize("other", [1.0, 2.0, 1e16, -3.0, math.pi, 0.5, 1e-300])
def test_bytes_that_look_like_a_float_are_bytes(other):
    """The search for floats meets their marker inside text and bytes, and is not misled."""
    fake = b"\xcb" + struct.pack(">d", other)

    assert canonical([fake, 1]) != canonical([fake, 2])
    assert canonical([fake]) == ormsgpack.packb([fake])
    assert canonical([b"\xcb"]) == ormsgpack.packb([b"\xcb"])
    assert canonical(["\u02f0" * 9, other]) == canonical(
        ["\u02f0" * 9, Fraction(other).numerator if other.is_integer() else other]
    )


json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(-(2**40), 2**40).map(float)
    | st.text()
    | st.sampled_from(["\u02c0\u02cb", "\u02cb" * 8, "\U000fffff", "\ud800", "a\udfff"])
    | st.binary(max_size=20)
    | st.floats().map(lambda number: b"\xcb" + struct.pack(">d", number))
)
keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
json_values = st.recursive(
    json_leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4)
        | st.tuples(inner, inner)
        | inner.map(Verbatim)
    ),
    max_leaves=12,
)


@given(json_values)
@example([2**70, 1.0])
@example(Verbatim(Verbatim({"b": 1.0, "a": "\ud800"})))
def test_the_fast_way_and_the_walk_write_the_same(value):
    """C's one pass and Python's walk end in the same bytes."""
    assert canonical(value) == ormsgpack.packb(tree(value), option=_SORTED)


def meaning(value: Any) -> Any:
    """Return something that is equal for equal requests: the rules of the module, written another way."""
    match value:
        case Verbatim():
            return "verbatim", in_order(value.value)
        case bool() | None:
            return "constant", value
        case int() | float():
            return "number", Fraction(value)
        case dict():
            return "mapping", frozenset((key, meaning(item)) for key, item in value.items())
        case list() | tuple():
            return "list", tuple(map(meaning, value))
        case _:
            return type(value).__name__, value


def in_order(value: Any) -> Any:
    match value:
        case dict():
            return "mapping", tuple((key, in_order(item)) for key, item in value.items())
        case list() | tuple():
            return "list", tuple(map(in_order, value))
        case _:
            return meaning(value)


few_values = st.recursive(
    st.sampled_from([None, True, False, 0, 1, 1.0, -0.0, 0.5, "", "a", "1", b"", b"a", b"1"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        | st.tuples(inner)
        | inner.map(Verbatim)
    ),
    max_leaves=3,
)


@given(few_values, few_values)
@settings(max_examples=400)
def test_equal_if_and_only_if_they_mean_the_same(one, other):
    """Two requests share a canonical form if, and only if, they mean the same."""
    assert (canonical(one) == canonical(other)) is (meaning(one) == meaning(other))


def respelled(value: Any, rng: random.Random, *, keep_order: bool = False) -> Any:
    """Return *value* in another spelling."""
    match value:
        case Verbatim():
            return Verbatim(respelled(value.value, rng, keep_order=True))
        case bool():
            return value
        case int() if abs(value) < 2**53:
            return rng.choice([value, float(value)])
        case float() if value.is_integer():
            return int(value)
        case dict():
            items = [(key, respelled(item, rng, keep_order=keep_order)) for key, item in value.items()]
            if not keep_order:
                rng.shuffle(items)
            return rng.choice([dict, collections.OrderedDict, lambda i: types.MappingProxyType(dict(i))])(
                items
            )
        case list() | tuple():
            return rng.choice([list, tuple])(respelled(item, rng, keep_order=keep_order) for item in value)
        case bytes():
            return rng.choice([bytes, bytearray, memoryview])(value)
        case str():
            return rng.choice([str, Text])(value)
        case _:
            return value


@given(json_values, st.randoms(use_true_random=False))
def test_every_spelling_of_a_request_is_the_same_request(value, rng):
    """Key order, whole floats, tuples and subclasses do not make another request."""
    assert canonical(value) == canonical(respelled(value, rng))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
        max_leaves=8,
    )
)
def test_a_request_survives_a_trip_through_json(value):
    """What a client sent as JSON text is the request that it wrote."""
    assert canonical(json.loads(json.dumps(value))) == canonical(value)


# --- the fingerprint ----------------------------------------------------------------------------------------------


def by_hand(*parts: bytes) -> bytes:
    """Return the fingerprint as the documentation has it."""
    state = hashlib.blake2b(digest_size=20)
    for part in parts:
        state.update(struct.pack(">Q", len(part)) + part)
    return base64.urlsafe_b64encode(state.digest()).rstrip(b"=")


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dictionaries(keys, st.integers() | keys, max_size=2),
    few_values,
)
def test_the_fingerprint_is_what_the_documentation_says(version, scope, request):
    """BLAKE2b of 20 bytes over length-prefixed kind, version, scope and request, as 27 characters of base64url."""
    digest = Fingerprints(version, scope).of(request)

    assert digest == by_hand(PLAIN.encode(), version.encode(), canonical(scope), canonical(request))
    assert len(digest) == 27
    assert set(digest.decode()) <= set(string.ascii_letters + string.digits + "-_")


def test_a_known_fingerprint_stays():
    """Whoever changes this line makes every entry in every cache unreachable."""
    fingerprints = Fingerprints("v3", {"repo": "a", "tenant": 7})

    assert fingerprints.of({"model": "m", "temperature": 0.5, "n": 1.0}) == b"X88GJi6_7LI3sTdOu0VcLIMKzOc"
    assert fingerprints.of(Request("embedding", ["a", b"b", None])) == b"dVqOfeNkUYfWwwhiwwSEZPUpajA"


def test_parts_do_not_run_into_each_other():
    """No part of a key can be moved into the next without changing it."""
    assert Fingerprints("ab", {}).of("c") != Fingerprints("a", {}).of("bc")
    assert Fingerprints("", {}).of(Request("ab", "c")) != Fingerprints("b", {}).of(Request("a", "c"))
    assert Fingerprints("", {"a": "b"}).of("") != Fingerprints("", {}).of({"a": "b"})


def test_kinds_share_no_answer():
    """Requests of different kinds are different, and a plain one has a kind of its own."""
    of = Fingerprints("", {}).of

    assert len({of("a"), of(Request("a", "a")), of(Request("b", "a"))}) == 3
    assert of("a") == of(Request(PLAIN, "a"))


def test_version_and_scope_are_in_the_key():
    """Another version, or another value of a scope, is another key."""
    found = {
        Fingerprints(version, scope).of("a")
        for version in ("", "1", "2")
        for scope in ({}, {"tenant": "a"}, {"tenant": "b"}, {"repo": "a"}, {"tenant": "a", "repo": "a"})
    }

    assert len(found) == 15


def test_the_order_of_a_scope_does_not_count():
    """A scope is what it holds, however it was put together."""
    outer = Fingerprints("v", {})
    both = Fingerprints("v", {"b": 1.0, "a": 2}).of("q")

    assert outer.within({"a": 2}).within({"b": 1}).of("q") == both
    assert outer.within({"b": 1, "a": 2}).of("q") == both


def test_an_inner_scope_replaces_the_outer_value():
    """A part that is given again replaces the outer one, and the outer fingerprints are left as they were."""
    outer = Fingerprints("v", {"tenant": "a"})
    before = outer.of("q")

    assert outer.within({"tenant": "b"}).of("q") == Fingerprints("v", {"tenant": "b"}).of("q")
    assert outer.within({}) is outer
    assert outer.of("q") == before


def test_a_scope_of_its_own_is_not_touched():
    """Changing the mapping that a scope was made of changes nothing."""
    parts: dict[str, object] = {"tenant": "a"}
    fingerprints = Fingerprints("v", parts)
    before = fingerprints.of("q")
    parts["tenant"] = "b"

    assert fingerprints.of("q") == before
    assert fingerprints.scope == {"tenant": "a"}


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        ({"client": object()}, "scope['client']: object has no canonical form"),
        ({"a": [math.nan]}, "scope['a'][0]: nan is no number"),
        ({1: "a"}, "scope: the key 1 is int"),
    ],
)
def test_a_scope_that_cannot_be_keyed_is_a_wrong_argument(scope, message):
    """A scope is checked where it is given, and the message has the path."""
    with pytest.raises(ConfigurationError) as error:
        Fingerprints("", scope)

    assert str(error.value).startswith(message)


def test_fingerprints_are_shared_by_threads():
    """Many threads take fingerprints from one object and get the same ones."""
    fingerprints = Fingerprints("v", {"a": 1})
    expected = [fingerprints.of(number) for number in range(200)]
    found: list[list[bytes]] = []
    threads = [
        threading.Thread(target=lambda: found.append([fingerprints.of(number) for number in range(200)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [expected] * 4


# --- tags, namespaces, partitions ---------------------------------------------------------------------------------


def test_a_tag_is_eight_bytes():
    """A tag stands in an entry as its BLAKE2b of eight bytes."""
    assert tag_hash("doc:7") == hashlib.blake2b(b"doc:7", digest_size=8).digest()
    assert tag_hash("\ud800") != tag_hash("?")
    assert len({tag_hash(text) for text in ("a", "A", "a ", "ä", "b")}) == 5


@pytest.mark.parametrize("tag", ["", None, 3, b"a", ("a",)])
def test_what_is_no_tag_is_refused(tag):
    """A tag is text that is not empty."""
    with pytest.raises(ConfigurationError, match="is no tag: give text that is not empty"):
        tag_hash(tag)


@pytest.mark.parametrize("namespace", ["a", "docs", "my-app_2.eu", "A" * 64, "0"])
def test_namespaces_that_are_allowed(namespace):
    """A namespace is 1 to 64 letters, digits, underscores, dots and dashes."""
    assert check_namespace(namespace) == namespace


@pytest.mark.parametrize(
    "namespace", ["", "a" * 65, "a b", "a:b", "{a}", "a}", "ä", "a\n", "a/b", None, 7, b"docs", ["docs"]]
)
def test_namespaces_that_are_refused(namespace):
    """Anything else is refused with what was given: a brace would end the hash tag."""
    with pytest.raises(ConfigurationError) as error:
        check_namespace(namespace)

    assert repr(namespace) in str(error.value)
    assert "A-Z a-z 0-9 _ . -" in str(error.value)


def test_one_partition_has_tag_zero():
    """A single server needs no spreading."""
    assert partition_tags("any-namespace", 1) == [0]


@pytest.mark.parametrize("namespace", ["docs", "a", "my-app_2.eu", "x" * 64])
@pytest.mark.parametrize("count", [1, 3, 16, 64])
def test_partitions_spread_over_the_slots(namespace, count):
    """The n-th partition lies in the n-th part of the slots, all of whose keys go to one slot."""
    tags = partition_tags(namespace, count)
    names = [Names(namespace, tag) for tag in tags]

    assert [key_slot(name.c) * count // 16384 for name in names] == list(range(count))
    for name in names:
        slots = {key_slot(key) for key in (name.l, name.x, name.c, name.f, name.tv, name.w, name.s)}
        slots |= {key_slot(prefix + b"any}thing{") for prefix in (name.e, name.k)}
        assert len(slots) == 1


def test_sixteen_partitions_on_three_masters():
    """On three masters with even slots, none of them holds more than six of sixteen partitions."""
    for namespace in ("docs", "a", "b", "tenant-1"):
        masters = collections.Counter(
            key_slot(Names(namespace, tag).c) * 3 // 16384 for tag in partition_tags(namespace, 16)
        )
        assert max(masters.values()) <= 6


def test_names_are_those_of_the_data_model():
    """Keys are called as the data model calls them, and none is another's prefix by accident."""
    names = Names("docs", 3)

    assert names.prefix == b"ao:{docs:3}:"
    for field in ("l", "x", "c", "f", "tv", "w", "s"):
        assert getattr(names, field) == b"ao:{docs:3}:" + field.encode()
    assert (names.e, names.k) == (b"ao:{docs:3}:e:", b"ao:{docs:3}:k:")


def test_namespaces_share_no_key():
    """The names of two namespaces, and of two partitions of one, have nothing in common."""
    prefixes = {Names(namespace, tag).prefix for namespace in ("a", "a.1", "a-1", "A") for tag in (0, 1, 10)}

    assert len(prefixes) == 12
    assert not any(one != other and one.startswith(other) for one in prefixes for other in prefixes)


# --- explain ------------------------------------------------------------------------------------------------------


def shown(left: Any, right: Any) -> list[tuple[Any, ...]]:
    return [(found.path, found.left, found.right, found.missing) for found in differences(left, right)]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ({"a": 1, "b": [1, 2]}, {"b": [1.0, 2], "a": True}, [("request['a']", 1, True, "")]),
        ({"a": 1}, {"b": 1}, [("request['a']", 1, None, "right"), ("request['b']", None, 1, "left")]),
        ({"a": None}, {}, [("request['a']", None, None, "right")]),
        ([1, 2], [1, 3], [("request[1]", 2, 3, "")]),
        ([1, 2], [1], [("request", [1, 2], [1], "")]),
        ({"m": [{"c": "x"}]}, {"m": [{"c": "y"}]}, [("request['m'][0]['c']", "x", "y", "")]),
        ({"a": {"b": 1}}, {"a": [1]}, [("request['a']", {"b": 1}, [1], "")]),
        (Request("x", 1), 1, [("kind", "x", PLAIN, "")]),
        (Request("x", {"a": 1}), Request("x", {"a": 2}), [("request['a']", 1, 2, "")]),
        (
            {"t": Verbatim({"a": 1, "b": 2})},
            {"t": Verbatim({"a": 1, "b": 3})},
            [("request['t'][1][1]", 2, 3, "")],
        ),
        ("a", "a", []),
        ({"b": 1, "a": 0.0}, {"a": -0.0, "b": 1.0}, []),
    ],
)
def test_differences_have_a_path_and_both_sides(left, right, expected):
    """Each place where two requests differ is named, with what stands there on either side."""
    assert shown(left, right) == expected


def test_another_order_below_verbatim_is_a_difference():
    """The order that counts can be seen in the difference."""
    found = shown({"tool": Verbatim({"a": 1, "b": 2})}, {"tool": Verbatim({"b": 2, "a": 1})})

    assert found
    assert all(path.startswith("request['tool']") for path, *_ in found)


@given(few_values, few_values)
@settings(max_examples=300)
@example(Verbatim([1]), [1])
@example(Verbatim({"a": 1}), [["a", 1]])
@example(Verbatim(Verbatim(1)), Verbatim(1))
@example(Verbatim([]), Verbatim({}))
@example(Verbatim({"a": [["b", 1]]}), Verbatim({"a": {"b": 1}}))
def test_two_requests_without_differences_share_an_answer(one, other):
    """``explain`` finds a difference if, and only if, the fingerprints differ."""
    of = Fingerprints("", {}).of

    assert (not differences(one, other)) is (of(one) == of(other))


@given(json_values, json_values)
@settings(max_examples=50)
@example(Verbatim(None), Verbatim([-(2**70), "\ud800"]))
def test_differences_of_any_two_requests_can_be_told(one, other):
    """Whatever can be keyed can be explained."""
    assert differences(one, one) == []
    assert all(found.path.startswith("request") for found in differences(one, other))
    repr(visible(one))


def test_what_is_visible_is_the_canonical_form_for_people():
    """Numbers, tuples and enums stand as they count; a part whose order counts is a list of pairs."""
    request = {"t": 1.0, "stop": ("a",), "colour": Colour.RED, "tool": Verbatim({"b": {"d": 1.0}, "a": [2]})}

    assert visible(request) == {
        "t": 1,
        "stop": ["a"],
        "colour": "red",
        "tool": [["b", [["d", 1]]], ["a", [2]]],
    }


@pytest.mark.parametrize("value", [2**70, -(2**70), "a\ud800"])
def test_what_is_visible_is_no_wire_format(value):
    """A number beyond 64 bits and a lone surrogate are shown as they are, not as an extension type."""
    assert visible({"a": [value]}) == {"a": [value]}


def test_a_digest_is_the_same_every_time():
    """Whatever was digested before it, of its own kind or another."""
    prints = Fingerprints("v", {"tenant": "a"})
    asked = [Request(kind, {"n": number}) for kind in ("chat", "embed", PLAIN) for number in range(3)]
    first = [prints.of(one) for one in asked]
    assert [prints.of(one) for one in reversed(asked)] == first[::-1]
    assert [Fingerprints("v", {"tenant": "a"}).of(one) for one in asked] == first
    assert len(set(first)) == len(first)
