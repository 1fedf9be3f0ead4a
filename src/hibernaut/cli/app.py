# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.main import get_command

from hibernaut import __version__
from hibernaut.cli.answers import answers_
from hibernaut.cli.audit import audit_
from hibernaut.cli.convert import convert_
from hibernaut.cli.demo import demo
from hibernaut.cli.dmesg import dmesg
from hibernaut.cli.drgn import drgn
from hibernaut.cli.explain import explain_
from hibernaut.cli.explore import explore_
from hibernaut.cli.files import files
from hibernaut.cli.find import find
from hibernaut.cli.help import Command, WholeHelpGroup, add_commands
from hibernaut.cli.inspect import inspect
from hibernaut.cli.isf import isf
from hibernaut.cli.lab.app import lab
from hibernaut.cli.map import map_
from hibernaut.cli.mount import mount
from hibernaut.cli.process import process
from hibernaut.cli.ps import ps
from hibernaut.cli.replay import replay_
from hibernaut.cli.rewrite import rewrite
from hibernaut.cli.save import save
from hibernaut.cli.schema import schema
from hibernaut.cli.takeover import takeover
from hibernaut.cli.terminal import print_text
from hibernaut.cli.volatility_plugins import volatility_plugins
from hibernaut.cli.walk import walk

__all__ = ["app", "run"]

app = typer.Typer(
    name="hibernaut",
    cls=WholeHelpGroup,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit status. Every failure is raised as an exception."""
    try:
        with get_command(app).make_context("hibernaut", arguments) as context:
            context.command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        print_text(f"hibernaut {__version__}")
        raise typer.Exit


@app.callback()
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


COMMANDS: tuple[Command, ...] = (
    ("demo", demo, "hibernaut demo"),
    ("find", find, "hibernaut find swap.img"),
    ("inspect", inspect, "hibernaut inspect swap.img --digests"),
    ("ps", ps, "hibernaut ps swap.img"),
    ("dmesg", dmesg, "hibernaut dmesg ram.elf"),
    ("map", map_, "hibernaut map ram.elf"),
    ("walk", walk, "hibernaut walk ram.elf 0xffffffff81000000"),
    ("convert", convert_, "hibernaut convert swap.img memory.elf --to elf"),
    ("mount", mount, "hibernaut mount swap.img memory"),
    ("process", process, "hibernaut process swap.img 1"),
    ("files", files, "hibernaut files swap.img"),
    ("drgn", drgn, "hibernaut drgn swap.img tasks.py"),
    ("isf", isf, "hibernaut isf swap.img"),
    ("volatility-plugins", volatility_plugins, "hibernaut volatility-plugins"),
    ("save", save, "hibernaut save ram.elf new.img --via fixmap"),
    ("rewrite", rewrite, "hibernaut rewrite swap.img new.img --zero-pages yes"),
    ("audit", audit_, "hibernaut audit swap.img"),
    ("explain", explain_, "hibernaut explain --rules 6.12"),
    ("explore", explore_, "hibernaut explore --layout regions=1 --via fixmap"),
    ("replay", replay_, "hibernaut replay run.json"),
    ("answers", answers_, 'hibernaut answers --study "line 7.3" --write page.md'),
    ("takeover", takeover, "hibernaut takeover --keep disks"),
    ("schema", schema, "hibernaut schema lab prove"),
)
"""The names of files in the examples are those that the tests provide."""

add_commands(app, COMMANDS)
app.add_typer(lab, name="lab")
