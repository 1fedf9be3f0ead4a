# SPDX-License-Identifier: GPL-2.0-or-later
"""Copies of real images, damaged at a place that is named: a unit, a page of the swap map, a part of the list."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from hibernaut.swsusp import Image, open_image

__all__ = ["B", "Damage", "damage", "lose_frame", "overwrite"]

B = 4096
Damage = Literal["used up", "unit", "map", "list"]
LOST_UNIT, LOST_MAP_PAGE = 100, 3


def overwrite(path: Path, at: int, data: bytes) -> None:
    """Write into a file."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def damage(path: Path, *kinds: Damage) -> Path:
    """Damage an image in a file, and return the path.

    A unit that is lost has a length that cannot be; of an image that is not compressed, its blocks are noise, which
    nothing shows. A map page is noise, a part of the list likewise.
    """
    with open_image(path) as image:
        places = {
            "unit": _unit(image, LOST_UNIT),
            "map": int(image.swap_map.map_blocks[LOST_MAP_PAGE]) * B,
            "list": _unit(image, 1) if image.compressor != "none" else int(image.swap_map.entries[4]) * B,
        }
    for kind in kinds:
        if kind == "used up":
            overwrite(path, 4086, b"SWAPSPACE2")
        elif kind == "map":
            overwrite(path, places[kind], np.random.default_rng(1).bytes(B))
        else:
            overwrite(path, places[kind], b"\xff" * B)
    return path


def lose_frame(path: Path, pfn: int) -> None:
    """Lose the data of a frame: with its unit, or alone, by another block in the swap map of plain pages."""
    with open_image(path) as image:
        row = int(np.flatnonzero(image.stored_pfns == pfn)[0]) + image.meta_rows
        if image.compressor == "none":
            block, at = image.swap_map.place_of_entry(1 + row)
            place, data = block * B + at, (5).to_bytes(8, "little")
        else:
            place, data = _unit(image, row // image.stream.unit_rows), b"\xff" * 8
    overwrite(path, place, data)


def _unit(image: Image, number: int) -> int:
    return int(image.swap_map.entries[int(image.stream.index.first_entry[number])]) * B
