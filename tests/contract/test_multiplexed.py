"""
The asyncio wire, with a real server behind a proxy that may hold, split or change what it answers.

Every test runs on both lines: the one that takes the transport over, and the one that has redis-py read.
"""

import asyncio
import math
import random
import time

import pytest
import redis
import redis.exceptions

from askonce import AsyncCache, BackendUnavailable
from askonce._wire import endpoint, multiplexed
from askonce._wire.breaker import Breaker
from askonce._wire.commands import pack
from askonce._wire.line import Direct, Slow
from askonce._wire.multiplexed import Multiplexed

from .proxy import Proxy

LINES = {"direct": None, "slow": Slow}


@pytest.fixture(params=LINES)
def line(request, monkeypatch):
    """Choose the line that the test's connections use."""
    if LINES[request.param] is not None:
        monkeypatch.setattr(multiplexed, "line", LINES[request.param])
    return request.param


@pytest.fixture
async def proxy(url):
    """A proxy before an empty database; ``proxy.url`` is its own."""
    made = Proxy()
    made.url = await made.start(url)
    yield made
    await made.stop()


@pytest.fixture
async def make_wire(line):
    """Make wires of the chosen line; a wire's breaker is ``wire.breaker``."""
    made = []

    async def make(url, deadline=5.0):
        breaker = Breaker()
        wire = Multiplexed(endpoint.from_url(url), deadline, breaker, asyncio.get_running_loop())
        wire.breaker = breaker
        made.append(wire)
        assert await wire.exchange(pack(("PING",)), 1) in ([b"PONG"], ["PONG"])
        assert isinstance(wire._line, Direct if line == "direct" else Slow)
        return wire

    yield make
    for wire in made:
        await wire.aclose()


def get(wire, key):
    return wire.exchange(pack(("GET", key)), 1)


def change_deadline(wire, deadline):
    """Connecting has had time enough on any machine: from now on there is less, or more."""
    wire._deadline = deadline
    if wire._timer is not None:
        wire._timer.cancel()
        wire._timer = None


# --- replies reach who asked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 4096])
async def test_a_reply_in_pieces_is_a_reply(make_wire, proxy, raw, piece):
    """However the network cuts them: short and long ones, lists, errors, and several at once."""
    wire = await make_wire(proxy.url)
    proxy.piece = piece
    long = random.Random(1).randbytes(20_000 if piece > 2 else 500)
    raw.mset({"long": long, "short": b"", "crlf": b"\r\n$5\r\n"})
    asked = [
        get(wire, "long"),
        wire.exchange(pack(("MGET", "short", "crlf", "none")) + pack(("HGET", "long", "x")), 2),
    ]
    (first,), (many, error) = await asyncio.gather(*asked)

    assert first == long
    assert many == [b"", b"\r\n$5\r\n", None]
    assert isinstance(error, redis.exceptions.ResponseError)


async def test_an_error_is_the_reply_of_who_asked(make_wire, url, raw):
    """It has redis-py's type, and the calls beside it are answered as ever."""
    wire = await make_wire(url)
    raw.set("text", "t")
    wrong, missing, right = await asyncio.gather(
        wire.exchange(pack(("ZCARD", "text")), 1),
        wire.exchange(pack(("EVALSHA", "0" * 40, 0)), 1),
        get(wire, "text"),
    )

    assert type(wrong[0]) is redis.exceptions.ResponseError
    assert isinstance(missing[0], redis.exceptions.NoScriptError)
    assert right == [b"t"]
    assert not wire.breaker.troubled


async def test_a_call_cancelled_between_question_and_answer_leaves_its_place(make_wire, proxy, raw):
    """Its reply is nobody's; all others, asked before, with and after it, get their own."""
    wire = await make_wire(proxy.url)
    raw.mset({f"k{number}": number for number in range(30)})
    proxy.open.clear()
    first = get(wire, "k0")
    await proxy.asks(first)
    rest = [get(wire, f"k{number}") for number in range(1, 30)]
    first.cancel()
    for future in rest[::3]:
        future.cancel()
    proxy.open.set()

    assert await asyncio.gather(*[one for one in rest if not one.cancelled()]) == [
        [b"%d" % number] for number in range(1, 30) if (number - 1) % 3
    ]
    assert await get(wire, "k7") == [b"7"]
    assert not wire.breaker.troubled


async def test_who_asks_while_others_wait_goes_with_the_next_burst(make_wire, proxy, raw):
    """Nothing is sent before the burst under way is answered; then all of it is one write."""
    wire = await make_wire(proxy.url)
    raw.mset({f"k{number}": number for number in range(5)})
    proxy.open.clear()
    first = get(wire, "k0")
    await proxy.asks(first)
    sent = proxy.asked
    rest = [get(wire, f"k{number}") for number in range(1, 5)]
    await asyncio.sleep(0)
    assert proxy.asked == sent
    proxy.open.set()

    assert await asyncio.gather(first, *rest) == [[b"%d" % number] for number in range(5)]


# --- what is no reply -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [b"-LOADING Redis is loading the dataset in memory\r\n", b"no protocol\r\n", b":x\r\n"]
)
async def test_an_answer_that_cannot_be_followed_costs_the_burst_and_the_connection(
    make_wire, proxy, raw, said
):
    """All that wait are refused, none hangs, and the next call has a connection of its own."""
    wire = await make_wire(proxy.url)
    raw.set("k", "v")
    proxy.open.clear()
    proxy.answers.append(said)
    asked = [get(wire, "k")]
    await proxy.asks(asked[0])
    asked += [get(wire, "k") for _ in range(5)]
    proxy.open.set()

    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)
    assert wire.breaker.troubled
    wire.breaker.succeeded()
    assert await get(wire, "k") == [b"v"]


async def test_a_reply_that_nobody_asked_for_reaches_nobody(make_wire, proxy, raw, line):
    """The connection is given up before anybody is handed another one's answer."""
    if line == "slow":
        pytest.skip("redis-py reads when somebody asks: it cannot tell")
    wire = await make_wire(proxy.url)
    raw.set("k", "v")
    proxy.say(b"$5\r\nwrong\r\n")
    while wire._connection is not None:
        await asyncio.sleep(0.001)

    assert await get(wire, "k") == [b"v"]
    assert not wire.breaker.troubled


# --- lost connections -------------------------------------------------------------------------------------------


async def test_a_connection_lost_in_mid_flight_fails_its_burst_at_once(make_wire, proxy):
    """Who waits is told, and need not sit out the deadline."""
    wire = await make_wire(proxy.url, deadline=60.0)
    proxy.open.clear()
    asked = [get(wire, "k")]
    await proxy.asks(asked[0])
    asked += [get(wire, "k") for _ in range(3)]
    for writer in proxy._writers:
        writer.transport.abort()

    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
    assert all(isinstance(outcome, BackendUnavailable) for outcome in outcomes)
    assert wire.breaker.troubled


async def test_a_connection_that_died_while_idle_is_replaced_unseen(make_wire, url, raw):
    """Closed by the server after a second of silence: the next calls are answered, with no failure counted."""
    wire = await make_wire(url)
    raw.set("k", "v")
    for _ in range(3):
        raw.client_kill_filter(_type="normal", skipme=True)
        wire._written = -math.inf  # long ago
        assert await asyncio.gather(*[get(wire, "k") for _ in range(3)]) == [[b"v"]] * 3
    assert not wire.breaker.troubled


async def test_a_connection_that_is_closed_while_nobody_asks_is_no_failure(make_wire, url, raw, line):
    """Seen as it happens: the next call connects anew."""
    if line == "slow":
        pytest.skip("redis-py reads when somebody asks: it cannot see")
    wire = await make_wire(url)
    raw.client_kill_filter(_type="normal", skipme=True)
    while wire._connection is not None:
        await asyncio.sleep(0.001)

    assert await get(wire, "k") == [None]
    assert not wire.breaker.troubled


async def test_what_is_dropped_is_closed(make_wire, url, raw):
    """drop, again and again: calls under way are refused, no connection is left behind."""
    wire = await make_wire(url)
    before = len(raw.client_list())
    for _ in range(10):
        asked = get(wire, "k")
        await wire.drop()
        with pytest.raises(BackendUnavailable):
            await asked
        assert await get(wire, "k") == [None]
    assert not wire.breaker.troubled
    end = time.monotonic() + 10
    while len(raw.client_list()) > before:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_a_closed_wire_leaves_nobody_hanging(make_wire, proxy):
    """Those under way and those queued are refused; it connects anew if it is used again."""
    wire = await make_wire(proxy.url)
    proxy.open.clear()
    first = get(wire, "k")
    await proxy.asks(first)
    second = get(wire, "k")
    await wire.aclose()

    for future in (first, second):
        with pytest.raises(BackendUnavailable, match="closed"):
            await future
    proxy.open.set()
    assert await get(wire, "k") == [None]
    assert not wire.breaker.troubled


# --- the deadline -----------------------------------------------------------------------------------------------


async def test_no_answer_within_the_deadline_is_a_failure_of_all_that_wait(make_wire, proxy):
    """One failure; late answers reach nobody."""
    wire = await make_wire(proxy.url)
    change_deadline(wire, 0.2)
    proxy.open.clear()
    asked = [get(wire, "k") for _ in range(20)]
    outcomes = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)
    assert all("no answer within 0.2 s" in str(outcome) for outcome in outcomes)
    assert wire.breaker.troubled

    proxy.open.set()
    wire.breaker.succeeded()
    change_deadline(wire, 5.0)
    assert await wire.exchange(pack(("ECHO", "mine")), 1) == [b"mine"]


async def test_a_busy_loop_is_no_fault_of_redis(make_wire, url, raw):
    """The loop stands still for several deadlines after the question: the answer is taken all the same."""
    wire = await make_wire(url)
    change_deadline(wire, 0.1)
    raw.set("k", "v")
    for _ in range(3):
        asked = [get(wire, "k") for _ in range(3)]
        await asyncio.sleep(0)  # they are sent
        time.sleep(0.35)
        assert await asyncio.gather(*asked) == [[b"v"]] * 3
    assert not wire.breaker.troubled


async def test_bursts_share_a_timer(make_wire, url):
    """However many there are, one timer looks at the deadline."""
    wire = await make_wire(url, deadline=60.0)
    timer = wire._timer
    for _ in range(50):
        await get(wire, "k")
    assert wire._timer is timer
    assert wire._due == math.inf


# --- the ends of loops ------------------------------------------------------------------------------------------


def test_a_loop_that_is_closed_in_mid_flight_leaves_no_connection(url, raw, line):
    """Again and again, by a cache that nobody closes: Redis holds at most the last one's connection."""
    cache = AsyncCache(url, namespace="test", deadline=5.0)
    before = len(raw.client_list())

    async def leave():
        await cache.lookup("q")
        for number in range(5):
            asyncio.get_running_loop().create_task(cache.lookup(number))
        await asyncio.sleep(0)

    for _ in range(20):
        asyncio.run(leave())

    asyncio.run(cache.lookup("q"))
    end = time.monotonic() + 10
    while len(raw.client_list()) > before + 2:
        assert time.monotonic() < end
        time.sleep(0.005)
    assert not cache._namespace.nodes[0].breaker.troubled
    asyncio.run(cache.aclose())


# --- other transports -------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_a_line_like_any_other(make_wire, server, raw):
    """Short and long answers, one at a time and many at once."""
    wire = await make_wire(f"unix://{server.socket}?db=0")
    blob = random.Random(2).randbytes(300_000)
    raw.set("k", blob)
    assert await get(wire, "k") == [blob]
    assert await asyncio.gather(*[get(wire, "k") for _ in range(20)]) == [[blob]] * 20
