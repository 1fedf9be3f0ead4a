# SPDX-License-Identifier: GPL-2.0-or-later
"""Take a hibernation over: a guest is stopped before its kernel copies anything, we save it, a stock kernel resumes it.

The image goes to a second disk, in a fresh swap area: on the guest's own disk any block may hold a page that it has
swapped out. Nothing is taken from an image of the kernel's own, so this works where the kernel does not survive the
copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import HibernautError, LabError
from hibernaut.hibernation import CPU_SET_BITS, Fixmap, Violation, Way, hibernate, same_direct_map
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.scenario import SPARE_NAME, Hibernated, Lab, Record, Resumed, Stop
from hibernaut.lab.variants import Variant
from hibernaut.linux.rules import rules_for_release
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp.rules import ImageRules, image_rules_for_release
from hibernaut.swsusp.writer import NewArea, WrittenImage, write_image

__all__ = ["Takeover", "save_dump", "take_over"]

Tell = Callable[[str, str], None]
"""Told of each step when it is done: (step, what came of it)."""


@dataclass(frozen=True)
class Takeover:
    """What came of it.

    Attributes:
        stock: how the same guest's kernel went on by itself after the dump.
        stock_resumed: whether it can be resumed from its own image, if it made one and that was asked for.
        written: our image.
        resumed: what the guest that resumed from it found.
        findings: differences between its direct map and that of the dump, empty if there are none.
    """

    stock: Hibernated
    stock_resumed: Resumed | None
    written: WrittenImage
    resumed: Resumed
    findings: tuple[Violation, ...]

    @property
    def passed(self) -> bool:
        """Resumed, every page right, the direct map entry by entry what it was."""
        return self.resumed.passed and not self.findings


def take_over(
    lab: Lab,
    variant: Variant,
    folder: Path,
    *,
    way: Way | None = None,
    resume_stock: bool = False,
    tell: Tell = lambda _step, _what: None,
) -> Takeover:
    """The whole story.

    Args:
        lab: the laboratory and its kernel.
        variant: which guest.
        folder: an existing folder; afterwards it holds the disks and dumps of both machines.
        way: how pages that are not present are copied; `Fixmap` if not given.
        resume_stock: also resume from the kernel's own image, if it makes one.
        tell: told of each step.

    Raises:
        LabUnavailable: something is missing here.
        LabError: a guest does not do as it is told, or there is nothing to resume.
        HibernautError: the dump is not what it should be.
    """
    need_module("drgn")
    before, disk = folder / "before.elf", folder / "swap-before.img"
    stock = lab.hibernate(variant, folder, Stop(before=before, disk=disk))
    record = stock.record
    tell("guest", f"Linux {record.release}, {variant.what}")
    for region in record.regions:
        tell("", f"block {region['block']}: PMD entry {region.get('pmd')} in table {region.get('table')}")
    tell("stopped", f"in swsusp_save, {record.saved_pages} pages to copy, none copied yet: RAM dumped")
    tell("stock", f"the guest goes on by itself: {stock.outcome}{': ' if stock.reason else ''}{stock.reason}")
    stock_resumed = None
    if resume_stock and stock.outcome == "hibernated":
        stock_resumed = lab.resume(
            record, [stock.image, folder / SPARE_NAME], folder, partition=record.partition, offset=record.offset
        )
        tell("", f"resumed from its own image: {stock_resumed.reason}")
    image = folder / "ours.img"
    how = way or Fixmap()
    with open_memory(before) as source:
        rules = image_rules_for_release(record.release)
        written = save_dump(source, image, (folder / SPARE_NAME).stat().st_size, how, rules)
    _refuse_other_list(written, record)
    tell("ours", f"built from the dump via {how.name}: {written.saved_pages} pages, into a fresh swap area")
    after = folder / "after.elf"
    resumed = lab.resume(record, [disk, image], folder, device="vdb", dump=after)
    tell("", f"stock Linux {record.release} on it: {resumed.reason}")
    for region in resumed.facts.get("regions", ()):
        tell("", f"block {region['block']}: PMD entry {region.get('pmd')}, {region['damaged']} pages damaged")
    findings = _compare(before, after) if after.exists() else ()
    if after.exists():
        tell("direct map", "; ".join(map(str, findings[:3])) or "entry by entry what it was in the dump")
    return Takeover(stock, stock_resumed, written, resumed, findings)


def save_dump(source: Source, out: Path, size_bytes: int, way: Way, rules: ImageRules) -> WrittenImage:
    """Save a kernel stopped in `swsusp_save`, by its own list of pages, into a new swap area.

    Args:
        source: its dump.
        out: the file to make.
        size_bytes: of the swap area.
        way: how pages that are not present are copied.
        rules: of the kernel that is to read it: the image has all that this kernel's own could have (LZ4, zero pages).

    Raises:
        HibernautError: the kernel in the dump is not there, or the area is too small.
        MachineFault: the way does not survive the copy.
    """
    pages = pages_to_save(source)
    if pages.info is None or pages.kernel is None:
        raise HibernautError(f"{source.name}: {pages.reason}")
    machine = machine_from_memory(
        source.memory,
        pages.info.cr3,
        pages.kernel.levels,
        saveable=pages.pfns,
        rules=rules_for_release(pages.kernel.release),
    )
    snapshot = hibernate(machine, way)
    return write_image(
        out,
        snapshot.memory,
        snapshot.pfns,
        pages.info,
        NewArea(size_bytes),
        compressor="lz4" if "lz4" in rules.compressors else "lzo",
        zero_pages=rules.zero_pages,
    )


def _refuse_other_list(written: WrittenImage, record: Record) -> None:
    """The list read from the dump must be as long as the kernel itself announced."""
    if written.saved_pages != record.saved_pages:
        raise LabError(f"{written.saved_pages} pages on the list in the dump, the kernel said {record.saved_pages}")


def _compare(before: Path, after: Path) -> tuple[Violation, ...]:
    """The direct maps of two dumps, entry by entry: level, frame, presence and rights."""
    with open_memory(before) as old, open_memory(after) as new:
        if old.cr3 is None or new.cr3 is None:
            raise HibernautError("a dump without CR3")
        was = machine_from_memory(old.memory, old.cr3, old.levels)
        now = machine_from_memory(new.memory, new.cr3, new.levels)
        return same_direct_map(was, now, ignore=CPU_SET_BITS)
