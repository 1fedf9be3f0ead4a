# SPDX-License-Identifier: GPL-2.0-or-later
"""Block devices by all of their names, and the place of a swap file on its device."""

from __future__ import annotations

import fcntl
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hibernaut.doctor.evidence import Evidence, RootFolder, unknown
from hibernaut.errors import HibernautError
from hibernaut.volumes.files import open_plain
from hibernaut.volumes.filesystems import SwapFile, file_in

__all__ = ["BlockDevices", "SwapPlace", "block_devices", "place_of_swap_file"]

NUMBER = re.compile(r"\d+:\d+")
TAGS = {"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"}
"""Prefix of a device's name in fstab(5) and on command lines -> folder of links below /dev/disk."""
FS_IOC_FIEMAP = 0xC020660B
"""include/uapi/linux/fs.h; reads the extents of a file, without flags."""
FIEMAP = struct.Struct("<QQIIII")
FIEMAP_EXTENT = struct.Struct("<QQQQQIIII")
MOST_EXTENTS = 4096
UNUSABLE_FLAGS = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200
"""FIEMAP_EXTENT_UNKNOWN, _DELALLOC, _ENCODED, _DATA_ENCRYPTED, _NOT_ALIGNED, _DATA_INLINE (linux/fiemap.h)."""
PAGE_BYTES = 4096


@dataclass(frozen=True)
class BlockDevices:
    """The block devices of a machine.

    Attributes:
        numbers: name below /dev -> major and minor number, as in 8:2.
        links: path of a link below /dev -> name of its device.
        labels: name below /dev -> name of a mapped device (/dev/mapper).
    """

    numbers: Mapping[str, str]
    links: Mapping[str, str]
    labels: Mapping[str, str]

    def number(self, spelled: str) -> str | None:
        """Return major and minor number of a device by any of its names; None if it is unknown."""
        if NUMBER.fullmatch(spelled):
            return spelled if spelled in self.numbers.values() else None
        tag, equals, value = spelled.partition("=")
        if equals and tag in TAGS:
            spelled = f"/dev/disk/{TAGS[tag]}/{value.strip(chr(34))}"
        path = spelled.removeprefix("/dev/")
        group, slash, volume = path.partition("/")
        if slash and path not in self.links and "/" not in volume:  # /dev/GROUP/VOLUME of LVM
            path = f"mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"
        return self.numbers.get(self.links.get(path, path))

    def name(self, number: str) -> str:
        """Return the name of a device below /dev, as a path; its number if it is unknown."""
        for name, known in self.numbers.items():
            if known == number:
                label = self.labels.get(name)
                return f"/dev/mapper/{label}" if label else f"/dev/{name}"
        return number


@dataclass(frozen=True)
class SwapPlace:
    """The place of a swap file.

    Attributes:
        number: major and minor number of the device with its file system.
        block: block of its first page on that device: `resume_offset`.
        extents: number of its extents; None if unknown.
        file_system: kind of the file system, as /proc/self/mountinfo names it.
    """

    number: str
    block: int
    extents: int | None
    file_system: str


def block_devices(root: RootFolder) -> Evidence[BlockDevices]:
    """Return the devices of /sys/class/block, and their links below /dev/disk and /dev/mapper."""
    names = root.names("sys/class/block")
    if names.value is None:
        return unknown(names.origin, names.reason)
    numbers, labels, links = {}, {}, {}
    for name in names.value:
        number = root.text(f"sys/class/block/{name}/dev").value
        if number:
            numbers[name] = number.strip()
        label = root.text(f"sys/class/block/{name}/dm/name").value if name.startswith("dm-") else None
        if label:
            labels[name] = label.strip()
            links[f"mapper/{label.strip()}"] = name
    for folder in TAGS.values():
        for link in root.names(f"dev/disk/{folder}").value or ():
            target = root.link(f"dev/disk/{folder}/{link}")
            if target:
                links[f"disk/{folder}/{_unescaped(link)}"] = target.rpartition("/")[2]
    return Evidence(BlockDevices(numbers, links, labels), names.origin)


def _unescaped(name: str) -> str:
    """Return a name without udev's escapes."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), name)


def place_of_swap_file(path: Path, mountinfo: str, devices: BlockDevices) -> Evidence[SwapPlace]:
    """Return the place of a swap file of the running system, which only root can ask for.

    Args:
        path: the file.
        mountinfo: text of /proc/self/mountinfo.
        devices: the block devices.
    """
    mount = _mount_of(path, mountinfo)
    if mount is None:
        return unknown(str(path), "its mount is not in /proc/self/mountinfo")
    point, top, kind, source = mount
    number = devices.number(source)
    if number is None:
        return unknown(str(path), f"the device of its file system, {source}, is unknown")
    try:
        if kind == "btrfs":  # its extents are addresses of the file system, not of the device
            inside = "/".join(part.strip("/") for part in (top, str(path.relative_to(point))) if part.strip("/"))
            with open_plain(devices.name(number)) as volume:
                found = file_in(volume, "btrfs", f"/{inside}")
            if not isinstance(found, SwapFile):
                return unknown(str(path), "it has no swap signature in its file system")
            return Evidence(SwapPlace(number, found.block, None, kind), str(path))
        blocks = _extents(path)
    except (OSError, HibernautError, ValueError) as error:
        return unknown(str(path), str(error))
    return Evidence(SwapPlace(number, blocks[0], len(blocks), kind), str(path))


def _mount_of(path: Path, mountinfo: str) -> tuple[Path, str, str, str] | None:
    """Return mount point, root in the file system, kind and source of the mount that a file is in."""
    best: tuple[Path, str, str, str] | None = None
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if not dash or len(fields) < 6 or len(rest) < 2:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and (best is None or len(point.parts) >= len(best[0].parts)):
            best = point, fields[3], rest[0], rest[1]
    return best


def _extents(path: Path) -> list[int]:
    """Return the first block of each extent of a file.

    Raises:
        OSError: the file system cannot be asked.
        ValueError: an extent has no place on the device.
    """
    with path.open("rb") as file:
        size = FIEMAP.size + MOST_EXTENTS * FIEMAP_EXTENT.size
        buffer = bytearray(size)
        FIEMAP.pack_into(buffer, 0, 0, os.fstat(file.fileno()).st_size, 0, 0, MOST_EXTENTS, 0)
        fcntl.ioctl(file.fileno(), FS_IOC_FIEMAP, buffer)
    count = FIEMAP.unpack_from(buffer)[3]
    blocks = []
    for number in range(min(count, MOST_EXTENTS)):
        extent = FIEMAP_EXTENT.unpack_from(buffer, FIEMAP.size + number * FIEMAP_EXTENT.size)
        if extent[5] & UNUSABLE_FLAGS or extent[1] % PAGE_BYTES:
            raise ValueError("an extent has no place on the device")
        blocks.append(extent[1] // PAGE_BYTES)
    if not blocks:
        raise ValueError("it has no extents")
    return blocks
