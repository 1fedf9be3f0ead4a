# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of simulated machines for tests of reports: an image with a lost table, and hostile names."""

from __future__ import annotations

from pathlib import Path

from hibernaut.hibernation import Remap, hibernate
from hibernaut.hibernation.trace import Trace, direct_map_tables
from hibernaut.hibernation.ways.base import Way
from hibernaut.linux.build import build_machine
from hibernaut.linux.calls import merged
from hibernaut.linux.layout import HoleSpec, Layout
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image
from tests.machines import RAM

__all__ = ["HOSTILE", "image_by", "trace_by"]

HOSTILE = "<img src=x onerror=alert(1)>&amp;\x1b[31m'\".img"
"""Name of a file that would run a script, end an attribute or colour a terminal."""


def image_by(path: Path, way: Way | None = None, *holes: HoleSpec, tables: str = "high") -> Path:
    """Write the image of a simulated machine of 64 MiB that is saved by a way, mainline's by default."""
    machine = build_machine(Layout(RAM, holes=holes, tables=tables))
    snapshot = hibernate(machine, way or Remap())
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=machine.memory.ranges.total_pages)
    write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    return path


def trace_by(way: Way, *holes: HoleSpec, tables: str = "high") -> Trace:
    """Return the trace of the copy of the machine of `image_by`, as `lab trace` records that of a real kernel."""
    machine = build_machine(Layout(RAM, holes=holes, tables=tables))
    before = direct_map_tables(machine.memory, machine.direct_map)
    calls = machine.calls = []
    snapshot = hibernate(machine, way)
    return Trace(
        release="simulated",
        rules=machine.rules.line,
        guest="simulated",
        outcome="hibernated",
        dump=None,
        cr3=machine.cr3,
        levels=machine.levels,
        frames=snapshot.frames,
        tables=before,
        allocations=tuple(one.pfn for one in snapshot.allocations),
        calls=merged(calls),
    )
