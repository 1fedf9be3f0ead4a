# SPDX-License-Identifier: GPL-2.0-or-later
"""The copy loop of `swsusp_save` in a running kernel, found by disassembling it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from hibernaut.errors import HibernautError
from hibernaut.lab.host.programs import need_module

__all__ = ["CopyLoop", "find_copy_loop", "symbols_of"]

Read = Callable[[int, int], bytes]
"""Reads the kernel's memory: (virtual address, number of bytes) -> bytes."""

MAX_BYTES = 1 << 16
LOOK_AHEAD = 6
"""Instructions after a call within which its result is compared."""


@dataclass(frozen=True)
class CopyLoop:
    """Addresses in `swsusp_save`.

    Attributes:
        before: virtual addresses of the calls of `memory_bm_next_pfn`. When the first one is reached, the list of pages
            is complete and no page is copied.
        after: virtual address to which the loop exits at the end of the list.
    """

    before: tuple[int, ...]
    after: int


def symbols_of(lines: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return name -> (address, bytes to the next symbol) for lines of /proc/kallsyms, in its order."""
    listed = [(int(words[0], 16), words[2]) for line in lines if len(words := line.split()) >= 3]
    found: dict[str, tuple[int, int]] = {}
    for number, (address, name) in enumerate(listed):
        end = next((other for other, _ in listed[number + 1 :] if other > address), address)
        found.setdefault(name, (address, end - address))
    return found


def find_copy_loop(read: Read, symbols: dict[str, tuple[int, int]]) -> CopyLoop:
    """Disassemble `swsusp_save` and return its copy loop.

    Args:
        read: reads the kernel's memory.
        symbols: addresses and sizes of `swsusp_save` and `memory_bm_next_pfn`.

    Raises:
        LabUnavailable: capstone is not installed.
        HibernautError: a symbol is missing, or the code does not match the expected pattern.
    """
    need_module("capstone")
    import capstone

    try:
        (start, size_bytes), (next_pfn, _) = (symbols[name] for name in ("swsusp_save", "memory_bm_next_pfn"))
    except KeyError as error:
        raise HibernautError(f"the kernel has no symbol {error.args[0]}") from None
    code = read(start, min(size_bytes, MAX_BYTES))
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    steps = [(address, f"{name} {operands}") for address, _, name, operands in disassembler.disasm_lite(code, start)]
    before = [number for number, (_, text) in enumerate(steps) if text == f"call {next_pfn:#x}"]
    exits = {target for number in before if (target := _end_of_list(text for _, text in steps[number + 1 :]))}
    if not before or len(exits) != 1:
        raise HibernautError(
            f"swsusp_save of this kernel has {len(before)} calls of memory_bm_next_pfn and {len(exits)} exits "
            "of the copy loop; expected at least one call and exactly one exit"
        )
    return CopyLoop(tuple(steps[number][0] for number in before), exits.pop())


def _end_of_list(after_call: Iterable[str]) -> int | None:
    """Return the address that the code jumps to if the call before it returned BM_END_OF_MAP (all ones); else None."""
    compared = False
    for text in islice(after_call, LOOK_AHEAD):
        compared = compared or text == "cmp rax, -1"
        if compared and (match := re.fullmatch(r"je (0x[0-9a-f]+)", text)):
            return int(match[1], 16)
        if text.startswith(("call", "jmp", "ret")):
            return None
    return None
