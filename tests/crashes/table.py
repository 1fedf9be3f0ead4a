# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of docs/reliability.md."""

from __future__ import annotations

from tests.crashes.scenarios import Recording, Tally

__all__ = ["HEAD", "row"]

HEAD = """\
| command | calls | syncs | states | old | none | some | new |
|---|---|---|---|---|---|---|---|
"""
WORDS = ("old", "none", "some", "new")


def row(found: Recording, told: Tally) -> str:
    """Return the row of a command: its calls, its syncs, and the states at all of its instants by what they hold."""
    states = f"{told.states}" if told.whole else f"{told.states} of more"
    counts = (str(told.verdicts[word]) if told.verdicts[word] else "" for word in WORDS)
    return f"| {found.scenario.title} | {len(found.calls)} | {found.syncs} | {states} | {' | '.join(counts)} |\n"
