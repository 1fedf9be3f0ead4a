# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands and parameters that the program declares, as click knows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from typer.main import get_command

from hibernaut.cli.app import app_with

__all__ = ["arguments_of", "commands", "options_of"]


ALL = app_with()


def commands(program: typer.Typer = ALL) -> Iterator[tuple[str, Any]]:
    """Yield each command with the words that call it."""
    yield from _below(get_command(program), ())


def _below(group: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _below(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def options_of(command: Any) -> dict[str, Any]:
    """Return the options of a command by each of their names, without --help."""
    return {name: one for one in command.params if one.param_type_name == "option" for name in one.opts}


def arguments_of(command: Any) -> list[Any]:
    """Return the arguments of a command."""
    return [one for one in command.params if one.param_type_name == "argument"]
