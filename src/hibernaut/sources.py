# SPDX-License-Identifier: GPL-2.0-or-later
"""`open_memory`: physical memory of a dump or an image, whose format is detected by content."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hibernaut.errors import FormatError
from hibernaut.memory.avml import open_avml
from hibernaut.memory.dump import Dump, Refusal, RootHint
from hibernaut.memory.elf import open_elf
from hibernaut.memory.gaps import MemoryGap
from hibernaut.memory.kdump import open_kdump
from hibernaut.memory.lime import open_lime
from hibernaut.memory.physical import PhysicalMemory
from hibernaut.memory.raw import RawMemory, open_raw
from hibernaut.volumes.closing import Closing
from hibernaut.volumes.files import PlainFile, open_plain
from hibernaut.volumes.volume import Volume

if TYPE_CHECKING:
    from hibernaut.swsusp import Image
    from hibernaut.swsusp.architecture import Architecture
    from hibernaut.swsusp.salvage import SalvagedImage

__all__ = ["Source", "open_memory", "source_of_salvaged"]

OTHER_FILE = "give a dump or an image, with --offset, --partition or --base if it lies inside the file"


@dataclass(frozen=True, eq=False)
class Source(Closing):
    """Physical memory of a machine, and the facts that its file records. A context manager: leaving it closes the file.

    Attributes:
        memory: the physical memory.
        kind: the format: elf, lime, avml, raw, kdump, swsusp, uswsusp.
        name: name of the file, for messages.
        cr3: physical address of the root of the page tables; None if the file does not record it.
        levels: levels of paging, 4 or 5; None if the file does not record them.
        notes: other facts by name: VMCOREINFO's keys as they are, others with a prefix (`qemu.cpus`).
        vmcoreinfo: text of the VMCOREINFO note; None if the file has none.
        image: the hibernation image, read as a whole; None for any other source.
        roots: all roots that the file names, the likeliest first; empty for `cr3` alone.
        remarks: what is missing in the file, or could not be read of it, a sentence each.
        salvaged: the damaged or used-up image, read as far as it goes; None for any other source.
        offset: block of the swap header of an image, as it was given, in pages.
        gaps_from: origin of the gaps that raw memory leaves out: "--gap", or "the page tables"; None if unknown.
        is_live: whether it is the memory of the running kernel, which changes while it is read.
    """

    memory: PhysicalMemory
    kind: str
    name: str
    cr3: int | None = None
    levels: int | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    vmcoreinfo: bytes | None = None
    image: Image | None = None
    roots: tuple[RootHint, ...] = ()
    remarks: tuple[str, ...] = ()
    salvaged: SalvagedImage | None = None
    offset: int = 0
    gaps_from: str | None = None
    is_live: bool = False

    @property
    def gaps(self) -> tuple[MemoryGap, ...]:
        """Gaps in memory that the file leaves out, ascending; none for a format that says where its pages belong."""
        return self.memory.gaps if isinstance(self.memory, RawMemory) else ()

    @property
    def undecided(self) -> RawMemory | None:
        """The memory, if it is raw and the gaps of its file are unknown; else None."""
        return self.memory if isinstance(self.memory, RawMemory) and self.gaps_from is None else None

    def with_gaps(self, gaps: Sequence[MemoryGap], gaps_from: str) -> Source:
        """Return this source of raw memory with the gaps put back; closing either closes the file.

        Raises:
            FormatError: there can be no such gaps.
            ValueError: the memory is not raw.
        """
        if not isinstance(self.memory, RawMemory):
            raise ValueError(f"{self.kind} says where its pages belong: it has no gaps to put back")
        return replace(self, memory=self.memory.with_gaps(gaps), gaps_from=gaps_from)

    @property
    def any_image(self) -> Image | SalvagedImage | None:
        """The hibernation image that `memory` is of, whole or damaged or used up; None if the file is a dump."""
        return self.image or self.salvaged

    @property
    def foreign(self) -> Architecture | None:
        """The architecture of a machine whose page tables are not those of x86-64; None if it is not known to be so."""
        info = self.any_image.info if self.any_image else None
        architecture = info.architecture if info else None
        return None if architecture is None or architecture.is_x86_64 else architecture

    def require_x86_64(self) -> None:
        """Raise FormatError if the memory is that of another machine, whose page tables are not read."""
        if self.any_image is not None:
            self.any_image.require_x86_64()

    @property
    def root_hints(self) -> tuple[RootHint, ...]:
        """`roots`, or else `cr3` as the only one."""
        if self.roots or self.cr3 is None:
            return self.roots
        return (RootHint(self.cr3, self.levels, "the image" if self.any_image else "the dump"),)

    def close(self) -> None:
        """Close the file. Arrays returned before must not be used afterwards."""
        self.memory.close()


def open_memory(
    path: str | os.PathLike[str] | Volume,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    gaps: Sequence[MemoryGap] | None = None,
    index: str | os.PathLike[str] | None = None,
) -> Source:
    """Open a RAM dump (ELF core, LiME, AVML, kdump-compressed, raw) or a hibernation image, compressed or not.

    Formats with a magic number at the start of the file are tried first, then the signature of a swap area. Raw memory,
    which has no magic number, is the last resort; a file of another known format is never taken for raw memory.

    Args:
        path: path of the file or block device; or an open volume, which the source then owns.
        offset: position of the swap header on its device, in pages (`resume_offset` of a swap file).
        partition: number of the swap partition in the MBR or GPT of a whole disk.
        base: byte offset in the file at which the device of the swap area begins. With `offset`, `partition` or `base`
            the file is read as a hibernation image, without detection.
        gaps: gaps that a file of raw memory leaves out; an empty sequence states that it leaves out none. None if it is
            not known: whatever reads page tables then looks for contradictions (see `linux.gaps`).
        index: file with the places of an image's units and frames, made if it does not exist; see `open_image`.

    Returns:
        The source, which owns the open file.

    Raises:
        FormatError: every reader refuses the file (the message has the reason of each), or one accepts it and the file
            is damaged; or there are gaps, and the file is not raw memory or cannot leave them out; or there is an
            index, and it is not that of the image, or there is no image.
        OSError: the file cannot be read.
    """
    if isinstance(path, Volume) and not isinstance(path, PlainFile):
        return _open(path, offset, partition, base, gaps, index)
    plain = path if isinstance(path, PlainFile) else open_plain(path)
    try:
        return _open(plain, offset, partition, base, gaps, index)
    except BaseException:
        plain.close()
        raise


def _open(
    volume: Volume,
    offset: int,
    partition: int | None,
    base: int | None,
    gaps: Sequence[MemoryGap] | None,
    index: str | os.PathLike[str] | None,
) -> Source:
    if offset or partition is not None or base is not None:
        found = _open_image(volume, offset, partition, base, index)
    else:
        found = _detect(volume, gaps, index)
    if index is not None and found.image is None:
        raise FormatError(
            f"{found.kind} has no index, which is for hibernation images", source=found.name, advice="leave out --index"
        )
    if gaps is not None and not isinstance(found.memory, RawMemory):
        raise FormatError(f"{found.kind} says where its pages belong", source=found.name, advice="leave out --gap")
    return found


def _detect(plain: Volume, gaps: Sequence[MemoryGap] | None, index: str | os.PathLike[str] | None) -> Source:
    from hibernaut.swsusp import looks_like_swap

    refusals: list[Refusal] = []
    for reader in (open_elf, open_lime, open_avml, open_kdump):
        answer = reader(plain)
        if isinstance(answer, Dump):
            return _source(plain, answer)
        refusals.append(answer)
    if looks_like_swap(plain):
        return _open_image(plain, 0, None, None, index)
    refusals.append(Refusal("hibernation image", "no swap signature"))
    last = open_raw(plain, gaps or ())
    if isinstance(last, Dump):
        return replace(_source(plain, last), gaps_from=None if gaps is None else "--gap")
    raise FormatError(
        "no memory that can be read: " + "; ".join(map(str, [*refusals, last])),
        source=plain.name,
        advice=next((one.advice for one in (*refusals, last) if one.advice), OTHER_FILE),
    )


def _source(plain: Volume, dump: Dump) -> Source:
    if not dump.memory.ranges.total_pages:
        raise FormatError(f"the {dump.kind} dump holds no page of memory", source=plain.name, advice="dump it again")
    return Source(
        dump.memory,
        dump.kind,
        plain.name,
        dump.cr3,
        dump.levels,
        dump.notes,
        dump.vmcoreinfo,
        roots=dump.roots,
        remarks=dump.remarks,
        is_live=isinstance(plain, PlainFile) and plain.is_live,
    )


def _open_image(
    plain: Volume,
    offset: int,
    partition: int | None,
    base: int | None,
    index: str | os.PathLike[str] | None,
) -> Source:
    from hibernaut.swsusp import open_image

    return source_of_image(open_image(plain, offset=offset, partition=partition, base=base, index=index), offset)


def source_of_image(image: Image, offset: int = 0) -> Source:
    """Return the frames of an open image, as a source that owns the image; `offset` as for `open_memory`."""
    remarks = (image.info.remark,) if image.info.remark else ()
    kind = "swsusp" if image.header.userland is None else "uswsusp"
    return Source(image.memory(), kind, image.name, cr3=image.info.root, image=image, remarks=remarks, offset=offset)


def source_of_salvaged(image: SalvagedImage) -> Source:
    """Return the frames of a damaged or used-up image that can be read, as a source that owns the image."""
    from hibernaut.swsusp.salvage import SalvagedMemory

    info = image.info
    remarks = image.findings if info is None or info.remark is None else (*image.findings, info.remark)
    cr3 = None if info is None else info.root
    return Source(SalvagedMemory(image), "swsusp", image.name, cr3=cr3, remarks=remarks, salvaged=image)
