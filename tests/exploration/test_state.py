# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a run: its encoding holds every field, so two different states have different encodings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.run import Run
from hibernaut.hibernation.checks.violation import Violation
from hibernaut.hibernation.source_machine import machine_from_memory
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Replay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.paging.entries import Level
from tests.exploration.decode import decode_all, same

FAMILY = Family(
    regions=(1, 2),
    kinds=(RegionKind.PAGE, RegionKind.BLOCK),
    tables=(Side.ABOVE,),
    remembered=(False, True),
    free_pages=8,
)
WAYS = ("remap", "fixmap-no-flush", "reserved:1", "remap-generic")


def states() -> Iterator[Run]:
    """Each state on the way of some runs, failures among them, over a resume."""
    for layout_choices in layouts(FAMILY):
        chosen = FAMILY.choose(Replay(layout_choices))
        machine = build_machine(chosen.layout, Environment())
        for way in WAYS:
            for choices in ((), (0, 0, 1), (1,)):
                run = Run(machine.fork(Replay(choices)), operations_of(chosen, way, 2))
                while not run.finished:
                    yield run
                    run.advance()
                yield run


def encoding(run: Run) -> bytes:
    """Return the encoding of a run's state."""
    return b"".join(run.encoded())


def pages(found: dict[int, Any]) -> dict[int, bytes | None]:
    """Return pages as bytes, ascending by frame."""
    return {pfn: None if page is None else np.asarray(page).tobytes() for pfn, page in sorted(found.items())}


def fields(run: Run) -> list[Any]:
    """Return the parts of a state, read from the run itself."""
    machine, copy = run.machine, run._copy
    violations = [[one.invariant, one.what, one.start_pfn, one.nr_pages] for one in run.violations]
    flags = machine.page_flags
    found: list[Any] = [
        [run._lineage, run.position, run.status, run._ended, run.held, violations],
        [
            machine.cpu,
            machine.table_pool,
            sorted(machine.log.once),
            [
                None
                if tlb is None
                else sorted((at, int(level), pfn, entry) for at, level, pfn, entry in tlb.translations())
                for tlb in machine.tlbs
            ],
            None if flags is None else list(flags.nosave),
            None,
        ],
        pages({pfn: machine.memory.page(pfn) for pfn in machine.memory.written.tolist()}),
    ]
    if copy is None:
        return [*found, None]
    kept = copy.recorder
    frames = None if copy.frames is None else list(copy.frames)
    under_way = [kept.cursor, kept.skipped, sorted(kept.written), list(copy.pending), frames]
    return [*found, run._before_digest, under_way, pages(dict(kept.kept))]


def test_the_encoding_holds_every_field_of_every_state() -> None:
    """Read back, it is what the state is made of; so states that differ in any of it are encoded differently."""
    by_encoding: dict[bytes, list[Any]] = {}
    for run in states():
        data = encoding(run)
        found = decode_all(data)
        assert same(found, fields(run))
        assert same(by_encoding.setdefault(data, found), found)
    assert len(by_encoding) > 150


CHANGES: dict[str, Callable[[Run], None]] = {
    "position": lambda run: setattr(run, "position", run.position + 1),
    "status": lambda run: setattr(run, "status", "refused"),
    "held": lambda run: run.held.append(0x123),
    "violations": lambda run: setattr(run, "violations", (*run.violations, Violation("same-data", "x", 1, 1))),
    "cpu": lambda run: setattr(run.machine, "cpu", 1),
    "table pool": lambda run: run.machine.table_pool.append(0x123),
    "a warning": lambda run: run.machine.log.printk_once("said"),
    "a translation": lambda run: run.machine.tlb.insert(0xFFFF_8880_0000_0000, Level.PTE, 5, 0x5063),
    "an offline CPU": lambda run: run.machine.tlbs.append(None),
    "memory": lambda run: run.machine.memory.write(0x5000, b"x"),
    "the cursor": lambda run: setattr(copy_of(run).recorder, "cursor", 7),
    "a skipped frame": lambda run: copy_of(run).recorder.skipped.append(7),
    "a frame written to": lambda run: copy_of(run).recorder.written.add(7),
    "a kept page": lambda run: copy_of(run).recorder.kept.update({7: np.zeros(PAGE_SIZE, np.uint8)}),
    "frames pending": lambda run: copy_of(run)._pending.append((7, 8)),
}


def copy_of(run: Run) -> Any:
    """Return the copy that a run is in the middle of."""
    assert run._copy is not None
    return run._copy


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_state_changes_its_digest(change: str) -> None:
    """In the middle of a copy any field that decides what follows, changed alone, gives another digest."""
    chosen = FAMILY.choose(Environment())
    run = Run(build_machine(chosen.layout, Environment()), operations_of(chosen, "remap"))
    run.advance()
    twin, other = run.fork(Environment()), run.fork(Environment())
    assert twin.digest() == run.digest()
    CHANGES[change](other)
    assert other.digest() != run.digest()
    assert twin.digest() == run.digest()


def test_the_free_frames_of_a_dump_are_part_of_its_state() -> None:
    """An allocator that does not lie in memory is encoded by its free frames."""
    built = build_machine(FAMILY.choose(Environment()).layout)
    machine = machine_from_memory(built.memory, built.cr3, saveable=built.memory.ranges.lowest(0x9F))
    run = Run(machine, ())
    before = encoding(run)
    free = list(machine.allocator.free_ranges())
    assert same(decode_all(before)[1][5], free)
    machine.alloc_page("a page")
    assert encoding(run) != before
