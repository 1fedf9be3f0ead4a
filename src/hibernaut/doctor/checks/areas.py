# SPDX-License-Identifier: GPL-2.0-or-later
"""The swap area that the kernel writes its image to, and the one that the next boot reads.

`swsusp_swap_check` (kernel/power/swap.c) takes the area of /sys/power/resume and resume_offset; without one the first
area that is in use, whatever its priority (`find_first_swap`, mm/swapfile.c; before 5.11, `swap_type_of`). Read in
linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and -7.3 7.3.4-1~bpo13+1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hibernaut.doctor.evidence import Evidence
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import FactRead
from hibernaut.doctor.settings import SwapEntry

__all__ = ["AreaToRead", "AreaToWrite", "area_to_read", "area_to_write"]

NOWHERE = "0:0"


@dataclass(frozen=True)
class AreaToWrite:
    """The area that the kernel writes to.

    Attributes:
        entry: its line of /proc/swaps; None if none fits, so that the kernel refuses.
        number: major and minor number of its device; None if it is not known.
        offset: block of its header on that device; None if it is not known.
        chosen_by: fact that decides.
    """

    entry: SwapEntry | None
    number: str | None
    offset: int | None
    chosen_by: FactRead


@dataclass(frozen=True)
class AreaToRead:
    """The area that the next boot reads.

    Attributes:
        device: the device as it is spelled.
        offset: block of the header on that device.
        chosen_by: fact that decides.
    """

    device: str
    offset: int
    chosen_by: FactRead


def area_to_write(facts: Facts) -> AreaToWrite | None:
    """Return the area that the kernel would write to now; None if it is not known.

    systemd sets /sys/power/resume before it hibernates, so that a value of 0:0 leaves it the choice.
    """
    swaps, resume = facts.swaps.value, facts.resume_device.value
    if swaps is None:
        return None
    if resume is not None and resume != NOWHERE:
        offset = facts.resume_offset.value
        read = FactRead.of(facts.resume_device, resume if not offset else f"{resume}, resume_offset {offset}")
        for entry in swaps:
            place = place_of(facts, entry)
            if place is not None and place[0] == resume and place[1] in (offset, None):
                return AreaToWrite(entry, resume, offset, read)
        unplaced = any(place_of(facts, entry) is None for entry in swaps)
        return None if unplaced else AreaToWrite(None, resume, offset, read)
    reads = area_to_read(facts) if resume is None else None
    named = [one for one in swaps if reads and one.name == reads.device]
    if reads and named:  # resume= sets /sys/power/resume, whose value is not at hand
        number, _ = place_of(facts, named[0]) or (None, None)
        return AreaToWrite(named[0], number, reads.offset, reads.chosen_by)
    usable = [one for one in swaps if not one.is_zram]
    if facts.systemd.value and usable:
        entry = max(usable, key=lambda one: one.priority)
        read = FactRead.of(facts.swaps, f"{entry.name} has the highest priority, {entry.priority}, for systemd")
    elif swaps and (resume == NOWHERE or len(swaps) == 1):
        entry = swaps[0]
        read = FactRead.of(facts.swaps, f"{entry.name} is the first area in use")
    else:
        return None
    number, offset = place_of(facts, entry) or (None, None)
    return AreaToWrite(entry, number, offset, read)


def place_of(facts: Facts, entry: SwapEntry) -> tuple[str, int | None] | None:
    """Return device number and block of the header of an area; None if it is not known."""
    devices = facts.devices.value
    if entry.kind == "file":
        place = facts.swap_places.value.get(entry.name) if facts.swap_places.value else None
        return (place.number, place.block) if place else None
    number = devices.number(entry.name) if devices else None
    return (number, 0) if number else None


def area_to_read(facts: Facts) -> AreaToRead | None:
    """Return the area that the next boot looks at, if something states it; None otherwise.

    resume= of the command line comes first; then systemd's EFI variable; then the setting of initramfs-tools.
    """
    line = facts.command_line
    spelled = line.value.last("resume") if line.value else None
    if spelled and line.value:
        device, _, behind = spelled.partition(":") if spelled.startswith("/dev") else (spelled, "", "")
        given = line.value.last("resume_offset") or (behind if behind.isdecimal() else "0")
        offset = int(given) if re.fullmatch(r"\d{1,18}", given) else 0
        text = f"resume={spelled}" + (f" resume_offset={given}" if offset else "")
        return AreaToRead(device, offset, FactRead.of(line, text))
    location = facts.location
    if location.value is not None:
        text = f"uuid {location.value.uuid}, offset {location.value.offset}"
        return AreaToRead(f"UUID={location.value.uuid}", location.value.offset, FactRead.of(location, text))
    tools: Evidence[object] = facts.initramfs
    setting = facts.initramfs.value.get("initramfs-tools: RESUME") if facts.initramfs.value else None
    if setting and setting not in ("auto", "none"):
        return AreaToRead(setting, 0, FactRead.of(tools, f"RESUME={setting}"))
    return None
