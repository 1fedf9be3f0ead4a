# SPDX-License-Identifier: GPL-2.0-or-later
"""The record beside an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hibernaut.errors import FormatError
from hibernaut.lab.record import GuestRecord
from tests.cli.run import refused
from tests.lab.records import RECORD


def test_a_record_comes_back(tmp_path: Path) -> None:
    """A guest's record that was saved is loaded equal."""
    RECORD.save(tmp_path)
    assert GuestRecord.load(tmp_path) == RECORD


def test_a_record_from_before_there_were_nodes(tmp_path: Path) -> None:
    """It is of one node; and a side that is none is refused."""
    RECORD.save(tmp_path)
    path = tmp_path / "machine.json"
    old = json.loads(path.read_text())
    del old["allocator"], old["variant"]["pages"], old["variant"]["lists"]
    path.write_text(json.dumps(old))
    assert GuestRecord.load(tmp_path) == RECORD
    path.write_text(json.dumps({**old, "variant": {**old["variant"], "lists": "beside"}}))
    with pytest.raises(FormatError, match=r"not a record of a laboratory guest: lists is 'beside'"):
        GuestRecord.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"session": 1}', '{"regions": 1, "frames": []}', "\xff"])
def test_a_damaged_record_is_one_line(tmp_path: Path, text: str) -> None:
    """A damaged record is refused in one line."""
    (tmp_path / "machine.json").write_text(text)
    (tmp_path / "swap.img").touch()
    line = refused("lab", "resume", tmp_path)
    assert "not a record of a laboratory guest" in line
    assert "machine.json; give a folder that" in line
