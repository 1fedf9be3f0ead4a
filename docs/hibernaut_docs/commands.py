# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `hibernaut-commands`: the reference of the command line, as the program declares it.

The page cannot differ from `--help`: both come from the same declarations, the annotated signatures of the commands.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from hibernaut.cli.app import app_with
from hibernaut.cli.declared import PROGRAM, commands_of, parameters_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["add_sections", "command_text", "setup"]

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~^])")
"""Characters that Markdown would take for markup."""


class Commands(SphinxDirective):
    """A section for each command: all of the program, or those of the group that the argument names."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        group = self.arguments[0] if self.arguments else None
        found = [line for name, command in commands_of(app_with(), group) for line in command_text(name, command)]
        return add_sections(self, "\n".join(found))


def add_sections(directive: SphinxDirective, text: str) -> list[nodes.Node]:
    """Parse sections of Markdown, the first with a target before it, and return the nodes of the directive.

    The parser adds the sections to the page and leaves the first target to the directive, behind them: its name moves
    to the section.
    """
    document = directive.state.document
    known = set(document.findall(nodes.section))
    (target,) = directive.parse_text_to_nodes(text, allow_section_headings=True)
    assert isinstance(target, nodes.target)
    first = next(one for one in document.findall(nodes.section) if one not in known)
    first["ids"] += target["ids"]
    document.ids.update(dict.fromkeys(target["ids"], first))
    return []


def command_text(name: str, command: CommandInfo) -> Iterator[str]:
    """Yield the lines of a command's section, in Markdown."""
    parameters = parameters_of(command)
    arguments = [one for one in parameters if isinstance(one.info, ArgumentInfo)]
    options = [one for one in parameters if isinstance(one.info, OptionInfo)]
    usage = [name, "[OPTIONS]", *(one.term if one.required else f"[{one.term}]" for one in arguments)]
    yield f"({name.replace(' ', '-')})="
    yield f"## {name.removeprefix(PROGRAM).strip()}"
    yield ""
    yield f"```{{program}} {name}\n```\n"
    yield f"```text\n{' '.join(usage)}\n```\n"
    yield from _paragraphs(command.help or inspect.getdoc(command.callback) or "")
    for one in (*arguments, *options):
        yield f"````{{option}} {one.term}\n{' '.join(map(_escaped, one.sentences()))}\n````\n"
    if command.epilog:
        yield f"```text\n$ {command.epilog}\n```\n"


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in filter(None, re.split(r"\n\s*\n", text.strip())):
        yield _escaped(" ".join(paragraph.split()))
        yield ""


def _escaped(text: str) -> str:
    """Return text for Markdown; text in backquotes stays code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return SPECIAL.sub(r"\\\1", text)
    return "".join(f"`{part}`" if at % 2 else SPECIAL.sub(r"\\\1", part) for at, part in enumerate(parts))


def setup(app: Sphinx) -> None:
    """Register the directive."""
    app.add_directive("hibernaut-commands", Commands)
