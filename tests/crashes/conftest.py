# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures: each command runs once, and is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crashes.scenarios import SCENARIOS, Recording, Tally, record, small_image, tally

Recordings = Callable[[str], Recording]
Tallies = Callable[[str], Tally]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image."""
    return small_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Recordings:
    """Return the calls of a command by its name."""
    made: dict[str, Recording] = {}

    def get(name: str) -> Recording:
        if name not in made:
            scenario = next(one for one in SCENARIOS if one.name == name)
            made[name] = record(scenario, tmp_path_factory.mktemp("run"), small)
        return made[name]

    return get


@pytest.fixture(scope="session")
def tallies(recordings: Recordings) -> Tallies:
    """Return the states at every instant of a command by its name."""
    made: dict[str, Tally] = {}

    def get(name: str) -> Tally:
        if name not in made:
            found = recordings(name)
            made[name] = tally(found.scenario, found.tree, found.calls)
        return made[name]

    return get
