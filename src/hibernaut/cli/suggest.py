# SPDX-License-Identifier: GPL-2.0-or-later
"""Words that may come next on a command line, for a shell that completes it.

The scripts of `hibernaut completion` run `hibernaut` with `_HIBERNAUT_COMPLETE` set, and read one protocol on its
standard output: a first line that names what the shell itself adds (`files`, `folders` or `nothing`), then a line for
each word, with a tab and the help of it where there is one. The arguments are the words before the cursor, the one at
the cursor last (`words`), or the line up to the cursor (`line`, for bash, which splits words at "=", too).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from typer.models import ArgumentInfo, CommandInfo

from hibernaut.cli.app import COMMANDS, LAB, app_with, overview
from hibernaut.cli.declared import PROGRAM, Declared, commands_of, parameters_of
from hibernaut.cli.terminal import print_text

__all__ = ["Suggestions", "print_suggestions", "split_line", "suggest"]

By = Literal["files", "folders", "nothing"]

FOLDERS = ("DIR", "BUILD-DIR")
"""Paths of folders, by the name that help gives the value."""
MAYBE_FILES = ("ARGUMENT...", "LINE|DIR", "LINE|VMLINUZ", "MACHINE", "PADDR=FILE", "[N=]PATH")
"""Values that may be names of files, though they are not declared as paths."""
COMMON = {"-h": "", "--help": "Show this message and exit."}


@dataclass(frozen=True)
class Suggestions:
    """Words that may come next.

    Attributes:
        by_shell: what the shell adds.
        words: each with its help, which may be empty.
    """

    by_shell: By = "nothing"
    words: dict[str, str] = field(default_factory=dict)

    def text(self, *, after_equals: bool = False) -> str:
        """Return the lines of the protocol.

        Args:
            after_equals: leave out the part of each word up to an equals sign.
        """
        lines = [
            "\t".join(filter(None, (word.partition("=")[2] if after_equals and "=" in word else word, told)))
            for word, told in self.words.items()
        ]
        return "\n".join([self.by_shell, *lines])


def print_suggestions(mode: str, arguments: Sequence[str]) -> None:
    """Answer a shell.

    Args:
        mode: "words" or "line", the value of `_HIBERNAUT_COMPLETE`.
        arguments: of the program, see this module.
    """
    words = split_line(arguments[0])[1:] if mode == "line" and arguments else list(arguments)
    *before, current = words or [""]
    print_text(suggest(before, current).text(after_equals=mode == "line" and current.startswith("--")))


def split_line(line: str) -> list[str]:
    """Return the words of a shell's line up to the cursor, the last one as far as it is typed: maybe empty."""
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # the cursor is within quotation marks
        return [*words, lexer.token]
    at_new_word = line[-1:].isspace() and not line.endswith("\\ ")
    return [*words, ""] if at_new_word or not words else words


def suggest(before: Sequence[str], current: str) -> Suggestions:
    """Return the words that may take the place of the current one; each begins with it."""
    if not before:
        return _begun(_names(None), current)
    first, *rest = before
    if first == LAB:
        if not rest:
            return _begun(_names(LAB), current)
        found = dict(commands_of(app_with(LAB), LAB)).get(f"{PROGRAM} {LAB} {rest[0]}")
        rest = rest[1:]
    elif first in {one.name for one in COMMANDS}:
        found = dict(commands_of(app_with(first)))[f"{PROGRAM} {first}"]
    else:
        return Suggestions()
    return Suggestions() if found is None else _of_command(found, rest, current)


def _names(group: str | None) -> dict[str, str]:
    """Return the commands of the program or of one of its groups, and the options of the program."""
    app = overview() if group is None else app_with(group)
    found = {name.rpartition(" ")[2]: _first_sentence(command) for name, command in commands_of(app, group)}
    options = COMMON
    if not group:
        verbose = "With --version: also print the libraries that compress and decompress images."
        options = {"--version": "Print the version and stop.", "--verbose": verbose, **COMMON}
    return {**found, **options}


def _first_sentence(command: CommandInfo) -> str:
    text = command.help or (command.callback.__doc__ if command.callback else None) or ""
    return " ".join(text.strip().split("\n\n")[0].split())


def _of_command(command: CommandInfo, before: Sequence[str], current: str) -> Suggestions:
    """Return the words that a command may take next."""
    parameters = parameters_of(command)
    by_name = {name: one for one in parameters for name in one.names}
    arguments = [one for one in parameters if isinstance(one.info, ArgumentInfo)]
    given: set[str] = set()
    waiting: Declared | None = None
    only_arguments = False
    for word in before:
        name, equals, _ = word.partition("=")
        if waiting is not None:
            waiting = None
        elif word == "--" and not only_arguments:
            only_arguments = True
        elif word.startswith("-") and word != "-" and not only_arguments:
            one = by_name.get(name)
            if one is not None:
                given.update(() if one.repeatable else one.names)
                waiting = one if one.metavar and not equals else None
        elif arguments and not arguments[0].repeatable:
            arguments.pop(0)
    if waiting is not None:
        return _values(waiting, current)
    name, equals, value = current.partition("=")
    if equals and name in by_name and not only_arguments:
        found = _values(by_name[name], value)
        return Suggestions(found.by_shell, {f"{name}={word}": told for word, told in found.words.items()})
    if current.startswith("-") and not only_arguments:
        return _begun({**_options(parameters, given), **COMMON}, current)
    return _values(arguments[0], current) if arguments else Suggestions()


def _options(parameters: Sequence[Declared], given: set[str]) -> dict[str, str]:
    return {name: next(one.sentences(), "") for one in parameters for name in one.names if name not in given}


def _values(one: Declared, current: str) -> Suggestions:
    """Return values of a parameter that begin as the current word does."""
    by_shell: By = "nothing"
    if one.is_path:
        by_shell = "folders" if one.metavar in FOLDERS else "files"
    elif one.metavar in MAYBE_FILES:
        by_shell = "files"
    values = one.choices
    if one.info.autocompletion is not None:
        values = one.info.autocompletion(current)
    return _begun(dict.fromkeys(values, ""), current, by_shell)


def _begun(words: dict[str, str], current: str, by_shell: By = "nothing") -> Suggestions:
    return Suggestions(by_shell, {word: told for word, told in _shown(words) if word.startswith(current)})


def _shown(words: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield words with the first sentence of their help, in one line. Short options are typed, not completed."""
    for word, told in words.items():
        if len(word) != 2 or not word.startswith("-"):
            yield word, re.split(r"(?<=\.) ", " ".join(told.split()))[0]
