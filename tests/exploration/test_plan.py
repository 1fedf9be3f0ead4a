# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a sweep: each machine once, and only ways that exist."""

from __future__ import annotations

import pytest

from hibernaut.errors import HibernautError
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind
from hibernaut.exploration.plan import Sweep, layouts


def test_layouts_come_simplest_first() -> None:
    """The machine without regions is the first, and no machine comes twice."""
    listed = list(layouts(Family(regions=(0, 1, 2), kinds=(RegionKind.PAGE, RegionKind.NO_TABLE))))
    assert listed[0] == (0,)
    assert len(listed) == len(set(listed)) == 1 + 3 + 9


def test_a_sweep_needs_ways_that_exist() -> None:
    """No ways, one twice, an unknown one, an unknown line: refused."""
    for ways, rules in (((), "6.1"), (("remap", "remap"), "6.1"), (("fly",), "6.1"), (("remap",), "2.4")):
        with pytest.raises(HibernautError):
            Sweep(Family(), ways, rules)
