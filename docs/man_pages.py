# SPDX-License-Identifier: GPL-2.0-or-later
"""Manual pages, made of the commands' own help: hibernaut(1), and a page for each command, as git has them.

`python docs/man_pages.py FOLDER DATE` writes them; `make man` calls it with the date of the last commit. The pages use
the macros of man(7) that groff and mandoc share.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from typer.models import CommandInfo

from hibernaut import __version__
from hibernaut.cli import main
from hibernaut.cli.app import COMMANDS, LAB, LAB_SUMMARY, app_with
from hibernaut.cli.declared import PROGRAM, Declared, commands_of, parameters_of

__all__ = ["pages", "write_pages"]

SECTION = "1"
OPTIONS, OUTPUT = "Options", "Output"
HELP = "\\fB\\-h\\fR, \\fB\\-\\-help\\fR"
REQUESTS = ('.\\"', ".ad", ".nh", ".EE", ".EX", ".PP", ".SH", ".SS", ".TH", ".TP")
WIDTH = 80
LONG_WORD = re.compile(r"\S{60,}")
CHARACTERS = str.maketrans({"\\": "\\e", "-": "\\-", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", "`": "\\(ga"})
"""Characters that roff would show as others, or take for its own."""


def write_pages(folder: Path, date: str) -> None:
    """Write all pages into a folder, which is made if necessary.

    Args:
        folder: the folder.
        date: date of the program, YYYY-MM-DD.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages(date):
        (folder / f"{name}.{SECTION}").write_text(text)


def pages(date: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each page."""
    app = app_with()
    found = [*commands_of(app), *commands_of(app, LAB)]
    top = [(one.name, one.summary) for one in COMMANDS]
    inside = [(name.rpartition(" ")[2], _paragraphs(command)[0]) for name, command in commands_of(app, LAB)]
    assert app.registered_callback is not None
    summary = inspect.getdoc(app.registered_callback.callback) or ""
    yield PROGRAM, _lines(_overview(PROGRAM, date, summary, [*top, (LAB, LAB_SUMMARY)]))
    yield f"{PROGRAM}-{LAB}", _lines(_overview(f"{PROGRAM} {LAB}", date, LAB_SUMMARY, inside))
    for name, command in found:
        yield name.replace(" ", "-"), _lines(_page(name, date, command))


def _page(name: str, date: str, command: CommandInfo) -> Iterator[str]:
    """Yield the lines of a command's page."""
    parameters = parameters_of(command)
    arguments = [one for one in parameters if not one.names]
    summary, *rest = _paragraphs(command)
    yield from _head(name, date, summary[:1].lower() + summary[1:])
    words = ["[\\fIOPTIONS\\fR]", *(_argument(one) for one in arguments)]
    yield f"\\fB{_text(name)}\\fR {' '.join(words)}"
    yield ".SH DESCRIPTION"
    yield from _in_paragraphs([summary, *rest])
    if arguments:
        yield ".SH ARGUMENTS"
        yield from _tagged(arguments)
    sections: dict[str, list[Declared]] = {OPTIONS: [], OUTPUT: []}
    for one in parameters:
        if one.names:
            sections.setdefault(getattr(one.info, "rich_help_panel", None) or OPTIONS, []).append(one)
    sections[OUTPUT] = sections.pop(OUTPUT)
    yield ".SH OPTIONS"
    for heading, options in sections.items():
        if options:
            yield from [] if heading == OPTIONS else [f".SS {_text(heading)}"]
            yield from _tagged(options)
    yield from _tag(HELP, ["Print the help and stop."])
    yield from _exit_status()
    if command.epilog:
        yield ".SH EXAMPLES"
        yield from [".EX", f"$ {_text(command.epilog)}", ".EE"]
    yield from _see_also([PROGRAM, *([f"{PROGRAM}-{LAB}"] if name.startswith(f"{PROGRAM} {LAB} ") else [])])


def _overview(name: str, date: str, summary: str, commands: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of the page of the program, or of a group of commands."""
    yield from _head(name, date, summary)
    yield f"\\fB{_text(name)}\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]"
    yield ".SH DESCRIPTION"
    yield from _in_paragraphs([summary, "Each command has a page of its own, and prints a shorter one with `--help`."])
    yield ".SH COMMANDS"
    for word, told in commands:
        page = f"{name} {word}".replace(" ", "-")
        yield from _tag(f"\\fB{_text(page)}\\fR({SECTION})", [told])
    if name == PROGRAM:
        yield ".SH OPTIONS"
        yield from _tag("\\fB\\-\\-version\\fR", ["Print the version and stop."])
        yield from _tag(HELP, ["Print the list of commands and stop."])
    yield from _exit_status()
    yield from _see_also([] if name == PROGRAM else [PROGRAM])


def _head(name: str, date: str, summary: str) -> Iterator[str]:
    page = name.replace(" ", "-")
    yield ".\\\" Made of the program's help by docs/man_pages.py."
    yield f'.TH {_text(page.upper())} {SECTION} {date} "{PROGRAM} {__version__}" "User Commands"'
    yield from [".nh", ".ad l"]  # values of options stay whole
    yield ".SH NAME"
    yield f"{_text(page)} \\- {_text(summary.rstrip('.'))}"
    yield ".SH SYNOPSIS"


def _exit_status() -> Iterator[str]:
    """Yield the section on exit statuses, which the docstring of `cli.main` lists."""
    _, listed = (inspect.getdoc(main) or "").split("\n\n")
    yield ".SH EXIT STATUS"
    yield from _in_paragraphs([" ".join(listed.split())])


def _see_also(others: list[str]) -> Iterator[str]:
    if others:
        yield ".SH SEE ALSO"
        yield ",\n".join(f"\\fB{_text(one)}\\fR({SECTION})" for one in others)


def _argument(one: Declared) -> str:
    shown = f"\\fI{_text(one.metavar)}\\fR"
    return shown if one.required else f"[{shown}]"


def _tagged(parameters: Iterable[Declared]) -> Iterator[str]:
    for one in parameters:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in one.names)
        value = f"\\fI{_text(one.metavar)}\\fR" if one.metavar else ""
        yield from _tag(" ".join(filter(None, (names, value))), one.sentences())


def _tag(tag: str, sentences: Iterable[str]) -> Iterator[str]:
    yield ".TP"
    yield tag
    yield _with_code(" ".join(sentences))


def _paragraphs(command: CommandInfo) -> list[str]:
    text = command.help or inspect.getdoc(command.callback) or ""
    return [" ".join(one.split()) for one in re.split(r"\n\s*\n", text.strip()) if one.strip()]


def _in_paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for at, text in enumerate(texts):
        yield from [".PP"] if at else []
        yield _with_code(text)


def _with_code(text: str) -> str:
    """Return text with the parts that stand between backquotes in bold."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return _text(text)
    return "".join(f"\\fB{_text(part)}\\fR" if at % 2 else _text(part) for at, part in enumerate(parts))


def _text(text: str) -> str:
    """Return text as roff shows it; a list without spaces that no line holds may break after its commas."""
    return LONG_WORD.sub(lambda word: word[0].replace(",", ",\\:"), text.translate(CHARACTERS))


def _lines(lines: Iterable[str]) -> str:
    """Return the text of a page: a sentence begins a line, lines are short, none begins as a request by accident."""
    return "".join(f"{part}\n" for line in lines for part in _short(line))


def _short(line: str) -> Iterator[str]:
    if line.startswith(REQUESTS):
        yield line
        return
    for sentence in re.split(r"(?<=[.?!])\s+(?=\S)", line):
        for part in textwrap.wrap(sentence, WIDTH, break_long_words=False, break_on_hyphens=False):
            yield f"\\&{part}" if part.startswith(".") else part


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]), sys.argv[2])
