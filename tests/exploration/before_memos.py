# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines whose results were recorded before the explorer had memos: `records_before_memos.jsonl`.

The file holds what the commit before wrote for `SAMPLE`, one line for each machine: the line of its record, and the
digests of the texts of its saved runs. To make it anew, check that commit out beside this one and run this module with
its sources: `PYTHONPATH=OLD/src:. python -m tests.exploration.before_memos`. A change of the model that changes results
on purpose makes it anew with the new model and `PLAIN=1`, which keeps nothing in memos.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import Sweep, layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.replay import run_text

__all__ = ["RECORDS", "SAMPLE", "machines", "run_digests"]

RECORDS = Path(__file__).with_name("records_before_memos.jsonl")

BOTH = (Side.ABOVE, Side.BELOW)
_REMEMBERED = Sweep(
    Family(regions=(2,), kinds=(RegionKind.PAGE, RegionKind.BLOCK), remembered=(False, True), free_pages=16),
    ("remap", "remap-generic", "fixmap", "fixmap-no-flush", "remap-no-flush", "remap-whole"),
)
_KINDS = Sweep(
    Family(regions=(1, 2), kinds=(RegionKind.GIB, RegionKind.MIXED, RegionKind.NONE, RegionKind.NO_TABLE), root=BOTH),
    ("remap", "fixmap-v3", "fixmap-skips", "remap-generic-zero", "remap-generic-abort", "remap-write-anyway"),
)
_PLACES = Sweep(
    Family(
        regions=(1,),
        kinds=(RegionKind.BLOCK, RegionKind.GIB),
        mem_map=BOTH,
        zone=BOTH,
        pcp=BOTH,
        free=BOTH,
        cpus=(1, 2),
    ),
    ("remap", "fixmap", "fixmap-bounce", "reserved:1", "reserved:3"),
    allocations_after=64,
)
_OWNERS = Sweep(
    Family(regions=(1, 2), kinds=(RegionKind.BLOCK, RegionKind.KFENCE, RegionKind.KFENCE_AT_BOOT)),
    ("remap", "remap-whole-no-write", "fixmap"),
    rules="6.15",
)
SAMPLE = ((_REMEMBERED, 9), (_KINDS, 37), (_PLACES, 11), (replace(_PLACES, rules="7.3"), 29), (_OWNERS, 11))
"""Sweeps; of each, every so-many-th machine."""


def machines() -> Iterator[tuple[Sweep, tuple[int, ...]]]:
    """Yield the machines of the sample: the sweep, and the choices that make the machine."""
    for sweep, every in SAMPLE:
        for layout_choices in list(layouts(sweep.family))[::every]:
            yield sweep, layout_choices


def run_digests(sweep: Sweep, record: MachineRecord) -> dict[str, list[str]]:
    """Return for each way the digests of the texts of the runs of a record, one for each ending."""
    found = {}
    for name, way in record.ways.items():
        machine = FamilyMachine(sweep.family, record.layout_choices)
        operations = operations_of(machine.chosen()[0], name, sweep.allocations_after)
        texts = [run_text(play(Written(machine, sweep.rules, operations, one.choices))) for one in way.endings]
        found[name] = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return found


def main() -> None:
    """Write the file."""
    lines = []
    for sweep, layout_choices in machines():
        if os.environ.get("PLAIN"):
            from hibernaut.memory.memo import Memo

            record = explore_layout(sweep, layout_choices, Memo(keeps=False))
        else:
            record = explore_layout(sweep, layout_choices)
        lines.append(json.dumps({"record": record.line(), "runs": run_digests(sweep, record)}))
    RECORDS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
