"""
The cache for a whole process: ``install`` and ``uninstall``.

The default transports of httpx and httpx2 are patched, so that clients count that were made before, and those that
frameworks make.  A library that is not imported yet is patched when it is: nothing is imported ahead of its users.

Only what an SDK sends is looked at (it says ``x-stainless-lang``): any other POST to a path that ends in /responses may
be somebody's write, and a hit would lose it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Final, Unpack

from askonce import Cache
from askonce.errors import ConfigurationError

from ._asyncio import Asyncio
from ._library import NAMES, library
from ._options import Choices, Options
from ._threads import Threads

_SDK: Final = "x-stainless-lang"


class _Installation:
    """One cache, and the classes that lead to it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._patched: list[tuple[type[Any], str, Any, Any]] = []
        self._finder = _Finder(self.patch)

    def begin(self) -> None:
        sys.meta_path.insert(0, self._finder)
        for name in NAMES:
            if (module := sys.modules.get(name)) is not None:
                self.patch(module)

    def patch(self, module: ModuleType) -> None:
        """Patch the transports of a library; a second time (``httpx2.alias_httpx()`` makes both one) changes nothing."""
        lib: Any = module
        if any(cls is lib.HTTPTransport for cls, *_ in self._patched):
            return
        made = library(module)
        self._replace(
            lib.HTTPTransport, "handle_request", functools.partial(_sync, Threads(made, self.options))
        )
        self._replace(
            lib.AsyncHTTPTransport,
            "handle_async_request",
            functools.partial(_asynchronous, Asyncio(made, self.options)),
        )

    def _replace(self, cls: type[Any], name: str, patch: Callable[[Any], Any]) -> None:
        original = getattr(cls, name)
        patched = patch(original)
        setattr(cls, name, patched)
        self._patched.append((cls, name, original, patched))

    def end(self) -> None:
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for cls, name, original, patched in self._patched:
            patched.askonce_installed = False  # it may be below somebody else's patch
            if getattr(cls, name) is patched:
                setattr(cls, name, original)
        self._patched.clear()


_installed: _Installation | None = None


def install(url_or_cache: str | Cache | None = None, **choices: Unpack[Choices]) -> Callable[[], None]:
    """
    Cache what every OpenAI or Anthropic client of this process asks; return a function that takes it back.

    For clients made before and after, by whomever.  Not for those on another transport than httpx's own (aiohttp):
    ``wrap`` them.

    ``replay="coalesced"`` gives stored streams in few large events; ``fresh_ids`` gives each hit ids of its own;
    ``usage_on_hit="zero"`` is for meters.  ``scope``: ``"api_key"`` or a function of the HTTP request, where callers
    must not share answers.  ``key_headers``: headers by which a gateway chooses the model.  See ``Choices``.

    A second time changes nothing; with another cache, or other words, it raises ConfigurationError.
    """
    global _installed  # noqa: PLW0603  what is patched is the process's
    options = Options.checked(url_or_cache, **choices)
    if _installed is None:
        _installed = _Installation(options)
        _installed.begin()
    elif not _installed.options.same(options):
        raise ConfigurationError(
            "another cache is installed already: call askonce_openai.uninstall() first, or wrap() single clients"
        )
    return functools.partial(_take_back, _installed)


def uninstall() -> None:
    """Take ``install`` back; without one nothing happens."""
    if _installed is not None:
        _take_back(_installed)


def _take_back(installation: _Installation) -> None:
    global _installed  # noqa: PLW0603  as above
    installation.end()
    if _installed is installation:
        _installed = None


def _sync(threads: Threads, original: Callable[[Any, Any], Any]) -> Any:
    @functools.wraps(original)
    def handle_request(self: Any, request: Any) -> Any:
        if not patched.askonce_installed or _SDK not in request.headers:
            return original(self, request)
        return threads.handle(request, functools.partial(original, self))

    patched: Any = handle_request
    patched.askonce_installed = True
    return patched


def _asynchronous(tasks: Asyncio, original: Callable[[Any, Any], Any]) -> Any:
    @functools.wraps(original)
    async def handle_async_request(self: Any, request: Any) -> Any:
        if not patched.askonce_installed or _SDK not in request.headers:
            return await original(self, request)
        return await tasks.handle(request, functools.partial(original, self))

    patched: Any = handle_async_request
    patched.askonce_installed = True
    return patched


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the libraries as others would, and has them patched once they are loaded."""

    def __init__(self, patch: Callable[[ModuleType], None]) -> None:
        self._patch = patch

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in NAMES:
            return None
        for finder in sys.meta_path:
            if finder is self or isinstance(finder, _Finder):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    _patch_once_loaded(spec.loader, self._patch)
                return spec
        return None


def _patch_once_loaded(loader: Any, patch: Callable[[ModuleType], None]) -> None:
    load = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        load(module)
        patch(sys.modules.get(module.__name__, module))

    loader.exec_module = exec_module  # of this loader alone: each spec has its own
