# SPDX-License-Identifier: GPL-2.0-or-later
"""`hibernaut process SOURCE PID`: the address space of a process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from hibernaut.cli.machine_options import MachineInside, SwapOptions
from hibernaut.cli.options import MemoryOptions, OutputOptions, SourceArgument, number, refuse_same_file
from hibernaut.cli.salvage_options import SalvageOptions
from hibernaut.errors import HibernautError
from hibernaut.kernel.address_space import AddressSpace
from hibernaut.kernel.process_core import process_core, write_process_core
from hibernaut.kernel.program import ask
from hibernaut.report.documents import ProcessDocument
from hibernaut.report.processes import process_document, process_text
from hibernaut.volumes.output import replacing

__all__ = ["process"]

RANGE = re.compile(r"([0-9a-fA-Fx]+):([0-9a-fA-Fx]+)")
MAX_READ_BYTES = 16 << 20


def _range(text: str) -> tuple[int, int]:
    match = RANGE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r}: expected VADDR:SIZE, such as 0x400000:64")
    return number(match[1]), number(match[2])


def process(
    source: SourceArgument,
    pid: Annotated[int, typer.Argument(metavar="PID", min=0, help="Number of the process.")],
    options: MemoryOptions,
    salvage: SalvageOptions,
    swap: SwapOptions,
    output: OutputOptions,
    maps: Annotated[
        bool, typer.Option("--maps", help="Show its mappings and where their pages are. Default: unless --read.")
    ] = False,
    read: Annotated[
        str | None,
        typer.Option(
            "--read",
            metavar="VADDR:SIZE",
            help="Show bytes at one of its addresses, from memory, swap or the page cache. Default: none.",
        ),
    ] = None,
    core: Annotated[
        Path | None, typer.Option("--core", metavar="OUT", help="Write an ELF core of it, for gdb. Default: none.")
    ] = None,
) -> None:
    """Show the address space of a process, its swapped-out pages included.

    A page is `resident` in the memory, `swapped` out, `untouched` by the process (zero, or as its file has it), or
    `lost`: the memory lacks its frame. It needs drgn and a kernel with BTF.
    """
    if core is not None:
        refuse_same_file(core, source, *swap.paths, option="--core")
    with swap.open(options, salvage, source, output.quiet) as inside:
        task, space, command = _space(inside, pid)
        document = process_document(pid, command, space)
        if read is not None and not maps:
            document["read"] = _read(space, *_range(read))
        if core is not None:
            _write_core(document, inside, task, space, core)
    output.answer(document, process_text)


def _space(inside: MachineInside, pid: int) -> tuple[Any, AddressSpace, str]:
    """Return a process, its address space and its name. Raises HibernautError if there is none."""
    from drgn.helpers.linux.pid import find_task

    kernel = inside.kernel
    task = ask(kernel, f"process {pid}", lambda: find_task(kernel.drgn(), pid))
    if not task:
        raise HibernautError(f"the machine has no process {pid}", advice="choose one that `hibernaut ps` lists")
    command = ask(kernel, "comm", lambda: task.comm.string_().decode("utf-8", "backslashreplace"))
    if not ask(kernel, "mm", lambda: bool(task.mm)):
        raise HibernautError(
            f"process {pid} ({command}) has no address space of its own: it is a thread of the kernel",
            advice="choose another process",
        )
    return task, AddressSpace(kernel, task.mm, inside.swapped), command


def _read(space: AddressSpace, vaddr: int, size_bytes: int) -> Any:
    if not 0 < size_bytes <= MAX_READ_BYTES:
        raise typer.BadParameter(f"--read takes 1 to {MAX_READ_BYTES} bytes; write a core for more")
    return {"vaddr": f"{vaddr:#x}", "bytes": space.read(vaddr, size_bytes).hex()}


def _write_core(document: ProcessDocument, inside: MachineInside, task: Any, space: AddressSpace, out: Path) -> None:
    found = process_core(inside.kernel, task, space)
    with replacing(out) as fd:
        write_process_core(found, space, fd)
    document["core"], document["core_missing_pages"] = str(out), found.missing_pages
    document["remarks"] = [*document["remarks"], *found.remarks]
