"""
What is stored: a header of 48 bytes, a label and tags if there are any, a payload.

    AO | format | flags | generation | fence | created | fresh until | retained until | tag sequence
    2    1        1       4            8       8         8             8                8            bytes

The header is written by the scripts, on the server's clock (milliseconds).  The payload is one byte that names how
the value was encoded, four bytes for what it took to compute (milliseconds), and the encoded value, compressed by
zstd where that saves at least a tenth.  Whatever is read is untrusted: anything that this module cannot have
written is ``None`` or raises ``Corrupt``, which the caller takes for a miss.
"""

from __future__ import annotations

import struct
import threading
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import ormsgpack

from .errors import ConfigurationError, Uncacheable

T = TypeVar("T")

HEADER: Final = struct.Struct(">2sBBI5Q")
MAGIC: Final = b"AO"
FORMAT: Final = 1
COMPRESSED, ENCRYPTED, TAGGED, LABELLED, GRAVE = 1, 4, 8, 16, 128

#: Flags of entries that this version reads; any other may change what the bytes mean.
_READABLE: Final = COMPRESSED | TAGGED | LABELLED

#: What an entry weighs beyond its stored bytes: Redis's own structures and the books (measured, docs/data-model.md).
#: Part of the namespace's identity: every process must count alike.
OVERHEAD: Final = 384
UNIT: Final = 64

#: Below, packing costs a store more time than it saves Redis memory.
_COMPRESS_FROM = 4096
#: What a stored kilobyte may grow to: a bomb must not fill the reader's memory.
_LARGEST_VALUE = 256 << 20

_PREAMBLE = struct.Struct(">cI")
_JSON, _TEXT, _BYTES, _CODEC, _CHUNKS = b"j", b"s", b"b", b"c", b"k"
_MAX_TAGS = 255
_LONGEST_LABEL = 4096
_LENGTH = struct.Struct(">H")

#: Header, label and tags, at their longest.
LONGEST_HEAD: Final = HEADER.size + _LENGTH.size + _LONGEST_LABEL + 1 + 8 * _MAX_TAGS


class Corrupt(Exception):
    """The bytes are not what this version writes."""


class Unusable(Corrupt):
    """What is stored is as it was written, and of no use to this caller: raised by a codec's ``decode``."""


class Codec(Protocol[T]):
    """
    How values of one type are written and read.

    ``name`` stands in the entry: an entry written by another codec is a miss.  ``encode`` raises Uncacheable for
    a value that would not come back as it was, or Refused for one that is not to be stored; whatever ``decode``
    raises makes the entry a miss, counted as corrupt unless it is Unusable.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    def encode(self, value: T) -> bytes: ...  # noqa: D102
    def decode(self, data: bytes) -> T: ...  # noqa: D102


class Entry(NamedTuple):
    """A stored entry, its header read."""

    flags: int
    generation: int
    fence: int
    created: int
    fresh_until: int
    retained_until: int
    sequence: int
    data: bytes

    @property
    def tags(self) -> list[bytes]:
        """The hashes of the entry's tags, eight bytes each."""
        start = self._behind_label()
        if not self.flags & TAGGED or len(self.data) <= start:
            return []
        end = start + 1 + 8 * self.data[start]
        return [self.data[at : at + 8] for at in range(start + 1, end, 8)]

    @property
    def label(self) -> str | None:
        """What the entry was labelled with, None if it was not."""
        if not self.flags & LABELLED:
            return None
        return self.data[HEADER.size + _LENGTH.size : self._behind_label()].decode("utf-8", "replace")

    @property
    def payload(self) -> bytes:
        """The payload: everything behind the header, the label and the tags."""
        start = self._behind_label()
        if self.flags & TAGGED:
            start += 1 + 8 * self.data[start] if len(self.data) > start else 1
        return self.data[start:]

    def _behind_label(self) -> int:
        return _behind_label(self.data) if self.flags & LABELLED else HEADER.size


def _behind_label(data: bytes) -> int:
    """Return where the label of an entry that has one ends."""
    if len(data) < HEADER.size + _LENGTH.size:
        return HEADER.size
    (length,) = _LENGTH.unpack_from(data, HEADER.size)
    return HEADER.size + _LENGTH.size + int(length)


def cost_ms(payload: bytes) -> int:
    """Return what the value in *payload* took to compute, in milliseconds; 0 if it does not say."""
    return int(_PREAMBLE.unpack_from(payload)[1]) if len(payload) >= _PREAMBLE.size else 0


def parse(data: bytes) -> Entry | None:
    """Return the entry in *data*, or None if it is a grave, another format's, or nobody's."""
    if len(data) <= HEADER.size:
        return None
    magic, form, flags, generation, fence, created, fresh, retained, sequence = HEADER.unpack_from(data)
    if magic != MAGIC or form != FORMAT or flags & ~_READABLE:
        return None
    return Entry(flags, generation, fence, created, fresh, retained, sequence, data)


def is_grave(data: bytes) -> bool:
    """Return whether *data* is what an invalidation leaves behind."""
    return len(data) == HEADER.size and data[:3] == MAGIC + bytes([FORMAT]) and bool(data[3] & GRAVE)


def label_block(label: bytes | None) -> bytes:
    """Return a label as it stands behind the header; nothing if there is none."""
    return b"" if label is None else _LENGTH.pack(len(label)) + label


def checked_label(label: str | None) -> bytes | None:
    """Return *label* as bytes; raise ConfigurationError for what is no label."""
    if label is None:
        return None
    if not isinstance(label, str):
        raise ConfigurationError(f"label={label!r} is {type(label).__name__}; give text, or None")
    try:
        data = label.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(f"label={label!r} is no Unicode text; leave lone surrogates out") from None
    if len(data) > _LONGEST_LABEL:
        raise ConfigurationError(f"a label of {len(data)} bytes given: at most {_LONGEST_LABEL} are stored")
    return data


def tag_block(tags: tuple[bytes, ...]) -> bytes:
    """Return the tags as they stand behind header and label; nothing if there are none."""
    if not tags:
        return b""
    if len(tags) > _MAX_TAGS:
        raise ConfigurationError(f"{len(tags)} tags given: an entry carries at most {_MAX_TAGS}")
    return bytes([len(tags)]) + b"".join(tags)


def encode(value: object, codec: Codec[Any] | None, cost_ms: int) -> tuple[int, bytes]:
    """Return flags and payload of *value*; raise Uncacheable if it would not come back as it is."""
    kind, data = _write(value, codec)
    return _packed(kind, data, cost_ms)


def _packed(kind: bytes, data: bytes, cost_ms: int) -> tuple[int, bytes]:
    flags = 0
    if _zstd is not None and len(data) >= _COMPRESS_FROM:
        packed = _zstd.compress(data)
        if len(packed) <= len(data) * 0.9:
            flags, data = COMPRESSED, packed
    return flags, _PREAMBLE.pack(kind, min(max(cost_ms, 0), 0xFFFFFFFF)) + data


def read_plain(
    data: bytes, generation: int, now_ms: int, codec: Codec[Any] | None, sequence: int | None = None
) -> tuple[Any, int, int]:
    """
    Return the value of a fresh entry, its age and how long it stays fresh, in milliseconds.

    One with tags is plain if none was invalidated since it was stored, by the *sequence* of the control word.

    Raises Corrupt for anything else.  It is the hit path, of which making an ``Entry`` first would be a tenth.
    """
    if len(data) <= HEADER.size:
        raise Corrupt("no entry")
    magic, form, flags, its_generation, _, created, fresh_until, _, its_sequence = HEADER.unpack_from(data)
    if magic != MAGIC or form != FORMAT or flags & ~_READABLE or its_generation != generation:
        raise Corrupt("of another generation, or not ours")
    if flags & TAGGED and (sequence is None or its_sequence < sequence):
        raise Corrupt("one of its tags may be invalidated")
    now_ms = max(now_ms, created)  # the estimate of the server's clock may be behind
    if now_ms >= fresh_until:
        raise Corrupt("no longer fresh")
    start = _behind_label(data) if flags & LABELLED else HEADER.size
    if flags & TAGGED:
        start += 1 + 8 * data[start] if len(data) > start else 1
    return decode_payload(flags, data, codec, start), now_ms - created, fresh_until - now_ms


def decode_payload(flags: int, payload: bytes, codec: Codec[Any] | None, start: int = 0) -> Any:
    """
    Return the value in *payload*, which begins at *start*.

    Raises Corrupt if it was not written by this codec, or not by us.
    """
    kind, data, start = _unpacked(flags, payload, start)
    return whole(_chunks(data[start:]), codec) if kind == _CHUNKS else _read(kind, data, codec, start)


def _unpacked(flags: int, payload: bytes, start: int = 0) -> tuple[bytes, bytes, int]:
    """Return what names the encoding, and the bytes in which the encoded value begins at the place given last."""
    value = start + _PREAMBLE.size
    if len(payload) < value:
        raise Corrupt("no preamble")
    kind = payload[start : start + 1]
    return (kind, _decompress(payload[value:]), 0) if flags & COMPRESSED else (kind, payload, value)


def encode_chunk(chunk: object, codec: Codec[Any] | None) -> bytes:
    """Return one chunk of a stream as it is recorded; raise Uncacheable if it would not come back as it is."""
    kind, data = _write(chunk, codec)
    return kind + data


def decode_chunk(data: bytes, codec: Codec[Any] | None) -> Any:
    """Return the chunk in *data*; raise Corrupt if it was not written by this codec."""
    return _read(data[:1], data[1:], codec)


def encode_stream(chunks: list[bytes], cost_ms: int) -> tuple[int, bytes]:
    """Return flags and payload of a whole stream, given its encoded chunks."""
    return _packed(_CHUNKS, ormsgpack.packb(chunks), cost_ms)


def decode_stream(flags: int, payload: bytes, codec: Codec[Any] | None) -> list[bytes]:
    """
    Return the encoded chunks of the stream in *payload*; what was stored as one value is a stream of one chunk.

    Raises Corrupt if a chunk was not written by this codec.
    """
    kind, data, start = _unpacked(flags, payload)
    chunks = _chunks(data[start:]) if kind == _CHUNKS else [kind + data[start:]]
    for chunk in chunks:
        decode_chunk(chunk, codec)
    return chunks


def whole(chunks: list[bytes], codec: Codec[Any] | None) -> Any:
    """Return the value of a stream: its text or bytes in one piece, or the list of its chunks."""
    values = [decode_chunk(chunk, codec) for chunk in chunks]
    if values and all(type(value) is str for value in values):
        return "".join(values)
    if values and all(type(value) is bytes for value in values):
        return b"".join(values)
    return values


def _chunks(data: bytes) -> list[bytes]:
    try:
        chunks = ormsgpack.unpackb(data)
    except ValueError as error:
        raise Corrupt(str(error)) from error
    if not isinstance(chunks, list) or not all(isinstance(chunk, bytes) for chunk in chunks):
        raise Corrupt("no list of chunks")
    return chunks


def _write(value: object, codec: Codec[Any] | None) -> tuple[bytes, bytes]:
    if codec is not None:
        return _CODEC, _signature(codec.name) + codec.encode(value)
    if type(value) is str:
        return _TEXT, value.encode("utf-8", "surrogatepass")
    if type(value) is bytes:
        return _BYTES, value
    try:
        return _JSON, ormsgpack.packb(value, option=_STRICT)
    except TypeError as error:
        raise Uncacheable(
            f"value: {error}; store text, bytes or JSON-like values, or give a codec (askonce.Codec)"
        ) from None


#: Other types than JSON's are refused rather than changed on the way.  A tuple comes back as a list, as in JSON, and
#: any buffer as bytes.
_STRICT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)


@lru_cache(maxsize=64)  # codecs are few
def _signature(name: str) -> bytes:
    """Return what a value begins with that the codec *name* has written."""
    data = name.encode()
    return bytes([len(data)]) + data


def _read(kind: bytes, data: bytes, codec: Codec[Any] | None, start: int = 0) -> Any:
    """Return the value in *data*, which begins at *start*; raise Corrupt if it was not written by this codec."""
    try:
        if codec is not None:
            signature = _signature(codec.name)
            if kind != _CODEC or not data.startswith(signature, start):
                raise Corrupt("written by another codec")
            return codec.decode(data[start + len(signature) :])
        data = data[start:]
        if kind == _JSON:
            return ormsgpack.unpackb(data)
        if kind == _TEXT:
            return data.decode("utf-8", "surrogatepass")
        if kind == _BYTES:
            return data
    except Corrupt:
        raise
    except Exception as error:  # the codec is the user's, the bytes are anybody's
        raise Corrupt(f"{type(error).__qualname__}: {error}") from error
    raise Corrupt(f"kind {kind!r}")


class _Zstd(threading.local):
    """zstd's contexts, one of each a thread: making them costs more than using them."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415  an extra

        self.error = zstandard.ZstdError
        self.compress = zstandard.ZstdCompressor(level=3).compress
        self.decompress = zstandard.ZstdDecompressor().decompress
        self.size_of = zstandard.frame_content_size


def _load_zstd() -> _Zstd | None:
    # Compression comes with the extra "zstd"; without it, what was stored compressed is a miss.
    try:
        return _Zstd()
    except ImportError:
        return None


_zstd = _load_zstd()


def _decompress(data: bytes) -> bytes:
    if _zstd is None:
        raise Corrupt("compressed, and the extra 'zstd' is not installed")
    try:
        declared = _zstd.size_of(data)
        if not 0 <= declared <= _LARGEST_VALUE:
            raise Corrupt(f"declares {declared} bytes")
        return _zstd.decompress(data)
    except _zstd.error as error:
        raise Corrupt(str(error)) from error
