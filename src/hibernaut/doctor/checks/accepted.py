# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the kernel that boots next accepts the image: the verdict of `inspect --on-machine`, by subject.

Without an image the logs of two boots are compared: what differed between them differs again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from hibernaut.doctor.evidence import Evidence, unknown
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import (
    CheckFinding,
    CheckOutcome,
    ComparedMaps,
    FactRead,
    failing,
    ok,
    unknown_for_lack_of,
    warning,
)
from hibernaut.doctor.memory_map import MemoryMap, differences, map_in_log, ram_bytes, sums_of
from hibernaut.doctor.source_facts import SourceFacts
from hibernaut.errors import FormatError
from hibernaut.kernel_line import parse_release
from hibernaut.swsusp.e820 import E820Check, E820Sums
from hibernaut.swsusp.rules import image_rules_for_release
from hibernaut.swsusp.verdict import Answer, Check, ResumingMachine, verdict_on

__all__ = ["boot_files", "hardware_signature", "image", "kernel", "memory_map", "memory_size"]

ARCHITECTURE_DATA = "PM: hibernation: Image mismatch: architecture specific data"
INCONSISTENT_MAP = "Hibernate inconsistent memory map detected!"
MEMORY_SIZE = "PM: hibernation: Image mismatch: memory size"
FIRMWARE = (
    "boot again and compare: if the map changes from boot to boot, update the firmware, undo the last change of its"
    " settings, or remove what was attached"
)
DATA_CHECKS = ("swap_map", "compressor", "magic", "frames", "units", "crc32")
"""Checks of `swsusp.verdict` on the image itself."""


def _verdict(facts: Facts) -> dict[str, Check] | None:
    """Return the verdict of this machine's kernel on the image, by check; None without an image or a kernel."""
    source = facts.source.value
    if source is None or source.inspection is None:
        return None
    release = facts.release.value or source.machine.release
    if release is None:
        return None
    try:
        rules = image_rules_for_release(release)
    except FormatError:
        return None
    known = facts.memory_map.value
    machine = ResumingMachine(
        "this machine",
        sums_of(known) if known else E820Sums(),
        facts.physical_pages.value,
        facts.hw_sig.value,
        facts.release.value,
    )
    return {check.check: check for check in verdict_on(source.inspection, rules, machine).checks}


def image(facts: Facts) -> CheckFinding:
    """Return whether the image is there and whole."""
    source = facts.source
    if source.value is None:
        return unknown_for_lack_of(source, advice="give the swap area as --image")
    found, read = source.value, FactRead(source.value.name, source.value.detail)
    if found.state is None:
        return CheckFinding(CheckOutcome.NOT_KNOWN, f"{found.name} is a dump, not a swap area", (read,))
    if found.state == "uswsusp":
        return warning(
            "the image is one of suspend-utils (ULSUSPEND), which the kernel does not read",
            read,
            advice="resume it with suspend-utils' own resume program",
        )
    if found.state == "swap":
        return CheckFinding(CheckOutcome.OK, "the area holds no image", (read,))
    if found.state == "used up":
        advice = "see the checks last-resume and last-hibernation"
        if found.salvaged is None:
            advice += "; give --consumed to compare what is left of it with this machine"
        return warning(
            "the area held an image, and a boot has used it up: the kernel puts the signature back before it checks"
            " anything",
            read,
            *_left(found),
            words=("PM: Image not found (code -22)",),
            advice=advice,
        )
    if found.inspection is None or found.state == "other":
        return failing(
            "the swap area is damaged" if found.state == "damaged" else "this is not a swap area",
            read,
            words=("PM: Image not found (code -22)",),
            advice="give the device of the swap area and its offset, or make the area anew with mkswap",
        )
    return _whole(facts, read)


def _left(source: SourceFacts) -> Iterator[FactRead]:
    """Yield the evidence on an image that was read as far as it goes; nothing for any other."""
    if source.salvaged is not None:
        for finding in source.salvaged.findings:
            yield FactRead(source.name, finding)


def _whole(facts: Facts, read: FactRead) -> CheckFinding:
    """Return the finding on an image that is there."""
    source = facts.source.value
    inspection = source.inspection if source else None
    verdict = _verdict(facts)
    refused = [verdict[name] for name in DATA_CHECKS if verdict and name in verdict]
    refused = [check for check in refused if check.answer in (Answer.REFUSES, Answer.CRASHES)]
    if source and source.salvaged and not source.salvaged.whole:
        return failing(
            "the image is damaged: not all of it can be read",
            read,
            *_left(source),
            advice="do not resume from it; `hibernaut report --salvage` shows what is left of it",
        )
    if inspection and inspection.problems:
        first = inspection.problems[0]
        return failing(
            f"the image is torn: {first.what}",
            read,
            FactRead(first.where or read.origin, first.what),
            words=tuple(dict.fromkeys(check.message for check in refused if check.message)),
            advice="do not resume from it: something wrote to the area after hibernation, or the disk lost a write",
        )
    if refused:
        return failing(
            f"this kernel refuses the image: {refused[0].check}, {refused[0].remark or 'it differs'}",
            read,
            FactRead.of(facts.release),
            words=tuple(dict.fromkeys(check.message for check in refused if check.message)),
            advice="start the kernel that hibernated",
        )
    return ok("the image is whole", read)


def memory_map(facts: Facts) -> CheckFinding:
    """Return whether the firmware's memory map is that of the boot that hibernated, range by range."""
    after = facts.memory_map
    before = _map_before(facts)
    stored = _stored_sums(facts)
    maps = None
    if before.value is not None and after.value is not None:
        maps = ComparedMaps(before.value, before.origin, after.value, after.origin)
    if stored is not None:
        return _against_image(facts, stored, before, maps)
    if maps is None:
        return unknown_for_lack_of(
            before, after, advice="give the logs of both boots as --dmesg, the oldest first, or the image as --image"
        )
    read = (_counted(before), _counted(after))
    changed = differences(maps.before, maps.after)
    if not changed and maps.before == maps.after:
        return ok("the firmware's memory map is the same at both boots", *read)
    return CheckFinding(
        CheckOutcome.WOULD_FAIL, _difference_text(maps), read, (INCONSISTENT_MAP, ARCHITECTURE_DATA), FIRMWARE, maps
    )


def _map_before(facts: Facts) -> Evidence[MemoryMap]:
    """Return the memory map of the boot that hibernated: that in the image's memory, or of the earlier log."""
    source, boot = facts.source.value, facts.earlier_boot
    if source and source.inspection and source.machine.memory_map:
        return Evidence(source.machine.memory_map, f"{source.name}, e820_table_firmware")
    if boot is not None:
        return map_in_log(boot.kernel_texts, boot.origin)
    return unknown("--dmesg of the boot that hibernated", "not given")


def _stored_sums(facts: Facts) -> tuple[E820Check, int | str] | None:
    """Return the checksum in the image, and how it was made; None without one."""
    source = facts.source.value
    info = source.inspection.info if source and source.inspection else None
    if info is None:
        return None
    value = info.e820.by(info.e820_check)
    return None if not value else (info.e820_check, value)


def _against_image(
    facts: Facts, stored: tuple[E820Check, int | str], before: Evidence[MemoryMap], maps: ComparedMaps | None
) -> CheckFinding:
    """Return the finding on the checksum in the image."""
    check, value = stored
    after = facts.memory_map
    name = facts.source.value.name if facts.source.value else ""
    in_image = FactRead(name, f"{check} {_sum_text(value)}")
    if after.value is None:
        return unknown_for_lack_of(after, advice="give the log of the boot that resumes as --dmesg")
    now = sums_of(after.value).by(check)
    here = FactRead.of(after, f"{len(after.value)} ranges, {check} {_sum_text(now)}")
    if now == value:
        return ok("the firmware's memory map is that of the image", in_image, here)
    if maps is None or sums_of(maps.before).by(check) != value:
        text = "the firmware's memory map is another one than the image's"
        if before.value is not None:
            text += f"; {before.origin} has a third one"
        return CheckFinding(
            CheckOutcome.WOULD_FAIL, text, (in_image, here), (INCONSISTENT_MAP, ARCHITECTURE_DATA), FIRMWARE, None
        )
    return CheckFinding(
        CheckOutcome.WOULD_FAIL,
        _difference_text(maps),
        (in_image, here, _counted(before)),
        (INCONSISTENT_MAP, ARCHITECTURE_DATA),
        FIRMWARE,
        maps,
    )


def _sum_text(value: int | str | None) -> str:
    return f"{value:#010x}" if isinstance(value, int) else str(value)


def _counted(evidence: Evidence[MemoryMap]) -> FactRead:
    found = evidence.value or ()
    return FactRead(evidence.origin, f"{len(found)} ranges, crc32 {sums_of(found).crc32:#010x}")


def _difference_text(maps: ComparedMaps) -> str:
    """Return how two maps differ, in a clause."""
    changed = differences(maps.before, maps.after)
    if not changed:
        return "the firmware's memory map covers the same bytes, but has other entries"
    size = sum(one.end - one.start for one in changed)
    before, after = ram_bytes(maps.before), ram_bytes(maps.after)
    ram = "RAM is the same" if before == after else f"RAM differs by {after - before:+d} bytes"
    moved = before == after and any(1 in (one.before, one.after) for one in changed)
    if moved:
        ram = "as much RAM, at other places"
    first = f"the first difference is at {changed[0].start:#x}"
    ranges = "1 range" if len(changed) == 1 else f"{len(changed)} ranges"
    return f"the firmware's memory map has changed: {size} bytes in {ranges}; {first}; {ram}"


def memory_size(facts: Facts) -> CheckFinding:
    """Return whether the kernel counts as many pages as that which hibernated."""
    now = facts.physical_pages
    source, boot = facts.source.value, facts.earlier_boot
    info = source.inspection.info if source and source.inspection else None
    then: Evidence[int] = unknown("--dmesg of the boot that hibernated", "not given")
    if info is not None and source:
        then = Evidence(info.physical_pages, source.name)
    elif boot is not None:
        then = Evidence(boot.physical_pages, boot.origin, "" if boot.physical_pages else "the log lacks `Memory:`")
    if now.value is None or then.value is None:
        return unknown_for_lack_of(then, now, advice="give the logs of both boots as --dmesg, or the image as --image")
    read = (FactRead.of(then, f"{then.value} pages"), FactRead.of(now, f"{now.value} pages"))
    if now.value == then.value:
        return ok("the machine has as many pages", *read)
    return failing(
        f"the machine has {now.value} pages, and had {then.value} when it hibernated",
        *read,
        words=(MEMORY_SIZE,),
        advice="put the memory back as it was; if nothing was changed, the firmware reserves another part of it",
    )


def hardware_signature(facts: Facts) -> CheckFinding:
    """Return whether ACPI's hardware signature is that of the image."""
    verdict = _verdict(facts)
    check = verdict.get("hw_sig") if verdict else None
    if check is None:
        return unknown_for_lack_of(facts.source, advice="give the image as --image")
    source = facts.source.value
    name = source.name if source else ""
    read = (FactRead(name, check.remark or "equal"), FactRead.of(facts.hw_sig))
    if check.answer is Answer.OK:
        return ok("the hardware signature does not keep the kernel from resuming", *read)
    if check.answer is Answer.UNKNOWN:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN, "the image has a hardware signature, and this machine's is not known", read,
            advice="run it as root on the machine itself",
        )  # fmt: skip
    return failing(
        "the firmware reports changed hardware (hardware signature)",
        *read,
        words=(check.message,) if check.message else (),
        advice="undo the change of hardware or firmware, or add acpi_sleep=s4_nohwsig to the command line",
    )


def kernel(facts: Facts) -> CheckFinding:
    """Return whether the kernel is that which hibernated, and whether another one was installed since."""
    source, boot, now = facts.source.value, facts.earlier_boot, facts.release
    location = facts.location.value
    then: str | None = None
    origin = ""
    if source and source.inspection and source.machine.release:
        then, origin = source.machine.release, source.name
    elif location and location.kernel:
        then, origin = location.kernel, facts.location.origin
    elif boot is not None and boot.release:
        then, origin = boot.release, boot.origin
    if then is None and now.value is not None and facts.installed.value is not None:
        return _next_kernel(facts, now.value, facts.installed.value)
    if then is None or now.value is None:
        return unknown_for_lack_of(
            now if now.value is None else unknown("--image", "the kernel that hibernated is not known"),
            advice="give the image as --image, or the logs of both boots as --dmesg",
        )
    read = (FactRead(origin, then), FactRead.of(now))
    banners = (boot.banner if boot else None, facts.this_boot.banner if facts.this_boot else None)
    if then != now.value:
        return warning(
            f"the kernel that resumes is {now.value}, and {then} hibernated: x86-64 allows it, within the rules of"
            " `hibernaut inspect --for-kernel`, and distributions do not test it",
            *read,
            advice="start the kernel that hibernated, and hibernate only after a reboot into a new one",
        )
    if None not in banners and banners[0] != banners[1] and not (source and source.inspection):
        return warning(
            "the kernel has the same release, and is another build",
            FactRead(boot.origin if boot else "", banners[0] or ""),
            FactRead(facts.boots.origin, banners[1] or ""),
            advice="start the build that hibernated",
        )
    return ok("the kernel is the one that hibernated", *read)


def boot_files(facts: Facts) -> CheckFinding:
    """Return whether the kernel and the initramfs in /boot are those of the time of hibernation, by their times.

    An initramfs that was made since looks for the image by its own settings, which can be others.
    """
    files, source = facts.boot_files, facts.source.value
    if source is None or source.inspection is None:
        return unknown_for_lack_of(
            unknown("--image", "there is no image"), advice="give the swap area as --image, and its root as --root"
        )
    then, release = source.machine.stopped_at, source.machine.release
    if files.value is None or then is None:
        return unknown_for_lack_of(
            files if files.value is None else unknown(source.name, "the time of hibernation cannot be read"),
            advice="compare the times of the files in /boot with that of hibernation (`hibernaut inspect`)",
        )
    mine = {path: at for path, at in files.value.items() if release is None or _may_start(path, release)}
    read = FactRead(source.name, f"hibernated at {_utc(then)}")
    if not mine:
        return unknown_for_lack_of(
            unknown(files.origin, f"it has no file of {release}"), advice="mount the boot partition, too"
        )
    newer = {path: at for path, at in mine.items() if at > then}
    listed = FactRead(files.origin, ", ".join(f"{path}: {_utc(at)}" for path, at in sorted((newer or mine).items())))
    if newer:
        return warning(
            f"{' and '.join(sorted(newer))} changed after the machine hibernated",
            read,
            listed,
            advice="see the checks initramfs, resume-device and kernel: what was changed may not look for the image",
        )
    return ok("kernel and initramfs in /boot are as old as the image, or older", read, listed)


def _may_start(path: str, release: str) -> bool:
    """Return whether a file in /boot belongs to a kernel: its name has this release, or none."""
    named = re.search(rf"-{re.escape(release)}(\.[a-z]+)*$", path)
    return named is not None or not any(character.isdecimal() for character in path)


def _utc(seconds: int) -> str:
    """Return a time in words."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _next_kernel(facts: Facts, running: str, installed: tuple[str, ...]) -> CheckFinding:
    """Return the finding on the kernel that the next boot starts, by those that are installed."""
    read = (FactRead.of(facts.release), FactRead.of(facts.installed, ", ".join(installed)))
    advice = "reboot into the kernel that the boot loader starts before you hibernate"
    releases = [one for one in installed if one[:1].isdecimal()]
    if releases and running not in installed:
        return warning(
            f"the running kernel, {running}, is not installed any more: the next boot starts another one",
            *read,
            advice=advice,
        )
    try:
        newer = [one for one in releases if parse_release(one) > parse_release(running)]
    except FormatError:
        newer = []
    if newer:
        return warning(
            f"a newer kernel, {max(newer, key=parse_release)}, is installed: the boot loader may start it",
            *read,
            advice=advice,
        )
    return ok("no newer kernel is installed than the one that runs", *read)
