# SPDX-License-Identifier: GPL-2.0-or-later
"""The smallest sweep, run once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from hibernaut.exploration.sweep import run_sweep
from hibernaut.exploration.tally import Tally
from tests.exploration.sweeps import SMALL


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tally]]:
    """The file of its results, and its tallies."""
    path = tmp_path_factory.mktemp("sweep") / "whole.jsonl"
    return path, run_sweep(SMALL, path, processes=1)
