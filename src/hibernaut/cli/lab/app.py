# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of `hibernaut lab` put together."""

from __future__ import annotations

import typer

from hibernaut.cli.help import Command, WholeHelpGroup, add_commands
from hibernaut.cli.lab.boot import boot
from hibernaut.cli.lab.build import build
from hibernaut.cli.lab.confirm import confirm_
from hibernaut.cli.lab.depletion import depletion
from hibernaut.cli.lab.doctor import doctor
from hibernaut.cli.lab.dump import dump
from hibernaut.cli.lab.fuzz_resume import fuzz_resume
from hibernaut.cli.lab.golden import golden
from hibernaut.cli.lab.hibernate import hibernate
from hibernaut.cli.lab.judge import judge
from hibernaut.cli.lab.kselftest import kselftest
from hibernaut.cli.lab.prove import prove_
from hibernaut.cli.lab.resume import resume
from hibernaut.cli.lab.survey import survey_
from hibernaut.cli.lab.trace import trace
from hibernaut.cli.lab.variants import variants
from hibernaut.cli.terminal import print_text

__all__ = ["lab"]

lab = typer.Typer(
    cls=WholeHelpGroup,
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


COMMANDS: tuple[Command, ...] = (
    ("doctor", doctor, "hibernaut lab doctor"),
    ("variants", variants, "hibernaut lab variants"),
    ("boot", boot, 'hibernaut lab boot --run "uname -r"'),
    ("build", build, "hibernaut lab build --source 6.1 --cure fixmap"),
    ("hibernate", hibernate, "hibernaut lab hibernate guest --variant hole-2m"),
    ("resume", resume, "hibernaut lab resume guest"),
    ("trace", trace, "hibernaut lab trace guest --variant hole-2m"),
    ("dump", dump, "hibernaut lab dump new.elf --variant secret"),
    ("golden", golden, "hibernaut lab golden data --kernel 6.12"),
    ("prove", prove_, "hibernaut lab prove --quick"),
    ("judge", judge, "hibernaut lab judge --case 2m-above"),
    ("kselftest", kselftest, "hibernaut lab kselftest selftest"),
    ("survey", survey_, "hibernaut lab survey --kernel 6.12"),
    ("confirm", confirm_, "hibernaut lab confirm run.json"),
    ("depletion", depletion, "hibernaut lab depletion --blocks 64 --splits 30"),
    ("fuzz-resume", fuzz_resume, "hibernaut lab fuzz-resume --images 100"),
)
add_commands(lab, COMMANDS)
