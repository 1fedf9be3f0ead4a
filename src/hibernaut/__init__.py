# SPDX-License-Identifier: GPL-2.0-or-later
"""hibernaut: Linux x86-64 hibernation on simulated machines, dumps and images of real kernels.

The names below are the public interface. Each is imported on first use, so that the import of the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hibernaut.errors import (
    ContradictoryMemory,
    CorruptImage,
    FormatError,
    HibernationRefused,
    HibernautError,
    LabError,
    LabUnavailable,
    MachineFault,
    OutOfMemory,
)

if TYPE_CHECKING:
    __version__: str

    from hibernaut.exploration import Bounds, Family, Tally, explore, replay
    from hibernaut.hibernation import Fixmap, Remap, RemapWhole, Snapshot, check_resumed, hibernate, resume, way_named
    from hibernaut.hibernation.audit import Audit, audit
    from hibernaut.hibernation.machine_in_source import MachineInSource, machine_in
    from hibernaut.hibernation.source_machine import machine_from_memory
    from hibernaut.kernel.address_space import AddressSpace
    from hibernaut.kernel.core_file import Converted, convert
    from hibernaut.kernel.facts import machine_facts
    from hibernaut.kernel.kernel import Kernel
    from hibernaut.kernel.suspend import PagesToSave, pages_to_save
    from hibernaut.kernel.swapped_pages import SwappedPages
    from hibernaut.kernel.symbols import kernel_symbols
    from hibernaut.linux import DirectMap, Environment, FailAllocations, Layout, Machine, build_machine
    from hibernaut.linux.layout import hole_1g, hole_2m, hole_4k, no_table, none_entries
    from hibernaut.linux.rules import KernelRules, rules_for_release, rules_named
    from hibernaut.linux.source_tables import direct_map_of, with_gaps
    from hibernaut.memory.gaps import MemoryGap
    from hibernaut.paging.tables import PageTables
    from hibernaut.sources import Source, open_memory
    from hibernaut.studies.demo import demo_layout
    from hibernaut.studies.matrix import Cell, run_matrix
    from hibernaut.swsusp import Image, Inspection, inspect_image, open_image, rewrite_image
    from hibernaut.swsusp.info import ImageInfo
    from hibernaut.swsusp.salvage import SalvagedImage, salvage_image
    from hibernaut.swsusp.writer import ExistingArea, NewArea, WrittenImage, write_image
    from hibernaut.volumes.layers import Layer, OpenedVolume, layers, open_volume
    from hibernaut.volumes.volume import Volume

__all__ = [
    "AddressSpace",
    "Audit",
    "Bounds",
    "Cell",
    "ContradictoryMemory",
    "Converted",
    "CorruptImage",
    "DirectMap",
    "Environment",
    "ExistingArea",
    "FailAllocations",
    "Family",
    "Fixmap",
    "FormatError",
    "HibernationRefused",
    "HibernautError",
    "Image",
    "ImageInfo",
    "Inspection",
    "Kernel",
    "KernelRules",
    "LabError",
    "LabUnavailable",
    "Layer",
    "Layout",
    "Machine",
    "MachineFault",
    "MachineInSource",
    "MemoryGap",
    "NewArea",
    "OpenedVolume",
    "OutOfMemory",
    "PageTables",
    "PagesToSave",
    "Remap",
    "RemapWhole",
    "SalvagedImage",
    "Snapshot",
    "Source",
    "SwappedPages",
    "Tally",
    "Volume",
    "WrittenImage",
    "audit",
    "build_machine",
    "check_resumed",
    "convert",
    "demo_layout",
    "direct_map_of",
    "explore",
    "hibernate",
    "hole_1g",
    "hole_2m",
    "hole_4k",
    "inspect_image",
    "kernel_symbols",
    "layers",
    "machine_facts",
    "machine_from_memory",
    "machine_in",
    "no_table",
    "none_entries",
    "open_image",
    "open_memory",
    "open_volume",
    "pages_to_save",
    "replay",
    "resume",
    "rewrite_image",
    "rules_for_release",
    "rules_named",
    "run_matrix",
    "salvage_image",
    "way_named",
    "with_gaps",
    "write_image",
]

_HOMES = {
    "AddressSpace": "hibernaut.kernel.address_space",
    "Audit": "hibernaut.hibernation.audit",
    "Bounds": "hibernaut.exploration",
    "Cell": "hibernaut.studies.matrix",
    "Converted": "hibernaut.kernel.core_file",
    "DirectMap": "hibernaut.linux",
    "Environment": "hibernaut.linux",
    "ExistingArea": "hibernaut.swsusp.writer",
    "FailAllocations": "hibernaut.linux",
    "Family": "hibernaut.exploration",
    "Fixmap": "hibernaut.hibernation",
    "Image": "hibernaut.swsusp",
    "ImageInfo": "hibernaut.swsusp.info",
    "Inspection": "hibernaut.swsusp",
    "Kernel": "hibernaut.kernel.kernel",
    "KernelRules": "hibernaut.linux.rules",
    "Layer": "hibernaut.volumes.layers",
    "Layout": "hibernaut.linux",
    "Machine": "hibernaut.linux",
    "MachineInSource": "hibernaut.hibernation.machine_in_source",
    "MemoryGap": "hibernaut.memory.gaps",
    "NewArea": "hibernaut.swsusp.writer",
    "OpenedVolume": "hibernaut.volumes.layers",
    "PageTables": "hibernaut.paging.tables",
    "PagesToSave": "hibernaut.kernel.suspend",
    "Remap": "hibernaut.hibernation",
    "RemapWhole": "hibernaut.hibernation",
    "SalvagedImage": "hibernaut.swsusp.salvage",
    "Snapshot": "hibernaut.hibernation",
    "Source": "hibernaut.sources",
    "SwappedPages": "hibernaut.kernel.swapped_pages",
    "Tally": "hibernaut.exploration",
    "Volume": "hibernaut.volumes.volume",
    "WrittenImage": "hibernaut.swsusp.writer",
    "audit": "hibernaut.hibernation.audit",
    "build_machine": "hibernaut.linux",
    "check_resumed": "hibernaut.hibernation",
    "convert": "hibernaut.kernel.core_file",
    "demo_layout": "hibernaut.studies.demo",
    "direct_map_of": "hibernaut.linux.source_tables",
    "explore": "hibernaut.exploration",
    "hibernate": "hibernaut.hibernation",
    "hole_1g": "hibernaut.linux.layout",
    "hole_2m": "hibernaut.linux.layout",
    "hole_4k": "hibernaut.linux.layout",
    "inspect_image": "hibernaut.swsusp",
    "kernel_symbols": "hibernaut.kernel.symbols",
    "layers": "hibernaut.volumes.layers",
    "machine_facts": "hibernaut.kernel.facts",
    "machine_from_memory": "hibernaut.hibernation.source_machine",
    "machine_in": "hibernaut.hibernation.machine_in_source",
    "no_table": "hibernaut.linux.layout",
    "none_entries": "hibernaut.linux.layout",
    "open_image": "hibernaut.swsusp",
    "open_memory": "hibernaut.sources",
    "open_volume": "hibernaut.volumes.layers",
    "pages_to_save": "hibernaut.kernel.suspend",
    "replay": "hibernaut.exploration",
    "resume": "hibernaut.hibernation",
    "rewrite_image": "hibernaut.swsusp",
    "rules_for_release": "hibernaut.linux.rules",
    "rules_named": "hibernaut.linux.rules",
    "run_matrix": "hibernaut.studies.matrix",
    "salvage_image": "hibernaut.swsusp.salvage",
    "way_named": "hibernaut.hibernation",
    "with_gaps": "hibernaut.linux.source_tables",
    "write_image": "hibernaut.swsusp.writer",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("hibernaut")
    if name not in _HOMES:
        raise AttributeError(f"module 'hibernaut' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
