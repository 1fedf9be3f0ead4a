# SPDX-License-Identifier: GPL-2.0-or-later
"""The facts that an image, a swap area or a dump of memory states."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from hibernaut.doctor.live_memory import frames_in_use
from hibernaut.doctor.memory_map import MemoryMap, map_of_table
from hibernaut.doctor.prediction import PredictedImage, predict_image
from hibernaut.errors import ContradictoryMemory, FormatError, HibernautError
from hibernaut.hibernation.audit import TABLE_NOT_THERE, audit
from hibernaut.hibernation.frame_map import missing_tables
from hibernaut.hibernation.machine_in_source import machine_in
from hibernaut.kernel.clock import NS, read_clock
from hibernaut.kernel.facts import e820_table_firmware, get_num_physpages, image_compressor
from hibernaut.kernel.kernel import Kernel
from hibernaut.kernel.own_vmcoreinfo import with_own_vmcoreinfo
from hibernaut.kernel.suspend import open_secret_memory
from hibernaut.memory.gaps import MemoryGap
from hibernaut.memory.painting import union
from hibernaut.paging.entries import Level
from hibernaut.sources import Source, open_memory, source_of_image, source_of_salvaged
from hibernaut.swsusp import Inspection, inspect_image
from hibernaut.swsusp.area import locate_area
from hibernaut.swsusp.codecs import CompressorName
from hibernaut.swsusp.header import AreaState, area_state, looks_like_swap
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.salvage import SalvagedImage
from hibernaut.volumes.volume import Volume

__all__ = ["MachineInImage", "SourceFacts", "source_facts"]

T = TypeVar("T")
ReadSalvaged = Callable[[Volume, int, "Callable[[int], None] | None"], SalvagedImage]
"""Read the image in a volume, whose swap header is at a block, as far as it goes, with a function for its progress."""


@dataclass(frozen=True)
class MachineInImage:
    """Facts of the kernel in an image or a dump; None where unknown.

    Attributes:
        release: its release.
        memory_map: the firmware's memory map that it keeps for its checksum.
        physical_pages: `get_num_physpages()`.
        secret_users: open files of secret memory.
        large_holes: number of large entries of the direct map that are not present and have a page to save.
        torn_holes: number of those whose table is copied before the split, so that the image lacks the new one.
        hole_pages: their pages to save.
        lost_pages: pages whose page table is not in the source.
        stopped_at: its wall clock, in s since 1970 (UTC): of an image, when it hibernated.
        predicted: its next image; None unless the kernel runs, or was stopped in `swsusp_save`, and its compressor is
            known.
        is_live: whether it is the running kernel.
        problems: facts that could not be read, a clause each.
    """

    release: str | None = None
    memory_map: MemoryMap | None = None
    physical_pages: int | None = None
    secret_users: int | None = None
    large_holes: int | None = None
    torn_holes: int = 0
    hole_pages: int = 0
    lost_pages: int | None = None
    stopped_at: int | None = None
    predicted: PredictedImage | None = None
    is_live: bool = False
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceFacts:
    """Facts of the image, swap area or dump that is given.

    Attributes:
        name: the file.
        state: state of the swap area; None for a dump.
        detail: the state in words.
        offset: block of the swap header on its device.
        inspection: the image, read to its end; None if there is none.
        salvaged: the same, if it was damaged or used up and read as far as it goes.
        machine: the machine in it.
        number: major and minor number, if it is a block device that holds the area alone; else None.
    """

    name: str
    state: AreaState | None
    detail: str
    offset: int = 0
    inspection: Inspection | None = None
    salvaged: SalvagedImage | None = None
    machine: MachineInImage = field(default_factory=MachineInImage)
    number: str | None = None


def source_facts(
    stack: ExitStack,
    volume: Volume,
    *,
    offset: int = 0,
    partition: int | None = None,
    base: int | None = None,
    gaps: Sequence[MemoryGap] | None = None,
    cr3: int | None = None,
    levels: int | None = None,
    read_salvaged: ReadSalvaged | None = None,
    progress: Callable[[int], None] | None = None,
) -> SourceFacts:
    """Return the facts of a file or device; the stack keeps it open. Arguments as for `open_memory` and `machine_in`.

    `read_salvaged` reads the image in the volume as far as it goes; None to read an image as a whole or not at all.

    Raises:
        FormatError: it is neither a swap area nor memory.
        OSError: it cannot be read.
    """
    name = volume.name
    if read_salvaged is not None:
        return _of_salvaged(read_salvaged(volume, offset, progress), cr3, levels)
    given = bool(offset or partition is not None or base is not None)
    if not given and not looks_like_swap(volume):
        source = stack.enter_context(open_memory(volume, gaps=gaps))
        return SourceFacts(name, None, f"a dump of memory ({source.kind})", machine=_machine(source, cr3, levels))
    area = locate_area(volume, offset=offset, partition=partition, base=base)
    state, detail = area_state(area)
    block = area.header_block
    if state not in ("image", "uswsusp"):
        return SourceFacts(name, state, detail, block)
    found = inspect_image(volume, offset=offset, partition=partition, base=base, progress=progress)
    machine = MachineInImage()
    if found.image is not None and not found.problems:
        machine = _machine(source_of_image(found.image, offset), cr3, levels)
    number = _number(name) if partition is None and base is None else None
    return SourceFacts(name, state, detail, block, found, machine=machine, number=number)


def _of_salvaged(image: SalvagedImage, cr3: int | None, levels: int | None) -> SourceFacts:
    """Return the facts of an image that is read as far as it goes."""
    state, detail = area_state(image.area)
    found = image.inspection
    machine = _machine(source_of_salvaged(image), cr3, levels)
    return SourceFacts(image.name, state, detail, image.area.header_block, found, image, machine)


def _number(name: str) -> str | None:
    """Return major and minor number of a block device; None if it is another file."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    if not stat.S_ISBLK(found.st_mode):
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"


def _machine(source: Source, cr3: int | None, levels: int | None) -> MachineInImage:
    """Return what can be read of the machine in a source."""
    problems: list[str] = []
    try:
        source.require_x86_64()
    except HibernautError as error:
        return MachineInImage(problems=(str(error),))
    kernel = None
    try:
        own, _ = with_own_vmcoreinfo(source)
        kernel = Kernel(own.memory, own.vmcoreinfo, own.name)
    except HibernautError as error:
        problems.append(_reason(error))

    def asked(read: Callable[[Kernel], T]) -> T | None:
        try:
            return None if kernel is None else read(kernel)
        except (HibernautError, ValueError) as error:
            problems.append(_reason(error))
            return None

    facts = MachineInImage(
        None if kernel is None else kernel.release,
        asked(lambda one: map_of_table(e820_table_firmware(one))),
        asked(get_num_physpages),
        asked(open_secret_memory),
        stopped_at=None if kernel is None or source.is_live else _stopped_at(kernel),
    )
    compressor = asked(image_compressor)
    return _with_direct_map(source, replace(facts, problems=tuple(problems)), compressor, cr3, levels)


def _stopped_at(kernel: Kernel) -> int | None:
    """Return a kernel's wall clock in s since 1970; None if it cannot be read, or drgn is not installed."""
    try:
        return read_clock(kernel).now_ns // NS
    except (HibernautError, LookupError, ValueError):
        return None
    except Exception as error:  # drgn.FaultError, of a package that may not be installed
        if type(error).__module__.partition(".")[0] not in ("drgn", "_drgn"):
            raise
        return None


def _with_direct_map(
    source: Source, facts: MachineInImage, compressor: CompressorName | None, cr3: int | None, levels: int | None
) -> MachineInImage:
    """Return facts with those of the direct map and of the list of pages."""
    try:
        machine = machine_in(source, cr3=cr3, levels=levels)
        result = audit(machine.machine)
    except ContradictoryMemory:
        raise
    except HibernautError as error:
        return replace(facts, problems=(*facts.problems, _reason(error)))
    if source.salvaged is not None:
        gone = union([source.salvaged.missing, source.salvaged.uncertain])
        if len(missing_tables(machine.machine.direct_map).within(gone)):
            return replace(facts, problems=(*facts.problems, "page tables of it are lost with a part of the image"))
    large = [split for split in result.splits if split.level is not Level.PTE]
    lost = sum(one.frames.total_pages for one in result.classes if one.name == TABLE_NOT_THERE)
    predicted = None
    pfns = machine.pages.pfns if machine.pages.pages_from == "kernel" else None
    if source.is_live:
        pfns = frames_in_use(source.memory.ranges)
    if pfns is not None and compressor is not None:
        zero_pages = True
        if facts.release is not None:
            try:
                zero_pages = image_rules_for_release(facts.release).zero_pages
            except FormatError:
                zero_pages = False
        predicted = predict_image(source.memory, np.asarray(pfns), zero_pages=zero_pages, compressor=compressor)
    return replace(
        facts,
        large_holes=len(large),
        torn_holes=sum(split.order == "above" for split in large),
        hole_pages=sum(split.nr_pages for split in large),
        lost_pages=lost if source.any_image is not None else 0,
        predicted=predicted,
        is_live=source.is_live,
    )


def _reason(error: Exception) -> str:
    return error.complaint if isinstance(error, FormatError) else str(error)
