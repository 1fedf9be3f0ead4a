# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual disks and disk images of forensics as volumes: qcow2, VMDK, VDI, VHD, VHDX, E01. By dissect, an extra."""

from __future__ import annotations

import glob
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hibernaut.errors import FormatError
from hibernaut.volumes.extras import decoding, need
from hibernaut.volumes.volume import Mapped, StreamVolume, Volume, VolumeFile

__all__ = ["CONTAINERS", "container_of", "open_container"]

VHD_FOOTER_BYTES = 512
VHD_COOKIE = b"conectix"
VDI_MAGIC_OFFSET = 64
VDI_MAGIC = 0xBEDA107F
VDI_BLOCK_ZERO = 0xFFFFFFFE
"""Blocks from this number on have no data: zero, or never written."""
VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
HEAD_BYTES = 512
FLATTEN = "make one file of it with `qemu-img convert`, and give that"
CHECK = "check it with the tool that made it"


def container_of(volume: Volume) -> str | None:
    """Return the format of a virtual disk by its first bytes, or its last for a fixed VHD; None for any other volume."""
    head = volume.pread(0, HEAD_BYTES)
    if head.startswith(b"QFI\xfb"):
        return "qcow2"
    if head.startswith(b"KDMV") or head.startswith(b"COWD") or head.startswith(VMDK_DESCRIPTOR):
        return "vmdk"
    if head[VDI_MAGIC_OFFSET:].startswith(struct.pack("<I", VDI_MAGIC)):
        return "vdi"
    if head.startswith(b"vhdxfile"):
        return "vhdx"
    if head.startswith(b"EVF\x09\x0d\x0a\xff\x00") or head.startswith(b"EVF2\x0d\x0a\x81\x00"):
        return "e01"
    footer = volume.pread(max(volume.size_bytes - VHD_FOOTER_BYTES, 0), VHD_FOOTER_BYTES)
    return "vhd" if footer.startswith(VHD_COOKIE) or head.startswith(VHD_COOKIE) else None


def open_container(volume: Volume, kind: str, path: Path | None = None) -> Volume:
    """Return the disk inside a container.

    Args:
        volume: the container.
        kind: its format, as `container_of` names it.
        path: file of the container, beside which the other parts of a disk in several files lie; None if it is not a
            file of its own.

    Raises:
        FormatError: the container is damaged, needs another file, or has a feature that is not read.
        HibernautError: the library is not installed.
    """
    with decoding(f"the {kind}", volume.name, advice=CHECK):
        return CONTAINERS[kind](volume, path)


def _decoded(volume: Volume, kind: str, stream: Any, size_bytes: int) -> Volume:
    return StreamVolume(stream, int(size_bytes), f"{volume.name}, {kind}", advice=CHECK)


def _qcow2(volume: Volume, path: Path | None) -> Volume:
    module = need("dissect.hypervisor.disk.qcow2")
    disk = module.QCow2(path if path is not None else VolumeFile(volume))
    return _decoded(volume, "qcow2", disk.open(), disk.size)


def _vmdk(volume: Volume, path: Path | None) -> Volume:
    module = need("dissect.hypervisor.disk.vmdk")
    disk = module.VMDK(path if path is not None else VolumeFile(volume))
    return _decoded(volume, "vmdk", disk, disk.size)


def _vdi(volume: Volume, _path: Path | None) -> Volume:
    """The library's stream reads neighbouring blocks as if they lay side by side: its header is used, not its stream."""
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


def _vhd(volume: Volume, _path: Path | None) -> Volume:
    module = need("dissect.hypervisor.disk.vhd")
    disk = module.VHD(VolumeFile(volume))
    return _decoded(volume, "vhd", disk, disk.size)


def _vhdx(volume: Volume, _path: Path | None) -> Volume:
    """The library's stream is wrong where a read begins inside a block and ends in another: only its tables are used."""
    module = need("dissect.hypervisor.disk.vhdx")
    disk = module.VHDX(VolumeFile(volume))
    if disk.has_parent:
        raise FormatError("the vhdx holds differences to another one", source=volume.name, advice=FLATTEN)
    size_bytes, block_bytes = int(disk.size), int(disk.block_size)
    runs: list[tuple[int | None, int]] = []
    for block in range(-(-size_bytes // block_bytes)):
        entry = disk.bat.pb(block)
        present = entry.state == module.c_vhdx.PAYLOAD_BLOCK_FULLY_PRESENT
        length = min(block_bytes, size_bytes - block * block_bytes)
        runs.append((int(entry.file_offset_mb) << 20 if present else None, length))
    return Mapped(volume, runs, f"{volume.name}, vhdx")


def _e01(volume: Volume, path: Path | None) -> Volume:
    """Without a segment, the library gives the bytes of the next one in its place: the number of chunks is compared."""
    module = need("dissect.evidence.ewf")
    parts: list[Any] = [VolumeFile(volume)]
    if path is not None:
        parts = [part.open("rb") for part in sorted(path.parent.glob(f"{glob.escape(path.stem)}.E??"))] or parts
    image = module.EWF(parts)
    chunks = sum(int(image.segment(number).chunk_count) for number in range(len(parts)))
    if chunks != int(image.volume.chunk_count):
        raise FormatError(
            f"{len(parts)} segments of the e01 hold {chunks} chunks",
            source=volume.name,
            expected=f"{int(image.volume.chunk_count)}, as its volume section says",
            advice="put all segments (E01, E02, ...) into one folder",
        )
    return _decoded(volume, "e01", image.open(), image.size)


CONTAINERS: dict[str, Callable[[Volume, Path | None], Volume]] = {
    "qcow2": _qcow2,
    "vmdk": _vmdk,
    "vdi": _vdi,
    "vhd": _vhd,
    "vhdx": _vhdx,
    "e01": _e01,
}
"""Function that opens each format."""
