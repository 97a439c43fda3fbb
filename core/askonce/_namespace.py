"""
A namespace as one process sees it: what ``Cache`` and ``AsyncCache`` share.

It owns the connections, the flights, the counters and the threads behind them.  Scopes and the two colours of a cache
are views of one ``Namespace``, so that they coalesce, count and break together.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import random
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from redis.exceptions import ResponseError

from ._background import Background
from ._call import leading
from ._clock import Clock
from ._effects import Listen, Renewal
from ._flights import Flights
from ._programs import (
    END_MARK,
    META,
    NOTHING_UNSENT,
    Ask,
    Given,
    Held,
    Partition,
    State,
    Unsent,
    publish_call,
)
from ._settings import Settings
from ._straight import Straight
from ._wire.commands import answer, is_unknown_script, pack, pack_load, pack_script
from ._wire.endpoint import Endpoint
from ._wire.listener import LISTENERS, Listener, Registration
from ._wire.node import Node
from ._wire.publisher import Publisher
from ._wire.renewals import Renewals
from ._wire.topology import Topology
from .control import Control, checked_tags
from .entry import UNIT, checked_label
from .errors import BackendUnavailable, Moved, OutOfMemory, Unfit
from .keys import Names, meta_name, meta_slot, partition_slot, partition_tags, tag_hash
from .near import NearCache
from .policy import Duration, Policy, lifetime_ms, seconds
from .scripts import PUBLISH, RELEASE, RENEW, Arg, Script
from .stats import Counters, Event

R = TypeVar("R")

_log = logging.getLogger("askonce")

#: How often a process adds its counters to the fleet's, in the write of something else.
_FLUSH_S: Final = 1.0
#: How long ``close`` waits for what runs in the background.
_SETTLE_S: Final = 30.0


class Namespace:
    """One namespace in one process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.place = settings.place()
        self.clock = Clock()
        self._exiting = False
        self._start()
        _alive.add(self)

    def _start(self) -> None:
        settings = self.settings
        tags = partition_tags(settings.namespace, settings.partitions)
        partitions = [Partition(index, Names(settings.namespace, tag)) for index, tag in enumerate(tags)]
        self.state = State(
            partitions=partitions,
            flights=Flights(),
            counters=Counters(),
            max_entries=max(1, settings.max_entries // len(tags)),
            max_units=settings.max_bytes // UNIT // len(tags),
            meta=meta_name(settings.namespace),
            strict=settings.strict,
            near=None if settings.near is None else NearCache(settings.near),
        )
        slots = [partition_slot(settings.namespace, tag) for tag in tags]
        slots.append(meta_slot(settings.namespace))
        self.topology = Topology(self.place, slots, settings.deadline, self._tell, self._learned, self._left)
        #: The server of each partition, and last (META) of what all share; None until the topology is known.
        self.nodes = self.topology.nodes
        #: Of its own, as the caller may seed the shared one alike in every process; tokens must differ.
        self._random = random.Random()  # noqa: S311  neither tokens nor jitter are secrets
        self.straight = Straight(self.state, self.clock, self.nodes, self._random.random)
        self.renewals = Renewals(self._renew, self._bury)
        self.background = Background()
        self.publisher = Publisher(self._publish)
        #: Leases whose owner was collected without finishing them.  SimpleQueue: the collector may call at any time.
        self._orphans: SimpleQueue[Held] = SimpleQueue()
        #: Threads and tasks that hold unfinished leases, and how many.
        self._holders: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._flushed = time.monotonic()

    def after_fork(self) -> None:
        """Start anew in a forked child: sockets, locks and threads are the parent's."""
        self._start()

    def failed(self, index: int, error: BackendUnavailable) -> None:
        """Note an exchange that failed: who must not be asked for a while, and whether slots may have moved."""
        if not isinstance(error, OutOfMemory):
            self.topology.refresh(answered=isinstance(error, Moved | Unfit))
        node = self.nodes[index]
        if node is None:
            return
        if isinstance(error, Unfit):  # a replica, a server that loads, a permission that is missing
            node.breaker.failed(str(error), for_long="NOPERM" in str(error) or "NOAUTH" in str(error))
        elif isinstance(error, Moved) and isinstance(self.place, Endpoint):
            node.breaker.failed(f"{error}: it is a node of a cluster, give redis+cluster://", for_long=True)

    def tell(self, kind: str, reason: str) -> None:
        """Tell the operator something of the namespace."""
        self._tell(Event(kind, self.place.label, reason, 0.0))

    def _learned(self, sharded: bool) -> None:
        for part in self.state.partitions:
            part.publish = b"SPUBLISH" if sharded else b"PUBLISH"

    def _left(self, index: int, node: Node) -> None:
        """Believe no more what a server says of a partition that is another's now: it may be cut off, and say nothing."""
        if self.state.near is not None and index < len(self.state.partitions):
            node.listener.unwatch(self.state.partitions[index].names.w, self.state.near)

    def _tell(self, event: Event) -> None:
        if self._exiting:
            return
        if event.kind == "breaker-opened":
            _log.warning("%s: not asked for %.1f s: %s", event.server, event.pause, event.reason)
        elif event.kind == "disagreement":
            _log.error("%s: not used: %s", event.server, event.reason)
        elif event.kind == "eviction":
            _log.warning("%s: %s", event.server, event.reason)
        else:
            _log.info("%s: %s", event.server, event.reason)
        if self.settings.on_event is not None:
            try:
                self.settings.on_event(event)
            except Exception:  # noqa: BLE001  a listener's error is not the caller's
                _log.exception("on_event failed")

    def close(self) -> None:
        """Wait for detached work, add the last counters, close what belongs to the calling thread."""
        self.background.settle(_SETTLE_S)
        self.renewals.close()
        channels = tuple(part.names.w for part in self.state.partitions)
        for node in self.topology.known:
            if self.state.near is not None:
                for channel in channels:
                    node.listener.unwatch(channel, self.state.near)
            node.listener.leave(channels)
            node.held.drop()

    def listener_of(self, index: int) -> Listener:
        """Return who hears what is said in a partition."""
        return (self.nodes[index] or self.topology.find(index)).listener

    def listens(self, effect: Listen) -> bool:
        """Return whether messages for what *effect* waits for arrive already."""
        node = self.nodes[effect.partition]
        return node is not None and node.listener.ready(self.state.partitions[effect.partition].names.w)

    def listen(self, effect: Listen) -> Registration:
        """Return a registration; waits for the subscription if there is none."""
        channel = self.state.partitions[effect.partition].names.w
        return self.listener_of(effect.partition).register(channel, effect.digest, effect.chunks)

    # --- counters ---------------------------------------------------------------------------------------------

    def due_counters(self, index: int) -> dict[str, int]:
        """Return counters to be added to the fleet's in the write of something else to a partition, if that is due."""
        if (
            not self.flush_is_due()
            or index == META
            or (node := self.nodes[index]) is None
            or node.breaker.troubled
        ):
            return {}
        self._flushed = time.monotonic()
        return self.state.counters.take()

    def flush_is_due(self) -> bool:
        """Return whether the last counters were added more than a second ago."""
        return time.monotonic() - self._flushed >= _FLUSH_S

    def pack_counters(self, index: int, counters: dict[str, int]) -> bytes:
        """Return the commands that add *counters* to the fleet's, which are the sum over all partitions."""
        name = self.state.partitions[index].names.s
        return b"".join(pack(("HINCRBY", name, counter, count)) for counter, count in counters.items())

    def counted(self, counters: dict[str, int], replies: Sequence[Any]) -> None:
        """Keep what Redis refused to count (it is out of memory) for later."""
        refused = [
            name for name, reply in zip(counters, replies, strict=True) if isinstance(reply, ResponseError)
        ]
        self.state.counters.give_back({name: counters[name] for name in refused})

    # --- requests ---------------------------------------------------------------------------------------------

    def ask(
        self,
        digest: bytes,
        policy: Policy,
        control: Control,
        *,
        ttl: Duration | None = None,
        tags: Sequence[str] = (),
        label: str | None = None,
        max_wait: Duration | None = None,
        index: int = 0,
        home: object = None,
        waits: bool = True,
        share_errors: bool = True,
    ) -> Ask:
        """Return a request with all that was decided about it; the call's own words win over the block's."""
        if max_wait is not None and (most := seconds("max_wait", max_wait)) < policy.max_wait_s:
            policy = replace(policy, max_wait=most)
        ttl_ms = lifetime_ms(ttl)
        if ttl_ms is None and control.ttl is not None:
            ttl_ms = round(control.ttl * 1000)
        return Ask(
            partition=self.state.partition_of(digest),
            digest=digest,
            policy=policy,
            token=b"%032x" % self._random.getrandbits(128),
            draw=self._random.random(),
            ttl_ms=ttl_ms,
            max_age=control.max_age,
            tags=_hashes((*control.tags, *checked_tags(tags))) if tags or control.tags else (),
            label=None if label is None else checked_label(label),
            read=control.read,
            write=control.write,
            only_if_cached=control.only_if_cached,
            waits=waits,
            share_errors=share_errors,
            index=index,
            home=home,
            now_ms=int(self.clock.now()),
            leading=leading.get(),
        )

    @contextlib.contextmanager
    def renewing(self, leases: Sequence[Renewal]) -> Iterator[None]:
        """Keep *leases* while the code inside runs."""
        for lease in leases:
            self.renewals.add(lease)
        try:
            yield
        finally:
            for lease in leases:
                self.renewals.discard(lease)

    def with_words(self, held: Held, ttl: Duration | None, tags: Sequence[str]) -> Held:
        """Return *held* with the lifetime and tags that its owner decided at the end."""
        if ttl is None and not tags:
            return held
        wanted = held.wanted
        ttl_ms = wanted.ttl_ms if ttl is None else lifetime_ms(ttl)
        hashes = {*wanted.tags, *_hashes(checked_tags(tags))}
        return replace(held, wanted=replace(wanted, ttl_ms=ttl_ms, tags=tuple(sorted(hashes))))

    def holds(self, owner: object) -> bool:
        """Return whether this thread or task holds an unfinished lease."""
        return self._holders.get(owner, 0) > 0

    def hold(self, owner: object, held: Held) -> None:
        """Note that *owner* computes by itself, and keep its lease meanwhile."""
        self._holders[owner] = self._holders.get(owner, 0) + 1
        if held.grant is not None:
            self.renewals.add(held.grant.renewal(held.wanted))

    def leave(self, owner: object) -> None:
        """Note that *owner* leaves what it held to the background."""
        self._holders[owner] = max(self._holders.get(owner, 0) - 1, 0)

    def unhold(self, owner: object, held: Held) -> None:
        """Note that *owner* has finished; None if it has left before."""
        if owner is not None:
            self.leave(owner)
        if held.grant is not None:
            self.renewals.discard(held.grant.renewal(held.wanted))

    def orphan(self, owner: object, held: Held) -> None:
        """Take over a lease that was collected; called by the garbage collector, so it must not block."""
        if owner is not None:
            self.leave(owner)
        if held.flight is not None:
            self.state.flights.land(held.flight)
        if held.grant is not None:
            self.renewals.discard(held.grant.renewal(held.wanted))
            self._orphans.put(held)
            self.renewals.poke()

    def give_up(self, held: Held) -> None:
        """Share no more of a computation that goes on: who waits for it computes at once."""
        if held.flight is not None:
            self.state.flights.land(held.flight)
        if held.grant is not None:
            self.renewals.discard(held.grant.renewal(held.wanted))
            self.background.submit(partial(self._release, held, ""))

    def _bury(self) -> None:
        while not self._orphans.empty():
            self._release(self._orphans.get(), None)

    def _release(self, held: Held, text: str | None) -> None:
        if held.grant is not None:
            index, keys, args = Given(held.wanted, held.grant.holder, text).call
            with contextlib.suppress(BackendUnavailable):  # it ends by itself
                self._invoke(RELEASE, index, keys, args)

    def publish(self, held: Held) -> None:
        """Publish what is recorded of a flight, for followers in other processes."""
        if held.flight is not None and held.grant is not None:
            self.publisher.add(held, held.flight.tape)

    def unpublished(self, held: Held) -> Unsent:
        """Publish no more of a flight; return what followers elsewhere were not given, and the mark of the end."""
        unsent = self.publisher.take(held.flight.tape) if held.flight is not None else None
        return NOTHING_UNSENT if unsent is None else (unsent[0], [*unsent[1], END_MARK])

    def _publish(self, held: Held, before: int, chunks: list[bytes]) -> int:
        if held.grant is None:
            return 0
        keys, args = publish_call(held.wanted, held.grant, before, chunks)
        return self._invoke(PUBLISH, held.wanted.partition.index, keys, args)

    def _renew(self, renewal: Renewal) -> bool:
        keys = (renewal.key, renewal.running)
        return self._invoke(RENEW, renewal.partition, keys, (renewal.holder, renewal.lease_ms))

    def _invoke(self, script: Script[R], index: int, keys: tuple[bytes, ...], args: tuple[Arg, ...]) -> R:
        packed = pack_script(script, keys, args)
        try:
            held = (self.nodes[index] or self.topology.find(index)).held
            replies = held.exchange(packed, 1)
            if is_unknown_script(replies):
                replies = held.exchange(pack_load(script) + packed, 2)[1:]
            return answer(script, replies[0])
        except BackendUnavailable as error:
            self.failed(index, error)
            raise

    def flush_at_exit(self) -> None:
        """Add the last counters to the fleet's, if Redis answers."""
        self._exiting = True
        for part, node in zip(
            self.state.partitions, self.nodes, strict=False
        ):  # the last node is of no partition
            if node is not None and not node.breaker.troubled and (counters := self.state.counters.take()):
                with contextlib.suppress(BackendUnavailable):
                    node.held.exchange(self.pack_counters(part.index, counters), len(counters))
                return


def _hashes(tags: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(sorted({tag_hash(tag) for tag in tags}))


_alive: weakref.WeakSet[Namespace] = weakref.WeakSet()


def _after_fork() -> None:
    LISTENERS.start_anew()
    for namespace in list(_alive):
        namespace.after_fork()


def _at_exit() -> None:
    for namespace in list(_alive):
        namespace.flush_at_exit()


atexit.register(_at_exit)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
