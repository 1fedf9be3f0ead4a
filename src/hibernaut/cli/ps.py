# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut ps SOURCE`: the processes of a machine."""

from __future__ import annotations

from typing import Annotated

import typer

from hibernaut.cli.machine_options import SwapOptions
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import FormatError
from hibernaut.kernel.clock import read_clock
from hibernaut.kernel.processes import read_processes
from hibernaut.kernel.reading import FactReader
from hibernaut.report.identity import ps_document, ps_text

__all__ = ["ps"]


def ps(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    swap: SwapOptions,
    output: OutputOptions,
    no_kernel_threads: Annotated[
        bool, typer.Option("--no-kernel-threads", help="Leave out kernel threads. Default: list them, too.")
    ] = False,
) -> None:
    """List the processes of a machine: start, user, pages in memory and in swap, arguments.

    Needs drgn. `[name]` is a kernel thread, `(name)` a process whose arguments are nowhere.
    """
    with swap.open(options, salvage, source, output.quiet) as inside:
        kernel = inside.kernel
        reader = FactReader(kernel)
        clock = reader.fact("clock", lambda: read_clock(kernel))
        processes = read_processes(reader, clock, inside.swapped)
        if processes is None:
            raise FormatError(reader.remarks[-1], source=kernel.name)
        if no_kernel_threads:
            processes = tuple(one for one in processes if not one.is_kernel)
        document = ps_document(kernel.release, clock.now_ns if clock else None, processes, reader.remarks)
    output.answer(document, ps_text)
