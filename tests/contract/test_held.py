"""
The sync wire, with a real server behind a proxy that may hold, cut or change what it answers.

Every test runs on both lines: the one that uses the connection's socket, and the one that has redis-py write and read.
"""

import asyncio
import random
import signal
import threading
import time

import pytest
import redis
import redis.exceptions

from askonce import BackendUnavailable
from askonce._wire import endpoint, held
from askonce._wire.breaker import Breaker
from askonce._wire.commands import pack
from askonce._wire.held import Direct, Held, Slow

from .proxy import Proxy


@pytest.fixture(params=["direct", "slow"])
def line(request, monkeypatch):
    """Choose the line that the test's connections use."""
    if request.param == "slow":
        monkeypatch.setattr(held, "_line", Slow)
    return request.param


@pytest.fixture
def proxy(url):
    """A proxy before an empty database, in a thread of its own; ``proxy.url`` is its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def there(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    async def made():
        return Proxy()

    proxy = there(made())
    proxy.url = there(proxy.start(url))
    proxy.let = lambda word: loop.call_soon_threadsafe(getattr(proxy.open, word))

    async def say(data):
        proxy.say(data)

    proxy.tell = lambda data: there(say(data))
    yield proxy
    there(proxy.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def make_wire(line):
    """Make wires of the chosen line; a wire's breaker is ``wire.breaker``."""
    made = []

    def make(url, deadline=5.0):
        breaker = Breaker()
        wire = Held(endpoint.from_url(url), deadline, breaker)
        wire.breaker = breaker
        made.append(wire)
        assert wire.exchange(pack(("PING",)), 1) in ([b"PONG"], ["PONG"])
        assert isinstance(wire._local.line, Direct if line == "direct" else Slow)
        return wire

    yield make
    for wire in made:
        wire.drop()


def get(wire, key):
    (reply,) = wire.exchange(pack(("GET", key)), 1)
    return reply


def ends_the_pause(wire):
    """Let the breaker's pause be over."""
    wire.breaker.succeeded()


@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_a_reply_in_pieces_is_a_reply(make_wire, proxy, raw, piece):
    """However the bytes come: several replies of one write, each its own, and the next write's too."""
    values = [random.Random(number).randbytes(number * 31) for number in range(40)]
    raw.mset({f"n:{number}": value for number, value in enumerate(values)})
    wire = make_wire(proxy.url)
    proxy.piece = piece

    packed = b"".join(pack(("GET", f"n:{number}")) for number in range(40))
    for _ in range(2):
        assert wire.exchange(packed, 40) == values


def test_a_long_reply(make_wire, url, raw):
    """Of more bytes than are read at a time."""
    value = random.Random(1).randbytes(3_000_001)
    raw.set("long", value)
    wire = make_wire(url)

    for _ in range(3):
        assert get(wire, "long") == value


def test_an_error_is_the_reply_of_its_command(make_wire, url, raw):
    """Those before and behind it in the same write are answered."""
    raw.set("k", "v")
    wire = make_wire(url)

    packed = pack(("GET", "k")) + pack(("HGET", "k", "field")) + pack(("GET", "k"))
    before, error, behind = wire.exchange(packed, 3)

    assert (before, behind) == (b"v", b"v")
    assert isinstance(error, redis.exceptions.ResponseError)
    assert "WRONGTYPE" in str(error)


def test_an_answer_that_cannot_be_followed_costs_the_connection(make_wire, proxy, raw):
    """What is no reply at all fails the call, and the next one asks anew."""
    raw.set("k", "v")
    wire = make_wire(proxy.url)
    proxy.answers = [b"what is this?\r\n"]

    with pytest.raises(BackendUnavailable):
        get(wire, "k")
    ends_the_pause(wire)

    assert get(wire, "k") == b"v"


def test_a_server_that_loads_is_an_outage(make_wire, proxy, raw):
    """LOADING, which redis-py takes for a lost connection."""
    raw.set("k", "v")
    wire = make_wire(proxy.url)
    proxy.answers = [b"-LOADING Redis is loading the dataset in memory\r\n"]

    with pytest.raises(BackendUnavailable, match="loading"):
        get(wire, "k")
    ends_the_pause(wire)

    assert get(wire, "k") == b"v"


def test_no_answer_within_the_deadline_is_a_failure(make_wire, proxy, raw):
    """The late reply reaches nobody, and the error says what was waited for."""
    raw.set("k", "v")
    wire = make_wire(proxy.url, deadline=0.3)
    proxy.let("clear")

    with pytest.raises(BackendUnavailable, match=r"no answer within 0\.3 s"):
        get(wire, "other")
    proxy.let("set")
    ends_the_pause(wire)

    assert get(wire, "k") == b"v"


def test_an_answer_that_comes_bit_by_bit_is_late_as_a_whole(make_wire, proxy, raw):
    """Each bit comes within the deadline, all of them together do not."""
    raw.set("k", "v" * 400)
    wire = make_wire(proxy.url, deadline=0.5)
    proxy.piece, proxy.pause = 1, 0.05  # 20 s

    with pytest.raises(BackendUnavailable, match="no answer within"):
        get(wire, "k")
    proxy.piece, proxy.pause = 1 << 20, 0.0
    ends_the_pause(wire)

    assert get(wire, "k") == b"v" * 400


def test_a_question_that_is_taken_bit_by_bit_is_late_as_a_whole(make_wire, proxy):
    """Each bit is taken within the deadline, all of them together are not."""
    wire = make_wire(proxy.url, deadline=0.5)
    proxy.takes, proxy.rest = 65_536, 0.02  # 10 s for what the system does not hold
    start = time.monotonic()

    with pytest.raises(BackendUnavailable, match="no answer within"):
        wire.exchange(pack(("SET", "k", bytes(30_000_000))), 1)
    assert time.monotonic() - start < 3


def test_signals_do_not_put_the_deadline_off(make_wire, proxy):
    """A profiler's timer interrupts each wait: what is left of it goes on, it does not begin anew."""
    wire = make_wire(proxy.url, deadline=0.3)
    proxy.let("clear")
    interrupted = []
    former = signal.signal(signal.SIGALRM, lambda *_: interrupted.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(BackendUnavailable, match="no answer within"):
            get(wire, "k")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
        proxy.let("set")
    assert 3 < len(interrupted) < 100


def test_an_answer_in_pieces_leaves_the_deadline_as_it_was(make_wire, proxy, raw):
    """What was left of one exchange's time is not the next one's."""
    raw.set("k", "v" * 400)
    wire = make_wire(proxy.url, deadline=5.0)
    link = wire._local.line.connection._sock
    before = link.gettimeout()
    proxy.piece = 50
    assert get(wire, "k") == b"v" * 400

    assert link.gettimeout() == before


def test_a_connection_that_died_while_idle_is_replaced_unseen(make_wire, url, raw):
    """The server has closed it: a call after a while connects anew, and no failure is noted."""
    raw.set("k", "v")
    wire = make_wire(url)
    raw.client_kill_filter(_type="normal", skipme=True)
    wire._local.used -= held._IDLE + 1

    assert get(wire, "k") == b"v"
    assert not wire.breaker.troubled


def test_a_connection_that_dies_in_use_is_a_failure(make_wire, url, raw):
    """Used a moment ago: the server has gone, which is not tried twice."""
    raw.set("k", "v")
    wire = make_wire(url)
    raw.client_kill_filter(_type="normal", skipme=True)

    with pytest.raises(BackendUnavailable):
        get(wire, "k")
    assert wire.breaker.troubled
    ends_the_pause(wire)

    assert get(wire, "k") == b"v"


@pytest.mark.parametrize("said", [b"-ERR idle timeout\r\n", b"$5\r\nno"])
def test_what_nobody_asked_for_while_idle_answers_nobody(make_wire, proxy, raw, said):
    """A proxy says why it will close, say: the connection is replaced before anything is asked on it."""
    raw.mset({"a": "A", "b": "B"})
    wire = make_wire(proxy.url)
    proxy.tell(said)
    wire._local.used -= held._IDLE + 1

    assert (get(wire, "a"), get(wire, "b")) == (b"A", b"B")
    assert not wire.breaker.troubled


def test_half_a_reply_behind_the_last_one_costs_the_connection(make_wire, proxy, raw, line):
    """The rest of it would be taken for the next answer."""
    if line == "slow":
        pytest.skip("redis-py does not say what else it has read")
    raw.set("k", "v")
    wire = make_wire(proxy.url)
    proxy.answers = [b"$1\r\nv\r\n$1\r\nw"]

    with pytest.raises(BackendUnavailable, match="nobody asked for"):
        get(wire, "k")
    ends_the_pause(wire)

    assert get(wire, "k") == b"v"


def test_every_thread_has_a_connection(make_wire, url, raw):
    """Replies of one thread's are never another's."""
    raw.mset({f"n:{number}": number for number in range(8)})
    wire, wrong = make_wire(url), []

    def ask(number):
        replies = [get(wire, f"n:{number}") for _ in range(200)]
        wrong.extend(reply for reply in replies if reply != b"%d" % number)
        wire.drop()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert wrong == []


def test_a_unix_socket_is_a_line_like_any_other(make_wire, server, raw):
    """Its connection has a socket too."""
    raw.set("k", "v" * 100_000)
    wire = make_wire(f"unix://{server.socket}?db=0")

    assert get(wire, "k") == b"v" * 100_000
