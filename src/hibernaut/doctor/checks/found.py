# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether there is a swap area that survives power off, and whether the next boot finds the image in it."""

from __future__ import annotations

from hibernaut.doctor.checks.areas import NOWHERE, area_to_read, area_to_write, place_of
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.finding import CheckFinding, CheckOutcome, FactRead, failing, ok, unknown_for_lack_of, warning
from hibernaut.doctor.messages import NO_SWAP
from hibernaut.doctor.settings import SwapEntry

__all__ = ["initramfs_resume", "resume_device", "resume_offset", "swap", "swap_file", "swap_key", "zram"]

NO_DEVICE = "PM: Cannot find swap device, try swapon -a"
NOT_ACTIVE = "Specified resume device is missing or is not an active swap device"
"""systemd's words (src/login/logind-dbus.c)."""
MAKE_SWAP = "make a swap partition or file as large as memory, and enable it with swapon"


def swap(facts: Facts) -> CheckFinding:
    """Return whether a swap area is in use."""
    swaps = facts.swaps
    if swaps.value is None:
        return unknown_for_lack_of(swaps, advice="give /proc/swaps as --swaps")
    read = FactRead.of(swaps, ", ".join(f"{one.name} ({one.kind})" for one in swaps.value) or "no area")
    if not swaps.value:
        listed = facts.fstab_swaps.value
        text = "no swap area is in use"
        if listed:
            text += f", though /etc/fstab lists {', '.join(listed)}"
        advice = "enable it with `swapon --all`" if listed else MAKE_SWAP
        return failing(text, read, words=(NO_DEVICE, NO_SWAP), advice=advice)
    return ok(f"{len(swaps.value)} swap areas are in use" if len(swaps.value) > 1 else "a swap area is in use", read)


def zram(facts: Facts) -> CheckFinding:
    """Return whether compressed memory is the only swap area, or the one that the kernel would take."""
    swaps = facts.swaps
    if swaps.value is None:
        return unknown_for_lack_of(swaps, advice="give /proc/swaps as --swaps")
    read = FactRead.of(swaps, ", ".join(f"{one.name} priority {one.priority}" for one in swaps.value) or "no area")
    memories = [one for one in swaps.value if one.is_zram]
    if not memories:
        return ok("no swap area is compressed memory", read)
    if len(memories) == len(swaps.value):
        return failing(
            "the only swap area is compressed memory (zram), which is lost at power off",
            read,
            words=(NO_SWAP, NO_DEVICE),
            advice=MAKE_SWAP,
        )
    chosen = area_to_write(facts)
    if chosen is not None and chosen.entry is not None:
        if chosen.entry.is_zram:
            return failing(
                "the kernel would write its image to zram, which is lost at power off: zram is the first area, and"
                " /sys/power/resume names no other",
                read,
                chosen.chosen_by,
                advice="name the swap partition as resume= on the command line, or in /sys/power/resume",
            )
        return ok(f"the image goes to {chosen.entry.name}, not to zram", read, chosen.chosen_by)
    reads = area_to_read(facts)
    if reads is not None and not reads.device.startswith("/dev/zram"):
        return ok(f"{reads.device} is named to resume from, not zram", read, reads.chosen_by)
    if swaps.value[0].is_zram:
        return warning(
            "zram is the first swap area: a kernel without resume= writes its image there, and loses it",
            read,
            FactRead.of(facts.resume_device),
            advice="name the swap partition as resume= on the command line",
        )
    return ok("zram is not the first swap area", read)


def swap_key(facts: Facts) -> CheckFinding:
    """Return whether a swap area is encrypted with a key that each boot makes anew."""
    crypttab, swaps = facts.crypttab, facts.swaps
    if crypttab.value is None:
        if crypttab.reason.startswith("No such file"):
            return ok("no encrypted device is opened by crypttab", FactRead.of(crypttab))
        return unknown_for_lack_of(crypttab, advice="give its root as --root")
    random = [one for one in crypttab.value if one.loses_image]
    read = FactRead.of(crypttab, "; ".join(f"{one.name} {one.device} {one.key}" for one in crypttab.value) or "empty")
    if not random:
        return ok("no swap area has a random key", read)
    used = {_mapped(facts, one.name) for one in swaps.value or ()}
    named = [one for one in random if one.name in used or not swaps.known]
    others = [one for one in swaps.value or () if not one.is_zram and _mapped(facts, one.name) not in
              {each.name for each in random}]  # fmt: skip
    if not named:
        return ok("no swap area in use has a random key", read)
    text = f"{named[0].name} {named[0].loses_image}: the next boot cannot read an image in it"
    advice = "give it a key that stays, or use another swap area"
    if others:
        return warning(f"{text}; {others[0].name} does not", read, advice=advice)
    make = failing if swaps.known else warning
    return make(text, read, advice=advice)


def _mapped(facts: Facts, name: str) -> str:
    """Return the name of a mapped device without its folder: swap of /dev/mapper/swap, and of /dev/dm-0."""
    devices = facts.devices.value
    last = name.rpartition("/")[2]
    return devices.labels.get(last, last) if devices else last


def resume_device(facts: Facts) -> CheckFinding:
    """Return whether the next boot looks at the device that the image goes to."""
    reads, writes, devices = area_to_read(facts), area_to_write(facts), facts.devices.value
    if reads is None:
        return _no_resume(facts)
    wanted = devices.number(reads.device) if devices else None
    source = facts.source.value
    if source and source.state in ("image", "uswsusp") and source.number and wanted and devices:
        image = FactRead(source.name, f"an image, on device {source.number}")
        if wanted == source.number:
            return ok(f"the next boot looks at {reads.device}, where the image is", reads.chosen_by, image)
        return failing(
            f"the image is on {devices.name(source.number)}, and the next boot looks at {reads.device}"
            f" ({devices.name(wanted)})",
            reads.chosen_by,
            image,
            advice=f"set resume= to {devices.name(source.number)}",
        )
    if writes is not None and writes.entry is None:
        return failing(
            f"no swap area in use begins at {writes.chosen_by.value}, where the kernel would write",
            writes.chosen_by,
            FactRead.of(facts.swaps, ", ".join(one.name for one in facts.swaps.value or ()) or "no area"),
            words=(NO_DEVICE, NOT_ACTIVE),
            advice="set resume= and resume_offset= to the device and the offset of a swap area that is in use",
        )
    if writes is None or writes.entry is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            f"the next boot looks at {reads.device}; where the image goes is not known",
            (reads.chosen_by, FactRead.of(facts.swaps), FactRead.of(facts.devices)),
            advice="run it on the machine itself, or give /proc/swaps as --swaps",
        )
    if wanted is None or writes.number is None:
        if reads.device == writes.entry.name:
            return ok(f"the next boot looks at {reads.device}, where the image goes", reads.chosen_by, writes.chosen_by)
        if wanted is None and _is_gone(reads.device, facts):
            return failing(
                f"the next boot looks at {reads.device}, which this machine does not have",
                reads.chosen_by,
                writes.chosen_by,
                words=(NOT_ACTIVE,),
                advice=f"set resume= to the device of {writes.entry.name}",
            )
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            f"whether {reads.device} is the device of {writes.entry.name} is not known",
            (reads.chosen_by, writes.chosen_by, FactRead.of(facts.devices)),
            advice="run it on the machine itself",
        )
    if wanted != writes.number and devices is not None:
        return failing(
            f"the next boot looks at {reads.device} ({devices.name(wanted)}), and the image goes to"
            f" {writes.entry.name} on {devices.name(writes.number)}",
            reads.chosen_by,
            writes.chosen_by,
            advice=f"set resume= to the device of {writes.entry.name}",
        )
    return ok(f"the next boot looks at {reads.device}, where the image goes", reads.chosen_by, writes.chosen_by)


def _is_gone(device: str, facts: Facts) -> bool:
    """Return whether a device is absent for certain: a name of the kernel that it does not have, or a tag of udev's."""
    devices = facts.devices.value
    if devices is None:
        return False
    if "=" in device or device.startswith("/dev/disk/"):
        return any(link.startswith("disk/") for link in devices.links)
    return device.startswith("/dev/") and not device.startswith("/dev/mapper/") and device.count("/") == 2


def _no_resume(facts: Facts) -> CheckFinding:
    """Return the finding where nothing names the image to the next boot."""
    tools = facts.initramfs.value or {}
    line = facts.command_line
    read = (
        FactRead.of(line, line.value.text if line.value else None),
        FactRead.of(facts.location),
        FactRead.of(facts.initramfs),
    )
    advice = "set resume= on the command line to the device of the swap area, and resume_offset= for a swap file"
    if line.value is None and facts.resume_device.value in (None, NOWHERE):
        return unknown_for_lack_of(line, advice="give /proc/cmdline as --cmdline")
    if tools.get("initramfs-tools") and tools.get("initramfs-tools: RESUME", "auto") == "auto":
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "initramfs-tools chose the area when it made the initramfs: the largest swap partition then",
            read,
            advice="see the line RESUME= in `unmkinitramfs /initrd.img`, conf/conf.d, or set resume=",
        )
    if facts.resume_device.value not in (None, NOWHERE):
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "the area was named to the kernel by its initramfs or by hand: whether the next boot does it is not known",
            (FactRead.of(facts.resume_device), *read),
            advice=advice,
        )
    if facts.systemd.value and not facts.location.reason.startswith("the machine was not booted by UEFI"):
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "systemd 255 and later names the area in the EFI variable HibernateLocation when it hibernates",
            read,
            advice="see `systemctl --version`, or set resume= on the command line",
        )
    if facts.location.reason and facts.devices.known:
        return failing(
            "nothing names the swap area to the next boot: it does not look for an image", *read, advice=advice
        )
    return warning("the command line has no resume=", *read, advice=advice)


def resume_offset(facts: Facts) -> CheckFinding:
    """Return whether the next boot looks at the block at which the swap area begins."""
    reads, writes = area_to_read(facts), area_to_write(facts)
    source = facts.source.value
    if reads is None:
        return CheckFinding(
            CheckOutcome.NOT_KNOWN,
            "no offset is named to the next boot",
            (FactRead.of(facts.command_line, facts.command_line.value.text if facts.command_line.value else None),),
            advice="see the check resume-device",
        )
    if source and source.state in ("image", "uswsusp") and source.offset != reads.offset:
        return failing(
            f"the image is at block {source.offset}, and the next boot looks at block {reads.offset}",
            FactRead(source.name, f"swap header at block {source.offset}"),
            reads.chosen_by,
            words=("PM: Image not found (code -22)",),
            advice=f"set resume_offset={source.offset} on the command line",
        )
    if source and source.state in ("image", "uswsusp"):
        return ok(f"the image is at block {source.offset}, where the next boot looks", reads.chosen_by)
    entry = writes.entry if writes else None
    if entry is None and facts.swaps.value and len(facts.swaps.value) == 1:
        entry = facts.swaps.value[0]
    if entry is None:
        return unknown_for_lack_of(facts.swaps, advice="see the check swap")
    return _offset_of(facts, entry, reads.offset, reads.chosen_by)


def _offset_of(facts: Facts, entry: SwapEntry, offset: int, chosen_by: FactRead) -> CheckFinding:
    """Return the finding on the offset of an area in use."""
    listed = FactRead.of(facts.swaps, f"{entry.name} ({entry.kind})")
    words = (NO_DEVICE, NOT_ACTIVE)
    if entry.kind == "partition":
        if offset == 0:
            return ok("a partition begins at block 0", listed, chosen_by)
        return failing(
            f"{entry.name} is a partition, which begins at block 0, and the next boot looks at block {offset}",
            listed,
            chosen_by,
            words=words,
            advice="remove resume_offset= from the command line",
        )
    place = place_of(facts, entry)
    if place is None or place[1] is None:
        if offset == 0 and facts.command_line.value and facts.command_line.value.last("resume"):
            return failing(
                f"{entry.name} is a file, and the command line has no resume_offset=",
                listed,
                chosen_by,
                words=words,
                advice="set resume_offset= to the block of its first page: `filefrag -v` in blocks of 4096 bytes, or"
                " `btrfs inspect-internal map-swapfile -r`",
            )
        return unknown_for_lack_of(facts.swap_places, advice="run it as root on the machine itself")
    if place[1] == offset:
        return ok(f"{entry.name} begins at block {offset}, where the next boot looks", listed, chosen_by)
    return failing(
        f"{entry.name} begins at block {place[1]}, and the next boot looks at block {offset}",
        listed,
        chosen_by,
        words=words,
        advice=f"set resume_offset={place[1]} on the command line",
    )


def swap_file(facts: Facts) -> CheckFinding:
    """Return whether a swap file can hold an image: the kernel writes to the device, by the file's extents."""
    swaps, places = facts.swaps, facts.swap_places
    if swaps.value is None:
        return unknown_for_lack_of(swaps, advice="give /proc/swaps as --swaps")
    files = [one for one in swaps.value if one.kind == "file"]
    if not files:
        return ok("no swap area is a file", FactRead.of(swaps, f"{len(swaps.value)} areas"))
    name = files[0].name
    place = places.value.get(name) if places.value else None
    if place is None:
        return unknown_for_lack_of(places, advice="run it as root on the machine itself")
    read = FactRead(name, f"block {place.block} of {place.number}, {place.extents or '?'} extents, {place.file_system}")
    pieces = f", in {place.extents} extents, which does not matter" if place.extents and place.extents > 1 else ""
    return ok(f"{name} begins at block {place.block} of its device{pieces}", read)


def initramfs_resume(facts: Facts) -> CheckFinding:
    """Return whether the initramfs looks for an image, as far as the settings of its tool tell."""
    tools = facts.initramfs
    if tools.value is None:
        return unknown_for_lack_of(tools, advice="give its root as --root")
    found = tools.value
    read = FactRead.of(tools, ", ".join(f"{name}={value}" for name, value in sorted(found.items())))
    if found.get("initramfs-tools: RESUME") == "none":
        return failing(
            "initramfs-tools is set to RESUME=none: its initramfs does not look for an image",
            read,
            advice="remove RESUME=none from /etc/initramfs-tools, and run update-initramfs -u",
        )
    if found.get("dracut: omit_dracutmodules") == "resume":
        return failing(
            "dracut omits its module resume: its initramfs does not look for an image",
            read,
            advice="remove resume from omit_dracutmodules, and run dracut --force",
        )
    if "mkinitcpio: HOOKS" in found:
        hooks = found["mkinitcpio: HOOKS"].split()
        if "resume" not in hooks and "systemd" not in hooks:
            return failing(
                "mkinitcpio has neither the hook resume nor systemd: its initramfs does not look for an image",
                read,
                advice="add resume to HOOKS in /etc/mkinitcpio.conf after the hooks that open its device, and run"
                " mkinitcpio -P",
            )
    return ok("the settings of the initramfs do not keep it from looking for an image", read)
