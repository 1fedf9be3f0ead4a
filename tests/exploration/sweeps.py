# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest sweep, and the lines of its file."""

from __future__ import annotations

from pathlib import Path

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.plan import Sweep

__all__ = ["SMALL", "open_lines"]

SMALL = Sweep(Family(regions=(0, 1), kinds=(RegionKind.BLOCK, RegionKind.NONE)), ("remap", "fixmap"))


def open_lines(path: Path) -> list[str]:
    """Return the lines of a file of results."""
    return path.read_text().splitlines()
