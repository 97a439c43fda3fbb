"""Values: what is stored comes back as it was, or is refused; what nobody wrote is a miss."""

import datetime
import enum
import math
import os
import random
import struct

import pytest

from askonce import Cache, Source, Uncacheable

from .colours import call_on
from .polling import until
from .upstream import Gate, counting


class Point:
    """A type that only a codec knows."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return type(other) is Point and (self.x, self.y) == (other.x, other.y)

    __hash__ = None


class PointCodec:
    """Writes points as two doubles."""

    name = "point"

    def encode(self, value):
        if not isinstance(value, Point):
            raise Uncacheable(f"value: {type(value).__qualname__} is no Point")
        return struct.pack(">2d", value.x, value.y)

    def decode(self, data):
        return Point(*struct.unpack(">2d", data))


class OtherCodec(PointCodec):
    """The same bytes under another name."""

    name = "other"


class Colour(enum.Enum):
    RED = "red"


class Text(str):
    """A subclass would come back as plain text."""


POINTS = PointCodec()
HEADER = 48


def entry(**changes):
    """Return the bytes of a sound entry with the text ``foreign``, but for the fields that are given."""
    fields = {
        "magic": b"AO",
        "format": 1,
        "flags": 0,
        "generation": 0,
        "fence": 1,
        "created": 1_700_000_000_000,
        "fresh": 4_000_000_000_000,
        "retained": 4_000_000_000_000,
        "sequence": 1 << 50,
        "payload": b"s\0\0\0\0foreign",
    }
    fields.update(changes)
    *header, payload = fields.values()
    return struct.pack(">2sBBI5Q", *header) + payload


# --- values that come back --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e300, math.inf, "", "text", "ünïcödé \N{SNOWMAN}",
        "\udc80 lone surrogate", "nul \0 inside", b"", b"bytes \xff\0", [], {}, [1, "a", None, [2.5, {"b": [True]}]],
        {"a": {"b": {"c": []}}, "": "empty key"}, {"raw": b"\0\xff"}, "x" * 5000, b"\0" * 5000, ["y"] * 5000,
    ],
    ids=lambda value: repr(value)[:24].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_a_value_comes_back_as_it_was(driver, value):
    """JSON-like values, text and bytes, of every size and with their types."""
    assert driver.get_or_compute("q", lambda: value) == value
    served = driver.lookup("q")

    assert (served.source, served.value, type(served.value)) == (Source.HIT, value, type(value))


def test_a_nan_is_a_value(driver):
    """Vectors of a broken model come back as broken as they were."""
    driver.store("q", [math.nan, 1.0])

    assert math.isnan(driver.lookup("q").value[0])


def test_a_tuple_comes_back_as_a_list(driver):
    """As in JSON."""
    driver.store("q", (1, (2, 3)))

    assert driver.lookup("q").value == [1, [2, 3]]


def test_numbers_keep_their_types(driver):
    """1 is not 1.0 and True is not 1 in an answer."""
    driver.store("q", [1, 1.0, True])

    assert [type(one) for one in driver.lookup("q").value] == [int, float, bool]


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, {1: "a"}, 2**64, Colour.RED, Text("a"), datetime.datetime(2024, 1, 1), 1j, [{"a": object()}]],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_would_not_come_back_is_refused(driver, value):
    """store raises and says what to do; a computed answer is served, not stored, and counted."""
    with pytest.raises(Uncacheable, match="codec"):
        driver.store("q", value)
    assert driver.get_or_compute("q", lambda: value) is value

    assert driver.lookup("q") is None
    assert driver.stats().uncacheable == 2


# --- codecs -----------------------------------------------------------------------------------------------------


def test_a_codec_brings_its_own_type(driver):
    """What it wrote it reads, on every path."""
    assert driver.get_or_compute("q", lambda: Point(1, 2), codec=POINTS) == Point(1, 2)
    assert driver.lookup("q", codec=POINTS).value == Point(1, 2)
    assert driver.store("p", Point(3, 4), codec=POINTS)
    assert [one.value for one in driver.get_many(["q", "p"], codec=POINTS)] == [Point(1, 2), Point(3, 4)]
    values = driver.get_or_compute_many(["q", "r"], lambda _: [Point(5, 6)], codec=POINTS)
    assert values == [Point(1, 2), Point(5, 6)]
    lease = driver.begin("s", codec=POINTS)
    call_on(driver, lease.finish, Point(7, 8))
    assert driver.begin("s", codec=POINTS).value == Point(7, 8)


@pytest.mark.parametrize("reader", [None, OtherCodec()], ids=["none", "other"])
def test_what_another_codec_wrote_is_a_miss_and_is_replaced(driver, reader):
    """It is counted as not readable, computed anew, and then belongs to the new codec."""
    driver.store("q", Point(1, 2), codec=POINTS)
    value = "text" if reader is None else Point(9, 9)

    assert driver.lookup("q", codec=reader) is None
    assert driver.stats().corrupt == 1
    assert driver.get_or_compute("q", lambda: value, codec=reader) == value
    assert driver.lookup("q", codec=reader).value == value
    assert driver.lookup("q", codec=POINTS) is None


def test_what_was_written_without_a_codec_is_a_miss_for_one(driver):
    """Even if its bytes look alike."""
    driver.store("q", b"\5point" + bytes(16))

    assert driver.lookup("q", codec=POINTS) is None


def test_a_codec_may_refuse_a_value(driver):
    """Its Uncacheable is raised by store, and costs a computed answer nothing but its place."""
    with pytest.raises(Uncacheable, match="no Point"):
        driver.store("q", "text", codec=POINTS)
    assert driver.get_or_compute("q", lambda: "text", codec=POINTS) == "text"
    assert driver.lookup("q") is None


def test_a_codec_that_fails_loses_no_answer(driver):
    """Whatever encode or decode raises, the caller has the answer."""

    class Broken(PointCodec):
        def encode(self, value):
            raise ZeroDivisionError

    class Illiterate(PointCodec):
        def decode(self, data):
            raise ZeroDivisionError

    assert driver.get_or_compute("q", lambda: Point(1, 2), codec=Broken()) == Point(1, 2)
    driver.store("p", Point(1, 2), codec=POINTS)
    assert driver.lookup("p", codec=Illiterate()) is None
    assert driver.get_or_compute("p", lambda: Point(3, 4), codec=Illiterate()) == Point(3, 4)


def test_a_codec_that_cannot_read_what_it_wrote_costs_followers_no_exception(driver):
    """Who joined a flight whose payload does not decode is answered all the same."""

    class Illiterate(PointCodec):
        def decode(self, data):
            raise ZeroDivisionError

    gate = Gate(Point(1, 2))
    leading = driver.start("get_or_compute", "q", gate, codec=Illiterate())
    gate.wait()
    following = driver.start("get_or_compute", "q", lambda: Point(3, 4), codec=Illiterate())
    joined(driver)
    gate.open()

    assert leading.result(10) == Point(1, 2)
    assert following.result(10) in (Point(1, 2), Point(3, 4))


def test_callers_with_different_codecs_may_ask_at_once(driver):
    """Who joins the flight of another codec is answered by its own function, not by an exception."""
    gate = Gate(Point(1, 2))
    leading = driver.start("get_or_compute", "q", gate, codec=POINTS)
    gate.wait()
    following = driver.start("get_or_compute", "q", lambda: "text")
    joined(driver)
    gate.open()

    assert leading.result(10) == Point(1, 2)
    assert following.result(10) == "text"


def joined(driver):
    """Return once a caller waits for a flight of the process."""

    def waiting():
        flights = list(driver.cache._namespace.state.flights._flights.values())
        return any(flight.future._done_callbacks or flight.future._condition._waiters for flight in flights)

    until(waiting)


# --- compression, size ------------------------------------------------------------------------------------------


def test_what_compresses_well_is_stored_compressed(driver, raw):
    """Repetitive text of 100 kB takes a hundredth; small or random values are stored as they are."""
    text, noise = "the same words again and again, " * 3000, os.urandom(20_000)
    driver.store("text", text)
    driver.store("noise", noise)
    driver.store("small", "a" * 1000)

    sizes = {name: raw.strlen(driver.explain(name).key) for name in ("text", "noise", "small")}

    assert sizes["text"] < 2000
    assert sizes["noise"] == HEADER + 5 + 20_000
    assert sizes["small"] == HEADER + 5 + 1000
    assert driver.lookup("text").value == text
    assert driver.lookup("noise").value == noise


def test_compressed_values_of_a_codec_come_back(driver):
    """Compression works on whatever a codec writes."""

    class Raw:
        name = "raw"
        encode = decode = staticmethod(bytes)

    driver.store("q", b"again " * 5000, codec=Raw())

    assert driver.lookup("q", codec=Raw()).value == b"again " * 5000


def test_a_value_larger_than_the_bound_is_served_and_not_stored(make_driver):
    """store returns False; the caller of get_or_compute has its answer; the rest of the cache stays."""
    driver = make_driver(max_bytes="64kb")
    driver.store("small", "stays")
    large = os.urandom(100_000)

    assert driver.store("q", large) is False
    assert driver.get_or_compute("q", lambda: large) == large
    assert driver.get_or_compute_many(["q"], lambda _: [large]) == [large]

    assert driver.lookup("q") is None
    assert driver.lookup("small").value == "stays"
    assert driver.stats().too_large == 3


def test_a_value_too_large_to_replace_leaves_the_old_one(make_driver):
    """A refused store takes nothing away."""
    driver = make_driver(max_bytes="64kb")
    driver.store("q", "old")

    assert driver.store("q", os.urandom(100_000)) is False
    assert driver.lookup("q").value == "old"


# --- what nobody wrote ------------------------------------------------------------------------------------------


FOREIGN = {
    "nothing": b"",
    "a word": b"hello",
    "random": random.Random(1).randbytes(300),
    "our magic alone": b"AO",
    "a cut header": entry()[:40],
    "a header alone": entry(payload=b""),
    "another magic": entry(magic=b"XX"),
    "another format": entry(format=2),
    "encrypted": entry(flags=4),
    "no preamble": entry(payload=b"s"),
    "an unknown kind": entry(payload=b"?\0\0\0\0text"),
    "half a document": entry(payload=b"j\0\0\0\0\x93\x01"),
    "no zstd": entry(flags=1, payload=b"s\0\0\0\0not compressed"),
    "a bomb": entry(flags=1, payload=b"s\0\0\0\0\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 0xFFFFFFF0) + b"\x01\0\0"),
    "a cut list of tags": entry(flags=8, payload=b"\xff" + bytes(8)),
    "a huge fence": entry(fence=2**64 - 1, payload=b"?\0\0\0\0text"),
}  # fmt: skip


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_bytes_under_our_key_are_a_miss_and_are_overwritten(driver, raw, names, foreign):
    """Nothing is raised, it is counted as corrupt, and the next answer takes the place."""
    driver.store("q", "ours")
    explained = driver.explain("q")
    foreign = (
        foreign[:4] + struct.pack(">I", explained.generation) + foreign[8:] if len(foreign) >= 48 else foreign
    )
    raw.set(explained.key, foreign)
    fn, calls = counting(value="anew")

    assert driver.lookup("q") is None
    assert driver.stats().corrupt == 1
    assert driver.get_many(["q"]) == [None]
    assert driver.get_or_compute("q", fn) == "anew 1"
    assert driver.get_or_compute("q", fn) == "anew 1"
    assert len(calls) == 1
    raw.set(explained.key, foreign)
    assert driver.store("q", "stored") is True
    assert driver.lookup("q").value == "stored"


@pytest.mark.parametrize("kind", ["list", "hash", "zset"])
def test_another_type_under_our_key_is_a_miss_and_is_overwritten(driver, raw, kind):
    """A list, a hash or a set where an entry should be is replaced."""
    driver.store("q", "ours")
    key = driver.explain("q").key

    def spoil():
        raw.delete(key)
        {
            "list": lambda: raw.rpush(key, "foreign"),
            "hash": lambda: raw.hset(key, "foreign", "1"),
            "zset": lambda: raw.zadd(key, {"foreign": 1}),
        }[kind]()

    spoil()
    assert driver.lookup("q") is None
    assert driver.get_or_compute("q", lambda: "anew") == "anew"
    assert driver.lookup("q").value == "anew"
    spoil()
    assert driver.store("q", "stored") is True
    assert driver.lookup("q").value == "stored"
    spoil()
    assert driver.invalidate("q") in {True, False}
    assert driver.lookup("q") is None
    assert driver.usage().entries == 0


def test_no_flipped_bit_is_an_exception(driver, raw):
    """A thousand damaged copies of a compressed entry: each is a miss, or a value, never an error."""
    driver.store("q", ["the same words again and again"] * 200, tags=["t"])
    key = driver.explain("q").key
    sound, left = raw.get(key), raw.pttl(key)
    rng = random.Random(7)

    for _ in range(300):
        damaged = bytearray(sound)
        for _ in range(rng.choice([1, 1, 3])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        raw.set(
            key, bytes(damaged[: rng.choice([len(damaged)] * 3 + [rng.randrange(len(damaged))])]), px=left
        )
        driver.lookup("q")
    assert driver.stats().backend_errors == 0


def test_entries_are_plain_data(url, raw):
    """What is stored is no pickle: nothing that is read from Redis can run code."""
    with Cache(url, namespace="test") as cache:
        cache.store("q", {"a": 1})
        data = raw.get(cache.explain("q").key)

    assert (data[:2], data[48:53], data[53:]) == (b"AO", b"j\0\0\0\0", b"\x81\xa1a\x01")
