# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands put together."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from hibernaut import __version__
from hibernaut.cli.help import WholeHelpGroup, add_commands
from hibernaut.cli.terminal import print_text

__all__ = ["app_with", "run"]


def _version(wanted: bool) -> None:
    if wanted:
        print_text(f"hibernaut {__version__}")
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop. Default: no."),
    ] = False,
) -> None:
    """Linux x86-64 hibernation: page tables, the copy loop and the image, on simulated and real machines."""
    if context.invoked_subcommand is None:
        print_text(context.get_help())
        raise typer.Exit(2)


COMMANDS: tuple[tuple[str, str, str], ...] = (
    ("demo", "demo", "hibernaut demo"),
    ("find", "find", "hibernaut find swap.img"),
    ("inspect", "inspect", "hibernaut inspect swap.img --digests"),
    ("ps", "ps", "hibernaut ps swap.img"),
    ("dmesg", "dmesg", "hibernaut dmesg ram.elf"),
    ("map", "map_", "hibernaut map ram.elf"),
    ("walk", "walk", "hibernaut walk ram.elf 0xffffffff81000000"),
    ("convert", "convert_", "hibernaut convert swap.img memory.elf --to elf"),
    ("mount", "mount", "hibernaut mount swap.img memory"),
    ("process", "process", "hibernaut process swap.img 1"),
    ("files", "files", "hibernaut files swap.img"),
    ("drgn", "drgn", "hibernaut drgn swap.img tasks.py"),
    ("isf", "isf", "hibernaut isf swap.img"),
    ("volatility-plugins", "volatility_plugins", "hibernaut volatility-plugins"),
    ("save", "save", "hibernaut save ram.elf new.img --via fixmap"),
    ("rewrite", "rewrite", "hibernaut rewrite swap.img new.img --zero-pages yes"),
    ("audit", "audit_", "hibernaut audit swap.img"),
    ("explain", "explain_", "hibernaut explain --rules 6.12"),
    ("explore", "explore_", "hibernaut explore --layout regions=1 --via fixmap"),
    ("replay", "replay_", "hibernaut replay run.json"),
    ("answers", "answers_", 'hibernaut answers --study "line 7.3" --write page.md'),
    ("takeover", "takeover", "hibernaut takeover --keep disks"),
    ("schema", "schema", "hibernaut schema lab prove"),
)
"""Name, function in the command's module, and example; its files are those that the tests provide."""


LAB = "lab"


def app_with(wanted: str | None = None) -> typer.Typer:
    """Return the program with one command, or with all: a module is imported with its command only.

    Args:
        wanted: name of the command; None for all.
    """
    made = typer.Typer(
        name="hibernaut",
        cls=WholeHelpGroup,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(_options)
    chosen = [command for command in COMMANDS if wanted in (None, command[0])]
    add_commands(made, ((name, _function(name, function), example) for name, function, example in chosen))
    if wanted in (None, LAB):
        made.add_typer(import_module("hibernaut.cli.lab.app").lab, name=LAB)
    return made


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status. Every failure is raised as an exception."""
    first = arguments[0] if arguments else None
    is_known = first == LAB or first in {name for name, _, _ in COMMANDS}
    try:
        with get_command(app_with(first if is_known else None)).make_context("hibernaut", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _function(name: str, function: str) -> Callable[..., Any]:
    """Return the function of a command, which its module has."""
    found: Callable[..., Any] = getattr(import_module(f"hibernaut.cli.{name.replace('-', '_')}"), function)
    return found
