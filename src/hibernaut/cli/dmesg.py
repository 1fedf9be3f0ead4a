# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut dmesg SOURCE`: the kernel's log."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.cli.terminal import say
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.log import read_log
from hibernaut.linux.source_tables import with_gaps
from hibernaut.report.identity import dmesg_document, dmesg_text
from hibernaut.report.text import counted

__all__ = ["dmesg"]


def dmesg(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    output: OutputOptions,
    last: Annotated[
        int | None,
        typer.Option("--last", min=1, metavar="N", help="Only the newest N messages. Default: all."),
    ] = None,
) -> None:
    """Print the kernel's log, with the time stamps that dmesg prints.

    Needs drgn. The log of kernels older than 5.10 is not read.
    """
    with salvage.open_memory(options, source, output.quiet) as opened:
        kernel = Kernel.of(opened if opened.undecided is None else with_gaps(opened))
        kernel.drgn()
        records, unread = read_log(kernel, last)
        document = dmesg_document(kernel.release, records, unread)
    if unread:
        say(f"{counted(unread, 'message')} of the log cannot be read: not in the memory", output.quiet)
    output.answer(document, dmesg_text)
