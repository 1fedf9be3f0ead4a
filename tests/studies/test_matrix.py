# SPDX-License-Identifier: GPL-2.0-or-later
"""The matrix: every way in every situation, letter by letter, and its outcomes that need an explanation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hibernaut.errors import HibernationRefused, HibernautError, MachineFault
from hibernaut.hibernation import (
    Fixmap,
    Remap,
    RemapGeneric,
    RemapGenericAbort,
    RemapGenericZero,
)
from hibernaut.hibernation.owners import ONCE_RESUMED, WHILE_WRITING
from hibernaut.hibernation.ways import WAYS, way_named
from hibernaut.linux.build import build_machine
from hibernaut.linux.formula import formula_pages
from hibernaut.linux.layout import Layout, hole_4k
from hibernaut.linux.machine import Machine
from hibernaut.linux.rules import rules_named
from hibernaut.report.text import CHECK_LETTERS
from hibernaut.studies.matrix import SITUATIONS, Situation, run_cell, run_matrix
from tests.hibernation.machines import RAM

WARNING = "PM: hibernation: Failed to remap page"


# The verdicts of all ways in all situations, in the order of SITUATIONS: ok, or what the checks find by their letters.
EXPECTED = {
    "Remap": "ok ok A TMA A ok died died died died ok ok died died died ok",
    "Fixmap": "ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok ok",
    "FixmapV1": "ok ok ok ok ok ok ok died ok ok ok ok ok ok ok ok",
    "RemapGeneric": "ok ok A TMA A ok died died DTMA D ok ok died died died ok",
    "RemapGenericZero": "ok ok A TMA A ok died died DTMA D ok ok died died died ok",
    "RemapGenericAbort": "ok ok A TMA A ok died died refused refused ok ok died died died ok",
    "RemapWhole": "ok ok ok ok ok ok died died ok ok ok ok died died died ok",
    "FixmapNoFlush": "ok DX DX DX DX DX X DX DX DX D X DX DX DX ok",
    "FixmapNoClear": "ok ok ok S ok ok ok ok S ok ok ok S ok S ok",
    "RemapNoUnmap": "ok ok A TMA A ok died died died died ok ok M ok M ok",
    "RemapNoFlush": "ok X AX TMAX AX X died died died died X X died X died ok",
}


@pytest.mark.parametrize("way", EXPECTED)
def test_the_whole_matrix(way: str) -> None:
    """Every way in every situation, hibernated and resumed: letter by letter the invariants that break."""
    names = {way_named(name).name: name for name in WAYS}
    seen = [
        "".join(CHECK_LETTERS[check] for check in cell.failed_checks) or "ok" if cell.error is None else cell.status
        for cell in run_matrix([names[way]])
    ]
    assert " ".join(seen) == EXPECTED[way]
    assert len(seen) == len(SITUATIONS)


def situation(name: str) -> Situation:
    """Return a situation by its name."""
    return next(one for one in SITUATIONS if one.name == name)


def test_the_fixmap_needs_no_luck() -> None:
    """Fixmap saves every machine unchanged, in every situation, without an allocation."""
    for cell in run_matrix(["fixmap"]):
        assert (cell.result, len(cell.after.allocations)) == ("unchanged", 0)


def test_a_skipped_page_is_lost_without_a_message() -> None:
    """RemapGeneric: one warning, a snapshot that succeeds, and a page with bytes that were never its own; or zeroes."""
    for way, byte in ((RemapGeneric(), None), (RemapGenericZero(), 0)):
        cell = run_cell(way, situation("2M hole, 1st allocation fails"))
        assert cell.snapshot is not None
        assert cell.snapshot.skipped.tolist() == [0x1000]
        assert WARNING in cell.after.log.kernel_lines
        assert cell.after.log.kernel_lines[-1].startswith("PM: hibernation: Image created")
        page = cell.snapshot.page(0x1000)
        assert not np.array_equal(page, formula_pages([0x1000])[0])
        assert byte is None or (page == byte).all()
    cell = run_cell(RemapGenericAbort(), situation("2M hole, 1st allocation fails"))
    assert isinstance(cell.error, HibernationRefused)
    assert (cell.error.errno, cell.error.log[-1]) == ("ENOMEM", WARNING)


def test_a_kernel_that_asked_for_null_would_fault_in_the_copy_instead() -> None:
    """The NULL check alone does not help today's way: CPA then reports success without a table, and the copy faults."""
    asks = replace(rules_named("7.3"), checks_null_pte=True)
    cell = run_cell(Remap(), situation("no table"), asks)
    assert isinstance(cell.error, MachineFault)
    assert cell.error.address == cell.before.vaddr(0x1400)
    assert run_cell(Fixmap(null_check=False), situation("no table"), asks).result == "unchanged"
    with pytest.raises(HibernautError, match="L1TF"):
        build_machine(Layout(RAM), rules=replace(asks, inverts_not_present=False))


def test_a_torn_allocator_kills_the_resumed_machine_when_it_is_used() -> None:
    """Links copied before an allocation and list heads after it: the check finds them, and so does the next user.

    With mem_map below the block and the heads above it, a list's head names pages that do not know that they are on
    it: their links are NULL. It is the shape of the crash of 6.13-rc.
    """
    cell = run_cell(Remap(), situation("2M hole, mem_map below"))
    assert cell.failed_checks == ("allocator-sound",)
    assert any("next is NULL" in violation.what for violation in cell.violations)
    assert cell.resumed is not None

    def use(machine: Machine) -> None:
        for number in range(400):
            machine.alloc_page(f"page {number} after the resume")

    with pytest.raises(MachineFault) as fault:
        use(cell.resumed)
    assert fault.value.address < 4096
    assert fault.value.log[-4].startswith("BUG: kernel NULL pointer dereference, address: 00000000000000")


@pytest.mark.parametrize(
    ("name", "when"), [("KFENCE, image written", WHILE_WRITING), ("KFENCE, resumed", ONCE_RESUMED)]
)
def test_kfence_faults_after_todays_copy(name: str, when: str) -> None:
    """The image is complete, then the next allocation faults: the kernel's lines, of the machine that ran last."""
    cell = run_cell(Remap(), situation(name), rules_named("6.12"))
    assert isinstance(cell.error, MachineFault)
    assert cell.error.doing == f"writing to frame 0x1002 in __kfence_alloc, {when}"
    lines = cell.last.log.kernel_lines
    assert lines[-5].startswith("PM: hibernation: Image created")
    assert lines[-2] == "#PF: error_code(0x0003) - permissions violation"
    assert (cell.snapshot is None) == (when == WHILE_WRITING)
    assert run_cell(Fixmap(), situation(name), rules_named("6.12")).result == "unchanged"


def test_the_owner_is_a_part_of_the_situation() -> None:
    """The same hole, its PTE table copied after it: harmless to an owner that sets RW, fatal to one that does not."""
    restored = situation("4K hole, PRESENT restored")
    rewritten = replace(restored, layout=replace(restored.layout, holes=(hole_4k(0x801, 3),)))
    assert run_cell(Remap(), rewritten).result == "unchanged"
    assert run_cell(Remap(), restored).result == "died"
