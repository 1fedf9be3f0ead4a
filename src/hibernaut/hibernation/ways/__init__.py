# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to save a page that the direct map does not show, one file each, one interface."""

from __future__ import annotations

from hibernaut.errors import HibernautError
from hibernaut.hibernation.ways.base import Way
from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.hibernation.ways.fixmap_v1 import FixmapV1
from hibernaut.hibernation.ways.mutants import (
    FixmapBounce,
    FixmapNoClear,
    FixmapNoFlush,
    FixmapNoMap,
    FixmapSkips,
    RemapNoFlush,
    RemapNoUnmap,
    RemapWholeNoWrite,
    RemapWriteAnyway,
)
from hibernaut.hibernation.ways.remap import Remap, RemapGeneric, RemapGenericAbort, RemapGenericZero
from hibernaut.hibernation.ways.remap_whole import RemapWhole
from hibernaut.hibernation.ways.reserved import Reserved

__all__ = [
    "MUTANTS",
    "WAYS",
    "Fixmap",
    "FixmapBounce",
    "FixmapNoClear",
    "FixmapNoFlush",
    "FixmapNoMap",
    "FixmapSkips",
    "FixmapV1",
    "Remap",
    "RemapGeneric",
    "RemapGenericAbort",
    "RemapGenericZero",
    "RemapNoFlush",
    "RemapNoUnmap",
    "RemapWhole",
    "RemapWholeNoWrite",
    "RemapWriteAnyway",
    "Reserved",
    "Way",
    "way_named",
]

WAYS: dict[str, Way] = {
    "remap": Remap(),
    "fixmap": Fixmap(),
    "fixmap-v1": FixmapV1(),
    "fixmap-v3": Fixmap(null_check=False),
    "remap-generic": RemapGeneric(),
    "remap-generic-zero": RemapGenericZero(),
    "remap-generic-abort": RemapGenericAbort(),
    "remap-whole": RemapWhole(),
    "reserved": Reserved(),
}
"""By the name that the command line knows them by, and `MUTANTS` behind them."""

MUTANTS: dict[str, Way] = {
    "fixmap-no-flush": FixmapNoFlush(),
    "fixmap-no-clear": FixmapNoClear(),
    "fixmap-no-map": FixmapNoMap(),
    "fixmap-skips": FixmapSkips(),
    "fixmap-bounce": FixmapBounce(),
    "remap-no-unmap": RemapNoUnmap(),
    "remap-no-flush": RemapNoFlush(),
    "remap-whole-no-write": RemapWholeNoWrite(),
    "remap-write-anyway": RemapWriteAnyway(),
}
"""Those that are wrong on purpose."""

WAYS |= MUTANTS


def way_named(name: str) -> Way:
    """A way by its name; `reserved:N` has a pool of N pages. Raises HibernautError, with the names there are."""
    kind, colon, number = name.partition(":")
    if kind == "reserved" and colon and number.isdecimal() and int(number) <= 1 << 20:
        return Reserved(int(number))
    if name not in WAYS:
        raise HibernautError(f"no way {name!r} (known: {', '.join(WAYS)}; reserved:N has a pool of N pages)")
    return WAYS[name]
