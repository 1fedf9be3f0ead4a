# SPDX-License-Identifier: GPL-2.0-or-later
"""Results that a notebook shows as tables: their numbers, escaped text, heads with a scope, bounded size."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import hibernaut
from hibernaut.exploration.run import Outcome
from hibernaut.exploration.tally import Counterexample, Tally
from hibernaut.linux.layout import hole_2m
from hibernaut.notebook import MOST_ROWS, html_table
from hibernaut.swsusp import Inspection
from hibernaut.swsusp.checker import Problem
from tests.conftest import Golden
from tests.machines import RAM
from tests.report.machine_files import HOSTILE, image_by

TAGS = {"table", "caption", "thead", "tbody", "tr", "th", "td"}
MOST_BYTES = 200_000


class Table(HTMLParser):
    """The tags of a table, its attributes, and its text by cell."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.cells: list[str] = []
        self.caption = ""
        self.feed(markup)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, which must be one of a table."""
        assert tag in TAGS
        self.open.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        """End the innermost element."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Add text to its cell."""
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data
        elif self.open and self.open[-1] == "caption":
            self.caption += data

    def row(self, name: str) -> str:
        """Return the value of a fact."""
        return self.cells[self.cells.index(name) + 1]


def shown(value: Any) -> Table:
    """Return the table of a value, which names no network, style or script, and is accessible and bounded."""
    markup = value._repr_html_()
    found = Table(markup)
    assert len(markup) < MOST_BYTES
    assert {(tag, name) for tag, name, _ in found.attributes} <= {("th", "scope"), ("td", "colspan")}
    assert markup.count("<th") - markup.count("<thead") == markup.count('scope="')
    assert found.caption
    assert all(one.isprintable() for cell in found.cells for one in cell)
    return found


@pytest.fixture(scope="module")
def machine() -> hibernaut.Machine:
    """A machine with a block out of its direct map."""
    return hibernaut.build_machine(hibernaut.Layout(RAM, holes=(hole_2m(0x1000),), tables="high"))


def test_a_snapshot_has_a_table(machine: hibernaut.Machine) -> None:
    """Its pages, its allocations with their frames, what it did not copy."""
    torn = hibernaut.hibernate(machine.fork(), hibernaut.Remap())
    table = shown(torn)
    assert table.row("pages saved") == str(len(torn.pfns))
    assert table.row("page allocations since it began") == f"1: frame {torn.allocations[0].pfn:#x}"
    assert table.row("way") == "Remap"
    assert table.row("last line of its log") == torn.log[-1]
    whole = shown(hibernaut.hibernate(machine.fork(), hibernaut.Fixmap()))
    assert whole.row("page allocations since it began") == "0"
    skipped = hibernaut.hibernate(machine.fork(hibernaut.FailAllocations(1)), hibernaut.way_named("remap-generic"))
    assert shown(skipped).row("pages not copied, though listed") == str(len(skipped.skipped)) != "0"
    assert shown(skipped).row("page allocations since it began").startswith(f"{len(skipped.allocations)}: failed, ")
    early = hibernaut.hibernate(machine.fork(hibernaut.FailAllocations(1)), hibernaut.way_named("remap-write-anyway"))
    assert early.error is not None
    assert shown(early).row("ended early") == str(early.error)


def test_a_tally_has_a_row_for_each_outcome(machine: hibernaut.Machine) -> None:
    """Runs, machines, the verdict; an exploration that is cut is not called complete."""
    tally = hibernaut.explore(machine, hibernaut.Remap())
    table = shown(tally)
    assert table.caption.startswith("2 of 2 runs lose or break something; every run was executed (machines: 1, ")
    for outcome, (runs, machines, shortest) in tally.endings.items():
        at = table.cells.index(str(outcome))
        assert table.cells[at + 1 : at + 5] == ["yes", str(runs), str(machines), str(shortest.deviations)]
    safe = hibernaut.explore(hibernaut.Family(regions=(0, 1)), hibernaut.Fixmap())
    assert shown(safe).caption.startswith(f"of {safe.runs} runs none loses or breaks anything; every run was executed")
    cut = hibernaut.explore(machine, hibernaut.Remap(), bounds=hibernaut.Bounds(states=1))
    assert cut.cut == 1
    assert "every run" not in shown(cut).caption
    assert f"machines cut: 1, the first {cut.where}" in shown(cut).caption


def test_an_outcome_that_leaves_traces_is_not_called_clean() -> None:
    """It loses nothing, and is not unchanged either."""
    shortest = Counterexample((), (), (), 0)
    traces = Outcome("saved", ("same-rights", "same-direct-map"))
    assert not traces.loses
    table = shown(Tally(1, 1, 1, 1, endings={traces: (1, 1, shortest)}))
    assert table.caption.startswith("of 1 runs none loses anything, but some leave traces")
    assert "leaves traces" in table.cells


def test_an_inspection_has_a_table(golden: Golden) -> None:
    """The numbers of `inspect`, the checksum, and the last word."""
    with hibernaut.open_volume(golden("swap-6.1-lzo.img"), "") as volume:
        found = hibernaut.inspect_image(volume)
    table = shown(found)
    assert table.caption.endswith("swap-6.1-lzo.img: intact")
    assert table.row("pages saved") == "19951"
    assert table.row("checksum") == "CRC-32 0xacd59df4 ok"
    assert table.row("architecture") == "x86-64"


def test_a_damaged_image_is_called_damaged(golden: Golden, tmp_path: Path) -> None:
    """A page that changed: its problem has a row; a header alone: what cannot be read is said."""
    path = tmp_path / "damaged.img"
    shutil.copyfile(golden("swap-6.1-lzo.img"), path)
    with path.open("r+b") as file:
        file.seek(3059 * 4096)
        byte = file.read(1)
        file.seek(3059 * 4096)
        file.write(bytes([byte[0] ^ 0xFF]))
    with hibernaut.open_volume(path, "") as volume:
        found = hibernaut.inspect_image(volume)
    assert found.problems
    table = shown(found)
    assert f"damaged, {len(found.problems)} problem" in table.caption
    assert table.row("problem").endswith(found.problems[0].what)
    assert "could not be computed" in table.row("checksum")
    with path.open("r+b") as file:
        file.seek(1098 * 4096)
        file.write(b"\xff" * 4096)
    with hibernaut.open_volume(path, "") as volume:
        table = shown(hibernaut.inspect_image(volume))
    assert table.row("pages saved") == "could not be read"
    assert "damaged, 1 problem" in table.caption


def hostile_inspection(folder: Path) -> Inspection:
    """Return an inspection of an image whose name and problems are hostile."""
    path = image_by(folder / HOSTILE.replace("/", ""))
    with hibernaut.open_volume(path, "") as volume:
        found = hibernaut.inspect_image(volume)
    object.__setattr__(found, "problems", tuple(Problem(f"<b>{HOSTILE}\u202e" * 999, HOSTILE) for _ in range(999)))
    return found


def hostile_tally() -> Tally:
    """Return a tally with very many outcomes of hostile names."""
    shortest = Counterexample((), (), (HOSTILE,) * 999, 0)
    outcomes = {Outcome("died", (), crash=f"{HOSTILE}{number}"): (1, 1, shortest) for number in range(5000)}
    return Tally(1, 5000, 1, 1, cut=1, where=HOSTILE * 999, endings=outcomes)


def hostile_snapshot(machine: hibernaut.Machine) -> hibernaut.Snapshot:
    """Return a snapshot with hostile texts."""
    found = hibernaut.hibernate(machine.fork(), hibernaut.Remap())
    for name, value in (("way", HOSTILE), ("log", (HOSTILE * 999,)), ("allocations", found.allocations * 5000)):
        object.__setattr__(found, name, value)
    return found


def test_hostile_texts_are_text(machine: hibernaut.Machine, tmp_path: Path) -> None:
    """Markup and control characters of names, messages and logs; the size stays bounded, the rest is counted."""
    for value in (hostile_inspection(tmp_path), hostile_tally(), hostile_snapshot(machine)):
        markup = value._repr_html_()
        shown(value)
        assert "<img" not in markup
        assert "\x1b" not in markup
        assert "\u202e" not in markup
        assert "&lt;img src=x onerror=alert(1)&gt;" in markup
    assert f"{5000 - MOST_ROWS} more" in hostile_tally()._repr_html_()
    assert "and 4992 more" in hostile_snapshot(machine)._repr_html_()


def test_the_parser_finds_what_is_not_escaped() -> None:
    """A table with the same text as it is fails."""
    markup = html_table("c", ("h",), [("v",)])
    with pytest.raises(AssertionError):
        Table(markup.replace("v", HOSTILE))
