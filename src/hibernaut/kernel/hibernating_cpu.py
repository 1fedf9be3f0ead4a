# SPDX-License-Identifier: GPL-2.0-or-later
"""The registers of the CPU that hibernates, out of an image: the note NT_PRSTATUS of its core.

`swsusp_arch_suspend` (arch/x86/power/hibernate_asm_64.S) saves them in `saved_context`, each at its place in `struct
pt_regs`, before it calls `swsusp_save`; but for RIP: its stack pointer is that at its entry, where the return address
lies. The other CPUs are offline then.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.kernel.kernel_memory import u64_at
from hibernaut.kernel.process_core import NOTE_NAME, NT_PRSTATUS
from hibernaut.kernel.restore_entry import data_loaded_at_restore_entry
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
MOST_BEHIND_BYTES = 64
"""Bytes behind the registers in which the base of GS is looked for."""
MOST_STACK_BYTES = 64 << 10
"""Bound for `THREAD_SIZE` (arch/x86/include/asm/page_64_types.h): 16 KiB, more with KASAN."""


def hibernating_cpu_note(source: Source, vmcoreinfo: bytes | None) -> Note | None:
    """Return the note with the registers of the CPU that hibernates; None if they are not known, or not read.

    Args:
        source: an image; any other source has none.
        vmcoreinfo: text of its kernel's VMCOREINFO.
    """
    if source.any_image is None or source.foreign is not None or not vmcoreinfo:
        return None
    try:
        return _note_of(SymbolicKernel(source.memory, vmcoreinfo, source.name, on_demand=True), source)
    except FormatError:
        return None


def _note_of(kernel: SymbolicKernel, source: Source) -> Note | None:
    """Return the note of a kernel. Raises FormatError if its registers cannot be read."""
    context, entry = _places(kernel, source)
    try:
        registers = kernel.layouts.structure("pt_regs")
        saved = kernel.read(context, registers.size_bytes, "saved_context")
        found = {name: u64_at(saved, registers.offsets[name]) for name in (*SAVED, "flags", "sp")}
        number = _number_of_owner(kernel, context + registers.size_bytes, found["sp"])
        if number is None:
            number = _number_of_current(kernel)
    except KeyError:
        return None
    back = kernel.u64(found["sp"], "stack of the task that hibernates")
    if back < kernel.symbols["_stext"].address or (back >= entry and back >= kernel.symbols["_etext"].address):
        return None
    words = (
        *(found[name] for name in SAVED),
        *(NO_SYSTEM_CALL, entry, KERNEL_CS, found["flags"], found["sp"], KERNEL_DS),
        *(0, 0, 0, 0, 0, 0),
    )
    return Note(NOTE_NAME, NT_PRSTATUS, HEAD.pack(number) + struct.pack("<27Qii", *words, 0, 0))


def _places(kernel: SymbolicKernel, source: Source) -> tuple[int, int]:
    """Return the address of `saved_context`, and that of `swsusp_arch_suspend`.

    The image has the address of a function next to the latter, and the code there that of the former: their names are
    looked for there first. Raises FormatError if the kernel lacks either.
    """
    loaded = data_loaded_at_restore_entry(source)
    info = source.any_image.info if source.any_image is not None else None
    restore = None if info is None else info.jump_address
    found = []
    for name, address in (("saved_context", loaded), ("swsusp_arch_suspend", restore)):
        symbol = kernel.symbols.near(name, address) if address else None
        found.append((symbol or kernel.symbols[name]).address)
    return found[0], found[1]


def _number_of_owner(kernel: SymbolicKernel, behind: int, stack: int) -> int | None:
    """Return the PID of the task that this CPU runs, if the stack is that task's; None if that cannot be shown.

    The base of GS, which `__save_processor_state` (arch/x86/power/cpu.c) saves behind the registers, is the address of
    the CPU's own area: `this_cpu_off` there has it, too.

    Args:
        kernel: the kernel.
        behind: address of the first byte behind the registers.
        stack: the stack pointer.

    Raises:
        KeyError: a structure's layout is unknown.
    """
    own, hot, current = (kernel.symbols.near(name) for name in ("this_cpu_off", "pcpu_hot", "current_task"))
    pointer = hot or current
    if own is None or pointer is None:
        return None
    within = kernel.layouts.structure("pcpu_hot").offsets["current_task"] if hot is not None else 0
    layout = kernel.layouts.structure("task_struct")
    try:
        saved = kernel.read(behind, MOST_BEHIND_BYTES, "saved_context")
        bases = [u64_at(saved, at) for at in range(0, len(saved), 8)]
        area = next((base for base in bases if base and _has_u64(kernel, base + own.address, base)), None)
        if area is None:
            return None
        task = kernel.u64((area + pointer.address + within) % (1 << 64), "current_task")
        bottom = kernel.u64(task + layout.offsets["stack"], "task_struct")
        if not bottom <= stack < bottom + MOST_STACK_BYTES:
            return None
        return kernel.u32(task + layout.offsets["pid"], "task_struct")
    except FormatError:
        return None


def _has_u64(kernel: SymbolicKernel, address: int, value: int) -> bool:
    try:
        return kernel.u64(address % (1 << 64), "this_cpu_off") == value
    except FormatError:
        return False


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
