# SPDX-License-Identifier: GPL-2.0-or-later
"""The restore entry of an image: the one function of its kernel whose address the image itself states.

`restore_registers` (arch/x86/power/hibernate_asm_64.S) loads the address of `saved_context`. What is found here says
where to look first, and is never an answer by itself: each reader checks what it finds there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hibernaut.kernel.layouts import KERNEL_IMAGE_BYTES
from hibernaut.memory.declarations import START_KERNEL_MAP

if TYPE_CHECKING:
    from hibernaut.sources import Source

__all__ = ["data_loaded_at_restore_entry"]

CODE_BYTES = 128
"""Length of the function that is looked at; it has 125 bytes in 6.1, 129 in 6.12."""
LOAD = re.compile(rb"\x48(?:\xc7[\xc0-\xc7]|\x8d[\x05\x0d\x15\x1d\x25\x2d\x35\x3d])(?=(.{4}))", re.DOTALL)
"""Instructions that load an address into a register: MOV r64, imm32 and LEA r64, [RIP + disp32] (Intel SDM vol. 2)."""
LEA = 0x8D


def data_loaded_at_restore_entry(source: Source) -> int | None:
    """Return the first virtual address in the kernel's image that the code at the restore entry of an image loads.

    None if there is none, for any other source, and for an image that does not state the entry's physical address.

    Raises:
        HibernautError, OSError: as the memory raises where a frame cannot be read.
    """
    info = source.any_image.info if source.any_image is not None else None
    if info is None or not info.jump_address or not info.jump_address_phys:
        return None
    code = source.memory.read(info.jump_address_phys, CODE_BYTES) or b""
    for match in LOAD.finditer(code):
        operand = int.from_bytes(match[1], "little", signed=True)
        behind = info.jump_address + match.end() + len(match[1])
        address = (operand + (behind if match[0][1] == LEA else 0)) % (1 << 64)
        if START_KERNEL_MAP <= address < START_KERNEL_MAP + KERNEL_IMAGE_BYTES:
            return address
    return None
