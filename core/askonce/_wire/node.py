"""One server, and all that this process holds towards it."""

from __future__ import annotations

from collections.abc import Callable

from ..stats import Event
from .borrowed import BorrowedHeld, BorrowedMultiplexers
from .breaker import Breaker
from .endpoint import Endpoint
from .held import Held
from .listener import LISTENERS
from .multiplexed import Multiplexers


class Node:
    """
    The breaker and the connections of one namespace to one server.

    The push connection is shared with other namespaces; ``sharded``: it hears channels that belong to a slot.
    """

    __slots__ = ("breaker", "endpoint", "held", "listener", "multiplexers")

    def __init__(
        self,
        endpoint: Endpoint,
        deadline: float,
        tell: Callable[[Event], object],
        *,
        sharded: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.breaker = Breaker(endpoint.label, tell)
        self.held: Held | BorrowedHeld
        self.multiplexers: Multiplexers | BorrowedMultiplexers
        if endpoint.own is None:
            self.held = Held(endpoint, deadline, self.breaker)
            self.multiplexers = Multiplexers(endpoint, deadline, self.breaker)
        else:
            self.held = BorrowedHeld(endpoint.own, endpoint.label, self.breaker)
            self.multiplexers = BorrowedMultiplexers(self.held)
        self.listener = LISTENERS.of(endpoint, deadline, sharded=sharded)
