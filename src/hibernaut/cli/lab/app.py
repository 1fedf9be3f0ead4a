# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of `hibernaut lab` put together."""

from __future__ import annotations

import typer

from hibernaut.cli.common import expand_options
from hibernaut.cli.lab.boot import boot
from hibernaut.cli.lab.confirm import confirm_
from hibernaut.cli.lab.doctor import doctor
from hibernaut.cli.lab.dump import dump
from hibernaut.cli.lab.golden import golden
from hibernaut.cli.lab.hibernate import hibernate
from hibernaut.cli.lab.prove import prove_
from hibernaut.cli.lab.resume import resume
from hibernaut.cli.lab.variants import variants
from hibernaut.cli.terminal import print_text

__all__ = ["lab"]

lab = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
)


@lab.callback()
def _lab(context: typer.Context) -> None:
    """Real kernels under QEMU: boot, hibernate, dump, resume, and prove hibernaut's claims."""
    if context.invoked_subcommand is None:
        print_text(context.get_help())
        raise typer.Exit(2)


lab.command()(doctor)
lab.command()(variants)
lab.command()(expand_options(boot))
lab.command()(expand_options(hibernate))
lab.command()(expand_options(resume))
lab.command()(expand_options(dump))
lab.command()(expand_options(golden))
lab.command("prove")(prove_)
lab.command("confirm")(expand_options(confirm_))
