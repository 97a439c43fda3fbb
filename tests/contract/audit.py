"""Reads the books of a namespace as a stranger does, and compares them with the entries."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from askonce.keys import Names, partition_tags

OVERHEAD, UNIT, EPOCH = 384, 64, 1_704_067_200
_SCRIPT = Path(__file__).with_name("audit.lua").read_text("utf-8")


@dataclass(frozen=True)
class Books:
    """Both books, read in one step."""

    counted: int  # units, as the books say
    summed: int  # units, member by member
    in_x: int
    in_l: int
    only_x: int
    only_l: int


@dataclass(frozen=True)
class Entries:
    """The books compared with the entries; true only while nobody writes."""

    dead: int  # recorded to live on, and there is no entry
    unrecorded: int  # an entry that is not recorded, and that somebody could ask for
    wrong: int  # recorded with another size than the entry has


def units(length: int) -> int:
    """Return the units that an entry of *length* stored bytes counts."""
    return math.ceil((length + OVERHEAD) / UNIT)


class Auditor:
    """Audits one namespace of one partition."""

    def __init__(
        self, client: redis.Redis | redis.RedisCluster, namespace: str, tag: int | None = None
    ) -> None:
        self.client = client
        self.names = Names(namespace, partition_tags(namespace, 1)[0] if tag is None else tag)
        self._script: Any = client.register_script(_SCRIPT)

    def books(self) -> Books:
        """Return both books, read in one step."""
        return Books(*self._script(keys=[self.names.l, self.names.x]))

    def entries(self) -> Entries:
        """Compare every entry with its record, graves excluded: they are in no book."""
        names = self.names
        records = [
            (m, int(score)) for m, score in self.client.zrange(names.x, 0, -1, withscores=True) if m != b"#"
        ]
        recorded = {member: score % 2**22 for member, score in records}
        generation = (self.client.get(names.c) or b"").partition(b":")[0] + b":"
        lengths = {}
        for key in self.client.scan_iter(match=names.e + b"*", count=1000):
            if (length := self.client.strlen(key)) > 48:
                lengths[key[len(names.e) :]] = length
        # The books round up to seconds: what they let end within this one may have ended.
        soon = self.client.time()[0] - EPOCH + 1
        return Entries(
            dead=sum(score >> 22 > soon and member not in lengths for member, score in records),
            unrecorded=sum(member.startswith(generation) for member in lengths.keys() - recorded.keys()),
            wrong=sum(
                recorded[member] != units(lengths[member]) for member in recorded.keys() & lengths.keys()
            ),
        )
