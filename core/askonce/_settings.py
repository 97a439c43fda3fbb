"""The arguments of a cache, checked: enough to make it again in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ._wire.endpoint import Endpoint, from_client, from_environment, from_url
from .entry import UNIT
from .errors import ConfigurationError
from .keys import check_namespace
from .near import Near
from .policy import Duration, Size, seconds, size
from .stats import Event

_MOST_ENTRIES: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The arguments of a cache, checked, and enough to make it again in another process."""

    url: str | None = field(repr=False)  # it may hold a password
    client: object = field(repr=False)
    namespace: str
    max_entries: int
    max_bytes: int
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
        deadline: Duration,
        strict: bool,
        on_event: Callable[[Event], object] | None = None,
        near: Near | None = None,
    ) -> Settings:
        """Return the settings, or raise ConfigurationError with what was given and what is allowed."""
        if url is not None and client is not None:
            raise ConfigurationError("both url and client= were given; give one of them")
        if (
            isinstance(max_entries, bool)
            or not isinstance(max_entries, int)
            or not 1 <= max_entries <= _MOST_ENTRIES
        ):
            raise ConfigurationError(
                f"max_entries={max_entries!r} is no bound; give a whole number from 1 to {_MOST_ENTRIES}"
            )
        if near is not None and not isinstance(near, Near):
            raise ConfigurationError(
                f"near={near!r} is no Near; give askonce.Near(max_entries=1_000, ttl='30s'), or leave it out"
            )
        bound = size("max_bytes", max_bytes)
        if bound < UNIT * 8:
            raise ConfigurationError(
                f"max_bytes={max_bytes!r} holds no entry at all; give at least {UNIT * 8}"
            )
        return cls(
            url=url if client is not None or url is not None else from_environment(),
            client=client,
            namespace=check_namespace(namespace),
            max_entries=max_entries,
            max_bytes=bound,
            deadline=seconds("deadline", deadline, at_least=0.001),
            strict=strict,
            on_event=on_event,
            near=near,
        )

    def endpoint(self) -> Endpoint:
        """Return where Redis is.  Connects to nothing."""
        return from_client(self.client) if self.client is not None else from_url(self.url or "")
