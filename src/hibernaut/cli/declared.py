# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands and their parameters as the program declares them: the annotated signatures of its functions.

Typer's own objects for a parameter differ between its releases; the declarations are this program's.
"""

from __future__ import annotations

import enum
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

__all__ = ["PROGRAM", "Declared", "commands_of", "parameters_of"]

PROGRAM = "hibernaut"


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
    def names(self) -> list[str]:
        """Names of an option, the longest first; of an argument none."""
        if isinstance(self.info, ArgumentInfo):
            return []
        # Typer takes the first name for a default; in an annotation there is no default.
        declared = [one for one in (self.info.default, *(self.info.param_decls or ())) if isinstance(one, str)]
        declared = declared or [f"--{self.name.replace('_', '-')}"]
        return [part for one in sorted(declared, key=len, reverse=True) for part in one.split("/")]

    @property
    def metavar(self) -> str:
        """Name of the value, as help prints it; of a flag empty."""
        if isinstance(self.info, OptionInfo) and self.kind is bool:
            return ""
        if self.info.metavar or not self._enumerated:
            by_kind = self.name if isinstance(self.info, ArgumentInfo) else getattr(self.kind, "__name__", "value")
            return self.info.metavar or by_kind.upper()
        return "|".join(self._enumerated)

    @property
    def term(self) -> str:
        """The parameter as the user types it."""
        return " ".join(filter(None, (", ".join(self.names), self.metavar)))

    @property
    def required(self) -> bool:
        """Whether the command cannot do without it."""
        return self.default is inspect.Parameter.empty or self.default is ...

    @property
    def choices(self) -> list[str]:
        """The words that are its values; empty if others are, too."""
        if self._enumerated:
            return self._enumerated
        words = self.metavar.split("|")
        return words if len(words) > 1 and not any(re.search("[A-Z]", word) for word in words) else []

    @property
    def _enumerated(self) -> list[str]:
        is_enum = isinstance(self.kind, type) and issubclass(self.kind, enum.Enum)
        return [str(choice.value) for choice in self.kind] if is_enum else []

    @property
    def is_path(self) -> bool:
        """Whether its value is the name of a file or a folder."""
        return isinstance(self.kind, type) and issubclass(self.kind, Path)

    def sentences(self) -> Iterator[str]:
        """Yield the help, and what the declaration says beside it."""
        told = " ".join((self.info.help or "").split())
        if told:
            yield told
        if self._enumerated:
            yield "One of " + ", ".join(f"`{choice}`" for choice in self._enumerated) + "."
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


def commands_of(app: typer.Typer, group: str | None = None) -> Iterator[tuple[str, CommandInfo]]:
    """Yield the commands of the program, or of one of its groups, each with its full name.

    Args:
        app: the program, see `app.app_with`.
        group: the group's name.
    """
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
