# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's symbols as drgn reads kallsyms: the witness for our own reading."""

from __future__ import annotations

from typing import Any

import pytest

from hibernaut.memory.declarations import START_KERNEL_MAP
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.vmcoreinfo import parse_vmcoreinfo
from tests.kernel.stopped import StoppedKernel


def symbols_by_drgn(kernel: StoppedKernel) -> list[Any]:
    """Return all symbols of a kernel, from drgn's own reader of kallsyms."""
    return drgn_symbols(kernel.memory, kernel.text)


def drgn_symbols(memory: PhysicalMemory, vmcoreinfo: bytes) -> list[Any]:
    """Return all symbols of the kernel in a memory, from drgn's own reader of kallsyms."""
    drgn = pytest.importorskip("drgn", reason="drgn is not installed: pip install drgn")
    kallsyms = pytest.importorskip("drgn.helpers.linux.kallsyms")
    phys_base = int(parse_vmcoreinfo(vmcoreinfo)["NUMBER(phys_base)"])
    program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    program.set_linux_kernel_custom(vmcoreinfo, is_live=False)

    kept: dict[int, bytes | None] = {}

    def read(address: int, count: int, _offset: int, physical: bool) -> bytes:
        paddr = address if physical else address - START_KERNEL_MAP + phys_base
        pages = []
        for pfn in range(paddr >> 12, (paddr + count + 4095) >> 12):
            if pfn not in kept:
                kept[pfn] = memory.read(pfn << 12, 4096)
            page = kept[pfn]
            if page is None:
                raise drgn.FaultError("not in memory", address)
            pages.append(page)
        return b"".join(pages)[paddr & 4095 :][:count]

    program.add_memory_segment(0, 1 << 46, read, physical=True)
    program.add_memory_segment(START_KERNEL_MAP, 1 << 30, read, physical=False)
    # Asked by itself: the program has the finder of hibernaut's own plug-in, too.
    return list(kallsyms.load_vmlinux_kallsyms(program)(program, None, None, False))
