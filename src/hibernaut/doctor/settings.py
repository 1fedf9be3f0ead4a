# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of /proc, /sys and /etc that decide about hibernation, parsed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = [
    "CommandLine",
    "CryptMapping",
    "HibernateLocation",
    "SwapEntry",
    "ZoneCounts",
    "bracketed",
    "parse_command_line",
    "parse_config",
    "parse_counters",
    "parse_crypttab",
    "parse_fstab_swaps",
    "parse_hibernate_location",
    "parse_ini",
    "parse_meminfo",
    "parse_shell",
    "parse_swaps",
    "parse_zoneinfo",
]

SWAPS_HEADER = re.compile(r"^Filename\s+Type\s+Size\s+Used\s+Priority\s*$")
ESCAPED = re.compile(r"\\([0-7]{3})")
"""`seq_path` writes blanks in names as octal numbers."""
KIB_PER_PAGE = 4
RANDOM_KEYS = ("/dev/urandom", "/dev/random", "/dev/hw_random")
"""Keys of crypttab(5) that differ from boot to boot."""


@dataclass(frozen=True)
class SwapEntry:
    """A line of /proc/swaps: a swap area in use.

    Attributes:
        name: its device or file.
        kind: partition or file, as the kernel calls them.
        size_pages: pages that it holds.
        used_pages: pages in use.
        priority: its priority; the kernel swaps to the highest first.
    """

    name: str
    kind: str
    size_pages: int
    used_pages: int
    priority: int

    @property
    def free_pages(self) -> int:
        """Slots that an image can take."""
        return self.size_pages - self.used_pages

    @property
    def is_zram(self) -> bool:
        """Whether it is compressed memory, which does not survive power off."""
        return re.fullmatch(r"/dev/zram\d+", self.name) is not None


@dataclass(frozen=True)
class ZoneCounts:
    """Counts of /proc/zoneinfo over all zones, in pages.

    Attributes:
        present: pages that exist.
        free: pages on free lists.
        per_cpu: pages on lists of the CPUs, which the kernel returns before it counts.
        spanned: frames from the first to the last one of each zone that has pages.
        reserve: `totalreserve_pages`, as `calculate_totalreserve_pages` (mm/page_alloc.c) adds it up: of each zone the
            high mark and the largest protection, and no more than its managed pages; None if the file lacks these.
    """

    present: int
    free: int
    per_cpu: int
    spanned: tuple[int, ...]
    reserve: int | None

    @property
    def saveable(self) -> int:
        """Pages that `count_data_pages` (kernel/power/snapshot.c) counts, as far as these counts tell: those in use."""
        return self.present - self.free - self.per_cpu


@dataclass(frozen=True)
class CommandLine:
    """The kernel's command line.

    Attributes:
        text: as it is.
        words: its words, quotes removed; those after `--` belong to init.
    """

    text: str
    words: tuple[str, ...]

    def last(self, name: str) -> str | None:
        """Return the value of the last NAME=VALUE, which counts; None if there is none. `-` and `_` are the same."""
        wanted = name.replace("-", "_")
        found = None
        for word in self.words:
            key, equals, value = word.partition("=")
            if equals and key.replace("-", "_") == wanted:
                found = value
        return found

    def has(self, name: str) -> bool:
        """Return whether a word without a value is there."""
        return name in self.words


@dataclass(frozen=True)
class CryptMapping:
    """A line of crypttab(5).

    Attributes:
        name: name below /dev/mapper.
        device: the encrypted device.
        key: file with its key; none or - for a passphrase.
        options: its options.
    """

    name: str
    device: str
    key: str
    options: tuple[str, ...]

    @property
    def loses_image(self) -> str | None:
        """The reason why the next boot finds nothing in it: a clause; None if it stays."""
        if self.key in RANDOM_KEYS:
            return "has a new random key at each boot"
        if {"swap", "tmp"} & {option.partition("=")[0] for option in self.options}:
            return "is formatted at each boot when it is opened (option swap or tmp)"
        return None


@dataclass(frozen=True)
class HibernateLocation:
    """The EFI variable by which systemd finds the image at the next boot (systemd-hibernate-resume-generator(8)).

    Attributes:
        uuid: UUID of the device.
        offset: `resume_offset` in pages.
        kernel: release of the kernel that hibernated; None if it is not in the variable.
    """

    uuid: str
    offset: int
    kernel: str | None


def parse_command_line(text: str) -> CommandLine:
    """Return a command line. Raises ValueError if it has more than one line."""
    line = text.strip("\n\0 ")
    if "\n" in line:
        raise ValueError("it has more than one line")
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split, lexer.quotes, lexer.commenters, lexer.escape = True, '"', "", ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that is not closed: the kernel takes the rest of the line
        words = line.replace('"', "").split()
    return CommandLine(line, tuple(words[: words.index("--")] if "--" in words else words))


def parse_swaps(text: str) -> tuple[SwapEntry, ...]:
    """Return the lines of /proc/swaps. Raises ValueError if it is another file."""
    lines = text.splitlines()
    if not lines or not SWAPS_HEADER.match(lines[0]):
        raise ValueError("it does not begin with the header of /proc/swaps")
    return tuple(_swap(line) for line in lines[1:] if line.strip())


def _swap(line: str) -> SwapEntry:
    fields = line.split()
    if len(fields) < 5:
        raise ValueError(f"a line has {len(fields)} fields")
    name = ESCAPED.sub(lambda match: chr(int(match[1], 8)), " ".join(fields[:-4]).removesuffix("\\040(deleted)"))
    size, used, priority = int(fields[-3]), int(fields[-2]), int(fields[-1])
    if not 0 <= used <= size:
        raise ValueError(f"{used} of {size} KiB are in use")
    return SwapEntry(name, fields[-4], size // KIB_PER_PAGE, used // KIB_PER_PAGE, priority)


def parse_meminfo(text: str) -> Mapping[str, int]:
    """Return the counts of /proc/meminfo in bytes, by name. Raises ValueError if it is another file."""
    found = {name: int(kib) * 1024 for name, kib in re.findall(r"^([\w()]+): +(\d+) kB$", text, re.MULTILINE)}
    if "MemTotal" not in found:
        raise ValueError("it has no MemTotal")
    return found


def parse_counters(text: str) -> Mapping[str, int]:
    """Return the counters of /proc/vmstat."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) (\d+)$", text, re.MULTILINE)}


def parse_zoneinfo(text: str) -> ZoneCounts | None:
    """Return the counts of /proc/zoneinfo; None if it is another file."""
    zones = [zone for zone in re.split(r"^Node +\d+, zone", text, flags=re.MULTILINE) if _count("present", zone)]
    spanned = tuple(_count("spanned", zone) or _count("present", zone) or 0 for zone in zones)
    reserves = [_reserve(zone) for zone in zones]
    present, free, per_cpu = (
        sum(int(count) for count in re.findall(pattern, text, re.MULTILINE))
        for pattern in (r"^ +present +(\d+)$", r"pages free +(\d+)$", r"^ +count: +(\d+)$")
    )
    reserve = None if None in reserves else sum(filter(None, reserves))
    counts = ZoneCounts(present, free, per_cpu, spanned, reserve)
    return counts if counts.present and counts.saveable > 0 else None


def _count(name: str, zone: str) -> int | None:
    """Return a number of a zone; None without it."""
    found = re.search(rf"^ +{name} +(\d+)$", zone, re.MULTILINE)
    return int(found[1]) if found else None


def _reserve(zone: str) -> int | None:
    """Return the part of a zone in `totalreserve_pages`; None if a number of it is missing."""
    high, managed = _count("high", zone), _count("managed", zone)
    protection = re.search(r"^ +protection: \(([\d, ]+)\)$", zone, re.MULTILINE)
    if high is None or managed is None or protection is None:
        return None
    return min(high + max(map(int, protection[1].split(","))), managed)


def parse_config(text: str) -> Mapping[str, str]:
    """Return a kernel's configuration, "n" for an option that is not set. Raises ValueError if it is another file."""
    found = dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))
    if not found:
        raise ValueError("it has no line CONFIG_...=")
    return {**dict.fromkeys(re.findall(r"^# (CONFIG_\w+) is not set$", text, re.MULTILINE), "n"), **found}


def parse_crypttab(text: str) -> tuple[CryptMapping, ...]:
    """Return the lines of crypttab(5)."""
    return tuple(
        CryptMapping(
            fields[0],
            fields[1],
            fields[2] if len(fields) > 2 else "none",
            tuple(fields[3].split(",")) if len(fields) > 3 else (),
        )
        for fields in _fields(text)
        if len(fields) > 1
    )


def parse_fstab_swaps(text: str) -> tuple[str, ...]:
    """Return the swap areas of fstab(5), as it spells them."""
    return tuple(fields[0] for fields in _fields(text) if len(fields) > 2 and fields[2] == "swap")


def _fields(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.split()


def parse_shell(text: str) -> Mapping[str, str]:
    """Return the plain assignments of a file of shell variables; the last one counts."""
    return {
        name: value.strip("\"'") for name, value in re.findall(r"^\s*(\w+)\+?=(.*?)\s*(?:#.*)?$", text, re.MULTILINE)
    }


def parse_ini(text: str) -> Mapping[str, str]:
    """Return the settings of a file of systemd, whatever its sections."""
    return dict(re.findall(r"^\s*(\w+)\s*=\s*(.*?)\s*$", text, re.MULTILINE))


def bracketed(text: str) -> str | None:
    """Return the choice in brackets of a file of /sys: integrity of "none [integrity] confidentiality"."""
    match = re.search(r"\[([^\]]+)\]", text)
    return match[1] if match else None


def parse_hibernate_location(content: bytes) -> HibernateLocation:
    """Return the variable in a file of efivarfs: u32 attributes, then JSON in UTF-16.

    Raises:
        ValueError: it is something else.
    """
    found = json.loads(content[4:].decode("utf-16-le").rstrip("\0"))
    if not isinstance(found, dict) or not isinstance(found.get("uuid"), str):
        raise ValueError("it has no uuid")
    kernel = found.get("kernelVersion")
    return HibernateLocation(found["uuid"], int(found.get("offset", 0)), kernel if isinstance(kernel, str) else None)
