"""One worker process: takes lists of jobs, asks the application, reports each job as it ends.

The process that reports imports this module too, to start workers; so it imports no framework but in `work`.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing.queues import Queue
from typing import TypeAlias

from askonce import Cache, Policy
from examples.docgen.records import Done, Job, Ready, Workplace

#: Lists of jobs to do; None ends the worker.
Tasks: TypeAlias = "Queue[list[Job] | None]"
Reports: TypeAlias = "Queue[Ready | Done]"


def open_cache(url: str, namespace: str) -> Cache:
    """The cache that all workers share: the same URL and namespace make it one."""
    # A long lifetime, because the key holds all that an answer depends on; the bounds keep the rest in check.
    # Half a second for Redis: more processes than cores make pauses that are no outage.
    return Cache(
        url,
        namespace=namespace,
        policy=Policy.long(),
        max_entries=10_000,
        max_bytes="64mb",
        deadline="500ms",
    )


def work(number: int, place: Workplace, tasks: Tasks, reports: Reports) -> None:
    """The life of one worker."""
    _stay_with_parent()
    from examples.docgen.application import Documenter  # noqa: PLC0415  (see above)
    from examples.docgen.job import do  # noqa: PLC0415
    from examples.docgen.sources import WorkingTree  # noqa: PLC0415

    with open_cache(place.redis_url, place.namespace) as cache:
        documenter = Documenter(cache, place.provider, WorkingTree(place.source_tree))
        reports.put(Ready(number))
        while (jobs := tasks.get()) is not None:
            for job in jobs:
                reports.put(do(documenter, job))


def _stay_with_parent() -> None:
    """End when the parent ends us, or without a word when it is gone; Ctrl-C is for the parent to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
