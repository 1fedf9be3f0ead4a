# SPDX-License-Identifier: GPL-2.0-or-later
"""Logical volumes (LVM2) of physical volumes: labels, metadata, linear and striped segments.

dissect.volume parses the text of the metadata. Where it lies, and what a segment consists of, is worked out here: the
metadata area is circular, its newest copy counts, and a striped segment takes its stripes in turn.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hibernaut.errors import FormatError
from hibernaut.volumes.extras import decoding, need
from hibernaut.volumes.volume import Joined, Mapped, Striped, Volume

__all__ = ["LogicalVolume", "PhysicalVolume", "logical_volumes", "physical_volume"]

SECTOR_BYTES = 512
LABEL_SECTORS = 4
"""The label is in one of the first sectors (LABEL_SCAN_SECTORS, lib/label/label.h of LVM2)."""
LABEL = struct.Struct("<8sQII8s")
PV_HEADER = struct.Struct("<32sQ")
AREA = struct.Struct("<QQ")
METADATA_HEADER = struct.Struct("<I16sIQQ")
METADATA_MAGIC = b" LVM2 x[5A%r0N*>"
LOCATION = struct.Struct("<QQII")
IGNORED = 1
"""RAW_LOCN_IGNORED: the copy is not kept up to date (lib/format_text/layout.h)."""
METADATA_START = 512
"""First byte of the ring in a metadata area, behind its header."""
MOST_METADATA_BYTES = 1 << 23
MOST_AREAS = 32
CRC_START = 0xF597A6CF
"""INITIAL_CRC, lib/misc/crc.h."""
FOREIGN = "give the device of the logical volume, once LVM has activated it"


@dataclass(frozen=True, eq=False)
class PhysicalVolume:
    """A volume with an LVM2 label.

    Attributes:
        volume: its bytes.
        uuid: its identifier without hyphens.
        metadata: its newest description of the group; None if it has none.
    """

    volume: Volume
    uuid: str
    metadata: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class LogicalVolume:
    """A logical volume.

    Attributes:
        group: name of its volume group.
        name: its name.
        size_bytes: its length.
        problem: why it cannot be opened; None if it can.
        volume: its bytes; None if it cannot be opened.
    """

    group: str
    name: str
    size_bytes: int
    problem: str | None
    volume: Volume | None


def physical_volume(volume: Volume) -> PhysicalVolume | None:
    """Return a volume as a physical volume of LVM2; None if it has no label.

    Raises:
        FormatError: the label or the metadata is damaged.
        HibernautError: dissect.volume is not installed.
    """
    for sector in range(LABEL_SECTORS):
        head = volume.pread(sector * SECTOR_BYTES, SECTOR_BYTES)
        if len(head) == SECTOR_BYTES and head.startswith(b"LABELONE") and head[24:32] == b"LVM2 001":
            break
    else:
        return None
    at = LABEL.unpack_from(head)[3]
    if not LABEL.size <= at <= SECTOR_BYTES - PV_HEADER.size:
        raise _damaged(volume, sector * SECTOR_BYTES, f"its header is at byte {at} of the sector")
    uuid, _ = PV_HEADER.unpack_from(head, at)
    lists = [list(areas) for areas in _areas(head, at + PV_HEADER.size)]
    texts = [text for offset, size in lists[1] for text in _texts(volume, offset, size)]
    metadata = None
    for text in texts:
        with decoding("the LVM2 metadata", volume.name, advice=FOREIGN):
            parsed = need("dissect.volume.lvm.physical").parse_metadata(text.decode())
            if metadata is None or _group(parsed)[1]["seqno"] > _group(metadata)[1]["seqno"]:
                metadata = parsed
    if lists[1] and metadata is None:
        raise _damaged(volume, lists[1][0][0], "none of its metadata areas has a valid text")
    return PhysicalVolume(volume, uuid.decode("ascii", "replace"), metadata)


def _areas(head: bytes, at: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the data areas, then the metadata areas: (first byte, length), each list ended by zeroes."""
    for _ in range(2):
        found: list[tuple[int, int]] = []
        while at + AREA.size <= len(head) and len(found) < MOST_AREAS:
            offset, size = AREA.unpack_from(head, at)
            at += AREA.size
            if not offset:
                break
            found.append((offset, size))
        yield found


def _texts(volume: Volume, offset: int, size: int) -> Iterator[bytes]:
    """Yield the metadata of an area, its checksum verified. The area is a ring behind its header."""
    header = volume.pread(offset, SECTOR_BYTES)
    if len(header) < SECTOR_BYTES:
        return
    _, magic, _, start, area_bytes = METADATA_HEADER.unpack_from(header)
    if magic != METADATA_MAGIC or start != offset or not METADATA_START < area_bytes <= size:
        return
    at, length, checksum, flags = LOCATION.unpack_from(header, METADATA_HEADER.size)
    if flags & IGNORED or not METADATA_START <= at < area_bytes or not 0 < length <= MOST_METADATA_BYTES:
        return
    first = volume.pread(offset + at, min(length, area_bytes - at))
    text = first + volume.pread(offset + METADATA_START, length - len(first))
    if len(text) == length and ~zlib.crc32(text, CRC_START ^ 0xFFFFFFFF) & 0xFFFFFFFF == checksum:
        yield text.rstrip(b"\0")


def _group(metadata: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return name and description of the volume group in a metadata text."""
    groups = [(name, value) for name, value in metadata.items() if isinstance(value, dict) and "seqno" in value]
    if len(groups) != 1:
        raise ValueError(f"{len(groups)} volume groups in one text")
    return groups[0]


def logical_volumes(physical: Sequence[PhysicalVolume]) -> list[LogicalVolume]:
    """Return the visible logical volumes of all groups to which some physical volumes belong, by group and name.

    The newest metadata of each group counts. A logical volume of which a physical one is missing, or with segments of
    other types than linear and striped, is listed with its problem.

    Raises:
        FormatError: the metadata contradicts itself.
    """
    newest: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for one in physical:
        if one.metadata is None:
            continue
        with decoding("the LVM2 metadata", one.volume.name, advice=FOREIGN):
            name, group = _group(one.metadata)
            if group["id"] not in newest or group["seqno"] > newest[group["id"]][1]["seqno"]:
                newest[group["id"]] = name, group
    found: list[LogicalVolume] = []
    by_uuid = {one.uuid: one.volume for one in physical}
    for name, group in sorted(newest.values(), key=lambda one: one[0]):
        with decoding("the LVM2 metadata", physical[0].volume.name, advice=FOREIGN):
            extent_bytes = int(group["extent_size"]) * SECTOR_BYTES
            for lv_name, described in sorted(group.get("logical_volumes", {}).items()):
                if "VISIBLE" in described["status"]:
                    found.append(_logical(name, group, lv_name, described, extent_bytes, by_uuid))
    return found


def _logical(
    group_name: str,
    group: Mapping[str, Any],
    name: str,
    described: Mapping[str, Any],
    extent_bytes: int,
    by_uuid: Mapping[str, Volume],
) -> LogicalVolume:
    segments = sorted(
        (value for value in described.values() if isinstance(value, dict)), key=lambda one: int(one["start_extent"])
    )
    size_bytes = sum(int(one["extent_count"]) for one in segments) * extent_bytes
    whole = f"{group_name}/{name}"
    parts: list[Volume] = []
    expected = 0
    for segment in segments:
        if int(segment["start_extent"]) != expected:
            raise ValueError(f"{whole} has no segment at extent {expected}")
        expected += int(segment["extent_count"])
        kind = str(segment["type"]).split("+")[0]
        if kind not in ("striped", "linear"):
            return LogicalVolume(group_name, name, size_bytes, f"its type is {kind}, which is not read", None)
        stripes = segment["stripes"]
        pieces: list[Volume] = []
        stripe_extents = int(segment["extent_count"]) // (len(stripes) // 2)
        for pv_name, first in zip(stripes[::2], stripes[1::2], strict=True):
            description = group["physical_volumes"][pv_name]
            volume = by_uuid.get(str(description["id"]).replace("-", ""))
            if volume is None:
                missing = f"its physical volume {pv_name} ({description['id']}) is not here"
                return LogicalVolume(group_name, name, size_bytes, missing, None)
            start = int(description["pe_start"]) * SECTOR_BYTES + int(first) * extent_bytes
            pieces.append(Mapped(volume, [(start, stripe_extents * extent_bytes)], whole))
        stripe_bytes = int(segment.get("stripe_size", 0)) * SECTOR_BYTES
        parts.append(pieces[0] if len(pieces) == 1 else Striped(pieces, stripe_bytes, whole))
    if not parts:
        return LogicalVolume(group_name, name, 0, "it has no segments", None)
    return LogicalVolume(group_name, name, size_bytes, None, parts[0] if len(parts) == 1 else Joined(parts, whole))


def _damaged(volume: Volume, offset: int, why: str) -> FormatError:
    return FormatError(f"the LVM2 label is damaged: {why}", source=volume.name, offset=offset, advice=FOREIGN)
