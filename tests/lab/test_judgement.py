# SPDX-License-Identifier: GPL-2.0-or-later
"""Judgements: agreement with a prediction, and every difference from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.judgement import Confirmation, TornImage, judge
from hibernaut.lab.laboratory import Hibernated, Resumed
from hibernaut.lab.prediction import Prediction, cannot_arrange
from tests.lab.logs import (
    BEFORE,
    CHANGED,
    CLEAN,
    CORRUPTION,
    CRASHED_LATER,
    DAMAGED,
    FAILS,
    GARBAGE,
    LACKS,
    LISTS,
    OOPS,
    TORN,
    TORN_LISTS,
    WARNED,
    WHOLE,
    ZERO,
    crashed,
    saved,
)


def test_a_crash_as_predicted() -> None:
    """Other addresses, the same kinds of lines in the same order, in `swsusp_save`; the log's own lines are kept."""
    found = judge(ZERO, crashed(BEFORE + OOPS))
    assert found.agrees
    assert found.release == "6.1.0-56-amd64"
    assert found.said[0] == "BUG: unable to handle page fault for address: ffff888006a07000"
    assert found.seen == (
        "crashed in swsusp_save, no image on its disk: BUG: unable to handle page fault, then PTE entry zero"
    )
    split = "[    8.80] hlab_region: allocation 1 for a split, from split_large_page: failure injected\n"
    fails = judge(
        FAILS, crashed(BEFORE + split + WARNED + OOPS.replace(" PTE 0", "").replace("5fae063", "800fffffffbff062"))
    )
    assert fails.agrees
    assert fails.said[:2] == (split[split.index("hlab") :].rstrip(), FAILED_TO_REMAP)


@pytest.mark.parametrize(
    ("prediction", "done", "told"),
    [
        (ZERO, crashed(BEFORE + WARNED + OOPS), f"the kernel prints {FAILED_TO_REMAP} / BUG"),
        (FAILS, crashed(BEFORE + OOPS.replace(" PTE 0", "")), f"the model {FAILED_TO_REMAP} / BUG"),
        (FAILS, crashed(BEFORE + OOPS.replace(" PTE 0", "") + WARNED), f"the model {FAILED_TO_REMAP} / BUG"),
        (FAILS, crashed(BEFORE + WARNED + OOPS), "PTE entry zero, the model"),
        (ZERO, crashed(BEFORE + OOPS.replace("PTE 0", "PTE 8000000006a07062")), "PTE entry not zero, the model"),
        (
            ZERO,
            crashed(BEFORE + OOPS.replace("unable to handle page fault for", "kernel NULL pointer dereference,")),
            "the kernel prints BUG: kernel NULL pointer dereference /",
        ),
        (ZERO, crashed(BEFORE + OOPS.replace("read", "write")), "#PF: supervisor write access"),
        (ZERO, crashed(BEFORE + OOPS.replace("RIP: 0010:swsusp_save", "RIP: 0010:elsewhere")), "not in swsusp_save"),
        (ZERO, crashed(BEFORE), "crashed without a fault of its kernel: last log lines"),
        (ZERO, saved(), "predicted a crash in the copy; the guest hibernated"),
        (ZERO, replace(saved(), outcome="refused", reason="exit status 1"), "the guest refused: exit status 1"),
    ],
)
def test_another_crash(prediction: Prediction, done: Hibernated, told: str) -> None:
    """A warning too many, too few or too late, another entry, another fault, another place, none at all."""
    found = judge(prediction, done)
    assert not found.agrees
    assert told in found.seen


def test_an_image_as_predicted() -> None:
    """Silently torn, and the resumed guest's map is garbage; or whole."""
    torn = judge(TORN, saved(), LACKS, GARBAGE)
    assert torn == Confirmation(
        True,
        "6.1.0-56-amd64",
        (),
        "hibernated without a warning; its image lacks table 0x64fb, which its own page tables point to, for block "
        f"0x400; {GARBAGE.reason}",
    )
    more = replace(TORN, violated=("tables-closed", "same-direct-map", "allocator-sound"))
    seen = judge(more, saved(), LACKS, GARBAGE).seen
    assert seen == f"{torn.seen} (not observable: allocator-sound)"
    assert judge(CLEAN, saved(), TornImage(), WHOLE).agrees
    warned = judge(replace(CLEAN, kernel_lines=(FAILED_TO_REMAP,)), saved(BEFORE + WARNED), TornImage(), WHOLE)
    assert warned.agrees
    assert warned.seen.startswith(f"hibernated, printing {FAILED_TO_REMAP}, every page table in its image; resumed")
    assert judge(replace(CLEAN, violated=("same-direct-map",)), saved(), TornImage(), CHANGED).agrees
    assert judge(replace(CLEAN, violated=("same-data",)), saved(), TornImage(), DAMAGED).agrees


@pytest.mark.parametrize(
    ("prediction", "log", "torn", "resumed", "told"),
    [
        (TORN, BEFORE, TornImage(), WHOLE, "its image has every page table"),
        (TORN, BEFORE, TornImage(), GARBAGE, "its image has every page table"),
        (TORN, BEFORE, LACKS, WHOLE, "the resumed guest found: resumed, 2048 pages"),
        (TORN, BEFORE, LACKS, CHANGED, "the resumed guest found: direct map changed"),
        (TORN, BEFORE, LACKS, replace(GARBAGE, facts={}, reason="crashed: BUG"), "it did not resume: crashed: BUG"),
        (TORN, BEFORE, LACKS, replace(GARBAGE, reason=f"{DAMAGED.reason}; {GARBAGE.reason}"), "found: data: block"),
        (TORN, BEFORE + WARNED, LACKS, GARBAGE, f"the kernel prints {FAILED_TO_REMAP}, the model nothing"),
        (TORN, BEFORE + "[ 8.9] WARNING: CPU: 0\n", LACKS, GARBAGE, "the kernel prints WARNING: CPU: 0, the model"),
        (CLEAN, BEFORE, LACKS, WHOLE, "its image lacks table 0x64fb"),
        (CLEAN, BEFORE, TornImage(), CHANGED, "the resumed guest found: direct map changed"),
        (CLEAN, BEFORE, TornImage(), DAMAGED, "the resumed guest found: data: block 0x400"),
        (replace(CLEAN, violated=("same-data",)), BEFORE, TornImage(), WHOLE, "the resumed guest found: resumed"),
    ],
)
def test_another_image(prediction: Prediction, log: str, torn: TornImage, resumed: Resumed, told: str) -> None:
    """Intact where a torn image is predicted, torn where an intact one is, and messages that are not predicted."""
    found = judge(prediction, saved(log), torn, resumed)
    assert not found.agrees
    assert told in found.seen


def test_a_crash_instead_of_an_image() -> None:
    """A guest that crashes where an image was predicted disagrees, and its log lines are shown."""
    found = judge(TORN, crashed(BEFORE + OOPS))
    assert (found.agrees, found.seen) == (False, "predicted an image; the guest crashed: last log lines")
    assert found.said[0].startswith("BUG: ")


def test_a_crash_in_the_free_lists() -> None:
    """Every table is in the image; the resumed kernel finds a link that is none; that settles the lists, too."""
    assert cannot_arrange(LISTS) is None
    found = judge(LISTS, saved(), TornImage(), CRASHED_LATER)
    assert found.agrees
    assert found.seen == (
        f"hibernated without a warning, every page table in its image; resumed, then crashed: {CORRUPTION}"
    )
    sooner = replace(
        CRASHED_LATER,
        reason="crashed: list_del corruption, ff->next is LIST_POISON1 (dead000000000100)",
        log="Calling irqrouter_resume+0x0/0x50\nBUG: Bad page state in process busybox  pfn:04886\n"
        "list_del corruption, ff->next is LIST_POISON1 (dead000000000100)\n __rmqueue_pcplist+0x71/0xb50\n",
    )
    assert judge(LISTS, saved(), TornImage(), sooner).agrees
    lives = replace(LISTS, violated=("lists-whole",), resumed_crash="", lists="below", pages="above")
    assert cannot_arrange(lives) is None
    found = judge(lives, saved(), TornImage(), WHOLE)
    assert found.agrees
    assert found.seen.endswith("(not observable: lists-whole)")
    assert not judge(lives, saved(), TornImage(), CRASHED_LATER).agrees


@pytest.mark.parametrize(
    ("torn", "resumed", "told"),
    [
        (
            TornImage(),
            WHOLE,
            "predicted a crash of the resumed guest in its free lists, it did not: resumed, 2048 pages",
        ),
        (LACKS, CRASHED_LATER, "its image lacks table 0x64fb"),
        (
            TornImage(),
            replace(CRASHED_LATER, reason="crashed: BUG: kernel NULL pointer dereference"),
            "it did not: crashed: BUG",
        ),
        (TornImage(), replace(CRASHED_LATER, reason=f"fresh boot: {CORRUPTION}"), "it did not: fresh boot"),
        (
            TornImage(),
            replace(CRASHED_LATER, log=TORN_LISTS.replace("restore of", "look at")),
            "it did not: crashed: list_add",
        ),
        (
            TornImage(),
            replace(CRASHED_LATER, log=TORN_LISTS.replace("free_unref", "kobject")),
            "it did not: crashed: list_add",
        ),
    ],
)
def test_another_end_than_in_the_free_lists(torn: TornImage, resumed: Resumed, told: str) -> None:
    """It continues, lacks a table, crashes elsewhere, before the resume, or in a list of other code."""
    found = judge(LISTS, saved(), torn, resumed)
    assert not found.agrees
    assert told in found.seen
