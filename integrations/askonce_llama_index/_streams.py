"""
Streams as they are recorded, followed and replayed.

A recorded chunk is what it adds to the ones before it: LlamaIndex's chunks hold the text so far.  Who follows a running
stream builds the chunks anew from that.  A stored stream is one entry, replayed in at most 32 chunks: each costs
LlamaIndex an event that validates all messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

from askonce import Refused

from ._blocks import ThinkingBlock, thinking
from ._codec import (
    CODEC,
    NOTHING,
    ON_MESSAGE,
    ON_RESPONSE,
    OWN,
    SO_FAR,
    Answer,
    Entry,
    Piece,
    dumps,
    loads,
    read_blocks,
    text_block,
    text_of,
    write_blocks,
)
from ._raw import finish_reason, last_of_stream, like, shape_of
from ._types import found, is_answer, name_of
from ._values import read, write, write_raw

MOST_CHUNKS: Final = 32

_THINKING: Final = "thinking_delta"


class Opened:
    """The first chunk of every recording: the producer was called.  It is passed to nobody."""


OPENED: Final = Opened()


class Recorded:
    """A chunk as it was recorded, not yet built."""

    __slots__ = ("form",)

    def __init__(self, data: bytes) -> None:
        self.form: dict[str, Any] | None = loads(data) if data else None  # None: it is ``OPENED``
        if not (self.form is None or isinstance(self.form, dict)):
            raise ValueError("no chunk")


class Recorder:
    """
    Records what each chunk of one stream adds, before its consumer can change it; the codec of that stream.

    Its name is that of whole answers: an entry is read by whoever asks, for a call or for a stream.
    """

    name = CODEC.name

    def __init__(self) -> None:
        self._said = self._thought = ""
        self._last: object = None
        self._raw: object = None
        self._data = b""

    def see(self, chunk: Answer) -> None:
        """Take note of the next chunk; raise for one that cannot be recorded."""
        delta = chunk.delta or ""
        self._said += delta
        thought, place = _thought_of(chunk)
        self._thought += thought or ""
        form = self._differences(chunk, delta, thought, place)
        self._data = b"p" + dumps(form)
        self._last, self._raw = chunk, chunk.raw

    def _differences(self, chunk: Answer, delta: str, thought: str | None, place: str) -> dict[str, Any]:
        form: dict[str, Any] = {"d": chunk.delta} if chunk.delta != "" else {}
        if isinstance(chunk, CompletionResponse):
            form["q"] = 1
        if thought is not None:
            form["t"] = [thought, place]
        kwargs = _without(chunk.additional_kwargs, thought if place == ON_RESPONSE else None)
        if kwargs:
            form["kw"] = write(kwargs)
        tells = any(kwargs.values())
        if isinstance(chunk, ChatResponse):
            message = chunk.message
            if message.role != MessageRole.ASSISTANT:
                form["o"] = getattr(message.role, "value", message.role)
            words = _without(message.additional_kwargs, thought if place == ON_MESSAGE else None)
            if words:
                form["mk"] = write(words)
                tells = tells or any(words.values())
            text = self._text(message.blocks, delta)
            if text is None:
                form["b"] = write_blocks(message.blocks)
            elif text != SO_FAR:
                form["s"] = text
        elif chunk.text != self._said:
            form["x"] = chunk.text
        if chunk.logprobs is not None:
            form["lp"] = [[write(token) for token in row] for row in chunk.logprobs]
        if type(chunk) not in {ChatResponse, CompletionResponse}:
            form["c"] = name_of(type(chunk))
            own = set(type(chunk).model_fields) - set(ChatResponse.model_fields) - {"text"}
            form["own"] = {field: write(getattr(chunk, field)) for field in sorted(own)}
        finish = finish_reason(chunk)
        if finish is not None:
            form["f"] = finish
        # The ids and times in a raw chunk differ from call to call: kept where it says more than the text.
        if finish is not None or tells or "b" in form:
            form["r"] = write_raw(chunk.raw)
        elif (shape := shape_of(chunk.raw)) is not None:
            form["k"] = shape
        return form

    def _text(self, blocks: Sequence[Any], delta: str) -> int | None:
        """Return what the blocks hold if it is no more than what was said and thought, else None."""
        if not blocks:
            return NOTHING
        *before, last = blocks
        if type(last) is not TextBlock:
            return None
        if before:
            thought = before[0]
            plain = len(before) == 1 and type(thought) is ThinkingBlock and not thought.additional_information
            if not plain or thought.num_tokens is not None or thought.content != self._thought:
                return None
        elif self._thought:
            return None
        return SO_FAR if last.text == self._said else OWN if last.text == delta and not before else None

    def fold(self, recorded: list[Recorded | Entry]) -> Entry:
        """Return the whole answer, which is what is stored; raise Refused if there is none."""
        forms = [part.form for part in recorded if isinstance(part, Recorded) and part.form is not None]
        if not forms:
            raise Refused("empty")
        reader, finish = Reader(), None
        for form in forms:
            finish = form.get("f") or finish  # a chunk with the usage alone comes after it
            if form is not forms[-1]:
                reader.note(form)
        answer = reader.read(forms[-1])
        if "r" not in forms[-1]:
            answer.raw = self._raw
        texts = {form.get("s", SO_FAR) for form in forms[:-1] if form.get("d") and "b" not in form}
        text = OWN if OWN in texts else NOTHING if texts == {NOTHING} else SO_FAR
        whole, pieces = text_of(answer), [_piece(form) for form in forms]
        if reader.said != whole:  # several blocks of text, or a provider's habit
            return Entry(answer, finish, (Piece(len(whole)),), text)
        return Entry(answer, finish, _coalesced(pieces), text)

    # --- as a codec -------------------------------------------------------------------------------------------

    def encode(self, value: Entry | Opened | Answer) -> bytes:
        """Return a whole answer, or the chunk that was seen last, as bytes."""
        if isinstance(value, Entry):
            return CODEC.encode(value)
        if value is OPENED:
            return b"p"
        if value is not self._last:
            raise ValueError("a chunk that was not seen")
        return self._data

    def decode(self, data: bytes) -> Entry | Recorded:
        """Return a whole answer, or a recorded chunk."""
        if data[:1] != b"p":
            return CODEC.decode(data)
        return Recorded(data[1:])


class Reader:
    """Builds the chunks of one stream from what was recorded."""

    def __init__(self) -> None:
        self.said = self._thought = ""

    def note(self, form: dict[str, Any]) -> None:
        """Take note of a chunk that is not to be built."""
        self.said += form.get("d", "") or ""
        if "t" in form:
            self._thought += form["t"][0]

    def read(self, form: dict[str, Any]) -> Answer:
        """Return the next chunk."""
        self.note(form)
        delta = form.get("d", "")
        kwargs, words = read(form.get("kw", {})), read(form.get("mk", {}))
        if "t" in form:
            (kwargs if form["t"][1] == ON_RESPONSE else words)[_THINKING] = form["t"][0]
        common: dict[str, Any] = {
            "delta": delta,
            "raw": read(form["r"]) if "r" in form else like(form.get("k"), delta or ""),
            "logprobs": [[read(token) for token in row] for row in form["lp"]] if "lp" in form else None,
            "additional_kwargs": kwargs,
            **{name: read(value) for name, value in form.get("own", {}).items()},
        }
        cls: Any = found(form["c"]) if is_answer(form.get("c", "")) else None
        if form.get("q"):
            return (cls or CompletionResponse).model_construct(text=form.get("x", self.said), **common)
        message = ChatMessage.model_construct(
            role=MessageRole(form.get("o", "assistant")),
            blocks=self._blocks(form, delta or ""),
            additional_kwargs=words,
        )
        return (cls or ChatResponse).model_construct(message=message, **common)

    def _blocks(self, form: dict[str, Any], delta: str) -> list[Any]:
        if "b" in form:
            return read_blocks(form["b"])
        text = form.get("s", SO_FAR)
        if text == NOTHING:
            return []
        if text == OWN:
            return [text_block(delta)]
        said = text_block(self.said)
        return [*thinking(self._thought), said]


def _without(kwargs: dict[str, Any], thought: str | None) -> dict[str, Any]:
    return kwargs if thought is None else {n: value for n, value in kwargs.items() if n != _THINKING}


def _thought_of(chunk: Answer) -> tuple[str | None, str]:
    thought = chunk.additional_kwargs.get(_THINKING)
    if isinstance(thought, str) and thought:
        return thought, ON_RESPONSE
    if isinstance(chunk, ChatResponse):
        thought = chunk.message.additional_kwargs.get(_THINKING)
        if isinstance(thought, str) and thought:
            return thought, ON_MESSAGE
    return None, ON_RESPONSE


def _piece(form: dict[str, Any]) -> Piece:
    thought, place = form.get("t", (None, ON_RESPONSE))
    return Piece(len(form.get("d", "") or ""), thought, place)


def _coalesced(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return at most about `MOST_CHUNKS` pieces; what is thought and what is said are not mixed."""
    step = -(-len(pieces) // MOST_CHUNKS)
    groups: list[list[Piece]] = []
    for number, piece in enumerate(pieces):
        if number % step == 0 or (piece.thought is None) != (groups[-1][0].thought is None):
            groups.append([])
        groups[-1].append(piece)
    return tuple(
        Piece(
            sum(piece.length for piece in group),
            None if group[0].thought is None else "".join(piece.thought or "" for piece in group),
            group[0].place,
        )
        for group in groups
    )


def replay(entry: Entry) -> Iterator[Answer]:
    """Yield a stored answer as a stream gives it; the last chunk carries all that is known of it."""
    answer, whole = entry.answer, text_of(entry.answer)
    pieces = entry.pieces or (Piece(len(whole)),)
    shape, end, thought = shape_of(answer.raw), 0, ""
    for piece in pieces[:-1]:
        delta, end = whole[end : end + piece.length], end + piece.length
        thought += piece.thought or ""
        yield _chunk(entry, piece, delta, whole[:end], thought, shape)
    delta = whole[end:]
    answer.raw, answer.delta = last_of_stream(entry, delta), delta
    if pieces[-1].thought is not None:
        _think(answer, pieces[-1])
    yield answer


def _think(answer: Answer, piece: Piece) -> None:
    kwargs = answer.additional_kwargs
    if piece.place == ON_MESSAGE and isinstance(answer, ChatResponse):
        kwargs = answer.message.additional_kwargs
    kwargs[_THINKING] = piece.thought


def _chunk(entry: Entry, piece: Piece, delta: str, said: str, thought: str, shape: str | None) -> Answer:
    on_response: dict[str, Any] = {}
    on_message: dict[str, Any] = {}
    if piece.thought is not None:
        (on_response if piece.place == ON_RESPONSE else on_message)[_THINKING] = piece.thought
    common: dict[str, Any] = {
        "delta": delta,
        "raw": like(shape, delta),
        "logprobs": None,
        "additional_kwargs": on_response,
    }
    answer = entry.answer
    if not isinstance(answer, ChatResponse):
        return type(answer).model_construct(text=said, **common, **_own(answer))
    blocks: list[Any] = []
    if entry.text != NOTHING:
        blocks.append(text_block(said if entry.text == SO_FAR else delta))
        if entry.text == SO_FAR:
            blocks[:0] = thinking(thought)
    message = ChatMessage.model_construct(
        role=answer.message.role, blocks=blocks, additional_kwargs=on_message
    )
    return type(answer).model_construct(message=message, **common, **_own(answer))


def _own(answer: Answer) -> dict[str, Any]:
    """Return the defaults of the fields that only a class of answers of its own has."""
    fields = type(answer).model_fields
    known = ChatResponse.model_fields if isinstance(answer, ChatResponse) else CompletionResponse.model_fields
    return {
        name: field.get_default(call_default_factory=True)
        for name, field in fields.items()
        if name not in known
    }
