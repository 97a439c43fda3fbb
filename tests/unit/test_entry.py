"""What is stored, byte by byte."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import enum
import math
import random
import struct
import sys
import threading
import uuid
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from askonce import ConfigurationError, Uncacheable
from askonce import entry as module
from askonce.entry import (
    COMPRESSED,
    ENCRYPTED,
    FORMAT,
    GRAVE,
    HEADER,
    LABELLED,
    MAGIC,
    TAGGED,
    Corrupt,
    Entry,
    cost_ms,
    decode_chunk,
    decode_payload,
    decode_stream,
    encode,
    encode_chunk,
    encode_stream,
    is_grave,
    label_block,
    parse,
    read_plain,
    tag_block,
)
from askonce.keys import tag_hash


class Reversed:
    """A codec of a user's."""

    name = "reversed"

    def encode(self, value: str) -> bytes:
        if not isinstance(value, str):
            raise Uncacheable(f"value: {value!r} is no text")
        return value[::-1].encode()

    def decode(self, data: bytes) -> str:
        return data.decode()[::-1]


class Renamed(Reversed):
    name = "another"


class Broken(Reversed):
    """A codec that cannot read."""

    def decode(self, data: bytes) -> str:
        raise KeyError("field")


class Level(enum.Enum):
    LOW = 1


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int = 1


def stored(flags: int = 0, payload: bytes = b"", *, tags: tuple[bytes, ...] = (), **words: int) -> bytes:
    """Return an entry as the script writes it."""
    names = ("generation", "fence", "created", "fresh_until", "retained_until", "sequence")
    header = HEADER.pack(MAGIC, FORMAT, flags | (TAGGED if tags else 0), *(words.get(n, 0) for n in names))
    return header + tag_block(tags) + payload


def round_trip(value: Any, codec: Any = None, tags: tuple[bytes, ...] = ()) -> Any:
    flags, payload = encode(value, codec, 7)
    entry = parse(stored(flags, payload, tags=tags))
    assert entry is not None
    assert entry.tags == list(tags)
    value = decode_payload(entry.flags, entry.payload, codec)
    assert repr(decode_payload(flags, payload, codec)) == repr(value)
    if not tags:
        data = stored(flags, payload, generation=3, created=5, fresh_until=9)
        plain, age_ms, ttl_ms = read_plain(data, 3, 7, codec)
        assert (repr(plain), age_ms, ttl_ms) == (repr(value), 2, 2)
    return value


# --- the header ---------------------------------------------------------------------------------------------------


def test_the_header_is_laid_out_as_drawn():
    """48 bytes: magic, format, flags, generation, fence, three times, tag sequence, all big-endian."""
    drawn = (
        b"AO"  # 0-1
        b"\x01"  # 2: format
        b"\x09"  # 3: flags, compressed and tagged
        b"\x01\x02\x03\x04"  # 4-7: generation
        b"\x11\x12\x13\x14\x15\x16\x17\x18"  # 8-15: fence
        b"\x21\x22\x23\x24\x25\x26\x27\x28"  # 16-23: created
        b"\x31\x32\x33\x34\x35\x36\x37\x38"  # 24-31: fresh until
        b"\x41\x42\x43\x44\x45\x46\x47\x48"  # 32-39: retained until
        b"\x51\x52\x53\x54\x55\x56\x57\x58"  # 40-47: tag sequence
    )
    block = b"\x02" + b"ABCDEFGH" + b"IJKLMNOP"
    entry = parse(drawn + block + b"payload")

    assert len(drawn) == HEADER.size == 48
    assert entry == Entry(
        flags=COMPRESSED | TAGGED,
        generation=0x01020304,
        fence=0x1112131415161718,
        created=0x2122232425262728,
        fresh_until=0x3132333435363738,
        retained_until=0x4142434445464748,
        sequence=0x5152535455565758,
        data=drawn + block + b"payload",
    )
    assert (entry.tags, entry.payload) == ([b"ABCDEFGH", b"IJKLMNOP"], b"payload")


def test_the_flags_are_those_of_the_data_model():
    """Compressed 1, encrypted 4, tagged 8, grave 128."""
    assert (COMPRESSED, ENCRYPTED, TAGGED, GRAVE) == (1, 4, 8, 128)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"AO",
        b"an answer that somebody else has stored under this key, as plain text",
        stored()[:47],
        stored(),
        stored(GRAVE, b"x" * 10),
        stored(ENCRYPTED, b"x" * 10),
        b"ao" + stored(0, b"x" * 10)[2:],
        b"AO\x02" + stored(0, b"x" * 10)[3:],
        b"AO\x00" + stored(0, b"x" * 10)[3:],
    ],
    ids=["empty", "short", "stranger", "cut", "no payload", "grave", "encrypted", "magic", "newer", "older"],
)
def test_what_is_no_entry_of_ours_is_none(data):
    """A grave, another format, another's value: none of them is an entry."""
    assert parse(data) is None


@pytest.mark.parametrize("flags", sorted({2, 32, 64, 2 | COMPRESSED, 64 | TAGGED}))
def test_flags_that_this_version_does_not_know_are_no_entry(flags):
    """A flag changes what the payload means, so one that is not known makes the entry unreadable, not plain."""
    flags_, payload = encode("text", None, 0)

    assert parse(stored(flags | flags_, payload)) is None


def test_a_grave_is_a_header_with_its_flag():
    """What an invalidation leaves is told apart from an entry and from what somebody else stored."""
    grave = stored(GRAVE)

    assert is_grave(grave)
    assert is_grave(stored(GRAVE | COMPRESSED, fence=5))
    for other in (
        stored(),
        grave + b"x",
        grave[:-1],
        b"ao" + grave[2:],
        b"AO\x02" + grave[3:],
        b"",
        b"\xff" * 48,
    ):
        assert not is_grave(other)


def test_tags_stand_behind_the_header():
    """One byte says how many, each is eight bytes, the payload follows."""
    tags = (tag_hash("a"), tag_hash("b"))

    assert tag_block(tags) == b"\x02" + tags[0] + tags[1]
    assert tag_block(()) == b""
    assert round_trip({"a": [1]}, tags=tags) == {"a": [1]}
    assert round_trip("x", tags=tuple(tag_hash(str(number)) for number in range(255))) == "x"


def test_more_tags_than_fit_are_a_wrong_argument():
    """256 tags do not fit into the byte that counts them."""
    with pytest.raises(ConfigurationError, match="256 tags given: an entry carries at most 255"):
        tag_block((b"12345678",) * 256)


# --- values -------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), inner, max_size=5)
    ),
    max_leaves=20,
)


def kinds(value: Any) -> Any:
    """Return the types inside: ``1 == 1.0 == True``, and yet they are not the same value."""
    match value:
        case dict():
            return [(key, kinds(item)) for key, item in value.items()]
        case list():
            return [kinds(item) for item in value]
        case _:
            return type(value)


@given(json_values)
@example("x" * 5000)
@example({"a": ["b" * 5000, 1.0, True, 1]})
def test_json_like_values_come_back_as_they_were(value):
    """What is stored is what is served: values, types, and the order of mappings."""
    found = round_trip(value)

    assert found == value
    assert kinds(found) == kinds(value)


@given(st.text() | st.text(st.characters(categories=["Cs"])))
def test_any_text_comes_back(text):
    """Text is stored as text, lone surrogates included."""
    assert round_trip(text) == text


@given(st.binary())
@example(b"\x28\xb5\x2f\xfd")
@example(bytes(random.Random(1).randbytes(4000)))
def test_any_bytes_come_back(data):
    """Bytes come back as bytes, whether they can be compressed or not."""
    found = round_trip(data)

    assert found == data
    assert type(found) is bytes


@pytest.mark.parametrize("buffer", [bytearray, memoryview])
def test_any_buffer_comes_back_as_bytes(buffer):
    """As the documentation says."""
    for value in (buffer(b"a"), {"a": [buffer(b"a")]}):
        assert round_trip(value) == ({"a": [b"a"]} if isinstance(value, dict) else b"a")


def test_a_tuple_comes_back_as_a_list():
    """As in JSON, and as the documentation says."""
    assert round_trip({"a": (1, (2,))}) == {"a": [1, [2]]}


def test_nan_and_infinities_come_back():
    """They may not be in a request; in an answer they may."""
    found = round_trip([math.inf, -math.inf, math.nan])

    assert found[:2] == [math.inf, -math.inf]
    assert math.isnan(found[2])


CHANGED = {
    "set": {1},
    "object": object(),
    "dataclass": Point(),
    "enum": Level.LOW,
    "uuid": uuid.UUID(int=1),
    "date": datetime.date(2024, 1, 1),
    "time": datetime.datetime(2024, 1, 1),
    "subclass of text": Text("a"),
    "ordered dict": collections.OrderedDict(a=1),
    "big integer": 2**64,
    "small integer": -(2**63) - 1,
    "number as key": {1: 2},
    "surrogate in a list": ["\ud800"],
    "complex": 1j,
}


@pytest.mark.parametrize("value", CHANGED.values(), ids=CHANGED.keys())
@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"a": [value]}], ids=["alone", "inside"])
def test_what_would_not_come_back_as_it_was_is_refused(value, wrap):
    """A value of another type is refused rather than changed on the way."""
    with pytest.raises(Uncacheable, match=r"value: .*give a codec"):
        encode(wrap(value), None, 0)


def test_what_is_nested_too_deep_is_refused():
    """A value that MessagePack cannot hold is refused with the same error."""
    value: Any = []
    for _ in range(2000):
        value = [value]

    with pytest.raises(Uncacheable):
        encode(value, None, 0)


@pytest.mark.parametrize(
    ("cost", "written"), [(0, 0), (30, 30), (-5, 0), (2**32 - 1, 2**32 - 1), (2**40, 2**32 - 1)]
)
def test_the_cost_stands_behind_the_kind(cost, written):
    """The payload begins with one byte for the kind and four for what it took, as far as it fits."""
    assert cost_ms(encode("text", None, cost)[1]) == written
    assert cost_ms(b"s\0\0\0") == 0
    assert encode("text", None, cost) == (0, b"s" + struct.pack(">I", written) + b"text")


@pytest.mark.parametrize(
    ("value", "kind"), [("a", b"s"), (b"a", b"b"), ({"a": 1}, b"j"), (None, b"j"), (1, b"j"), ([], b"j")]
)
def test_the_kind_of_a_value_is_one_letter(value, kind):
    """Text, bytes and JSON-like values are told apart by their first byte."""
    assert encode(value, None, 0)[1][:1] == kind


# --- codecs -------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from([(), (tag_hash("a"),)]))
def test_a_codec_reads_what_it_wrote(text, tags):
    """A codec's values come back through the codec."""
    assert round_trip(text, Reversed(), tags) == text


def test_a_codec_may_refuse_a_value():
    """The codec's own Uncacheable reaches the caller."""
    with pytest.raises(Uncacheable, match="3 is no text"):
        encode(3, Reversed(), 0)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [(Reversed(), Renamed()), (Reversed(), None), (None, Reversed()), (Reversed(), Broken())],
    ids=["another codec", "no codec", "no codec wrote it", "a codec that fails"],
)
def test_what_another_codec_wrote_is_corrupt(writer, reader):
    """An entry of another codec, and one that its codec cannot read, is a miss and no error."""
    flags, payload = encode("text", writer, 0)

    with pytest.raises(Corrupt):
        decode_payload(flags, payload, reader)


def test_a_codec_whose_name_begins_alike_is_another_codec():
    """The name is compared as a whole."""

    class Longer(Reversed):
        name = "reversed2"

    flags, payload = encode("text", Longer(), 0)
    with pytest.raises(Corrupt, match="another codec"):
        decode_payload(flags, payload, Reversed())


# --- streams ------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(texts | json_values))
def test_a_stream_comes_back_chunk_by_chunk(chunks):
    """As a stream it is the chunks that were passed on; none is joined, split or changed."""
    flags, payload = encode_stream([encode_chunk(chunk, None) for chunk in chunks], 7)
    found = [decode_chunk(chunk, None) for chunk in decode_stream(flags, payload, None)]

    assert found == chunks
    assert kinds(found) == kinds(chunks)
    assert cost_ms(payload) == 7


@given(st.lists(texts, min_size=1) | st.lists(st.binary(), min_size=1))
def test_a_stream_of_text_is_a_value_in_one_piece(chunks):
    """Who asks for the value of a stream has its text, or its bytes, whole."""
    flags, payload = encode_stream([encode_chunk(chunk, None) for chunk in chunks], 0)

    assert decode_payload(flags, payload, None) == type(chunks[0])().join(chunks)


@pytest.mark.parametrize("chunks", [[], [{"a": 1}, {"b": 2}], ["a", b"b"], ["a", 1], [None]])
def test_a_stream_of_anything_else_is_a_list(chunks):
    """Chunks that are not all text, or all bytes, are not joined by guessing."""
    flags, payload = encode_stream([encode_chunk(chunk, None) for chunk in chunks], 0)

    assert decode_payload(flags, payload, None) == chunks


@given(texts | json_values)
def test_a_value_is_a_stream_of_one_chunk(value):
    """What was stored as a value can be streamed."""
    flags, payload = encode(value, None, 0)
    (chunk,) = decode_stream(flags, payload, None)

    assert decode_chunk(chunk, None) == value


def test_chunks_of_a_codec():
    """Each chunk is written by the codec, and another one cannot read them."""
    codec = Reversed()
    flags, payload = encode_stream([encode_chunk(text, codec) for text in ("one", "two")], 0)

    assert [decode_chunk(chunk, codec) for chunk in decode_stream(flags, payload, codec)] == ["one", "two"]
    for reader in (None, Renamed(), Broken()):
        with pytest.raises(Corrupt):
            decode_stream(flags, payload, reader)
        with pytest.raises(Corrupt):
            decode_payload(flags, payload, reader)


def test_a_chunk_that_would_not_come_back_is_refused():
    """Like a value."""
    with pytest.raises(Uncacheable):
        encode_chunk({1: 2}, None)


@given(st.binary(max_size=60), st.sampled_from([None, Reversed(), Broken()]))
def test_random_bytes_are_no_stream(data, codec):
    """Whatever is read is untrusted."""
    for read in (decode_payload, decode_stream):
        for kind in (b"k", b"j", b"c"):
            try:
                read(0, kind + b"\0\0\0\0" + data, codec)
            except Corrupt:
                continue


# --- compression --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["a" * 4096, b"a" * 5000, {"a": ["b"] * 5000}], ids=["text", "bytes", "json"]
)
def test_large_values_are_compressed(value):
    """From a kilobyte on a value that shrinks by a tenth is stored compressed."""
    flags, payload = encode(value, None, 0)

    assert flags == COMPRESSED
    assert len(payload) < 200
    assert round_trip(value) == value
    assert round_trip(value, tags=(tag_hash("a"),)) == value


def test_small_values_are_not_compressed():
    """Below a kilobyte nothing is gained."""
    assert encode("a" * 1023, None, 0) == (0, b"s\0\0\0\0" + b"a" * 1023)


def test_what_does_not_shrink_is_not_compressed():
    """Noise is stored as it is."""
    noise = random.Random(1).randbytes(4000)

    assert encode(noise, None, 0) == (0, b"b\0\0\0\0" + noise)


def test_without_zstandard_nothing_is_compressed(monkeypatch):
    """Compression is an extra: without it, values are stored plain and read by everybody."""
    monkeypatch.setattr(module, "_zstd", None)
    flags, payload = encode("a" * 5000, None, 0)

    assert (flags, len(payload)) == (0, 5005)
    assert decode_payload(flags, payload, None) == "a" * 5000


def test_a_missing_zstandard_is_noticed_on_import(monkeypatch):
    """Whether the extra is installed is found out once, and its absence is no error."""
    assert module._load_zstd() is not None
    monkeypatch.setitem(sys.modules, "zstandard", None)

    assert module._load_zstd() is None


def test_threads_compress_side_by_side():
    """zstd's contexts are not shared: many threads write and read what each of them meant."""
    found: list[bool] = []

    def work(letter: str) -> None:
        value = letter * 5000
        for _ in range(50):
            flags, payload = encode(value, None, 0)
            found.append(flags == COMPRESSED and decode_payload(flags, payload, None) == value)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [True] * 200


def test_without_zstandard_a_compressed_entry_is_a_miss(monkeypatch):
    """What another process has stored compressed cannot be read, which is no error."""
    flags, payload = encode("a" * 5000, None, 0)
    monkeypatch.setattr(module, "_zstd", None)

    with pytest.raises(Corrupt, match="the extra 'zstd' is not installed"):
        decode_payload(flags, payload, None)


def test_a_bomb_does_not_fill_the_memory(monkeypatch):
    """A frame that declares more than the largest value, or does not say, is refused before it is opened."""
    monkeypatch.setattr(module, "_LARGEST_VALUE", 100_000)
    bomb = zstandard.ZstdCompressor().compress(b"0" * 100_001)
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(b"0" * 5000)

    for frame in (bomb, silent, bomb[:10], b"", b"no frame at all"):
        with pytest.raises(Corrupt):
            decode_payload(COMPRESSED, b"b\0\0\0\0" + frame, None)
    fits = zstandard.ZstdCompressor().compress(b"0" * 100_000)
    assert decode_payload(COMPRESSED, b"b\0\0\0\0" + fits, None) == b"0" * 100_000


def test_a_frame_that_declares_too_little_is_refused():
    """A declared size is not believed."""
    honest = zstandard.ZstdCompressor().compress(b"0" * 300)
    liar = honest.replace(struct.pack("<H", 300 - 256), struct.pack("<H", 10), 1)
    assert liar != honest

    with pytest.raises(Corrupt):
        decode_payload(COMPRESSED, b"b\0\0\0\0" + liar, None)


@pytest.mark.parametrize(
    "bomb", [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000]
)
def test_a_bomb_of_messagepack_is_corrupt(bomb):
    """Neither a list of four billion items nor a hundred thousand levels are believed."""
    with pytest.raises(Corrupt):
        decode_payload(0, b"j\0\0\0\0" + bomb, None)


# --- whatever is read is untrusted --------------------------------------------------------------------------------


def readable(data: bytes, codec: Any = None) -> None:
    """Read *data* as a caller would: it is a value, None or Corrupt."""
    with contextlib.suppress(Corrupt):
        read_plain(data, 0, 0, codec)
    entry = parse(data)
    if entry is None:
        return
    assert isinstance(entry.tags, list)
    with contextlib.suppress(Corrupt):
        decode_payload(entry.flags, entry.payload, codec)


@given(st.binary(max_size=200), st.sampled_from([None, Reversed(), Broken()]))
def test_random_bytes_are_no_entry(data, codec):
    """Whatever stands under the key, reading it raises nothing but Corrupt."""
    readable(data, codec)


@given(
    st.integers(0, 255),
    st.binary(max_size=120),
    st.sampled_from([b"", b"j", b"s", b"b", b"c", b"\0"]),
    st.sampled_from([None, Reversed(), Broken()]),
)
@settings(max_examples=300)
def test_a_good_header_before_random_bytes(flags, rest, kind, codec):
    """A header of ours makes no promise about what follows it."""
    readable(stored()[:3] + bytes([flags]) + stored()[4:] + kind + rest, codec)


@given(json_values | st.text(), st.data())
def test_an_entry_that_was_cut_or_changed(value, data):
    """Truncation and a changed byte end in a value, None or Corrupt, never in another error."""
    flags, payload = encode(value, None, 3)
    whole = stored(flags, payload, tags=data.draw(st.sampled_from([(), (b"12345678",), (b"12345678",) * 3])))
    end = data.draw(st.integers(0, len(whole)))
    readable(whole[:end])
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    readable(bytes(changed))


@given(st.integers(0, 4000), st.integers(1, 255))
@settings(max_examples=60)
def test_a_compressed_entry_that_was_changed(place, flip):
    """A damaged frame is Corrupt or another value, never another error."""
    flags, payload = encode(random.Random(2).choices("abcd", k=3000), None, 0)
    assert flags == COMPRESSED
    changed = bytearray(stored(flags, payload))
    changed[place % len(changed)] ^= flip
    readable(bytes(changed))


@pytest.mark.parametrize("cut", range(5))
def test_a_payload_without_its_preamble_is_corrupt(cut):
    """Kind and cost must be there."""
    with pytest.raises(Corrupt, match="preamble"):
        decode_payload(0, b"s\0\0\0\0"[:cut], None)


@pytest.mark.parametrize("kind", [b"x", b"J", b"\0", b"c"])
def test_an_unknown_kind_is_corrupt(kind):
    """A kind that this version does not write is not guessed at."""
    with pytest.raises(Corrupt, match="kind"):
        decode_payload(0, kind + b"\0\0\0\0text", None)


@pytest.mark.parametrize("tags", [(), (b"12345678",), (b"12345678", b"abcdefgh")])
@pytest.mark.parametrize("label", [None, b"", b"x", "k\u00e4y".encode(), b"y" * 4096])
def test_label_and_tags_stand_before_the_payload(label, tags):
    """Whatever stands there, the payload is found behind it."""
    flags = (LABELLED if label is not None else 0) | (TAGGED if tags else 0)
    header = HEADER.pack(b"AO", 1, flags, 1, 2, 3, 4, 5, 6)
    entry = parse(header + label_block(label) + tag_block(tags) + b"payload")
    assert entry.label == (None if label is None else label.decode())
    assert entry.tags == list(tags)
    assert entry.payload == b"payload"


@given(flags=st.sampled_from([LABELLED, TAGGED, LABELLED | TAGGED]), rest=st.binary(max_size=40))
def test_whatever_stands_behind_the_header_is_read_without_an_error(flags, rest):
    """Lengths that point beyond the end are no error: what is left is taken."""
    entry = parse(HEADER.pack(b"AO", 1, flags, 1, 2, 3, 4, 5, 6) + b"x" + rest)
    assert isinstance(entry.tags, list)
    assert isinstance(entry.payload, bytes)
    assert entry.label is None or isinstance(entry.label, str)


def test_the_hit_path_reads_plain_entries_alone():
    """Also with a label, and with tags of which none was invalidated since; a grave, another generation's, foreign bytes and stale ones are refused."""
    flags, payload = encode("answer", None, 7)
    label = label_block(b"its label")
    times = {"generation": 3, "created": 100, "fresh_until": 200}
    plain = stored(flags | LABELLED, label + payload, **times)
    assert read_plain(plain, 3, 150, None) == ("answer", 50, 50)
    assert read_plain(plain, 3, 50, None) == ("answer", 0, 100)  # a clock that is behind
    tags = tag_block((b"8 bytes!", b"as these"))
    tagged = stored(flags | LABELLED | TAGGED, label + tags + payload, sequence=5, **times)
    assert read_plain(tagged, 3, 150, None, 5) == ("answer", 50, 50)
    refused = [
        (stored(flags, payload, tags=(b"8 bytes!",), **times), 150),
        (stored(flags, payload, **{**times, "generation": 2}), 150),
        (stored(GRAVE, **times), 150),
        (stored(flags | ENCRYPTED, payload, **times), 150),
        (stored(flags | LABELLED, label[:4], **times), 150),
        (tagged, 150),
        (b"XX" + plain[2:], 150),
        (plain[:2] + b"\x02" + plain[3:], 150),
        (b"", 150),
        (plain, 200),
    ]
    for data, now_ms in refused:
        with pytest.raises(Corrupt):
            read_plain(data, 3, now_ms, None)
    with pytest.raises(Corrupt):
        read_plain(tagged, 3, 150, None, 6)  # a tag was invalidated since
