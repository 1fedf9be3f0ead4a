# SPDX-License-Identifier: GPL-2.0-or-later
"""The questions about a machine's layout: the answers without interference, and each answer in words."""

from __future__ import annotations

from hibernaut.exploration.layouts import (
    LayoutKind,
    RegionKind,
    Side,
    Structure,
    ask_batch,
    ask_cpus,
    ask_min_mark,
    ask_region,
    ask_regions,
    ask_remembered,
    ask_side,
    ask_tables,
)
from hibernaut.linux.environment import Environment, Replay


def ask_all(environment: Environment) -> tuple[int, RegionKind, Side, Side, int, bool, int, int]:
    """Ask every question about a layout once."""
    return (
        ask_regions(environment, (0, 1)),
        ask_region(environment, 1, tuple(RegionKind)),
        ask_tables(environment, 1, tuple(Side)),
        ask_side(environment, Structure.MEM_MAP, tuple(Side)),
        ask_cpus(environment, (1, 2)),
        ask_remembered(environment, (0, 1)),
        ask_min_mark(environment, (1, 2)),
        ask_batch(environment, (1, 63)),
    )


def test_without_interference_the_first_option_is_the_answer() -> None:
    """The default environment chooses no region, two pages, everything above, one CPU, nothing remembered, 1 page."""
    environment = Environment()
    assert ask_all(environment) == (0, RegionKind.PAGE, Side.ABOVE, Side.ABOVE, 1, False, 1, 1)
    assert [choice.kind for choice in environment.schedule] == list(LayoutKind)
    assert [str(choice) for choice in environment.schedule] == [
        "0 regions are out of the direct map",
        "region 1: two pages not present, by 4K entries of their own",
        "region 1: its tables lie above all regions",
        "the array of struct page lies above all regions",
        "1 CPU has pages on a list of its own",
        "the CPU remembers nothing of the regions as they were before",
        "the zone's min mark is 1 page",
        "a CPU's list takes 1 page at a time",
    ]


def test_other_answers_have_other_words() -> None:
    """Each other answer is returned as its type and described in the schedule."""
    environment = Replay((1, 5, 1, 1, 1, 1, 1, 1))
    assert ask_all(environment) == (1, RegionKind.NO_TABLE, Side.BELOW, Side.BELOW, 2, True, 2, 63)
    assert [str(choice) for choice in environment.schedule] == [
        "1 region is out of the direct map",
        "region 1: 2 MiB without a PTE table",
        "region 1: its tables lie below all regions",
        "the array of struct page lies below all regions",
        "2 CPUs have pages on a list of its own",
        "the CPU remembers the regions as they were before",
        "the zone's min mark is 2 pages",
        "a CPU's list takes 63 pages at a time",
    ]
