# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict on an image: whether a kernel on a machine resumes from it, check by check, in its order and words.

The kernel stops at the first check that fails; here the later ones are answered as well, as far as possible. All checks
after the signature happen when `swsusp_check` has put `orig_sig` back: a refusal consumes the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hibernaut.errors import CorruptImage
from hibernaut.memory.ranges import FrameRanges
from hibernaut.swsusp.checker import Inspection
from hibernaut.swsusp.checks import Answer, Check, ResumingMachine
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.declarations import (
    MAGIC_TRIMMED,
    UNIT_PAGES,
    Flags,
)
from hibernaut.swsusp.e820 import E820Check
from hibernaut.swsusp.generations import GENERATIONS
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.kernel_loading import LoadingEnd, SnapshotLoading
from hibernaut.swsusp.kernel_reading import (
    FAILED,
    KernelReading,
    block_read,
    entry_failure,
    follow_map,
)
from hibernaut.swsusp.own_record import own_record_checks
from hibernaut.swsusp.rules import ImageRules

__all__ = ["Answer", "Check", "ResumingMachine", "Verdict", "verdict_on"]


COUNT_MASK = 0xFFFF_FFFF
"""The kernel keeps counts of the info page as `unsigned int` (`load_header`, kernel/power/snapshot.c): higher bits make
no difference. Read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1; seen in guests of 6.1."""
READ = "read in linux-source-5.10 5.10.262-1, -6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1"
UNREAD = "as in linux-source-5.10 5.10.262-1; older source was not read"
SOURCES = {
    "hw_sig": "commit 74d9555580c4 (v5.17)",
    "compressor": "commits 8bc29736357e and a06c6f5d3cc9 (v6.9)",
    "magic": "commits d158cbdf39ff (v2.6.24), 62a03defeabd (v4.10), f5d1499ae209 (v5.13), 29671cabfc09",
    "e820_checksum": "commits 62a03defeabd (v4.10), f5d1499ae209 (v5.13), 29671cabfc09",
    "frames": "commit 005e8dddd497 (v6.6)",
    "crc32": "commit 081a9d043c98 (v3.2)",
}
"""Sources of the rules that a check depends on, by its name."""


@dataclass(frozen=True)
class Verdict:
    """All checks in the kernel's order.

    Attributes:
        rules: rules by which the kernel reads images.
        machine: machine that it runs on.
        checks: its checks.
    """

    rules: ImageRules
    machine: ResumingMachine
    checks: tuple[Check, ...]

    @property
    def resumes(self) -> bool | None:
        """True if every check is ok, False if one refuses or crashes the kernel, None if it is not known or depends."""
        answers = {check.answer for check in self.checks}
        if answers & {Answer.REFUSES, Answer.CRASHES}:
            return False
        return None if answers & {Answer.UNKNOWN, Answer.DEPENDS} else True


def verdict_on(found: Inspection, rules: ImageRules, machine: ResumingMachine) -> Verdict:
    """Return the verdict of a kernel on a machine about an image.

    Args:
        found: the image as far as it can be read.
        rules: rules of the kernel.
        machine: known facts of the machine.
    """
    checks = _Judge(found, rules, machine).checks()
    return Verdict(rules, machine, tuple(_with_source(check, rules) for check in checks))


def _differ(rules: ImageRules) -> str:
    """Return which kernels of one version take which of two magics."""
    older, newer = (one for one in GENERATIONS if one == rules.magic or one in rules.other_magics)
    change = GENERATIONS[newer].change
    return f"a kernel of this version takes {newer:#018x} if it has {change}, else {older:#018x}"


def _with_source(check: Check, rules: ImageRules) -> Check:
    """Return a check with its source; without a message if the words of this kernel's were not read."""
    source = SOURCES.get(check.check, "")
    if rules.read:
        return replace(check, source=source or READ)
    return replace(check, source=source or UNREAD, message=None)


class _Judge:
    """The checks of one kernel on one image."""

    def __init__(self, found: Inspection, rules: ImageRules, machine: ResumingMachine) -> None:
        self.found = found
        self.rules = rules
        self.machine = machine
        self.area = found.area
        self.compressor: CompressorName = found.header.compressor
        if not rules.compressors:
            self.compressor = "none"
        elif self.compressor not in rules.compressors and self.compressor != "none":
            self.compressor = "lzo"
        self.chain = follow_map(found.area, found.header.image)
        self.info = self._info()
        self.ending = self._ending()

    def _info(self) -> ImageInfo | None:
        """Return the info page, whatever its content; None if it cannot be read."""
        if self.found.info is not None:
            return self.found.info
        if entry_failure(self.area, self.chain, 0, 0):
            return None
        try:
            first = block_read(self.area, int(self.chain.entries[0]))
            return ImageInfo.parse(self.area.read_block(first, "info page"))
        except CorruptImage:
            return None

    def checks(self) -> Iterator[Check]:
        where = "swsusp_check, kernel/power/swap.c"
        if self.found.header.userland is not None:
            remark = "ULSUSPEND: an image of suspend-utils, which reads it itself"
            yield Check("signature", Answer.REFUSES, where, remark=remark)
            return
        again = self.found.header.is_swap_again
        yield Check("signature", Answer.OK, where, remark=None if again else "the area is not swap space any more")
        yield self._hw_sig()
        yield self._compressor()
        yield self._swap_map()
        if self.info is not None and self.info.is_foreign:
            yield from own_record_checks(self.info, self.machine)
        else:
            yield self._magic()
        if self.info is None or not self.info.is_foreign or self.info.e820_check is not E820Check.NONE:
            yield self._e820()
        yield self._memory_size()
        ending = self.ending
        meta_units = -(-self.info.meta_pages // UNIT_PAGES) if self.info else 0
        frames, units = self._frames(), self._units()
        # The kernel checks the list of frames as soon as it has read the units of the list.
        units_first = ending is not None and ending.check == "units" and ending.unit < meta_units
        yield from (units, frames) if units_first else (frames, units)
        yield self._crc()

    def _hw_sig(self) -> Check:
        name, where = "hw_sig", "swsusp_check, kernel/power/swap.c"
        stored, now = self.found.header.hw_sig, self.machine.hw_sig
        if not self.rules.compares_hw_sig:
            return Check(name, Answer.OK, where, remark="this kernel does not check it")
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
        wanted = self.found.compressor
        if self.compressor == "none" and wanted != "none":
            return Check(name, Answer.OK, where, remark="this kernel knows no compression and takes the data as it is")
        if wanted == "none" and self.compressor != "none":
            flag = int(Flags.NOCOMPRESS_MODE)
            return Check(
                name, Answer.OK, where, remark=f"not compressed, but without flag {flag}: this kernel tries LZO"
            )
        if wanted == "none":
            return Check(name, Answer.OK, where, remark="not compressed")
        if wanted != self.compressor:
            flag = int(Flags.COMPRESSION_ALG_LZ4)
            return Check(name, Answer.OK, where, remark=f"this kernel ignores flag {flag} and tries LZO")
        if self.rules.checks_compressor and wanted != "lzo":
            return Check(name, Answer.OK, where, remark=f"{wanted}, if the kernel is built with it")
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
            remark = "the chain loops: the kernel reads until it is out of memory"
            return Check(name, Answer.REFUSES, where, FAILED, remark)
        if failure := entry_failure(self.area, self.chain, 0, 0):
            # It is read by itself, and waited for: only reads that others follow have a message of their own.
            where = "swsusp_read, kernel/power/swap.c"
            return Check(name, Answer.REFUSES, where, FAILED, f"no info page: {failure.remark}")
        return Check(name, Answer.OK, where)

    def _magic(self) -> Check:
        name, where = "magic", "arch_hibernation_header_restore, arch/x86/power/hibernate.c"
        if self.info is None:
            return Check(name, Answer.UNKNOWN, where, remark="the info page cannot be read")
        rules, magic = self.rules, self.info.magic or 0
        known = " or ".join(f"{one:#018x}" for one in (rules.magic, *rules.other_magics) if one is not None)
        if magic == rules.magic:
            return Check(name, Answer.OK, where, remark=_differ(rules) if rules.other_magics else None)
        generation = self.info.generation
        if generation is not None and not generation.known and MAGIC_TRIMMED in rules.other_magics:
            return Check(name, Answer.UNKNOWN, where, remark=f"{magic:#018x}, newer than any magic that is known")
        if magic in rules.other_magics:
            return Check(name, Answer.UNKNOWN, where, remark=f"{magic:#018x}; {_differ(rules)}")
        return Check(
            name, Answer.REFUSES, where, "Unrecognized hibernate image header format!", f"{magic:#018x}, not {known}"
        )

    def _e820(self) -> Check:
        name, where = "e820_checksum", "arch_hibernation_header_restore, arch/x86/power/hibernate.c"
        if self.info is None or self.info.architecture is None:
            return Check(name, Answer.UNKNOWN, where, remark="the image does not have it")
        kept = self.info.e820_check
        stored, now = self.info.e820.by(kept), self.machine.e820.by(kept)
        if kept is E820Check.UNKNOWN:
            return Check(name, Answer.UNKNOWN, where, remark="the image's generation is newer than any that is known")
        if kept is E820Check.NONE:
            return Check(name, Answer.OK, where, remark="kernels of the image's generation do not check it")
        if stored == "":
            return Check(name, Answer.OK, where, remark="the image has none: its kernel was built without MD5")
        check = self._compared(name, where, stored, now, "Hibernate inconsistent memory map detected!", "#010x")
        if kept is E820Check.MD5 and check.answer is Answer.REFUSES:
            return replace(check, answer=Answer.UNKNOWN, remark=f"{check.remark}; refused if MD5 is built in")
        return check

    def _memory_size(self) -> Check:
        check = self._compared(
            "physical_pages",
            "check_header, kernel/power/snapshot.c",
            self.info.physical_pages if self.info else None,
            self.machine.physical_pages,
            "PM: hibernation: Image mismatch: memory size",
            "d",
        )
        if check.answer is Answer.REFUSES and not self.rules.read:
            remark = f"{check.remark}; whether this kernel counts them alike is not known"
            return replace(check, answer=Answer.UNKNOWN, remark=remark)
        return check

    def _compared(
        self, name: str, where: str, stored: int | str | None, now: int | str | None, message: str, form: str
    ) -> Check:
        def text(value: int | str) -> str:
            return value if isinstance(value, str) else f"{value:{form}}"

        if stored is None:
            return Check(name, Answer.UNKNOWN, where, remark="the image does not have it")
        if now is None:
            return Check(name, Answer.UNKNOWN, where, remark=f"the image has {text(stored)}")
        if stored == now:
            return Check(name, Answer.OK, where)
        return Check(name, Answer.REFUSES, where, message, f"the image has {text(stored)}, the machine {text(now)}")

    def _frames(self) -> Check:
        name, where = "frames", "unpack_orig_pfns, kernel/power/snapshot.c"
        image, ending = self.found.image, self.ending
        if ending is not None and ending.check == "frames":
            return Check(name, ending.answer, ending.where, ending.message, ending.remark)
        if image is None:
            if ending is None or not ending.lists_read:
                return Check(name, Answer.UNKNOWN, where, remark="the list of frames cannot be read")
            if self.machine.frames is None:
                remark = "refused if the machine has no memory at a listed frame"
                return Check(name, Answer.DEPENDS, where, FAILED, remark)
            return Check(name, Answer.OK, where)
        zero = image.zero_frames.total_pages
        if zero and not self.rules.zero_pages:
            return Check(
                name,
                Answer.REFUSES,
                where,
                FAILED,
                f"{zero} zero pages have no data, unknown to this kernel: their frames look beyond all memory",
            )
        if self.machine.frames is not None:
            return self._frames_of_machine(image.frames, self.machine.frames)
        if self._e820_differs():
            return Check(
                name, Answer.UNKNOWN, where, remark="unknown whether the machine has memory at all these frames"
            )
        return Check(name, Answer.OK, where)

    def _e820_differs(self) -> bool:
        """Whether the machine has another memory map than the image, or it is not known."""
        if self.info is None:
            return True
        stored = self.info.e820.by(self.info.e820_check)
        return not stored or stored != self.machine.e820.by(self.info.e820_check)

    def _frames_of_machine(self, listed: FrameRanges, frames: FrameRanges) -> Check:
        """Return the check of the frames that an image lists, against those of the machine's zones."""
        name, where = "frames", "unpack_orig_pfns, kernel/power/snapshot.c"
        others = listed.without(frames)
        if not len(others):
            return Check(name, Answer.OK, where)
        remark = f"frame {int(others.starts[0]):#x} is not one of the machine's"
        return Check(name, Answer.REFUSES, where, FAILED, remark)

    def _units(self) -> Check:
        ending = self.ending
        where = "load_image" if self.compressor == "none" else "load_compressed_image"
        if self.compressor != "none" and not self.rules.checks_compressor:
            where = "load_image_lzo"  # its older name, see ImageRules.checks_compressor
        where += ", kernel/power/swap.c"
        if ending is not None and ending.check == "units":
            at = where if ending.where.endswith("swap.c") else ending.where
            return Check("units", ending.answer, at, ending.message, ending.remark)
        if ending is not None and ending.answer in (Answer.OK, Answer.DEPENDS):
            return Check("units", Answer.OK, where)
        if self._is_ordinary:
            return Check("units", Answer.OK, where)
        why = "the data cannot be followed"
        if self.found.error and self.chain.complete:
            why = self.found.error.what  # this kernel does not check it
        return Check("units", Answer.UNKNOWN, where, remark=why)

    def _crc(self) -> Check:
        name, where = "crc32", "load_compressed_image, kernel/power/swap.c"
        header, computed = self.found.header, self.found.computed_crc
        if not self._reads_alike:
            computed = None
        if self.ending is not None:
            computed = self.ending.crc32 if self.ending.answer in (Answer.OK, Answer.DEPENDS) else None
        if self.compressor == "none":
            return Check(name, Answer.OK, where, remark="not compared: the data is not compressed")
        if not self.rules.checks_crc32:
            return Check(name, Answer.OK, where, remark="this kernel does not check it")
        if not self.rules.checks_compressor:
            where = "load_image_lzo, kernel/power/swap.c"
        if header.crc32 is None:
            return Check(name, Answer.OK, where, remark="the image has none")
        if computed is None:
            return Check(name, Answer.UNKNOWN, where, remark="the data is not read to its end")
        if header.crc32 == computed:
            return Check(name, Answer.OK, where)
        remark = f"the image has {header.crc32:#010x}, its data {computed:#010x}"
        return Check(name, Answer.REFUSES, where, "PM: Invalid image CRC32!", remark)

    @property
    def _reads_alike(self) -> bool:
        """Whether this kernel decompresses the data as the inspection did."""
        return self.compressor == self.found.compressor

    @property
    def _is_ordinary(self) -> bool:
        """Whether the inspection has read all that this kernel reads, and has found no contradiction."""
        return self._reads_alike and self.found.computed_crc is not None

    def _ending(self) -> LoadingEnd | None:
        """Return the end of this kernel's loading; None if the inspection has seen it, or it is not known."""
        info = self.info
        if info is None or not self.chain.complete or self.found.header.userland is not None:
            return None
        if self._is_ordinary and info.image_pages & COUNT_MASK:
            return None
        snapshot = SnapshotLoading(
            info.pages,
            info.image_pages,
            has_zero_pages=self.rules.zero_pages,
            frames=self.machine.frames,
            long_bytes=info.long_bytes,
        )
        label = self.rules.compressors.get(self.compressor, "")
        return KernelReading(self.area, self.chain, self.compressor, label, info.long_bytes).load(snapshot)
