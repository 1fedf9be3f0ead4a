# SPDX-License-Identifier: GPL-2.0-or-later
"""The house rules that a machine can check: who imports whom, what the package exports, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hibernaut

PACKAGE = Path(hibernaut.__file__).parent
ROOMS = (
    "errors",
    "kernel_line",
    "volumes",
    "memory",
    "swsusp",
    "sources",
    "paging",
    "linux",
    "kernel",
    "hibernation",
    "exploration",
    "studies",
    "lab",
    "report",
    "cli",
)
"""From the bottom up: a room imports only from itself and from rooms before it."""


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in ROOMS]


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "hibernaut" and len(parts) > 1 else None


def imported(path: Path) -> set[str]:
    """Rooms that a module imports from, also under TYPE_CHECKING and inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "hibernaut" else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found.update(room for name in names if (room := room_of(name)))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_room_reaches_down(path: Path) -> None:
    """The list of rooms in docs/design is an order, and every import follows it."""
    relative = path.relative_to(PACKAGE)
    mine = relative.stem if len(relative.parts) == 1 else relative.parts[0]
    allowed = set(ROOMS[: ROOMS.index(mine) + 1])
    if mine == "cli":
        allowed.add("__version__")
    assert imported(path) <= allowed


def test_every_public_name_is_there() -> None:
    """What `__all__` promises can be had, in whatever order the parts of the package were imported."""
    for name in hibernaut.__all__:
        assert getattr(hibernaut, name) is not None
    assert hibernaut.__all__ == sorted(hibernaut.__all__)


def test_importing_the_package_costs_nothing() -> None:
    """No array library, no codec, no terminal library comes with the bare import."""
    told = subprocess.run(
        [sys.executable, "-c", "import hibernaut, sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "rich", "typer", "lz4", "lzo", "isal", "zstandard"} & set(told)


@pytest.mark.parametrize(
    "first",
    ["", "import hibernaut.hibernation.snapshot; ", "import hibernaut.exploration; ", "import hibernaut.cli.app; "],
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
