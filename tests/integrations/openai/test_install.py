"""install: every client of the process, made before or after; what is none of its business; what is not imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import openai
import pytest
from tests.integrations.openai.kit import LIBRARIES, ask, entries

import askonce_openai
from askonce import Cache, ConfigurationError


def plain(provider, cls=openai.OpenAI, **kwargs):
    return cls(api_key="k", base_url=provider.url + "/v1", **kwargs)


async def test_clients_made_before_and_after(provider, cache):
    """One cache for threads and asyncio; undo ends it, for both."""
    before = plain(provider)
    undo = askonce_openai.install(cache)
    first = ask(before)
    assert ask(plain(provider)) == first
    async with plain(provider, openai.AsyncOpenAI) as made:
        assert await ask(made) == first
        assert provider.calls["chat"] == 1
        undo()
        assert await ask(made) != first
    assert ask(before) != first
    assert provider.calls["chat"] == 3


def test_the_clients_of_the_module(provider, cache, monkeypatch):
    monkeypatch.setattr(openai, "api_key", "k")
    monkeypatch.setattr(openai, "base_url", provider.url + "/v1/")
    monkeypatch.setattr(openai, "_client", None, raising=False)
    askonce_openai.install(cache)
    first, second = (
        openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        for _ in range(2)
    )
    assert first == second
    assert provider.calls["chat"] == 1


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_no_sdk_sends_is_left_alone(provider, cache, name):
    """A POST that ends in /responses may be somebody's write: a hit would lose it."""
    askonce_openai.install(cache)
    lib = pytest.importorskip(name)
    body = {"model": "m", "input": "x"}
    answers = [lib.post(provider.url + "/forms/7/responses", json=body) for _ in range(2)]
    assert answers[0].json() != answers[1].json()
    assert provider.calls["foreign"] == 2
    assert "cache-status" not in answers[0].headers


def test_a_second_time_changes_nothing_and_another_cache_is_refused(provider, cache, url):
    askonce_openai.install(cache)
    askonce_openai.install(cache)
    with pytest.raises(ConfigurationError, match="uninstall"):
        askonce_openai.install(Cache(url, namespace="another"))
    askonce_openai.uninstall()
    askonce_openai.uninstall()
    undo = askonce_openai.install(Cache(url, namespace="another", deadline=5.0))
    assert ask(plain(provider)) == ask(plain(provider))
    undo()


def test_install_and_wrap_together_cache_once(provider, cache, client, url):
    """The one nearer to the SDK."""
    with Cache(url, namespace="installed", deadline=5.0) as installed:
        askonce_openai.install(installed)
        made = client()
        assert ask(made) == ask(made)
        assert (entries(cache), entries(installed)) == (1, 0)
        assert installed.stats().bypassed == 0


def test_it_may_be_below_another_patch(provider, cache, lib, monkeypatch):
    """Taken back, it leaves the other one where it is."""
    original = lib.HTTPTransport.handle_request
    askonce_openai.install(cache)
    ours = lib.HTTPTransport.handle_request

    def others(self, request):
        return ours(self, request)

    monkeypatch.setattr(lib.HTTPTransport, "handle_request", others)
    made = plain(provider)
    assert ask(made) == ask(made)
    askonce_openai.uninstall()
    assert lib.HTTPTransport.handle_request is others
    assert ask(made) != ask(made)
    monkeypatch.undo()
    lib.HTTPTransport.handle_request = original


SCRIPT = """
    import sys
    import askonce_openai
    assert not {"httpx", "httpx2", "openai", "anthropic"} & set(sys.modules), sys.modules
    askonce_openai.install("%(url)s")
    assert not {"httpx", "httpx2", "openai", "anthropic"} & set(sys.modules), sys.modules
    %(then)s
    from openai import OpenAI
    answers = []
    for _ in range(2):
        client = OpenAI(api_key="k", base_url="%(provider)s/v1", **arguments)
        raw = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "hi"}]
        )
        answers.append(raw)
    assert answers[0].headers["cache-status"] == "askonce; fwd=miss", answers[0].headers
    assert answers[1].headers["cache-status"].startswith("askonce; hit"), answers[1].headers
    assert answers[0].parse() == answers[1].parse()
    askonce_openai.uninstall()
    assert not [f for f in sys.meta_path if type(f).__module__.startswith("askonce")]
"""
OTHER = "httpx" if openai.VERSION.startswith("3") else "httpx2"


@pytest.mark.parametrize(
    "then",
    [
        "arguments = {}",
        f"import {OTHER}; arguments = {{'http_client': {OTHER}.Client()}}",
        "import httpx2; httpx2.alias_httpx(); arguments = {}",
        f"sys.modules['{OTHER}'] = None; arguments = {{}}",  # as if it were not installed
    ],
    ids=["imported later", "the other library", "both one", "one of them"],
)
def test_libraries_that_are_imported_later(provider, url, then):
    """Nothing is imported ahead of its users, by import or by install."""
    script = textwrap.dedent(SCRIPT) % {"url": url, "provider": provider.url, "then": then}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert provider.calls["chat"] == 1


def test_with_no_library_at_all(url):
    """Importing works, and so does installing; a ready-made client says what is missing."""
    script = f"""
        import sys
        for name in ("httpx", "httpx2", "openai", "anthropic"):
            sys.modules[name] = None
        import askonce_openai
        from askonce import ConfigurationError
        askonce_openai.install("{url}")()
        try:
            askonce_openai.http_client("{url}")
        except (ConfigurationError, ValueError) as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "askonce[openai]" in done.stdout
