# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a machine can check: imports between rooms and modules, public names, the cost of importing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import hibernaut

PACKAGE = Path(hibernaut.__file__).parent
ROOMS = (
    "errors",
    "kernel_line",
    "notebook",
    "parallel",
    "volumes",
    "memory",
    "swsusp",
    "sources",
    "sealing",
    "paging",
    "linux",
    "kernel",
    "hibernation",
    "exploration",
    "studies",
    "lab",
    "doctor",
    "report",
    "mount",
    "volatility",
    "cli",
)
"""From the top down: a room imports only from itself and from rooms before it."""
TOP = {
    *(
        ".ci",
        ".github",
        ".gitignore",
        ".pre-commit-config.yaml",
        "Makefile",
        "packages",
        "pyproject.toml",
        "requirements",
    ),
    *("CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "README.md"),
    *("RELEASING.md", "SECURITY.md", "benchmarks", "docs", "src", "tests"),
}
"""Files and folders at the top of the repository."""
KNOWS_NOTHING_OF = {"kernel": {"linux"}, "report": {"lab"}}
"""Rooms that stand before another in the list and yet are not its business: a real kernel is not the model, and a
report does not know how a result was computed."""


def modules() -> list[Path]:
    """Return the modules that belong to a room."""
    return [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ROOMS]


def dotted_name(path: Path) -> str:
    """Return the name that a module of the package is imported by."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known_modules() -> Mapping[str, Path]:
    """Return the modules of the package, by the name they are imported by."""
    return {dotted_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> Iterator[str]:
    """Yield the modules of the package that a module imports, also under TYPE_CHECKING and inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in known_modules() else module for name in inner]
        else:
            continue
        yield from (name for name in names if name in known_modules())


def room_of(dotted: str) -> str:
    """Return the room of a module; the package itself is its own."""
    return [*dotted.split("."), "hibernaut"][1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_reaches_down(path: Path) -> None:
    """The list of rooms is an order, and every import follows it."""
    mine = room_of(dotted_name(path))
    allowed = set(ROOMS[: ROOMS.index(mine) + 1]) - KNOWS_NOTHING_OF.get(mine, set())
    if mine in ("volatility", "cli"):
        allowed.add("hibernaut")  # its version
    assert {room_of(name) for name in imports(path)} <= allowed


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected sets of more than one module, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            members = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(members) > 1:
                found.append(sorted(members))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return found


def test_no_import_circle() -> None:
    """No module reaches itself through its imports, type-only and lazy ones included.

    A package's `__init__` re-exports its modules; a module that imports a sibling does not import its package.
    """
    graph = {name: set(imports(path)) - {name} for name, path in known_modules().items() if name != "hibernaut"}
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    """Two modules that import each other, over a third, are a circle; a chain is none."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_a_public_class_name_exists_once() -> None:
    """A name means one thing: no two modules define a public class of the same name."""
    homes: dict[str, set[str]] = defaultdict(set)
    for name, path in known_modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(name)
    assert {name: sorted(where) for name, where in homes.items() if len(where) > 1} == {}


def test_every_public_name_is_there() -> None:
    """Every name in `__all__` can be imported, in whatever order the parts of the package were imported."""
    for name in hibernaut.__all__:
        assert getattr(hibernaut, name) is not None
    assert hibernaut.__all__ == sorted(hibernaut.__all__)


def test_top_of_the_repository_has_what_belongs_there() -> None:
    """No output of a command that was tried is left there: each file and folder is one of these."""
    repository = PACKAGE.parent.parent
    if not (repository / ".git").exists():
        pytest.skip("not a git checkout")
    told = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True).stdout
    assert {name.split("/")[0] for name in told.splitlines()} <= TOP


def test_importing_the_package_costs_nothing() -> None:
    """No array library, no codec, no terminal library comes with the bare import."""
    told = subprocess.run(
        [sys.executable, "-c", "import hibernaut, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "rich", "typer", "lz4", "lzo", "isal", "zstandard"} & set(told)


@pytest.mark.parametrize(
    "first",
    ["", "import hibernaut.hibernation.swsusp_save; ", "import hibernaut.exploration; ", "import hibernaut.cli.app; "],
)
def test_hibernate_and_explore_are_functions(first: str) -> None:
    """`hibernaut.hibernate` and `hibernaut.explore` are functions in whatever order modules were imported."""
    code = (
        f"{first}from types import FunctionType; from hibernaut import hibernate, explore, build_machine, Fixmap; "
        "from hibernaut.studies.demo import demo_layout; assert type(hibernate) is type(explore) is FunctionType; "
        "print(len(hibernate(build_machine(demo_layout()), Fixmap()).pfns))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(told) > 16000


def test_no_module_is_callable() -> None:
    """No module replaces its class to become callable."""
    for path in modules():
        assert "ModuleType" not in path.read_text(), path


MADE_ELSEWHERE = {
    ("cache", "locked"): "an empty file to lock",
    ("temporary", "temporary_folder"): "an empty file to lock",
    ("temporary", "remove_leftovers"): "the same, opened to see whether it is locked",
    ("qemu", "qemu"): "QEMU's own messages, in a folder of mode 0700",
    ("laboratory", "boot"): "modules of a distribution's kernel",
    ("other_machines", "hibernate_other"): "modules of a distribution's kernel",
    ("golden", "_machine"): "the memory map, in a folder of mode 0700",
    ("debian", "_configured"): "configuration of apt",
    ("python_disk", "make_python_disk"): "the program's own packages, for a guest",
    ("python_disk", "_copy_python"): "the interpreter, for a guest",
    ("python_disk", "_copy_package"): "a Python package, for a guest",
    ("python_disk", "_copy_file"): "a program or a library, for a guest",
    ("region", "build"): "sources and a module",
    ("build", "_make"): "settings of a kernel",
    ("build", "_run_make"): "the output of a build",
    ("build", "_keep"): "a kernel",
    ("build", "_write_if_changed"): "a source file of a kernel",
    ("results", "__enter__"): "records of simulated machines, appended",
    ("damage", "_patch"): "damages a disk that is there; its mode stays",
    ("campaign", "_patched"): "changes a copy of a disk and changes it back; its mode stays",
    ("output", "__init__"): "a file that `replacing` made, opened again for direct writes",
    ("rewrite", "claimed"): "the area of an image; its mode stays",
    ("terminal", "abandon_output"): "the null device",
    ("fuse", "require_fuse"): "the device of FUSE, to see whether it can be opened",
}
"""Functions (module, name) that make files or open them for writing themselves, and why these need not be private."""


def opens_for_writing(call: ast.Call) -> bool:
    """Whether a call makes a file, opens one for writing, or copies one."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name == "copy":
        return ast.unparse(call.func) == "shutil.copy"
    words = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name == "open":
        flags = {node.attr for word in words for node in ast.walk(word) if isinstance(node, ast.Attribute)}
        modes = [set(word.value) for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        return bool(flags & {"O_CREAT", "O_TMPFILE", "O_RDWR", "O_WRONLY"}) or any(
            mode <= set("rwaxbt+") and mode & set("wax+") for mode in modes
        )
    return name in ("write_text", "write_bytes", "touch", "copyfile", "copy2", "copytree", "NamedTemporaryFile")


def makers(path: Path) -> set[tuple[str, str]]:
    """(module, function) of every such call in a module, the innermost named function that it is in."""
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and opens_for_writing(node):
            found.add((path.stem, function))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(ast.parse(path.read_text()), "")
    return found


def test_every_file_is_made_by_the_writer_of_private_files() -> None:
    """`replacing` makes all files that hold memory; each other place that makes files is known, and why it may."""
    found = {maker for path in PACKAGE.rglob("*.py") for maker in makers(path)}
    assert found == {("output", "_new_file"), ("output", "_remove_leftovers"), *MADE_ELSEWHERE}
