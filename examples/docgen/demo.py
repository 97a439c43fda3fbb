"""The demo: sets the stage (model, Redis, code, workers), plays the rounds, reads the meters."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from rich.console import Console

from askonce import BackendUnavailable, Cache
from examples import standin
from examples.docgen.fleet import Fleet
from examples.docgen.numbers import Meters, Result, result
from examples.docgen.pages import write_pages
from examples.docgen.plan import ROUNDS, Round, deal, jobs_for
from examples.docgen.progress import Ticker
from examples.docgen.records import Done, Provider, Workplace
from examples.docgen.sources import Function, WorkingTree
from examples.docgen.worker import open_cache

# Cleared before and after: on a Redis that others use too, nothing else is touched.
NAMESPACE = "docgen-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What can be asked for on the command line."""

    live: bool = False
    workers: int = 4
    functions: int = 24
    seed: int = 7
    latency: tuple[float, float] = (0.2, 0.8)
    error_rate: float = 0.03
    url: str | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class _Model:
    """The model that is asked, and what it says of how often it was: nothing, if it is the real one."""

    provider: Provider
    stats: Callable[[], standin.Stats] | None


@dataclass(slots=True)
class _Stage:
    model: _Model
    cache: Cache
    fleet: Fleet
    tree: WorkingTree
    functions: list[Function]
    dice: Random


def run(settings: Settings, console: Console) -> list[Result]:
    """All rounds, one after the other; leaves nothing behind but the pages, if they were asked for."""
    with _stage(settings, console) as stage:
        results, pages = [], list[Done]()
        for each in ROUNDS:
            played, pages = _play(stage, each, settings, console)
            results.append(played)
        if settings.out is not None:
            written = write_pages(settings.out, pages)
            console.print(f"{len(written)} pages are in {settings.out}")
    return results


@contextmanager
def _stage(settings: Settings, console: Console) -> Iterator[_Stage]:
    with ExitStack() as stack:
        # The embedded server ends by itself when its folder is gone, and may write there until then.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory("-docgen", ignore_cleanup_errors=True)))
        url = settings.url or f"embedded://{folder / 'redis'}"
        model = stack.enter_context(_model(settings))
        cache = stack.enter_context(open_cache(url, NAMESPACE))
        cache.clear()  # raises without a Redis: the application would do without, a demo of the cache cannot
        stack.callback(cache.clear)
        tree = WorkingTree.of_standard_library(folder / "code")
        functions = tree.functions(settings.functions)
        place = Workplace(url, NAMESPACE, model.provider, tree.root)
        fleet = stack.enter_context(Fleet(settings.workers, place))
        console.print(f"starting {settings.workers} worker processes ...", style="dim", highlight=False)
        fleet.wait_until_ready()
        console.print(f"They explain {len(functions)} functions of the standard library.", highlight=False)
        yield _Stage(model, cache, fleet, tree, functions, Random(settings.seed))


@contextmanager
def _model(settings: Settings) -> Iterator[_Model]:
    if settings.live:
        yield _Model(Provider(os.environ["OPENAI_API_KEY"]), None)
        return
    with standin.start(
        seed=settings.seed, latency=settings.latency, error_rate=settings.error_rate
    ) as running:
        yield _Model(Provider("stand-in", running.base_url), running.stats)


def _play(stage: _Stage, each: Round, settings: Settings, console: Console) -> tuple[Result, list[Done]]:
    console.print(f"\n[bold]{each.title}[/]: {each.story}", highlight=False)
    if each.edits:
        for edit in stage.tree.edit(stage.dice, stage.functions):
            console.print(f"  {edit}", style="dim", highlight=False)
        stage.functions = stage.tree.as_they_are_now(stage.functions)
    jobs = jobs_for(stage.functions, each.prompt_version)
    hands = deal(jobs * each.passes, settings.workers, stage.dice)
    before, began, done = _read(stage), time.perf_counter(), list[Done]()
    with Ticker(console, each.title, sum(map(len, hands))) as ticker:
        for ended in stage.fleet.do(hands):
            ticker.tick(ended)
            done.append(ended)
    seconds = time.perf_counter() - began
    calls = [call for ended in done for call in ended.calls]
    failures = [f"{each.title}: {ended.error}" for ended in done if ended.error]
    after = _read(stage, computed=sum(call.computed for call in calls))
    return result(each.title, calls, failures=failures, seconds=seconds, before=before, after=after), done


def _read(stage: _Stage, *, computed: int = 0) -> Meters:
    """The meters now. `computed` stands in for a model that does not tell: our own count of this round."""
    usage = stage.cache.usage()
    if not usage.known:
        raise BackendUnavailable(f"{stage.cache!r} does not answer")
    stats = stage.model.stats() if stage.model.stats is not None else standin.Stats(calls=computed)
    return Meters(
        reached=stats.calls, refused=sum(stats.errors.values()), entries=usage.entries, bytes=usage.bytes
    )
