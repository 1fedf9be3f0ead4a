# SPDX-License-Identifier: GPL-2.0-or-later
"""Help: every option with its default, 80 columns, no colour, and an example that runs at the end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
import typer

from hibernaut.cli.app import FIRST_STEPS, app_with, overview
from hibernaut.cli.help import ExampleCommand
from hibernaut.cli.options import OutputOptions, expand_options
from hibernaut.sealing.blocks import BlockFile
from hibernaut.sealing.keys import make_keys
from hibernaut.sealing.making import make_manifest
from tests.cli.declared import arguments_of, commands, options_of
from tests.cli.run import hibernaut
from tests.conftest import REPOSITORY, Golden
from tests.lab.records import RECORD

COLUMNS = 80
NAMES = [words for words, _ in commands()]
BUILDS = ("lab build",)
"""Commands whose --dry-run prints calls of `make` in place of QEMU's command line."""
SERVES = ("mount",)
"""Commands that run until they are ended; tests of their own run them."""
BY_SYSTEM = ("lab doctor",)
"""Examples whose exit status depends on the system; the others end with 0."""


def undeclared_defaults(found: Iterator[tuple[str, Any]]) -> list[str]:
    """Return the options and arguments whose help does not state their default, or states another one."""
    problems = []
    for words, command in found:
        for one in {id(one): one for one in (*options_of(command).values(), *arguments_of(command))}.values():
            text, name = one.help or "", one.opts[0] if one.param_type_name == "option" else one.name
            if one.required:
                stated = "Required." in text or one.param_type_name == "argument"
            elif isinstance(one.default, int | float | str) and not isinstance(one.default, bool) and one.default != "":
                value = getattr(one.default, "value", one.default)
                stated = f"Default: {str(value).replace(',', ', ')}." in text
            else:
                stated = "Default: " in text
            if not stated or not text.endswith("."):
                problems.append(f"{words}: {name}")
    return problems


def test_every_option_states_its_default() -> None:
    """Its help states the default, or that it is required, and ends with a full stop."""
    assert undeclared_defaults(commands()) == []


def test_overview_is_that_of_all_commands() -> None:
    """`--help` prints the names and summaries of the commands themselves, whose modules it does not import."""
    whole, short = (cast("Any", typer.main.get_command(made)) for made in (app_with(), overview()))
    assert hibernaut("--help").out.split() == whole.get_help(whole.make_context("hibernaut", [])).split()
    assert {name: one.get_short_help_str() for name, one in short.commands.items()} == {
        name: one.get_short_help_str() for name, one in whole.commands.items()
    }
    assert hibernaut("--help").status == 0


def test_first_steps() -> None:
    """Without arguments: ten lines of 80 columns, each command with its options as it exists; status 2."""
    result = hibernaut()
    assert (result.status, result.out.rstrip("\n")) == (2, FIRST_STEPS)
    lines = FIRST_STEPS.splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= COLUMNS
    declared = dict(commands())
    shown = re.findall(r"hibernaut ([a-z]+(?: [a-z]+)?)(.*?)(?=  |;|$)", "\n".join(lines[1:-1]), re.MULTILINE)
    assert len(shown) >= 7
    for command, rest in shown:
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in options_of(declared[command])
        assert command in declared


def test_overview_and_version_load_no_command() -> None:
    """`--help` and no arguments import no array library; `--version` no parser of options, either."""
    for arguments, absent in (("--help", {"numpy"}), ("", {"numpy"}), ("--version", {"numpy", "typer"})):
        code = (
            f"import sys, contextlib; sys.argv = ['hibernaut', *{arguments.split()}]\n"
            "from hibernaut.cli import main\n"
            "with contextlib.suppress(SystemExit): main()\n"
            "print('modules', *sys.modules)"
        )
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert not absent & set(told.splitlines()[-1].split())


def test_command_after_other_words_is_refused() -> None:
    """A command is the first word; a wrong one gets the nearest name."""
    assert hibernaut("--", "inspect").status == 2
    result = hibernaut("inspekt")
    assert (result.status, "did you mean 'inspect'?" in result.err) == (2, True)


def careless(
    output: OutputOptions,
    silent: Annotated[bool, typer.Option("--silent", help="Says nothing of a default.")] = False,
    wrong: Annotated[int, typer.Option("--wrong", help="A number. Default: 3.")] = 4,
    needed: Annotated[str, typer.Option("--needed", help="A word.")] = ...,
    unfinished: Annotated[int, typer.Option("--unfinished", help="A number. Default: 4")] = 4,
) -> None:
    """Options with careless help."""


def test_careless_help_is_caught() -> None:
    """A help text without a default, with a wrong one, of a required option, without a full stop."""
    broken = typer.Typer()
    broken.command("broken", cls=ExampleCommand)(expand_options(careless))
    broken.command("other", cls=ExampleCommand)(expand_options(careless))
    found = [line for line in undeclared_defaults(commands(broken)) if line.startswith("broken")]
    assert found == [f"broken: --{name}" for name in ("silent", "wrong", "needed", "unfinished")]


@pytest.mark.parametrize("words", ["", "lab", *NAMES])
def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """No line is longer, nothing is cut with an ellipsis, names with hyphens are whole."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    result = hibernaut(*words.split(), "--help")
    assert result.status == 0
    assert [line for line in result.out.splitlines() if len(line) > COLUMNS] == []
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.out
    assert re.findall(r"\w\.\.\.$", result.out, re.MULTILINE) == []
    assert re.findall(r"[a-z]-$", result.out, re.MULTILINE) == []
    assert "[default: " not in result.out
    assert result.out.isascii()


def test_the_list_of_commands_has_whole_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first paragraph of each command's help is in the list that it belongs to, to its full stop."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    lists = " ".join((hibernaut("--help").out + hibernaut("lab", "--help").out).split())
    for words, command in commands():
        paragraph = " ".join((command.help or "").split("\n\n")[0].split())
        assert paragraph.endswith("."), words
        assert f" {words.split()[-1]} {paragraph}" in lists, words


@pytest.mark.skipif(shutil.which("script") is None, reason="script(1) of util-linux is not installed")
def test_help_is_monochrome_on_a_terminal() -> None:
    """On a pseudo-terminal that has colours there is no escape sequence in help or in an error."""
    environment = {**os.environ, "TERM": "xterm-256color", "FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    for words in ("save --help", "--help", "save"):
        command = f"{shlex.quote(sys.executable)} -m hibernaut {words}"
        done = subprocess.run(
            ["script", "-qec", command, "/dev/null"], env=environment, capture_output=True, check=False, timeout=120
        )
        assert b"hibernaut" in done.stdout
        assert b"\x1b" not in done.stdout


def example_of(words: str) -> str:
    """Return the example of a command: the last line of its help."""
    *_, heading, example = hibernaut(*words.split(), "--help").out.splitlines()
    assert heading == "Example:"
    assert example.startswith("  $ hibernaut ")
    return example.removeprefix("  $ ")


@pytest.fixture
def folder_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden) -> Path:
    """A folder with the files that examples name."""
    (tmp_path / "swap.img").symlink_to(golden("swap-6.1-lzo.img"))
    (tmp_path / "ram.elf").symlink_to(golden("ram-6.1-lzo.elf"))
    shutil.copy(REPOSITORY / "docs/answers/remap-tears-the-image.json", tmp_path / "run.json")
    (tmp_path / "tasks.py").write_text("print(prog['init_task'].comm.string_().decode())\n")
    guest = tmp_path / "guest"
    guest.mkdir()
    area = BlockFile(str(tmp_path / "swap.img"))
    (tmp_path / "swap.seal").write_bytes(make_manifest(area, make_keys(tmp_path / "key.pem"))[0])
    area.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [words for words in NAMES if words not in SERVES])
def test_the_example_runs(folder_of_examples: Path, words: str) -> None:
    """The last line of each help is a command that does what it says; with a guest, that would (--dry-run)."""
    example = example_of(words)
    assert example.startswith(f"hibernaut {words}")
    _, *arguments = shlex.split(example)
    boots = any("--dry-run" in options_of(command) for name, command in commands() if name == words)
    if words == "lab resume":
        RECORD.save(folder_of_examples / "guest")
        for name in ("swap.img", "spare.img"):
            (folder_of_examples / "guest" / name).touch()
    result = hibernaut(*arguments, *(["--dry-run"] if boots else []))
    assert result.status == 0 or example.removeprefix("hibernaut ") in BY_SYSTEM, result.err
    assert result.out or "--write" in arguments
    if boots:
        assert ("O=" if words in BUILDS else "qemu-system-x86_64") in result.out


@pytest.mark.parametrize(
    "words", [words for words, command in commands() if "--dry-run" in options_of(command) and words not in BUILDS]
)
def test_a_dry_run_answers_in_json_and_quietly(folder_of_examples: Path, words: str) -> None:
    """One document with the words of QEMU's command line, or nothing at all."""
    RECORD.save(folder_of_examples / "guest")
    for name in ("swap.img", "spare.img"):
        (folder_of_examples / "guest" / name).touch()
    _, *arguments = shlex.split(example_of(words))
    document = hibernaut(*arguments, "--dry-run", "--json").document
    for guest in document["guests"]:
        assert guest["command"][3] == "qemu-system-x86_64"
    quiet = hibernaut(*arguments, "--dry-run", "--quiet")
    assert (quiet.status, quiet.out, quiet.err) == (0, "", "")


def test_the_list_of_cases_answers_in_json_and_quietly() -> None:
    """`lab prove --list` names each case and what it must show."""
    listed = hibernaut("lab", "prove", "--list").out
    document = hibernaut("lab", "prove", "--list", "--json").document
    assert len(document["cases"]) == len(listed.splitlines())
    assert all(one["name"] in listed and one["must"] in listed for one in document["cases"])
    assert hibernaut("lab", "prove", "--list", "--quiet").out == ""
