# SPDX-License-Identifier: GPL-2.0-or-later
"""Ways to copy a page that the direct map does not map: one interface, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hibernaut.errors import HibernautError
from hibernaut.hibernation.ways.base import Way
from hibernaut.hibernation.ways.fixmap import Fixmap
from hibernaut.hibernation.ways.fixmap_v1 import FixmapV1
from hibernaut.hibernation.ways.fixmap_whole_run import FixmapWholeRun
from hibernaut.hibernation.ways.mermap import MOST_MERMAP_PAGES, Mermap
from hibernaut.hibernation.ways.mutants import (
    FixmapBounce,
    FixmapNoClear,
    FixmapNoFlush,
    FixmapNoMap,
    FixmapSkips,
    FixmapWholeRunNoClear,
    FixmapWholeRunNoFlush,
    MermapNoFlush,
    MermapOtherCpu,
    Mutant,
    RemapNoFlush,
    RemapNoUnmap,
    RemapWholeNoWrite,
    RemapWholeOneRoot,
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
    "FixmapWholeRun",
    "FixmapWholeRunNoClear",
    "FixmapWholeRunNoFlush",
    "Mermap",
    "MermapNoFlush",
    "MermapOtherCpu",
    "Mutant",
    "Remap",
    "RemapGeneric",
    "RemapGenericAbort",
    "RemapGenericZero",
    "RemapNoFlush",
    "RemapNoUnmap",
    "RemapWhole",
    "RemapWholeNoWrite",
    "RemapWholeOneRoot",
    "RemapWriteAnyway",
    "Reserved",
    "Way",
    "way_named",
]

MUTANTS: Mapping[str, Mutant] = MappingProxyType(
    {
        "fixmap-no-flush": FixmapNoFlush(),
        "fixmap-no-clear": FixmapNoClear(),
        "fixmap-no-map": FixmapNoMap(),
        "fixmap-skips": FixmapSkips(),
        "fixmap-bounce": FixmapBounce(),
        "remap-no-unmap": RemapNoUnmap(),
        "remap-no-flush": RemapNoFlush(),
        "remap-whole-no-write": RemapWholeNoWrite(),
        "remap-write-anyway": RemapWriteAnyway(),
        "mermap-no-flush": MermapNoFlush(),
        "mermap-other-cpu": MermapOtherCpu(),
        "fixmap-whole-run-no-flush": FixmapWholeRunNoFlush(),
        "fixmap-whole-run-no-clear": FixmapWholeRunNoClear(),
        "remap-whole-one-root": RemapWholeOneRoot(),
    }
)
"""Ways with a deliberate defect, by name on the command line."""

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "remap": Remap(),
        "fixmap": Fixmap(),
        "fixmap-v1": FixmapV1(),
        "fixmap-v3": Fixmap(null_check=False),
        "remap-generic": RemapGeneric(),
        "remap-generic-zero": RemapGenericZero(),
        "remap-generic-abort": RemapGenericAbort(),
        "remap-whole": RemapWhole(),
        "reserved": Reserved(),
        "mermap": Mermap(),
        "fixmap-whole-run": FixmapWholeRun(),
        **MUTANTS,
    }
)
"""All ways by their name on the command line, mutants last."""


def way_named(name: str) -> Way:
    """Return a way by its name on the command line; `reserved:N` has a pool of N pages, `mermap:N` a region of N.

    Raises:
        HibernautError: no way has this name; the message lists the names.
    """
    kind, colon, number = name.partition(":")
    if kind == "reserved" and colon and number.isdecimal() and int(number) <= 1 << 20:
        return Reserved(int(number))
    if kind == "mermap" and colon and number.isdecimal() and 1 <= int(number) <= MOST_MERMAP_PAGES:
        return Mermap(int(number))
    if name not in WAYS:
        raise HibernautError(
            f"no way {name!r}; expected {', '.join(WAYS)}, reserved:N with a pool of N pages, or mermap:N with a "
            f"region of 1-{MOST_MERMAP_PAGES}",
            advice="give one of these",
        )
    return WAYS[name]
