"""The arguments of a cache, checked: enough to make it again in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ._wire.endpoint import Cluster, Place, from_client, from_environment, from_url
from .entry import UNIT
from .errors import ConfigurationError
from .keys import check_namespace
from .near import Near
from .policy import Duration, Size, seconds, size, whole
from .stats import Event

_MOST_ENTRIES: Final = 1_000_000_000
_MOST_PARTITIONS: Final = 1024
#: At least four for each of up to four masters; more of them are more to ask on a bump.
_IN_A_CLUSTER: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a cache, checked, and enough to make it again in another process."""

    url: str | None = field(repr=False)  # it may hold a password
    client: object = field(repr=False)
    namespace: str
    max_entries: int
    max_bytes: int
    partitions: int
    deadline: float
    strict: bool
    on_event: Callable[[Event], object] | None = None
    near: Near | None = None

    @classmethod
    def checked(
        cls,
        *,
        url: str | None,
        client: object,
        namespace: str,
        max_entries: int,
        max_bytes: Size,
        partitions: int | None,
        deadline: Duration,
        strict: bool,
        on_event: Callable[[Event], object] | None = None,
        near: Near | None = None,
    ) -> Settings:
        """Return the settings, or raise ConfigurationError with what was given and what is allowed."""
        if url is not None and client is not None:
            raise ConfigurationError("both url and client= were given; give one of them")
        whole("max_entries", max_entries, _MOST_ENTRIES)
        if near is not None and not isinstance(near, Near):
            raise ConfigurationError(
                f"near={near!r} is no Near; give askonce.Near(max_entries=1_000, ttl='30s'), or leave it out"
            )
        url = url if client is not None or url is not None else from_environment()
        count = _count(partitions, clustered=isinstance(_place(url, client), Cluster))
        if max_entries < count:
            raise ConfigurationError(
                f"max_entries={max_entries!r} is less than one for each of {count} partitions; give at least {count}, "
                "or fewer partitions="
            )
        bound = size("max_bytes", max_bytes)
        if bound < UNIT * 8 * count:
            raise ConfigurationError(
                f"max_bytes={max_bytes!r} holds no entry at all; give at least {UNIT * 8 * count}"
            )
        return cls(
            url=url,
            client=client,
            namespace=check_namespace(namespace),
            max_entries=max_entries,
            max_bytes=bound,
            partitions=count,
            deadline=seconds("deadline", deadline, at_least=0.001),
            strict=strict,
            on_event=on_event,
            near=near,
        )

    def place(self) -> Place:
        """Return where Redis is.  Connects to nothing."""
        return _place(self.url, self.client)


def _place(url: str | None, client: object) -> Place:
    return from_client(client) if client is not None else from_url(url or "")


def _count(partitions: int | None, *, clustered: bool) -> int:
    if partitions is None:
        return _IN_A_CLUSTER if clustered else 1
    return whole("partitions", partitions, _MOST_PARTITIONS, "number of parts")
