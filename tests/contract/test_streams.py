"""
Streams: recorded while they are passed on, replayed, and followed here and elsewhere while they run.

"Here" is another caller of the same process, in either colour; "elsewhere" shares nothing but Redis.  Whoever goes
away, fails, is killed or sleeps: a consumer is given every chunk once and in order, or a plain error, and nothing
half is ever stored.
"""

import asyncio
import contextlib
import gc
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from askonce import (
    AsyncCache,
    BackendUnavailable,
    Cache,
    LeaderFailed,
    NotCached,
    Policy,
    Refused,
    Source,
    StreamBroken,
    Uncacheable,
    _tapes,
    control,
    scripts,
)
from askonce import _programs as programs
from askonce.keys import Request

from . import streaming
from .audit import Auditor
from .polling import age, registered, until
from .streaming import QUESTION, Party, Producer, nothing_left

NOWHERE = "redis://127.0.0.1:1/0"
COLOURS = pytest.mark.parametrize("colour", ["threads", "asyncio"])
WORDS = ("Why", " not", "?")


class QuotaError(Exception):
    """The model's own error."""


@pytest.fixture
def party(url):
    """Make parties: ``party("asyncio", like=another)`` shares the cache of another, ``party("threads")`` does not."""
    made = []

    def make(colour="threads", *, like=None, at=None, **words):
        words.setdefault("deadline", 2.0)  # a busy machine is no fault of Redis
        cache = like.cache if like else Cache(at or url, namespace="test", **words)
        made.append(Party(colour, cache))
        return made[-1]

    yield make
    Producer.open_all()
    for one in made:
        one.stop()


@pytest.fixture
def join(party, request):
    """Make two parties, a leader and a follower, of the colours and in the places that ``PAIRS`` names."""
    leading, following, where = request.param.split("-")

    def make(**words):
        leader = party(leading, **words)
        return leader, party(following, like=leader) if where == "here" else party(following, **words)

    make.here = where == "here"
    return make


PAIRS = pytest.mark.parametrize(
    "join",
    [
        f"{leader}-{follower}-{where}"
        for where in ("here", "elsewhere")
        for leader in ("threads", "asyncio")
        for follower in ("threads", "asyncio")
    ],
    indirect=True,
)
#: Where the colours make no difference to what is tested.
PLACES = pytest.mark.parametrize(
    "join", ["threads-asyncio-here", "asyncio-threads-elsewhere", "threads-asyncio-elsewhere"], indirect=True
)


def digest_of(party, request="q"):
    """Return the digest under which the stream of *request* is kept."""
    return party.cache.explain(request).fingerprint.encode()


def published(raw, names):
    """Return the keys of the chunks that are published."""
    return [key for key in raw.scan_iter(names.r + b"*") if raw.type(key) == b"list"]


def entries(raw, names):
    """Return the keys of the entries there are, graves excluded."""
    return [key for key in raw.scan_iter(names.e + b"*") if raw.strlen(key) > 48]


def leases(raw, names):
    """Return the keys of the leases that are held; a failure stands for a moment under the same name."""
    return [key for key in raw.scan_iter(names.k + b"*") if not (raw.get(key) or b"!").startswith(b"!")]


def stored(party, request="q"):
    """Return the chunks that are stored for *request*, or None; nobody is asked."""
    never = Producer("never")
    with control(only_if_cached=True):
        reader = party.read(request, never)
    try:
        return reader.take()
    except NotCached:
        return None
    finally:
        assert never.calls == 0, "only_if_cached, and the model was called"


# --- replay -----------------------------------------------------------------------------------------------------


class Reversed:
    """A codec of the user's: text, backwards."""

    name = "reversed"

    def encode(self, value):
        return value[::-1].encode()

    def decode(self, data):
        return data.decode()[::-1]


STREAMS = {
    "text": (["Why", " not", "?", "", "ümläut \ud800", "x" * 5000], None),
    "bytes": ([b"\x00\xff", b"", b"AO\x01", b"\r\n" * 100], None),
    "json": (
        [{"delta": {"content": "a", "n": [1, 2.5, None, True]}}, [], 7, 2**63, -1.5, "text", None, {}],
        None,
    ),
    "codec": (["forwards", "", "x"], Reversed()),
    "empty": ([], None),
    "one huge chunk": ([random.Random(1).randbytes(5_000_000)], None),
    "ten thousand small chunks": ([f"{number} " for number in range(10_000)], None),
}


@COLOURS
@pytest.mark.parametrize("kind", STREAMS)
def test_a_replay_equals_the_original(party, colour, kind):
    """Whatever the chunks are, a later stream gives the same ones, and asks nobody; so does the other colour."""
    chunks, codec = STREAMS[kind]
    one, other = party(colour), party(colour)
    twin = party("asyncio" if colour == "threads" else "threads", like=one)
    producer, never = Producer(*chunks), Producer("never")

    first = one.read("q", producer, codec=codec).take()
    replays = [reader.read("q", never, codec=codec).take() for reader in (one, other, twin)]

    assert first == chunks
    for replay in replays:
        assert replay == chunks
        assert [type(chunk) for chunk in replay] == [type(chunk) for chunk in chunks]
    assert (producer.calls, never.calls) == (1, 0)
    stats = one.cache.stats()
    assert (stats.misses, stats.stored, stats.computed, stats.coalesced) == (1, 1, 1, 0)


@COLOURS
def test_each_consumer_has_chunks_of_its_own(party, colour):
    """What one consumer does to a chunk, no other sees."""
    one = party(colour)
    follower = party("threads", like=one)
    producer = Producer({"n": []}, let=1)
    leading = one.read("q", producer)
    (led,) = leading.take(1)
    (followed,) = follower.read("q", producer).take(1)
    led["n"].append("spoilt")
    producer.open()
    leading.take()

    assert followed == {"n": []}
    for reader in (one, follower):
        (replayed,) = reader.read("q", producer).take()
        assert replayed == {"n": []}
        replayed["n"].append("spoilt too")


FORMS = {
    "text": (["Why", " not", "?"], "Why not?"),
    "bytes": ([b"a", b"", b"b"], b"ab"),
    "json": ([{"n": 1}, [2], 3], [{"n": 1}, [2], 3]),
    "mixed": (["a", b"b"], ["a", b"b"]),
}


@COLOURS
@pytest.mark.parametrize("form", FORMS)
def test_one_entry_serves_streams_and_values(party, colour, form):
    """The value of a stream is its text or bytes in one piece, or the list of its chunks; invalidate removes it."""
    chunks, value = FORMS[form]
    one = party(colour)
    assert one.read("q", Producer(*chunks)).take() == chunks

    assert one.cache.lookup("q").value == value
    assert one.cache.get_or_compute("q", lambda: "never") == value

    assert one.cache.invalidate("q") is True
    assert one.cache.lookup("q") is None
    assert one.read("q", Producer("new")).take() == ["new"]


@COLOURS
@pytest.mark.parametrize(
    "value", ["Why not?", b"bytes", {"n": [1, None]}, ["a", "list"], "", None, "long " * 1000]
)
def test_what_was_stored_as_a_value_is_a_stream_of_one_chunk(party, colour, value):
    """Of the same type; a later lookup still finds the value."""
    one = party(colour)
    one.cache.store("q", value)

    assert one.read("q", Producer("never")).take() == [value]
    assert one.cache.lookup("q").value == value


@COLOURS
def test_a_request_of_a_kind_of_its_own_can_be_streamed(party, colour):
    """An adapter names the kind of its requests: streams of two kinds share nothing, and invalidate finds one."""
    one = party(colour)
    for kind in ("chat", "completion"):
        assert one.read(Request(kind, "q"), Producer(kind)).take() == [kind]
    assert one.read(Request("chat", "q"), Producer("never")).take() == ["chat"]

    assert one.cache.invalidate(Request("chat", "q")) is True
    assert one.read(Request("chat", "q"), Producer("new")).take() == ["new"]


def test_a_stream_that_is_not_read_asks_nobody(party, raw, names):
    """The model is called when the first chunk is wanted, not before."""
    for colour in ("threads", "asyncio"):
        one, producer = party(colour), Producer(*WORDS)
        one.read("q", producer)
        assert producer.calls == 0
        nothing_left(one)
    assert not raw.exists(names.c)


def test_what_a_sync_producer_may_be(party):
    """A generator, a list, or any iterable."""
    one = party("threads")
    for name, fn in {
        "generator": lambda: iter("ab"),
        "list": lambda: ["a", "b"],
        "text": lambda: "ab",
    }.items():
        assert one.read(name, fn).take() == ["a", "b"]
        assert one.read(name, Producer("never")).take() == ["a", "b"]


def test_what_an_async_producer_may_be(party):
    """An async iterator, an awaitable of one, an iterable, or an awaitable of one."""

    class Stream:
        def __init__(self):
            self.left = ["b", "a"]

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    async def opened(stream):
        return stream

    one = party("asyncio")
    for name, fn in {
        "generator": Producer("a", "b").awaited,
        "iterator": Stream,
        "awaitable": lambda: opened(Stream()),
        "list": lambda: ["a", "b"],
        "awaitable list": lambda: opened(["a", "b"]),
    }.items():
        assert one.read(name, fn).take() == ["a", "b"]
        assert one.read(name, Producer("never")).take() == ["a", "b"]


# --- passing on -------------------------------------------------------------------------------------------------


@COLOURS
def test_a_chunk_is_passed_on_before_the_next_is_produced(party, colour):
    """The cache holds nothing back."""
    one, producer = party(colour), Producer(*WORDS, let=0)
    reader = one.read("q", producer)
    for number in range(len(WORDS)):
        pulled = reader.pull(1)
        producer.called()
        assert not pulled.done()
        producer.let()
        assert pulled.result(10) == list(WORDS[: number + 1])
    producer.let()
    assert reader.take() == list(WORDS)


@COLOURS
def test_a_stream_is_stored_at_its_end_and_before_the_consumer_sees_it(party, raw, names, colour):
    """While it runs nothing can be looked up; once the consumer knows that it has all, it can."""
    one, producer = party(colour), Producer(*WORDS, let=len(WORDS))
    reader = one.read("q", producer)
    reader.take(len(WORDS))
    assert entries(raw, names) == []
    producer.open()
    pulled = reader.pull(1)
    assert pulled.result(10) == list(WORDS)
    assert len(entries(raw, names)) == 1
    assert raw.keys(names.k + b"*") == []
    assert all(0 < raw.pttl(running) <= 10_000 for running in raw.keys(names.r + b"*"))
    nothing_left(one)


# --- following --------------------------------------------------------------------------------------------------


@PAIRS
def test_who_joins_is_given_each_chunk_as_it_comes(join):
    """From the first chunk on, in order, none twice, while the leader still runs; and the model is called once."""
    leader, follower = join()
    producer, never = Producer(*WORDS, let=1), Producer("never")
    leading = leader.read("q", producer)
    assert leading.take(1) == ["Why"]
    following = follower.read("q", never)
    assert following.take(1) == ["Why"]
    for number in (2, 3):
        pulled = following.pull(1)
        assert not pulled.done()
        producer.let()
        leading.take(1)
        assert pulled.result(10) == list(WORDS[:number])
    producer.let()

    assert leading.take() == following.take() == list(WORDS)
    assert (producer.calls, never.calls) == (1, 0)
    assert follower.read("q", never).take() == list(WORDS)
    assert (
        sum(one.cache.stats().coalesced for one in {leader.cache: leader, follower.cache: follower}.values())
        >= 1
    )
    nothing_left(leader, follower)


@PAIRS
def test_who_joins_late_is_given_all_from_the_first_chunk_on(join):
    """A follower that comes behind the last chunk, before the end, is given the whole stream."""
    leader, follower = join()
    producer = Producer(*(f"{number} " for number in range(300)), let=300)
    leading = leader.read("q", producer)
    leading.take(300)
    following = follower.read("q", Producer("never"))
    assert following.take(300) == list(producer.chunks)
    producer.open()

    assert leading.take() == following.take() == list(producer.chunks)


@PLACES
def test_a_consumer_may_take_its_time(join, raw, names, monkeypatch):
    """It has chunks to go on with while the stream ends; later what was published is gone, and the rest is there."""
    monkeypatch.setattr(_tapes, "READ_AHEAD_S", 0.0)
    leader, follower = join()
    chunks = [{"text": word} for word in WORDS]
    whole = {"text": "".join(WORDS)}
    producer = Producer(*chunks, let=2)
    leading = leader.read("q", producer, fold=lambda _: whole)
    leading.take(2)
    if not join.here:
        until(lambda: any(raw.llen(key) == 2 for key in published(raw, names)))
    following = follower.read("q", Producer("never"), fold=lambda _: whole)
    assert following.take(1) == chunks[:1]
    producer.open()
    assert leading.take() == chunks
    assert following.take(1) == chunks[:2]
    for key in published(raw, names):
        raw.delete(key)

    assert following.take() == chunks
    nothing_left(leader, follower)


@pytest.mark.parametrize("followed", [True, False])
def test_what_was_published_stays_for_those_who_follow(party, raw, names, followed):
    """A minute behind the end, and a few seconds if there is nobody."""
    leader, follower = party("threads"), party("asyncio")
    producer = Producer(*WORDS, let=1)
    leading = leader.read("q", producer)
    leading.take(1)
    until(lambda: published(raw, names))
    (key,) = published(raw, names)
    if followed:
        assert follower.read("q", Producer("never")).take(1) == list(WORDS[:1])
    producer.open()
    leading.take()

    assert (5_000 < raw.pttl(key) <= 60_000) if followed else (0 < raw.pttl(key) <= 5_000)


@PAIRS
def test_who_joins_before_the_first_chunk_waits_for_it(join):
    """The leader has asked the model, and nothing has come yet."""
    leader, follower = join()
    producer, never = Producer(*WORDS, let=0), Producer("never")
    leading = leader.read("q", producer)
    pulled = leading.pull()
    producer.called()
    following = follower.read("q", never).pull()
    follower.follows()
    producer.open()

    assert pulled.result(10) == following.result(10) == list(WORDS)
    assert never.calls == 0


@PAIRS
def test_large_streams_are_followed(join):
    """A huge chunk between small ones, and many of them."""
    leader, follower = join()
    chunks = [b"x", random.Random(2).randbytes(2_000_000), *(b"%d" % number for number in range(3000))]
    producer = Producer(*chunks, let=1)
    leading = leader.read("q", producer)
    leading.take(1)
    following = follower.read("q", Producer("never")).pull()
    follower.follows()
    producer.open()

    assert leading.take() == following.result(15) == chunks


def test_all_callers_of_a_process_join_one_stream(party):
    """Ten threads and ten tasks of one cache, asking at the same time: one call, twenty whole streams."""
    threads = party("threads")
    tasks = party("asyncio", like=threads)
    producer = Producer(*WORDS, let=0)
    pulled = [one.read("q", producer).pull() for one in (threads, tasks) * 10]
    producer.called()
    for _ in range(len(WORDS) + 1):
        producer.let()

    assert [one.result(15) for one in pulled] == [list(WORDS)] * 20
    assert producer.calls == 1
    assert threads.cache.stats().stored == 1
    nothing_left(threads)


def test_each_follower_has_a_codec_of_its_own(party):
    """Chunks are decoded for each consumer by what it brought along."""

    class Shouting(Reversed):
        def decode(self, data):
            return super().decode(data).upper()

    one, other = party("threads"), party("asyncio")
    producer = Producer("a", "b", let=1)
    leading = one.read("q", producer, codec=Reversed())
    leading.take(1)
    followers = [who.read("q", producer, codec=Shouting()) for who in (party("threads", like=one), other)]
    assert [follower.take(1) for follower in followers] == [["A"], ["A"]]
    producer.open()

    assert leading.take() == ["a", "b"]
    assert [follower.take() for follower in followers] == [["A", "B"], ["A", "B"]]


@PAIRS
def test_a_stream_in_another_codec_is_of_no_use_and_does_no_harm(join):
    """Who reads another format than the leader writes calls the model, for a running stream and for a stored one."""
    leader, follower = join()
    producer, own = Producer("a", "b", let=1), Producer("c", "d")
    leading = leader.read("q", producer)
    leading.take(1)

    assert follower.read("q", own, codec=Reversed()).take() == ["c", "d"]
    producer.open()
    assert leading.take() == ["a", "b"]
    assert follower.read("q", own, codec=Reversed()).take() == ["c", "d"]


@PAIRS
def test_a_follower_that_goes_away_touches_nobody(join):
    """The leader goes on, and another follower has the whole stream."""
    leader, follower = join()
    producer = Producer(*WORDS, let=1)
    leading = leader.read("q", producer)
    leading.take(1)
    following = [follower.read("q", Producer("never")) for _ in range(3)]
    for one in following:
        one.take(1)
    following[0].leave("close")
    following[1].leave("drop")
    producer.open()

    assert leading.take() == following[2].take() == list(WORDS)
    nothing_left(leader, follower)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_cancelled_follower_touches_nobody(party, where):
    """Cancelled while it waits for the next chunk."""
    leader = party("threads")
    follower = party("asyncio", like=leader) if where == "here" else party("asyncio")
    producer = Producer(*WORDS, let=1)
    leading = leader.read("q", producer)
    leading.take(1)
    following = follower.read("q", Producer("never"))
    following.take(1)
    waiting = following.pull()
    follower.follows()
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result(10)
    producer.open()

    assert leading.take() == list(WORDS)
    nothing_left(leader, follower)


# --- both forms of one answer -----------------------------------------------------------------------------------


@PAIRS
def test_a_stream_follows_a_value_that_is_computed(join):
    """Who asks for a stream while the value is computed is given it in one chunk; the function is called once."""
    leader, follower = join()
    called, opened = threading.Event(), threading.Event()

    def compute():
        called.set()
        assert opened.wait(20)
        return "a value"

    if leader.colour == "threads":
        values = []
        thread = threading.Thread(
            target=lambda: values.append(leader.cache.get_or_compute("q", compute)), daemon=True
        )
        thread.start()
    else:
        future = asyncio.run_coroutine_threadsafe(
            leader.cache.aio.get_or_compute("q", lambda: asyncio.to_thread(compute)), leader.loop
        )
    assert called.wait(10)
    following = follower.read("q", Producer("never")).pull()
    follower.follows()
    opened.set()

    assert following.result(10) == ["a value"]
    if leader.colour == "threads":
        thread.join(10)
        assert values == ["a value"]
    else:
        assert future.result(10) == "a value"
    nothing_left(leader, follower)


@PAIRS
def test_a_value_is_had_from_a_stream_that_runs(join):
    """Who asks for the value while its stream runs waits for the end and has it whole."""
    leader, follower = join()
    producer, calls = Producer(*WORDS, let=1), []
    leading = leader.read("q", producer)
    leading.take(1)
    results = []
    if follower.colour == "threads":
        asking = threading.Thread(
            target=lambda: results.append(follower.cache.get_or_compute("q", lambda: calls.append(1))),
            daemon=True,
        )
        asking.start()
    else:
        future = asyncio.run_coroutine_threadsafe(
            follower.cache.aio.get_or_compute("q", lambda: calls.append(1)), follower.loop
        )
    waits_for_value(follower)
    producer.open()
    leading.take()

    if follower.colour == "threads":
        asking.join(10)
        (value,) = results
    else:
        value = future.result(10)
    assert (value, calls) == ("Why not?", [])


def waits_for_value(party):
    """Return once a caller of *party* waits for a flight, here or elsewhere."""
    until(
        lambda: (
            registered(party.namespace)
            or any(
                flight.future._done_callbacks or flight.future._condition._waiters
                for flight in flights(party)
            )
        )
    )


def hold(party, request="q"):
    """Begin in a thread of its own, which ends: nobody else who asks is taken for the holder."""
    leases = []
    thread = threading.Thread(target=lambda: leases.append(party.cache.begin(request)))
    thread.start()
    thread.join(10)
    return leases[0]


@PLACES
def test_what_a_holder_publishes_is_followed(join):
    """begin, publish, finish: who streams the same request is given each chunk as it comes, and the end."""
    leader, follower = join()
    lease = hold(leader)
    following = follower.read("q", Producer("never"))
    pulled = following.pull(1)
    follower.follows()
    lease.publish("Why")
    assert pulled.result(10) == ["Why"]
    lease.publish(" not")
    assert following.take(1) == ["Why", " not"]
    lease.publish("?")
    assert lease.finish("Why not?") is True

    assert following.take() == list(WORDS)
    lease.publish("too late")
    assert follower.read("q", Producer("never")).take() == ["Why not?"]
    assert leader.cache.lookup("q").value == "Why not?"
    nothing_left(leader, follower)


@PLACES
def test_a_holder_that_publishes_nothing_is_followed_to_its_end(join):
    """The answer comes in one chunk."""
    leader, follower = join()
    lease = hold(leader)
    following = follower.read("q", Producer("never")).pull()
    follower.follows()
    lease.finish("an answer")

    assert following.result(10) == ["an answer"]


@PLACES
def test_a_holder_that_abandons_what_it_published_hands_over(join):
    """With an error its followers raise it behind the chunks they have; without, one of them calls the model."""
    for number, error in enumerate((QuotaError("down"), None)):
        leader, follower = join()
        lease, again = hold(leader, {"n": number}), Producer(*WORDS)
        following = follower.read({"n": number}, again)
        pulled = following.pull(1)
        follower.follows()
        lease.publish("Why")
        assert pulled.result(10) == ["Why"]
        rest = following.pull()
        follower.follows()
        lease.abandon(error)

        if error is None:
            assert (rest.result(10), again.calls) == (list(WORDS), 1)
        else:
            with pytest.raises(QuotaError if join.here else LeaderFailed):
                rest.result(10)
            assert again.calls == 0
        nothing_left(leader, follower)


@PLACES
def test_all_that_was_published_reaches_those_who_follow_before_the_end(join):
    """Ten thousand chunks in the last moment: who has the first has the rest, not half an answer that looks whole."""
    leader, follower = join(max_bytes="64mb")
    chunks = [f"{number} " for number in range(10_000)]
    lease = hold(leader)
    following = follower.read("q", Producer("never"))
    pulled = following.pull(1)
    follower.follows()
    lease.publish(chunks[0])
    assert pulled.result(10) == chunks[:1]
    for chunk in chunks[1:]:
        lease.publish(chunk)
    assert lease.finish("".join(chunks)) is True

    assert following.take() == chunks


@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_chunks_that_redis_did_not_take_do_not_cut_an_answer_short(party, monkeypatch, colour):
    """A publication fails in the middle and the answer is stored all the same: its follower has all, or an error."""
    leader, follower = party("threads"), party(colour)
    lease = hold(leader)
    following = follower.read("q", Producer(*WORDS))
    pulled = following.pull(1)
    follower.follows()
    lease.publish("Why")
    assert pulled.result(10) == ["Why"]
    publish, refused = leader.namespace.publisher._publish, []

    def refuse_once(*call):
        if not refused:
            refused.append(call)
            raise BackendUnavailable("a moment's trouble")
        return publish(*call)

    monkeypatch.setattr(leader.namespace.publisher, "_publish", refuse_once)
    lease.publish(" not")
    until(lambda: refused)
    lease.publish("?")
    assert lease.finish("Why not?") is True

    assert "".join(following.take()) == "Why not?"


def test_a_chunk_that_cannot_be_published_is_refused(party):
    """Uncacheable; the lease is still the holder's to finish."""
    one = party("threads")
    lease = hold(one)
    with pytest.raises(Uncacheable):
        lease.publish({1, 2, 3})
    lease.publish("an answer")
    assert lease.finish("an answer") is True


@COLOURS
@pytest.mark.parametrize("outer", ["value", "stream"])
def test_a_function_that_asks_for_its_own_key_in_the_other_form_does_not_wait_for_itself(
    party, colour, outer
):
    """A model whose plain call is made of its stream, or the reverse, both cached: it computes at once."""
    one = party(colour, policy=Policy(max_wait=5))
    inner = Producer(*WORDS)

    def value():
        return "".join(one.cache.stream("q", inner.sync))

    def chunks():
        yield one.cache.get_or_compute("q", lambda: "Why not?")

    async def avalue():
        return "".join([chunk async for chunk in one.cache.aio.stream("q", inner.awaited)])

    async def achunks():
        yield await one.cache.aio.get_or_compute("q", lambda: "Why not?")

    async def join(stream):
        return "".join([chunk async for chunk in stream])

    start = time.monotonic()
    if colour == "threads":
        whole = (
            one.cache.get_or_compute("q", value)
            if outer == "value"
            else "".join(one.cache.stream("q", chunks))
        )
    else:
        call = (
            one.cache.aio.get_or_compute("q", avalue)
            if outer == "value"
            else join(one.cache.aio.stream("q", achunks))
        )
        whole = one.run(call)
    assert whole == "Why not?"
    assert time.monotonic() - start < 2
    nothing_left(one)


# --- a producer that fails --------------------------------------------------------------------------------------


@PAIRS
@pytest.mark.parametrize("before", [0, 2], ids=["before the first chunk", "after two chunks"])
def test_a_failing_producer_fails_all_who_follow(join, raw, names, before):
    """Each has the chunks that came, then the error: here as it is, elsewhere its type; and nothing is stored."""
    leader, follower = join()
    error = QuotaError("key sk-12345 is over its quota")
    producer, never = Producer(*WORDS[:before], error=error, let=before), Producer("never")
    leading, following = leader.read("q", producer), follower.read("q", never)
    assert leading.take(before) == list(WORDS[:before])
    pulled = leading.pull()
    producer.called()
    assert following.take(before) == list(WORDS[:before])
    followed = following.pull(1)
    follower.follows()
    producer.open()

    with pytest.raises(QuotaError) as caught:
        pulled.result(10)
    assert caught.value is error
    with pytest.raises(QuotaError if join.here else LeaderFailed) as shared:
        followed.result(10)
    if join.here:
        assert shared.value is error
    else:
        assert shared.value.error_type.endswith("QuotaError")
        assert "sk-12345" not in str(shared.value)
    assert never.calls == 0
    assert entries(raw, names) == []
    nothing_left(leader, follower)
    assert follower.read("q", Producer("next")).take() == ["next"]


@PAIRS
def test_a_function_that_cannot_open_a_stream_fails_all_who_follow(join):
    """The call itself raises, before there is anything to iterate."""
    leader, follower = join()
    called, opened = threading.Event(), threading.Event()

    def fails():
        called.set()
        assert opened.wait(20)
        raise QuotaError("no stream")

    async def afails():
        return await asyncio.to_thread(fails)

    leading = leader.read("q", fails if leader.colour == "threads" else afails).pull()
    assert called.wait(10)
    following = follower.read("q", Producer("never")).pull()
    follower.follows()
    opened.set()

    with pytest.raises(QuotaError):
        leading.result(10)
    with pytest.raises(QuotaError if join.here else LeaderFailed):
        following.result(10)
    nothing_left(leader, follower)


# --- a consumer that goes away ----------------------------------------------------------------------------------

GOING = [(colour, how) for colour in ("threads", "asyncio") for how in ("close", "drop")] + [
    ("asyncio", "cancelled")
]
GOES = pytest.mark.parametrize(("colour", "how"), GOING, ids=[f"{colour}-{how}" for colour, how in GOING])


@GOES
def test_a_consumer_that_goes_away_leaves_nothing(party, raw, names, colour, how):
    """Closed, collected or cancelled after one chunk: nothing is stored, the producer is closed, the lease is free."""
    one, other = party(colour), party("threads")
    producer = Producer(*WORDS, let=1)
    reader = one.read("q", producer)
    reader.take(1)
    assert leases(raw, names)
    reader.leave(how)

    until(lambda: not leases(raw, names), 5)
    until(lambda: producer.closed == 1, 5)
    nothing_left(one)
    assert entries(raw, names) == []
    for late in raw.keys(names.r + b"*"):
        assert 0 < raw.pttl(late) <= 10_000
    start = time.monotonic()
    assert other.read("q", Producer("other's")).take() == ["other's"]
    assert time.monotonic() - start < 3  # a lease is 10 s


@pytest.mark.parametrize("where", ["before the first chunk", "between chunks"])
def test_a_task_cancelled_while_the_model_works_leaves_nothing(party, raw, names, where):
    """Cancelled in the middle of waiting for a chunk: as if it had never asked."""
    one = party("asyncio")
    producer = Producer(*WORDS, let=0 if where == "before the first chunk" else 1)
    reader = one.read("q", producer)
    if where == "between chunks":
        reader.take(1)
    waiting = reader.pull()
    producer.called()
    for _ in range(20):  # turns of its loop: the task has begun to wait for the chunk, not for the order
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), one.loop).result(5)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result(10)

    until(lambda: producer.closed == 1, 5)
    until(lambda: not leases(raw, names), 5)
    nothing_left(one)
    assert entries(raw, names) == []
    assert one.read("q", Producer("next")).take() == ["next"]


@pytest.mark.parametrize("script", ["control", "lease", "store"])
async def test_a_consumer_that_is_cancelled_while_redis_answers_leaves_no_lease(url, script):
    """Cancelled between question and answer of any exchange: nobody waits for what it was granted."""
    async with AsyncCache(url, namespace="test") as one, AsyncCache(url, namespace="test") as other:
        await one.lookup("connect"), await other.lookup("connect")
        sha = next(known.sha for known in scripts.ALL if known.name == script).encode()
        if script == "control":
            one._namespace.state.partitions[0].word = None
        wire = one._namespace.nodes[0].multiplexers.here()
        exchange, met = wire.exchange, []

        def meddled(packed, count):
            future = exchange(packed, count)
            if sha in packed and not met:
                met.append(True)
                task.cancel()
            return future

        async def consume(cache):
            return [chunk async for chunk in cache.stream("q", Producer(*WORDS).awaited)]

        wire.exchange = meddled
        task = asyncio.create_task(consume(one))
        with pytest.raises(asyncio.CancelledError):
            await task
        wire.exchange = exchange
        assert met == [True]

        start = time.monotonic()
        assert await asyncio.wait_for(consume(other), 15) == list(WORDS)
        assert await asyncio.wait_for(consume(one), 15) == list(WORDS)
        assert time.monotonic() - start < 3  # a lease is 10 s
        assert len(one._namespace.state.flights) == 0


@PAIRS
def test_a_follower_takes_over_where_the_leader_left(join):
    """The model repeats itself: the follower goes on behind the chunks it has, with none twice, and stores the whole."""
    leader, follower = join()
    producer, again = Producer(*WORDS, let=2), Producer(*WORDS)
    leading, following = leader.read("q", producer), follower.read("q", again)
    leading.take(2)
    assert following.take(2) == ["Why", " not"]
    rest = following.pull()
    follower.follows()
    start = time.monotonic()
    leading.leave()

    assert rest.result(10) == list(WORDS)
    assert time.monotonic() - start < 3  # a lease is 10 s
    assert again.calls == 1
    assert follower.read("q", Producer("never")).take() == list(WORDS)
    nothing_left(leader, follower)


@PAIRS
def test_a_stream_that_is_followed_is_read_on(join, raw, names):
    """With ``drain="followed"`` a follower is given the rest of the leader's answer, which is stored."""
    leader, follower = join()
    producer, never = Producer(*WORDS, let=2), Producer("something else")
    leading, following = leader.read("q", producer, drain="followed"), follower.read("q", never)
    leading.take(2)
    following.take(2)
    rest = following.pull()
    follower.follows()
    leading.leave()
    producer.open()

    assert rest.result(10) == list(WORDS)
    assert (producer.calls, never.calls) == (1, 0)
    assert follower.read("q", never).take() == list(WORDS)
    nothing_left(leader, follower)


@COLOURS
def test_a_stream_that_nobody_follows_is_closed(party, colour, raw, names):
    """With ``drain="followed"`` too: nothing is produced for nobody."""
    one = party(colour)
    producer = Producer(*WORDS, let=1)
    leading = one.read("q", producer, drain="followed")
    leading.take(1)
    leading.leave()
    until(lambda: producer.closed == 1, 5)
    assert entries(raw, names) == []
    nothing_left(one)


@PAIRS
def test_half_of_one_answer_is_not_continued_by_half_of_another(join, raw, names):
    """The model says something else this time: StreamBroken, with the number of chunks that were passed on."""
    leader, follower = join()
    producer, again = Producer(*WORDS, let=2), Producer("Why", " indeed", "?")
    leading, following = leader.read("q", producer), follower.read("q", again)
    leading.take(2)
    following.take(2)
    rest = following.pull()
    follower.follows()
    leading.leave()

    with pytest.raises(StreamBroken) as caught:
        rest.result(10)
    assert (caught.value.passed, following.chunks) == (2, ["Why", " not"])
    until(lambda: not leases(raw, names), 5)
    nothing_left(leader, follower)
    assert follower.read("q", Producer("whole")).take() == ["whole"]


@PAIRS
def test_a_follower_that_had_nothing_yet_is_given_another_answer(join):
    """Whatever the model says this time: who was given nothing before cannot tell."""
    leader, follower = join()
    producer, again = Producer(error=SystemExit(), let=0), Producer("something", " else")
    leading, following = leader.read("q", producer), follower.read("q", again)
    leading.pull()
    producer.called()
    rest = following.pull()
    follower.follows()
    if leader.colour == "asyncio":
        leading.cancel()
    else:
        producer.open()  # the thread is torn down

    assert rest.result(10) == ["something", " else"]
    nothing_left(leader, follower)


@PLACES
def test_a_call_whose_answer_is_of_no_use_is_closed(join):
    """Who meets StreamBroken lets go of the model's stream that it opened in vain, at once."""
    leader, follower = join()
    producer, again = Producer(*WORDS, let=1), Producer("Something", " else", "?", let=1)
    leading, following = leader.read("q", producer), follower.read("q", again)
    leading.take(1)
    following.take(1)
    rest = following.pull()
    follower.follows()
    leading.leave()
    with pytest.raises(StreamBroken) as held:  # its traceback, kept by a logger say, keeps nothing open
        rest.result(10)

    until(lambda: again.closed == 1, 2)
    del held


@PLACES
def test_a_broken_stream_is_broken_for_nobody_else(join):
    """
    Who was given chunks of the first answer meets StreamBroken with the second; who asks meanwhile is given the
    second one whole, or calls for itself.
    """
    leader, follower = join()
    newcomer = Party("threads", follower.cache)
    producer, again, own = Producer(*WORDS, let=2), Producer("Something", " else", let=0), Producer("own")
    leading, following = leader.read("q", producer), follower.read("q", again)
    leading.take(2)
    following.take(2)
    rest = following.pull()
    follower.follows()
    leading.leave()
    again.called()
    joined = newcomer.read("q", own).pull()
    until(lambda: any(flight.tape._waiting for flight in flights(newcomer)), 5)
    again.open()

    with pytest.raises(StreamBroken):
        rest.result(10)
    assert joined.result(10) in (["Something", " else"], ["own"])


def flights(party):
    """Return the flights of this process."""
    return list(party.namespace.state.flights._flights.values())


def test_a_producer_that_cannot_be_closed_holds_nobody_up(party, raw, names):
    """Its error is the consumer's; the flight and the lease are given back all the same."""
    for colour in ("threads", "asyncio"):
        one, producer = party(colour), Producer(*WORDS, let=1, close="raises")
        reader = one.read(colour, producer)
        reader.take(1)
        with pytest.raises(RuntimeError, match="closing"):
            reader.leave()

        nothing_left(one)
        until(lambda: not leases(raw, names), 2)
        assert one.read(colour, Producer("next")).take() == ["next"]


@pytest.mark.parametrize("close", ["", "awaits"], ids=["closes at once", "closes in a while"])
@pytest.mark.parametrize("how", ["suspended", "waiting", "closed"])
@pytest.mark.parametrize("drain", [0, 5], ids=["", "drain"])
def test_a_loop_that_shuts_down_gives_its_leases_back(url, raw, names, close, how, drain):
    """asyncio.run ends over unfinished streams: nothing is stored, and who asks next computes at once."""
    cache = Cache(url, namespace="test", deadline=2.0)
    producers = [Producer(*WORDS, let=1, close=close) for _ in range(6)]  # closed by the loop in any order
    kept = []

    async def main():
        for number, producer in enumerate(producers):
            stream = cache.aio.stream({"n": number}, producer.awaited, drain=drain)
            kept.append(stream)
            assert await anext(stream) == "Why"
            if how == "closed":
                await stream.aclose()
            elif how == "waiting":
                kept.append(asyncio.create_task(anext(stream)))
        await asyncio.sleep(0.01)

    start = time.monotonic()
    asyncio.run(main())
    kept.clear()
    gc.collect()

    one = Party("threads", cache)
    nothing_left(one)
    until(lambda: not leases(raw, names), 3)
    assert entries(raw, names) == []
    with Cache(url, namespace="test", deadline=2.0) as other:
        for number in range(len(producers)):
            assert list(other.stream({"n": number}, Producer("next").sync)) == ["next"]
    assert time.monotonic() - start < 5  # a lease is 10 s
    cache.close()


def test_a_loop_that_was_closed_over_a_stream_holds_nobody_up(url, raw, names):
    """Without shutdown_asyncgens its generators are never closed: their leases are given back when they are collected."""
    with Cache(url, namespace="test", deadline=2.0) as cache:
        producer, loop = Producer(*WORDS, let=1), asyncio.new_event_loop()

        async def main():
            stream = cache.aio.stream("q", producer.awaited)
            return await anext(stream), stream

        first, stream = loop.run_until_complete(main())
        assert first == "Why"
        with contextlib.closing(loop):
            loop.run_until_complete(cache._namespace.nodes[0].multiplexers.aclose())
        del stream
        gc.collect()

        nothing_left(Party("threads", cache), within=3)
        until(lambda: not leases(raw, names), 8)  # once a turn of the renewals, a third of a lease
        assert list(cache.stream("q", Producer("next").sync)) == ["next"]


@COLOURS
def test_a_stream_that_is_collected_elsewhere_leaves_nothing(party, raw, names, colour):
    """Part of a cycle of references, found by the collector in another thread, at any time."""
    one, producer = party(colour), Producer(*WORDS, let=1)
    if colour == "threads":

        def begin():
            stream = one.cache.stream("q", producer.sync)
            next(stream)
            cycle = [stream]
            cycle.append(cycle)

        thread = threading.Thread(target=begin)
        thread.start()
        thread.join()
    else:

        async def abegin():
            stream = one.cache.aio.stream("q", producer.awaited)
            await anext(stream)
            cycle = [stream]
            cycle.append(cycle)

        one.run(abegin())
    gc.collect()

    nothing_left(one)
    until(lambda: not leases(raw, names), 3)
    until(lambda: producer.closed == 1, 3)
    assert one.read("q", Producer("next")).take() == ["next"]


@COLOURS
def test_an_error_thrown_into_a_stream_ends_it(party, raw, names, colour):
    """What wraps generators may throw its own error into ours: as if the consumer had gone away."""
    one, producer = party(colour), Producer(*WORDS, let=1)
    if colour == "threads":
        stream = one.cache.stream("q", producer.sync)
        next(stream)
        with pytest.raises(QuotaError):
            stream.throw(QuotaError("the consumer's own"))
    else:

        async def throw():
            stream = one.cache.aio.stream("q", producer.awaited)
            await anext(stream)
            with pytest.raises(QuotaError):
                await stream.athrow(QuotaError("the consumer's own"))

        one.run(throw())

    gc.collect()
    nothing_left(one)
    until(lambda: not leases(raw, names), 2)
    assert entries(raw, names) == []
    assert one.read("q", Producer("next")).take() == ["next"]


class Opened:
    """A stream as a client library gives it: iterated, and closed by its method; not a generator."""

    def __init__(self, *chunks):
        self.chunks, self.closed, self.waits = list(chunks), threading.Event(), threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        return self.chunks.pop(0)

    def close(self):
        self.closed.set()

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.chunks:
            self.waits.set()
            await asyncio.sleep(30)
        return self.chunks.pop(0)

    async def aclose(self):
        self.closed.set()


@GOES
def test_the_connection_of_a_client_library_is_closed(party, colour, how):
    """Its stream is no generator, which would close itself: whoever goes away, it is told."""
    one, opened = party(colour), Opened("a", "b")
    reader = one.read("q", lambda: opened)
    assert reader.take(1) == ["a"]
    reader.leave(how)

    until(opened.closed.is_set, 3)


def test_the_connection_is_closed_when_a_task_is_cancelled_while_the_model_works(party):
    """The library's own wait was interrupted; its connection is still to be given back."""
    one, opened = party("asyncio"), Opened("a")
    reader = one.read("q", lambda: opened)
    reader.take(1)
    waiting = reader.pull(1)
    assert opened.waits.wait(10)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        waiting.result(10)

    until(opened.closed.is_set, 3)


def test_a_stream_may_be_handed_to_another_thread(party):
    """Begun in one, ended in another: neither of them holds anything afterwards."""
    one = party("threads")
    stream = one.cache.stream("q", Producer(*WORDS).sync)
    first = []
    thread = threading.Thread(target=lambda: first.append(next(stream)))
    thread.start()
    thread.join()

    assert first + list(stream) == list(WORDS)
    assert not one.namespace.holds(thread)
    nothing_left(one)


# --- drain ------------------------------------------------------------------------------------------------------


@GOES
def test_a_stream_may_be_drained(party, raw, names, colour, how):
    """With ``drain`` a stream whose consumer has gone is read to its end in the background, and stored."""
    one = party(colour)
    producer = Producer(*WORDS, let=1)
    reader = one.read("q", producer, drain="10s")
    reader.take(1)
    reader.leave(how)
    assert entries(raw, names) == []
    producer.open()

    until(lambda: entries(raw, names), 5)
    assert one.read("q", Producer("never")).take() == list(WORDS)
    assert (producer.calls, producer.closed) == (1, 0)
    nothing_left(one)


@PAIRS
def test_followers_are_served_by_a_stream_that_is_drained(join):
    """The consumer goes away; who follows has the rest from the same call, and who comes later too."""
    leader, follower = join()
    producer, never = Producer(*WORDS, let=1), Producer("never")
    leading, following = leader.read("q", producer, drain="10s"), follower.read("q", never)
    leading.take(1)
    following.take(1)
    leading.leave()
    late = follower.read("q", never)
    assert late.take(1) == ["Why"]
    producer.open()

    assert following.take() == late.take() == list(WORDS)
    assert (producer.calls, never.calls) == (1, 0)
    nothing_left(leader, follower)


@COLOURS
@pytest.mark.parametrize("producing", ["slowly", "never"])
def test_a_drain_is_bounded(party, raw, names, colour, producing):
    """A producer that takes longer than ``drain`` is let go: who asks then computes, and nothing half is stored."""
    one, other = party(colour), party("threads")
    producer = Producer(*(f"{number} " for number in range(10_000)), let=1)
    reader = one.read("q", producer, drain=0.3)
    reader.take(1)
    reader.leave()
    done = threading.Event()

    def trickle():
        while not done.wait(0.02):
            producer.let()

    if producing == "slowly":
        threading.Thread(target=trickle, daemon=True).start()
    try:
        until(lambda: not leases(raw, names), 3)
        assert entries(raw, names) == []
        assert other.read("q", Producer("other's")).take() == ["other's"]
        nothing_left(one, within=3)
    finally:
        done.set()


@COLOURS
def test_drains_that_have_ended_keep_no_thread(party, colour):
    """A server whose consumers go away often: what is done is done, however long it might have taken."""
    one, before = party(colour), threading.active_count()
    for number in range(20):
        reader = one.read({"n": number}, Producer(*WORDS), drain="60s")
        reader.take(1)
        reader.leave()
    nothing_left(one)

    readers = 20 if colour == "threads" else 0
    until(lambda: threading.active_count() - before - readers < 10, 3)


@COLOURS
def test_a_failing_producer_is_nobodys_while_it_is_drained(party, raw, names, colour):
    """Nobody hears of it but those who follow; nothing is stored."""
    one = party(colour)
    follower = party("threads", like=one)
    producer = Producer("Why", error=QuotaError("late"), let=1)
    reader = one.read("q", producer, drain="10s")
    reader.take(1)
    following = follower.read("q", Producer("never"))
    following.take(1)
    reader.leave()
    producer.open()

    with pytest.raises(QuotaError):
        following.take()
    nothing_left(one)
    assert entries(raw, names) == []


@COLOURS
def test_who_has_left_a_stream_to_be_drained_waits_for_others_again(party, colour):
    """The consumer holds nothing any more: asked again, in the same thread or task, it joins the running stream."""
    one = party(colour)
    producer, again = Producer(*WORDS, let=1), Producer("again")

    if colour == "threads":
        answers = []

        def consume():
            stream = one.cache.stream("q", producer.sync, drain="10s")
            next(stream)
            stream.close()
            answers.extend(one.cache.stream("q", again.sync))

        thread = threading.Thread(target=consume)
        thread.start()
        with contextlib.suppress(AssertionError):
            one.follows(3)
        producer.open()
        thread.join(10)
    else:

        async def consume():
            stream = one.cache.aio.stream("q", producer.awaited, drain="10s")
            await anext(stream)
            await stream.aclose()
            return [chunk async for chunk in one.cache.aio.stream("q", again.awaited)]

        future = asyncio.run_coroutine_threadsafe(consume(), one.loop)
        with contextlib.suppress(AssertionError):
            one.follows(3)
        producer.open()
        answers = future.result(10)

    assert (answers, again.calls) == (list(WORDS), 0)


@COLOURS
def test_closing_the_cache_waits_for_a_drain(url, colour):
    """What runs in the background is finished, not cut off."""
    producer = Producer(*WORDS, let=1)
    if colour == "threads":
        with Cache(url, namespace="test", deadline=2.0) as cache:
            stream = cache.stream("q", producer.sync, drain="10s")
            next(stream)
            stream.close()
            threading.Timer(0.1, producer.open).start()
    else:

        async def main():
            async with AsyncCache(url, namespace="test", deadline=2.0) as cache:
                stream = cache.stream("q", producer.awaited, drain="10s")
                await anext(stream)
                await stream.aclose()
                threading.Timer(0.1, producer.open).start()

        asyncio.run(main())
    with Cache(url, namespace="test", deadline=2.0) as cache:
        assert list(cache.stream("q", Producer("never").sync)) == list(WORDS)


# --- patience ---------------------------------------------------------------------------------------------------


@PLACES
def test_nobody_waits_longer_than_the_policy_allows(join):
    """A leader that hangs: who has waited ``max_wait`` for the next chunk calls the model alone."""
    leader, follower = join(policy=Policy(max_wait=0.3))
    producer, own = Producer(*WORDS, let=1), Producer(*WORDS)
    leading, following = leader.read("q", producer), follower.read("q", own)
    leading.take(1)
    assert following.take(1) == ["Why"]

    assert following.take(seconds=5) == list(WORDS)
    assert own.calls == 1
    producer.open()
    assert leading.take() == list(WORDS)


@PLACES
def test_who_waited_too_long_is_counted_with_the_reason(join):
    """As a value that is computed alone."""
    leader, follower = join(policy=Policy(max_wait=0.2))
    producer = Producer(*WORDS, let=1)
    leading = leader.read("q", producer)
    leading.take(1)
    assert follower.read("q", Producer(*WORDS)).take() == list(WORDS)

    assert follower.cache.stats().bypass_reasons == {"max_wait": 1}


def test_a_slow_stream_is_followed_beyond_max_wait(party):
    """Each chunk starts the patience anew: a long stream is no hanging one."""
    one = party("threads", policy=Policy(max_wait=0.5))
    followers = [party("threads", like=one), party("asyncio", policy=Policy(max_wait=0.5))]
    chunks = [f"{number} " for number in range(8)]
    producer, never = Producer(*chunks, let=1), Producer("never")
    leading = one.read("q", producer)
    leading.take(1)
    following = [follower.read("q", never) for follower in followers]
    for reader in following:
        reader.take(1)
    for number in range(1, len(chunks)):
        pulled = [reader.pull(1) for reader in following]
        pause = time.monotonic() + 0.15
        until(lambda pause=pause: time.monotonic() > pause)
        producer.let()
        leading.take(1)
        assert [one.result(10) for one in pulled] == [chunks[: number + 1]] * 2
    producer.open()

    assert [leading.take(), *(reader.take() for reader in following)] == [chunks] * 3
    assert never.calls == 0


async def test_a_sync_stream_on_the_loops_own_thread_does_not_wait_for_the_loop(url, monkeypatch):
    """Its leader needs the very loop that it blocks: it calls the model itself."""
    turns, tune_in = [], programs.tune_in

    def counted(*args):
        turns.append(1)
        assert len(turns) < 50, "it goes round in circles"
        return tune_in(*args)

    monkeypatch.setattr(programs, "tune_in", counted)
    cache = Cache(url, namespace="test", deadline=2.0)
    producer, own = Producer(*WORDS, let=1), Producer("own")
    leading = cache.aio.stream("q", producer.awaited)
    assert await anext(leading) == "Why"

    assert list(cache.stream("q", own.sync)) == ["own"]

    producer.open()
    assert [chunk async for chunk in leading] == [" not", "?"]
    await cache.aio.aclose()


@COLOURS
@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_crossing_streams_do_not_deadlock(party, colour, where):
    """One consumer reads a then b, the other b then a, each in turns: both finish, in every order."""
    one = party(colour)
    other = party(colour, like=one) if where == "here" else party(colour)
    start = time.monotonic()

    def consume(who, first, second, both):
        streams = [who.cache.stream(name, Producer(name, name).sync) for name in (first, second)]
        got = [next(streams[0])]
        both.wait(10)
        got += [next(streams[1])]
        return got + list(streams[1]) + list(streams[0])

    async def aconsume(who, first, second, both):
        streams = [who.cache.aio.stream(name, Producer(name, name).awaited) for name in (first, second)]
        got = [await anext(streams[0])]
        await asyncio.to_thread(both.wait, 10)
        got += [await anext(streams[1])]
        return got + [chunk async for chunk in streams[1]] + [chunk async for chunk in streams[0]]

    both, results = threading.Barrier(2), {}

    def run(who, order):
        if colour == "threads":
            results[order] = consume(who, *order, both)
        else:
            results[order] = who.run(aconsume(who, *order, both))

    threads = [threading.Thread(target=run, args=args, daemon=True) for args in ((one, "ab"), (other, "ba"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert results == {"ab": list("abba"), "ba": list("baab")}
    assert time.monotonic() - start < 8
    nothing_left(one, other)


@COLOURS
def test_a_consumer_that_holds_a_stream_does_not_wait_for_itself(party, colour):
    """The same stream twice in one thread or task, in turns: two calls, two whole answers."""
    one = party(colour)

    def consume():
        streams = [one.cache.stream("q", Producer(*WORDS).sync) for _ in range(2)]
        return list(zip(*streams, strict=True))

    async def aconsume():
        streams = [one.cache.aio.stream("q", Producer(*WORDS).awaited) for _ in range(2)]
        return [(first, await anext(streams[1])) async for first in streams[0]]

    if colour == "threads":
        done = []
        thread = threading.Thread(target=lambda: done.append(consume()), daemon=True)
        thread.start()
        thread.join(10)
        assert done, "it waits for itself"
        (pairs,) = done
    else:
        pairs = one.run(aconsume())
    assert pairs == [(word, word) for word in WORDS]
    assert stored(party("threads")) == list(WORDS)


@PLACES
def test_a_consumer_that_holds_a_stream_waits_for_no_value_of_others(join):
    """A holds a stream and asks for a value that B computes, for which B reads A's stream: neither waits for ever."""
    leader, follower = join(policy=Policy(max_wait=30))
    held, entered = threading.Event(), threading.Event()
    answers = {}

    def holds():
        stream = leader.cache.stream("s", Producer(*WORDS).sync)
        next(stream)
        held.set()
        assert entered.wait(10)
        follower.follows()
        answers["value"] = leader.cache.get_or_compute("v", lambda: "own value")
        answers["stream"] = list(stream)

    def computes():
        assert held.wait(10)

        def fn():
            entered.set()
            return "".join(follower.cache.stream("s", Producer(*WORDS).sync))

        answers["computed"] = follower.cache.get_or_compute("v", fn)

    threads = [threading.Thread(target=target, daemon=True) for target in (holds, computes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert answers == {"value": "own value", "stream": [" not", "?"], "computed": "Why not?"}


async def test_a_consumer_with_a_time_limit_on_each_chunk_is_served(url):
    """wait_for around each step, as frameworks do: in Python 3.11 each step is then a task of its own."""
    async with AsyncCache(url, namespace="test", deadline=2.0) as cache:
        for _ in range(2):
            stream, got = cache.stream("q", Producer(*WORDS).awaited), []
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    got.append(await asyncio.wait_for(anext(stream), 5))
            assert got == list(WORDS)
        assert (await cache.stats()).computed == 1


# --- what is not stored -----------------------------------------------------------------------------------------


def refuse(value):
    """Refuse what is cut short."""
    if not value.endswith("the end"):
        raise Refused("cut short")


UNSTORED = {
    "too large": ({"max_bytes": "8kb"}, {}, (*WORDS, os.urandom(10_000), "tail")),
    "not cacheable": ({}, {}, (*WORDS, {1, 2, 3}, "tail")),
    "refused by admission": ({}, {"admit": refuse}, (*WORDS, "tail")),
    "admission fails": ({}, {"admit": lambda value: value["no"]}, (*WORDS, "tail")),
}


@COLOURS
@pytest.mark.parametrize("why", UNSTORED)
def test_a_stream_that_cannot_be_stored_is_passed_on(party, raw, names, colour, why):
    """Its consumer has all of it, nothing is stored, and it is counted; the next caller asks the model."""
    settings, words, chunks = UNSTORED[why]
    one = party(colour, **settings)
    producer = Producer(*chunks)
    for calls in (1, 2):
        assert one.read("q", producer, **words).take() == list(chunks)
        assert producer.calls == calls
    assert entries(raw, names) == []
    nothing_left(one)
    stats = one.cache.stats()
    assert stats.too_large + stats.uncacheable + stats.rejected == 2
    assert stats.stored == 0


@PAIRS
@pytest.mark.parametrize("why", UNSTORED)
def test_who_follows_a_stream_that_cannot_be_stored_has_all_of_it(join, raw, names, why):
    """From the leader as far as that goes, and else by a call of its own; at once, not when the lease is over."""
    settings, words, chunks = UNSTORED[why]
    leader, follower = join(**settings)
    producer, own = Producer(*chunks, let=2), Producer(*chunks)
    leading, following = leader.read("q", producer, **words), follower.read("q", own, **words)
    leading.take(2)
    assert following.take(2) == ["Why", " not"]
    rest = following.pull()
    follower.follows()
    start = time.monotonic()
    producer.open()

    assert leading.take() == rest.result(15) == list(chunks)
    assert time.monotonic() - start < 3  # a lease is 10 s
    assert own.calls <= 1
    assert entries(raw, names) == []
    nothing_left(leader, follower)


@PAIRS
@pytest.mark.parametrize("why", ["too large", "not cacheable"])
def test_who_follows_does_not_wait_for_the_end_of_a_stream_that_is_no_longer_recorded(join, monkeypatch, why):
    """The leader may go on for minutes: its followers, and who comes now, call the model, and nobody goes in circles."""
    turns, tune_in = [], programs.tune_in
    monkeypatch.setattr(programs, "tune_in", lambda *args: turns.append(1) or tune_in(*args))
    settings, words, chunks = UNSTORED[why]
    leader, follower = join(**settings)
    producer, own = Producer(*chunks, let=2), Producer(*chunks)
    leading, following = leader.read("q", producer, **words), follower.read("q", own, **words)
    leading.take(2)
    following.take(2)
    rest = following.pull()
    follower.follows()
    producer.let(2)
    leading.take(2)
    with contextlib.suppress(AssertionError):
        until(rest.done, 1.5)
    waited, spins = not rest.done(), len(turns)
    producer.open()

    assert leading.take() == rest.result(15) == list(chunks)
    assert (waited, spins < 20) == (False, True), f"waited: {waited}, turns: {spins}"


def test_admission_sees_the_value_of_a_stream(party):
    """Text in one piece, or the list of its chunks, decoded; and it may decide the lifetime."""
    one, seen = party("threads"), []

    def admit(value):
        seen.append(value)
        return "1m"

    assert one.read("text", Producer("ab", "cd"), codec=Reversed(), admit=admit).take() == ["ab", "cd"]
    assert one.read("json", Producer({"n": 1}, "x"), admit=admit).take() == [{"n": 1}, "x"]
    assert seen == ["abcd", [{"n": 1}, "x"]]
    assert 0 < ttl_of(one, "text") <= 60


def ttl_of(party, request="q"):
    """Return for how many seconds Redis keeps the stream of *request*."""
    raw = redis.Redis(connection_pool=party.namespace.place.sync_pool(1, 1))
    return raw.pttl(party.cache.explain(request).key) / 1000


# --- invalidated while it runs ----------------------------------------------------------------------------------

INVALIDATIONS = {
    "invalidate": lambda cache: cache.invalidate("q"),
    "invalidate_tag": lambda cache: cache.invalidate_tag("t"),
    "bump": lambda cache: cache.bump(),
    "clear": lambda cache: cache.clear(),
}


@PLACES
@pytest.mark.parametrize("how", INVALIDATIONS)
@pytest.mark.parametrize("by", ["leader", "follower"])
def test_what_was_begun_before_an_invalidation_is_not_served_after_it(join, how, by):
    """Who asks after it returned is given an answer of its own, whoever invalidated, while the old one still runs."""
    leader, asker = join()
    producer, own = Producer("old", " answer", let=1), Producer("new", " answer")
    leading = leader.read("q", producer, tags=["t"])
    leading.take(1)
    if not join.here:
        asker.cache.lookup("connect")
    INVALIDATIONS[how]((leader if by == "leader" else asker).cache)

    asked = asker.read("q", own, tags=["t"]).pull()
    with contextlib.suppress(AssertionError):
        until(lambda: asked.done() or own.calls, 2)
    producer.open()
    assert leading.take() == ["old", " answer"]
    assert asked.result(15) == ["new", " answer"]
    for one in (leader, asker):
        assert one.read("q", Producer("third"), tags=["t"]).take()[0] != "old"
    nothing_left(leader, asker)


@PLACES
def test_a_tag_that_only_the_leader_named_is_invalidated_too(join):
    """Who asks afterwards without naming the tag is not given what was begun before."""
    leader, asker = join()
    producer, own = Producer("old", " answer", let=1), Producer("new", " answer")
    leading = leader.read("q", producer, tags=["t"])
    leading.take(1)
    leader.cache.invalidate_tag("t")

    asked = asker.read("q", own).pull()
    with contextlib.suppress(AssertionError):
        until(lambda: asked.done() or own.calls, 2)
    producer.open()
    leading.take()
    assert asked.result(15) == ["new", " answer"]


@PAIRS
@pytest.mark.parametrize("how", INVALIDATIONS)
def test_who_followed_before_an_invalidation_has_a_whole_answer(join, how):
    """Leader and followers that asked before it end as if nothing had happened; the model repeats itself."""
    leader, follower = join()
    producer, own = Producer(*WORDS, let=1), Producer(*WORDS)
    leading, following = leader.read("q", producer, tags=["t"]), follower.read("q", own, tags=["t"])
    leading.take(1)
    following.take(1)
    INVALIDATIONS[how](leader.cache)
    rest = following.pull()
    producer.open()

    assert leading.take() == rest.result(15) == list(WORDS)
    nothing_left(leader, follower)


@PLACES
@pytest.mark.parametrize("why", ["refused by admission", "write=False", "read=False"])
def test_an_answer_that_is_not_stored_breaks_no_stream_that_is_followed(join, why):
    """Its leader came to the end: who follows it has the same whole answer, whatever the model would say to another."""
    leader, follower = join()
    producer, own = Producer(*WORDS, let=1), Producer("something", " else")
    words = {"admit": refuse} if why == "refused by admission" else {}
    with control(write=why != "write=False", read=why != "read=False"):
        leading, following = leader.read("q", producer, **words), follower.read("q", own, **words)
    leading.take(1)
    following.take(1)
    producer.open()
    leading.take()

    assert following.take() == list(WORDS)  # a consumer that takes its time


@PLACES
@pytest.mark.parametrize("how", INVALIDATIONS)
def test_an_invalidation_breaks_no_stream_that_is_followed(join, how):
    """The leader is alive and has the whole answer: who follows it is given that one, though it is not stored."""
    leader, follower = join()
    producer, own = Producer(*WORDS, let=1), Producer("something", " else")
    leading, following = leader.read("q", producer, tags=["t"]), follower.read("q", own, tags=["t"])
    leading.take(1)
    following.take(1)
    INVALIDATIONS[how](leader.cache)
    producer.open()
    leading.take()

    assert following.take() == list(WORDS)  # a consumer that takes its time


# --- words ------------------------------------------------------------------------------------------------------


@COLOURS
def test_only_if_cached_never_calls_the_model(party, colour):
    """NotCached for what is not stored, a replay for what is; a stream that runs is not waited for."""
    one = party(colour)
    producer = Producer(*WORDS, let=1)
    with control(only_if_cached=True):
        reader = one.read("q", producer)
    with pytest.raises(NotCached):
        reader.take()
    assert producer.calls == 0
    nothing_left(one)

    producer.open()
    one.read("q", producer).take()
    with control(only_if_cached=True):
        reader = one.read("q", Producer("never"))
    assert reader.take() == list(WORDS)


@COLOURS
def test_read_false_serves_nothing_stored_and_stores_anew(party, colour):
    """The model is called, and its answer takes the place of the old one."""
    one = party(colour)
    one.read("q", Producer("old")).take()
    with control(read=False):
        reader = one.read("q", Producer("new"))
    assert reader.take() == ["new"]

    assert one.read("q", Producer("never")).take() == ["new"]


@PAIRS
def test_read_false_serves_nothing_stored_while_somebody_else_renews_it(join):
    """Two who want a new answer at the same time may share it, and are not given the old one."""
    leader, follower = join()
    leader.read("q", Producer("old", " answer")).take()
    producer, own = Producer("new", " answer", let=0), Producer("own", " answer")
    with control(read=False):
        leading, following = leader.read("q", producer), follower.read("q", own)
    pulled = leading.pull()
    producer.called()
    followed = following.pull()
    until(lambda: own.calls or followed.done() or follower.following)
    producer.open()

    assert pulled.result(10) == ["new", " answer"]
    assert followed.result(15) in (["new", " answer"], ["own", " answer"])


@COLOURS
def test_write_false_stores_nothing(party, raw, names, colour):
    """What is stored may be served; what the model says is passed on only."""
    one = party(colour)
    with control(write=False):
        reader = one.read("q", Producer(*WORDS))
        assert reader.take() == list(WORDS)
        assert entries(raw, names) == []
    one.read("q", Producer("stored")).take()
    with control(write=False):
        assert one.read("q", Producer("never")).take() == ["stored"]


@PAIRS
def test_a_stream_that_may_not_be_written_may_be_followed(join, raw, names):
    """Who follows it has the whole answer, from the leader or by a call of its own."""
    leader, follower = join()
    producer, own = Producer(*WORDS, let=1), Producer(*WORDS)
    with control(write=False):
        leading = leader.read("q", producer)
    leading.take(1)
    following = follower.read("q", own)
    following.take(1)
    rest = following.pull()
    follower.follows()
    producer.open()

    assert leading.take() == rest.result(10) == list(WORDS)


@COLOURS
def test_ttl_and_tags_hold_for_streams(party, colour):
    """By the call, by the block, by the policy; and a tag invalidates a stored stream."""
    one = party(colour, policy=Policy(ttl="1h"))
    one.read("policy", Producer("x")).take()
    one.read("call", Producer("x"), ttl="5m", tags=["t"]).take()
    with control(ttl="10m", tags=["t"]):
        reader = one.read("block", Producer("x"))
    reader.take()
    assert [round(ttl_of(one, name) / 60) for name in ("policy", "call", "block")] == [60, 5, 10]

    one.cache.invalidate_tag("t")

    for name, expected in (("policy", ["x"]), ("call", ["new"]), ("block", ["new"])):
        assert one.read(name, Producer("new")).take() == expected


@COLOURS
def test_max_age_and_scope_hold_for_streams(party, raw, colour):
    """Nothing older than the block allows; and a scope is another key."""
    one = party(colour)
    one.read("q", Producer("old")).take()
    age(raw, one.cache.explain("q").key, 100)
    with control(max_age=200):
        assert one.read("q", Producer("never")).take() == ["old"]
    with control(scope={"tenant": "a"}):
        reader = one.read("q", Producer("a's"))
    assert reader.take() == ["a's"]
    with control(max_age=50):
        reader = one.read("q", Producer("new"))
    assert reader.take() == ["new"]


WINDOWS = Policy(ttl="1h", stale_while_revalidate="1h", stale_if_error="3h")


@PAIRS
def test_a_stale_stream_is_refreshed_behind_its_callers(join, raw):
    """All are served the stale chunks at once, here and elsewhere, and the new ones once they are there."""
    one, other = join(policy=WINDOWS)
    one.read("q", Producer("old")).take()
    age(raw, one.cache.explain("q").key, 3700)
    producer, never = Producer("new", "er", let=0), Producer("never")

    assert one.read("q", producer).take() == ["old"]
    producer.called()
    assert one.read("q", never).take() == other.read("q", never).take() == ["old"]
    producer.open()
    until(lambda: stored(other) == ["new", "er"])
    assert one.read("q", never).take() == other.read("q", never).take() == ["new", "er"]
    assert never.calls == 0
    assert producer.calls == 1
    assert not leases(raw, one.cache._namespace.state.partitions[0].names)


@COLOURS
@pytest.mark.parametrize("share_errors", [True, False])
def test_a_stale_stream_whose_refresh_fails_stays(party, raw, colour, share_errors):
    """Its callers hear nothing of it, and the model is left alone for a moment."""
    one = party(colour, policy=WINDOWS)
    one.read("q", Producer("old")).take()
    age(raw, one.cache.explain("q").key, 3700)
    failing = Producer("half", error=QuotaError("down"))

    for _ in range(3):
        assert one.read("q", failing, share_errors=share_errors).take() == ["old"]
        until(lambda: one.cache.stats().refresh_errors == 1)
        until(lambda: not len(one.cache._namespace.state.flights))
    assert failing.calls == 1


@COLOURS
def test_who_left_a_stale_stream_leaves_its_refresh_alone(party, raw, colour):
    """It goes on behind him."""
    one = party(colour, policy=WINDOWS)
    one.read("q", Producer("old", "er")).take()
    age(raw, one.cache.explain("q").key, 3700)
    producer = Producer("new", let=0)
    reader = one.read("q", producer)
    reader.take(1)
    producer.called()
    reader.leave()
    producer.open()

    until(lambda: stored(one) == ["new"])


@COLOURS
def test_a_consumer_is_told_that_a_stale_stream_stands_in(party, raw, colour):
    """``on_served`` hears where the chunks come from, and how old they are."""
    one, told = party(colour, policy=WINDOWS), []
    one.read("q", Producer(*WORDS)).take()
    age(raw, one.cache.explain("q").key, 3600 + 5000)

    failing = one.read("q", Producer(error=QuotaError("down")), on_served=told.append)

    assert failing.take() == list(WORDS)
    assert [served.source for served in told] == [Source.STALE_IF_ERROR]
    assert 8600 <= told[0].age < 8660


@COLOURS
def test_a_stale_stream_is_served_if_the_model_fails(party, raw, colour):
    """Before its first chunk: then there is still a whole answer to give."""
    one = party(colour, policy=WINDOWS)
    one.read("q", Producer(*WORDS)).take()
    age(raw, one.cache.explain("q").key, 3600 + 5000)

    assert one.read("q", Producer(error=QuotaError("down"))).take() == list(WORDS)


@PLACES
def test_a_stale_stream_is_served_to_all_who_follow_a_model_that_fails(join, raw):
    """Who waited for the first chunk is given the old answer too, not the error."""
    leader, follower = join(policy=WINDOWS)
    leader.read("q", Producer(*WORDS)).take()
    age(raw, leader.cache.explain("q").key, 3600 + 5000)
    producer = Producer(error=QuotaError("down"), let=0)
    pulled = leader.read("q", producer).pull()
    producer.called()
    followed = follower.read("q", Producer("never")).pull()
    follower.follows()
    producer.open()

    assert pulled.result(10) == followed.result(10) == list(WORDS)


@COLOURS
def test_an_expired_stream_is_replaced(party, raw, colour):
    """Past its window: the model is called, and its answer takes the place."""
    one = party(colour, policy=WINDOWS)
    one.read("q", Producer("old")).take()
    age(raw, one.cache.explain("q").key, 3600 + 5000)

    assert one.read("q", Producer("new")).take() == ["new"]
    assert one.read("q", Producer("never")).take() == ["new"]


# --- Redis goes away --------------------------------------------------------------------------------------------


@COLOURS
def test_without_redis_streams_are_passed_on(party, colour):
    """Nothing is raised; callers of the process still share a running stream."""
    one = party(colour, at=NOWHERE)
    other = party("threads", like=one)
    producer = Producer(*WORDS, let=1)
    leading, following = one.read("q", producer), other.read("q", Producer("never"))
    leading.take(1)
    following.take(1)
    producer.open()
    assert leading.take() == following.take() == list(WORDS)
    assert one.read("q", Producer("again")).take() == ["again"]
    nothing_left(one)


@COLOURS
def test_a_stream_without_the_cache_is_counted_with_its_reason(party, colour):
    """As any other call that is made without the cache: Redis is away, or the consumer holds another stream."""
    one = party(colour, at=NOWHERE)
    one.read("q", Producer(*WORDS)).take()
    stats = one.cache.stats()
    assert (stats.computed, stats.bypassed, stats.bypass_reasons) == (1, 1, {"backend": 1})


@COLOURS
def test_a_strict_cache_raises_instead(party, colour):
    """BackendUnavailable, before the model is called."""
    one, producer = party(colour, at=NOWHERE, strict=True), Producer(*WORDS)
    with pytest.raises(BackendUnavailable):
        one.read("q", producer).take()
    assert producer.calls == 0
    nothing_left(one)


TROUBLES = {
    "killed": lambda server: server.kill(),
    "frozen": lambda server: server.freeze(),
}


@PLACES
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_stream_goes_on_when_redis_does_not(own_server, join, trouble):
    """Killed or frozen in the middle: leader and follower have the whole answer, and meet no exception."""
    server = own_server()
    leader, follower = join(at=server.url, deadline=0.15)
    producer, own = Producer(*WORDS, let=1), Producer(*WORDS)
    leading, following = leader.read("q", producer), follower.read("q", own)
    leading.take(1)
    assert following.take(1) == ["Why"]
    rest = following.pull()
    follower.follows()
    start = time.monotonic()
    TROUBLES[trouble](server)
    producer.open()

    assert leading.take() == list(WORDS)
    assert time.monotonic() - start < 2
    assert rest.result(15) == list(WORDS)
    nothing_left(leader, follower)


@PLACES
def test_a_follower_of_a_frozen_redis_that_had_nothing_yet_calls_the_model(own_server, join):
    """Asleep for chunks that cannot come: it notices, and calls."""
    server = own_server()
    leader, follower = join(at=server.url, deadline=0.15)
    producer, own = Producer(*WORDS, let=0), Producer("own")
    pulled = leader.read("q", producer).pull()
    producer.called()
    rest = follower.read("q", own).pull()
    follower.follows()
    server.freeze()
    if join.here:
        producer.open()
        assert rest.result(15) == list(WORDS)
    else:
        assert rest.result(15) == ["own"]
        producer.open()
    assert pulled.result(10) == list(WORDS)


@COLOURS
def test_a_stream_that_began_without_redis_is_not_stored_when_redis_is_back(own_server, party, colour):
    """It had no lease, so nobody knows what was invalidated meanwhile."""
    server = own_server()
    server.kill()
    one = party(colour, at=server.url, deadline=0.15)
    producer = Producer(*WORDS, let=1)
    reader = one.read("q", producer)
    reader.take(1)
    server.start()
    producer.open()
    assert reader.take() == list(WORDS)

    def works():
        one.read("works", Producer("yes")).take()
        return stored(one, "works")

    until(works, 10, pause=0.05)
    assert stored(one) is None


@COLOURS
@pytest.mark.parametrize("follows", ["before", "after"])
def test_chunks_that_redis_lost_do_not_cut_an_answer_short(party, raw, names, colour, follows):
    """The list of published chunks is evicted in the middle: who follows has the whole answer, from its beginning."""
    leader, follower = party("threads"), party(colour)
    producer, own = Producer(*WORDS, let=1), Producer(*WORDS)
    leading, following = leader.read("q", producer), follower.read("q", own)
    leading.take(1)
    (running,) = until(lambda: raw.keys(names.r + b"*"))
    if follows == "before":
        following.take(1)
    raw.delete(running)
    for published in (1, 2):
        producer.let()
        leading.take(1)
        publishing = leader.namespace.publisher._running
        until(
            lambda count=published: raw.llen(running) >= count or not publishing
        )  # published again, or given up
    rest = following.pull()
    until(lambda: len(following.chunks) >= 2 or not raw.exists(running))
    producer.open()
    leading.take()

    assert rest.result(15) == list(WORDS)


def test_chunks_that_a_stranger_wrote_do_no_harm(party, raw, names):
    """A list of running chunks that holds something else, or is no list: the follower calls the model."""
    for number, spoil in enumerate(
        (lambda key: raw.rpush(key, b"?what"), lambda key: raw.set(key, b"no list"))
    ):
        leader, follower = party("threads"), party("asyncio")
        request, producer, own = {"n": number}, Producer(*WORDS, let=0), Producer(*WORDS)
        pulled = leader.read(request, producer).pull()
        producer.called()
        digest = digest_of(leader, request)
        fence = raw.get(names.k + digest).split(b":")[1]
        spoil(names.r + digest + b":" + fence)

        assert follower.read(request, own).take() == list(WORDS)
        producer.open()
        assert pulled.result(10) == list(WORDS)


# --- nothing is left --------------------------------------------------------------------------------------------


def test_many_streams_leave_nothing_behind(party, raw, names):
    """Of every kind of end, in both colours: the dicts of the process are empty, the books are right, no key lingers."""
    brief = Policy(lease=0.4, ttl="1h")
    threads = party("threads", policy=brief)
    tasks = party("asyncio", like=threads)
    other = party("threads", policy=brief)
    rng = random.Random(3)
    for turn in range(120):
        one = rng.choice((threads, tasks))
        producer = Producer(*WORDS, let=1, error=QuotaError("down") if turn % 5 == 0 else None)
        leading = one.read({"n": turn % 40}, producer)
        following = [who.read({"n": turn % 40}, Producer(*WORDS)) for who in (threads, tasks, other)]
        leading.take(1)
        rests = [reader.pull() for reader in following]
        if turn % 3 == 0:
            leading.leave(rng.choice(("close", "drop")))
        producer.open()
        if turn % 3:
            with contextlib.suppress(QuotaError):
                leading.take()
        for rest in rests:
            with contextlib.suppress(QuotaError, LeaderFailed):
                assert rest.result(15) == list(WORDS)

    nothing_left(threads, tasks, other)
    for one in (threads, other):
        assert one.namespace._orphans.empty()
        assert one.namespace.state.refresh_failures == {}
    until(lambda: not raw.keys(names.k + b"*"), 10)
    left = [
        raw.pttl(key) for key in raw.keys(names.r + b"*")
    ]  # for those who take their time; -2 has just gone
    assert all(ms <= 60_000 and ms != -1 for ms in left)
    assert set(raw.scan_iter(names.prefix + b"*")) <= {
        names.l, names.x, names.c, names.f, names.s, *entries(raw, names), *raw.keys(names.r + b"*"),
    }  # fmt: skip
    books = Auditor(raw, "test").books()
    assert (books.counted, books.only_x, books.only_l, books.in_x) == (
        books.summed,
        0,
        0,
        len(entries(raw, names)),
    )


@COLOURS
def test_published_chunks_do_not_outlive_their_time(party, raw, names, colour):
    """Of a stream that was left, what was published is gone with the lease; of one that ended, at once."""
    one = party(colour, policy=Policy(lease=0.5))
    producer = Producer(*WORDS, let=1)
    reader = one.read("q", producer)
    reader.take(1)
    (running,) = until(lambda: raw.keys(names.r + b"*"))
    assert 0 < raw.pttl(running) <= 500
    reader.leave()
    until(lambda: not raw.exists(running), 2)


@COLOURS
def test_a_lease_is_kept_as_long_as_the_stream_takes(party, colour):
    """A stream of several lease times, or a consumer that takes its time, is renewed: who follows goes on following."""
    one, other = party(colour, policy=Policy(lease=0.3)), party("threads", policy=Policy(lease=0.3))
    producer, never = Producer(*WORDS, let=1), Producer("never")
    leading, following = one.read("q", producer), other.read("q", never)
    leading.take(1)
    following.take(1)
    rest = following.pull()
    end = time.monotonic() + 4 * 0.3
    until(lambda: rest.done() or time.monotonic() > end)
    assert not rest.done()
    producer.open()

    assert leading.take() == rest.result(10) == list(WORDS)
    assert never.calls == 0


# --- processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def desk(url):
    """Where the models of the processes are paced and counted."""
    with redis.Redis.from_url(url[:-1] + "9") as client:
        yield client


@pytest.fixture
def play(crew, url):
    """Let processes read one stream; returns them while they do."""

    def play(count, chunks=6, **words):
        model = {"chunks": chunks, "samples": words.pop("samples", False), "error": words.pop("error", "")}
        members = crew.hire(count)
        for member in members:
            member.start(streaming.read, url=url, model=model, processes=count, **words)
        return members

    return play


def heard_by(crew, process):
    """Return the chunks that the callers of one process were given, in order."""
    return [chunk for _, said_by, (_, chunk) in crew.heard("chunk") if said_by == process]


def whole(count):
    """Return the stream of a model that repeats itself."""
    return [f"chunk {place}" for place in range(count)]


@pytest.mark.slow
@COLOURS
def test_forty_callers_in_eight_processes_make_one_call(crew, play, desk, colour):
    """8 x 5 consumers of a cold stream: the model is called once, and all are given all chunks in order."""
    members = play(8, colour=colour, callers=5)
    crew.wait_for("called")
    for _ in range(6):
        desk.incr("let")
        time.sleep(0.1)
    desk.incr("let")
    ended = crew.wait_for("whole", 40, 30)
    for member in members:
        member.result()

    assert int(desk.get("calls")) == 1
    assert [got for _, _, (_, got) in ended] == [whole(6)] * 40


@pytest.mark.slow
@COLOURS
def test_chunks_reach_other_processes_while_the_leader_runs(crew, play, desk, colour):
    """Each chunk is everywhere within moments, before the next one is produced."""
    members = play(3, colour=colour)
    crew.wait_for("called")
    delays = []
    for number in range(1, 7):
        desk.set("let", number)
        heard = crew.wait_for("chunk", 3 * number)
        assert [chunk for _, _, (_, chunk) in heard[-3:]] == [f"chunk {number - 1}"] * 3
        delays.append(heard[-1][0] - heard[-3][0])
    desk.set("let", 7)
    crew.wait_for("whole", 3)
    for member in members:
        member.result()

    print(f"\n{colour}: a chunk reached the other processes after {sorted(delays)[3] * 1000:.0f} ms (median)")
    assert int(desk.get("calls")) == 1
    assert sorted(delays)[3] < 0.5


def kill_the_leader_after(crew, members, desk, chunks):
    """Let the leader produce some chunks, wait until all have them, kill it; return the others."""
    ((_, leader, _),) = crew.wait_for("called")
    desk.set("let:1", chunks)
    crew.wait_for("chunk", chunks * len(members))
    os.kill(leader, signal.SIGKILL)
    desk.set("let", 100)
    return [member for member in members if member.pid != leader]


@pytest.mark.slow
@COLOURS
def test_a_killed_leader_is_continued_by_one_that_follows(crew, play, desk, url, colour):
    """SIGKILL after three chunks: within lease + 0.5 s a follower goes on behind them; none twice, two calls in all."""
    lease = 1.0
    members = play(4, colour=colour, policy={"lease": lease})
    survivors = kill_the_leader_after(crew, members, desk, 3)
    death = time.monotonic()
    crew.wait_for("called", 2)
    (again, _, _) = crew.heard("called")[1]
    crew.wait_for("whole", 3)
    for member in survivors:
        member.result()

    print(f"\n{colour}: next leader {again - death:.2f} s after the death (lease {lease} s)")
    assert again - death <= lease + 0.5
    assert [heard_by(crew, member.pid) for member in survivors] == [whole(6)] * 3
    assert int(desk.get("calls")) == 2
    with Cache(url, namespace="test", deadline=2.0) as cache:
        assert list(cache.stream(QUESTION, Producer("never").sync)) == whole(6)
        assert (cache.stats().stored, cache.stats().fenced_off) == (1, 0)


@pytest.mark.slow
@COLOURS
def test_a_killed_leader_whose_model_samples_breaks_the_streams_it_had_begun(crew, play, desk, colour):
    """Whoever was given chunks of the first answer meets StreamBroken, and no chunk of another answer."""
    members = play(3, colour=colour, policy={"lease": 0.6}, samples=True)
    survivors = kill_the_leader_after(crew, members, desk, 2)
    broken = crew.wait_for("error", 2)
    for member in survivors:
        member.result()

    begun = [f"call 1 chunk {place}" for place in range(2)]
    assert [detail for _, _, detail in broken] == [("StreamBroken", begun)] * 2
    assert [heard_by(crew, member.pid) for member in survivors] == [begun] * 2


@pytest.mark.slow
@COLOURS
def test_a_leader_killed_before_its_first_chunk_breaks_nothing(crew, play, desk, colour):
    """Who has nothing yet is given whatever the model says next, whole; and again only one calls."""
    members = play(3, colour=colour, policy={"lease": 0.6}, samples=True)
    survivors = kill_the_leader_after(crew, members, desk, 0)
    crew.wait_for("whole", 2)
    for member in survivors:
        member.result()

    second = [f"call 2 chunk {place}" for place in range(6)]
    assert [heard_by(crew, member.pid) for member in survivors] == [second] * 2
    assert int(desk.get("calls")) == 2


@pytest.mark.slow
@COLOURS
def test_a_leader_that_slept_beyond_its_lease_stores_nothing(crew, play, desk, url, raw, colour):
    """SIGSTOP, a follower takes over, SIGCONT: its consumer has the whole answer, its late store is refused."""
    members = play(3, colour=colour, policy={"lease": 0.5})
    ((_, leader, _),) = crew.wait_for("called")
    desk.set("let:1", 2)
    crew.wait_for("chunk", 6)
    os.kill(leader, signal.SIGSTOP)
    try:
        desk.set("let", 100)
        crew.wait_for("whole", 2)
        with Cache(url, namespace="test", deadline=2.0) as cache:
            key = cache.explain(QUESTION).key
            fence = raw.getrange(key, 8, 15)
    finally:
        os.kill(leader, signal.SIGCONT)
    crew.wait_for("whole", 3)
    for member in members:
        member.result()

    assert [heard_by(crew, member.pid) for member in members] == [whole(6)] * 3
    assert int(desk.get("calls")) == 2
    assert raw.getrange(key, 8, 15) == fence
    with Cache(url, namespace="test", deadline=2.0) as cache:
        stats = cache.stats()
        assert (stats.fenced_off, stats.stored) == (1, 1)


@pytest.mark.slow
@COLOURS
def test_a_failing_stream_fails_in_all_processes(crew, play, desk, url, colour):
    """One call; each consumer has the chunks that came and then the error, and the next caller asks anew."""
    members = play(4, colour=colour, callers=3, chunks=2, error="sk-12345 is over its quota")
    crew.wait_for("called")
    desk.set("let", 2)
    crew.wait_for("chunk", 24)
    desk.set("let", 3)
    errors = crew.wait_for("error", 12)
    for member in members:
        member.result()

    assert int(desk.get("calls")) == 1
    assert {kind for _, _, (kind, _) in errors} == {"RuntimeError", "LeaderFailed"}
    assert [got for _, _, (_, got) in errors] == [whole(2)] * 12
    with Cache(url, namespace="test", deadline=2.0) as cache:
        assert list(cache.stream(QUESTION, Producer("next").sync)) == ["next"]


# --- what a stream leaves for those who want a value ---------------------------------------------------------------


def test_a_stream_that_is_refused_is_no_value_for_who_waits_for_one(url):
    """Who joined the flight of a stream that may not be stored computes a value of their own."""
    cache = Cache(url, namespace="test")
    entered, go_on = threading.Event(), threading.Event()

    def chunks():
        yield "a"
        entered.set()
        go_on.wait(10)
        yield "b"

    def refuse(value):
        raise Refused("never")

    with ThreadPoolExecutor(2) as pool:
        streaming = pool.submit(lambda: list(cache.stream("q", chunks, admit=refuse)))
        entered.wait(10)
        following = pool.submit(cache.get_or_compute, "q", lambda: "mine")
        until(lambda: cache._namespace.state.counters.peek().get("misses", 0) >= 2)
        go_on.set()
        assert streaming.result(10) == ["a", "b"]
        assert following.result(10) == "mine"


@COLOURS
def test_what_is_stored_of_a_stream_can_be_folded(url, colour):
    """``fold`` makes one value of the chunks; replayed, it is one chunk; followers are given the chunks."""
    with Cache(url, namespace="test") as cache:
        served = []

        def words():
            yield {"text": "a"}
            yield {"text": "b"}

        def fold(chunks):
            return {"text": "".join(chunk["text"] for chunk in chunks)}

        def read(fn):
            if colour == "threads":
                return list(cache.stream("q", fn, fold=fold, on_served=served.append))

            async def gather():
                stream = cache.aio.stream("q", fn, fold=fold, on_served=served.append)
                return [chunk async for chunk in stream]

            return asyncio.run(gather())

        assert read(words) == [{"text": "a"}, {"text": "b"}]
        assert served == []
        assert read(lambda: pytest.fail("asked again")) == [{"text": "ab"}]
        assert served[0].source is Source.HIT
        assert cache.lookup("q").value == {"text": "ab"}


@COLOURS
@pytest.mark.parametrize("error", [Refused("half an answer"), KeyError("text")])
def test_a_fold_that_refuses_or_fails_stores_nothing(url, colour, error):
    """The consumer has every chunk all the same."""

    def fold(chunks):
        raise error

    with Cache(url, namespace="test") as cache:
        if colour == "threads":
            assert list(cache.stream("q", lambda: iter(["a"]), fold=fold)) == ["a"]
        else:

            async def gather():
                return [chunk async for chunk in cache.aio.stream("q", lambda: iter(["a"]), fold=fold)]

            assert asyncio.run(gather()) == ["a"]
        assert cache.lookup("q") is None
        assert cache.stats().rejected == 1


@PAIRS
def test_errors_that_are_not_shared_hand_over(join):
    """With ``share_errors=False`` a follower of a stream that fails makes a call of its own."""
    leader, follower = join()
    producer, mine = Producer(error=QuotaError("of the leader alone"), let=0), Producer("mine")
    leading = leader.read("q", producer, share_errors=False)
    pulled = leading.pull()
    producer.called()
    followed = follower.read("q", mine, share_errors=False).pull()
    follower.follows()
    producer.open()
    with pytest.raises(QuotaError):
        pulled.result(10)
    assert followed.result(10) == ["mine"]
    nothing_left(leader, follower)
