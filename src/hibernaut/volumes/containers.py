# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual disks and disk images of forensics as volumes: qcow2, VMDK, VDI, VHD, VHDX, E01. By dissect, an extra."""

from __future__ import annotations

import glob
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.volumes.extras import decoding, need
from hibernaut.volumes.files import PlainFile, open_plain
from hibernaut.volumes.volume import Joined, Mapped, Slice, StreamVolume, Volume, VolumeFile

__all__ = ["CONTAINERS", "container_of", "open_container"]

VHD_FOOTER_BYTES = 512
VHD_COOKIE = b"conectix"
VDI_MAGIC_OFFSET = 64
VDI_MAGIC = 0xBEDA107F
VHDX_ENTRY_BYTES = 8
VDI_BLOCK_ZERO = 0xFFFFFFFE
"""Blocks from this number on have no data: zero, or never written."""
SECTOR_BYTES = 512
MOST_NAME_BYTES = 1023
MOST_DESCRIPTOR_BYTES = 1 << 20
NO_PARENT = "ffffffff"
VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
HEAD_BYTES = 512
FLATTEN = "convert it to one file with `qemu-img convert`, and give that"
CHECK = "check it with the tool that made it"


def container_of(volume: Volume) -> str | None:
    """Return the format of a virtual disk by its first bytes, or the last of a fixed VHD; None for any other volume."""
    head = volume.pread(0, HEAD_BYTES)
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith((b"KDMV", b"COWD", VMDK_DESCRIPTOR)):
        return "vmdk"
    if head[VDI_MAGIC_OFFSET:].startswith(struct.pack("<I", VDI_MAGIC)):
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith((b"EVF\x09\x0d\x0a\xff\x00", b"EVF2\x0d\x0a\x81\x00")):
        return "e01"
    footer = volume.pread(max(volume.size_bytes - VHD_FOOTER_BYTES, 0), VHD_FOOTER_BYTES)
    return "vhd" if footer.startswith(VHD_COOKIE) or head.startswith(VHD_COOKIE) else None


def open_container(volume: Volume, kind: str, path: Path | None, stack: ExitStack) -> Volume:
    """Return the disk inside a container.

    Args:
        volume: the container.
        kind: its format, as `container_of` names it.
        path: file of the container, beside which the other parts of a disk in several files lie; None if it is not a
            file of its own.
        stack: closes the other parts.

    Raises:
        FormatError: the container is damaged, needs another file, or has a feature that is not read.
        HibernautError: the library is not installed.
    """
    with decoding(f"the {kind}", volume.name, advice=CHECK):
        found = CONTAINERS[kind](volume, path, stack)
    if found.size_bytes <= 0:
        raise FormatError(f"the {kind} holds a disk of {found.size_bytes} bytes", source=volume.name, advice=CHECK)
    return found


def _decoded(volume: Volume, kind: str, stream: Any, size_bytes: int) -> Volume:
    return StreamVolume(stream, int(size_bytes), f"{volume.name}, {kind}", advice=CHECK)


def _sibling(path: Path | None, name: str, stack: ExitStack) -> PlainFile:
    """Open a file beside a container. A container that names one elsewhere is refused: its author may be hostile."""
    if path is None or Path(name).name != name:
        raise FormatError(f"the rest of the disk is in another file, {name!r}", source=str(path or ""), advice=FLATTEN)
    return stack.enter_context(open_plain(path.with_name(name)))


def _qcow2(volume: Volume, path: Path | None, stack: ExitStack) -> Volume:
    module = need("dissect.hypervisor.disk.qcow2")
    name_at, name_bytes = struct.unpack(">QI", volume.pread(8, 12))
    backing = None
    if name_at:
        name = volume.pread(name_at, min(name_bytes, MOST_NAME_BYTES)).decode("utf-8", "replace")
        file = _sibling(path, name, stack)
        kind = container_of(file)
        backing = VolumeFile(file if kind is None else open_container(file, kind, Path(file.name), stack))
    disk = module.QCow2(VolumeFile(volume), backing_file=backing)
    return _decoded(volume, "qcow2", disk.open(), disk.size)


def _vmdk(volume: Volume, path: Path | None, stack: ExitStack) -> Volume:
    """The library passes over extents of zeroes and the start of flat ones: its descriptor is used, not its disk."""
    module = need("dissect.hypervisor.disk.vmdk")
    if not volume.pread(0, len(VMDK_DESCRIPTOR)).startswith(VMDK_DESCRIPTOR):
        disk = module.VMDK([VolumeFile(volume)])
        return _decoded(volume, "vmdk", disk, disk.size)
    text = volume.pread(0, MOST_DESCRIPTOR_BYTES).split(b"\0")[0].decode("utf-8", "replace")
    descriptor = module.DiskDescriptor.parse(text)
    if descriptor.attr.get("parentCID", NO_PARENT) != NO_PARENT:
        raise FormatError("the vmdk holds differences to another one", source=volume.name, advice=FLATTEN)
    parts: list[Volume] = []
    for extent in descriptor.extents:
        size_bytes = extent.sectors * SECTOR_BYTES
        if extent.type == "ZERO":
            parts.append(Mapped(volume, [(None, size_bytes)], volume.name))
            continue
        if extent.access_mode == "NOACCESS" or extent.type not in ("SPARSE", "VMFSSPARSE", "SESPARSE", "FLAT", "VMFS"):
            raise FormatError(f"the vmdk has an extent {extent.raw!r}", source=volume.name, advice=FLATTEN)
        file = _sibling(path, extent.filename, stack)
        if extent.type in ("FLAT", "VMFS"):
            start = int(extent.start_sector or 0) * SECTOR_BYTES
            parts.append(Mapped(file, [(start, size_bytes)], file.name))
        else:
            disk = module.SparseDisk(VolumeFile(file))
            parts.append(Slice(_decoded(file, "vmdk", _Sectors(disk), disk.size), 0, size_bytes, file.name))
    return Joined(parts, f"{volume.name}, vmdk")


class _Sectors:
    """A disk that the library reads by sectors, as a stream."""

    def __init__(self, disk: Any) -> None:
        self._disk = disk
        self._at = 0

    def seek(self, offset: int, _whence: int = 0, /) -> int:
        """Move to a byte and return it."""
        self._at = offset
        return offset

    def read(self, size: int = -1, /) -> bytes:
        """Return so many bytes from there."""
        first, last = self._at // SECTOR_BYTES, -(-(self._at + size) // SECTOR_BYTES)
        start = self._at - first * SECTOR_BYTES
        data: bytes = self._disk.read_sectors(first, last - first)
        return data[start : start + size]


def _vdi(volume: Volume, _path: Path | None, _stack: ExitStack) -> Volume:
    """The library reads neighbouring blocks as if they lay side by side: its header is used, not its stream."""
    module = need("dissect.hypervisor.disk.vdi")
    disk = module.VDI(VolumeFile(volume))
    if disk.type == module.c_vdi.VDI_IMAGE_TYPE.DIFF:
        raise FormatError("the vdi holds differences to another one", source=volume.name, advice=FLATTEN)
    size_bytes, block_bytes = int(disk.size), int(disk.block_size)
    count = -(-size_bytes // block_bytes)
    table = volume.pread(int(disk.blocks_offset), 4 * count)
    if len(table) != 4 * count:
        raise FormatError("the vdi ends inside its block map", source=volume.name, advice=CHECK)
    runs = [
        (int(disk.data_offset) + block * block_bytes if block < VDI_BLOCK_ZERO else None, block_bytes)
        for block in np.frombuffer(table, dtype="<u4").tolist()
    ]
    runs[-1] = (runs[-1][0], size_bytes - (count - 1) * block_bytes)
    return Mapped(volume, runs, f"{volume.name}, vdi")


def _vhd(volume: Volume, _path: Path | None, _stack: ExitStack) -> Volume:
    module = need("dissect.hypervisor.disk.vhd")
    disk = module.VHD(VolumeFile(volume))
    return _decoded(volume, "vhd", disk, disk.size)


def _vhdx(volume: Volume, _path: Path | None, _stack: ExitStack) -> Volume:
    """The library is wrong where a read begins inside a block and ends in another: only its tables are used."""
    module = need("dissect.hypervisor.disk.vhdx")
    disk = module.VHDX(VolumeFile(volume))
    if disk.has_parent:
        raise FormatError("the vhdx holds differences to another one", source=volume.name, advice=FLATTEN)
    size_bytes, block_bytes = int(disk.size), int(disk.block_size)
    count = -(-size_bytes // block_bytes)
    if count * VHDX_ENTRY_BYTES > volume.size_bytes:
        raise FormatError(
            f"the vhdx has {count} blocks, more than it has room to list", source=volume.name, advice=CHECK
        )
    runs: list[tuple[int | None, int]] = []
    for block in range(count):
        entry = disk.bat.pb(block)
        present = entry.state == module.c_vhdx.PAYLOAD_BLOCK_FULLY_PRESENT
        length = min(block_bytes, size_bytes - block * block_bytes)
        runs.append((int(entry.file_offset_mb) << 20 if present else None, length))
    return Mapped(volume, runs, f"{volume.name}, vhdx")


def _e01(volume: Volume, path: Path | None, stack: ExitStack) -> Volume:
    """Without a segment, the library gives the bytes of the next one in its place: the number of chunks is compared."""
    module = need("dissect.evidence.ewf")
    parts: list[Any] = [VolumeFile(volume)]
    if path is not None:
        found = sorted(path.parent.glob(f"{glob.escape(path.stem)}.E??"))
        parts = [VolumeFile(stack.enter_context(open_plain(part))) for part in found] or parts
    image = module.EWF(parts)
    chunks = sum(int(image.segment(number).chunk_count) for number in range(len(parts)))
    if chunks != int(image.volume.chunk_count):
        raise FormatError(
            f"{len(parts)} segments of the e01 hold {chunks} chunks",
            source=volume.name,
            expected=f"{int(image.volume.chunk_count)}, as its volume section says",
            advice="copy all segments (E01, E02, ...) into one folder",
        )
    return _decoded(volume, "e01", image.open(), image.size)


CONTAINERS: dict[str, Callable[[Volume, Path | None, ExitStack], Volume]] = {
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "e01": _e01,
}
"""Function that opens each format."""
