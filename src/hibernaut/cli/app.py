# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut import __version__
from hibernaut.cli.answers import answers_
from hibernaut.cli.audit import audit_
from hibernaut.cli.common import expand_options
from hibernaut.cli.convert import convert
from hibernaut.cli.demo import demo
from hibernaut.cli.explain import explain_
from hibernaut.cli.explore import explore_
from hibernaut.cli.inspect import inspect
from hibernaut.cli.lab.app import lab
from hibernaut.cli.map import map_
from hibernaut.cli.replay import replay_
from hibernaut.cli.rewrite import rewrite
from hibernaut.cli.save import save
from hibernaut.cli.schema import schema
from hibernaut.cli.takeover import takeover
from hibernaut.cli.walk import walk

__all__ = ["app"]

app = typer.Typer(
    name="hibernaut",
    help="Linux x86-64 hibernation: page tables, the copy loop and the image, on simulated and real machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hibernaut {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Linux x86-64 hibernation: page tables, the copy loop and the image, on simulated and real machines."""


app.command()(demo)
app.command()(inspect)
app.command("map")(map_)
app.command()(walk)
app.command()(convert)
app.command()(save)
app.command()(rewrite)
app.command("audit")(expand_options(audit_))
app.command("explain")(explain_)
app.command("explore")(expand_options(explore_))
app.command("replay")(expand_options(replay_))
app.command("answers")(answers_)
app.command()(expand_options(takeover))
app.command()(schema)
app.add_typer(lab, name="lab")
