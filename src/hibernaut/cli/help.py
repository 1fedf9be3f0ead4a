# SPDX-License-Identifier: GPL-2.0-or-later
"""Help in plain text of 80 columns: options in sections, an example that can be copied at the end."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "ExampleCommand", "WholeHelpGroup", "add_commands"]

Command = tuple[str, Callable[..., None], str]
"""Name, function and example of a command."""

ARGUMENTS, OPTIONS, OUTPUT = "Arguments", "Options", "Output"
MAX_NAMES_COLUMNS = 30
SAID_ALREADY = ("default: ", "required")
"""Notes that click adds to a help text that states them already."""


class ExampleCommand(TyperCommand):
    """A command with options in sections (`rich_help_panel`) and an example as its epilog."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel: arguments and the command's own options first, output last."""
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section_of(parameter), []).append((record[0], _without_notes(record[1])))
        sections[OUTPUT] = sections.pop(OUTPUT, [])
        for name, records in sections.items():
            if records:
                formatter.write(f"\n{name}:\n")
                formatter.write(_in_columns(records, formatter.width))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the example on a line of its own, never wrapped, so that it can be copied."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write(f"Example:\n  $ {self.epilog}\n")

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002
        """Return the first paragraph of the help, whole: the list of commands wraps it."""
        return _first_paragraph(self.help)


class WholeHelpGroup(TyperGroup):
    """A group of such commands."""

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002
        """Return the first paragraph of the help, whole."""
        return _first_paragraph(self.help)


def add_commands(app: typer.Typer, commands: Iterable[Command]) -> None:
    """Register commands, each with an example at the end of its help."""
    from hibernaut.cli.options import expand_options  # and all that options are made of: the overview does without

    for name, function, example in commands:
        app.command(name, cls=ExampleCommand, epilog=example)(expand_options(function))


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _section_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    if parameter.name == "help":
        return OUTPUT
    return getattr(parameter, "rich_help_panel", None) or OPTIONS


def _without_notes(text: str) -> str:
    """Return a help text without the notes in brackets at its end that it states itself."""
    found = re.fullmatch(r"(.*?)\s*\[([^\[\]]*)\]", text, re.DOTALL)
    if found is None:
        return text
    notes = [note for note in found[2].split("; ") if not note.startswith(SAID_ALREADY)]
    return f"{found[1]}  [{'; '.join(notes)}]" if notes else found[1]


def _in_columns(records: list[tuple[str, str]], width: int) -> str:
    """Return names and texts in two columns. Words with hyphens, as names of options and values are, stay whole."""
    indent = 2 + 2 + min(MAX_NAMES_COLUMNS, max(len(names) for names, _ in records))
    lines = []
    for names, text in records:
        wrapped = textwrap.wrap(text, width - indent, break_on_hyphens=False)
        if len(names) > indent - 4:
            lines.append(f"  {names}")
        else:
            lines.append(f"  {names}".ljust(indent) + wrapped.pop(0))
        lines += [" " * indent + line for line in wrapped]
    return "".join(f"{line}\n" for line in lines)
