# SPDX-License-Identifier: GPL-2.0-or-later
"""Memos of the explorer lose nothing and confuse nothing. Witness: records of the explorer from before it had any."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from hibernaut.exploration import one_machine
from hibernaut.exploration.operations import operations_of
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.run import Run
from hibernaut.hibernation import page_tables, resumed_state, swsusp_save
from hibernaut.hibernation.snapshot import SnapshotMemory
from hibernaut.hibernation.ways import WAYS, Remap, way_named
from hibernaut.hibernation.ways.base import Way
from hibernaut.linux import machine as machine_module
from hibernaut.linux import machine_steps, transitions
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import Environment, Replay
from hibernaut.linux.machine import Machine
from hibernaut.memory.memo import Memo, Results
from hibernaut.memory.overlay import Overlay
from hibernaut.memory.page import PAGE_SIZE
from hibernaut.memory.physical import digest_of_page
from tests.exploration.before_memos import RECORDS, machines, run_digests

SAMPLE = list(machines())


def recorded() -> list[dict[str, Any]]:
    """Return what the explorer without memos wrote for each machine of the sample."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()]


def lines(memo: Memo | None, each: Iterator[int] | None = None) -> Iterator[tuple[int, str]]:
    """Yield the records of the sample, by one memo or, if None, by a memo for each machine."""
    for number in range(len(SAMPLE)) if each is None else each:
        record = one_machine.explore_layout(*SAMPLE[number], Memo() if memo is None else memo)
        yield number, record.line()


@pytest.mark.parametrize(
    ("memo", "order"),
    [
        pytest.param(Memo(), 1, id="one memo"),
        pytest.param(Memo(), -1, id="one memo, other order"),
        pytest.param(None, 1, id="a memo each"),
        pytest.param(Memo(keeps=False), 1, id="nothing kept"),
    ],
)
def test_every_record_is_the_one_from_before(memo: Memo | None, order: int) -> None:
    """Verdicts, numbers of runs, states and steps, and the shortest runs do not depend on what a memo holds."""
    expected = [one["record"] for one in recorded()]
    assert len(expected) == len(SAMPLE)
    for number, line in lines(memo, iter(range(len(SAMPLE))[::order])):
        assert line == expected[number]


@pytest.mark.parametrize("keeps", [True, False])
def test_every_saved_run_is_the_one_from_before(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of the saved runs of every ending are the same byte for byte: schedules, findings and logs."""
    memo = Memo(keeps=keeps)
    monkeypatch.setattr(machine_module, "Memo", lambda: memo)  # one memo for the machines of all runs
    for number, known in enumerate(recorded()):
        record = MachineRecord.from_line(known["record"])
        assert run_digests(SAMPLE[number][0], record) == known["runs"]


def test_a_small_memo_forgets_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are dropped in the midst of a search, those of half-known steps among them."""
    expected = [one["record"] for one in recorded()]
    small = Memo()
    monkeypatch.setattr(small, "of", lambda name, _most=0: Memo.of(small, name, 7))
    for number, line in lines(small, iter(range(0, len(SAMPLE), 5))):
        assert line == expected[number]


# --- mutants ---------------------------------------------------------------------------------------------------------


def stale_digests(patch: pytest.MonkeyPatch) -> None:
    """A write to a frame, of a table or of `struct page`s, leaves the digest of the page."""

    def own(memory: Overlay, pfn: int, right: Callable[[Overlay, int], Any] = Overlay._own) -> Any:
        known = memory._written.get(pfn)
        digest = None if known is None else known.digest
        page = right(memory, pfn)
        page.digest = digest
        return page

    patch.setattr(Overlay, "_own", own)


def stale_tables(patch: pytest.MonkeyPatch) -> None:
    """A write leaves the tree of page tables that was derived before."""
    trees: dict[int, Any] = {}

    def reached(machine: Machine, saved: Any = None, right: Callable[..., Any] = page_tables.reached_tables) -> Any:
        return trees.setdefault(machine.cr3, right(machine, saved))

    patch.setattr(page_tables, "reached_tables", reached)
    patch.setattr(resumed_state, "reached_tables", reached)


def stale_direct_map(patch: pytest.MonkeyPatch) -> None:
    """Direct maps are kept by the root of the tables, not by their bytes."""
    patch.setattr(machine_module, "named_tables", lambda *inputs: inputs[1])


def forgotten_tlb(patch: pytest.MonkeyPatch) -> None:
    """The key of a step lacks the TLBs."""
    patch.setattr(machine_steps, "_tlbs", lambda _machine: ())


def forgotten_way(patch: pytest.MonkeyPatch) -> None:
    """The key of a step lacks the functions of the way."""
    patch.setattr(Way, "in_copy", ())


def forgotten_preparation(patch: pytest.MonkeyPatch) -> None:
    """The step that fixes the list of pages is shared by ways that prepare it differently."""
    patch.setattr(swsusp_save, "_preparation", lambda _way: ())


def forgotten_read(patch: pytest.MonkeyPatch) -> None:
    """The last thing that a function read is not part of its key."""

    def keep(steps: Results, inputs: Any, touched: dict[Any, Any], done: Any) -> None:
        for_key = dict(list(touched.items())[:-1])
        transitions_keep(steps, inputs, for_key, done)

    transitions_keep = transitions.keep
    patch.setattr(transitions, "keep", keep)
    patch.setattr(machine_steps, "keep", keep)


def forgotten_struct_pages(patch: pytest.MonkeyPatch) -> None:
    """The key of the findings in the allocator lacks its own pages."""

    def groups(places: Any, snapshot: Any, right: Callable[..., Any] = resumed_state._groups) -> Any:
        _, written, others = right(places, snapshot)
        return (), written, others

    patch.setattr(resumed_state, "_groups", groups)


def forgotten_changed_tables(patch: pytest.MonkeyPatch) -> None:
    """The key of the findings in the tables lacks the tables."""

    def groups(places: Any, snapshot: Any, right: Callable[..., Any] = resumed_state._groups) -> Any:
        own, _, others = right(places, snapshot)
        return own, (), others

    patch.setattr(resumed_state, "_groups", groups)


def forgotten_answers(patch: pytest.MonkeyPatch) -> None:
    """A step that is known does not ask its environment."""
    patch.setattr(Overlay, "note", lambda _memory, _key, _value: None)


def forgotten_pool(patch: pytest.MonkeyPatch) -> None:
    """The key of a step lacks the frames reserved for tables."""

    def state(inputs: Any, machine: Machine, right: Callable[..., Any] = machine_steps.StepInputs.state) -> Any:
        cpu, preemptible, _, *rest = right(inputs, machine)
        return cpu, preemptible, *rest

    patch.setattr(machine_steps.StepInputs, "state", state)


def forgotten_list(patch: pytest.MonkeyPatch) -> None:
    """The state of an image's allocator is shared by images of which one lacks pages of it."""

    def content_key(memory: SnapshotMemory, start: int, end: int) -> Any:
        del start, end
        return memory._base.ranges.end

    patch.setattr(SnapshotMemory, "content_key", content_key)


MUTANTS = (
    stale_digests,
    stale_tables,
    stale_direct_map,
    forgotten_tlb,
    forgotten_way,
    forgotten_preparation,
    forgotten_read,
    forgotten_struct_pages,
    forgotten_changed_tables,
    forgotten_answers,
    forgotten_pool,
    forgotten_list,
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.__name__)
def test_a_memo_that_forgets_something_is_caught(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mutant changes the record of some machine of the sample, or ends in an error."""
    expected = [one["record"] for one in recorded()]
    mutant(monkeypatch)
    caught = False
    try:
        caught = any(line != expected[number] for number, line in lines(Memo()))
    except (AssertionError, LookupError, ValueError, TypeError, RuntimeError):
        caught = True
    assert caught


# --- what takes part in a key ----------------------------------------------------------------------------------------


def begun() -> Run:
    """Return a run in the middle of a copy, one page of which was copied."""
    sweep, layout_choices = SAMPLE[0]
    chosen = sweep.family.choose(Replay(layout_choices))
    run = Run(build_machine(chosen.layout, Environment()), operations_of(chosen, "remap"))
    while run.copying is None or run.copying.recorder.cursor == 0:
        run.advance()
    return run


def test_ways_share_steps_where_their_functions_are_the_same() -> None:
    """`Reserved` is `Remap` once its pages are reserved; two ways differ in the content of a skipped page alone.

    Steps of a way with a list among its attributes are executed each time.
    """
    machine = begun().machine
    counting = Remap()
    counting.seen = []  # type: ignore[attr-defined]
    assert machine_steps.StepInputs(machine, counting.in_copy).key is None
    names = (*WAYS, "reserved:3", "mermap:2")
    keys = {name: machine_steps.StepInputs(machine, way_named(name).in_copy).key for name in names}
    assert None not in keys.values()
    groups: dict[int, list[str]] = {}
    for name, key in keys.items():
        groups.setdefault(id(key), []).append(name)
    assert [group for group in groups.values() if len(group) > 1] == [
        ["remap", "reserved", "reserved:3"],
        ["remap-generic", "remap-generic-zero"],
        ["remap-generic-abort", "remap-write-anyway"],
    ]


def test_no_copy_of_a_page_depends_on_the_name_or_the_policy_of_its_way() -> None:
    """No function that takes part in the copy names one of them; `prepare` and the like may."""
    for name in (*WAYS, "reserved:3", "mermap:2"):
        of_kind: Any = way_named(name).in_copy
        functions = [one for _, *found in of_kind[1] for one in found if hasattr(one, "__code__")]
        assert functions
        for function in functions:
            assert not {"name", "policy"} & set(function.__code__.co_names), function


def test_a_machine_with_unknown_state_is_not_kept() -> None:
    """An attribute that is not listed, and that can change, means that every step is executed."""
    machine = begun().machine
    assert machine_steps.StepInputs(machine).key is not None
    machine.mystery = "a value that never changes"  # type: ignore[attr-defined]
    assert machine_steps.StepInputs(machine).key is not None
    machine.mystery = []  # type: ignore[attr-defined]
    assert machine_steps.StepInputs(machine).key is None


def test_a_page_digest_follows_every_write() -> None:
    """Words, bytes, whole pages and versions: after each the digest is that of the bytes, in a fork as well."""
    run = begun()
    memory = run.machine.memory
    pfn = memory.written_frames[0]
    seen = [memory.page_digest(pfn)]
    writes: tuple[Callable[[], None], ...] = (
        lambda: memory.write_u64(pfn << 12, 0x1234),
        lambda: memory.write(pfn << 12 | 9, b"bytes"),
        lambda: memory.write_page(pfn, np.full(PAGE_SIZE, 7, dtype=np.uint8)),
    )
    for write in writes:
        twin = memory.fork()
        write()
        page = memory.page(pfn)
        assert page is not None
        assert memory.page_digest(pfn) == digest_of_page(page)
        assert twin.page_digest(pfn) == seen[-1]
        assert memory.page_digest(pfn) not in seen
        seen.append(memory.page_digest(pfn))
    version = memory.fork().version(pfn)
    memory.write_u64(pfn << 12, 5)
    memory.put_version(pfn, version)
    assert memory.page_digest(pfn) == seen[-1]
    memory.write_u64(pfn << 12, 6)
    memory.put_version(pfn, version)
    assert memory.page_digest(pfn) == seen[-1]


def test_results_stay_bounded() -> None:
    """One result too many drops the others; a memo that keeps nothing has none."""
    results = Memo().of("a function", 3)
    for number in range(4):
        results[number] = number
    assert results == {3: 3}
    nothing = Memo(keeps=False).of("a function", 3)
    nothing[1] = 1
    assert not nothing
