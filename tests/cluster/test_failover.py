"""
Masters that die, freeze and come back, slots that move: calls are made without the cache meanwhile, and never fail for it.

Clusters are the test's own.  How long calls take is not asserted here: ``make chaos`` prints it.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager

import pytest
from tests.conftest import Asyncio, Driver, Threads
from tests.contract.audit import Auditor
from tests.contract.polling import registered, until
from tests.contract.upstream import Gate
from tests.servers import Server, beside, promised

from askonce import Policy, Source
from askonce.keys import partition_slot, partition_tags

QUESTIONS = 48
TAGS = partition_tags("test", 16)

pytestmark = pytest.mark.slow


@pytest.fixture
def drivers():
    """Make one driver of each colour."""
    with ExitStack() as stack:

        def make(url, **words):
            made = [Driver(kind(url, namespace="test", **words)) for kind in (Threads, Asyncio)]
            for driver in made:
                stack.callback(driver.inner.stop)
            return made

        yield make


def know(driver, answers):
    """Ask all questions until each is a hit; every answer on the way must be right."""

    def all_hit():
        return all(
            driver.serve(number, lambda number=number: f"{answers} {number}").source is Source.HIT
            for number in range(QUESTIONS)
        )

    until(all_hit, 30)
    assert [one.value for one in driver.get_many(range(QUESTIONS))] == [
        f"{answers} {n}" for n in range(QUESTIONS)
    ]


@contextmanager
def load(drivers, answers):
    """Ask in the background, by every call that has to answer; what was wrong is raised at the end."""
    stop, wrong = threading.Event(), []

    def ask(driver):
        turn = 0
        while not stop.is_set():
            turn += 1
            number = turn % QUESTIONS
            some = [(number + step) % QUESTIONS for step in range(5)]
            try:
                got = driver.get_or_compute(number, lambda: f"{answers} {number}")
                many = driver.get_or_compute_many(
                    some, lambda missing: [f"{answers} {one}" for one in missing]
                )
                found = driver.lookup(some[1])
                driver.store(("new", turn), "x" * 300, ttl=60)
                if got != f"{answers} {number}" or many != [f"{answers} {one}" for one in some]:
                    wrong.append((got, many))
                if found is not None and found.value != f"{answers} {some[1]}":
                    wrong.append(found.value)
            except Exception as error:
                wrong.append(error)
                return

    threads = [threading.Thread(target=ask, args=(driver,)) for driver in drivers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []


def books_agree(url):
    """Return whether the books of every partition agree with themselves."""
    with beside(url) as client:
        books = [Auditor(client, "test", tag).books() for tag in TAGS]
    return all(one.counted == one.summed and one.only_x == one.only_l == 0 for one in books)


def test_masters_freeze_and_die_under_load(own_cluster, drivers):
    """Each time a replica takes over: no exception, no wrong answer, no answer from before the last bump; books agree."""
    cluster = own_cluster()
    both = drivers(cluster.url)
    for driver in both:
        know(driver, "old")
    assert both[0].bump() > 0
    with load(both, "new"):
        frozen = cluster.servers[cluster.owner(partition_slot("test", TAGS[0]))]
        frozen.freeze()
        until(lambda: cluster.taken_over(frozen), 30)
        for driver in both:
            know(driver, "new")
        frozen.thaw()
        cluster.wait_until_whole()
    assert both[1].bump() > 0
    with load(both, "newest"):
        killed = cluster.servers[cluster.owner(partition_slot("test", TAGS[8]))]
        killed.kill()
        until(lambda: cluster.taken_over(killed), 30)
        for driver in both:
            know(driver, "newest")
    assert books_agree(cluster.url)
    assert both[0].usage().known
    assert both[0].stats().fleet


def test_a_slot_moves_under_load(server, url, drivers):
    """There and back: no exception, no wrong answer, nothing stored is lost; other partitions do not notice."""
    both = drivers(url, deadline=2.0)
    know(both[0], "an answer")
    stored = {number: both[0].explain(number).key for number in range(QUESTIONS)}
    slot = partition_slot("test", TAGS[3])
    others = [number for number in range(QUESTIONS) if both[0].explain(number).partition != 3]

    def there_and_back():
        for _ in range(2):
            source = server.owner(slot)
            server.move(slot)
            until(lambda: server.owner(slot) != source)

    with load(both, "an answer"):
        moving = threading.Thread(target=there_and_back)
        moving.start()
        while moving.is_alive():
            assert {driver.serve(number, list).source for driver in both for number in others} == {Source.HIT}
        moving.join()
        for driver in both:
            know(driver, "an answer")
    assert {number: both[1].explain(number).key for number in range(QUESTIONS)} == stored
    assert books_agree(url)


def test_who_waits_for_another_process_does_not_wait_for_a_slot_that_moved(server, url, drivers):
    """Asleep at the old node, it is told that there is nothing to hear any more; at the new one it is woken as ever."""
    (leader, _), (follower, other) = (drivers(url, deadline=2.0, policy=Policy(lease=60)) for _ in range(2))
    slot = partition_slot("test", TAGS[leader.explain("q").partition])
    for waiter in (follower, other):
        gate = Gate("the leader's")
        leading = leader.start("serve", "q", gate)
        gate.wait()
        following = waiter.start("serve", "q", lambda: "its own")
        until(lambda waiter=waiter: registered(waiter.cache._namespace))
        server.move(slot)
        until(
            lambda waiter=waiter, following=following: (
                following.done() or not registered(waiter.cache._namespace)
            )
        )
        gate.open()
        assert following.result(20).value in {"its own", "the leader's"}
        assert leading.result(20).value == "the leader's"

        until(lambda: leader.store("q", "to be removed") and leader.invalidate("q"))
        gate = Gate("the leader's")
        leading = leader.start("serve", "q", gate)
        gate.wait()
        until(lambda waiter=waiter: waiter.lookup("q") is None and waiter.stats().fleet)
        following = waiter.start("serve", "q", lambda: "its own")
        until(lambda waiter=waiter: registered(waiter.cache._namespace))
        gate.open()
        served = following.result(20)
        assert (served.value, served.source) == ("the leader's", Source.COALESCED)
        assert leading.result(20).value == "the leader's"
        leader.invalidate("q")


@pytest.mark.parametrize("error", [None, KeyError("quota")], ids=["stored", "failed"])
def test_where_channels_have_no_slots_the_leader_wakes_who_waits_for_one_that_moved(
    server, url, drivers, error
):
    """As on Redis 6.2, where the server says nothing: who waits does not wait for the end of the lease."""
    for client in server.clients:
        client.execute_command("ACL SETUSER", "plain", "reset", "on", ">it", "~*", "&*", "+@all", "-pubsub")
    try:
        at = url.replace("://", "://plain:it@")
        (leader, _), followers = (drivers(at, deadline=2.0, policy=Policy(lease=60)) for _ in range(2))
        for follower in followers:
            slot = partition_slot("test", TAGS[leader.explain("q").partition])
            until(lambda follower=follower: follower.stats().fleet and leader.stats().fleet)
            gate = Gate("the leader's", error)
            leading = leader.start("serve", "q", gate)
            gate.wait()
            following = follower.start("serve", "q", lambda: "its own")
            until(lambda follower=follower: registered(follower.cache._namespace))
            server.move(slot)
            gate.open()
            assert following.result(20).value in {"its own", "the leader's"}
            assert isinstance(leading.exception(20), KeyError) if error else leading.result(20)
            until(lambda: leader.store("q", "to be removed") and leader.invalidate("q"))
    finally:
        for client in server.clients:
            client.acl_deluser("plain")


def test_a_part_of_a_cluster_is_away(own_cluster, drivers):
    """The rest is served, invalidated and counted; what could not be told is said, and made good when it is back."""
    cluster = own_cluster("--cluster-require-full-coverage", "no", "--cluster-node-timeout", "60000")
    driver, other = drivers(cluster.url)
    know(driver, "old")
    know(other, "old")
    away = cluster.servers[cluster.owner(partition_slot("test", TAGS[0]))]
    gone = {
        number
        for number in range(QUESTIONS)
        if cluster.servers[cluster.owner(partition_slot("test", TAGS[driver.explain(number).partition]))]
        is away
    }
    assert 0 < len(gone) < QUESTIONS
    away.kill()

    found = driver.get_many(range(QUESTIONS))
    assert {number for number, one in enumerate(found) if one is None} == gone
    assert driver.get_or_compute_many(
        range(QUESTIONS), lambda missing: [f"old {one}" for one in missing]
    ) == [f"old {number}" for number in range(QUESTIONS)]
    assert (driver.usage().known, driver.stats().fleet) == (False, False)
    assert driver.stats().hits >= QUESTIONS
    assert driver.invalidate_tag("a tag") is False
    assert driver.bump() == 0
    assert driver.get_many(range(QUESTIONS)) == [None] * QUESTIONS
    assert other.get_many([number for number in range(QUESTIONS) if number not in gone]) == [None] * (
        QUESTIONS - len(gone)
    )

    away.start()
    cluster.wait_until_whole()
    know(driver, "new")
    know(other, "new")
    assert driver.usage().known
    assert driver.bump() > 0


def test_addresses_that_are_gone_do_not_matter(server, url, drivers):
    """One that answers is enough to find the others."""
    port = server.servers[4].port
    for driver in drivers(f"redis+cluster://127.0.0.1:1,127.0.0.1:{port}", strict=True, deadline=2.0):
        assert driver.get_or_compute("q", lambda: "answer") == "answer"


def test_a_node_of_a_cluster_is_no_server_of_its_own(server, url, drivers):
    """A plain URL is asked for nothing but the truth: the reason says which URL is meant."""
    events = []
    for driver in drivers(
        f"redis://127.0.0.1:{server.servers[0].port}/0", on_event=events.append, deadline=2.0
    ):
        for number in range(20):
            assert driver.get_or_compute(number, lambda: "answer") == "answer"
    if events:  # by chance it is the node that has the slot
        assert "redis+cluster://" in events[0].reason


def test_a_server_that_is_no_cluster_says_so(drivers):
    """Calls are made without the cache, and the reason is told."""
    events = []
    with Server(promised()["valkey"]) as alone:
        for driver in drivers(alone.url.replace("redis:", "redis+cluster:"), on_event=events.append):
            assert driver.get_or_compute("q", lambda: "answer") == "answer"
            assert driver.stats().bypass_reasons == {"backend": 1}
    assert {event.kind for event in events} == {"breaker-opened"}
    assert "cluster support disabled" in events[0].reason
