# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the copy loop of `swsusp_save` begins and ends, found by disassembling the kernel at hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from hibernaut.errors import HibernautError
from hibernaut.lab.host.programs import need_module

__all__ = ["CopyLoop", "find_copy_loop", "symbols_of"]

Read = Callable[[int, int], bytes]
"""Memory of the kernel: (virtual address, bytes) -> those bytes."""

MOST_BYTES = 1 << 16
LOOK_AHEAD = 6
"""Instructions after a call among which its result is compared."""


@dataclass(frozen=True)
class CopyLoop:
    """Places in `swsusp_save`.

    Attributes:
        before: virtual addresses of the calls of `memory_bm_next_pfn`: the first of them to be reached is reached when
            the list of pages is fixed and none is copied.
        after: virtual address to which the loop is left, when that function has said that the list is at its end.
    """

    before: tuple[int, ...]
    after: int


def symbols_of(lines: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Name -> (address, bytes to the next symbol) of lines of /proc/kallsyms that stand in its order."""
    listed = [(int(words[0], 16), words[2]) for line in lines if len(words := line.split()) >= 3]
    found: dict[str, tuple[int, int]] = {}
    for number, (address, name) in enumerate(listed):
        end = next((other for other, _ in listed[number + 1 :] if other > address), address)
        found.setdefault(name, (address, end - address))
    return found


def find_copy_loop(read: Read, symbols: dict[str, tuple[int, int]]) -> CopyLoop:
    """Disassemble `swsusp_save` and look for the loop.

    Args:
        read: the kernel's memory.
        symbols: `swsusp_save` with its size, and `memory_bm_next_pfn`.

    Raises:
        LabUnavailable: no disassembler here.
        HibernautError: the function does not look as expected.
    """
    need_module("capstone")
    import capstone

    try:
        (start, size_bytes), (next_pfn, _) = (symbols[name] for name in ("swsusp_save", "memory_bm_next_pfn"))
    except KeyError as error:
        raise HibernautError(f"the kernel has no symbol {error.args[0]}") from None
    code = read(start, min(size_bytes, MOST_BYTES))
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    steps = [(address, f"{name} {operands}") for address, _, name, operands in disassembler.disasm_lite(code, start)]
    before = [number for number, (_, text) in enumerate(steps) if text == f"call {next_pfn:#x}"]
    exits = {target for number in before if (target := _end_of_list(text for _, text in steps[number + 1 :]))}
    if not before or len(exits) != 1:
        raise HibernautError(
            f"swsusp_save of this kernel was not understood: {len(before)} calls of memory_bm_next_pfn, "
            f"{len(exits)} ways out of the loop"
        )
    return CopyLoop(tuple(steps[number][0] for number in before), exits.pop())


def _end_of_list(after_call: Iterable[str]) -> int | None:
    """Where the code goes when the call before it returned BM_END_OF_MAP (all ones), if it asks that at once."""
    compared = False
    for text in islice(after_call, LOOK_AHEAD):
        compared = compared or text == "cmp rax, -1"
        if compared and (match := re.fullmatch(r"je (0x[0-9a-f]+)", text)):
            return int(match[1], 16)
        if text.startswith(("call", "jmp", "ret")):
            return None
    return None
