# SPDX-License-Identifier: GPL-2.0-or-later
"""Predictions confirmed on a real kernel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hibernaut.errors import LabError, LabUnavailable
from hibernaut.lab.cases.runner import prove
from hibernaut.lab.cases.table import cases_of
from hibernaut.lab.confirm import confirm
from hibernaut.lab.guest.region import region_module
from hibernaut.lab.judgement import judge
from hibernaut.lab.laboratory import Lab
from hibernaut.lab.record import require_arranged
from tests.lab.conftest import unavailable
from tests.lab.logs import CLEAN, FAILS, LISTS, RECORD, TORN, ZERO, crashed


def test_a_guest_unlike_its_variant() -> None:
    """Each of the allocator's own on the wrong side of a region, or not known, is noticed."""
    variant = replace(LISTS.variant, regions=("2m:below",))
    places = {"free": 0x100, "mem-map": 0xFC00, "zone": 0xFFD5, "pcp": 0x1F638}
    arranged = replace(RECORD, variant=variant, regions=({"block": "0x12000"},), allocator=places)
    require_arranged(arranged)
    for name, pfn in (("mem-map", 0x12800), ("zone", 0x12200), ("pcp", 0x400), ("pcp", 0), ("zone", 0)):
        with pytest.raises(
            LabError, match=f"the guest's {name} is at frame {pfn:#x}; expected (above|below) its regions"
        ):
            require_arranged(replace(arranged, allocator={**places, name: pfn}))
    require_arranged(
        replace(
            arranged,
            variant=replace(variant, pages="above", lists="below"),
            allocator={"mem-map": 0x1FC00, "zone": 0x1FFD5, "pcp": 0xF638},
        )
    )


def test_linux_crashes_in_its_free_lists(lab_61: Lab) -> None:
    """That case of docs/support.md: the kernel's own image has torn free lists, ours of the same memory is intact."""
    (result,) = prove([lab_61], cases_of(["CPU lists above: saved from a dump"]))
    if result.passed is None:
        unavailable(result.seen)
    assert result.passed, result.seen
    assert "its own: crashed: list_" in result.seen


def test_linux_crashes_on_a_zero_entry(lab_61: Lab, tmp_path: Path) -> None:
    """As predicted: no warning, a page fault at the entry; the same guest does not confirm another prediction."""
    try:
        region_module(lab_61.cache, lab_61.kernel)
    except LabUnavailable as error:
        unavailable(str(error))
    found = confirm(lab_61, ZERO, tmp_path)
    assert found.agrees, found.seen
    assert found.release == lab_61.kernel.release
    assert not any("remap" in line for line in found.said)
    log = "\n".join(("hibernation: hibernation entry", *found.said, "RIP: 0010:swsusp_save+0x1/0x2"))
    assert judge(ZERO, crashed(log)).agrees
    for other in (FAILS, TORN, CLEAN):
        assert not judge(other, crashed(log)).agrees
