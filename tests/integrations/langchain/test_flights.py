"""Of all who ask the same at the same time one calls the model, and nobody ever waits for himself."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.outputs import Generation

from askonce import Policy
from askonce_langchain import AskonceCache
from askonce_langchain._calls import ModelCall, running

from .waiting import PATIENCE, auntil, until


@pytest.fixture
def cache(url: str) -> AskonceCache:
    return AskonceCache(url, deadline=2.0)  # a busy machine is no fault of Redis


def missed(cache: AskonceCache, count: int) -> Callable[[], bool]:
    """Return whether so many lookups have found nothing: they lead, or wait."""
    return lambda: cache.cache.stats().misses >= count


class TestOneCall:
    async def test_tasks(self, provider: Any, cache: AskonceCache) -> None:
        """``abatch`` of equal questions: one call."""

        async def gate(_: int) -> None:
            await auntil(missed(cache, 8))

        provider.agate = gate
        answers = await provider.chat(cache).abatch(["q"] * 8)
        assert {answer.text for answer in answers} == {"answer 1-0"}
        assert provider.calls == 1
        sources = [answer.response_metadata.get("askonce", {}).get("source") for answer in answers]
        assert sorted(map(str, sources)) == ["None"] + ["coalesced"] * 7

    def test_threads(self, provider: Any, cache: AskonceCache) -> None:
        """So do threads: ``batch`` of equal questions."""
        provider.gate = lambda _: until(missed(cache, 8))
        answers = provider.chat(cache).batch(["q"] * 8, {"max_concurrency": 8})
        assert {answer.text for answer in answers} == {"answer 1-0"}
        assert provider.calls == 1

    async def test_both(self, provider: Any, cache: AskonceCache) -> None:
        """A task waits for a thread, and is served what the thread got."""

        async def ask() -> Any:
            return await model.ainvoke("q")

        model = provider.chat(cache)
        provider.gate = lambda _: until(missed(cache, 2))
        thread = asyncio.create_task(asyncio.to_thread(model.invoke, "q"))
        await auntil(lambda: provider.calls)
        assert (await ask()).text == (await thread).text == "answer 1-0"
        assert provider.calls == 1

    async def test_an_answer_that_is_not_kept_is_shared(self, provider: Any, cache: AskonceCache) -> None:
        """Those who wait for an answer that is refused get it, each an object of its own; the next one asks anew."""

        async def gate(_: int) -> None:
            await auntil(missed(cache, 4))

        def cut(body: dict[str, Any], number: int) -> dict[str, Any]:
            whole: dict[str, Any] = provider._answer(body, number)
            whole["choices"][0]["finish_reason"] = "length"
            return whole

        provider.respond, provider.agate = cut, gate
        model = provider.chat(cache)
        answers = await model.abatch(["q"] * 4)
        assert [answer.text for answer in answers] == ["answer 1-0"] * 4
        assert len({id(answer.response_metadata) for answer in answers}) == 4
        assert cache.cache.stats().rejection_reasons == {"truncated": 1}
        provider.agate = None
        assert (await model.ainvoke("q")).text == "answer 2-0"


class TestNobodyWaitsForHimself:
    async def test_the_same_twice_in_a_task(self, provider: Any, cache: AskonceCache) -> None:
        """A completion model looks up all its prompts before it asks for any."""
        async with asyncio.timeout(PATIENCE):
            result = await provider.completion(cache).agenerate(["a", "a"])
        assert [len(generations) for generations in result.generations] == [1, 1]
        assert provider.calls == 1

    def test_the_same_twice_in_a_thread(self, provider: Any, cache: AskonceCache) -> None:
        """So does the blocking one."""
        result = provider.completion(cache).generate(["a", "a"])
        assert [len(generations) for generations in result.generations] == [1, 1]
        assert provider.calls == 1

    async def test_crossed_tasks(self, provider: Any, cache: AskonceCache) -> None:
        """A,B in one task and B,A in another: each calls for what the other leads."""
        model = provider.completion(cache)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(model.agenerate(["a", "b"]), model.agenerate(["b", "a"]))
        assert provider.calls <= 2

    def test_crossed_threads(self, provider: Any, cache: AskonceCache) -> None:
        """A,B in one thread and B,A in another, each between the lookups of the other."""
        both, called = threading.Barrier(2, timeout=PATIENCE), threading.Barrier(2, timeout=PATIENCE)
        provider.gate = lambda _: called.wait()
        model = provider.completion(cache)
        with ThreadPoolExecutor(2) as pool:
            crossed = [Prompts(both.wait, ["a", "b"]), Prompts(both.wait, ["b", "a"])]
            list(pool.map(model.generate, crossed, timeout=PATIENCE))
        assert sorted(request["prompt"] for request in provider.requests) == [["a", "b"], ["b", "a"]]

    def test_crossed_processes(self, provider: Any, cache: AskonceCache, url: str) -> None:
        """A,B in one process and, between its two lookups, B,A in another."""
        started: list[subprocess.Popen[str]] = []

        def start() -> None:
            started.append(other(url, "completion", "b", "a"))
            assert said(started[0]) == "called\n"

        provider.completion(cache).generate(Prompts(start, ["a", "b"]))
        rest, _ = started[0].communicate("go on\n", timeout=PATIENCE)
        assert "done" in rest
        assert provider.requests[0]["prompt"] == ["a", "b"]


class Prompts(list[str]):
    """Prompts of a completion model; *then* is called when the first was looked up and the second was not."""

    def __init__(self, then: Callable[[], object], prompts: list[str]) -> None:
        super().__init__(prompts)
        self._then = then

    def __iter__(self) -> Iterator[str]:
        for number, prompt in enumerate(super().__iter__()):
            call = running.get()
            if number == 1 and call is not None and call.looked_up(self[0]) and not call.looked_up(self[1]):
                self._then()
            yield prompt


class TestWhenTheLeaderFails:
    async def test_task(self, provider: Any, cache: AskonceCache) -> None:
        """Its error is its own; of those who wait one calls, the rest wait for that."""

        async def gate(number: int) -> None:
            if number == 1:
                await auntil(missed(cache, 5))

        provider.agate, provider.failing = gate, {1}
        model = provider.chat(cache)
        answers = await asyncio.gather(*[model.ainvoke("q") for _ in range(5)], return_exceptions=True)
        assert sum(isinstance(answer, openai.APIError) for answer in answers) == 1
        assert {answer.text for answer in answers if not isinstance(answer, BaseException)} == {"answer 2-0"}
        assert provider.calls == 2

    def test_thread(self, provider: Any, cache: AskonceCache) -> None:
        """So it is among threads."""

        def gate(number: int) -> None:
            if number == 1:
                until(missed(cache, 5))

        provider.gate, provider.failing = gate, {1}
        answers = provider.chat(cache).batch(["q"] * 5, {"max_concurrency": 5}, return_exceptions=True)
        assert sum(isinstance(answer, openai.APIError) for answer in answers) == 1
        assert provider.calls == 2

    @pytest.mark.parametrize("kind", ["chat", "completion"])
    def test_it_may_ask_again(self, provider: Any, cache: AskonceCache, kind: str) -> None:
        """A failed call leaves nothing behind: the same thread leads the next, and is joined."""
        provider.failing = {1}
        model = getattr(provider, kind)(cache)
        with pytest.raises(openai.APIError):
            model.invoke("q")
        provider.gate = lambda _: until(missed(cache, 3))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(model.invoke, "q")
            model.invoke("q")
            other.result(PATIENCE)
        assert provider.calls == 2

    @pytest.mark.parametrize("kind", ["chat", "completion"])
    async def test_it_is_cancelled(self, provider: Any, cache: AskonceCache, kind: str) -> None:
        """One of those who wait takes over."""
        stuck = asyncio.Event()

        async def gate(number: int) -> None:
            if number == 1:
                stuck.set()
                await asyncio.Event().wait()

        provider.agate = gate
        model = getattr(provider, kind)(cache)
        leader = asyncio.create_task(model.ainvoke("q"))
        await stuck.wait()
        waiting = [asyncio.create_task(model.ainvoke("q")) for _ in range(3)]
        await auntil(missed(cache, 4))
        leader.cancel()
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(*waiting)
        assert leader.cancelled()
        assert len({getattr(answer, "text", answer) for answer in answers}) == 1
        assert provider.calls == 2

    async def test_a_waiter_is_cancelled(self, provider: Any, cache: AskonceCache) -> None:
        """The others do not notice."""
        go_on = asyncio.Event()

        async def gate(_: int) -> None:
            await go_on.wait()

        provider.agate = gate
        model = provider.chat(cache)
        tasks = [asyncio.create_task(model.ainvoke("q")) for _ in range(4)]
        await auntil(missed(cache, 4))
        await auntil(lambda: provider.calls)
        leader = next(task for task in tasks if task.get_stack())
        waiter = tasks[-1]
        assert waiter is not leader
        waiter.cancel()
        go_on.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers].count(asyncio.CancelledError) == 1
        assert provider.calls == 1

    def test_its_process_is_killed(self, provider: Any, url: str) -> None:
        """The lease ends, and whoever waits calls."""
        cache = AskonceCache(url, deadline=2.0, policy=Policy(lease=0.3))
        with other(url, "chat", "q") as process:
            assert said(process) == "called\n"
            os.kill(process.pid, signal.SIGKILL)
            assert provider.chat(cache).invoke("q").text == "answer 1-0"


class TestNothingIsLeftBehind:
    def test_its_loop_is_gone(self, provider: Any, cache: AskonceCache) -> None:
        """A call that is collected with its loop hands over, and says nothing."""
        loop = asyncio.new_event_loop()

        async def gate(_: int) -> None:
            await asyncio.Event().wait()

        provider.agate = gate
        model = provider.chat(cache)
        call = loop.create_task(model._agenerate_with_cache([HumanMessage("q")]))
        loop.run_until_complete(auntil(lambda: provider.calls))
        unraisable: list[Any] = []
        sys.unraisablehook, hook = unraisable.append, sys.unraisablehook
        try:
            call.get_coro().close()
        finally:
            sys.unraisablehook = hook
        assert not unraisable
        call._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own
        del call
        loop.close()
        gc.collect()
        assert len(cache.cache._namespace.state.flights) == 0
        assert model.invoke("q").text == "answer 2-0"

    async def test_after_many_calls(self, provider: Any, cache: AskonceCache) -> None:
        """Whether calls return, fail or are cancelled, nothing of them is kept."""

        async def gate(number: int) -> None:
            if number > 40:
                await asyncio.Event().wait()

        def kept() -> int:
            gc.collect()
            return sum(type(one) is ModelCall for one in gc.get_objects())

        provider.agate, provider.failing = gate, set(range(20, 41))
        model, before = provider.chat(cache), kept()
        answers = await asyncio.gather(*[model.ainvoke(f"{n}") for n in range(40)], return_exceptions=True)
        assert sum(isinstance(answer, BaseException) for answer in answers) == 21
        stuck = [asyncio.create_task(model.ainvoke(f"stuck {n}")) for n in range(5)]
        await auntil(lambda: provider.calls == 45)
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        del answers, stuck, task
        assert running.get() is None
        # Of 45.  The last may live on in the context of a connection's task, or in a traceback.
        assert kept() - before < 10
        assert len(cache.cache._namespace.state.flights) == 0


class TestWithoutHooks:
    """LangChain awaits a chat model in a task of its own, whose end tells all."""

    @pytest.fixture
    def cache(self, url: str) -> AskonceCache:
        return AskonceCache(url, hooks=False, deadline=2.0)

    async def test_one_call(self, provider: Any, cache: AskonceCache) -> None:
        """Equal questions of several tasks: one call."""

        async def gate(_: int) -> None:
            await auntil(missed(cache, 8))

        provider.agate = gate
        answers = await provider.chat(cache).abatch(["q"] * 8)
        assert {answer.text for answer in answers} == {"answer 1-0"}
        assert provider.calls == 1

    @pytest.mark.parametrize("how", ["fails", "is cancelled"])
    async def test_the_leader(self, provider: Any, cache: AskonceCache, how: str) -> None:
        """However it ends, one of those who wait calls."""
        waiting = asyncio.Event()

        async def gate(number: int) -> None:
            if number == 1:
                await waiting.wait()

        provider.agate, provider.failing = gate, {1} if how == "fails" else set()
        model = provider.chat(cache)
        leader = asyncio.create_task(model.ainvoke("q"))
        await auntil(lambda: provider.calls)
        others = [asyncio.create_task(model.ainvoke("q")) for _ in range(3)]
        await auntil(missed(cache, 4))
        if how == "fails":
            waiting.set()
        else:
            leader.cancel()
        async with asyncio.timeout(PATIENCE):
            answers = await asyncio.gather(leader, *others, return_exceptions=True)
        assert isinstance(answers[0], openai.APIError | asyncio.CancelledError)
        assert [answer.text for answer in answers[1:] if not isinstance(answer, BaseException)] == [
            "answer 2-0"
        ] * 3
        assert provider.calls == 2

    async def test_the_others_just_look(self, provider: Any, cache: AskonceCache) -> None:
        """The task of a completion model is its caller's, and may never end: nobody waits for it."""
        provider.failing = {1}
        model = provider.completion(cache)
        with pytest.raises(openai.APIError):
            await model.ainvoke("q")
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.create_task(model.ainvoke("q")) == "text 2-0"


class TestWhoIsNotSeen:
    def test_a_lookup_inside_a_call(self, provider: Any, cache: AskonceCache) -> None:
        """What a model itself looks up and stores while it is called is none of the call's own."""
        inner: list[Any] = []

        def gate(_: int) -> None:
            inner.append(cache.lookup("p", "l"))
            cache.update("p", "l", [Generation(text="x")])
            inner.append(cache.lookup("p", "l"))

        provider.gate = gate
        model = provider.chat(cache)
        assert model.invoke("q").text == model.invoke("q").text == "answer 1-0"
        assert inner == [None, [Generation(text="x")]]

    def test_a_lookup_of_ones_own_leads_nothing(self, cache: AskonceCache) -> None:
        """Who calls ``lookup`` without a model may never call ``update``: nobody waits for him."""
        assert cache.lookup("p", "l") is None
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(cache.lookup, "p", "l").result(PATIENCE) is None


PROGRAM = """
import sys
from askonce import Policy
from askonce_langchain import AskonceCache
from tests.integrations.langchain.conftest import Provider

def gate(_):
    print("called", flush=True)
    sys.stdin.readline()

provider = Provider()
provider.gate = gate
url, kind, *prompts = sys.argv[1:]
model = getattr(provider, kind)(AskonceCache(url, deadline=2.0, policy=Policy(lease=0.3)))
if kind == "chat":
    model.invoke(prompts[0])
else:
    model.generate(prompts)
print("done", flush=True)
"""


def other(url: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that says when it has called the model, and waits for a line before it has the answer."""
    command = [sys.executable, "-c", PROGRAM, url, *arguments]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)


def said(process: subprocess.Popen[str]) -> str:
    """Return the next line that *process* says."""
    assert process.stdout is not None
    return process.stdout.readline()
