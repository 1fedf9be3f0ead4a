# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that fit into memory twice, against real kernels: their own reserve, and the images that they made."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from hibernaut.doctor.checks import fits
from hibernaut.doctor.evidence import Evidence
from hibernaut.doctor.facts import Facts
from hibernaut.doctor.settings import parse_counters, parse_zoneinfo
from tests.conftest import REPOSITORY
from tests.doctor.machines import DATA

KERNELS = [json.loads(path.read_text()) for path in sorted(DATA.glob("full-*.json"))]
"""Guests with more in memory than fits twice and an unlimited image_size: /proc/zoneinfo and /proc/vmstat right before
they hibernated, `totalreserve_pages` as a debugger read it, and the lines of the log with the pages of the image."""
RECORDS = [
    json.loads(line) for line in (REPOSITORY / "tests/hibernation/depleted_guests.jsonl").read_text().splitlines()
]
RELEASES = [one["release"] for one in KERNELS]


def facts(kernel: dict[str, Any]) -> Facts:
    """Return the facts of a guest that its files state."""
    return replace(
        Facts(),
        zones=Evidence(parse_zoneinfo(kernel["zoneinfo"]), "/proc/zoneinfo"),
        counters=Evidence(parse_counters(kernel["vmstat"]), "/proc/vmstat"),
        reserved_size=Evidence(kernel["reserved_size"], "/sys/power/reserved_size"),
        image_size=Evidence(1 << 40, "/sys/power/image_size"),
    )


def allocated_pages(kernel: dict[str, Any]) -> int:
    """Return the pages that the kernel allocated for its image, as it printed."""
    (found,) = re.findall(r"Allocated (\d+) pages for snapshot", "\n".join(kernel["log"]))
    return int(found)


@pytest.mark.parametrize("record", RECORDS, ids=lambda one: f"{one['release']}, {one['memory_mib']} MiB")
def test_the_reserve_is_that_of_kernels_with_more_memory(record: dict[str, Any]) -> None:
    """Guests of 1 to 3 GiB: the numbers of their zones, in the form of /proc/zoneinfo, and `totalreserve_pages`."""
    counts = parse_zoneinfo("".join(map(as_text, record["before"]["zones"])))
    assert counts is not None
    assert counts.reserve == record["before"]["totalreserve_pages"]
    assert counts.spanned == tuple(zone["spanned_pages"] for zone in record["before"]["zones"])


def as_text(zone: dict[str, Any]) -> str:
    """Return a zone in the form of /proc/zoneinfo; its managed pages are in no record, and these zones keep fewer."""
    return (
        f"Node {zone['node']}, zone {zone['name']:>8}\n  pages free     {zone['free_pages']}\n"
        f"        high     {zone['high_pages']}\n        spanned  {zone['spanned_pages']}\n"
        f"        present  {zone['present_pages']}\n        managed  {zone['present_pages']}\n"
        f"        protection: (0, {zone['protection_pages']}, {zone['protection_pages']})\n"
    )


@pytest.mark.parametrize("kernel", KERNELS, ids=RELEASES)
def test_the_reserve_of_the_zones_is_the_kernels_own(kernel: dict[str, Any]) -> None:
    """By marks and protections of /proc/zoneinfo, `totalreserve_pages` to the page."""
    counts = parse_zoneinfo(kernel["zoneinfo"])
    assert counts is not None
    assert counts.reserve == kernel["totalreserve_pages"]


@pytest.mark.parametrize("kernel", KERNELS, ids=RELEASES)
def test_a_full_machine_saves_no_more_pages_than_fit_twice(kernel: dict[str, Any]) -> None:
    """The kernel frees pages until `max_size` are left, and its reclaim goes a little further: by 2.5 % at most."""
    known = facts(kernel)
    limit, expected = fits._most_copied(known), fits.expected_pages(known)
    assert limit is not None
    assert expected is not None
    assert expected.shrinks
    assert expected.least == limit
    assert 0 <= limit - allocated_pages(kernel) <= limit // 40


def test_a_kernel_shows_the_limit_to_a_tenth_of_the_reserve() -> None:
    """The closest end of reclaim: without the reserve of the zones, the limit is half of that too high."""
    over = []
    for kernel in KERNELS:
        known = facts(kernel)
        counts = known.zones.value
        assert counts is not None
        without = replace(known, zones=Evidence(replace(counts, reserve=None), "/proc/zoneinfo"))
        both = [(fits._most_copied(one) or 0) - allocated_pages(kernel) for one in (known, without)]
        over.append((both[0] / kernel["totalreserve_pages"], both[1] / kernel["totalreserve_pages"]))
    assert min(over)[0] < 0.1
    assert min(over)[1] > 0.5


def test_a_zoneinfo_without_marks_has_no_reserve() -> None:
    """Neither zero nor a part of it: the finding then says that the limit is a larger number."""
    whole = "".join(map(as_text, RECORDS[0]["before"]["zones"]))
    assert "less half" not in limit_read(whole)
    for name in ("high", "managed", "protection:"):
        text = re.sub(rf"^ +{name} .*\n", "", whole, count=1, flags=re.MULTILINE)
        counts = parse_zoneinfo(text)
        assert counts is not None
        assert counts.reserve is None
        assert "less half of what the zones keep" in limit_read(text)


def limit_read(zoneinfo: str) -> str:
    """Return the text of the fact by which the check of free memory has its limit."""
    counters = "".join(f"{name} 10\n" for name in fits.RECLAIMABLE)
    known = facts({"zoneinfo": zoneinfo, "vmstat": counters, "reserved_size": 1 << 20})
    return fits.free_memory(known).read[0].value


def test_a_zone_keeps_no_more_than_it_has() -> None:
    """`calculate_totalreserve_pages`: a protection beyond the managed pages counts as these; empty zones as nothing."""
    zone = {**RECORDS[0]["before"]["zones"][0], "protection_pages": 90_000}
    empty = {**zone, "name": "Movable", "present_pages": 0, "spanned_pages": 0, "free_pages": 0}
    counts = parse_zoneinfo(as_text(zone) + as_text(empty))
    assert counts is not None
    assert (counts.reserve, counts.spanned) == (zone["present_pages"], (zone["spanned_pages"],))
