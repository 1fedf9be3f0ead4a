# SPDX-License-Identifier: GPL-2.0-or-later
"""The numbers on docs/reliability.md are those that `python -m tests.crashes` prints."""

from __future__ import annotations

import os

from tests.conftest import REPOSITORY
from tests.crashes.conftest import Recordings, Tallies
from tests.crashes.scenarios import SCENARIOS
from tests.crashes.table import HEAD, row

PAGE = REPOSITORY / "docs" / "reliability.md"


def test_the_table_is_true(recordings: Recordings, tallies: Tallies) -> None:
    """Each command, its calls and syncs, and the states at all of its instants; HIBERNAUT_UPDATE_DOCS=1 writes it."""
    table = HEAD + "".join(row(recordings(one.name), tallies(one.name)) for one in SCENARIOS)
    before, head, rest = PAGE.read_text().partition(HEAD)
    assert head
    after = rest[rest.index("\n\n") + 1 :]
    if os.environ.get("HIBERNAUT_UPDATE_DOCS"):
        PAGE.write_text(before + table + after)
    assert table in PAGE.read_text()
