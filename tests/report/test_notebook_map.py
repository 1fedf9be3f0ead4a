# SPDX-License-Identifier: GPL-2.0-or-later
"""Results in notebooks: tables are escaped, the picture has the numbers of its map, and a terminal has characters."""

from __future__ import annotations

import re

import pytest

import hibernaut
import hibernaut.report
from hibernaut.hibernation.audit import audit
from hibernaut.linux.build import build_machine
from hibernaut.linux.layout import Layout, hole_2m, hole_4k
from hibernaut.notebook import html_table
from hibernaut.report.charts import page_colours
from hibernaut.report.frame_words import DIFFERENCE_LAYER, LAYERS
from tests.conftest import Golden
from tests.hibernation.test_frame_map import source_of
from tests.machines import RAM

pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra report)")


def test_tables_are_escaped() -> None:
    """Markup is text, and characters that do not print are visible."""
    table = html_table("<b>", ("a&b",), [("<script>",), ("\x1b[31m",), (7,)])
    assert "<b>" not in table
    assert "&lt;script&gt;" in table
    assert "\\x1b[31m" in table
    assert table.count('<th scope="row">') == 3


@pytest.mark.parametrize("by", ["mapped", "fate", "use"])
def test_the_picture_has_the_numbers_of_its_map(golden: Golden, by: str) -> None:
    """A cell of the table for each class; SVG with title and description; the same map as characters."""
    with hibernaut.open_memory(golden("swap-6.1-low2m.img")) as source:
        found = hibernaut.report.memory_map(source, by)  # type: ignore[arg-type]
    shown = found._repr_html_()
    codes = getattr(found.frames, by)
    numbers = [int(one) for one in re.findall(r"<td>(\d+)</td>", shown)]
    assert numbers == list(found.frames.totals(codes).values())
    assert "<title" in shown
    assert "<desc" in shown
    assert "<script" not in shown
    (title,) = (one.title for one in LAYERS if one.key == by)
    assert str(found).startswith(f"{title}: {found.frames.end_pfn} frames, ")


def test_a_source_without_page_tables_has_a_map() -> None:
    """Nothing is guessed: the class is "not known"; an unknown question is refused."""
    source, _ = source_of(hole_4k(0x801, 3))
    assert "not present, 4K" in hibernaut.report.memory_map(source)._repr_html_()
    with pytest.raises(ValueError, match="expected mapped, fate or use"):
        hibernaut.report.memory_map(source, "colour")  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hibernaut.report.nothing


def test_results_have_tables() -> None:
    """An audit has a row for each class, a direct map one for each hole."""
    machine = build_machine(Layout(RAM, holes=(hole_2m(0x1000, 1), hole_4k(0x801, 1))))
    found = audit(machine)
    assert found._repr_html_().count("<tr>") == 1 + len(found.classes)
    assert "not present, 2M" in found._repr_html_()
    assert machine.direct_map._repr_html_().count("<tr>") == 1 + len(machine.direct_map.holes)


def test_every_class_has_a_colour() -> None:
    """The style sheet of pages names one for each key, and colours of one question that must not be confused differ."""
    colours = page_colours()
    for layer in (*LAYERS, DIFFERENCE_LAYER):
        assert {word.key for word in layer.words.values()} <= colours.keys()
        alarming = {colours[word.key] for word in layer.words.values() if word.alarming}
        assert not alarming & {colours[word.key] for word in layer.words.values() if not word.alarming}
