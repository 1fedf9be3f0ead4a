# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions: those that can be arranged, and those that runs of the model give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import LabError, LabUnavailable, MachineFault
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import HIBERNATE, Operation
from hibernaut.exploration.plan import layouts
from hibernaut.exploration.play import FamilyMachine, Written, play
from hibernaut.hibernation import Remap, hibernate
from hibernaut.hibernation.invariants import Hibernation, violations_of
from hibernaut.hibernation.resume import resume
from hibernaut.lab.confirm import confirm
from hibernaut.lab.judgement import TornImage, judge
from hibernaut.lab.prediction import Prediction, cannot_arrange, predict
from hibernaut.linux.build import build_machine
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.layout import HoleSpec, Layout, hole_2m, hole_4k, none_entries
from hibernaut.linux.rules import rules_for_release
from tests.lab.logs import (
    BEFORE,
    CLEAN,
    CRASHED_LATER,
    FAILS,
    GARBAGE,
    LACKS,
    OOPS,
    TORN,
    WARNED,
    WHOLE,
    ZERO,
    crashed,
    saved,
)

HIBERNATED = Operation(HIBERNATE, way="remap")


@pytest.mark.parametrize("prediction", [ZERO, FAILS, TORN, CLEAN, replace(CLEAN, regions=())])
def test_predictions_that_can_be_arranged(prediction: Prediction) -> None:
    """Faults with and without a warning, a torn image, a clean run and several regions can be arranged in a guest."""
    assert cannot_arrange(prediction) is None
    assert cannot_arrange(replace(prediction, regions=("4k:above", "2m:above", "none:below", "2m:below"))) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"regions": ("1g:above",)}, "cannot take out 1g:above"),
        ({"regions": ("2m:above", "no-table")}, "cannot take out no-table"),
        ({"regions": ("2m:below",) * 17}, "17 regions"),
        ({"regions": ("2m:above",) * 5}, "5 regions below their PMD table"),
        ({"regions": ("2m:below", "4k:above")}, "in one place"),
        ({"outcome": "refused"}, "can only save or crash"),
        ({"violated": ("allocator-sound",)}, "cannot observe these invariants: allocator-sound"),
        ({"pages": "below"}, "a guest has its PMD tables below all regions"),
        ({"lists": "below"}, "a guest has its PMD tables below all regions"),
        ({"resumed_crash": "page fault, doing something"}, "crashes with: page fault, doing something"),
    ],
)
def test_predictions_that_cannot_be_arranged(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    """It is refused with its reason, and nothing is booted."""
    prediction = replace(TORN, **changes)
    assert why in (cannot_arrange(prediction) or "")
    with pytest.raises(LabError, match="this cannot be arranged: "):
        confirm(None, prediction, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def placed(**places: Side) -> Prediction:
    """Return the prediction for the explorer's machine of one block with the allocator's own pages on these sides."""
    at = {name: (place,) for name, place in places.items()}
    family = Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,), **at)  # type: ignore[arg-type]
    operations = (HIBERNATED, Operation("exhaust", pages=64))
    return predict(play(Written(FamilyMachine(family, (0,) * 9), "6.1", operations, ())))


@pytest.mark.parametrize("pages", Side)
@pytest.mark.parametrize("lists", Side)
def test_predictions_of_the_free_lists(pages: Side, lists: Side) -> None:
    """All four placements can be arranged, with two nodes if necessary; in one the resumed machine crashes."""
    prediction = placed(mem_map=pages, zone=pages, free=pages, pcp=lists)
    assert cannot_arrange(prediction) is None
    assert (prediction.pages, prediction.lists, prediction.outcome) == (pages.word, lists.word, "saved")
    crashes = (pages, lists) == (Side.BELOW, Side.ABOVE)
    assert bool(prediction.resumed_crash) == crashes
    assert prediction.variant.two_nodes == ((pages, lists) != (Side.ABOVE, Side.ABOVE))
    assert judge(prediction, saved(), TornImage(), CRASHED_LATER if crashes else WHOLE).agrees
    assert not judge(prediction, saved(), TornImage(), WHOLE if crashes else CRASHED_LATER).agrees


@pytest.mark.parametrize(
    "done",
    [
        (HIBERNATED, HIBERNATED),
        (Operation("alloc"), HIBERNATED),
        (HIBERNATED, Operation("alloc")),
        (HIBERNATED, Operation("exhaust", pages=8), HIBERNATED),
    ],
)
def test_a_guest_hibernates_once(done: tuple[Operation, ...]) -> None:
    """And allocates afterwards; a run of anything else is refused."""
    machine = FamilyMachine(Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,)), (0,) * 9)
    with pytest.raises(LabUnavailable, match="more than a hibernation"):
        predict(play(Written(machine, "6.1", done, ())))


@pytest.mark.parametrize(
    ("family", "what"),
    [
        (Family(regions=(1,), kinds=(RegionKind.VMALLOC,), tables=(Side.BELOW,)), "a region vmalloc"),
        (Family(regions=(1,), kinds=(RegionKind.UNMAPPED_FREE,), tables=(Side.BELOW,)), "a region unmapped-free"),
        (
            Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,), second_root=(Side.BELOW,)),
            "a second root",
        ),
    ],
    ids=["vmalloc", "unmapped-free", "second-root"],
)
def test_proposed_kernels_are_tried_on_no_guest(family: Family, what: str) -> None:
    """No released kernel has it: refused with the reason, whatever the run."""
    machine = FamilyMachine(family, next(layouts(family)))
    with pytest.raises(LabUnavailable, match=f"the run has {what}: it is proposed, and in no released kernel"):
        predict(play(Written(machine, "7.3", (HIBERNATED,), ())))


@pytest.mark.parametrize(
    "family",
    [
        Family((1,), (RegionKind.BLOCK,), (Side.BELOW,), min_mark=(1,)),
        Family((1,), (RegionKind.BLOCK,), (Side.BELOW,), batch=(1,)),
    ],
    ids=["min-mark", "batch"],
)
def test_marks_are_not_arranged(family: Family) -> None:
    """A run whose zone has a mark, or whose refill is chosen, is refused, and the advice names `lab depletion`."""
    machine = FamilyMachine(family, next(layouts(family)))
    with pytest.raises(LabUnavailable, match=r"the refill of a CPU's list.*; see `hibernaut lab depletion`"):
        predict(play(Written(machine, "6.1", (HIBERNATED,), ())))


def test_structures_that_one_node_cannot_have() -> None:
    """An arrangement with structures on both sides of the regions is refused with the reason."""
    with pytest.raises(LabUnavailable, match=r"on both sides of the regions \(mem-map below, zone above, free above\)"):
        placed(mem_map=Side.BELOW)


def predicted(release: str, regions: tuple[str, ...], hole: HoleSpec, fail: int, tables: str) -> Prediction:
    """Return the prediction for Remap on a simulated machine."""
    layout = Layout(((0x100, 0x4000),), holes=(hole,), tables=tables)
    before = build_machine(layout, FailAllocations(*range(1, fail + 1)), rules_for_release(release))
    after = before.fork()
    snapshot, resumed, error = None, None, None
    try:
        snapshot = hibernate(after, Remap())
        resumed = resume(snapshot)
    except MachineFault as fault:
        error = fault
    broken = {
        violation.invariant: None for violation in violations_of(Hibernation(before, after, snapshot, resumed, error))
    }
    return Prediction(regions, fail, "died" if error else "saved", after.log.kernel_lines, tuple(broken))


@pytest.mark.parametrize("release", ["6.1.192", "6.12.118", "7.3.4"])
def test_predictions_of_the_model(release: str) -> None:
    """Its three ways to break Remap, and two in which it does not, can all be arranged; and are what is written above.

    By the same kinds of lines and the same outcome: so logs that agree with those above agree with the model.
    """
    fails = predicted(release, ("2m:above",), hole_2m(0x400), 1, "high")
    zero = predicted(release, ("none:below",), none_entries(0x407), 0, "low")
    torn = predicted(release, ("2m:above",), hole_2m(0x400), 0, "high")
    below = predicted(release, ("2m:below",), hole_2m(0x400), 0, "low")
    page = predicted(release, ("4k:below",), hole_4k(0x407), 0, "low")
    assert [cannot_arrange(one) for one in (fails, zero, torn, below, page)] == [None] * 5
    block = OOPS.replace(" PTE 0", "")
    assert judge(zero, crashed(BEFORE + OOPS)).agrees
    assert judge(fails, crashed(BEFORE + WARNED + block)).agrees
    assert not judge(zero, crashed(BEFORE + WARNED + OOPS)).agrees
    assert not judge(fails, crashed(BEFORE + block)).agrees
    assert judge(torn, saved(), LACKS, GARBAGE).agrees
    for whole in (below, page):
        assert judge(whole, saved(), TornImage(), WHOLE).agrees
        assert not judge(whole, saved(), LACKS, GARBAGE).agrees
