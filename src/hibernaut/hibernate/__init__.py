"""Hibernation: which pages are saved, the ways to copy one, the snapshot, the resume, the checks, the log of events."""

from __future__ import annotations

import sys
from types import ModuleType

from hibernaut.hibernate.checks import (
    CHECKS,
    CPU_SET_BITS,
    Finding,
    allocator_sound,
    check_resumed,
    nothing_stale,
    same_data,
    same_direct_map,
    slot_empty,
    tables_closed,
)
from hibernaut.hibernate.demo import demo_layout
from hibernaut.hibernate.matrix import MATRIX_WAYS, SITUATIONS, Cell, Situation, run_cell, run_matrix
from hibernaut.hibernate.resume import BootKernel, resume
from hibernaut.hibernate.saveable import saveable_pages
from hibernaut.hibernate.snapshot import Snapshot, SnapshotMemory, hibernate
from hibernaut.hibernate.ways import (
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
from hibernaut.linux.machine import Machine

__all__ = [
    "CHECKS",
    "CPU_SET_BITS",
    "MATRIX_WAYS",
    "SITUATIONS",
    "WAYS",
    "BootKernel",
    "Cell",
    "Finding",
    "Fixmap",
    "FixmapV1",
    "Remap",
    "RemapGeneric",
    "RemapGenericAbort",
    "RemapGenericZero",
    "RemapWhole",
    "Reserved",
    "Situation",
    "Snapshot",
    "SnapshotMemory",
    "Way",
    "allocator_sound",
    "check_resumed",
    "demo_layout",
    "hibernate",
    "nothing_stale",
    "resume",
    "run_cell",
    "run_matrix",
    "same_data",
    "same_direct_map",
    "saveable_pages",
    "slot_empty",
    "tables_closed",
    "way_named",
]


class _Room(ModuleType):
    """`hibernaut.hibernate` is both the room and, as the public interface has it, the function."""

    def __call__(self, machine: Machine, way: Way) -> Snapshot:
        return hibernate(machine, way)


sys.modules[__name__].__class__ = _Room
