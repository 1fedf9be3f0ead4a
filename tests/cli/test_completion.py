# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut completion`, and the answers that its scripts ask for: by the real shells, and word by word."""

from __future__ import annotations

import enum
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.models import CommandInfo

from hibernaut.cli.completion import Shell
from hibernaut.cli.declared import commands_of, parameters_of
from hibernaut.cli.suggest import Suggestions, split_line, suggest
from tests.cli.declared import ALL
from tests.cli.run import hibernaut, refused
from tests.cli.shells import completed_by

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed"))
    for shell in Shell
]
EVERY = [*commands_of(ALL), *commands_of(ALL, "lab")]


@pytest.fixture(scope="session")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script for each shell."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in Shell:
        (folder / shell).write_text(hibernaut("completion", shell).out)
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two files and a folder."""
    folder = tmp_path / "home"
    (folder / "sub folder").mkdir(parents=True)
    (folder / "swap.img").touch()
    (folder / "spare.img").touch()
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("before", "current", "expected"),
    [
        pytest.param("", "insp", ["inspect"], id="command"),
        pytest.param("lab", "bui", ["build"], id="command of a group"),
        pytest.param("inspect 'swap.img'", "--dig", ["--digests"], id="option"),
        pytest.param("convert a b", "--to=l", ["--to=lime"], id="choice after equals"),
        pytest.param("save a b --via", "fixmap-v", ["fixmap-v1", "fixmap-v3"], id="two values"),
        pytest.param("answers --study", "two", ["two nodes"], id="value with a blank"),
        pytest.param("inspect", "s", ["spare.img", "sub folder", "swap.img"], id="files"),
        pytest.param("inspect swap.img --on-machine", "sp", ["spare.img"], id="file or word"),
        pytest.param("convert swap.img new", "--manifest=spa", ["--manifest=spare.img"], id="file after equals"),
        pytest.param("mount swap.img", "s", ["sub folder"], id="folder"),
        pytest.param("inspect swap.img --offset", "s", [], id="nothing"),
    ],
)
def test_a_shell_completes(
    shell: str, before: str, current: str, expected: list[str], scripts: Path, home: Path
) -> None:
    """The words that a person gets; where nothing fits, the word stays as it is."""
    found = completed_by(shell, scripts / shell, f"{before} {current}".strip(), home)
    known = [] if shell == Shell.FISH else shlex.split(before)
    unchanged = [] if shell == Shell.FISH else [current]
    assert found[: len(known)] == known
    assert sorted(one.rstrip("/") for one in found[len(known) :]) == (expected or unchanged)


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_option_is_suggested_with_its_values(name: str, command: CommandInfo) -> None:
    """All options by their long names; after one that is given once, the others; files for paths; words for choices."""
    words = name.split()[1:]
    options = [one for one in parameters_of(command) if one.names]
    long = {word for one in options for word in one.names if word.startswith("--")}
    assert set(suggest(words, "--").words) == {*long, "--help"}
    for one in options:
        given = [*words, one.names[0], *(["x"] if one.kind is not bool else [])]
        assert (one.names[0] in suggest(given, "--").words) == one.repeatable
        if one.kind is bool:
            continue
        found = suggest([*words, one.names[0]], "")
        if one.kind is Path:
            assert found.by_shell in ("files", "folders"), one.term
        if isinstance(one.kind, type) and issubclass(one.kind, enum.Enum):
            assert list(found.words) == [choice.value for choice in one.kind]
            after = suggest(words, f"{one.names[0]}=").words
            assert list(after) == [f"{one.names[0]}={choice.value}" for choice in one.kind]


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_arguments_are_suggested_in_their_order(name: str, command: CommandInfo) -> None:
    """Files where an argument is a path; nothing behind the last one, if it is not repeatable."""
    words = name.split()[1:]
    arguments = [one for one in parameters_of(command) if not one.names]
    for one in arguments:
        found = suggest(words, "")
        assert (found.by_shell != "nothing") == (one.kind is Path or one.metavar == "ARGUMENT..."), one.term
        words = [*words, "x"]
    if not any(one.repeatable for one in arguments):
        assert suggest(words, "") == Suggestions()


def test_all_commands_are_suggested() -> None:
    """Each with the summary that the overview has; those of the laboratory behind its name."""
    top = {name.removeprefix("hibernaut ") for name, _ in commands_of(ALL)}
    assert set(suggest([], "").words) == {*top, "lab", "--version", "--verbose", "--help"}
    assert set(suggest(["lab"], "").words) == {*(name.split()[-1] for name, _ in commands_of(ALL, "lab")), "--help"}
    assert all(suggest([], "").words.values())
    assert all(suggest(["lab"], "").words.values())


@pytest.mark.parametrize("words", [["inspekt"], ["lab", "judgement"], ["--json"]])
def test_nothing_is_suggested_after_an_unknown_command(words: list[str]) -> None:
    """A wrong word gives nothing, not an error."""
    assert suggest(words, "") == Suggestions()


def test_options_end_at_two_hyphens() -> None:
    """Behind `--` every word is an argument."""
    assert suggest(["inspect", "--"], "--") == Suggestions("files")


def test_values_that_are_listed() -> None:
    """With commas between them, and for arguments."""
    assert suggest(["explore", "--via"], "remap,fixmap-v").words == {"remap,fixmap-v3": "", "remap,fixmap-v1": ""}
    assert set(suggest(["demo", "--rules"], "7.").words) == {"7.3"}
    assert set(suggest(["schema"], "la").words) == {"lab"}
    assert set(suggest(["explore", "--layout"], "ki").words) == {"kinds="}
    assert "stock" in suggest(["lab", "build", "--cure"], "").words


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hibernaut ", ["hibernaut", ""]),
        ("hibernaut ins", ["hibernaut", "ins"]),
        ("hibernaut inspect 'a b' --x=c", ["hibernaut", "inspect", "a b", "--x=c"]),
        ("hibernaut inspect 'a b", ["hibernaut", "inspect", "a b"]),
        ("hibernaut inspect a\\ ", ["hibernaut", "inspect", "a "]),
        ("hibernaut inspect #a", ["hibernaut", "inspect", "#a"]),
        ("", [""]),
    ],
)
def test_a_line_is_split_as_the_shell_does(line: str, expected: list[str]) -> None:
    """Quotation marks and backslashes, also where the cursor is behind an open one."""
    assert split_line(line) == expected


def test_one_command_is_completed_without_the_others() -> None:
    """The modules of other commands are not imported: a key must not take seconds."""
    code = "import sys; from hibernaut.cli.suggest import suggest; assert suggest(['completion'], '').words; "
    code += "print(*(name for name in sys.modules if name.startswith('hibernaut.')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "hibernaut.cli.completion" in loaded
    assert not {"hibernaut.cli.inspect", "hibernaut.cli.lab.app", "hibernaut.cli.walk"} & set(loaded)


def test_the_script_is_printed() -> None:
    """As text and in JSON; another shell is refused with the names of those there are."""
    script = hibernaut("completion", "bash").out
    assert hibernaut("completion", "bash", "--json").document == {"shell": "bash", "script": script}
    for name in Shell:
        assert name in refused("completion", "tcsh")
