# SPDX-License-Identifier: GPL-2.0-or-later
"""Would this kernel on this machine resume from this image? Each of its checks, in its order, with its own words.

The kernel stops at the first check that fails; here the later ones are answered as well, as far as that can be done.
All but the signature come after it has put `orig_sig` back (`swsusp_check`): a refusal uses the image up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from hibernaut.errors import CorruptImage
from hibernaut.kernel_line import ProbedKernel
from hibernaut.memory.physical import PAGE_SIZE
from hibernaut.swsusp.area import SwapArea
from hibernaut.swsusp.checker import Inspection
from hibernaut.swsusp.codecs import CompressorName, WrongLength, codec_named
from hibernaut.swsusp.declarations import (
    LENGTH_BYTES,
    MAP_ENTRIES,
    MAX_COMPRESSED_BYTES,
    UNIT_BYTES,
    UNIT_PAGES,
    Flags,
)
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.rules import ImageRules

__all__ = ["Answer", "Check", "ResumingMachine", "Verdict", "verdict_on"]

FAILED = "PM: hibernation: Failed to load image, recovering."
"""What `load_image_and_restore` prints after every failure in it: of some, the only sign."""
SECTORS_PER_PAGE = PAGE_SIZE // 512


@dataclass(frozen=True)
class ResumingMachine:
    """What a resuming kernel compares with the image; None where it is not known.

    Attributes:
        name: for people: where this was learnt.
        e820_checksum: CRC-32 of the firmware's memory map.
        physical_pages: present pages of all nodes.
        hw_sig: the hardware signature in ACPI's FACS; 0 if the machine has none.
        release: of the kernel there, as `uname -r` prints it.
        kernel: the kernel itself, as far as it can be asked.
    """

    name: str
    e820_checksum: int | None = None
    physical_pages: int | None = None
    hw_sig: int | None = None
    release: str | None = None
    kernel: ProbedKernel | None = field(default=None, compare=False, repr=False)


class Answer(StrEnum):
    """What a check comes to."""

    OK = "ok"
    REFUSES = "would refuse"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Check:
    """One check of the kernel.

    Attributes:
        check: its name here.
        answer: what it comes to.
        message: what the kernel prints when it refuses; a number that depends on the system reads `?`.
        remark: why, in our words.
        where: function and file of the kernel.
    """

    check: str
    answer: Answer
    where: str
    message: str | None = None
    remark: str | None = None


@dataclass(frozen=True)
class Verdict:
    """All checks in the kernel's order.

    Attributes:
        rules: how the kernel reads images.
        machine: where it runs.
        checks: what it checks.
    """

    rules: ImageRules
    machine: ResumingMachine
    checks: tuple[Check, ...]

    @property
    def resumes(self) -> bool | None:
        """True if every check is ok, False if one refuses, None if that is not known."""
        answers = {check.answer for check in self.checks}
        if Answer.REFUSES in answers:
            return False
        return None if Answer.UNKNOWN in answers else True


def verdict_on(found: Inspection, rules: ImageRules, machine: ResumingMachine) -> Verdict:
    """What a kernel on a machine would say to an image.

    Args:
        found: the image as far as it can be read.
        rules: of the kernel's line.
        machine: what is known of the machine.
    """
    return Verdict(rules, machine, tuple(_Judge(found, rules, machine).checks()))


@dataclass(frozen=True, eq=False)
class _Chain:
    """The swap map as the kernel follows it: no look at entries before they are read.

    Attributes:
        entries: all entries of the map pages that were reached, uint64, zeroes among them.
        outside: block number of a map page outside the device, if the chain leads there.
        loops: whether it comes back to a page that it had.
    """

    entries: NDArray[np.uint64]
    outside: int | None = None
    loops: bool = False


def _follow(area: SwapArea, first: int) -> _Chain:
    parts: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
    seen: set[int] = set()
    block, outside = first, None
    while block and block not in seen:
        try:
            page = np.frombuffer(area.read_block(block, "map page"), dtype="<u8")
        except CorruptImage:
            outside = block
            break
        seen.add(block)
        parts.append(page[:MAP_ENTRIES])
        block = int(page[MAP_ENTRIES])
    return _Chain(np.concatenate(parts), outside, loops=block in seen)


@dataclass(frozen=True)
class _Failure:
    """Where reading the data ends: the unit (or, not compressed, the row) and what the kernel prints."""

    unit: int
    message: str
    remark: str


class _Judge:
    def __init__(self, found: Inspection, rules: ImageRules, machine: ResumingMachine) -> None:
        self.found = found
        self.rules = rules
        self.machine = machine
        self.area = found.area
        flags = found.header.flags
        self.compressor: CompressorName = found.header.compressor
        if self.compressor not in rules.compressors and not flags & Flags.NOCOMPRESS_MODE:
            self.compressor = "lzo"
        self.chain = _follow(found.area, found.header.image)
        self.info = self._info()

    def _info(self) -> ImageInfo | None:
        """The info page, whatever stands in it; None if it cannot be read."""
        if self.found.info is not None:
            return self.found.info
        try:
            return ImageInfo.parse(self.area.read_block(int(self.chain.entries[0]), "info page"))
        except (CorruptImage, IndexError):
            return None

    def checks(self) -> Iterator[Check]:
        yield Check("signature", Answer.OK, "swsusp_check, kernel/power/swap.c")
        yield self._hw_sig()
        yield self._compressor()
        yield self._swap_map()
        yield self._magic()
        yield self._e820()
        yield self._memory_size()
        failure = self._failure()
        meta_units = -(-self.info.meta_pages // UNIT_PAGES) if self.info else 0
        frames, units = self._frames(), self._units(failure)
        # The list of frames is looked at as soon as its own units are there.
        yield from (units, frames) if failure is not None and failure.unit < meta_units else (frames, units)
        yield self._crc()

    def _hw_sig(self) -> Check:
        name, where = "hw_sig", "swsusp_check, kernel/power/swap.c"
        stored, now = self.found.header.hw_sig, self.machine.hw_sig
        if not self.rules.compares_hw_sig:
            return Check(name, Answer.OK, where, remark="this kernel does not look at it")
        if stored is None:
            return Check(name, Answer.OK, where, remark="the image has none")
        if now is None:
            return Check(name, Answer.UNKNOWN, where, remark=f"the image has {stored:#010x}")
        if stored == now:
            return Check(name, Answer.OK, where)
        message = f"PM: Suspend image hardware signature mismatch ({stored:08x} now {now:08x}); aborting resume."
        return Check(name, Answer.REFUSES, where, message)

    def _compressor(self) -> Check:
        name = "compressor"
        where = "software_resume, kernel/power/hibernate.c"
        if not self.rules.checks_compressor:
            where = "swsusp_read, kernel/power/swap.c"
        wanted = self.found.header.compressor
        if wanted == "none":
            return Check(name, Answer.OK, where, remark="not compressed")
        if wanted != self.compressor:
            flag = int(Flags.COMPRESSION_ALG_LZ4)
            return Check(name, Answer.OK, where, remark=f"flag {flag} means nothing to this kernel: it will try LZO")
        if self.rules.checks_compressor and wanted != "lzo":
            return Check(name, Answer.OK, where, remark=f"{wanted}, if the kernel was built with it")
        return Check(name, Answer.OK, where, remark=wanted)

    def _swap_map(self) -> Check:
        name, where = "swap_map", "get_swap_reader, kernel/power/swap.c"
        if not self.found.header.image:
            return Check(name, Answer.REFUSES, where, FAILED, "no first map page")
        if self.chain.outside is not None:
            return Check(
                name,
                Answer.REFUSES,
                where,
                FAILED,
                f"map page at block {self.chain.outside}, beyond the device of {self.area.blocks} blocks",
            )
        if self.chain.loops:
            return Check(name, Answer.UNKNOWN, where, remark="the chain loops: read on until memory is used up")
        return Check(name, Answer.OK, where)

    def _magic(self) -> Check:
        name, where = "magic", "arch_hibernation_header_restore, arch/x86/power/hibernate.c"
        if self.info is None:
            return Check(name, Answer.UNKNOWN, where, remark="the info page cannot be read")
        if self.info.magic == self.rules.magic:
            return Check(name, Answer.OK, where)
        remark = f"{self.info.magic:#x}, not {self.rules.magic:#x}"
        return Check(name, Answer.REFUSES, where, "Unrecognized hibernate image header format!", remark)

    def _e820(self) -> Check:
        stored = self.info.e820_checksum if self.info else None
        return self._compared(
            "e820_checksum",
            "arch_hibernation_header_restore, arch/x86/power/hibernate.c",
            stored,
            self.machine.e820_checksum,
            "Hibernate inconsistent memory map detected!",
            "#010x",
        )

    def _memory_size(self) -> Check:
        return self._compared(
            "physical_pages",
            "check_header, kernel/power/snapshot.c",
            self.info.physical_pages if self.info else None,
            self.machine.physical_pages,
            "PM: hibernation: Image mismatch: memory size",
            "d",
        )

    def _compared(self, name: str, where: str, stored: int | None, now: int | None, message: str, form: str) -> Check:
        if stored is None:
            return Check(name, Answer.UNKNOWN, where, remark="the image does not say")
        if now is None:
            return Check(name, Answer.UNKNOWN, where, remark=f"the image says {stored:{form}}")
        if stored == now:
            return Check(name, Answer.OK, where)
        return Check(name, Answer.REFUSES, where, message, f"the image says {stored:{form}}, the machine {now:{form}}")

    def _frames(self) -> Check:
        name, where = "frames", "unpack_orig_pfns, kernel/power/snapshot.c"
        image = self.found.image
        if image is None:
            return Check(name, Answer.UNKNOWN, where, remark="the list of frames cannot be read")
        zero = int(image.zero.sum())
        if zero and not self.rules.zero_pages:
            return Check(
                name,
                Answer.REFUSES,
                where,
                FAILED,
                f"{zero} zero pages have no data, which this kernel does not know: their frames seem beyond all memory",
            )
        if self.info is None or self.machine.e820_checksum != self.info.e820_checksum:
            return Check(name, Answer.UNKNOWN, where, remark="whether the machine has memory at all these frames")
        return Check(name, Answer.OK, where)

    def _units(self, failure: _Failure | None) -> Check:
        where = "load_image" if self.compressor == "none" else "load_compressed_image"
        if self.compressor != "none" and not self.rules.checks_compressor:
            where = "load_image_lzo"  # its older name, see ImageRules.checks_compressor
        where += ", kernel/power/swap.c"
        if failure is not None:
            return Check("units", Answer.REFUSES, where, failure.message, failure.remark)
        if self.info is not None and not self.info.image_pages:
            return Check("units", Answer.REFUSES, where, FAILED, "no data pages")
        if self._as_read_here and self.found.computed_crc is not None:
            return Check("units", Answer.OK, where)
        why = "the data cannot be followed"
        if self.found.error and self.chain.outside is None and not self.chain.loops:
            why = self.found.error.what  # something that this kernel does not look at
        return Check("units", Answer.UNKNOWN, where, remark=why)

    def _crc(self) -> Check:
        name, where = "crc32", "load_compressed_image, kernel/power/swap.c"
        header, computed = self.found.header, self.found.computed_crc
        if header.compressor == "none":
            return Check(name, Answer.OK, where, remark="not compared, for the data is not compressed")
        if not self.rules.checks_compressor:
            where = "load_image_lzo, kernel/power/swap.c"
        if header.crc32 is None:
            return Check(name, Answer.OK, where, remark="the image has none")
        if computed is None or not self._as_read_here:
            return Check(name, Answer.UNKNOWN, where, remark="the data is not read to its end")
        if header.crc32 == computed:
            return Check(name, Answer.OK, where)
        remark = f"the image says {header.crc32:#010x}, the data gives {computed:#010x}"
        return Check(name, Answer.REFUSES, where, "PM: Invalid image CRC32!", remark)

    @property
    def _as_read_here(self) -> bool:
        """Whether this kernel decompresses the data in the way in which it was read here."""
        return self.compressor == self.found.header.compressor

    def _failure(self) -> _Failure | None:
        """Where this kernel's reading would end; None if it comes to the end, or nobody can say."""
        if self.info is None or (self._as_read_here and self.found.computed_crc is not None):
            return None
        if self.chain.outside is not None or self.chain.loops:
            return None
        return self._read_plain() if self.compressor == "none" else self._read_units()

    def _read_plain(self) -> _Failure | None:
        assert self.info is not None
        for row in range(min(self.info.stream_pages, len(self.chain.entries) + 1)):
            if failure := self._unreadable(1 + row, row // UNIT_PAGES):
                return failure
        return None

    def _read_units(self) -> _Failure | None:
        """Unit after unit as `load_compressed_image` does, up to the first that fails."""
        assert self.info is not None
        label, codec = self.rules.compressors[self.compressor], codec_named(self.compressor)
        entry, rows, unit = 1, 0, 0
        room = np.empty(UNIT_BYTES, dtype=np.uint8)
        while rows < self.info.stream_pages:
            if failure := self._unreadable(entry, unit):
                return failure
            length = int.from_bytes(self._block(entry)[:LENGTH_BYTES], "little")
            if not 0 < length <= MAX_COMPRESSED_BYTES:
                return _Failure(unit, f"PM: Invalid {label} compressed length", f"unit {unit} of {length} bytes")
            blocks = -(-(LENGTH_BYTES + length) // PAGE_SIZE)
            for number in range(entry, entry + blocks):
                if failure := self._unreadable(number, unit):
                    return failure
            packed = b"".join(self._block(number) for number in range(entry, entry + blocks))
            stored = np.frombuffer(packed, dtype=np.uint8)[LENGTH_BYTES : LENGTH_BYTES + length]
            size_bytes = UNIT_BYTES
            try:
                codec.decompress_into(stored, room)
            except WrongLength as error:
                size_bytes = error.size_bytes
            except ValueError:
                return _Failure(unit, f"PM: {label} decompression failed", f"unit {unit}")
            if not 0 < size_bytes <= UNIT_BYTES or size_bytes % PAGE_SIZE:
                return _Failure(unit, f"PM: Invalid {label} uncompressed length", f"unit {unit} gives {size_bytes}")
            entry, rows, unit = entry + blocks, rows + size_bytes // PAGE_SIZE, unit + 1
        return None

    def _block(self, entry: int) -> bytes:
        return self.area.read_block(int(self.chain.entries[entry]), "data")

    def _unreadable(self, entry: int, unit: int) -> _Failure | None:
        """Why an entry of the map cannot be read, if it cannot (`swap_read_page`, `hib_end_io`)."""
        block = int(self.chain.entries[entry]) if entry < len(self.chain.entries) else 0
        if not block:
            return _Failure(unit, FAILED, f"the swap map ends with {entry} entries")
        if block < self.area.blocks:
            return None
        return _Failure(
            unit,
            f"PM: Read-error on swap-device (?:?:{block * SECTORS_PER_PAGE})",
            f"block {block}, beyond the device of {self.area.blocks} blocks",
        )
