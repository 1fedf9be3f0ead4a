# SPDX-License-Identifier: GPL-2.0-or-later
"""The info page (`struct swsusp_info`, with x86's `restore_data_record` at its start)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hibernaut.errors import CorruptImage
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.swsusp.declarations import ARCH_MAGIC, INFO, PFNS_PER_META_PAGE
from hibernaut.swsusp.e820 import E820Check, E820Sums
from hibernaut.swsusp.generations import Generation, generation_of

__all__ = ["ImageInfo"]

CR3_PCID_MASK = 0xFFF


@dataclass(frozen=True)
class ImageInfo:
    """Facts that the hibernating kernel leaves for the one that resumes it.

    Attributes:
        page: all 4096 bytes.
        jump_address: virtual address of the image kernel's restore entry (`restore_registers`).
        jump_address_phys: its physical address; None where an older kernel does not store it.
        cr3: root of the saved page tables; PCID bits cleared.
        magic: magic of the record, see `generation`.
        generation: the generation that the magic names; None if it is none of x86-64.
        e820: the checksum of the firmware's memory map that the page has.
        physical_pages: `num_physpages`.
        image_pages: data pages stored.
        pages: info page, meta pages and data pages.
        size_bytes: `pages` * 4096.
    """

    page: bytes
    jump_address: int
    jump_address_phys: int | None
    cr3: int
    magic: int
    generation: Generation | None
    e820: E820Sums
    physical_pages: int
    image_pages: int
    pages: int
    size_bytes: int

    @classmethod
    def parse(cls, page: bytes) -> ImageInfo:
        """Return the fields of an info page of 4096 bytes, without any check of them."""
        fields = np.frombuffer(page, dtype=INFO)[0]
        generation = generation_of(page)
        record = np.frombuffer(page, dtype=generation.record if generation else INFO)[0]
        has_phys = "jump_address_phys" in (record.dtype.names or ())
        return cls(
            page=page,
            jump_address=int(record["jump_address"]),
            jump_address_phys=int(record["jump_address_phys"]) if has_phys else None,
            cr3=int(record["cr3"]) & ~CR3_PCID_MASK,
            magic=int(record["magic"]),
            generation=generation,
            e820=_e820(fields, generation.e820 if generation else E820Check.UNKNOWN),
            physical_pages=int(fields["num_physpages"]),
            image_pages=int(fields["image_pages"]),
            pages=int(fields["pages"]),
            size_bytes=int(fields["size"]),
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
        record = np.frombuffer(page, dtype=INFO)
        pages = 1 + -(-saved_pages // PFNS_PER_META_PAGE) + image_pages
        record["image_pages"] = image_pages
        record["pages"] = pages
        record["size"] = pages * PAGE_SIZE
        return ImageInfo.parse(bytes(page))

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
        """Number of pages of frame numbers, which precede the data."""
        return self.pages - 1 - self.image_pages

    @property
    def stream_pages(self) -> int:
        """Number of pages of the stream: meta pages and data pages."""
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

        if self.generation is None:
            refuse(f"magic is {self.magic:#018x}", 24, f"{ARCH_MAGIC:#018x}, or that of another generation of x86-64")
        if not 0 < self.stream_pages <= most_pages:
            refuse(f"pages is {self.pages}", 424, f"2 to {most_pages + 1}, as the swap map allows")
        if not 0 <= self.image_pages < self.stream_pages:
            refuse(f"image_pages is {self.image_pages}", 416, f"less than pages - 1, which is {self.stream_pages}")
        if self.image_pages > self.meta_pages * PFNS_PER_META_PAGE:
            refuse(
                f"image_pages is {self.image_pages}",
                416,
                f"at most {PFNS_PER_META_PAGE} for each of {self.meta_pages} meta pages",
            )
        if self.size_bytes != self.pages * PAGE_SIZE:
            refuse(f"size is {self.size_bytes}", 432, f"pages * {PAGE_SIZE} = {self.pages * PAGE_SIZE}")


def _e820(fields: np.void, check: E820Check) -> E820Sums:
    """Return the checksum at the place that all generations share, made in one way."""
    crc32 = int(fields["e820_checksum"])
    if check is E820Check.MD5:
        digest = fields["e820_md5"].tobytes()
        return E820Sums(md5=digest.hex() if any(digest) else "")
    if check is E820Check.CRC32:
        return E820Sums(crc32=crc32)
    return E820Sums(trimmed_crc32=crc32) if check is E820Check.TRIMMED_CRC32 else E820Sums()
