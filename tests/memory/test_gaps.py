# SPDX-License-Identifier: GPL-2.0-or-later
"""Raw memory with the gaps put back that its file leaves out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hibernaut.errors import FormatError
from hibernaut.memory.dump import Dump
from hibernaut.memory.gaps import MemoryGap, gaps_between
from hibernaut.memory.raw import open_raw
from tests.memory.conftest import Opening
from tests.memory.naive import PAGE


@st.composite
def ranges_of_ram(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw ascending ranges of bytes of RAM, (first, one past the last), not of whole pages."""
    steps = draw(st.lists(st.integers(1, 3 * PAGE), min_size=2, max_size=8).filter(lambda some: len(some) % 2 == 0))
    bounds = np.cumsum(steps).tolist()
    return list(zip(bounds[::2], bounds[1::2], strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranges_of_ram())
def test_frames_equal_a_naive_concatenation(opening: Opening, ram: list[tuple[int, int]]) -> None:
    """Every whole frame of RAM, and no other, has the bytes of its own addresses."""
    whole = np.random.default_rng(1).bytes(ram[-1][1])
    content = b"".join(whole[start:end] for start, end in ram)
    expected = {
        pfn: whole[pfn * PAGE : (pfn + 1) * PAGE]
        for pfn in range(ram[-1][1] // PAGE)
        if any(start <= pfn * PAGE and (pfn + 1) * PAGE <= end for start, end in ram)
    }
    gaps = gaps_between(ram)
    answer = opening(lambda plain: open_raw(plain, gaps), content)
    assert isinstance(answer, Dump)
    memory = answer.memory
    assert memory.ranges.pfns().tolist() == sorted(expected)
    asked = np.arange(ram[-1][1] // PAGE + 2)
    pages, present = memory.gather(asked)
    assert {int(pfn): pages[pfn].tobytes() for pfn in asked[present]} == expected
    assert {int(pfn): page.tobytes() for pfn in asked for page in memory.run(int(pfn), 1)} == expected
    assert set(memory.stored.pfns().tolist()) <= set(expected)


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        ([MemoryGap(PAGE, 0)], "is empty"),
        ([MemoryGap(PAGE, 2 * PAGE), MemoryGap(2 * PAGE, PAGE)], "overlaps the one before"),
        ([MemoryGap(4 * PAGE, PAGE)], "begins behind the end of the file's memory"),
        ([MemoryGap(PAGE, PAGE), MemoryGap(5 * PAGE, PAGE)], "expected a start below 0x5000"),
        ([MemoryGap(PAGE, 1 << 52)], "memory ends at 0x10000000004000"),
    ],
)
def test_gaps_that_cannot_be(opening: Opening, gaps: list[MemoryGap], message: str) -> None:
    """Four pages: each gap is within their memory, apart from the others, and leaves addresses of 52 bits."""
    with pytest.raises(FormatError, match=message):
        opening(lambda plain: open_raw(plain, gaps), bytes(4 * PAGE))


def test_gaps_in_any_order(opening: Opening) -> None:
    """Gaps are sorted; a gap at address 0 moves everything."""
    pages = b"".join(bytes([number]) * PAGE for number in range(1, 5))
    answer = opening(lambda plain: open_raw(plain, [MemoryGap(6 * PAGE, PAGE), MemoryGap(0, 4 * PAGE)]), pages)
    assert isinstance(answer, Dump)
    assert list(answer.memory.ranges) == [(4, 2), (7, 2)]
    assert [int(answer.memory.run(pfn, 1)[0, 0]) for pfn in (4, 5, 7, 8)] == [1, 2, 3, 4]
