# SPDX-License-Identifier: GPL-2.0-or-later
"""The info page (`struct swsusp_info`, with the record of the kernel's architecture at its start)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hibernaut.errors import CorruptImage, FormatError
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.architecture import (
    I386_E820_AT,
    OTHER_ARCHITECTURE,
    X86_64,
    Architecture,
    architecture_of,
    foreign_image,
)
from hibernaut.swsusp.declarations import ARCH_MAGIC, COUNTS_32, INFO
from hibernaut.swsusp.e820 import E820Check, E820Sums
from hibernaut.swsusp.generations import Generation, generation_of

__all__ = ["ImageInfo"]

CR3_PCID_MASK = 0xFFF


@dataclass(frozen=True)
class ImageInfo:
    """Facts that the hibernating kernel leaves for the one that resumes it.

    Attributes:
        page: all its bytes, as many as a page of the machine has.
        architecture: architecture of the kernel; None if the page names none.
        long_bytes: size of the kernel's `unsigned long`.
        jump_address: virtual address of the image kernel's restore entry (`restore_registers`); None without a record
            of x86-64.
        jump_address_phys: its physical address; None where an older kernel does not store it.
        root: root of the saved page tables, PCID bits cleared; None without a record of x86-64.
        magic: magic of the record, see `generation`; None without a record of x86-64.
        generation: the generation that the magic names; None if it is none of x86-64.
        e820: the checksum of the firmware's memory map that the page has.
        physical_pages: `num_physpages`.
        image_pages: data pages stored.
        pages: info page, meta pages and data pages.
        size_bytes: `pages` times the size of a page.
    """

    page: bytes = field(repr=False)
    architecture: Architecture | None
    long_bytes: int
    jump_address: int | None
    jump_address_phys: int | None
    root: int | None
    magic: int | None
    generation: Generation | None
    e820: E820Sums
    physical_pages: int
    image_pages: int
    pages: int
    size_bytes: int

    @classmethod
    def parse(cls, page: bytes) -> ImageInfo:
        """Return the fields of an info page, as long as a page of its machine, without any check of them."""
        architecture, generation = architecture_of(page), generation_of(page[:PAGE_SIZE])
        fields = np.frombuffer(page, dtype=INFO, count=1)[0]
        is_x86_64 = architecture is None or architecture is X86_64
        record = np.frombuffer(page, dtype=generation.record if generation else INFO, count=1)[0]
        has_phys = is_x86_64 and "jump_address_phys" in (record.dtype.names or ())
        long_bytes = _long_bytes(page, architecture)
        counts = fields if long_bytes == 8 else np.frombuffer(page, dtype=COUNTS_32, count=1)[0]
        return cls(
            page=page,
            architecture=architecture,
            long_bytes=long_bytes,
            jump_address=int(record["jump_address"]) if is_x86_64 else None,
            jump_address_phys=int(record["jump_address_phys"]) if has_phys else None,
            root=int(record["cr3"]) & ~CR3_PCID_MASK if is_x86_64 else None,
            magic=int(record["magic"]) if is_x86_64 else None,
            generation=generation,
            e820=_e820(page, generation, architecture),
            physical_pages=int(counts["num_physpages"]),
            image_pages=int(counts["image_pages"]),
            pages=int(counts["pages"]),
            size_bytes=int(counts["size"]),
        )

    @classmethod
    def of_machine(
        cls,
        *,
        cr3: int,
        physical_pages: int,
        jump_address: int = 0,
        jump_address_phys: int = 0,
        e820_checksum: int = 0,
    ) -> ImageInfo:
        """An info page of magic `ARCH_MAGIC`, without the counts of an image: see `with_pages`.

        The fields are those of the class.
        """
        page = np.zeros(1, dtype=INFO)
        page["jump_address"] = jump_address
        page["jump_address_phys"] = jump_address_phys
        page["cr3"] = cr3
        page["magic"] = ARCH_MAGIC
        page["e820_checksum"] = e820_checksum
        page["num_physpages"] = physical_pages
        return cls.parse(page.tobytes())

    @classmethod
    def blank(cls, *, cr3: int, physical_pages: int) -> ImageInfo:
        """Return an info page for memory with an unknown kernel: without a restore entry, so not resumable."""
        return cls.of_machine(cr3=cr3, physical_pages=physical_pages)

    def with_pages(self, *, saved_pages: int, image_pages: int) -> ImageInfo:
        """Return the info page of this machine for another list: `saved_pages` listed, `image_pages` stored."""
        page = bytearray(self.page)  # a copy of a record array loses the bytes between its fields
        record = np.frombuffer(page, dtype=INFO if self.long_bytes == 8 else COUNTS_32, count=1)
        pages = 1 + -(-saved_pages // self.pfns_per_page) + image_pages
        record["image_pages"] = image_pages
        record["pages"] = pages
        record["size"] = pages * len(page) % (1 << 8 * self.long_bytes)
        return ImageInfo.parse(bytes(page))

    @property
    def cr3(self) -> int:
        """See `root`. Raises FormatError if the image has none."""
        if self.root is None:
            raise FormatError(
                foreign_image(self.architecture) if self.architecture else "the info page has no CR3",
                advice=OTHER_ARCHITECTURE,
            )
        return self.root

    @property
    def is_foreign(self) -> bool:
        """Whether the kernel is known, and is not one of x86-64 with a restore record."""
        return self.architecture is not None and self.architecture is not X86_64

    @property
    def pfns_per_page(self) -> int:
        """Frame numbers in a meta page."""
        return len(self.page) // self.long_bytes

    @property
    def e820_check(self) -> E820Check:
        """The way in which the page keeps the firmware's memory map."""
        if self.generation is not None:
            return self.generation.e820
        return self.architecture.e820 if self.architecture else E820Check.UNKNOWN

    @property
    def e820_checksum(self) -> int | None:
        """The CRC-32 that the page has, made in the way of its generation; None if it has none."""
        return self.e820.crc32 if self.e820.crc32 is not None else self.e820.trimmed_crc32

    @property
    def remark(self) -> str | None:
        """A limit of what could be read; None for a generation whose source was read."""
        if self.generation is None or self.generation.known:
            return None
        return (
            f"the info page's magic, {self.magic:#018x}, is newer than any that is known: addresses, CR3 and counts "
            "are read as before; what follows the magic, the checksum of the memory map, is not"
        )

    @property
    def meta_pages(self) -> int:
        """Number of pages of frame numbers, which precede the data, in pages of the machine."""
        return self.pages - 1 - self.image_pages

    @property
    def stream_pages(self) -> int:
        """Number of pages of the stream, meta pages and data pages, in pages of the machine."""
        return self.pages - 1

    def check(self, source: str, offset: int, most_pages: int) -> None:
        """Refuse counts that contradict each other or the size of the swap map.

        Args:
            source: name of the file in the message.
            offset: byte at which the info page begins.
            most_pages: bound for the number of pages of the stream.

        Raises:
            CorruptImage: a field is wrong; the message names it.
        """

        def refuse(what: str, at: int, expected: str) -> None:
            raise CorruptImage(f"info page: {what}", source=source, offset=offset + at, expected=expected)

        if self.architecture is None:
            if len(self.page) != PAGE_SIZE:  # no machine of x86-64
                refuse("it names no known kernel", 0, "the record of an architecture, or a `struct new_utsname`")
            refuse(f"magic is {self.magic:#018x}", 24, f"{ARCH_MAGIC:#018x}, or that of another generation of x86-64")
        layout = INFO if self.long_bytes == 8 else COUNTS_32
        at = {name: field[1] for name, field in (layout.fields or {}).items()}
        if not 0 < self.stream_pages <= most_pages:
            refuse(f"pages is {self.pages}", at["pages"], f"2 to {most_pages + 1}, as the swap map allows")
        if not 0 <= self.image_pages < self.stream_pages:
            below = f"less than pages - 1, which is {self.stream_pages}"
            refuse(f"image_pages is {self.image_pages}", at["image_pages"], below)
        if self.image_pages > self.meta_pages * self.pfns_per_page:
            refuse(
                f"image_pages is {self.image_pages}",
                at["image_pages"],
                f"at most {self.pfns_per_page} for each of {self.meta_pages} meta pages",
            )
        size = self.pages * len(self.page) % (1 << 8 * self.long_bytes)
        if self.size_bytes != size:
            refuse(f"size is {self.size_bytes}", at["size"], f"pages * {len(self.page)} = {size}")


def _long_bytes(page: bytes, architecture: Architecture | None) -> int:
    """Return the size of `unsigned long`: that of the architecture, or the one whose counts agree with each other."""
    if architecture is None or architecture.long_bytes is not None:
        return 8 if architecture is None else architecture.long_bytes or 8
    for long_bytes, layout in ((8, INFO), (4, COUNTS_32)):
        counts = np.frombuffer(page, dtype=layout, count=1)[0]
        pages, size = int(counts["pages"]), int(counts["size"])
        if 0 < int(counts["image_pages"]) < pages and size == pages * len(page) % (1 << 8 * long_bytes):
            return long_bytes
    return 8


def _e820(page: bytes, generation: Generation | None, architecture: Architecture | None) -> E820Sums:
    """Return the checksum of the firmware's memory map, which follows the magic, made in one way."""
    check, at, size_bytes = (generation.e820, 32, 8) if generation else (E820Check.UNKNOWN, 32, 8)
    if architecture is not None and architecture is not X86_64:
        check, at, size_bytes = architecture.e820, I386_E820_AT, 4
    crc32 = int.from_bytes(page[at : at + size_bytes], "little")
    if check is E820Check.MD5:
        digest = page[at : at + 16]
        return E820Sums(md5=digest.hex() if any(digest) else "")
    if check is E820Check.CRC32:
        return E820Sums(crc32=crc32)
    return E820Sums(trimmed_crc32=crc32) if check is E820Check.TRIMMED_CRC32 else E820Sums()
