# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions tried on a real kernel: which can be, what counts as the same, and that what is not is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hibernaut.errors import LabError, LabUnavailable, MachineFault
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.operations import HIBERNATE, Operation
from hibernaut.exploration.replay import FamilyMachine, Written, play
from hibernaut.hibernation import Remap, hibernate
from hibernaut.hibernation.invariants import Hibernation, violations_of
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.hibernation.resume import resume
from hibernaut.lab.cases.table import cases_of, prove
from hibernaut.lab.confirm import Confirmation, Prediction, Torn, cannot_arrange, confirm, judge
from hibernaut.lab.confirm import foretold as foretold_of
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.scenario import Hibernated, Lab, Record, Resumed, see_arranged
from hibernaut.lab.variants import Variant
from hibernaut.linux.build import HoleSpec, Layout, build_machine, hole_2m, hole_4k, none_entries
from hibernaut.linux.environment import FailAllocations
from hibernaut.linux.rules import rules_for_release
from tests.lab.conftest import unavailable

FAULT = (
    "BUG: unable to handle page fault for address: ffff888000200000",
    "#PF: supervisor read access in kernel mode",
    "#PF: error_code(0x0000) - not-present page",
)
ZERO = Prediction(("none:below",), 0, "died", (*FAULT, "PGD 1067 P4D 1067 PUD 2067 PMD 3067 PTE 0"), ("no-fault",))
"""The model's page without an entry."""
FAILS = Prediction(
    ("2m:above",),
    1,
    "died",
    ("PM: hibernation: Creating image:", FAILED_TO_REMAP, *FAULT, "PGD 1067 P4D 1067 PUD 2067 PMD 800fffffffdff062"),
    ("no-fault",),
)
"""The model's block whose split gets no page."""
TORN = Prediction(("2m:above",), 0, "saved", ("PM: hibernation: Need to copy 77 pages",), ("tables-closed",))
"""The model's block whose table is copied after it was split."""
CLEAN = Prediction(("2m:below",), 0, "saved", (), ())

BEFORE = """\
[    1.10] WARNING: CPU: 0 PID: 1 at boot, long ago
[    8.10] PM: hibernation: hibernation entry
[    8.80] PM: hibernation: Need to copy 21441 pages
"""
OOPS = """\
[    8.82] BUG: unable to handle page fault for address: ffff888006a07000
[    8.82] #PF: supervisor read access in kernel mode
[    8.82] #PF: error_code(0x0000) - not-present page
[    8.82] PGD 4401067 P4D 4401067 PUD 4402067 PMD 5fae063 PTE 0\x20
[    8.83] Oops: 0000 [#1] PREEMPT SMP NOPTI
[    8.83] RIP: 0010:swsusp_save+0x27b/0x31a
[    8.84] BUG: kernel NULL pointer dereference, address: 0000000000000000
"""
"""As kernels print it; the numbers are made up. What comes after the first fault is not looked at."""
WARNED = f"[    8.81] {FAILED_TO_REMAP}\n"
RECORD = Record("aa", "6.1.0-56-amd64", "6.1", Variant("x", ""), None, 0, (), (), {})
CAME_BACK = {"pages": 2048}
WHOLE = Resumed(True, "resumed, 2048 pages and 1 region of the direct map as they were", "", 1, CAME_BACK)
GARBAGE = Resumed(False, "direct map garbage: block 0x400: PMD entry 0x1, 512 of 512 entries wrong", "", 1, CAME_BACK)
CHANGED = Resumed(False, "direct map changed: block 0x400: PMD entry 0x1 is now 0x2", "", 1, CAME_BACK)
DAMAGED = Resumed(False, "data: block 0x400: 3 pages damaged", "", 1, CAME_BACK)
LACKS = Torn((0x64FB,), (0x400,))


def died(log: str) -> Hibernated:
    return Hibernated("died", "its last words", Path(), RECORD, log, 1)


def saved(log: str = BEFORE) -> Hibernated:
    return Hibernated("hibernated", "", Path(), RECORD, log, 1)


# ---- what can be arranged ----


@pytest.mark.parametrize("prediction", [ZERO, FAILS, TORN, CLEAN, replace(CLEAN, regions=())])
def test_what_can_be_arranged(prediction: Prediction) -> None:
    assert cannot_arrange(prediction) is None
    assert cannot_arrange(replace(prediction, regions=("4k:above", "2m:above", "none:below", "2m:below"))) is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"regions": ("1g:above",)}, "cannot take out 1g:above"),
        ({"regions": ("2m:above", "no-table")}, "cannot take out no-table"),
        ({"regions": ("2m:below",) * 17}, "17 regions"),
        ({"regions": ("2m:above",) * 5}, "5 regions below their PMD table"),
        ({"regions": ("2m:below", "4k:above")}, "lie in one place"),
        ({"outcome": "refused"}, "can only save or die"),
        ({"violated": ("allocator-sound",)}, "nothing in the laboratory shows whether this holds: allocator-sound"),
        ({"pages": "below"}, "a guest has its PMD tables below all regions"),
        ({"lists": "below"}, "a guest has its PMD tables below all regions"),
        ({"dies_of": "page fault, doing something"}, "dies of page fault, doing something"),
    ],
)
def test_what_cannot_be_arranged(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    """It is refused with its reason, and nothing is booted."""
    prediction = replace(TORN, **changes)
    assert why in (cannot_arrange(prediction) or "")
    with pytest.raises(LabError, match="this cannot be arranged: "):
        confirm(None, prediction, tmp_path)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# ---- deaths ----


def test_a_death_as_foretold() -> None:
    """Other addresses, the same kinds of lines in the same order, in `swsusp_save`; the log's own lines are kept."""
    found = judge(ZERO, died(BEFORE + OOPS))
    assert found.agrees
    assert found.release == "6.1.0-56-amd64"
    assert found.said[0] == "BUG: unable to handle page fault for address: ffff888006a07000"
    assert found.seen == (
        "died in swsusp_save, no image on its disk: BUG: unable to handle page fault, then PTE entry zero"
    )
    split = "[    8.80] hlab_region: allocation 1 for a split, from split_large_page, gets nothing\n"
    fails = judge(
        FAILS, died(BEFORE + split + WARNED + OOPS.replace(" PTE 0", "").replace("5fae063", "800fffffffbff062"))
    )
    assert fails.agrees
    assert fails.said[:2] == (split[split.index("hlab") :].rstrip(), FAILED_TO_REMAP)


@pytest.mark.parametrize(
    ("prediction", "done", "told"),
    [
        (ZERO, died(BEFORE + WARNED + OOPS), f"the kernel says {FAILED_TO_REMAP} / BUG"),
        (FAILS, died(BEFORE + OOPS.replace(" PTE 0", "")), f"the model {FAILED_TO_REMAP} / BUG"),
        (FAILS, died(BEFORE + OOPS.replace(" PTE 0", "") + WARNED), f"the model {FAILED_TO_REMAP} / BUG"),
        (FAILS, died(BEFORE + WARNED + OOPS), "PTE entry zero, the model"),
        (ZERO, died(BEFORE + OOPS.replace("PTE 0", "PTE 8000000006a07062")), "PTE entry not zero, the model"),
        (
            ZERO,
            died(BEFORE + OOPS.replace("unable to handle page fault for", "kernel NULL pointer dereference,")),
            "the kernel says BUG: kernel NULL pointer dereference /",
        ),
        (ZERO, died(BEFORE + OOPS.replace("read", "write")), "#PF: supervisor write access"),
        (ZERO, died(BEFORE + OOPS.replace("RIP: 0010:swsusp_save", "RIP: 0010:elsewhere")), "not in swsusp_save"),
        (ZERO, died(BEFORE), "died without a fault of its kernel's: its last words"),
        (ZERO, saved(), "the guest was to die in the copy, it hibernated"),
        (ZERO, replace(saved(), outcome="refused", reason="exit status 1"), "it refused to: exit status 1"),
    ],
)
def test_another_death(prediction: Prediction, done: Hibernated, told: str) -> None:
    """A warning too many, too few or too late, another entry, another fault, another place, none at all."""
    found = judge(prediction, done)
    assert not found.agrees
    assert told in found.seen


# ---- images ----


def test_an_image_as_foretold() -> None:
    """Silently torn, and the resumed guest's map is garbage; or whole."""
    torn = judge(TORN, saved(), LACKS, GARBAGE)
    assert torn == Confirmation(
        True,
        "6.1.0-56-amd64",
        (),
        "hibernated without a warning; its image lacks table 0x64fb, which its own page tables name, for block 0x400; "
        f"{GARBAGE.reason}",
    )
    more = replace(TORN, violated=("tables-closed", "same-direct-map", "allocator-sound"))
    seen = judge(more, saved(), LACKS, GARBAGE).seen
    assert seen == f"{torn.seen} (nothing shows whether this is broken: allocator-sound)"
    assert judge(CLEAN, saved(), Torn(), WHOLE).agrees
    warned = judge(replace(CLEAN, kernel_lines=(FAILED_TO_REMAP,)), saved(BEFORE + WARNED), Torn(), WHOLE)
    assert warned.agrees
    assert warned.seen.startswith(f"hibernated, saying {FAILED_TO_REMAP}, every page table in its image; resumed")
    assert judge(replace(CLEAN, violated=("same-direct-map",)), saved(), Torn(), CHANGED).agrees
    assert judge(replace(CLEAN, violated=("same-data",)), saved(), Torn(), DAMAGED).agrees


@pytest.mark.parametrize(
    ("prediction", "log", "torn", "resumed", "told"),
    [
        (TORN, BEFORE, Torn(), WHOLE, "its image has every page table"),
        (TORN, BEFORE, Torn(), GARBAGE, "its image has every page table"),
        (TORN, BEFORE, LACKS, WHOLE, "the guest that came back found: resumed, 2048 pages"),
        (TORN, BEFORE, LACKS, CHANGED, "the guest that came back found: direct map changed"),
        (TORN, BEFORE, LACKS, replace(GARBAGE, facts={}, reason="dead: BUG"), "it did not come back: dead: BUG"),
        (TORN, BEFORE, LACKS, replace(GARBAGE, reason=f"{DAMAGED.reason}; {GARBAGE.reason}"), "found: data: block"),
        (TORN, BEFORE + WARNED, LACKS, GARBAGE, f"the kernel says {FAILED_TO_REMAP}, the model nothing"),
        (TORN, BEFORE + "[ 8.9] WARNING: CPU: 0\n", LACKS, GARBAGE, "the kernel says WARNING: CPU: 0, the model"),
        (CLEAN, BEFORE, LACKS, WHOLE, "its image lacks table 0x64fb"),
        (CLEAN, BEFORE, Torn(), CHANGED, "the guest that came back found: direct map changed"),
        (CLEAN, BEFORE, Torn(), DAMAGED, "the guest that came back found: data: block 0x400"),
        (replace(CLEAN, violated=("same-data",)), BEFORE, Torn(), WHOLE, "the guest that came back found: resumed"),
    ],
)
def test_another_image(prediction: Prediction, log: str, torn: Torn, resumed: Resumed, told: str) -> None:
    """Whole where it was to be torn, torn where it was to be whole, with words that were not foretold."""
    found = judge(prediction, saved(log), torn, resumed)
    assert not found.agrees
    assert told in found.seen


def test_a_death_instead_of_an_image() -> None:
    found = judge(TORN, died(BEFORE + OOPS))
    assert (found.agrees, found.seen) == (False, "the guest was to hibernate, it died: its last words")
    assert found.said[0].startswith("BUG: ")


# ---- free lists ----

NULL_LINK = "kernel NULL pointer dereference, allocating a page (__rmqueue_pcplist)"
LISTS = replace(CLEAN, violated=("lists-whole", "no-fault"), pages="below", allocates=True, dies_of=NULL_LINK)
"""The model's machine that has every table and a list of pages whose links are none."""
CORRUPTION = "list_add corruption. next->prev should be prev (ffff88801f6388d8), but was dead000000000122. (next=ff)."
TORN_LISTS = f"""\
[    5.1] PM: early restore of devices complete after 1.057 msecs
[    5.2] {CORRUPTION}
[    5.3] kernel BUG at lib/list_debug.c:27!
[    5.4] RIP: 0010:__list_add_valid.cold+0x4b/0x5b
[    5.5]  free_unref_page_commit+0x76/0x180
[    5.6]  swsusp_free+0x205/0x270
[    5.7] ---[ end trace 0000000000000000 ]---
[    5.8]  __rmqueue_pcplist+0x1/0x2
"""
DIED_LATER = Resumed(False, f"dead: {CORRUPTION}", TORN_LISTS, 1)


def test_a_death_of_the_free_lists() -> None:
    """Every table is in the image; the resumed kernel finds a link that is none; that settles the lists, too."""
    assert cannot_arrange(LISTS) is None
    found = judge(LISTS, saved(), Torn(), DIED_LATER)
    assert found.agrees
    assert found.seen == (
        f"hibernated without a warning, every page table in its image; resumed, then dead: {CORRUPTION}"
    )
    sooner = replace(
        DIED_LATER,
        reason="dead: list_del corruption, ff->next is LIST_POISON1 (dead000000000100)",
        log="Calling irqrouter_resume+0x0/0x50\nBUG: Bad page state in process busybox  pfn:04886\n"
        "list_del corruption, ff->next is LIST_POISON1 (dead000000000100)\n __rmqueue_pcplist+0x71/0xb50\n",
    )
    assert judge(LISTS, saved(), Torn(), sooner).agrees
    lives = replace(LISTS, violated=("lists-whole",), dies_of="", lists="below", pages="above")
    assert cannot_arrange(lives) is None
    found = judge(lives, saved(), Torn(), WHOLE)
    assert found.agrees
    assert found.seen.endswith("(nothing shows whether this is broken: lists-whole)")
    assert not judge(lives, saved(), Torn(), DIED_LATER).agrees


@pytest.mark.parametrize(
    ("torn", "resumed", "told"),
    [
        (Torn(), WHOLE, "was to die of its free lists, it did not: resumed, 2048 pages"),
        (LACKS, DIED_LATER, "its image lacks table 0x64fb"),
        (Torn(), replace(DIED_LATER, reason="dead: BUG: kernel NULL pointer dereference"), "it did not: dead: BUG"),
        (Torn(), replace(DIED_LATER, reason=f"fresh boot: {CORRUPTION}"), "it did not: fresh boot"),
        (Torn(), replace(DIED_LATER, log=TORN_LISTS.replace("restore of", "look at")), "it did not: dead: list_add"),
        (Torn(), replace(DIED_LATER, log=TORN_LISTS.replace("free_unref", "kobject")), "it did not: dead: list_add"),
    ],
)
def test_another_end_than_of_the_free_lists(torn: Torn, resumed: Resumed, told: str) -> None:
    """It lives, lacks a table, dies of something else, before it was resumed, or of a list of somebody else's."""
    found = judge(LISTS, saved(), torn, resumed)
    assert not found.agrees
    assert told in found.seen


def test_a_guest_that_is_otherwise_than_its_variant_wants() -> None:
    """Each of the allocator's own on the wrong side of a region, or not known, is noticed."""
    variant = replace(LISTS.variant, regions=("2m:below",))
    places = {"free": 0x100, "mem-map": 0xFC00, "zone": 0xFFD5, "pcp": 0x1F638}
    arranged = replace(RECORD, variant=variant, regions=({"block": "0x12000"},), allocator=places)
    see_arranged(arranged)
    for name, pfn in (("mem-map", 0x12800), ("zone", 0x12200), ("pcp", 0x400), ("pcp", 0), ("zone", 0)):
        with pytest.raises(LabError, match=f"the guest's {name} lies at frame {pfn:#x}, not (above|below) its regions"):
            see_arranged(replace(arranged, allocator={**places, name: pfn}))
    see_arranged(
        replace(
            arranged,
            variant=replace(variant, pages="above", lists="below"),
            allocator={"mem-map": 0x1FC00, "zone": 0x1FFD5, "pcp": 0xF638},
        )
    )


# ---- the model's own predictions ----


HIBERNATED = Operation(HIBERNATE, way="remap")


def placed(**places: Side) -> Prediction:
    """What the explorer's machine of one block comes to, the allocator's own pages lying so."""
    at = {name: (place,) for name, place in places.items()}
    family = Family(regions=(1,), kinds=(RegionKind.BLOCK,), tables=(Side.BELOW,), **at)  # type: ignore[arg-type]
    operations = (HIBERNATED, Operation("exhaust", pages=64))
    return foretold_of(play(Written(FamilyMachine(family, (0,) * 9), "6.1", operations, ())))


@pytest.mark.parametrize("pages", Side)
@pytest.mark.parametrize("lists", Side)
def test_what_the_model_foretells_of_the_free_lists(pages: Side, lists: Side) -> None:
    """All four placements can be arranged, in two nodes if need be; in one of them the resumed machine dies."""
    prediction = placed(mem_map=pages, zone=pages, free=pages, pcp=lists)
    assert cannot_arrange(prediction) is None
    assert (prediction.pages, prediction.lists, prediction.outcome) == (pages.word, lists.word, "saved")
    dies = (pages, lists) == (Side.BELOW, Side.ABOVE)
    assert bool(prediction.dies_of) == dies
    assert prediction.variant.two_nodes == ((pages, lists) != (Side.ABOVE, Side.ABOVE))
    assert judge(prediction, saved(), Torn(), DIED_LATER if dies else WHOLE).agrees
    assert not judge(prediction, saved(), Torn(), WHOLE if dies else DIED_LATER).agrees


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
        foretold_of(play(Written(machine, "6.1", done, ())))


def test_what_no_node_can_have() -> None:
    with pytest.raises(LabUnavailable, match=r"on both sides of the regions \(mem-map below, zone above, free above\)"):
        placed(mem_map=Side.BELOW)


def foretold(release: str, regions: tuple[str, ...], hole: HoleSpec, fail: int, tables: str) -> Prediction:
    """What Remap comes to on a simulated machine."""
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
def test_what_the_model_foretells(release: str) -> None:
    """Its three ways to break Remap, and two in which it does not, can all be arranged; and are what is written above.

    By the same kinds of lines and the same outcome: so logs that agree with those above agree with the model.
    """
    fails = foretold(release, ("2m:above",), hole_2m(0x400), 1, "high")
    zero = foretold(release, ("none:below",), none_entries(0x407), 0, "low")
    torn = foretold(release, ("2m:above",), hole_2m(0x400), 0, "high")
    below = foretold(release, ("2m:below",), hole_2m(0x400), 0, "low")
    page = foretold(release, ("4k:below",), hole_4k(0x407), 0, "low")
    assert [cannot_arrange(one) for one in (fails, zero, torn, below, page)] == [None] * 5
    block = OOPS.replace(" PTE 0", "")
    assert judge(zero, died(BEFORE + OOPS)).agrees
    assert judge(fails, died(BEFORE + WARNED + block)).agrees
    assert not judge(zero, died(BEFORE + WARNED + OOPS)).agrees
    assert not judge(fails, died(BEFORE + block)).agrees
    assert judge(torn, saved(), LACKS, GARBAGE).agrees
    for whole in (below, page):
        assert judge(whole, saved(), Torn(), WHOLE).agrees
        assert not judge(whole, saved(), LACKS, GARBAGE).agrees


# ---- a real kernel ----


def test_linux_dies_of_its_free_lists(lab_61: Lab) -> None:
    """That case of docs/support.md: the kernel's own image is torn in the allocator, ours of the same memory is not."""
    (result,) = prove([lab_61], cases_of(["CPU lists above: saved from a dump"]))
    if result.passed is None:
        unavailable(result.seen)
    assert result.passed, result.seen
    assert "its own: dead: list_" in result.seen


def test_linux_dies_of_an_entry_that_is_zero(lab_61: Lab, tmp_path: Path) -> None:
    """As the model says: no warning, a page fault at the entry; and the same guest confirms nothing else."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    found = confirm(lab_61, ZERO, tmp_path)
    assert found.agrees, found.seen
    assert found.release == lab_61.kernel.release
    assert not any("remap" in line for line in found.said)
    log = "\n".join(("hibernation: hibernation entry", *found.said, "RIP: 0010:swsusp_save+0x1/0x2"))
    assert judge(ZERO, died(log)).agrees
    for other in (FAILS, TORN, CLEAN):
        assert not judge(other, died(log)).agrees
