"""
Which server has which slot, and who finds out: a Redis Cluster's own map, or what the Sentinels say.

A map is read in the background when an exchange has failed, at most once a second: the call that failed does without
the cache, and no call but a process's first waits for a map.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.exceptions import RedisError, ResponseError

from .._loops import within
from ..errors import BackendUnavailable
from ..stats import Event
from .breaker import Breaker
from .commands import checked, pack
from .endpoint import Address, Cluster, Endpoint, Place, Sentinels
from .node import Node

_AT_MOST_EVERY_S: Final = 1.0


class Map(NamedTuple):
    """Who has each of the slots that were asked for, None where nobody has; and who may be asked the next time."""

    owners: Sequence[Address | None]
    members: Sequence[Address]
    sharded: bool = False  # whether channels can belong to a slot (Redis 7.0)


class Topology:
    """
    The servers of a namespace.

    ``nodes`` are those of the slots in the order given, None until they are known.  An item changes when its slot
    moves; the list stays, so that the hit path may read it without asking.
    """

    def __init__(
        self,
        place: Place,
        slots: Sequence[int],
        deadline: float,
        tell: Callable[[Event], object],
        learned: Callable[[bool], object] = lambda _: None,
        left: Callable[[int, Node], object] = lambda *_: None,
    ) -> None:
        self._place, self._slots, self._deadline = place, slots, deadline
        self._tell, self._learned, self._left = tell, learned, left
        self._members: Sequence[Address] = ()
        self._made: dict[Address, Node] = {}
        self._lock = threading.RLock()  # re-entrant: as in stats.Counters
        self._breaker = Breaker(place.label, tell)
        self._next = 0.0
        self._why = "no answer yet"
        self._reading: Future[None] = Future()
        self._reading.set_result(None)
        self.nodes: list[Node | None] = [None] * len(slots)
        if isinstance(place, Endpoint):
            node = self._made["", 0] = Node(place, deadline, tell)
            self.nodes = [node] * len(slots)

    @property
    def known(self) -> list[Node]:
        """All servers that this process has talked to."""
        return list(self._made.values())

    def find(self, index: int) -> Node:
        """Return the server of a slot, by its place; waits for the first map, at most a deadline."""
        if self.nodes[index] is None:
            with suppress(FutureTimeoutError):
                self.refresh().result(self._deadline)
        return self._found(index)

    async def afind(self, index: int) -> Node:
        """Do what ``find`` does without blocking the loop."""
        if self.nodes[index] is None:
            await within(self.refresh(), self._deadline, None)
        return self._found(index)

    def _found(self, index: int) -> Node:
        if (node := self.nodes[index]) is None:
            raise BackendUnavailable(f"{self._place.label}: no server is known: {self._why}")
        return node

    def refresh(self, *, answered: bool = False) -> Future[None]:
        """
        Read the map anew behind the caller, unless that was done a moment ago; return the latest reading.

        *answered*: some server did, so that there is reason to try even if nobody had the map the last time.
        """
        if isinstance(self._place, Endpoint):
            return self._reading
        with self._lock:
            now = time.monotonic()
            if self._reading.done() and now >= self._next and (answered or self._breaker.allows()):
                self._next = now + _AT_MOST_EVERY_S
                self._reading = Future()
                thread = threading.Thread(target=self._read, args=(self._reading,), name="askonce-topology")
                thread.daemon = True
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is shutting down
                    self._reading.set_result(None)
            return self._reading

    def _read(self, reading: Future[None]) -> None:
        try:
            self._adopt(self._ask())
        except Exception as error:  # noqa: BLE001  whatever came as a map: nobody would see a thread's error
            self._why = str(error)
            self._breaker.failed(self._why)
        else:
            self._breaker.succeeded()
        finally:
            reading.set_result(None)

    def _ask(self) -> Map:
        if isinstance(self._place, Sentinels):
            return ask_sentinels(self._place, self._slots, self._deadline)
        assert isinstance(self._place, Cluster)  # noqa: S101  one server is never asked
        return ask_cluster(self._place, self._members, self._slots, self._deadline)

    def _adopt(self, found: Map) -> None:
        self._members = found.members
        self._learned(found.sharded)
        for index, owner in enumerate(found.owners):
            if owner is not None:
                before, self.nodes[index] = self.nodes[index], self._node(owner, sharded=found.sharded)
                if before is not None and before is not self.nodes[index]:
                    self._left(index, before)
        # Who has left for good is forgotten, together with its connections.
        for address in self._made.keys() - set(found.members):
            del self._made[address]

    def _node(self, address: Address, *, sharded: bool) -> Node:
        if (node := self._made.get(address)) is None:
            assert not isinstance(self._place, Endpoint)  # noqa: S101  one server never moves
            endpoint = self._place.node.at(*address)
            node = self._made[address] = Node(endpoint, self._deadline, self._tell, sharded=sharded)
        return node


# --- a Redis Cluster --------------------------------------------------------------------------------------------


def ask_cluster(place: Cluster, members: Sequence[Address], slots: Sequence[int], deadline: float) -> Map:
    """Return the map that the first node to answer has; raise BackendUnavailable with why none did."""
    why = "no address"
    # Any order, so that processes do not all ask the same node; those of the last map first.
    asked = [*random.sample(members, len(members)), *(seed for seed in place.seeds if seed not in members)]
    for address in asked:
        endpoint = place.node.at(*address)
        try:
            # SHARDNUMSUB is as old as SPUBLISH: an error says that there is neither.
            ranges, channels = _ask(endpoint, deadline, ("CLUSTER", "SLOTS"), ("PUBSUB", "SHARDNUMSUB"))
            sharded = not isinstance(channels, ResponseError)
            return cluster_map(checked(ranges), slots, address[0], place.remap, sharded=sharded)
        except (RedisError, OSError, BackendUnavailable, ValueError) as error:
            why = f"{endpoint.label}: {error}"
    raise BackendUnavailable(why)


def cluster_map(
    ranges: Iterable[Any],
    slots: Sequence[int],
    asked: str,
    remap: Callable[[Address], Address] | None = None,
    *,
    sharded: bool,
) -> Map:
    """
    Return the map in an answer to CLUSTER SLOTS that came from the host *asked*.

    Raises ValueError if it has no slots at all.
    """
    owned: list[tuple[int, int, Address | None]] = []
    members: dict[Address, None] = {}
    for first, last, *nodes in ranges:
        addresses = [_announced(node[0], node[1], asked, remap) for node in nodes]
        members.update((address, None) for address in addresses if address is not None)
        owned.append((first, last, addresses[0] if addresses else None))
    if not owned:
        raise ValueError("the cluster has no slots")
    owners = [next((owner for first, last, owner in owned if first <= slot <= last), None) for slot in slots]
    return Map(owners, tuple(members), sharded)


def _announced(
    host: bytes | None, port: int, asked: str, remap: Callable[[Address], Address] | None
) -> Address | None:
    """Return where a node is: without a name at the host that was asked, and "?" is nowhere (since Redis 7.0)."""
    if host == b"?":
        return None
    address = (host.decode() if host else asked, port)
    return remap(address) if remap else address


# --- Sentinel ---------------------------------------------------------------------------------------------------


def ask_sentinels(place: Sentinels, slots: Sequence[int], deadline: float) -> Map:
    """Return where most of the Sentinels that answer say the master is; raise BackendUnavailable if none does."""
    why, said = "no address", Counter[tuple[str, int]]()
    for sentinel in place.seeds:
        try:
            (reply,) = _ask(sentinel, deadline, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", place.service))
            if checked(reply) is None:
                why = f"{sentinel.label}: it knows no master {place.service!r}"
                continue
            host, port = reply
            said[host.decode(), int(port)] += 1
        except (RedisError, OSError, BackendUnavailable, ValueError) as error:
            why = f"{sentinel.label}: {error}"
        if said and max(said.values()) * 2 > len(place.seeds):
            break
    if not said:
        raise BackendUnavailable(why)
    ((address, _),) = said.most_common(1)
    return Map([address] * len(slots), (address,))


def _ask(endpoint: Endpoint, deadline: float, *commands: tuple[str, ...]) -> list[Any]:
    connection: Any = endpoint.sync_pool(deadline, deadline).make_connection()
    try:
        connection.connect()
        connection.send_packed_command([b"".join(map(pack, commands))], check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
        return replies
    finally:
        connection.disconnect()
