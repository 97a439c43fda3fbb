"""Driver and worker speak to each other: real processes, a real server."""

from pathlib import Path

import pytest

from tests.benchmarks.peers.peer import Lacks
from tests.benchmarks.peers.roster import ROSTER
from tests.benchmarks.peers.workers import ROOT, Failed, Remote


@pytest.fixture
def worker(server):
    """Start workers of this environment by name."""
    made = []

    def start(name, url=server.url):
        made.append(Remote(name, url, Path("no environments")))
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_a_worker_says_what_it_is(worker):
    """Its versions are those of its environment."""
    said = worker("redis-py").hello()

    assert set(said["versions"]) == {"redis", "hiredis"}
    assert said["on server"]


@pytest.mark.parametrize("name", ["redis-py", "askonce"])
def test_what_was_stored_is_hit_by_threads_and_by_asyncio(worker, name):
    """No call of a measurement is a miss."""
    peer = worker(name)
    peer.hello()
    peer.ask("fill")

    told = [
        peer.ask("hits", calls=10),
        peer.ask("ahits", calls=64, at_once=32),
        peer.ask("ahits", calls=64, at_once=32, one_key=True),
    ]

    assert [one["missed"] for one in told] == [0, 0, 0]
    assert all(one["seconds"] > 0 for one in told)


def test_a_miss_is_counted(worker):
    """A peer that finds nothing is not taken for a fast one."""
    peer = worker("askonce, near")
    peer.hello()

    assert peer.ask("hits", calls=10)["missed"] == 10


def test_a_stampede_of_two_processes_reaches_the_model_once(worker):
    """Through askonce; each worker says how often it was its callers' turn."""
    crew = [worker("askonce"), worker("askonce")]
    for one in crew:
        one.hello()
        one.send("stampede", name="cold", callers=5, at=0.0, takes=0.05)

    said = [one.fetch() for one in crew]

    assert sum(one["computed"] for one in said) == 1
    assert [one["errors"] for one in said] == [[], []]


def test_a_bound_is_kept(worker):
    """With room for two, the third question that is asked in turn is always new."""
    peer = worker("askonce")
    peer.hello()

    assert peer.ask("bounded", entries=2, trace=[0, 1, 2] * 3) == 0.0
    assert peer.ask("bounded", entries=5, trace=[10, 11, 10, 11]) == 0.5


def test_what_a_peer_lacks_is_named(worker):
    """The reason is the one in the table."""
    peer = worker("redis-py")
    peer.hello()

    with pytest.raises(Lacks, match="no bound of its own"):
        peer.ask("bounded", entries=2, trace=[1])
    with pytest.raises(Lacks, match="no get-or-compute"):
        peer.ask("stampede", name="cold", callers=1, at=0.0, takes=0.0)


def test_an_error_of_a_peer_is_told_and_the_worker_goes_on(worker):
    """A wrong word is an error as any other."""
    peer = worker("redis-py")
    peer.hello()

    with pytest.raises(Failed, match="TypeError"):
        peer.ask("hits", times=3)
    assert peer.ask("fill") is None


def test_an_outage_is_endured_for_a_bounded_time(worker, own_server):
    """Calls of a frozen server end with an outcome, or are left."""
    server = own_server()
    peers = {name: worker(name, server.url) for name in ("redis-py", "askonce")}
    for peer in peers.values():
        peer.hello()
        peer.ask("fill")
        assert peer.ask("connect") == ["threads", "asyncio"]
    server.freeze()

    said = {name: peer.ask("outage", calls=3, within=0.5) for name, peer in peers.items()}

    assert said["redis-py"] == {"threads": [], "asyncio": []}
    assert {outcome for came in said["askonce"].values() for _, outcome in came} == {"miss"}
    assert [len(came) for came in said["askonce"].values()] == [3, 3]


def test_an_environment_that_is_missing_is_said(worker):
    """It fails the peer, not the run."""
    peer = worker("cashews")

    for _ in range(2):
        with pytest.raises(Failed, match="its environment was not set up"):
            peer.ask("hits", calls=1)


def test_a_worker_that_dies_is_said_with_its_last_words(worker):
    """A URL that is none ends the worker."""
    with pytest.raises(Failed, match="ValueError"):
        worker("redis-py", "nonsense").hello()


def test_a_worker_that_does_not_answer_is_ended(worker):
    """And says so ever after."""
    peer = worker("redis-py")
    peer.hello()

    with pytest.raises(Failed, match="no answer within"):
        peer.ask("stampede", patience=0.2, name="cold", callers=1, at=4e9, takes=0.0)
    with pytest.raises(Failed):
        peer.ask("fill")


def test_every_environment_has_its_pinned_requirements():
    """Every row's environment has a file of what it asks for, and one of what that came to."""
    for entry in ROSTER.values():
        if entry.environment:
            for ending in (".in", ".txt"):
                assert (ROOT / "requirements" / "peers" / entry.environment).with_suffix(ending).exists()
