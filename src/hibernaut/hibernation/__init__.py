# SPDX-License-Identifier: GPL-2.0-or-later
"""Hibernation: which pages are saved, the ways to copy one, the snapshot, the resume, the checks, the log of events."""

from __future__ import annotations

from hibernaut.hibernation.checks.allocator import allocator_sound
from hibernaut.hibernation.checks.data import same_data
from hibernaut.hibernation.checks.direct_map import CPU_SET_BITS, same_direct_map
from hibernaut.hibernation.checks.fixmap import slot_empty
from hibernaut.hibernation.checks.tables import tables_closed
from hibernaut.hibernation.checks.tlb import nothing_stale
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.invariants import INVARIANTS, TRACES, Hibernation, Invariant, check_resumed, violations_of
from hibernaut.hibernation.resume import BootKernel, resume
from hibernaut.hibernation.saveable import saveable_pages
from hibernaut.hibernation.snapshot import Snapshot, SnapshotMemory
from hibernaut.hibernation.swsusp_save import hibernate
from hibernaut.hibernation.ways import (
    WAYS,
    Fixmap,
    FixmapV1,
    Remap,
    RemapGeneric,
    RemapGenericAbort,
    RemapGenericZero,
    RemapWhole,
    Reserved,
    Way,
    way_named,
)

__all__ = [
    "CPU_SET_BITS",
    "INVARIANTS",
    "TRACES",
    "WAYS",
    "BootKernel",
    "Fixmap",
    "FixmapV1",
    "Hibernation",
    "Invariant",
    "Remap",
    "RemapGeneric",
    "RemapGenericAbort",
    "RemapGenericZero",
    "RemapWhole",
    "Reserved",
    "Snapshot",
    "SnapshotMemory",
    "Violation",
    "Way",
    "allocator_sound",
    "check_resumed",
    "hibernate",
    "nothing_stale",
    "resume",
    "same_data",
    "same_direct_map",
    "saveable_pages",
    "slot_empty",
    "tables_closed",
    "violations_of",
    "way_named",
]
