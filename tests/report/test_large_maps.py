# SPDX-License-Identifier: GPL-2.0-or-later
"""Maps of large machines: a page of 16 GiB stays below 3 MB, and a memory with too many runs keeps its alarms."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest

from hibernaut.hibernation import frame_map as frame_maps
from hibernaut.hibernation.copy_order import copy_order
from hibernaut.hibernation.frame_map import Fate, FrameMap, FrameUse, MappedBy, frame_map
from hibernaut.kernel.own_vmcoreinfo import OwnVmcoreinfo
from hibernaut.kernel.suspend import PagesToSave
from hibernaut.linux.layout import hole_2m, hole_4k
from hibernaut.report.frame_runs import PackedRuns, unpack_runs
from hibernaut.report.page import MOST_RUNS, memory_map_data
from tests.hibernation.test_frame_map import check_whole, source_of
from tests.machines import GIB

pytest.importorskip("jinja2", reason="jinja2 is not installed (the extra report)")

LIMIT = 3_000_000
GIB16 = 16 * GIB


def random_map(frames: int, longest: int) -> FrameMap:
    """Return a map of runs of random length and class, one frame of it lost."""
    random = np.random.default_rng(7)
    pages = random.integers(1, longest, frames // longest * 2, endpoint=True)
    ends = np.cumsum(pages)
    pages = pages[: int(np.searchsorted(ends, frames)) + 1]
    pages[-1] -= int(pages.sum()) - frames
    fate = random.integers(Fate.SAVED, Fate.FREE, len(pages), endpoint=True, dtype=np.uint8)
    fate[1234] = Fate.LOST
    pages[1235] += pages[1234] - 1
    pages[1234] = 1
    mapped = random.choice([MappedBy.PRESENT_4K, MappedBy.PRESENT_2M], len(pages)).astype(np.uint8)
    use = random.choice([FrameUse.UNKNOWN, FrameUse.SLAB], len(pages)).astype(np.uint8)
    return FrameMap(np.cumsum(pages) - pages, pages, mapped, fate, use, frames, "image", True, (), None)


def test_16_gib_with_holes_are_mapped_by_their_holes() -> None:
    """2 000 pages and 300 blocks are out of the direct map: the map has a run or two for each of them."""
    holes = [hole_4k(0x100000 + 3 * number) for number in range(2000)]
    holes += [hole_2m(0x200000 + 1024 * number) for number in range(300)]
    source, paging = source_of(*holes, ram=((0, 0xA0), (0x100, GIB16 - 0x100)))
    with (  # a search of 16 GiB for a kernel that is not there
        mock.patch.object(frame_maps, "with_own_vmcoreinfo", lambda source, _root: (source, OwnVmcoreinfo(None))),
        mock.patch.object(frame_maps, "pages_to_save", return_value=PagesToSave("direct-map")),
    ):
        found = frame_map(source, paging)
    check_whole(found)
    assert found.end_pfn == GIB16
    assert len(found.pages) < 3 * len(holes)
    totals = found.totals(found.mapped)
    assert (totals[MappedBy.NOT_PRESENT_4K], totals[MappedBy.NOT_PRESENT_2M]) == (2000, 300 * 512)
    assert len(memory_map_data(found)) < 20_000
    order = copy_order(found)
    assert len(order.regions) + order.more == 300


@pytest.mark.parametrize("longest", [2, 6])
def test_a_page_of_16_gib_in_random_pieces_stays_small(longest: int) -> None:
    """Worse than any machine: every run of one frame or a few. Totals are those of all frames; the lost one is seen."""
    found = random_map(GIB16, longest)
    text = memory_map_data(found)
    assert len(text) < LIMIT
    data = json.loads(text)
    assert data["runs"] <= MOST_RUNS
    assert data["layers"][1]["totals"][Fate.LOST] == 1
    assert sum(data["layers"][1]["totals"]) == GIB16
    assert (data["each"] > 1) == (len(found.pages) > MOST_RUNS)
    pages, codes = unpack_runs(PackedRuns(tuple(map(tuple, data["classes"])), data["runs"], data["text"]))
    assert int(pages.sum()) == GIB16
    lost = np.cumsum(pages)[codes[1] == Fate.LOST]
    assert len(lost) == 1
    assert abs(int(lost[0]) - int(found.start_pfn[1234])) <= data["each"]
