# SPDX-License-Identifier: GPL-2.0-or-later
"""The inspection of an image, damaged ones included: its parts as far as they can be read, and its problems."""

from __future__ import annotations

from dataclasses import dataclass

from hibernaut.errors import CorruptImage
from hibernaut.memory import declarations as c
from hibernaut.notebook import html_table
from hibernaut.swsusp.area import SwapArea, locate_area
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.header import SwapHeader, read_header, refuse_contradiction
from hibernaut.swsusp.image import Image, Progress, assemble, data_compressor, read_info, read_map
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.md5 import Md5Ending
from hibernaut.swsusp.swapmap import SwapMap
from hibernaut.swsusp.uswsusp_stream import UserlandMap, UserlandStream
from hibernaut.volumes.volume import Volume

__all__ = ["Inspection", "Problem", "inspect_image", "inspect_opened"]

UNREAD = "could not be read"


@dataclass(frozen=True)
class Problem:
    """A problem of an image: what is wrong, and where (file and byte, as far as it has a place)."""

    what: str
    where: str

    @classmethod
    def of(cls, error: CorruptImage) -> Problem:
        """Return the problem that an error describes."""
        return cls(error.complaint, error.where)


@dataclass(frozen=True, eq=False)
class Inspection:
    """Result of an inspection; a part that a problem before it makes unreadable is None.

    Attributes:
        header: header block, never None (an area without an image is a FormatError).
        compressor: compressor of the data, as the flags name it or the data shows it.
        swap_map: chain of blocks; the extents of an image of suspend-utils.
        info: info page.
        image: opened image, its list of frames valid.
        computed_crc: CRC of the data; None if it cannot be read to its end.
        problems: all problems, empty for an intact image.
        area: swap area of the image.
        error: the problem at which reading ended; None if it reached the end.
    """

    header: SwapHeader
    compressor: CompressorName
    swap_map: SwapMap | UserlandMap | None
    info: ImageInfo | None
    image: Image | None
    computed_crc: int | None
    problems: tuple[Problem, ...]
    area: SwapArea
    error: CorruptImage | None

    @property
    def remarks(self) -> tuple[str, ...]:
        """Limits of what could be read, and what no kernel minds: no faults of the image."""
        remarks = [self.info.remark if self.info else None]
        if self.image and self.info and self.image.stream.length_bytes > self.info.long_bytes:
            remarks.append("the info page is that of a kernel of 32 bits, and the data have words of 64 bits")
        if c.TUXONICE.begins(self.header.block):
            remarks.append("the swap header begins with TuxOnIce's mark: of an image before this one, or after it")
        if not self.header.is_swap_again:
            remarks.append(
                f"orig_sig, which a kernel that reads the image puts back, is {self.header.orig_sig!r}, no swap "
                "signature: the area is not swap space any more, until mkswap makes it one"
            )
        return tuple(remark for remark in remarks if remark)

    @property
    def md5(self) -> tuple[str | None, Md5Ending | None]:
        """MD5 of the data of an image of suspend-utils, and how the stored one ends; None before the end is read."""
        stream = self.image.stream if self.image else None
        return (stream.md5, stream.md5_ending) if isinstance(stream, UserlandStream) else (None, None)

    @property
    def crc_ok(self) -> bool | None:
        """Whether the CRC is right; None if there is none or it could not be computed."""
        if self.header.crc32 is None or self.computed_crc is None:
            return None
        return self.header.crc32 == self.computed_crc

    def _repr_html_(self) -> str:
        architecture = self.info.architecture if self.info else None
        rows: list[tuple[str, object]] = [
            ("written by", "the kernel" if self.header.userland is None else "suspend-utils (uswsusp)"),
            ("architecture", architecture.name if architecture else UNREAD),
            ("compressor", self.compressor),
            ("pages saved", self.image.saved_pages if self.image else UNREAD),
            ("of them zero and not stored", self.image.zero_pages if self.image else UNREAD),
            ("physical pages", self.info.physical_pages if self.info else UNREAD),
            ("first map block", self.header.image),
            ("checksum", self._checksum_text()),
        ]
        rows += [("remark", remark) for remark in self.remarks]
        rows += [("problem", f"{one.where}: {one.what}" if one.where else one.what) for one in self.problems]
        if architecture and architecture.kernel:
            rows.insert(1, ("kernel", architecture.kernel))
        return html_table(f"hibernation image in {self.area.file.name}: {self._state()}", ("fact", "value"), rows)

    def _state(self) -> str:
        """Return the last word on the image. One of another architecture is not called damaged, as by `inspect`."""
        number = len(self.problems)
        if self.info is not None and self.info.is_foreign:
            return "not of x86-64, " + ("its data do not agree with its info page" if number else "its data are whole")
        return f"damaged, {number} {'problem' if number == 1 else 'problems'}" if number else "intact"

    def _checksum_text(self) -> str:
        """Return the state of the checksum of the data in words."""
        if self.header.userland is not None:
            stored, (computed, ending) = self.header.userland.md5, self.md5
            if stored is None:
                return "none stored"
            if computed is None:
                return f"MD5 {stored.hex()} stored, could not be computed"
            return f"MD5 {stored.hex()} " + (f"WRONG: the data gives {computed}" if ending is None else "ok")
        if self.header.crc32 is None:
            return "none stored"
        if self.computed_crc is None:
            return f"CRC-32 {self.header.crc32:#x} stored, could not be computed"
        wrong = f"WRONG: the data gives {self.computed_crc:#x}"
        return f"CRC-32 {self.header.crc32:#x} " + ("ok" if self.crc_ok else wrong)


def inspect_image(
    file: Volume,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    progress: Progress | None = None,
) -> Inspection:
    """Read everything and collect the problems. For the arguments see `open_image`; the file stays open.

    Raises:
        FormatError: there is no image.
        CorruptImage: the header of an image of suspend-utils contradicts itself.
    """
    area = locate_area(file, offset=offset, partition=partition, base=base)
    header = read_header(area)
    compressor = header.compressor
    swap_map: SwapMap | UserlandMap | None = None
    info: ImageInfo | None = None
    try:
        refuse_contradiction(area, header)
        swap_map = read_map(area, header)
        compressor = data_compressor(area, header, swap_map)
        info = read_info(area, swap_map, compressor)
        image = assemble(area, header, swap_map, info, compressor)
    except CorruptImage as error:
        return Inspection(header, compressor, swap_map, info, None, None, (Problem.of(error),), area, error)
    return inspect_opened(image, progress)


def inspect_opened(image: Image, progress: Progress | None = None) -> Inspection:
    """Read all data of an image that was opened and collect the problems, as `inspect_image` does."""
    area, header = image.area, image.header
    problems = _leftovers(image)
    computed: int | None = None
    stopped_by: CorruptImage | None = None
    try:
        computed = image.computed_crc(progress)
    except CorruptImage as error:
        problems.append(Problem.of(error))
        stopped_by = error
    if header.crc32 is not None and computed is not None and computed != header.crc32:
        where = f"{image.name}: byte {area.crc32_at}"
        problems.append(
            Problem(f"CRC of the data is wrong; expected {header.crc32:#010x}; found {computed:#010x}", where)
        )
    return Inspection(
        header,
        image.compressor,
        image.swap_map,
        image.info,
        image,
        computed,
        tuple(problems),
        area,
        stopped_by,
    )


def _leftovers(image: Image) -> list[Problem]:
    extra = image.stream.index.leftover_entries
    if not extra:
        return []
    entry = len(image.swap_map.entries) - extra
    page, index = image.swap_map.place_of_entry(entry)
    where = f"{image.name}: byte {image.area.offset_of(page) + index}"
    return [Problem(f"swap map has {extra} entries after the last page of the image", where)]
