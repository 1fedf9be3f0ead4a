# SPDX-License-Identifier: GPL-2.0-or-later
"""The takeover of a hibernation: a guest is stopped before its kernel copies anything, and saved by us.

The image goes to a second disk, into a fresh swap area: on the guest's own disk any block may hold a page that it has
swapped out. Nothing comes from an image of the kernel's own, so this works where the kernel crashes in the copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hibernaut.errors import HibernautError, LabError
from hibernaut.hibernation import CPU_SET_BITS, Fixmap, Violation, Way, hibernate, same_direct_map
from hibernaut.hibernation.real_kernel import rules_of_source
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.kernel.suspend import pages_to_save
from hibernaut.lab.host.kernels import image_rules_of
from hibernaut.lab.host.programs import need_module
from hibernaut.lab.laboratory import DumpPoints, Hibernated, Lab, Resumed
from hibernaut.lab.record import SPARE_NAME, GuestRecord
from hibernaut.lab.variants import Variant
from hibernaut.sources import Source, open_memory
from hibernaut.swsusp.rules import ImageRules
from hibernaut.swsusp.writer import NewArea, WrittenImage, write_image

__all__ = ["Takeover", "save_dump", "take_over"]

Tell = Callable[[str, str], None]
"""Called after each step: (step, outcome)."""


@dataclass(frozen=True)
class Takeover:
    """Outcome of a takeover.

    Attributes:
        stock: outcome of the same guest's own hibernation, continued after the dump.
        stock_resumed: outcome of a resume from its own image; None if it made none or this was not requested.
        written: our image.
        resumed: outcome of the resume from our image.
        findings: differences between the direct map of the resumed guest and that of the dump.
    """

    stock: Hibernated
    stock_resumed: Resumed | None
    written: WrittenImage
    resumed: Resumed
    findings: tuple[Violation, ...]

    @property
    def passed(self) -> bool:
        """Whether the guest resumed with every page and every entry of its direct map unchanged."""
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
    """Run all steps: stop a guest, dump it, save it, resume it, compare.

    Args:
        lab: laboratory with the kernel.
        variant: kind of guest.
        folder: existing folder; the disks and dumps of both machines stay in it.
        way: way in which pages that are not present are copied; `Fixmap` if None.
        resume_stock: whether to resume from the kernel's own image as well, if it makes one.
        tell: called after each step.

    Raises:
        LabUnavailable: the laboratory lacks something on this machine.
        LabError: a guest fails or times out, or the dump's list of pages is not the kernel's.
        HibernautError: the dump is unusable.
    """
    need_module("drgn")
    before, disk = folder / "before.elf", folder / "swap-before.img"
    stock = lab.hibernate(variant, folder, DumpPoints(before=before, disk=disk))
    record = stock.record
    tell("guest", f"Linux {record.release}, {variant.what}")
    for region in record.regions:
        tell("", f"block {region['block']}: PMD entry {region.get('pmd')} in table {region.get('table')}")
    tell("stopped", f"in swsusp_save, {record.saved_pages} pages to copy, none copied yet: RAM dumped")
    tell("stock", f"the guest continues on its own: {stock.summary}")
    stock_resumed = None
    if resume_stock and stock.outcome == "hibernated":
        stock_resumed = lab.resume(
            record, [stock.image, folder / SPARE_NAME], folder, partition=record.partition, offset=record.offset
        )
        tell("", f"resumed from its own image: {stock_resumed.reason}")
    image = folder / "ours.img"
    chosen = way or Fixmap()
    with open_memory(before) as source:
        written = save_dump(source, image, (folder / SPARE_NAME).stat().st_size, chosen, image_rules_of(lab.kernel))
    _refuse_other_list(written, record)
    tell("ours", f"built from the dump by {chosen.name}: {written.saved_pages} pages, in a fresh swap area")
    after = folder / "after.elf"
    resumed = lab.resume(record, [disk, image], folder, device="vdb", dump=after)
    tell("", f"stock Linux {record.release} on it: {resumed.reason}")
    for region in resumed.facts.get("regions", ()):
        tell("", f"block {region['block']}: PMD entry {region.get('pmd')}, {region['damaged']} pages damaged")
    findings = _compare(before, after) if after.exists() else ()
    if after.exists():
        tell("direct map", "; ".join(map(str, findings[:3])) or "entry by entry the same as in the dump")
    return Takeover(stock, stock_resumed, written, resumed, findings)


def save_dump(source: Source, out: Path, size_bytes: int, way: Way, rules: ImageRules) -> WrittenImage:
    """Save a kernel stopped in `swsusp_save`, by its own list of pages, into a new swap area.

    Args:
        source: its dump.
        out: file to make.
        size_bytes: size of the swap area.
        way: way in which pages that are not present are copied.
        rules: rules of the kernel that resumes; the image uses every feature of them (LZ4, zero pages).

    Raises:
        HibernautError: the kernel in the dump is not in `swsusp_save`, or the area is too small.
        MachineFault: the model's machine crashes in the copy.
    """
    pages = pages_to_save(source)
    if pages.info is None or pages.kernel is None:
        raise HibernautError(f"{source.name}: {pages.reason}")
    machine = machine_from_memory(
        source.memory,
        pages.info.cr3,
        pages.kernel.levels,
        saveable=pages.pfns,
        rules=rules_of_source(source).rules,
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


def _refuse_other_list(written: WrittenImage, record: GuestRecord) -> None:
    """Refuse a list from the dump that is not as long as the kernel announced. Raises LabError."""
    if written.saved_pages != record.saved_pages:
        raise LabError(
            f"the list in the dump has {written.saved_pages} pages; the kernel announced {record.saved_pages}"
        )


def _compare(before: Path, after: Path) -> tuple[Violation, ...]:
    """Return the differences between the direct maps of two dumps: level, frame, presence and rights of each entry."""
    with open_memory(before) as old, open_memory(after) as new:
        if old.cr3 is None or new.cr3 is None:
            raise HibernautError(f"{before} or {after}: the dump has no CR3")
        was = machine_from_memory(old.memory, old.cr3, old.levels)
        now = machine_from_memory(new.memory, new.cr3, new.levels)
        return same_direct_map(was, now, ignore=CPU_SET_BITS)
