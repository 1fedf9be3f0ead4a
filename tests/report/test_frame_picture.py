# SPDX-License-Identifier: GPL-2.0-or-later
"""Pictures of memory in a terminal: cells against a naive model, any width, plain signs, no lost alarm."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibernaut.cli.terminal import print_styled, prints_ascii_only
from hibernaut.hibernation.frame_map import MappedBy
from hibernaut.linux.layout import hole_2m, hole_4k
from hibernaut.report.frame_cells import alarming_codes, cells_of_frames
from hibernaut.report.frame_picture import MIN_WIDTH, frame_picture, layer_named
from hibernaut.report.frame_words import DIFFERENCE_LAYER, LAYERS, MAPPED
from tests.cli.run import hibernaut, refused
from tests.conftest import Golden
from tests.hibernation.test_frame_map import source_of

RUNS = st.lists(st.tuples(st.integers(1, 40), st.sampled_from(sorted(MAPPED))), min_size=1, max_size=20)


@given(RUNS, st.integers(1, 50))
def test_cells_are_those_of_a_naive_count(runs: list[tuple[int, int]], each: int) -> None:
    """The class of most frames; one that alarms before all others, however few its frames."""
    frames = [code for pages, code in runs for _ in range(pages)]
    start = np.cumsum([0, *[pages for pages, _ in runs]])[:-1]
    codes = np.array([code for _, code in runs], dtype=np.uint8)
    found = cells_of_frames(start, codes, len(frames), alarming_codes(MAPPED), each)
    assert len(found) == -(-len(frames) // each)
    for cell, code in enumerate(found.tolist()):
        inside = frames[cell * each : (cell + 1) * each]
        rank = {one: (MAPPED[one].alarming, inside.count(one)) for one in set(inside)}
        assert rank[code] == max(rank.values())


@pytest.mark.parametrize("layer", [*LAYERS, DIFFERENCE_LAYER], ids=lambda layer: layer.key)
def test_signs_and_names_tell_classes_apart(layer: object) -> None:
    """Within a question each class has its own sign, in ASCII too, its own key and its own label."""
    words = list(layer.words.values())  # type: ignore[attr-defined]
    for column in ("sign", "ascii", "key", "label", "meaning"):
        values = [getattr(word, column) for word in words]
        assert len(set(values)) == len(values), column
    assert all(len(word.sign) == len(word.ascii) == 1 and word.ascii.isascii() for word in words)


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("width", [1, 30, 80, 81, 200])
def test_a_picture_fits_its_width(width: int, plain: bool) -> None:
    """No row is wider, all frames are drawn, and the one frame without a mapping is seen."""
    source, paging = source_of(hole_4k(0x805, 1), hole_2m(0x1000, 1))
    from hibernaut.hibernation.frame_map import frame_map

    frames = frame_map(source, paging)
    lines = [
        "".join(text for text, _ in line) for line in frame_picture(frames, layer_named("mapped"), width, plain=plain)
    ]
    rows = [line for line in lines if re.match(r" *0x[0-9a-f]+  \S", line)]
    assert max(map(len, rows)) <= max(width, MIN_WIDTH)
    assert rows[0].startswith("   0x0  ")
    drawn = "".join(row[8:] for row in rows)
    for code in (MappedBy.NOT_PRESENT_4K, MappedBy.NOT_PRESENT_2M):
        assert (MAPPED[code].ascii if plain else MAPPED[code].sign) in drawn
    assert not plain or "".join(lines).isascii()
    legend = [line for line in lines if line.endswith(")") and not line.startswith(" ")]
    counts = {line[2:].split("  ")[0].strip(): int(re.findall(r"(\d+) \(", line)[0]) for line in legend}
    assert sum(counts.values()) == frames.end_pfn
    assert counts["not present, 4K"] == 1


def test_map_and_audit_draw(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture before the text, in colour if that is forced; not in a document, and not with --quiet."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    source = golden("swap-6.1-low2m.img")
    plain = hibernaut("map", source).out
    drawn = hibernaut("map", source, "--picture", "--width", 80).out
    assert drawn.endswith(plain)
    assert "! table missing  512 (2 MiB)" in drawn
    by_fate = hibernaut("audit", source, "--picture", "--picture-by", "fate", "--width", 80)
    assert by_fate.status == 1
    assert re.search(r"^! lost table +1 \(4 KiB\)$", by_fate.out, re.MULTILINE)
    assert "\x1b" not in by_fate.out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31m!!!!!!!!\x1b[0m" in hibernaut("map", source, "--picture", "--width", 80).out
    assert hibernaut("map", source, "--picture", "--quiet").out == ""
    assert "--picture excludes --json" in refused("map", source, "--picture", "--json")


def test_text_in_a_picture_cannot_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An escape character in a label is visible; an ASCII stream has its signs known."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    print_styled([[("a\x1b[2Jb", ""), ("[bold]c", "red")]])
    assert capsys.readouterr().out == "a\\x1b[2Jb[bold]c\n"
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert prints_ascii_only()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert not prints_ascii_only()
