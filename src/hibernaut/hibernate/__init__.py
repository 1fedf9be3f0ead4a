"""Hibernation: which pages are saved, the ways to copy one, the snapshot, the log of events."""

from __future__ import annotations

import sys
from types import ModuleType

from hibernaut.hibernate.checks import CPU_SET_BITS, Finding, same_data, same_direct_map, slot_empty, tables_saved
from hibernaut.hibernate.demo import demo_layout
from hibernaut.hibernate.snapshot import Snapshot, SnapshotMemory, hibernate
from hibernaut.hibernate.ways import Fixmap, Remap, Way
from hibernaut.linux.machine import Machine

__all__ = [
    "CPU_SET_BITS",
    "Finding",
    "Fixmap",
    "Remap",
    "Snapshot",
    "SnapshotMemory",
    "Way",
    "demo_layout",
    "hibernate",
    "same_data",
    "same_direct_map",
    "slot_empty",
    "tables_saved",
]


class _Room(ModuleType):
    """`hibernaut.hibernate` is both the room and, as the public interface has it, the function."""

    def __call__(self, machine: Machine, way: Way) -> Snapshot:
        return hibernate(machine, way)


sys.modules[__name__].__class__ = _Room
