# SPDX-License-Identifier: GPL-2.0-or-later
"""Help in plain text of 80 columns: options in sections, an example that can be copied at the end."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["ExampleCommand", "WholeHelpGroup"]

ARGUMENTS, OPTIONS, OUTPUT = "Arguments", "Options", "Output"


class ExampleCommand(TyperCommand):
    """A command whose options stand in sections (`rich_help_panel`) and whose epilog is its example."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel: arguments and the command's own options first, output last."""
        sections: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section_of(parameter), []).append(record)
        sections[OUTPUT] = sections.pop(OUTPUT, [])
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)

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


def _first_paragraph(text: str | None) -> str:
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def _section_of(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return ARGUMENTS
    if parameter.name == "help":
        return OUTPUT
    return getattr(parameter, "rich_help_panel", None) or OPTIONS
