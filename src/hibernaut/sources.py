# SPDX-License-Identifier: GPL-2.0-or-later
"""`open_memory`: physical memory from whatever file holds it, decided by content."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.memory.dump import Dump, Refusal
from hibernaut.memory.elf import open_elf
from hibernaut.memory.kdump import open_kdump
from hibernaut.memory.lime import open_lime
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.raw import open_raw
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.files import PlainFile, open_plain

if TYPE_CHECKING:
    from hibernaut.swsusp import Image

__all__ = ["Source", "open_memory"]


@dataclass(frozen=True, eq=False)
class Source(Closing):
    """Physical memory and what its file says about the machine. A context manager: leaving it closes the file.

    Attributes:
        memory: the page frames.
        kind: the format: elf, lime, raw, kdump, swsusp.
        name: the file, for messages.
        cr3: physical address of the root of the page tables, if the file says it.
        levels: levels of paging, 4 or 5, if the file says it.
        notes: what else it says, by name: VMCOREINFO's keys as they are, other facts with a prefix (`qemu.cpus`).
        vmcoreinfo: the text of its VMCOREINFO note, if it has one.
        image: the hibernation image, if it is one.
    """

    memory: PhysicalMemory
    kind: str
    name: str
    cr3: int | None = None
    levels: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    vmcoreinfo: bytes | None = None
    image: Image | None = None

    def close(self) -> None:
        """Close the file. Arrays read before must not be used afterwards."""
        self.memory.close()


def open_memory(
    path: str | os.PathLike[str], *, offset: int = 0, partition: int | None = None, base: int | None = None
) -> Source:
    """Open a RAM dump (ELF core, LiME, kdump-compressed, raw) or a hibernation image, compressed or not.

    The formats that have a magic number at their start are tried first, then a swap area's signature; raw memory, which
    has no mark at all, is the last resort, and never for a file that is known to be something else.

    Args:
        path: the file or block device.
        offset: block of the swap header on its device (`resume_offset` of a swap file), in pages.
        partition: number in the MBR or GPT of a whole disk that holds the swap area.
        base: byte at which the swap area's device begins in the file. If any of these three is given, the file is taken
            for a hibernation image without a look at anything else.

    Raises:
        FormatError: none of the readers accepts the file (the message has the reason of each), or one does and the file
            is damaged.
        OSError: the file cannot be read.
    """
    plain = open_plain(path)
    try:
        if offset or partition is not None or base is not None:
            return _open_image(plain, offset, partition, base)
        return _detect(plain)
    except BaseException:
        plain.close()
        raise


def _detect(plain: PlainFile) -> Source:
    from hibernaut.swsusp import looks_like_swap

    refusals: list[Refusal] = []
    for reader in (open_elf, open_lime, open_kdump):
        answer = reader(plain)
        if isinstance(answer, Dump):
            return _source(plain, answer)
        refusals.append(answer)
    if looks_like_swap(plain):
        return _open_image(plain, 0, None, None)
    refusals.append(Refusal("hibernation image", "no swap signature"))
    last = open_raw(plain)
    if isinstance(last, Dump):
        return _source(plain, last)
    raise FormatError("no memory that can be read: " + "; ".join(map(str, [*refusals, last])), source=plain.name)


def _source(plain: PlainFile, dump: Dump) -> Source:
    return Source(dump.memory, dump.kind, plain.name, dump.cr3, dump.levels, dump.notes, dump.vmcoreinfo)


def _open_image(plain: PlainFile, offset: int, partition: int | None, base: int | None) -> Source:
    from hibernaut.swsusp import open_image

    image = open_image(plain, offset=offset, partition=partition, base=base)
    return Source(image.memory(), "swsusp", plain.name, cr3=image.info.cr3, image=image)
