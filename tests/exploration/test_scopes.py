# SPDX-License-Identifier: GPL-2.0-or-later
"""Families and bounds in words and in JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hibernaut.errors import FormatError
from hibernaut.exploration.families import Family
from hibernaut.exploration.layouts import RegionKind, Side
from hibernaut.exploration.scopes import (
    bounds_of_words,
    family_from_json,
    family_json,
    family_of_words,
    words_of_family,
)
from hibernaut.exploration.search import Bounds

BOTH = (Side.ABOVE, Side.BELOW)


def test_words_describe_families() -> None:
    """Words of the command line give the family that they describe; bounds likewise."""
    words = ["regions=0,3", "kinds=2m,no-table", "tables=below", "mem-map=above,below", "remembered=no,yes"]
    assert family_of_words([*words, "cpus=2", "free-pages=9"]) == Family(
        regions=(0, 3),
        kinds=(RegionKind.BLOCK, RegionKind.NO_TABLE),
        tables=(Side.BELOW,),
        mem_map=BOTH,
        remembered=(False, True),
        cpus=(2,),
        free_pages=9,
    )
    assert bounds_of_words(["failures=1", "frames=0", "states=7"]) == Bounds(1, 0, 7)
    assert (family_of_words([]), bounds_of_words([])) == (Family(), Bounds())
    assert family_of_words(["min-mark=0,7", "batch=1"]) == Family(min_mark=(0, 7), batch=(1,))


def test_a_family_survives_its_words() -> None:
    """The words of a family make the same family again."""
    for family in (
        Family(),
        Family(regions=(0, 3), kinds=tuple(RegionKind), mem_map=BOTH, remembered=(False, True), cpus=(1, 4)),
        Family(free_pages=9, min_mark=(8, 0), batch=(63, 1)),
    ):
        assert family_of_words(words_of_family(family)) == family


def test_families_survive_their_file() -> None:
    """A family is the same after a trip through JSON; what is none is refused."""
    family = Family(regions=(0, 3), kinds=tuple(RegionKind), remembered=(False, True), cpus=(1, 4), free_pages=7)
    assert family_from_json(json.loads(json.dumps(family_json(family)))) == family
    marked = replace(family, kinds=(RegionKind.BLOCK,), min_mark=(0, 6), batch=(1, 63))
    assert family_from_json(json.loads(json.dumps(family_json(marked)))) == marked
    good = family_json(family)
    assert not {"min_mark", "batch", "second_root"} & good.keys()
    damaged: list[Any] = [
        {**good, "regions": [9]},
        {**good, "kinds": ["5k"]},
        {**good, "tables": ["beside"]},
        {**good, "cpus": [True]},
        {**good, "remembered": [0]},
        {**good, "free_pages": 1 << 40},
        {**good, "kinds": ["2m"], "min_mark": [-1]},
        {**good, "kinds": ["2m"], "min_mark": [True]},
        {**good, "min_mark": [1]},
        {**good, "batch": 3},
        {**good, "batch": [0]},
        {**good, "colour": ["red"]},
        {**good, "regions": 3},
        [],
        None,
    ]
    for bad in damaged:
        with pytest.raises(FormatError, match="not a family"):
            family_from_json(bad)
