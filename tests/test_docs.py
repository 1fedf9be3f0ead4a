# SPDX-License-Identifier: GPL-2.0-or-later
"""The documentation is true: every `$ hibernaut` line in it is run, and prints what is shown; every Python block runs.

With HIBERNAUT_UPDATE_DOCS=1 the shown output is replaced by what was printed, to be read before it is committed.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from tests.cli.run import hibernaut
from tests.conftest import Golden

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GOLDEN = re.compile(r"\b(?:swap|ram)-6\.\d+-\w+\.(?:img|elf)\b")


def names(documents: list[Path]) -> list[str]:
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
    """Links to the golden files that a text names."""
    for name in sorted(set(GOLDEN.findall(text))):
        (folder / name).symlink_to(golden(name))


def run_block(block: str) -> str:
    """The block with the output that its commands print now."""
    shown = []
    for command, output in steps(block):
        words = shlex.split(command)
        if words[0] == "hibernaut":
            result = hibernaut(*words[1:])
            output = result.out + result.err
        elif words[:2] == ["echo", "$?"]:
            output = f"{result.status}\n"
        shown.append(f"$ {command}\n{output}")
    return "".join(shown)


@pytest.mark.parametrize("document", names(DOCUMENTS))
def test_sessions_that_need_no_data_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str
) -> None:
    """The console blocks that name no golden file, everywhere: the README's first session among them."""
    monkeypatch.chdir(tmp_path)
    for block in BLOCK.findall((REPOSITORY / document).read_text()):
        if not GOLDEN.search(block):
            assert run_block(block) == block


@pytest.mark.parametrize("document", names([path for path in DOCUMENTS if GOLDEN.search(path.read_text())]))
def test_sessions_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, golden: Golden
) -> None:
    """All console blocks of a document, in order, in one folder."""
    pytest.importorskip("lzo", reason="the sizes shown are those of python-lzo, which is not installed")
    path = REPOSITORY / document
    text = path.read_text()
    provide("".join(BLOCK.findall(text)), tmp_path, golden)
    monkeypatch.chdir(tmp_path)
    printed = BLOCK.sub(lambda match: f"```console\n{run_block(match[1])}```", text)
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        path.write_text(printed)
    assert printed == path.read_text()


@pytest.mark.parametrize("document", names([path for path in DOCUMENTS if PYTHON.search(path.read_text())]))
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: str, golden: Golden) -> None:
    """All Python blocks of a document, in order, in one namespace; their asserts hold."""
    text = (REPOSITORY / document).read_text()
    code = "\n".join(PYTHON.findall(text))
    provide(code, tmp_path, golden)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, document, "exec"), {"__name__": "example"})


def test_the_readme_begins_with_a_sentence_and_a_session() -> None:
    """First screen: what it is, a session as it really ran, the two commands."""
    lines = (REPOSITORY / "README.md").read_text().splitlines()[:45]
    assert lines[0] == "# hibernaut"
    assert any(line == "$ hibernaut demo" for line in lines)
    assert any("make demo" in line for line in lines)
    assert any("make test" in line for line in lines)
