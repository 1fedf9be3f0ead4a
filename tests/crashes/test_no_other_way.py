# SPDX-License-Identifier: GPL-2.0-or-later
"""All that the program writes goes through the functions whose instants are checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import hibernaut

SOURCE = Path(hibernaut.__file__).parent
CHANGES = {
    "write_text", "write_bytes", "rename", "replace", "unlink", "rmdir", "mkdir", "symlink_to", "hardlink_to", "touch",
    "truncate", "ftruncate", "pwrite", "pwritev", "posix_fallocate", "link", "symlink", "remove", "removedirs",
    "makedirs",
    "rmtree", "copy", "copy2", "copyfile", "move", "mkdtemp", "mkstemp", "fsync", "fdatasync",
}  # fmt: skip
PATHS = {"write_text", "write_bytes", "unlink", "rmdir", "mkdir", "symlink_to", "hardlink_to", "touch", "rename"}
MODULES = {"os", "shutil", "tempfile"}
KNOWN = {
    "exploration/results.py": "records of a sweep: row `explore --results`",
    "lab/host/build.py": "a built kernel: row lab build; `work/`, which `make` brings up to date",
    "lab/host/cache.py": "row lab cache",
    "lab/host/debian.py": "apt's lists and configuration: removed and fetched again",
    "lab/host/temporary.py": "temporary folders, removed by the next process",
    "swsusp/rewrite.py": "row `rewrite --in-place`",
    "volumes/compressed.py": "a temporary file without a name",
    "volatility/plugins/hibernaut_image.py": "a folder in Volatility's cache of symbols",
    "volumes/output.py": "`replacing`: all other rows",
}
"""Modules that change files by themselves, and where their instants are checked."""
LABORATORY = ("lab/", "cli/lab/")
"""Guests' disks, logs and traces: made anew in each run, and read by that run alone."""


def changes(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that call a function that changes files, or open a file for writing."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name == "open":
            modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if any(set(mode) & set("wax+") and set(mode) <= set("rwaxbt+") for mode in modes):
                yield node.lineno
        elif name in CHANGES and isinstance(function, ast.Attribute):
            owner = function.value
            pathlike = name in (
                "write_text",
                "write_bytes",
                "unlink",
                "rmdir",
                "mkdir",
                "symlink_to",
                "touch",
                "rename",
            )
            if (isinstance(owner, ast.Name) and owner.id in MODULES) or pathlike:
                yield node.lineno


def test_no_module_writes_by_itself() -> None:
    """A module that changes files without `replacing` is on the list, with the row of the table that has it."""
    found: dict[str, list[int]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        lines = list(changes(ast.parse(path.read_text())))
        if lines and not (name.startswith(LABORATORY) and name not in KNOWN):
            found[name] = lines
    assert {name: lines for name, lines in found.items() if name not in KNOWN} == {}
    assert found.keys() == KNOWN.keys()


def test_a_module_that_writes_is_seen() -> None:
    """Each way of writing is noticed, and reading is not."""
    for code in (
        "path.write_text('x')",
        "open(name, 'wb')",
        "path.open('a')",
        "os.truncate(p, 1)",
        "shutil.copy(a, b)",
    ):
        assert list(changes(ast.parse(code))) == [1], code
    for code in ("path.read_text()", "open(name, 'rb')", "text.replace('a', 'b')", "words.remove('x')", "open(name)"):
        assert list(changes(ast.parse(code))) == [], code
