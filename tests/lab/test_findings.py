# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts on kernels: what each watched hibernation amounts to, and what it must not be taken for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hibernaut.errors import HibernautError
from hibernaut.hibernation.log import FAILED_TO_REMAP
from hibernaut.lab.laboratory import Hibernated, Resumed
from hibernaut.lab.page_tables import KernelTables
from hibernaut.lab.record import GuestRecord
from hibernaut.lab.trial import findings
from hibernaut.lab.trial.findings import Finding, Word, finding_of
from hibernaut.lab.trial.situations import CONTROL, SITUATIONS, TrialSituation, situations_named
from hibernaut.lab.trial.trial import CANNOT_JUDGE, CURED, NOT_CURED, Tried, verdict_on
from hibernaut.lab.trial.watched import Watched

ADDRESS, BLOCK = 0xFFFF888000400000, 0x400
HIDDEN = 0x800FFFFFFFBFF062
ROOT, PUD, PMD, PTE = 1, 2, 3, 4
TABLE = 0x063
ENTERED = "[    7.1] PM: hibernation: hibernation entry\n[    7.2] PM: hibernation: NeededOption to copy 9999 pages\n"
ALLOCATED = "[    7.3] hlab_region: allocation 1 for a split, from __change_page_attr_set_clr\n"
FAILED = ALLOCATED[:-1] + ": failure injected\n"
REMAP = f"[    7.3] {FAILED_TO_REMAP}\n"
FAULT = """\
[    7.4] BUG: unable to handle page fault for address: ffff888000400000
[    7.4] RIP: 0010:swsusp_save+0x2c9/0x3b5
[    7.4] ---[ end trace 0000000000000000 ]---
"""
CALLER = "[    7.4]  swsusp_save+0x2c9/0x3b5\n"
MEMCPY = FAULT.replace("swsusp_save", "__memcpy").replace("[    7.4] --", f"{CALLER}[    7.4] --")
UNTRUSTED = MEMCPY.replace(" swsusp_save+", " ? swsusp_save+").replace("ffff888000400000", "ffff88800b000000")
LAPIC = FAULT.replace("swsusp_save", "lapic_cal_handler").replace("ffff888000400000", "0000000000000018")
KFENCE_FAULT = FAULT.replace("swsusp_save+", "__kfence_alloc+").replace("ffff888000400000", "ffff888003f78088")
WHOLE = Resumed(True, "resumed, 2048 pages and 1 region of the direct map as they were", "", 1, {"pages": 2048})
GARBAGE = replace(WHOLE, passed=False, reason="direct map garbage: block 0x400: 512 of 512 entries wrong")
FRESH = Resumed(False, "fresh boot: Image mismatch: version", "", 1)
BY_NAME = {one.name: one for one in SITUATIONS}
BLOCK_2M, PAGE_4K, KFENCE = BY_NAME["2m-above"], BY_NAME["4k"], BY_NAME["kfence"]
FAILS, LISTS = BY_NAME["2m-fails"], BY_NAME["torn-lists"]


def tables(pmd: int = HIDDEN, pte: int = 0x800FFFFFFFBF8062, slot: int = 0) -> KernelTables:
    """Return tables of a kernel with one block of 2 MiB in its direct map, and a slot elsewhere."""
    found = {pfn: np.zeros(512, dtype=np.uint64) for pfn in (ROOT, PUD, PMD, PTE, 5, 6, 7)}
    found[ROOT][273], found[PUD][0], found[PMD][2] = PUD << 12 | TABLE, PMD << 12 | TABLE, pmd
    found[ROOT][511], found[5][511], found[6][504] = 5 << 12 | TABLE, 6 << 12 | TABLE, 7 << 12 | TABLE
    found[7][3], found[PTE][7] = slot, pte
    return KernelTables(ROOT, 4, dict(found))


def record(situation: TrialSituation) -> GuestRecord:
    """Return the record of a guest with a region at the block."""
    regions = tuple(
        {"wish": wish, "block": f"{BLOCK:#x}", "address": f"{ADDRESS:#x}"} for wish in situation.variant.regions[:1]
    )
    return GuestRecord("aa", "6.1.0-56-amd64", "6.1", situation.variant, None, 0, regions, (), {})


def seen(
    situation: TrialSituation = BLOCK_2M,
    log: str = "",
    outcome: str = "hibernated",
    resumed: Resumed | None = WHOLE,
    before: KernelTables | None = None,
    after: KernelTables | None = None,
) -> Watched:
    """Return a hibernation as it was watched; by default everything is right."""
    died = outcome == "died"
    start = before or (tables(PTE << 12 | TABLE) if situation is PAGE_4K else tables())
    done = Hibernated(outcome, "BUG: x" if died else "", Path(), record(situation), ENTERED + log, 1)
    return Watched(
        done, start, after or (None if died else start), () if not died else None, None if died else resumed, True
    )


def test_a_cured_kernel() -> None:
    """Nothing allocated, nothing changed, everything there after the resume."""
    found = finding_of(BLOCK_2M, seen())
    assert found == Finding(
        Word.CURED,
        ("no allocation in the copy, 7 page tables equal before and after it; " + WHOLE.reason,),
    )


def test_no_allocation_is_said_only_of_a_probe_that_works() -> None:
    """A module that did not count that of a provoked split says nothing of those of the copy."""
    found = finding_of(BLOCK_2M, replace(seen(), counted=False))
    assert found.why[0].startswith("allocations not counted, 7 page tables equal")


WRONG = {
    "an allocation": (seen(log=ALLOCATED), "1 allocation in the copy loop"),
    "a failing one": (seen(FAILS, FAILED + REMAP + FAULT, "died"), "1 allocation in the copy loop, 1 made to fail"),
    "a warning": (seen(log=REMAP), f'the kernel says "{FAILED_TO_REMAP}"'),
    "crashes in the copy": (seen(log=FAULT, outcome="died"), "the kernel crashes in the copy, in swsusp_save: BUG: x"),
    "crashes in a callee": (seen(log=MEMCPY, outcome="died"), "the kernel crashes in the copy, in __memcpy: BUG: x"),
    "crashes silently": (seen(outcome="died"), "the kernel crashes in the copy: BUG: x"),
    "rights lost": (
        seen(PAGE_4K, after=tables(PTE << 12 | TABLE, 0x800FFFFFFFBF8020)),
        "1 entry of the kernel's page tables changed: PTE entry of 0xffff888000407000: 0x800fffffffbf8062, then "
        "0x800fffffffbf8020 (loses RW and DIRTY)",
    ),
    "a split": (
        seen(after=tables(PTE << 12 | TABLE)),
        "1 entry of the kernel's page tables changed: PMD entry of 0xffff888000400000: 0x800fffffffbff062, then 0x4063",
    ),
    "a slot stays mapped": (
        seen(after=tables(slot=0x400161)),
        "1 entry of the kernel's page tables changed: PTE entry of 0xffffffffff003000: 0x0, then 0x400161",
    ),
    "a lost table": (
        replace(seen(), lacking=(0xAAC8,)),
        "the image lacks 1 page table that its own tables point to: 0xaac8",
    ),
    "garbage": (seen(resumed=GARBAGE), f"after the resume: {GARBAGE.reason}"),
    "an owner that faults": (
        seen(resumed=replace(WHOLE, facts={"answers": [("region block=0x400 lone=0x1 owner=faults damaged=0",)]})),
        "the owner of the page in block 0x400 faults when it writes to it",
    ),
    "KFENCE": (
        seen(KFENCE, KFENCE_FAULT, "died", after=tables()),
        "the kernel crashes after the copy, in __kfence_alloc: BUG: x",
    ),
    "a resumed machine that touches the block": (
        seen(resumed=Resumed(False, "crashed: BUG: y", FAULT.replace("swsusp_save+", "clear_page+"), 1)),
        "the resumed machine crashes: BUG: y",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_kernel_that_is_not_cured(name: str) -> None:
    """The first reason, with the pages and the entries."""
    watched, why = WRONG[name]
    situation = next(one for one in SITUATIONS if one.variant == watched.done.record.variant)
    found = finding_of(situation, watched)
    assert (found.word, found.why[0]) == (Word.NOT_CURED, why)


UNCLEAR = {
    "crashes elsewhere": (BLOCK_2M, seen(log=LAPIC, outcome="died"), "outside the code that is judged"),
    "an address on the stack": (BLOCK_2M, seen(log=UNTRUSTED, outcome="died"), "outside the code that is judged"),
    "crashes elsewhere afterwards": (
        BLOCK_2M,
        seen(resumed=Resumed(False, "crashed: BUG: z", LAPIC, 1)),
        "the resumed guest crashed outside the code that is judged",
    ),
    "refuses": (BLOCK_2M, seen(outcome="refused"), "the kernel refused to hibernate"),
    "does not resume": (BLOCK_2M, seen(resumed=FRESH), "the guest did not resume: fresh boot"),
    "no copy": (BLOCK_2M, replace(seen(), before=None), "did not get to the copy"),
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_unclear_observations(name: str) -> None:
    """A crash counts only in the code that is judged; a resume that another fault prevents does not count."""
    situation, watched, why = UNCLEAR[name]
    found = finding_of(situation, watched)
    assert found.word == Word.UNCLEAR
    assert why in found.why[0]


@pytest.mark.parametrize(
    ("situation", "before", "why"),
    [
        (BLOCK_2M, tables(0x4000E3), "block 0x400 is not 2m when the copy begins: entry 0x4000e3"),
        (BLOCK_2M, tables(PTE << 12 | TABLE), "block 0x400 is not 2m when the copy begins: entry 0x4063"),
        (PAGE_4K, tables(PTE << 12 | TABLE, 0x407163), "block 0x400 is not 4k when the copy begins: entry 0x407163"),
        (PAGE_4K, tables(), "block 0x400 is not 4k when the copy begins: no table"),
        (KFENCE, tables(0x4000E3, 0x407163), "KFENCE's pool has no entry that is not present"),
    ],
)
def test_a_situation_that_did_not_exist(situation: TrialSituation, before: KernelTables, why: str) -> None:
    """A kernel whose page is present when the copy begins is not cured by copying it."""
    assert finding_of(situation, seen(situation, before=before)) == Finding(Word.NOT_EXERCISED, (why,))


@pytest.mark.parametrize(
    ("name", "value", "broken"),
    [
        ("ALLOCATION", re.compile("never"), "an allocation"),
        ("JUDGED", re.compile("never"), "crashes in a callee"),
        ("OWNER", re.compile("never"), "KFENCE"),
        ("_wrong_afterwards", lambda _: (), "an owner that faults"),
    ],
)
def test_broken_judges_are_caught(monkeypatch: pytest.MonkeyPatch, name: str, value: object, broken: str) -> None:
    """A judge that does not look at one kind of evidence takes a stock kernel for cured, or says nothing."""
    monkeypatch.setattr(findings, name, value)
    watched, _ = WRONG[broken]
    if broken == "crashes in a callee":  # its address is in no region
        log = watched.done.log.replace("ffff8880004", "ffff8880904")
        watched = replace(watched, done=replace(watched.done, log=log))
    assert finding_of(BLOCK_2M if broken != "KFENCE" else KFENCE, watched).word != Word.NOT_CURED


def test_lists_count_where_they_are_judged() -> None:
    """A torn list on the resumed machine is the copy's doing only in the situation that tears lists."""
    log = (
        "Calling virtio_mmio_resume+0x1\nlist_add corruption. next->prev should be prev\n"
        " __rmqueue_pcplist+0x33/0x50\n---[ end trace 0 ]---\n"
    )
    resumed = Resumed(False, "crashed: list_add corruption. next->prev should be prev", log, 1)
    torn = seen(LISTS, resumed=resumed)
    assert finding_of(LISTS, torn).word == Word.NOT_CURED
    assert finding_of(BLOCK_2M, torn).word == Word.UNCLEAR


def tried(**words: Word) -> list[Tried]:
    """Return results by the names of situations."""
    return [
        Tried(BY_NAME[name.replace("_", "-")], Finding(word, (f"why {name}",)), 1, 1.0) for name, word in words.items()
    ]


@pytest.mark.parametrize(
    ("results", "verdict", "why"),
    [
        (tried(plain=Word.CURED, no_table=Word.CURED), CURED, "in the one situation that was tried"),
        (
            tried(plain=Word.CURED, no_table=Word.CURED, kfence=Word.NOT_EXERCISED),
            CURED,
            "in 1 of 2 situations; the others were not exercised",
        ),
        (tried(plain=Word.CURED, no_table=Word.NOT_CURED, many=Word.UNCLEAR), NOT_CURED, "no-table: why no_table"),
        (tried(plain=Word.CURED, no_table=Word.CURED, many=Word.UNCLEAR), CANNOT_JUDGE, "many is unclear: why many"),
        (
            tried(plain=Word.CURED, kfence=Word.NOT_EXERCISED),
            CANNOT_JUDGE,
            "no situation with a hidden page was exercised",
        ),
        (tried(plain=Word.UNCLEAR, many=Word.NOT_CURED), CANNOT_JUDGE, "the control does not pass: why plain"),
        (tried(many=Word.CURED), CANNOT_JUDGE, "the control does not pass: it was not tried"),
    ],
)
def test_the_verdict(results: list[Tried], verdict: str, why: str) -> None:
    """A kernel is cured only if something was exercised and nothing is in doubt."""
    assert verdict_on(results) == (verdict, why)


def test_situations_by_name() -> None:
    """The control is always among them; an unknown name is refused with the known ones."""
    assert [one.name for one in situations_named(["none"])] == ["plain", "none"]
    assert situations_named(None)[0] is CONTROL
    with pytest.raises(HibernautError, match="no case 'nothing'; expected plain, 4k"):
        situations_named(["none", "nothing"])
