# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of the CPU that hibernates, out of an image: the note NT_PRSTATUS of its core.

`swsusp_arch_suspend` (arch/x86/power/hibernate_asm_64.S) saves them in `saved_context` before it calls `swsusp_save`,
but for RIP: its stack pointer is that at its entry, where the return address lies. The other CPUs are offline then.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.kernel_memory import u64_at
from hibernaut.kernel.process_core import NOTE_NAME, NT_PRSTATUS
from hibernaut.kernel.symbols import SymbolicKernel
from hibernaut.memory.elf import Note

if TYPE_CHECKING:
    from hibernaut.sources import Source

__all__ = ["hibernating_cpu_note"]

SAVED = ("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di")
"""First members of `struct pt_regs` (arch/x86/include/asm/ptrace.h), in the order of `struct user_regs_struct`."""
KERNEL_CS, KERNEL_DS = 0x10, 0x18
"""`__KERNEL_CS`, `__KERNEL_DS` (arch/x86/include/asm/segment.h)."""
HEAD = struct.Struct("<32xi76x")
"""`struct elf_prstatus` (include/uapi/linux/elfcore.h) before its registers: of its members `pr_pid` alone."""
NO_SYSTEM_CALL = (1 << 64) - 1
"""`orig_ax` outside of a system call."""


def hibernating_cpu_note(source: Source, vmcoreinfo: bytes | None) -> Note | None:
    """Return the note with the registers of the CPU that hibernates; None if they are not known, or not read.

    Args:
        source: an image; any other source has none.
        vmcoreinfo: text of its kernel's VMCOREINFO.
    """
    if source.image is None or source.foreign is not None or not vmcoreinfo:
        return None
    try:
        return _note_of(SymbolicKernel(source.memory, vmcoreinfo, source.name))
    except FormatError:
        return None


def _note_of(kernel: SymbolicKernel) -> Note | None:
    """Return the note of a kernel. Raises FormatError if its registers cannot be read."""
    try:
        context = kernel.layouts.structure("saved_context")
        registers = kernel.layouts.structure("pt_regs")
        first = kernel.symbols["saved_context"].address + context.offsets["regs"]
        saved = kernel.read(first, registers.size_bytes, "saved_context")
        found = {name: u64_at(saved, registers.offsets[name]) for name in (*SAVED, "flags", "sp")}
        number = _number_of_current(kernel)
    except KeyError:
        return None
    entry = kernel.symbols["swsusp_arch_suspend"].address
    back = kernel.u64(found["sp"], "stack of the task that hibernates")
    if not kernel.symbols["_stext"].address <= back < kernel.symbols["_etext"].address:
        return None
    words = (
        *(found[name] for name in SAVED),
        *(NO_SYSTEM_CALL, entry, KERNEL_CS, found["flags"], found["sp"], KERNEL_DS),
        *(0, 0, 0, 0, 0, 0),
    )
    return Note(NOTE_NAME, NT_PRSTATUS, HEAD.pack(number) + struct.pack("<27Qii", *words, 0, 0))


def _number_of_current(kernel: SymbolicKernel) -> int:
    """Return the PID of the task that the first CPU runs, `current`: drgn finds the registers by it.

    It is a variable of its own, or a member of `pcpu_hot` where the kernel has that.

    Raises:
        FormatError: it cannot be read.
        KeyError: a structure's layout is unknown.
    """
    hot = kernel.symbols.get("pcpu_hot")
    if hot is not None:
        place = hot.address + kernel.layouts.structure("pcpu_hot").offsets["current_task"]
    else:
        place = kernel.symbols["current_task"].address
    area = kernel.u64(kernel.symbols["__per_cpu_offset"].address, "__per_cpu_offset")
    task = kernel.u64((area + place) % (1 << 64), "current_task")
    return kernel.u32(task + kernel.layouts.structure("task_struct").offsets["pid"], "task_struct")
