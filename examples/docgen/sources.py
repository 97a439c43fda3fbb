"""The code that is documented: functions of the standard library, in a working tree that can be edited."""

import ast
import hashlib
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

# Plain Python, with docstrings, in every version and on every platform.
MODULES = ("textwrap", "statistics", "heapq", "shlex", "fnmatch", "colorsys", "posixpath", "linecache")
_LINES = range(8, 60)  # shorter says nothing, longer fills the prompt
_USES_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Function:
    """A function as it stands in the working tree now."""

    path: str
    name: str
    code: str

    @property
    def sha(self) -> str:
        """The code's hash: another one as soon as one character of the function differs."""
        return hashlib.sha256(self.code.encode()).hexdigest()[:16]

    @property
    def lines(self) -> int:
        """How long it is."""
        return len(self.code.splitlines())


@dataclass(frozen=True, slots=True)
class WorkingTree:
    """A folder of Python files that all workers read and a developer edits."""

    root: Path

    @classmethod
    def of_standard_library(cls, root: Path) -> "WorkingTree":
        """A fresh copy of some modules of the Python that runs this."""
        root.mkdir(parents=True, exist_ok=True)
        for module in map(importlib.import_module, MODULES):
            (root / f"{module.__name__}.py").write_text(inspect.getsource(module), encoding="utf-8")
        return cls(root)

    def functions(self, limit: int) -> list[Function]:
        """The first public functions of each file, taken in turn, so that every file has its share."""
        per_file = [[f for f in self._functions_of(path) if f.lines in _LINES] for path in self._files()]
        longest = max(map(len, per_file), default=0)
        in_turn = [functions[i] for i in range(longest) for functions in per_file if i < len(functions)]
        return in_turn[:limit]

    def as_they_are_now(self, functions: list[Function]) -> list[Function]:
        """The same functions, read again from the files."""
        now = {(f.path, f.name): f for path in self._files() for f in self._functions_of(path)}
        return [now[function.path, function.name] for function in functions]

    def uses(self, name: str) -> str:
        """The lines of the tree that mention this name, one a line, as ``path:line: code``."""
        word = re.compile(rf"\b{re.escape(name)}\b")
        found = [
            f"{path.name}:{number}: {line.strip()}"
            for path in self._files()
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if word.search(line)
        ]
        return "\n".join(found[:_USES_SHOWN]) or f"no line mentions {name}"

    def edit(self, dice: Random, functions: list[Function], *, files: int = 4) -> list[str]:
        """Work on a few files as a developer would; what was done, for people to read.

        In every file but the last, two functions get a renamed variable or a comment. The last file gets a
        comment behind all its functions: it changes, they do not, and their answers stay good.
        """
        paths = sorted({function.path for function in functions})
        *edited, reviewed = dice.sample(paths, min(files, len(paths)))
        done: list[str] = []
        for path in edited:
            candidates = [function for function in functions if function.path == path]
            done += map(self._edit_function, dice.sample(candidates, min(2, len(candidates))))
        with (self.root / reviewed).open("a", encoding="utf-8") as file:
            file.write("\n# Reviewed.\n")
        return [*done, f"{reviewed}: a comment outside its functions"]

    def _files(self) -> list[Path]:
        return sorted(self.root.glob("*.py"))

    def _functions_of(self, path: Path) -> Iterator[Function]:
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield Function(path.name, node.name, ast.get_source_segment(source, node) or "")

    def _edit_function(self, function: Function) -> str:
        path = self.root / function.path
        code, how = rename_a_variable(function.code) or (add_a_comment(function.code), "a comment")
        path.write_text(path.read_text(encoding="utf-8").replace(function.code, code, 1), encoding="utf-8")
        return f"{function.path}: {how} in {function.name}"


def add_a_comment(code: str) -> str:
    """The function with a comment before its last statement."""
    last = _parse(code).body[-1]
    lines = code.splitlines(keepends=True)
    lines.insert(last.lineno - 1, " " * last.col_offset + "# Reviewed.\n")
    return "".join(lines)


def rename_a_variable(code: str) -> tuple[str, str] | None:
    """The function with its first local variable renamed, and what was renamed; None if it has no variable."""
    function = _parse(code)
    arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id not in arguments]
    variable = next((node.id for node in names if isinstance(node.ctx, ast.Store)), None)
    if variable is None:
        return None
    lines = code.encode().splitlines(keepends=True)  # ast counts columns in bytes
    for node in sorted(names, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if node.id == variable:
            line, end = lines[node.lineno - 1], node.col_offset + len(variable.encode())
            lines[node.lineno - 1] = line[:end] + b"_" + line[end:]
    return b"".join(lines).decode(), f"{variable} renamed to {variable}_"


def _parse(code: str) -> ast.FunctionDef:
    function = ast.parse(code).body[0]
    assert isinstance(function, ast.FunctionDef)  # noqa: S101  (the tree collects nothing else)
    return function
