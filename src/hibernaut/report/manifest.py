# SPDX-License-Identifier: GPL-2.0-or-later
"""The manifest of a file that was written: its origin, and digests by which both are known again."""

from __future__ import annotations

import datetime
import uuid
from typing import TYPE_CHECKING

import numpy as np

from hibernaut.report.documents import DigestDocument, ManifestAreaDocument, ManifestDocument
from hibernaut.report.text import hex_or_none
from hibernaut.swsusp.declarations import HEADER
from hibernaut.swsusp.header import area_state
from hibernaut.swsusp.uswsusp_stream import UserlandStream

if TYPE_CHECKING:
    from hibernaut.sources import Source
    from hibernaut.swsusp.area import SwapArea
    from hibernaut.swsusp.image import Image

__all__ = ["area_document", "image_area_document", "manifest_document"]


def manifest_document(
    version: str,
    command: list[str],
    source: DigestDocument,
    output: DigestDocument,
    area: ManifestAreaDocument | None,
) -> ManifestDocument:
    """Return the manifest of an output that is complete now. Arguments are its keys."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "version": version,
        "command": command,
        "time": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "source": source,
        "output": output,
        "area": area,
    }


def area_document(source: Source, *, compared: bool) -> ManifestAreaDocument | None:
    """Return the swap area of a source, and the verdict of its checksum; None for a dump.

    Args:
        source: the source.
        compared: whether its data was read to the end, where a wrong checksum is an error.
    """
    if source.image is not None:
        return image_area_document(source.image, compared=compared)
    if source.salvaged is not None:
        stored, computed = source.salvaged.header.crc32, source.salvaged.computed_crc
        known = None if stored is None or computed is None else stored == computed
        return _area(source.salvaged.area, *_crc(stored, known))
    return None


def image_area_document(image: Image, *, compared: bool) -> ManifestAreaDocument:
    """Return the swap area of an image. Arguments as for `area_document`."""
    header, stream = image.header, image.stream
    if isinstance(stream, UserlandStream) and header.userland is not None:
        md5 = header.userland.md5
        known = None if md5 is None or stream.md5 is None else stream.md5_ending is not None
        return _area(image.area, "md5" if md5 else None, md5.hex() if md5 else None, known)
    return _area(image.area, *_crc(header.crc32, True if compared and header.crc32 is not None else None))


def _crc(stored: int | None, ok: bool | None) -> tuple[str | None, str | None, bool | None]:
    return None if stored is None else "crc32", hex_or_none(stored), ok


def _area(area: SwapArea, checksum: str | None, stored: str | None, ok: bool | None) -> ManifestAreaDocument:
    block = np.frombuffer(area.read_block(area.header_block, "swap header"), dtype=HEADER)[0]
    raw = block["uuid"].tobytes()
    return {
        "uuid": str(uuid.UUID(bytes=raw)) if int(block["version"]) == 1 and any(raw) else None,
        "offset_pages": area.header_block,
        "state": area_state(area)[0],
        "checksum": checksum,
        "stored": stored,
        "ok": ok,
    }
