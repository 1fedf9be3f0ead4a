"""`hibernaut demo`: the failure and its cure on a small simulated machine, in seconds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hibernaut.cli.common import JsonOption, QuietOption, console, hex_or_none, print_json, refuse_same_file
from hibernaut.errors import MachineFault
from hibernaut.hibernate import (
    Fixmap,
    Remap,
    Snapshot,
    Way,
    demo_layout,
    hibernate,
    same_data,
    same_direct_map,
    slot_empty,
    tables_saved,
)
from hibernaut.linux import Environment, FailAllocations, Machine, build_machine
from hibernaut.report.text import demo_text
from hibernaut.swsusp import open_image
from hibernaut.swsusp.info import ImageInfo
from hibernaut.swsusp.writer import NewArea, write_image

__all__ = ["demo"]

SITUATIONS = (("as it happens", ()), ("allocation 1 fails", (1,)))


@dataclass(frozen=True, eq=False)
class Run:
    """One way in one situation: what came of it."""

    way: Way
    situation: str
    machine: Machine
    snapshot: Snapshot | None
    fault: MachineFault | None
    findings: tuple[str, ...]


def demo(
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the image that survives in this file.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Hibernate a simulated machine both ways, with and without a failing allocation; read the surviving image back."""
    machine = build_machine(demo_layout())
    runs = [_run(machine, way, name, failing) for way in (Remap(), Fixmap()) for name, failing in SITUATIONS]
    survivor = runs[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "image"
        refuse_same_file(path)
        image = _write_and_check(survivor, machine, path)
    document = {"machine": _machine_facts(machine), "runs": [_facts(run) for run in runs], "image": image}
    if json:
        print_json(document)
    elif not quiet:
        console().print(demo_text(document))
    if survivor.fault or survivor.findings or image["wrong_pages"]:
        raise typer.Exit(1)


def _run(original: Machine, way: Way, situation: str, failing: tuple[int, ...]) -> Run:
    machine = original.fork(FailAllocations(*failing) if failing else Environment())
    try:
        snapshot = hibernate(machine, way)
    except MachineFault as fault:
        return Run(way, situation, machine, None, fault, ())
    findings = [
        *same_data(original.memory, snapshot),
        *tables_saved(snapshot),
        *same_direct_map(original, machine),
        *slot_empty(machine, snapshot),
    ]
    return Run(way, situation, machine, snapshot, None, tuple(map(str, findings)))


def _write_and_check(run: Run, original: Machine, path: Path) -> dict[str, Any]:
    """Write the survivor's image, open it as a stranger would, and compare every page with the machine's own."""
    assert run.snapshot is not None, "the fixmap way needs no allocation"
    snapshot = run.snapshot
    info = ImageInfo.blank(cr3=snapshot.cr3, physical_pages=original.memory.ranges.total_pages)
    written = write_image(path, snapshot.memory, snapshot.pfns, info, NewArea(), compressor="lzo", zero_pages=False)
    wrong = 0
    with open_image(path) as image:
        listed = np.array_equal(image.pfns, original.saveable)
        for pfns, pages in image.chunks():
            expected, present = original.memory.gather(pfns)
            wrong += int((~present | (pages != expected).any(axis=1)).sum())
    return {
        "pages": written.saved_pages,
        "crc32": hex_or_none(written.crc32),
        "blocks": written.blocks,
        "listed_as_saved": listed,
        "wrong_pages": wrong,
    }


def _machine_facts(machine: Machine) -> dict[str, Any]:
    found = machine.direct_map
    return {
        "pages": machine.memory.ranges.total_pages,
        "saveable_pages": len(machine.saveable),
        "present_bytes": found.present_bytes,
        "holes": [
            {"start_pfn": f"{hole.start_pfn:#x}", "pages": hole.pages, "level": hole.level.size, "kind": str(hole.kind)}
            for hole in found.holes
            if hole.in_source
        ],
    }


def _facts(run: Run) -> dict[str, Any]:
    return {
        "way": run.way.name,
        "situation": run.situation,
        "outcome": "died" if run.fault else "saved",
        "saved_pages": len(run.snapshot.pfns) if run.snapshot else 0,
        "allocations": len(run.machine.allocations),
        "findings": list(run.findings),
        "fault": str(run.fault) if run.fault else None,
        "log": list(run.machine.log.lines),
    }
