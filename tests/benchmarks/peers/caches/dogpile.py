"""dogpile.cache on Redis, with its lock in Redis."""

from __future__ import annotations

from collections.abc import Callable

from dogpile.cache import make_region
from dogpile.cache.api import NO_VALUE

from tests.benchmarks.peers.peer import TTL_S, Peer


class Dogpile(Peer):
    packages = ("dogpile.cache", "redis")
    note = "pickle; no accounting; distributed_lock=True, which a hit does not take"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._region = make_region().configure(
            "dogpile.cache.redis",
            expiration_time=TTL_S,
            arguments={
                "url": url,
                "redis_expiration_time": 2 * TTL_S,
                "distributed_lock": True,
                "thread_local_lock": False,
            },
        )

    def store(self, number: int, text: str) -> None:
        self._region.set(f"dogpile:{number}", text)

    def hit(self, number: int) -> str | None:
        found = self._region.get(f"dogpile:{number}")
        return None if found is NO_VALUE else found

    def ask(self, name: str, compute: Callable[[], str]) -> object:
        return self._region.get_or_create(f"dogpile:{name}", compute)
