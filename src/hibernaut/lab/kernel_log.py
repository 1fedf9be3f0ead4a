# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading a kernel's log: its lines without time stamps, and the access that an oops reports."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hibernaut.lab.host.programs import need_module

__all__ = ["FAULT_LINES", "FaultingAccess", "faulting_access", "log_lines"]

TIME_STAMP = re.compile(r"^\[ *[\d.]+\] *")
FAULT_LINES = 4
"""Lines of a page fault: BUG, two of #PF, the entries (`show_fault_oops`, arch/x86/mm/fault.c)."""

# show_regs (arch/x86/kernel/process_64.c) and show_opcodes (arch/x86/kernel/dumpstack.c).
REGISTER = re.compile(r"\b(R[A-Z0-9]{2}): (?:0018:)?([0-9a-f]{16})\b")
PLACE = re.compile(r"RIP: 0010:(\w+)\+0x[0-9a-f]+/0x[0-9a-f]+")
CODE = re.compile(r"Code: .*<([0-9a-f]{2})>((?: [0-9a-f]{2})*)")


@dataclass(frozen=True)
class FaultingAccess:
    """The access of a CPU that took a fault, as the oops shows it.

    Attributes:
        function: function that the instruction is in.
        instruction: the instruction, disassembled.
        reads: address that it reads from, by the registers' values; None if it cannot be computed.
    """

    function: str
    instruction: str
    reads: int | None


def log_lines(log: str) -> list[str]:
    """Return the lines of a kernel's log without time stamps and trailing blanks."""
    return [TIME_STAMP.sub("", line).rstrip() for line in log.splitlines()]


def faulting_access(log: str) -> FaultingAccess | None:
    """Return the access that crashed a kernel, from code and registers in its log; None if the log has neither.

    Raises:
        LabUnavailable: capstone is not installed.
    """
    need_module("capstone")
    import capstone
    from capstone import x86

    place = PLACE.search(log)
    code = CODE.search(log, place.end()) if place else None
    if place is None or code is None:
        return None
    # Registers are printed for each oops: those of the first follow its code.
    registers: dict[str, int] = {}
    for name, value in REGISTER.findall(log[code.end() :]):
        registers.setdefault(name, int(value, 16))
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    found = next(disassembler.disasm(bytes.fromhex(code[1] + code[2]), 0, 1), None)
    if found is None:
        return None
    reads = None
    for operand in found.operands:
        if operand.type == x86.X86_OP_MEM and operand.access & capstone.CS_AC_READ:
            at = operand.mem
            names = [found.reg_name(register).upper() if register else "" for register in (at.base, at.index)]
            base, index = (registers.get(name) if name else 0 for name in names)
            reads = None if base is None or index is None else (base + index * at.scale + at.disp) % (1 << 64)
    return FaultingAccess(place[1], f"{found.mnemonic} {found.op_str}", reads)
