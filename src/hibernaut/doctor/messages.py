# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of the kernel and of systemd about hibernation: pattern, meaning, next step, and the check that sees it.

docs/troubleshooting.md lists all of them. Kernel messages were read in linux-source-6.1 6.1.192-2, -6.12 6.12.118-1 and
-7.3 7.3.4-1~bpo13+1 (kernel/power, arch/x86/power, security/lockdown), systemd's in
systemd-logind, systemd-sleep and systemd-hibernate-resume of Debian's packages 252.39-1~deb12u2 and 257.13-1~deb13u1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["MESSAGES", "NO_SWAP", "Message", "Phase", "message_in"]


class Phase(StrEnum):
    """The part of a hibernation that a message belongs to."""

    SAVING = "saving"
    RESUMING = "resuming"


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        text: its text as users search for it; `?` stands for a number or a name.
        phase: the part of a hibernation that it belongs to.
        meaning: its meaning, a sentence without a full stop.
        advice: what to do next, an imperative clause.
        checks: names of the checks that see the cause.
        ends: whether hibernation or resume fails with it.
    """

    text: str
    phase: Phase
    meaning: str
    advice: str
    checks: tuple[str, ...]
    ends: bool = True

    @property
    def pattern(self) -> re.Pattern[str]:
        """A regular expression for lines of a log; prefixes such as `PM: hibernation:` differ between kernels."""
        core = re.sub(r"^(?:PM: )?(?:hibernation: )?", "", self.text)
        return re.compile(".*?".join(map(re.escape, core.split("?"))))


SAVING, RESUMING = Phase.SAVING, Phase.RESUMING
NO_SWAP = "Not enough suitable swap space for hibernation available on compatible block devices and file systems"

MESSAGES = (
    Message("PM: hibernation: Image mismatch: architecture specific data", RESUMING,
            "the memory map of the firmware, or the format of the image, is not that of the kernel that resumes",
            "compare the memory maps of both boots with `hibernaut doctor --dmesg OLD --dmesg NEW`",
            ("memory-map", "image")),
    Message("Hibernate inconsistent memory map detected!", RESUMING,
            "the memory map of the firmware has changed since the machine hibernated",
            "compare the memory maps of both boots with `hibernaut doctor --dmesg OLD --dmesg NEW`", ("memory-map",)),
    Message("PM: hibernation: Image mismatch: memory size", RESUMING,
            "the machine has another number of pages than when it hibernated",
            "put the memory back as it was", ("memory-size",)),
    Message("Unrecognized hibernate image header format!", RESUMING,
            "the image is of a kernel with another generation of the info page", "start the kernel that hibernated",
            ("image", "kernel")),
    Message("PM: hibernation: Image mismatch: kernel version", RESUMING,
            "the image is of another kernel, which this architecture does not resume",
            "start the kernel that hibernated", ("kernel",)),
    Message("PM: Suspend image hardware signature mismatch (? now ?); aborting resume.", RESUMING,
            "the firmware reports that the hardware was changed", "undo the change, or add acpi_sleep=s4_nohwsig",
            ("hardware-signature",)),
    Message("PM: Invalid image CRC32!", RESUMING, "the data of the image is damaged",
            "check the disk, and what wrote to the swap area since", ("image",)),
    Message("decompression failed", RESUMING, "the data of the image is damaged, or compressed in another way",
            "start the kernel that hibernated, and check the disk", ("image", "kernel")),
    Message("PM: Invalid ? compressed length", RESUMING, "the data of the image is damaged",
            "check the disk, and what wrote to the swap area since", ("image",)),
    Message("compression is not available", RESUMING, "the kernel lacks the compressor of the image",
            "add its module to the initramfs, or choose another with hibernate.compressor=", ("image", "kernel")),
    Message("Memory map mismatch at ? after hibernation", RESUMING,
            "the image has a page where the machine has no memory that the kernel may use",
            "compare the memory maps of both boots", ("memory-map",)),
    Message("PM: Read-error on swap-device (?)", RESUMING, "the disk fails to read the image", "check the disk",
            ("image",)),
    Message("PM: Cannot find swsusp signature!", RESUMING, "the area of the image is not as the kernel left it",
            "make the area anew with mkswap", ("image",), ends=False),
    Message("PM: hibernation: Failed to load image, recovering.", RESUMING,
            "the kernel refused the image, for the reason in the lines before, and boots afresh",
            "look at the lines before it", ("last-resume",)),
    Message("PM: Image not found (code -22)", RESUMING,
            "the block that the kernel read has no signature of an image: another device or offset, or used up",
            "see the checks resume-device, resume-offset and image", ("resume-device", "resume-offset", "image"),
            ends=False),
    Message("PM: Image not found (code -16)", RESUMING,
            "the device that the kernel was given is in use: as a swap area, or by a file system",
            "let the initramfs resume before anything uses the device", ("resume-device",), ends=False),
    Message("HibernateLocation system identifier doesn't match currently running system, would not resume from it.",
            RESUMING, "systemd's EFI variable is of another installed system than the one that boots",
            "start the system that hibernated", ("resume-device",)),
    Message("Found resume_offset=? but resume= is unset, refusing.", RESUMING,
            "the command line has resume_offset= without resume=", "set both", ("resume-device", "resume-offset")),
    Message("Unable to resume from device ? (?) offset ?, continuing boot process.", RESUMING,
            "the kernel refused the image, or there was none", "look at the kernel's lines before it",
            ("last-resume",), ends=False),
    Message("Could not resume from ? (?).", RESUMING,
            "the kernel refused the image, or there was none (systemd 252)", "look at the kernel's lines before it",
            ("last-resume",), ends=False),
    Message("PM: hibernation: resume failed (?)", RESUMING, "the kernel refused the image, and boots afresh",
            "look at the lines before it", ("last-resume",)),
    Message("PM: Image saving failed: ?", SAVING,
            "the image could not be written: -28 means that the swap area was full, -5 that the disk failed",
            "enlarge the swap area, or lower /sys/power/image_size", ("swap-space",)),
    Message("PM: Not enough free swap", SAVING, "the image, not compressed, does not fit into the free slots",
            "enlarge the swap area, or remove hibernate=nocompress", ("swap-space",)),
    Message("PM: Cannot find swap device, try swapon -a", SAVING,
            "no swap area in use begins where /sys/power/resume and resume_offset say",
            "set resume= and resume_offset= to an area that is in use", ("swap", "resume-device", "resume-offset")),
    Message("PM: Cannot get swap writer", SAVING, "the kernel has no swap area to write to",
            "enable the area with swapon", ("swap", "resume-device", "resume-offset")),
    Message("PM: hibernation: Image allocation is ? pages short", SAVING,
            "memory that cannot be freed leaves no room for the copy", "end processes that lock memory",
            ("free-memory", "control-groups")),
    Message("PM: hibernation: Not enough free memory", SAVING,
            "memory that cannot be freed leaves no room for the copy", "end processes that lock memory",
            ("free-memory", "control-groups")),
    Message("PM: hibernation: Error ? creating image", SAVING,
            "the copy failed: -12 means that memory was short", "look at the lines before it", ("free-memory",)),
    Message("PM: hibernation: Some devices failed to power down, aborting", SAVING,
            "a driver refused to sleep; the lines before it name its device", "update that driver, or unload it first",
            ("last-hibernation",)),
    Message("Some devices failed to suspend, or early wake event detected", SAVING,
            "a driver refused to sleep; the lines before it name its device", "update that driver, or unload it first",
            ("last-hibernation",)),
    Message("PM: hibernation: Wakeup event detected during hibernation, rolling back.", SAVING,
            "a device woke the machine while it hibernated", "disable that device in /sys/.../power/wakeup",
            ("last-hibernation",)),
    Message("Freezing ? failed after ? seconds", SAVING, "a process or a kernel thread did not freeze in 20 s",
            "look at the tasks that the next lines list", ("last-hibernation",)),
    Message("PM: hibernation: Failed to remap page", SAVING,
            "a page that is not in the direct map could not be mapped: no memory for a page table",
            "see `hibernaut audit`", ("direct-map",)),
    Message("RIP: 0010:__kfence_alloc", SAVING,
            "KFENCE, switched on at run time, wrote to a page that hibernation gave back without the right to write",
            "switch KFENCE on at boot, or not at all", ("kfence",)),
    Message("CPA detected W^X violation", RESUMING, "page tables are damaged: the image was torn",
            "see `hibernaut audit`", ("direct-map",), ends=False),
    Message("hibernation is restricted; see man kernel_lockdown.7", SAVING,
            "lockdown forbids hibernation, mostly for Secure Boot", "turn off Secure Boot, or use suspend to RAM",
            ("lockdown",)),
    Message("Operation not permitted", SAVING, "the kernel does not offer hibernation now",
            "see the checks nohibernate, lockdown, secret-memory and cxl",
            ("available", "nohibernate", "lockdown", "secret-memory", "cxl"), ends=False),
    Message("Sleep verb 'hibernate' is not configured or configuration is not supported by kernel", SAVING,
            "the kernel does not offer hibernation", "see the check available",
            ("available", "configuration", "nohibernate"), ends=False),
    Message('Sleep verb "hibernate" not supported', SAVING, "the kernel does not offer hibernation (systemd 252)",
            "see the check available", ("available", "configuration", "nohibernate", "sleep-settings"), ends=False),
    Message("Sleep verb 'hibernate' is disabled by config", SAVING, "systemd's settings forbid hibernation",
            "remove AllowHibernation=no from sleep.conf and its drop-ins", ("sleep-settings",), ends=False),
    Message("initialization failed: Hibernation support is enabled", SAVING,
            "the kernel does not initialize TDX while hibernation is available", "choose one of the two", ("tdx",),
            ends=False),
    Message(NO_SWAP, SAVING, "systemd finds no swap area, zram apart, with room for the active anonymous memory",
            "enlarge the swap area", ("swap", "zram", "systemd-threshold", "swap-space")),
    Message("Not enough swap space for hibernation", SAVING,
            "systemd 252 finds no swap area, zram apart, with room for the active anonymous memory",
            "enlarge the swap area", ("swap", "zram", "systemd-threshold", "swap-space")),
    Message("Not running on EFI and resume= is not set, or noresume is set. No available method to resume from"
            " hibernation", SAVING, "nothing would name the image to the next boot", "set resume=",
            ("resume-device", "nohibernate")),
    Message("No valid 'resume=' option found, refusing to hibernate.", SAVING,
            "nothing would name the image to the next boot", "set resume=", ("resume-device",)),
    Message("Specified resume device is missing or is not an active swap device", SAVING,
            "resume= names a device that no swap area in use is on", "set resume= to the device of the swap area",
            ("resume-device", "resume-offset")),
    Message("Invalid resume config: resume= is not populated yet resume_offset= is", SAVING,
            "the command line has resume_offset= without resume=", "set both", ("resume-device", "resume-offset")),
    Message("Failed to put system to sleep. System resumed again", SAVING,
            "the kernel gave up, and systemd reports its error number", "look at the kernel's lines before it",
            ("last-hibernation",)),
)  # fmt: skip
"""Messages in the order in which they explain a failure: the cause before what follows from it."""


def message_in(line: str, phase: Phase) -> Message | None:
    """Return the message of a phase that a line of a log has; None if it has none."""
    return next((one for one in MESSAGES if one.phase is phase and one.pattern.search(line)), None)
