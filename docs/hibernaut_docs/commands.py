# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `hibernaut-commands`: the reference of the command line, as the program declares it.

The page cannot differ from `--help`: both come from the same declarations, the annotated signatures of the commands.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Union, get_args, get_origin

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from hibernaut.cli.app import app_with

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["Declared", "add_sections", "command_text", "commands_of", "parameters_of", "setup"]

PROGRAM = "hibernaut"
SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|$~^])")
"""Characters that Markdown would take for markup."""


class Commands(SphinxDirective):
    """A section for each command: all of the program, or those of the group that the argument names."""

    optional_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        group = self.arguments[0] if self.arguments else None
        found = [line for name, command in commands_of(group) for line in command_text(name, command)]
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


@dataclass(frozen=True)
class Declared:
    """A parameter of a command.

    Attributes:
        name: of the function's parameter.
        info: what the command declares of it.
        kind: its type; of a list that of its members, without None.
        repeatable: whether it is a list.
        default: its default; `inspect.Parameter.empty` if it has none.
    """

    name: str
    info: ArgumentInfo | OptionInfo
    kind: Any
    repeatable: bool
    default: Any

    @property
    def term(self) -> str:
        """The parameter as the user types it."""
        if isinstance(self.info, ArgumentInfo):
            return self.info.metavar or self.name.upper()
        # Typer takes the first name for a default; in an annotation there is no default.
        declared = [one for one in (self.info.default, *(self.info.param_decls or ())) if isinstance(one, str)]
        declared = declared or [f"--{self.name.replace('_', '-')}"]
        names = ", ".join(part for one in sorted(declared, key=len, reverse=True) for part in one.split("/"))
        if self.kind is bool:
            return names
        return f"{names} {self.info.metavar or getattr(self.kind, '__name__', 'value').upper()}"

    @property
    def required(self) -> bool:
        """Whether the command cannot do without it."""
        return self.default is inspect.Parameter.empty or self.default is ...

    def text(self) -> Iterator[str]:
        """Yield sentences: the help, and what the declaration says beside it."""
        told = " ".join((self.info.help or "").split())
        if told:
            yield _escaped(told)
        if isinstance(self.kind, type) and issubclass(self.kind, enum.Enum):
            yield "One of " + ", ".join(f"`{choice.value}`" for choice in self.kind) + "."
        if self.required and isinstance(self.info, OptionInfo) and "Required" not in told:
            yield "Required."
        if self.repeatable and "repeatable" not in told:
            yield "Repeatable."
        if not self.required and self.info.show_default and "Default" not in told and self.kind is not bool:
            value = getattr(self.default, "value", self.default)
            if value not in (None, "", ()):
                yield f"Default: `{value}`."
        if self.info.envvar:
            yield f"Environment variable: `{self.info.envvar}`."


def commands_of(group: str | None) -> Iterator[tuple[str, CommandInfo]]:
    """Yield the commands of the program, or of one of its groups, each with its full name.

    Args:
        group: the group's name.
    """
    app = app_with()
    if group is not None:
        app = next(one.typer_instance for one in app.registered_groups if one.name == group and one.typer_instance)
    for command in app.registered_commands:
        if not command.hidden:
            assert command.callback is not None
            name = command.name or command.callback.__name__.replace("_", "-")
            yield " ".join(filter(None, (PROGRAM, group, name))), command


def parameters_of(command: CommandInfo) -> list[Declared]:
    """Return the parameters of a command, in their order."""
    assert command.callback is not None
    found = []
    for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated:
            continue
        kind, *declared = get_args(parameter.annotation)
        info = next((one for one in declared if isinstance(one, ArgumentInfo | OptionInfo)), None)
        if info is None or info.hidden:
            continue
        kind = _without_none(kind)
        repeatable = get_origin(kind) is list
        found.append(
            Declared(parameter.name, info, get_args(kind)[0] if repeatable else kind, repeatable, parameter.default)
        )
    return found


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (types.UnionType, Union):
        return next(one for one in get_args(kind) if one is not types.NoneType)
    return kind


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
        yield f"````{{option}} {one.term}\n{' '.join(one.text())}\n````\n"
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
