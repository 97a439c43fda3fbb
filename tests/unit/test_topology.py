"""Which server has which slot: what an answer says, whom to ask, and how often."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from askonce import BackendUnavailable
from askonce._wire import topology
from askonce._wire.endpoint import from_url
from askonce._wire.topology import Map, Topology, ask_cluster, ask_sentinels, cluster_map

CLUSTER = from_url("redis+cluster://a:1,b:2")
SENTINELS = from_url("redis+sentinel://a,b,c/m/0")
A, B, C = ("a", 1), ("b", 2), ("c", 3)


def node(host, port):
    return [host, port, b"an id", []]


# --- what a cluster answers ---------------------------------------------------------------------------------------


def test_a_slot_belongs_to_the_first_node_of_its_range():
    """The others are its replicas, which may be asked for the map."""
    ranges = [[0, 99, node(b"a", 1), node(b"d", 4)], [100, 16383, node(b"b", 2)]]

    assert cluster_map(ranges, [0, 99, 100, 16383], "x", sharded=True) == Map(
        [A, A, B, B], (A, ("d", 4), B), True
    )


def test_a_slot_of_nobody():
    """It has no owner; the others do."""
    assert cluster_map([[0, 9, node(b"a", 1)]], [5, 10], "x", sharded=False).owners == [A, None]


@pytest.mark.parametrize(
    ("host", "owner"), [(b"", ("x", 1)), (None, ("x", 1)), (b"?", None), (b"::1", ("::1", 1))]
)
def test_how_a_node_calls_itself(host, owner):
    """Without a name it is where the answer came from, and an unknown one is nowhere (Redis 7.0)."""
    found = cluster_map([[0, 9, node(host, 1)]], [5], "x", sharded=False)

    assert found == Map([owner], (owner,) if owner else (), False)


def test_addresses_are_mapped_as_the_user_says():
    """Behind a NAT, nodes announce what cannot be reached."""
    found = cluster_map(
        [[0, 9, node(b"a", 1)]], [5], "x", lambda address: ("outside", address[1] + 1), sharded=False
    )

    assert found.owners == [("outside", 2)]


def test_a_cluster_without_slots_is_none():
    """It is being made, or somebody has forgotten it."""
    with pytest.raises(ValueError, match="no slots"):
        cluster_map([], [5], "x", sharded=False)


# --- whom to ask --------------------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch):
    """What each address answers, an exception if it does not; and who was asked."""
    answers, asked = {}, []

    def ask(endpoint, _deadline, *_):
        address = endpoint.options["host"], endpoint.options["port"]
        asked.append(address)
        answer = answers[address]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(topology, "_ask", ask)
    return SimpleNamespace(of=answers, asked=asked)


WHOLE = [[0, 16383, node(b"b", 2)]]


@pytest.mark.parametrize(
    "broken",
    [
        RedisConnectionError("refused"),
        OSError("no route"),
        [ResponseError("LOADING"), []],
        [[], []],
        [[["x"]], []],
    ],
)
def test_the_first_that_answers_is_believed(answers, broken):
    """One that does not, or with nonsense, is passed over."""
    answers.of.update({A: broken, B: [WHOLE, []]})

    assert ask_cluster(CLUSTER, (), [7], 0.1) == Map([B], (B,), True)
    assert answers.asked == [A, B]


def test_members_of_the_last_map_are_asked_before_the_addresses_of_the_url(answers):
    """In any order; each once."""
    answers.of.update({A: OSError(), B: OSError(), C: OSError()})
    with pytest.raises(BackendUnavailable):
        ask_cluster(CLUSTER, (C, B), [7], 0.1)

    assert sorted(answers.asked[:2]) == [B, C]
    assert answers.asked[2:] == [A]


def test_channels_belong_to_slots_if_the_server_knows_such_channels(answers):
    """Redis 6.2 does not."""
    answers.of[A] = [WHOLE, ResponseError("unknown subcommand")]

    assert ask_cluster(CLUSTER, (), [7], 0.1).sharded is False


def test_nobody_answers(answers):
    """The error says what the last one had to say, by its address."""
    answers.of.update({A: OSError("no route"), B: [ResponseError("NOPERM no"), []]})
    with pytest.raises(BackendUnavailable, match="redis://b:2: Redis answered: NOPERM"):
        ask_cluster(CLUSTER, (), [7], 0.1)


def seeds(*replies):
    return {(name, 26379): reply for name, reply in zip("abc", replies, strict=True)}


@pytest.mark.parametrize(
    ("replies", "asked"),
    [
        ([[[b"a", b"1"]], [[b"a", b"1"]], [[b"b", b"2"]]], 2),
        ([[[b"b", b"2"]], [[b"a", b"1"]], [[b"a", b"1"]]], 3),
        ([OSError(), [[b"a", b"1"]], OSError()], 3),
        ([[None], [[b"a", b"1"]], OSError()], 3),
        ([[ResponseError("NOAUTH")], [[b"a", b"1"]], [[b"a", b"1"]]], 3),
    ],
)
def test_the_master_is_what_most_sentinels_say(answers, replies, asked):
    """One that was cut off may be behind; no more are asked than it takes."""
    answers.of.update(seeds(*replies))

    assert ask_sentinels(SENTINELS, [1, 2], 0.1) == Map([A, A], (A,))
    assert len(answers.asked) == asked


def test_no_sentinel_knows(answers):
    """The error says so."""
    answers.of.update(seeds([None], [None], [None]))
    with pytest.raises(BackendUnavailable, match="redis://c:26379: it knows no master 'm'"):
        ask_sentinels(SENTINELS, [1], 0.1)


# --- how often ----------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(topology, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def cluster(monkeypatch):
    """A cluster whose map the test sets; ``asked`` counts, and ``gate`` holds the answer back while it is clear."""
    cluster = SimpleNamespace(
        map=Map([A, B], (A, B), True), asked=0, gate=threading.Event(), events=[], learned=[]
    )
    cluster.gate.set()

    def ask(*_):
        cluster.asked += 1
        assert cluster.gate.wait(10)
        if isinstance(cluster.map, Exception):
            raise cluster.map
        return cluster.map

    monkeypatch.setattr(topology, "ask_cluster", ask)
    return cluster


@pytest.fixture
def nodes(cluster, clock):
    return Topology(CLUSTER, [1, 2], 5.0, cluster.events.append, cluster.learned.append)


def labels(nodes):
    return [node and node.endpoint.label for node in nodes.nodes]


def test_one_server_is_known_at_once(cluster):
    """And never looked for."""
    nodes = Topology(from_url("redis://h"), [1, 2], 5.0, cluster.events.append)

    assert labels(nodes) == ["redis://h"] * 2
    assert nodes.nodes[0] is nodes.nodes[1]
    nodes.refresh().result(5)
    assert cluster.asked == 0


@pytest.mark.parametrize("colour", ["threads", "asyncio"])
def test_the_first_call_waits_for_the_map(nodes, cluster, colour):
    """Later ones find it there; partitions on one server share its connections."""
    found = nodes.find(1) if colour == "threads" else asyncio.run(nodes.afind(1))

    assert found.endpoint.label == "redis://b:2"
    assert nodes.find(0).endpoint.label == "redis://a:1"
    assert (cluster.asked, cluster.learned) == (1, [True])


def test_nobody_waits_longer_than_a_deadline(cluster, clock):
    """The map comes when it comes."""
    nodes = Topology(CLUSTER, [1, 2], 0.01, cluster.events.append)
    cluster.gate.clear()
    with pytest.raises(BackendUnavailable, match="no server is known"):
        nodes.find(0)
    cluster.gate.set()
    nodes.refresh().result(5)

    assert nodes.find(0).endpoint.label == "redis://a:1"


def test_a_map_is_read_at_most_once_a_second(nodes, cluster, clock):
    """However many calls fail; what has moved is another node from then on, what has not keeps its connections."""
    first = nodes.find(0)
    cluster.map = Map([A, C], (A, C), True)
    for _ in range(100):
        nodes.refresh().result(5)
    assert cluster.asked == 1
    clock.now += 1
    nodes.refresh().result(5)

    assert cluster.asked == 2
    assert labels(nodes) == ["redis://a:1", "redis://c:3"]
    assert nodes.nodes[0] is first
    assert [node.endpoint.label for node in nodes.known] == ["redis://a:1", "redis://c:3"]


def test_one_reads_at_a_time(nodes, cluster, clock):
    """A slow reading is not overtaken by the next."""
    cluster.gate.clear()
    reading = nodes.refresh()
    clock.now += 10
    assert nodes.refresh() is reading
    cluster.gate.set()
    reading.result(5)

    assert cluster.asked == 1


def test_a_slot_that_nobody_has_stays_where_it_was(nodes, cluster, clock):
    """Its server says itself that it has it no more."""
    nodes.find(0)
    cluster.map = Map([None, B], (A, B), True)
    clock.now += 1
    nodes.refresh().result(5)

    assert labels(nodes) == ["redis://a:1", "redis://b:2"]


def test_a_map_that_cannot_be_read_leaves_all_as_it_was(nodes, cluster, clock):
    """It is told once, and asked for less often."""
    nodes.find(0)
    cluster.map = BackendUnavailable("nobody there")
    for _ in range(3):
        clock.now += 1
        nodes.refresh().result(5)
    assert labels(nodes) == ["redis://a:1", "redis://b:2"]
    assert {event.kind for event in cluster.events} == {"breaker-opened"}
    assert all("nobody there" in event.reason for event in cluster.events)


def test_an_answer_is_reason_to_ask_again(nodes, cluster, clock):
    """Whatever the last readings came to: a server that says MOVED is there."""
    nodes.find(0)
    cluster.map = BackendUnavailable("nobody there")
    clock.now += 1
    nodes.refresh().result(5)
    cluster.map = Map([B, B], (A, B), True)
    clock.now += 1
    nodes.refresh().result(5)
    assert labels(nodes) == ["redis://a:1", "redis://b:2"]
    nodes.refresh(answered=True).result(5)

    assert labels(nodes) == ["redis://b:2", "redis://b:2"]


def test_who_asks_before_there_is_a_map_hears_why_not(nodes, cluster):
    """The reason is in the error of every call."""
    cluster.map = ValueError("the cluster has no slots")
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match=r"redis\+cluster://a:1,b:2: .* no slots"):
            nodes.find(0)
    assert cluster.asked == 1


def test_who_is_left_is_told_of_once(cluster, clock, monkeypatch):
    """The server that a slot has moved away from, by its place; not the one that keeps it, nor the first."""
    told = []
    nodes = Topology(CLUSTER, [1, 2], 5.0, cluster.events.append, left=lambda *moved: told.append(moved))
    a, b = ("a", 1), ("b", 2)
    nodes._adopt(Map([a, a], [a, b]))
    first = nodes.nodes[0]
    nodes._adopt(Map([a, a], [a, b]))
    assert told == []

    nodes._adopt(Map([a, b], [a, b]))
    nodes._adopt(Map([None, b], [a, b]))
    assert told == [(1, first)]
