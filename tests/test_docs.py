# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation is true: every `$ hibernaut` line runs and prints the shown output; every Python block runs.

With HIBERNAUT_UPDATE_DOCS=1 the shown output is replaced by what was printed, to be read before it is committed.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from hibernaut.cli.app import app_with
from hibernaut.swsusp.codecs import codec_named
from tests.cli.run import hibernaut
from tests.conftest import Golden, copy_sparse

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GOLDEN = re.compile(r"\b(?:swap|ram)-6\.\d+-\w+(?:-used-up)?\.(?:img|elf)\b")
OVERWRITTEN = 3100 * 4096, 100 * 4096
"""First byte and length of the part of a used-up image that is overwritten."""


def names(documents: list[Path]) -> list[str]:
    """Return the names of documents."""
    return [str(path.relative_to(REPOSITORY)) for path in documents]


def steps(block: str) -> list[tuple[str, str]]:
    """(command, shown output) pairs of a console block."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:].strip(), ""))
        else:
            command, output = found[-1]
            found[-1] = (command, output + line)
    return found


def provide(text: str, folder: Path, golden: Golden) -> None:
    """Links to the golden files that a text names; one that is used up is a copy, overwritten in part."""
    for name in sorted(set(GOLDEN.findall(text))):
        intact = golden(name.replace("-used-up", ""))
        if intact.name == name:
            (folder / name).symlink_to(intact)
            continue
        with intact.open("rb") as source:
            copy_sparse(source, folder / name)
        with (folder / name).open("r+b") as file:
            file.seek(4086)
            file.write(b"SWAPSPACE2")
            file.seek(OVERWRITTEN[0])
            file.write(b"overwritten " * (OVERWRITTEN[1] // 12))


LIBRARY = re.compile(r'(?<="codec": \[\n).*?(?=\n \])', re.DOTALL)
LIBRARY_SHOWN = """\
  {
   "name": "liblzo2",
   "version": "2.10",
   "file": "/usr/lib/x86_64-linux-gnu/liblzo2.so.2"
  }"""
"""The library of Debian 12, since its version and its place differ between systems."""


def run_block(block: str) -> str:
    """Return the block with the current output of its commands."""
    shown = []
    for command, output in steps(block):
        words = shlex.split(command)
        if words[0] == "hibernaut":
            result = hibernaut(*words[1:])
            output = LIBRARY.sub(LIBRARY_SHOWN, result.out + result.err)
        elif words == ["echo", "$?"]:
            output = f"{result.status}\n"
        elif words[0] == "cat":
            output = Path(words[1]).read_text()
        shown.append(f"$ {command}\n{output}")
    return "".join(shown)


def compare(path: Path, run: Callable[[str], str]) -> None:
    """Compare a document with the output of its console blocks; update it if requested."""
    text = path.read_text()
    printed = BLOCK.sub(lambda match: f"```console\n{run(match[1])}```", text)
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        path.write_text(printed)
    assert printed == path.read_text()


@pytest.mark.parametrize("document", names([path for path in DOCUMENTS if BLOCK.search(path.read_text())]))
def test_sessions_that_need_no_data_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    """The console blocks that name no golden file, everywhere."""
    monkeypatch.chdir(tmp_path)
    compare(REPOSITORY / document, lambda block: block if GOLDEN.search(block) else run_block(block))


@pytest.mark.parametrize("document", names([path for path in DOCUMENTS if GOLDEN.search(path.read_text())]))
def test_sessions_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, golden: Golden
) -> None:
    """All console blocks of a document, in order, in one folder."""
    if codec_named("lzo").library == "lzallright":
        pytest.skip("the sizes shown are those of liblzo2, which is not installed")
    path = REPOSITORY / document
    text = path.read_text()
    provide("".join(BLOCK.findall(text)), tmp_path, golden)
    monkeypatch.chdir(tmp_path)
    compare(path, run_block)


@pytest.mark.parametrize("document", names([path for path in DOCUMENTS if PYTHON.search(path.read_text())]))
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, golden: Golden) -> None:
    """All Python blocks of a document, in order, in one namespace; their asserts hold."""
    text = (REPOSITORY / document).read_text()
    code = "\n".join(PYTHON.findall(text))
    provide(code, tmp_path, golden)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, document, "exec"), {"__name__": "example"})


def test_the_readme_begins_with_three_sentences_and_a_session() -> None:
    """First screen: the problem, the solution, the users; a real session; the two commands."""
    lines = (REPOSITORY / "README.md").read_text().splitlines()[:45]
    assert lines[:2] == ["# hibernaut", ""]
    sentences = lines[2 : lines.index("", 2)]
    assert len(sentences) == 3
    assert all(sentence.count(". ") == 0 and sentence.endswith(".") for sentence in sentences)
    assert any(line == "$ hibernaut takeover" for line in lines)
    assert any(line.startswith("make demo") for line in lines)
    assert any(line.startswith("make test") for line in lines)


LAB = re.compile(r"^```console (?:lab|example)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IN_TABLE = re.compile(r"^\|.*?`(hibernaut [a-z][^`]*)`", re.MULTILINE)


def described_commands() -> Iterator[tuple[str, str]]:
    """(document, command) of the commands that are shown and not run: laboratory, devices, the README's table."""
    for name, document in zip(names(DOCUMENTS), DOCUMENTS, strict=True):
        text = document.read_text()
        for block in LAB.findall(text):
            yield from ((name, command.removeprefix("sudo ")) for command, _ in steps(block))
        if name == "README.md":
            yield from ((name, command) for command in IN_TABLE.findall(text))


@pytest.mark.parametrize(("document", "command"), list(described_commands()))
def test_commands_that_are_only_shown_are_understood(document: str, command: str) -> None:
    """A command that needs a laboratory or a device: it exists, and each of its options does."""
    words = shlex.split(command)
    assert words[0] == "hibernaut", document
    found: Any = typer.main.get_command(app_with())
    rest = words[1:]
    while hasattr(found, "commands"):
        found = found.commands[rest.pop(0)]
    options = {spelled for one in found.params for spelled in (*one.opts, *one.secondary_opts)}
    assert [word for word in rest if word.startswith("-") and word not in options] == []
