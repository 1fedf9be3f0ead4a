# SPDX-License-Identifier: GPL-2.0-or-later
"""Records: the same after a trip through their line."""

from __future__ import annotations

from pathlib import Path

from hibernaut.exploration.one_machine import explore_layout
from hibernaut.exploration.records import MachineRecord
from hibernaut.exploration.results import read_records
from hibernaut.exploration.tally import Tally
from tests.exploration.sweeps import SMALL


def test_records_survive_their_file(whole: tuple[Path, dict[str, Tally]]) -> None:
    """A record is the same after a trip through its line."""
    for number, record in read_records(whole[0]):
        assert number >= 2
        assert MachineRecord.from_line(record.line()) == record
        assert explore_layout(SMALL, record.layout_choices) == record
