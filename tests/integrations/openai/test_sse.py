"""Streams as bytes: read in any pieces, whole or not, in any order that is legal."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import ormsgpack
import pytest
from hypothesis import example, settings
from hypothesis import given as example_of
from hypothesis import strategies as st
from tests.integrations.openai.wired import (
    BODY,
    CALL,
    JSON,
    MESSAGE,
    SAYS,
    STREAM,
    TELLS_USAGE,
    TOOL_USE,
    WITH_USAGE,
    blocks,
    chat,
    chunk,
    entry,
    given,
    message,
    plan,
    read,
    response,
    sse,
    streamed,
    text,
    told,
)

from askonce_openai import wire
from askonce_openai.wire.sse import DONE, Event, events, written

TRICKY = "data: [DONE]\n\nevent: message_stop\r\n\r\nevent: response.completed \u2028 \x85 é \U0001f600"
SAID = [chunk({"role": "assistant", "content": TRICKY}), *SAYS[1:]]
TRICKY_MESSAGE = {**MESSAGE, "content": [{"type": "output_text", "text": TRICKY, "annotations": []}]}
PARTS = [{**text(None, said), "usage": None} for said in ("he", TRICKY)]

WHOLE: dict[str, tuple[wire.Plan, bytes]] = {
    "chat": (plan("chat", {"stream": True}), sse(*SAID)),
    "chat, usage": (plan("chat", WITH_USAGE), sse(*SAID, TELLS_USAGE)),
    "chat, usage asked, none sent": (plan("chat", WITH_USAGE), sse(*SAID)),
    "completions": (plan("completions", {"stream": True}), sse(*PARTS, {**text(said=""), "usage": None})),
    "responses": (plan("responses", {"stream": True}), told(response("completed", None, TRICKY_MESSAGE))),
    "responses, metadata": (plan("responses", {"stream": True}), told(response(metadata={"a": TRICKY}))),
    "messages": (
        plan("messages", {"stream": True}),
        blocks(message("tool_use", {"type": "text", "text": TRICKY}, TOOL_USE)),
    ),
}
CASES = st.sampled_from(sorted(WHOLE))
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])


def pieces(body: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    return [body[start:end] for start, end in itertools.pairwise(places)]


# --- any split ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@example_of(CASES, st.lists(st.integers(0, 10_000), max_size=40), LINE_ENDS, st.booleans(), st.booleans())
def test_any_split_gives_the_same_entry(
    case: str, cuts: list[int], line_end: bytes, comments: bool, bom: bool
) -> None:
    """However the bytes arrive, whichever line ends: stored at the last event as at the end of the body."""
    asked, body = WHOLE[case]
    expected = entry(streamed(asked, body))
    if comments:
        body = re.sub(rb"(?m)^data: ", b": keep-alive\ndata: ", body)
    body = b"\xef\xbb\xbf" * bom + body.replace(b"\n", line_end)
    ending, received, at_last = wire.Ending(asked), b"", None
    for piece in pieces(body, cuts):
        received += piece
        if ending(piece):
            assert at_last is None
            at_last = wire.record(asked, 200, STREAM, received, ended=False)
    assert expected == at_last
    assert expected == streamed(asked, body)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("case", sorted(WHOLE))
def test_one_byte_at_a_time(case: str, line_end: bytes) -> None:
    """The last event is told once, when its blank line has come, which a CR may end."""
    asked, body = WHOLE[case]
    body = body.replace(b"\n", line_end)
    ending = wire.Ending(asked)
    came = [place for place in range(len(body)) if ending(body[place : place + 1])]
    body = body.removesuffix(b"\n") if line_end == b"\r\n" else body
    assert [len(body) - 1] == came


@pytest.mark.parametrize("case", sorted(WHOLE))
def test_no_cut_stream_is_stored(case: str) -> None:
    """At every byte: what is stored of a cut stream is what is stored of the whole one, or nothing."""
    asked, body = WHOLE[case]
    expected = entry(streamed(asked, body))
    # All is said before the mark of the end, unless usage may still come.
    whole_at = body.index(DONE) if DONE in body and "none sent" not in case else len(body)
    for place in range(len(body) + 1):
        found = streamed(asked, body[:place], ended=False)
        assert found == expected if place >= whole_at else isinstance(found, str)
        assert wire.is_whole(asked, body[:place]) is isinstance(found, wire.Entry)


def test_a_body_may_lack_its_last_blank_line() -> None:
    """The server has ended it."""
    assert streamed(plan(), sse(*SAYS).rstrip()) == streamed(plan(), sse(*SAYS))


def test_what_follows_the_last_event_is_not_stored() -> None:
    """A second mark, a comment, another stream."""
    asked, body = WHOLE["messages"]
    assert streamed(asked, body) == streamed(asked, body + DONE + body)
    assert streamed(plan(), sse(*SAYS)) == streamed(plan(), sse(*SAYS) + sse(*SAYS))


def test_a_last_event_without_a_name_is_found() -> None:
    """By the type that its data begin with; some servers send no names."""
    body = told(response()).replace(b"event: response.completed\n", b"")
    ending = wire.Ending(plan("responses"))
    assert not ending(body[:-1])
    assert ending(body[-1:])
    assert entry(streamed(plan("responses"), body))


# --- any legal order ----------------------------------------------------------------------------------------------

WORDS = st.lists(st.text(max_size=5), min_size=1, max_size=5)
ARGUMENTS = '{"city": "Rome"}'


def merged(draw: st.DrawFn, queues: list[list[Any]]) -> list[Any]:
    """Draw one interleaving of the queues."""
    queues, out = [list(queue) for queue in queues if queue], []
    while queues:
        place = draw(st.integers(0, len(queues) - 1))
        out.append(queues[place].pop(0))
        queues = [queue for queue in queues if queue]
    return out


@st.composite
def conversations(draw: st.DrawFn) -> tuple[int, bytes, bytes]:
    """The same choices, with text and two calls each, in two legal orders."""
    count = draw(st.integers(1, 3))
    queues: list[list[dict[str, Any]]] = []
    for index in range(count):
        said = [chunk({"content": word}, None, index) for word in draw(WORDS)]
        calls = []
        for place in (0, 1):
            first = {**CALL, "id": f"call_{index}{place}", "function": {"name": "f", "arguments": ""}}
            deltas = [{"index": place, **first}] + [
                {"index": place, "function": {"arguments": part}} for part in (ARGUMENTS[:4], ARGUMENTS[4:])
            ]
            calls.append([chunk({"tool_calls": [delta]}, None, index) for delta in deltas])
        begin = chunk({"role": "assistant", "content": ""}, None, index)
        middle = merged(draw, [said, *calls])
        queues.append([begin, *middle, chunk({}, "tool_calls", index)])
    orders = [sse(*merged(draw, queues), TELLS_USAGE) for _ in range(2)]
    return count, orders[0], orders[1]


@settings(deadline=None)
@example_of(conversations())
def test_any_order_of_chunks_gives_the_same_answer(drawn: tuple[int, bytes, bytes]) -> None:
    """Choices, text and calls may take turns as they like."""
    count, one, other = drawn
    asked = plan("chat", {**WITH_USAGE, "n": count})
    answers = [read(given(plan("chat", {"n": count}), entry(streamed(asked, body)))) for body in (one, other)]
    assert answers[0] == answers[1]
    assert count == len(answers[0]["choices"])
    for choice in answers[0]["choices"]:
        assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == [ARGUMENTS] * 2


@st.composite
def messages(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """One message whose blocks grow in two orders, with pings anywhere."""
    whole = blocks(message("tool_use", {"type": "text", "text": "hello"}, TOOL_USE))
    happened = [json.loads(event.data) for event in events(whole)]
    grow = [[one for one in happened if one.get("index") == index] for index in (0, 1)]
    pings = [{"type": "ping"}] * draw(st.integers(0, 3))
    orders = []
    for _ in range(2):
        middle = merged(draw, [*grow, pings])
        order = [happened[0], *middle, *happened[-2:]]
        orders.append(b"".join(written(one, one["type"]) for one in order))
    return orders[0], orders[1]


@settings(deadline=None)
@example_of(messages())
def test_any_order_of_blocks_gives_the_same_message(drawn: tuple[bytes, bytes]) -> None:
    """Each block has its index, and pings say nothing."""
    found = [read(given(plan("messages"), entry(streamed(plan("messages"), body)))) for body in drawn]
    assert found[0] == found[1]
    assert [block["type"] for block in found[0]["content"]] == ["text", "tool_use"]
    assert TOOL_USE["input"] == found[0]["content"][1]["input"]


# --- nothing raises -----------------------------------------------------------------------------------------------

ANYTHING = st.binary(max_size=80) | st.lists(
    st.sampled_from(
        [
            b"data: ",
            b"data:",
            b"event: ",
            b"error",
            b"message_stop",
            b"message_start",
            b"content_block_delta",
            b"response.completed",
            b"[DONE]",
            b"\n",
            b"\r",
            b"\n\n",
            b"\x00",
            b"\xff",
            b":",
            b"{}",
            b"[]",
            b'{"choices":[{"index":0,"delta":{"content":7},"finish_reason":"stop"}]}',
            b'{"choices":[{"delta":{}}]}',
            b'{"choices":{}}',
            b'{"usage":1e999,"choices":[]}',
            b'{"type":"response.completed","response":7}',
            b'{"type":"content_block_delta","index":9}',
            b'{"content":"\\ud800"}',
        ]
    ),
    max_size=12,
).map(b"".join)
ASKED = [plan(api, form) for api in BODY for form in ({}, {"stream": True}, WITH_USAGE)]
OPTIONS = [wire.Hits(), wire.Hits(replay="coalesced", fresh_ids=True, usage_on_hit="zero")]


@settings(deadline=None, max_examples=300)
@example_of(ANYTHING, st.sampled_from(ASKED), st.sampled_from([JSON, STREAM, {}]), st.booleans())
@example(b'{"choices":[{"finish_reason":"stop","message":{"content":"x"}}],"n":1e999}', ASKED[0], JSON, True)
def test_no_answer_raises(body: bytes, asked: wire.Plan, headers: dict[str, str], ended: bool) -> None:
    """Whatever bytes arrive, they are recorded or not; what is recorded is rendered or not."""
    ending = wire.Ending(asked)
    for piece in pieces(body, [3, 7]):
        ending(piece)
    found = wire.record(asked, 200, headers, body, ended=ended)
    for other in ASKED:
        for hits in OPTIONS:
            wire.render(other, found, hits, token="t")


@settings(deadline=None, max_examples=300)
@example_of(CASES, st.integers(0, 10_000), st.binary(max_size=3))
def test_no_damaged_stream_raises(case: str, place: int, damage: bytes) -> None:
    """Bytes lost, changed or added in the middle."""
    asked, body = WHOLE[case]
    place %= len(body)
    damaged = body[:place] + damage + body[place + len(damage) + 1 :]
    streamed(asked, damaged)
    for other in ASKED:
        for form in ("sse", "json"):
            for hits in OPTIONS:
                wire.render(other, wire.Entry(form, damaged, {}, usage_seen=True), hits)  # type: ignore[arg-type]


@settings(deadline=None)
@example_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"\x96\x02\xa4json", b"\x95\x02\xa4head", b"\xc4", b"\xc4\x03"]),
)
def test_a_foreign_entry_is_unreadable(data: bytes, start: bytes) -> None:
    """The codec raises ValueError, which the core takes for a miss, or gives what it may have written."""
    try:
        found = wire.CODEC.decode(start + data)
    except ValueError:
        return
    assert isinstance(found, wire.Entry | wire.Head | bytes)


# --- the codec ----------------------------------------------------------------------------------------------------

HEADERS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3)


@example_of(
    st.builds(
        wire.Entry,
        st.sampled_from(["json", "sse"]),
        st.binary(max_size=40),
        HEADERS,
        st.booleans(),
        st.booleans(),
    )
    | st.builds(wire.Head, HEADERS, st.booleans(), st.booleans())
    | st.binary(max_size=40)
)
def test_what_is_written_is_read(value: Any) -> None:
    """Entries, heads and chunks alike."""
    assert value == wire.CODEC.decode(wire.CODEC.encode(value))


@pytest.mark.parametrize(
    "data",
    [
        b'E{"v":1,"form":"json","headers":{},"usage":[false,false],"length":1}\nx',  # the first format
        b'H{"v":1,"headers":{},"asked":[true,true]}',
        b"Cdata: {}",
        ormsgpack.packb([3, "json", {}, False, False, b"x"]),
        ormsgpack.packb([2, "xml", {}, False, False, b"x"]),
        ormsgpack.packb([2, "json", {"a": 7}, False, False, b"x"]),
        ormsgpack.packb([2, "json", {}, 0, 1, b"x"]),
        ormsgpack.packb([2, "json", {}, False, False, "x"]),
        ormsgpack.packb([2, "json", {}, False, False]),
        ormsgpack.packb([2, "json", {}, False, False, b"x"])[:-1],
        ormsgpack.packb([2, "head", {}, True]),
        ormsgpack.packb([2, "head", {"a": None}, True, True]),
        ormsgpack.packb({"v": 2}),
        b"",
    ],
)
def test_what_another_version_wrote_is_not_read(data: bytes) -> None:
    """Nor what is no entry at all."""
    with pytest.raises(ValueError):
        wire.CODEC.decode(data)


def test_an_entry_holds_the_body_as_it_is() -> None:
    """No base64, no JSON inside JSON."""
    body = json.dumps(chat(), indent=1).encode()
    assert wire.CODEC.encode(wire.Entry("json", body, {"content-type": "x"})).endswith(body)


# --- events -------------------------------------------------------------------------------------------------------


def test_events_are_read_by_the_standard() -> None:
    """Fields, comments, several lines of data, no blank after the colon."""
    body = b": hi\nevent:a\ndata: 1\ndata:2\nid: 7\n\ndata\n\nretry: 5\n\n\ndata: [DONE]\n\ndata: cut"
    expected = [
        Event("a", b"1\n2", b"event:a\ndata: 1\ndata:2\nid: 7\n\n"),
        Event("", b"", b"data\n\n"),
        Event("", b"", b"retry: 5\n\n"),
        Event("", b"[DONE]", DONE),
    ]
    assert expected == list(events(body, ended=False))
    assert [*expected, Event("", b"cut", b"data: cut\n\n")] == list(events(body))


def test_a_lone_surrogate_is_written_so_that_it_can_be_read() -> None:
    """It has no UTF-8: as an escape it reaches the SDK as the server sent it."""
    assert written({"a": "\ud800"}) == b'data: {"a":"\\ud800"}\n\n'
    assert 'data: {"a":"é"}\n\n'.encode() == written({"a": "é"})
