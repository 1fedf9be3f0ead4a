# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut drgn SOURCE [SCRIPT]`: drgn on an image or a dump, in place, with the kernel's own types."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

from hibernaut.cli.machine_options import MachineInside, SwapOptions
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import FormatError
from hibernaut.kernel.address_space import AddressSpace
from hibernaut.report.processes import drgn_document

__all__ = ["drgn"]


def drgn(
    source: SourceArgument,
    options: MemoryOptions,
    salvage: SalvageOptions,
    swap: SwapOptions,
    output: OutputOptions,
    script: Annotated[
        Path | None,
        typer.Argument(metavar="SCRIPT", help="Script to run, with `prog` defined. Default: drgn's prompt."),
    ] = None,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT...", help="Arguments of the script. Default: none.")
    ] = None,
) -> None:
    """Open a dump or an image in drgn: all symbols and types of its kernel and modules, without debug packages.

    drgn's helpers read swapped-out pages of processes, too. Stacks break off where the kernel's unwind tables would be
    needed. With --json, the document says what drgn is given, and nothing is run. It needs drgn and a kernel with BTF.
    """
    with swap.open(options, salvage, source, output.quiet, on_demand=True) as inside, _reads_swapped(inside):
        program = inside.kernel.drgn()
        if inside.kernel.btf is None:
            raise FormatError(inside.kernel.btf_trouble or "the kernel has no BTF")
        if output.json:
            output.answer(drgn_document(inside.kernel, sorted(inside.swapped.files)), str)
            return
        if script is None:
            _prompt(program)
        else:
            _run(program, script, arguments or [])


@contextmanager
def _reads_swapped(inside: MachineInside) -> Iterator[None]:
    """Let drgn's helpers read a process's memory wherever its pages are, for as long as the context lasts."""
    import drgn as library
    from drgn.helpers.linux import mm as helpers

    def access_remote_vm(mm: Any, address: Any, size: Any) -> bytes:
        """Read memory of a process; see drgn's helper of this name."""
        try:
            return AddressSpace(inside.kernel, mm, inside.swapped).read(int(address), int(size))
        except FormatError as error:
            raise library.FaultError(str(error), int(address)) from error

    with mock.patch.object(helpers, "access_remote_vm", access_remote_vm):
        yield


def _prompt(program: Any) -> None:
    from drgn.cli import run_interactive

    run_interactive(program)


def _run(program: Any, script: Path, arguments: list[str]) -> None:
    """Run a script as drgn's command does: `prog` is the default program, and `sys.argv` is the script's."""
    import drgn as library

    library.set_default_prog(program)
    try:
        with mock.patch.object(sys, "argv", [str(script), *arguments]):
            runpy.run_path(str(script), init_globals={"prog": program}, run_name="__main__")
    finally:
        library.set_default_prog(None)
